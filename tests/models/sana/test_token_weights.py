"""A weight is how many times a token counts: in the network, through the node, in batches, joined with other texts."""

import math

import pytest
import torch
from sana_native.models.layers import MASK_BIAS, mask_bias
from sana_native.models.runtime.text_conds import MaskCond, text_conds, weighted_mask
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.model import Sana
from sana_native.tests.models.sana.test_hooks import build
from sana_native.tests.support import workbench as bench

NETWORKS = [Sana, CpuSana, CudaSana]


def golden_text() -> dict:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(1, 32, 3, 5, generator=generator)
    context = torch.randn(1, 6, 64, generator=generator)
    return {"x": x, "timesteps": torch.tensor([700.0]), "context": context,
            "attention_mask": torch.tensor([[1.0, 1, 1, 1, 0, 0]])}  # fmt: skip


def encoded(prompt: str, negative: str = "", weights: bool = True) -> tuple[list, list]:
    return bench.call(bench.OURS["GemmaEncode"], bench.clip(), prompt, negative, "on", "", False, weights)


# In the network


@pytest.mark.parametrize("network", NETWORKS)
def test_a_weight_of_two_gives_the_golden_values_and_those_of_a_doubled_row(network):
    sana, given = build(network, num_layers=3), golden_text()
    twice = given | {"attention_mask": torch.tensor([[1.0, 1, 2, 1, 0, 0]])}
    rows = [0, 1, 2, 2, 3]
    doubled = given | {"context": given["context"][:, rows], "attention_mask": torch.ones(1, 5)}
    with torch.inference_mode():
        plain, weighted, expected = (sana(**inputs).flatten() for inputs in (given, twice, doubled))
    assert torch.allclose(plain[:3], torch.tensor([-0.952839, -0.724560, -0.573835]), atol=1e-5)
    assert torch.allclose(weighted[:3], torch.tensor([-0.870836, -0.702504, -0.455323]), atol=1e-5)
    assert (weighted - expected).abs().max() < 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.long, torch.float32, torch.bool])
def test_the_bias_of_a_plain_mask_is_what_it_was(dtype, kind):
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).to(kind)
    bias = mask_bias(mask, dtype)
    assert torch.equal(bias, (1 - mask.to(dtype))[:, None] * MASK_BIAS) and bias.shape == (2, 1, 3)


def test_the_bias_of_a_weight_is_its_logarithm():
    bias = mask_bias(torch.tensor([[1.0, 2.0, 0.5, 0.0]]), torch.float32)
    assert torch.allclose(bias[0, 0], torch.tensor([0.0, math.log(2), -math.log(2), MASK_BIAS]))


# From the conditioning to the network


def test_weights_of_one_leave_the_mask_as_it_came():
    mask = torch.tensor([[1, 1, 0]])
    assert weighted_mask(mask, torch.ones(1, 3)) is mask and weighted_mask(mask, torch.ones(1, 2)) is mask
    assert weighted_mask(mask, torch.tensor([[2.0]])).tolist() == [[2.0, 1.0, 0.0]]
    assert weighted_mask(mask, torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, 2.0, 0.0]]


def test_a_text_without_padding_but_with_weights_has_a_mask():
    states = torch.ones(1, 16, 4)
    plain = text_conds(states, None, None)["attention_mask"]
    weighted = text_conds(states, None, None, torch.full((1, 16), 2.0))["attention_mask"]
    assert plain.concat([plain]) is None
    assert weighted.concat([plain]).tolist() == [[2.0] * 16, [1.0] * 16]
    assert isinstance(weighted.process_cond(2), MaskCond) and weighted.process_cond(2).padded


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_prompt_without_weights_is_bit_equal_with_and_without_the_input(family):
    for text in ("a red cat", "a (red) cat (16:9)", "(a red cat:1.0)"):
        plain = encoded(text.replace("(a red cat:1.0)", "a red cat"), "blurry", weights=False)
        read = encoded(text, "blurry")
        assert all(set(a[0][1]) == set(b[0][1]) for a, b in zip(plain, read, strict=True))
        assert torch.equal(bench.draw(bench.model(family), plain), bench.draw(bench.model(family), read))


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_weights_act_and_the_states_are_those_of_the_plain_text(family):
    model, plain = bench.model(family), encoded("a red cat on a bus")
    weighted = encoded("a (red cat:3) on a bus")
    assert torch.equal(plain[0][0][0], weighted[0][0][0])
    assert bench.relative(bench.draw(model, weighted), bench.draw(model, plain)) > 1e-3


def test_the_negative_prompt_has_weights_of_its_own():
    model, plain = bench.model("sana"), encoded("a cat", "dark street")
    weighted = encoded("a cat", "dark (street:3)")
    assert "token_weights" not in weighted[0][0][1] and "token_weights" in weighted[1][0][1]
    assert bench.relative(bench.draw(model, weighted), bench.draw(model, plain)) > 1e-3


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_doubled_weight_equals_doubled_rows_through_the_sampler(family):
    ((states, extra),) = encoded("a (street:2) b")[0]
    used = int(extra["attention_mask"].sum())
    rows = [i for i in range(used) for _ in range(int(extra["token_weights"][0, i]))]
    assert len(rows) > used
    doubled = [[states[:, rows], {"attention_mask": torch.ones(1, len(rows), dtype=torch.long)}]]
    (_, negative), model = encoded("a"), bench.model(family)
    expected = bench.draw(model, (doubled, negative))
    assert bench.relative(bench.draw(model, ([[states, extra]], negative)), expected) < 2e-5


def test_the_weights_lie_on_the_positions_of_their_tokens():
    tokenizer = bench.clip().tokenizer.sentencepiece
    for text, instruction in (("a (cat:2) here", "on"), ("(cat:2)", "off"), ("(cat:2)", "on")):
        ((_, extra),) = bench.call(bench.OURS["GemmaEncode"], bench.clip(), text, "", instruction, "", False, True)[0]
        assert extra["token_weights"].shape == extra["attention_mask"].shape
        before = len(tokenizer.encode("a", add_bos=False)) if text.startswith("a") else 0
        word = len(tokenizer.encode("cat" if instruction == "off" else " cat", add_bos=False))
        expected = [1 + before + i for i in range(word)]
        assert extra["token_weights"][0].ne(1).nonzero().flatten().tolist() == expected


def test_weights_beyond_the_last_position_are_cut_with_their_tokens():
    ((_, extra),) = encoded("cat " * 400 + "(street:2)")[0]
    assert extra["token_weights"].shape == (1, 300) and bool((extra["token_weights"] == 1).all())


def test_weights_share_a_pass_with_a_prompt_without(monkeypatch):
    model, conds = bench.model("sana"), encoded("a (cat:2)", "")
    seen = bench.count_calls(monkeypatch, model)
    together = bench.draw(model, conds)
    assert seen.batches == [2, 2]
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)  # the host then batches no passes
        assert bench.relative(bench.draw(model, conds), together) < 1e-5
    assert seen.batches == [2, 2, 1, 1, 1, 1]


def test_a_batch_of_images_has_the_weights_of_the_single_one():
    model, conds = bench.model("sana"), encoded("a (cat:2)")
    batch = bench.draw(model, conds, bench.empty(batch_size=2))
    assert bench.relative(batch[:1], bench.draw(model, conds)) < 1e-5


# Joined


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_conditioning_concat_equals_both_texts_packed_by_hand(family):
    model, (first, negative), (second, _) = bench.model(family), encoded("a (cat:2)"), encoded("a busy street")
    joined = bench.call("ConditioningConcat", first, second)[0]
    assert joined[0][0].shape[1] == 600 and joined[0][1]["attention_mask"].shape[1] == 300
    used = [int(cond[0][1]["attention_mask"].sum()) for cond in (first, second)]
    states = torch.cat([cond[0][0][:, :count] for cond, count in zip((first, second), used)], dim=1)
    weights = torch.cat([first[0][1]["token_weights"][:, : used[0]], torch.ones(1, used[1])], dim=1)
    packed = [[states, {"attention_mask": torch.ones(1, sum(used), dtype=torch.long), "token_weights": weights}]]
    expected = bench.draw(model, (packed, negative))
    assert bench.relative(bench.draw(model, (joined, negative)), expected) < 1e-5
    assert bench.relative(bench.draw(model, (first, negative)), expected) > 1e-3


def test_texts_whose_padding_is_not_marked_are_refused_when_joined():
    ((states, extra),) = encoded("a cat")[0]
    unmarked = [[states, {"attention_mask": extra["attention_mask"]}]]
    joined = bench.call("ConditioningConcat", unmarked, encoded("a street")[0])[0]
    with pytest.raises(
        ValueError, match="has 600 text positions but a mask for 300, as Conditioning .Concat. leaves it"
    ):
        bench.draw(bench.model("sana"), (joined, encoded("a")[1]))


def test_an_average_has_the_weights_of_its_first_text():
    first, second = encoded("a (cat:2)")[0], encoded("a busy street")[0]
    averaged = bench.call("ConditioningAverage", first, second, 0.5)[0]
    assert torch.equal(averaged[0][1]["token_weights"], first[0][1]["token_weights"])
    assert torch.isfinite(bench.draw(bench.model("sana"), (averaged, encoded("a")[1]))).all()


def test_lumina_weighs_too():
    plain, _ = bench.call(bench.OURS["GemmaEncode"], bench.lumina_clip(), "a red cat", "", "on", "", False, True)
    weighted, _ = bench.call(bench.OURS["GemmaEncode"], bench.lumina_clip(), "a (red:3) cat", "", "on", "", False, True)
    assert torch.equal(plain[0][0], weighted[0][0]) and weighted[0][1]["token_weights"].shape == plain[0][0].shape[:2]
    model = bench.lumina()
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    images = [
        bench.call("KSampler", model, 7, 2, 1.0, "euler", "normal", cond, plain, latent, 1.0)[0]["samples"]
        for cond in (plain, weighted)
    ]
    assert bench.relative(*images) > 1e-3
