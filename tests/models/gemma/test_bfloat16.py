"""Matrix products in bfloat16: a smaller error than transformers' bfloat16, only where format and device allow it."""

import comfy.sd
import comfy.text_encoders.llama
import pytest
import torch
from sana_native.models.gemma import bfloat16
from sana_native.models.gemma.bfloat16 import Bfloat16Gemma2
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.gemma.model import softcap_attention
from sana_native.models.gemma.text_encoder import CLIP_NAME
from sana_native.models.runtime import device
from sana_native.tests.support import tiny
from transformers import Gemma2Model

PROMPT = "a red cat in a busy city street, at night"
LAYER = "gemma2_2b.transformer.model.layers.0"


@pytest.fixture(autouse=True)
def fast_at_bfloat16(monkeypatch):
    """As a processor with instructions for it; without them torch computes the same, slowly."""
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)


@pytest.fixture(scope="module", params=[1.0, 6.0], ids=["small logits", "large logits"])
def folder(request, tmp_path_factory):
    """Weights in bfloat16; at a gain of 6 the logits pass the soft cap of 50 by far."""
    path = tmp_path_factory.mktemp("gemma")
    words = tiny.tokenizer(path / "tokenizer")
    tiny.gemma(len(words), gain=request.param).to(torch.bfloat16).save_pretrained(path / "text_encoder")
    return path


def states(clip, prompt: str = PROMPT, **options) -> torch.Tensor:
    """Of the text alone, without padding."""
    with torch.inference_mode():
        ((context, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt, **options))
    return context[extra["attention_mask"].bool()] if "attention_mask" in extra else context[0]


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours.float() - expected).norm() / expected.norm()).item()


def network_of(clip):
    return clip.cond_stage_model.gemma2_2b.transformer


# Against transformers


@pytest.mark.parametrize("instruction", ["", None], ids=["no instruction", "instruction"])
def test_the_error_is_at_most_that_of_transformers_bfloat16(folder, instruction):
    clip = load_gemma(str(folder))
    ids = [token for token, *_ in clip.tokenize(PROMPT, instruction=instruction)[CLIP_NAME][0] if token]
    theirs, exact = (
        Gemma2Model.from_pretrained(folder / "text_encoder", dtype=dtype, attn_implementation="eager")
        for dtype in (torch.bfloat16, torch.float32)
    )
    ours = states(clip, instruction=instruction)
    with torch.inference_mode():
        rounded, expected = (model(torch.tensor([ids])).last_hidden_state[0] for model in (theirs, exact))
    rounded, expected = (torch.cat([all_[:1], all_[1 - len(ours) :]]) for all_ in (rounded, expected))
    assert isinstance(network_of(clip), Bfloat16Gemma2)
    assert 1e-4 < error(ours, expected) <= error(rounded, expected)


def test_attention_is_that_of_the_float32_path():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 16, generator=generator) for heads, length in ((4, 5), (2, 9), (2, 9)))
    mask = bfloat16.causal_mask(4, 5, torch.device("cpu"))
    ours = bfloat16.attend(20 * q, k, v, mask).transpose(1, 2).flatten(2)
    expected = softcap_attention(20 * q, k, v, 4, torch.full((5, 9), -torch.inf).triu_(5))
    assert error(ours, expected) < 1e-6


# All ways through the network


def test_a_prompt_after_the_cached_instruction_is_that_of_all_positions_at_once(folder):
    clip = load_gemma(str(folder))
    states(clip, "something else")
    encoder, tokens = clip.cond_stage_model, clip.tokenize(PROMPT)
    with torch.inference_mode():
        context, mask = encoder.encode_every_position(tokens)
    assert error(states(clip), context[mask.bool()]) < 1e-2


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_an_earlier_layer_is_that_of_float32(folder, layer):
    both = load_gemma(str(folder)), load_gemma(str(folder), {"dtype": torch.float32})
    for clip in both:
        clip.clip_layer(layer)
    ours, expected = (states(clip, "a cat", instruction="")[:3] for clip in both)
    assert 1e-4 < error(ours, expected) < 3e-2


def test_weighted_tokens_are_those_of_float32(folder):
    encoded = []
    for options in ({}, {"dtype": torch.float32}):
        clip = load_gemma(str(folder), options)
        tokens = clip.tokenize("a red cat", instruction="")
        row = tokens[CLIP_NAME][0]
        row[2] = (row[2][0], 1.5)
        with torch.inference_mode():
            encoded.append(clip.encode_from_tokens(tokens))
    assert 1e-4 < error(*encoded) < 3e-2


def test_text_is_generated_as_in_float32(folder):
    answers = []
    for options in ({}, {"dtype": torch.float32}):
        clip = load_gemma(str(folder), options)
        tokens = clip.tokenize("a cat", skip_template=True)
        with torch.inference_mode():
            answers.append(clip.generate(tokens, do_sample=False, max_length=8))
    assert answers[0] == answers[1]


# What acts on it


def test_a_lora_acts(folder):
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=generator) * 0.2 for shape in ((4 * 256, 4), (4, tiny.CAPTION_CHANNELS)))
    key = f"text_encoders.{LAYER}.self_attn.q_proj"
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    encoded = []
    for options in ({}, {"dtype": torch.float32}):
        clip = load_gemma(str(folder), options)
        plain = states(clip)
        patched = comfy.sd.load_lora_for_models(None, clip, lora, 0.0, 1.0)[1]
        encoded.append(states(patched))
        assert error(encoded[-1], plain) > 2e-2
    assert error(*encoded) < 2e-2


@pytest.mark.parametrize(
    "name",
    ["input_layernorm", "self_attn", "self_attn.k_proj", "post_feedforward_layernorm", "mlp", "mlp.down_proj", ""],
)
def test_a_hook_of_torch_acts_on_every_part_of_a_layer(folder, name):
    clip = load_gemma(str(folder))
    before = states(clip)
    part = clip.cond_stage_model.get_submodule(f"{LAYER}.{name}".rstrip("."))
    handle = part.register_forward_hook(
        lambda _module, _inputs, out: (out[0].roll(1, -1), *out[1:]) if isinstance(out, tuple) else out.roll(1, -1)
    )
    changed = states(clip)
    handle.remove()
    assert error(changed, before) > 1e-2 and torch.equal(states(clip), before)


def test_a_replaced_norm_acts(folder):
    clip = load_gemma(str(folder))
    changed = clip.clone()
    changed.patcher.add_object_patch(f"{LAYER}.input_layernorm", torch.nn.Identity())
    assert error(states(changed), states(clip)) > 1e-2


def test_gradients_pass(folder):
    clip = load_gemma(str(folder))
    weight = clip.cond_stage_model.get_submodule(f"{LAYER}.self_attn.q_proj").weight.requires_grad_(True)
    context, _, _ = clip.load_model().model.encode_token_weights(clip.tokenize("a red cat"))
    context.sum().backward()
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


# Where it is taken


@pytest.mark.parametrize(
    ("options", "fast", "taken"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"dtype": torch.bfloat16}, True, True),
        ({"dtype": torch.float32}, True, False),
        ({"dtype": torch.float8_e4m3fn}, True, True),
    ],
)
def test_the_format_decides(folder, options, fast, taken, monkeypatch):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: fast)
    clip = load_gemma(str(folder), options)
    assert isinstance(network_of(clip), Bfloat16Gemma2) is taken
    assert clip.patcher.object_patches["manual_cast_dtype"] == (torch.bfloat16 if taken else torch.float32)
    assert states(clip).dtype == torch.float32


def test_a_processor_that_is_slow_at_it_computes_as_before(folder, monkeypatch):
    """In float32, to the bit what the host's layers give for the same weights."""
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: False)
    clip = load_gemma(str(folder))
    (row,) = clip.tokenize(PROMPT, instruction="")[CLIP_NAME]
    ids = torch.tensor([[token for token, *_ in row if token]])
    with torch.inference_mode():
        expected = network_of(clip).model(ids, dtype=torch.float32)[0][0]
    assert error(states(clip, instruction=""), expected) < 1e-6


def test_the_cached_instruction_holds_no_more_memory_than_its_keys_and_values(folder):
    clip = load_gemma(str(folder))
    states(clip)
    (entry,) = clip.cond_stage_model.prefix_cache.entries
    tensors = [tensor for pair in entry.result.keys_values for tensor in pair]
    assert {tensor.dtype for tensor in tensors} == {torch.float32, torch.bfloat16}
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
