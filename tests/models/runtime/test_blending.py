"""Two prompts in one attention, each by its share."""

import pytest
import torch
from sana_native.models.runtime.blending import blend
from sana_native.tests.support import workbench as bench


def encoded(prompt: str, weights: bool = False) -> list:
    return bench.call(bench.OURS["GemmaEncode"], bench.clip(), prompt, "", "on", "", False, weights)[0]


def blended(a: list, b: list, share: float) -> list:
    return bench.call(bench.OURS["BlendPrompts"], a, b, share)[0]


def drawn(family: str, cond: list) -> torch.Tensor:
    return bench.draw(bench.model(family), (cond, bench.encoded()[1]))


SHORT, LONG = "a cat", "a busy city street at dusk, warm lamps, a crowd of people"


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_the_ends_are_the_prompts_themselves(family):
    a, b = encoded(SHORT), encoded(LONG)
    assert blended(a, b, 0.0) is a and blended(a, b, 1.0) is b
    near = drawn(family, blended(a, b, 1e-6))
    assert bench.relative(near, drawn(family, a)) < 0.01 < bench.relative(near, drawn(family, b))


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_half_and_half_has_no_order(family):
    a, b = encoded(SHORT), encoded(LONG)
    both = drawn(family, blended(a, b, 0.5))
    assert bench.relative(both, drawn(family, blended(b, a, 0.5))) < 1e-5
    assert bench.relative(both, drawn(family, bench.call("ConditioningConcat", a, b)[0])) < 1e-5
    assert all(bench.relative(both, drawn(family, one)) > 1e-3 for one in (a, b))


def test_a_third_equals_the_rows_of_the_first_twice():
    a, b = encoded(SHORT), encoded(LONG)
    rows = [cond[0][0][:, : int(cond[0][1]["attention_mask"].sum())] for cond in (a, a, b)]
    packed = [[torch.cat(rows, dim=1), {}]]
    assert bench.relative(drawn("sana", blended(a, b, 1 / 3)), drawn("sana", packed)) < 2e-5


def test_weights_of_the_prompts_and_blends_of_blends_stay():
    a, b, c = encoded("a (cat:2)", weights=True), encoded(LONG), encoded("red flowers")
    of_two = blended(a, b, 0.25)
    nested = blended(of_two, c, 0.5)[0][1]["token_weights"]
    used = nested[nested > 0]
    assert {round(float(x), 4) for x in used} == {0.75, 0.375, 0.125, 0.5}
    assert torch.isfinite(drawn("sana", blended(of_two, c, 0.5))).all()


def test_what_is_set_on_the_first_prompt_stays():
    a = bench.changed(encoded(SHORT), guidance=5.0)
    assert blended(a, encoded(LONG), 0.5)[0][1]["guidance"] == 5.0
    areas = a + bench.changed(encoded("red flowers"), strength=0.5)
    both = blended(areas, encoded(LONG), 0.5)
    assert len(both) == 2 and both[1][1]["strength"] == 0.5


def test_the_blend_is_one_pass_with_the_negative(monkeypatch):
    seen = bench.count_calls(monkeypatch, bench.model("sana"))
    drawn("sana", blended(encoded(SHORT), encoded(LONG), 0.3))
    assert seen.batches == [2, 2]


def test_texts_without_a_mask_are_blended_whole():
    a, b = ([[torch.full((1, n, 8), float(n)), {}]] for n in (3, 5))
    ((states, extra),) = blend(a, b, 0.25)
    assert states.shape == (1, 8, 8) and extra["token_weights"].tolist() == [[0.75] * 3 + [0.25] * 5]


def test_a_batch_of_texts_takes_one_second_text():
    a, b = ([[torch.ones(rows, 2, 8), {}]] for rows in (3, 1))
    assert blend(a, b, 0.5)[0][0].shape == (3, 4, 8) == blend(b, a, 0.5)[0][0].shape


def test_lumina_blends_too():
    texts = [bench.call(bench.OURS["GemmaEncode"], bench.lumina_clip(), text, "")[0] for text in (SHORT, LONG)]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    images = [
        bench.call("KSampler", bench.lumina(), 7, 2, 1.0, "euler", "normal", cond, cond, latent, 1.0)[0]["samples"]
        for cond in (*texts, blended(*texts, 0.5))
    ]
    assert all(bench.relative(images[2], image) > 1e-3 for image in images[:2])


def test_what_no_model_takes_together_is_refused():
    a, b = encoded(SHORT), encoded(LONG)
    with pytest.raises(ValueError, match="second prompt of SANA Blend Prompts holds 2 texts: leave Conditioning"):
        blended(a, a + b, 0.5)
    with pytest.raises(ValueError, match="are 64 and 8 wide: encode both with the text encoder of the model"):
        blended(a, [[torch.ones(1, 2, 8), {}]], 0.5)
    with pytest.raises(ValueError, match="are batches of 2 and 3: give both as many texts, or one of them one"):
        blended([[torch.ones(2, 2, 8), {}]], [[torch.ones(3, 2, 8), {}]], 0.5)
