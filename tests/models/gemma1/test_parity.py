"""Lumina-Next's text encoder against transformers' GemmaModel and diffusers' LuminaPipeline: same weights and text."""

import diffusers
import pytest
import torch
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.gemma1.loader import load_gemma_1
from sana_native.models.gemma1.text_encoder import CLIP_NAME, CONTEXT_LENGTH
from sana_native.tests.support import tiny

TOLERANCE = 1e-5
PROMPTS = ["a red cat, on the moon", "", "7 dogs", "A Street At Night", "(a cat:1.2) and [a dog]", "word " * 300]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """diffusers' pipeline and our CLIP from one folder."""
    folder = tmp_path_factory.mktemp("gemma_1")
    words = tiny.tokenizer(folder / "tokenizer")
    encoder = tiny.gemma_1()
    encoder.save_pretrained(folder / "text_encoder")
    parts = {"transformer": None, "vae": None, "scheduler": None}
    return diffusers.LuminaPipeline(tokenizer=words, text_encoder=encoder, **parts), load_gemma_1(str(folder))


def relative_error(ours, expected) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def tokens(clip, text: str, **options) -> list[int]:
    return [token for token, _ in clip.tokenize(text, **options)[CLIP_NAME][0]]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:12])
@torch.inference_mode()
def test_prompt_and_negative_equal_the_masked_states_of_diffusers(pair, prompt):
    pipeline, clip = pair
    expected, mask, negative, negative_mask = pipeline.encode_prompt(prompt, True, "blurry", device="cpu")

    (positive_cond,), (negative_cond,) = encode_prompts(clip, prompt, "blurry", lower_case=True)

    assert positive_cond[0].shape[1] == mask.sum() and positive_cond[0].std() > 0.5
    assert relative_error(positive_cond[0][0], expected[0][mask[0].bool()]) <= TOLERANCE
    if mask.shape[1] >= negative_cond[0].shape[1]:  # diffusers cuts the negative to the prompt's length
        assert relative_error(negative_cond[0][0], negative[0][negative_mask[0].bool()]) <= TOLERANCE


@torch.inference_mode()
def test_stock_text_encode_gives_the_same_as_the_packs_node(pair):
    _, clip = pair
    stock = clip.encode_from_tokens_scheduled(clip.tokenize("a red cat"))
    (ours,), _ = encode_prompts(clip, "a red cat", "")
    assert torch.equal(stock[0][0], ours[0]) and "attention_mask" not in ours[1]


def test_tokens_begin_with_one_bos_and_end_without_eos(pair):
    _, clip = pair
    assert tokens(clip, "") == [2]
    ids = tokens(clip, "a cat")
    assert ids[0] == 2 and 2 not in ids[1:] and 1 not in ids and 0 not in ids


def test_no_instruction_comes_before_the_prompt(pair):
    _, clip = pair
    assert tokens(clip, "a cat", instruction="Say this: ") == tokens(clip, "a cat")


def test_the_first_256_tokens_count_and_the_rest_is_named(pair, caplog):
    _, clip = pair
    text = " ".join(["street"] * 300)
    whole = clip.tokenizer.encode(text)
    caplog.clear()
    rows = clip.tokenize(text)[CLIP_NAME]
    assert len(rows) == 1 and [token for token, _ in rows[0]] == whole[:CONTEXT_LENGTH]
    assert f"the first 255 tokens count, so the last {len(whole) - 256} are cut off" in caplog.text


def test_brackets_are_tokens_without_weights(pair):
    _, clip = pair
    row = clip.tokenize("(a cat:1.2)")[CLIP_NAME][0]
    assert {weight for _, weight in row} == {1.0}
    assert clip.tokenizer.sentencepiece.decode([token for token, _ in row]) == "(a cat:1.2)"


@torch.inference_mode()
def test_the_last_layer_is_not_read(pair):
    _, clip = pair
    before = encode_prompts(clip, "a cat", "")[0][0][0].clone()
    layer = clip.cond_stage_model.gemma_2b.transformer.model.layers[-1].mlp.down_proj
    saved = layer.weight.clone()
    try:
        layer.weight.zero_()
        assert torch.equal(encode_prompts(clip, "a cat", "")[0][0][0], before)
    finally:
        layer.weight.copy_(saved)


def test_half_a_character_is_refused(pair):
    _, clip = pair
    with pytest.raises(ValueError, match="The prompt has half a character, as a cut emoji leaves it: delete it"):
        clip.tokenize("a \ud83d cat")


def test_text_generation_is_refused(pair):
    _, clip = pair
    with pytest.raises(ValueError, match="Gemma-1 encodes Lumina-Next's prompts only: take the Gemma-2 of SANA"):
        clip.tokenize("a cat", skip_template=True)
