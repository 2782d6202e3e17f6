"""The last texts are not encoded again, of which the negative prompt is one, and never served from other weights."""

import comfy.hooks
import comfy.model_management
import comfy.sd
import comfy.text_encoders.llama
import pytest
import torch
from comfy_extras.nodes_hooks import SetClipHooks
from sana_native.models.gemma.prefix_cache import TEXTS, TextCache
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.runtime.weight_fingerprint import WeightFingerprint
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench

LAYER = "gemma2_2b.transformer.model.layers.0.self_attn.q_proj"
EDITED = [LAYER, "gemma2_2b.transformer.model.embed_tokens", "gemma2_2b.transformer.model.norm"]


@pytest.fixture
def clip():
    return bench.load_gemma(str(bench.folder() / "sana"))


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many positions each pass through the first layer has computed."""
    counts = []
    forward = comfy.text_encoders.llama.TransformerBlockGemma2.forward

    def counted(self, x, *args, **kwargs):
        counts.append(x.shape[1])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(comfy.text_encoders.llama.TransformerBlockGemma2, "forward", counted)
    return counts


def layers_of(clip) -> int:
    return len(clip.cond_stage_model.gemma2_2b.transformer.model.layers)


def negative(clip, prompt: str, text: str = "") -> torch.Tensor:
    """States of the negative prompt that is encoded beside this prompt."""
    with torch.inference_mode():
        return encode_prompts(clip, prompt, text)[1][0][0]


def alone(clip, text: str = "") -> torch.Tensor:
    """The same, without what was computed before."""
    clip.cond_stage_model.states_cache.clear()
    return negative(clip, "something else", text)


def lora() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(4 * 256, 4, generator=generator) * 0.2
    down = torch.randn(4, tiny.CAPTION_CHANNELS, generator=generator) * 0.2
    return {f"text_encoders.{LAYER}.lora_up.weight": up, f"text_encoders.{LAYER}.lora_down.weight": down}


@pytest.mark.parametrize("text", ["", "blurry, dark"])
def test_a_new_prompt_encodes_no_negative(clip, passes, text):
    first = negative(clip, "a red cat", text)
    for prompt in ("a dog", "7 dogs", "a street at night"):
        passes.clear()
        assert torch.equal(negative(clip, prompt, text), first)
        assert len(passes) == layers_of(clip), "one pass: the prompt's own"
    assert torch.equal(alone(clip, text), first)


def test_a_new_negative_encodes_no_prompt(clip, passes):
    with torch.inference_mode():
        first = encode_prompts(clip, "a red cat", "")[0][0][0]
        passes.clear()
        assert torch.equal(encode_prompts(clip, "a red cat", "blurry")[0][0][0], first)
    assert len(passes) == layers_of(clip), "one pass: the negative's own"


def test_stock_text_encode_nodes_share_the_cache(clip, passes):
    first = bench.call("CLIPTextEncode", clip, "")[0][0][0]
    passes.clear()
    assert torch.equal(bench.call("CLIPTextEncode", clip.clone(), "")[0][0][0], first) and not passes


def test_no_more_than_a_prompt_and_its_negative_stay(clip):
    for prompt in ("a red cat", "a dog", "7 dogs"):
        negative(clip, prompt)
    assert len(clip.cond_stage_model.states_cache.entries) == TEXTS


def test_what_is_done_to_a_conditioning_does_not_reach_the_cache(clip):
    first = negative(clip, "a red cat")
    expected = first.clone()
    with torch.inference_mode():
        first.mul_(2)
    assert torch.equal(negative(clip, "a dog"), expected)


# What makes the cache invalid


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_in_place_between_prompts_encodes_the_negative_anew(clip, name):
    for _ in range(2):
        before = negative(clip, "a red cat", "dark")
        with torch.inference_mode():
            clip.cond_stage_model.get_submodule(name).weight.mul_(1.5).add_(0.1)
        after = negative(clip, "a dog", "dark")
        assert not torch.equal(after, before) and torch.equal(after, alone(clip, "dark"))


@pytest.mark.parametrize("load", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_a_lora_on_the_encoder_acts_on_the_negative(clip, load):
    plain = negative(clip, "a red cat", "dark")
    _, patched = getattr(comfy.sd, load)(None, clip, lora(), 0.0, 1.0)
    changed = negative(patched, "a red cat", "dark")
    assert not torch.equal(changed, plain) and torch.equal(changed, alone(patched, "dark"))
    assert torch.equal(negative(clip, "a red cat", "dark"), plain)


def test_a_hook_on_the_encoder_acts_on_the_negative(clip):
    plain = negative(clip, "a red cat", "dark")
    hooked = bench.call(SetClipHooks, clip, False, True, comfy.hooks.create_hook_lora(lora(), 1.0, 1.0))[0]
    for _ in range(2):
        changed = negative(hooked, "a red cat", "dark")
        assert not torch.equal(changed, plain) and torch.equal(changed, alone(hooked, "dark"))
        assert torch.equal(negative(clip, "a red cat", "dark"), plain)


def test_a_replaced_object_acts_on_the_negative(clip):
    plain = negative(clip, "a red cat", "dark")
    changed = clip.clone()
    changed.patcher.add_object_patch("gemma2_2b.transformer.model.layers.0.mlp.activation", torch.tanh)
    assert not torch.equal(negative(changed, "a red cat", "dark"), plain)
    assert torch.equal(negative(clip, "a red cat", "dark"), plain)


def test_an_earlier_layer_and_weighted_tokens_are_not_served_from_the_cache(clip):
    plain = negative(clip, "a red cat", "dark")
    earlier, weighted = clip.clone(), clip.tokenize("dark", instruction="")
    earlier.clip_layer(-2)
    row = next(iter(weighted.values()))[0]
    row[1] = (row[1][0], 1.5)
    with torch.inference_mode():
        assert not torch.equal(negative(earlier, "a red cat", "dark"), plain)
        assert not torch.equal(clip.encode_from_tokens(weighted), plain)


# What frees it


def test_unloading_frees_the_states(clip):
    negative(clip, "a red cat")
    comfy.model_management.unload_all_models()
    assert not clip.cond_stage_model.states_cache.entries and not clip.cond_stage_model.prefix_cache.entries


def entry_of(device: str) -> tuple[TextCache, WeightFingerprint, torch.nn.Parameter]:
    with torch.inference_mode(False):
        weight = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
    cache, fingerprint = TextCache(TEXTS), WeightFingerprint.of([weight])
    cache.store([2], fingerprint, device, torch.ones(1, device=device))
    return cache, fingerprint, weight


def test_another_device_frees_what_lies_on_the_first():
    cache, fingerprint, _weight = entry_of("cpu")
    assert cache.find([2], fingerprint, "cpu") is not None
    assert cache.find([2], fingerprint, "meta") is None and not cache.entries


def test_other_weights_free_what_was_computed_with_the_first():
    cache, _, weight = entry_of("cpu")
    weight.add_(1)
    assert cache.find([3], WeightFingerprint.of([weight]), "cpu") is None and not cache.entries


def test_nothing_is_found_or_stored_for_weights_that_may_change_with_no_trace():
    cache, _, _weight = entry_of("cpu")
    assert cache.find([2], None, "cpu") is None
    cache.store([3], None, "cpu", torch.ones(1))
    assert not cache.entries
