"""A negative prompt inside the attention: its formula, in the network, and through the nodes at cfg 1 and above."""

import pytest
import torch
import torch.nn.functional as F
from comfy_extras.nodes_nag import NAGuidance
from sana_native.models.pixart.loader import load_pixart
from sana_native.models.runtime.negative_attention import NegativeAttention, Strength, guide_attention
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.model import Sana
from sana_native.tests.models.sana.test_hooks import build, seed_9
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

STRENGTH = Strength(4.0, 1.5, 0.4)


def guided(model, negative: list, **settings):
    return bench.call(bench.OURS["NAG"], model, negative, **settings)[0]


def encoded(prompt: str, negative: str = "", weights: bool = False) -> tuple[list, list]:
    return bench.call(bench.OURS["GemmaEncode"], bench.clip(), prompt, negative, "on", "", False, weights)


def test_the_formula_is_that_of_the_hosts_node():
    generator = torch.Generator().manual_seed(2)
    positive, negative = (torch.randn(2, 6, 64, generator=generator) for _ in range(2))
    patched = bench.call(NAGuidance, bench.model("sana"), STRENGTH.scale, STRENGTH.alpha, STRENGTH.tau)[0]
    (stock,) = patched.model_options["transformer_options"]["patches"]["attn1_output_patch"]
    expected = stock(torch.cat([positive, negative]), {"cond_or_uncond": [0, 1]})[:2]
    assert torch.allclose(guide_attention(positive, negative, STRENGTH), expected, atol=1e-5)


def attended(layer, x, text, mask):
    """Attention to one text before the output layer, written out."""
    split = lambda t: t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = layer.norm_q(layer.to_q(x)), layer.norm_k(layer.to_k(text)), layer.to_v(text)
    return (
        F.scaled_dot_product_attention(*map(split, (q, k, v)), attn_mask=mask[:, None, None].bool())
        .transpose(1, 2)
        .flatten(2)
    )


@pytest.mark.parametrize("network", [Sana, CpuSana, CudaSana])
@pytest.mark.parametrize("qk_norm", [None, "rms_norm_across_heads"])
def test_the_network_attends_to_both_texts_apart(monkeypatch, network, qk_norm):
    sana, given = build(network, qk_norm=qk_norm), seed_9(1)
    (negative, prompt), (negative_mask, mask) = given["context"].split(1), given["attention_mask"].split(1)
    given |= {"context": prompt, "attention_mask": mask}
    options = {"wrappers": {"diffusion_model": {"nag": [NegativeAttention(negative, negative_mask, 2, STRENGTH)]}}}
    with torch.inference_mode():
        plain, ours = sana(**given), sana(**given, transformer_options=options)
        states = sana.caption_norm(sana.caption_projection(negative))
        for block in sana.transformer_blocks:

            def forward(x, text, bias, transformer_options, layer=block.attn2):  # noqa: ARG001 - the layer's signature
                pair = attended(layer, x, text, mask), attended(layer, x, states, negative_mask)
                return layer.to_out[0](guide_attention(*pair, STRENGTH))

            monkeypatch.setattr(block.attn2, "forward", forward)
        expected = sana(**given)
    assert bench.rms_error(ours, expected) < 1e-5 and bench.rms_error(ours, plain) > 1e-2


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_negative_prompt_acts_at_cfg_1_in_one_pass(monkeypatch, family):
    model, (positive, negative) = bench.model(family), encoded("a cat", "a busy street at dusk")
    other = encoded("a cat", "warm lamps")[1]
    plain = bench.draw(model, (positive, negative), cfg=1.0)
    seen = bench.count_calls(monkeypatch, model)
    images = [bench.draw(guided(model, text), (positive, negative), cfg=1.0) for text in (negative, other)]
    assert seen.batches == [1, 1, 1, 1]
    assert all(torch.isfinite(image).all() and bench.relative(image, plain) > 1e-2 for image in images)
    assert bench.relative(*images) > 1e-3
    assert torch.equal(bench.draw(model, (positive, negative), cfg=1.0), plain)


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("settings", [{"scale": 1.0, "tau": 10.0}, {"alpha": 0.0}])
def test_without_strength_nothing_changes(family, settings):
    model, (positive, negative) = bench.model(family), encoded("a cat", "a busy street")
    plain = bench.draw(model, (positive, negative), cfg=1.0)
    assert bench.relative(bench.draw(guided(model, negative, **settings), (positive, negative), cfg=1.0), plain) < 1e-4


def test_above_cfg_1_the_unconditional_rows_stay_as_they_are(monkeypatch):
    """As whole passes of their own, which the network is not asked to guide."""
    model, (positive, negative) = bench.model("sana"), encoded("a cat", "a busy street")
    patched = guided(model, negative)
    together = bench.draw(patched, (positive, negative))
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)  # the host then batches no passes
        assert bench.relative(bench.draw(patched, (positive, negative)), together) < 1e-5
    assert bench.relative(together, bench.draw(model, (positive, negative))) > 1e-2


def test_an_unconditional_pass_is_the_plain_one():
    sana, given = build(Sana), seed_9()
    (negative, _), (mask, _) = given["context"].split(1), given["attention_mask"].split(1)
    nag = NegativeAttention(negative, mask, 2, STRENGTH)
    options = {"wrappers": {"diffusion_model": {"nag": [nag]}}, "cond_or_uncond": [1, 0]}
    with torch.inference_mode():
        plain, ours = sana(**given), sana(**given, transformer_options=options)
    assert torch.allclose(ours[0], plain[0], atol=1e-5) and (ours[1] - plain[1]).abs().max() > 1e-2


def test_weights_of_the_negative_count():
    model, (positive, negative) = bench.model("sprint"), encoded("a cat", "a busy street")
    weighted = encoded("a cat", "a busy (street:4)", weights=True)[1]
    images = [bench.draw(guided(model, text), (positive, negative)) for text in (negative, weighted)]
    assert bench.relative(*images) > 1e-3


def test_a_batch_and_long_texts_run():
    model, (positive, negative) = bench.model("sprint"), encoded("a cat", "street " * 200)
    batch = bench.draw(guided(model, negative), (positive, negative), bench.empty(batch_size=2))
    assert bench.relative(batch[:1], bench.draw(guided(model, negative), (positive, negative))) < 1e-5


def test_pixart_takes_a_negative_text_too(tmp_path):
    model = load_pixart(pixart.save(pixart.reference(layers=2), "Sigma 512", "authors", tmp_path))
    generator = torch.Generator().manual_seed(5)
    positive, negative = ([[torch.randn(1, n, pixart.TEXT_WIDTH, generator=generator), {}]] for n in (5, 3))

    def sampled(patcher):
        return bench.call(bench.OURS["Sampler"], patcher, positive, negative, bench.empty(64, 64), 7, 2, 1.0)[0][
            "samples"
        ]

    assert bench.relative(sampled(guided(model, negative)), sampled(model)) > 1e-3


def test_what_it_cannot_guide_is_refused():
    _, negative = encoded("a cat", "street")
    with pytest.raises(
        ValueError, match="SANA NAG changes the attention of SANA and PixArt, but this model is a Lumina"
    ):
        guided(bench.lumina(), negative)
    with pytest.raises(ValueError, match="SANA NAG takes one negative text: leave Conditioning .Combine."):
        guided(bench.model("sprint"), negative + negative)
    with pytest.raises(ValueError, match="The negative of SANA NAG is 32 wide where this model's text states have 64"):
        guided(bench.model("sprint"), [[torch.zeros(1, 4, 32), {}]])
    twice = guided(bench.model("sprint"), negative)
    twice.set_model_patch_replace(lambda q, *_: q, "attn2", "double_block", 0)
    with pytest.raises(
        ValueError, match="Another node replaces the attention to the text, as SANA NAG does: bypass one"
    ):
        bench.draw(twice, encoded("a cat"))
