"""The text encoder against transformers' eager Gemma2Model and diffusers' SanaPipeline: same weights and text."""

import inspect

import diffusers
import pytest
import torch
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.gemma.text_encoder import INSTRUCTION, encode_prompts
from sana_native.tests.support import tiny

TOLERANCE = 5e-5
PROMPTS = ["a red cat, on the moon", "", "7 dogs", "A Street At Night", "  spaces ", "word " * 900]


@pytest.fixture(scope="module", params=[1.0, 6.0], ids=["small logits", "large logits"])
def pair(request, tmp_path_factory):
    """diffusers' pipeline and our CLIP from one folder; at a gain of 6 the logits pass the soft cap of 50 by far."""
    folder = tmp_path_factory.mktemp("gemma")
    words = tiny.tokenizer(folder / "tokenizer")
    encoder = tiny.gemma(len(words), gain=request.param)
    encoder.save_pretrained(folder / "text_encoder")
    parts = {"transformer": None, "vae": None, "scheduler": None}
    return diffusers.SanaPipeline(tokenizer=words, text_encoder=encoder, **parts), load_gemma(str(folder))


def relative_error(ours, expected) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def error_of_text(ours, expected, mask) -> float:
    """At the positions of the text: diffusers computes those of padding too, which nothing attends to."""
    return relative_error(ours[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:12])
@torch.inference_mode()
def test_prompt_and_negative_equal_diffusers(pair, prompt):
    pipeline, clip = pair
    expected, mask, negative, negative_mask = pipeline.encode_prompt(
        prompt,
        negative_prompt="blurry, dark",
        clean_caption=False,
        complex_human_instruction=INSTRUCTION.split("\n"),
        device="cpu",
    )

    (positive_cond,), (negative_cond,) = encode_prompts(clip, prompt, "blurry, dark", lower_case=True)

    assert torch.equal(positive_cond[1]["attention_mask"], mask)
    assert torch.equal(negative_cond[1]["attention_mask"], negative_mask)
    assert positive_cond[0].shape == expected.shape and negative_cond[0].shape == negative.shape
    assert error_of_text(positive_cond[0], expected, mask) <= TOLERANCE
    assert error_of_text(negative_cond[0], negative, negative_mask) <= TOLERANCE


@torch.inference_mode()
def test_large_logits_need_the_soft_cap(pair):
    """The host's own class, which has none, must be told apart by these weights; else the test above proves nothing."""
    pipeline, _ = pair
    gain = pipeline.text_encoder.layers[0].self_attn.q_proj.weight.std() * tiny.CAPTION_CHANNELS**0.5
    ids = torch.arange(10, 40)[None]
    capped = pipeline.text_encoder(ids).last_hidden_state
    softcap = pipeline.text_encoder.config.attn_logit_softcapping
    for layer in pipeline.text_encoder.layers:
        layer.self_attn.attn_logit_softcapping = None
    try:
        error = relative_error(pipeline.text_encoder(ids).last_hidden_state, capped)
    finally:
        for layer in pipeline.text_encoder.layers:
            layer.self_attn.attn_logit_softcapping = softcap
    assert (error > 200 * TOLERANCE) == (gain > 2)


def test_the_instruction_is_the_references_but_for_its_quotes():
    lines = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert INSTRUCTION == "\n".join(lines).replace("'Enhanced prompt'", '"Enhanced prompt"')
