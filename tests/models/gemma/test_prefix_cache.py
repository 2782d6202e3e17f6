"""The instruction and the last negative are computed once, padding never: the states are those of every position."""

import collections
import copy

import comfy.hooks
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.text_encoders.llama
import comfy.utils
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_extras.nodes_hooks import SetClipHooks
from sana_native.models.gemma.model import SoftcapAttention
from sana_native.models.gemma.text_encoder import CLIP_NAME, CONTEXT_LENGTH
from sana_native.models.runtime import device
from sana_native.models.runtime.cpu import linear_ops
from sana_native.models.runtime.cpu.linear_ops import KERNEL_ROWS, TextOperations
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from torch.utils._python_dispatch import TorchDispatchMode

PROMPTS = ["a red cat, on the moon", "", "7 dogs", "word " * 900, "一只猫"]
LAYER = "gemma2_2b.transformer.model.layers.0.self_attn.q_proj"
HEAD = 256  # channels of an attention head, which the host fixes


@pytest.fixture
def clip():
    return bench.load_gemma(str(bench.folder() / "sana"))


@pytest.fixture
def computing_in(monkeypatch):
    """Sets the format that Gemma's bfloat16 weights are multiplied in, which depends on the processor."""
    return lambda dtype: monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: dtype == torch.bfloat16)


@pytest.fixture
def positions(monkeypatch) -> list[int]:
    """How many positions each pass through the layers has computed."""
    counts = []
    forward = comfy.text_encoders.llama.MLP.forward

    def counted(self, x):
        counts.append(x.shape[1])
        return forward(self, x)

    monkeypatch.setattr(comfy.text_encoders.llama.MLP, "forward", counted)
    return counts


def states(clip, prompt: str, **options) -> torch.Tensor:
    """Of the text alone, without padding."""
    with torch.inference_mode():
        ((context, extra),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt, **options))
    return context[extra["attention_mask"].bool()] if "attention_mask" in extra else context[0]


def reference(clip, prompt: str, **options) -> torch.Tensor:
    """From all positions at once, padding too, as the host and diffusers compute them."""
    encoder = clip.load_model().model
    with torch.inference_mode():
        context, mask = encoder.encode_every_position(clip.tokenize(prompt, **options))
    return context[mask.bool()]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def lora(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(4 * HEAD, 4, generator=generator) * 0.2
    down = torch.randn(4, tiny.CAPTION_CHANNELS, generator=generator) * 0.2
    return {f"text_encoders.{LAYER}.lora_up.weight": up, f"text_encoders.{LAYER}.lora_down.weight": down}


# Equal to computing everything


@pytest.mark.parametrize("instruction", [None, "", "User Prompt: "], ids=["trained", "none", "custom"])
@pytest.mark.parametrize(
    ("weights", "compute", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 4e-3),  # bfloat16's rounding
    ],
)
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt[:12])
def test_states_equal_those_of_all_positions_at_once(prompt, weights, compute, tolerance, instruction, computing_in):
    computing_in(compute)
    clip = bench.load_gemma(str(bench.folder() / "sana"), {"dtype": weights})
    for text in ("something else", prompt):  # the second finds the instruction cached
        assert difference(*(way(clip, text, instruction=instruction) for way in (states, reference))) < tolerance


def test_a_custom_instruction_that_merges_with_the_prompt_is_computed_right(clip):
    """Without a space at its end its last piece is another one with each prompt."""
    for prompt in ("cats", "s", "sleeping cat"):
        assert difference(*(way(clip, prompt, instruction="A prompt of cat") for way in (states, reference))) < 1e-5


def test_one_encoder_tells_instructions_apart(clip):
    for instruction in (None, "User Prompt: ", None):
        assert difference(*(way(clip, "a cat", instruction=instruction) for way in (states, reference))) < 1e-5


def test_padding_has_zero_states_and_no_mask():
    (((context, extra),), _) = bench.encode("a cat")
    padding = ~extra["attention_mask"].bool()
    assert context.shape == (1, CONTEXT_LENGTH, tiny.CAPTION_CHANNELS) and padding.sum() > 250
    assert not context[padding].any() and context[~padding].any(dim=-1).all()


def test_weighted_tokens_are_encoded_as_the_host_does(clip, positions):
    """It measures weights from the states of an empty prompt's padding, so those have to be computed."""
    plain, tokens = states(clip, "a red cat"), clip.tokenize("a red cat")
    (row,) = tokens[CLIP_NAME]
    first = len(row) - (CONTEXT_LENGTH - 1)  # of the prompt
    row[first] = (row[first][0], 1.3)
    positions.clear()
    with torch.inference_mode():
        weighted = clip.encode_from_tokens(tokens)
    assert positions[0] == len(row)
    changed = (weighted[0, : len(plain)] - plain).norm(dim=-1) > 1e-2
    assert changed.tolist() == [False, True] + [False] * (len(plain) - 2)


def test_a_textual_inversion_is_encoded_as_the_host_does(clip, positions):
    tokens = clip.tokenize("a red cat", instruction="")
    tokens[CLIP_NAME][0][2] = (torch.ones(tiny.CAPTION_CHANNELS), 1.0)
    with torch.inference_mode():
        clip.encode_from_tokens(tokens)
    assert positions[0] == CONTEXT_LENGTH


def test_an_earlier_layer_is_the_hosts(clip, positions):
    last = states(clip, "a red cat")
    positions.clear()
    clip.clip_layer(-2)
    assert difference(states(clip, "a red cat"), last) > 1e-2
    assert positions[0] > CONTEXT_LENGTH


# What is computed, and when


def test_a_second_prompt_costs_its_own_positions_alone(clip, positions):
    first = clip.tokenize("a red cat")
    own = int((torch.tensor([token for token, *_ in first[CLIP_NAME][0]]) > 0).sum())
    states(clip, "a red cat")
    layers = len(clip.cond_stage_model.gemma2_2b.transformer.model.layers)
    before = len(first[CLIP_NAME][0]) - (CONTEXT_LENGTH - 1)
    assert positions == [before] * layers + [own - before] * layers
    positions.clear()
    selected = states(clip, "another cat, of a busy street").shape[0]
    assert positions == [selected - 1] * layers


def test_the_states_do_not_depend_on_what_was_encoded_before(clip):
    fresh = states(clip, "a red cat")
    for other in ("a dog", "word " * 900):
        states(clip, other)
        clip.cond_stage_model.states_cache.clear()
        assert torch.equal(states(clip, "a red cat"), fresh)
    states(clip, "a dog", instruction="User Prompt: ")
    clip.cond_stage_model.states_cache.clear()
    assert torch.equal(states(clip, "a red cat"), fresh)


def test_a_text_without_instruction_leaves_the_cache(clip, positions):
    states(clip, "a red cat")
    states(clip, "blurry", instruction="")
    positions.clear()
    states(clip, "a dog")
    assert max(positions) < 10


# What makes the cache invalid


@pytest.mark.parametrize("load", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_a_lora_on_the_encoder_acts_on_the_instruction_too(clip, load):
    plain = states(clip, "a red cat")
    _, patched = getattr(comfy.sd, load)(None, clip, lora(), 0.0, 1.0)
    with_lora = states(patched, "a red cat")
    assert difference(with_lora, plain) > 1e-3
    assert difference(with_lora, reference(patched, "a red cat")) < 1e-5
    assert torch.equal(states(clip, "a red cat"), plain)
    assert torch.equal(states(patched, "a red cat"), with_lora)


def test_a_loras_strength_acts_on_the_instruction_too(clip):
    encoded = []
    for strength in (0.5, 1.0):
        _, patched = comfy.sd.load_lora_for_models(None, clip, lora(), 0.0, strength)
        encoded.append(states(patched, "a red cat"))
        assert difference(encoded[-1], reference(patched, "a red cat")) < 1e-5
    assert difference(*encoded) > 1e-3


def test_a_lora_that_is_added_on_the_way_acts_on_the_instruction_too(clip, monkeypatch):
    """Where memory is short the weights themselves do not change."""

    def load_little(self, _, force_patch_weights=False):
        return self.model.partially_load(self.device, 0.1 - self.model.loaded_size(), force_patch_weights)

    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_use_more_vram", load_little)
    comfy.model_management.unload_all_models()
    for strength in (0.5, 1.0):
        _, patched = comfy.sd.load_lora_for_models(None, clip, lora(), 0.0, strength)
        assert difference(states(patched, "a red cat"), reference(patched, "a red cat")) < 1e-5
    assert patched.cond_stage_model.get_submodule(LAYER).weight_function
    comfy.model_management.unload_all_models()


def test_a_hook_on_the_encoder_acts_on_the_instruction_too(clip):
    plain = states(clip, "a red cat")
    expected = states(comfy.sd.load_lora_for_models(None, clip, lora(), 0.0, 1.0)[1], "a red cat")
    hooked = bench.call(SetClipHooks, clip, False, True, comfy.hooks.create_hook_lora(lora(), 1.0, 1.0))[0]
    for _ in range(2):
        assert difference(states(hooked, "a red cat"), expected) < 1e-5
        assert torch.equal(states(clip, "a red cat"), plain)
    assert difference(expected, plain) > 1e-3


def test_a_scheduled_hook_acts_on_the_instruction_with_each_of_its_strengths(clip):
    """It writes into the weights where they lie, which leaves no trace in them."""
    hooks, strengths = comfy.hooks.create_hook_lora(lora(), 1.0, 1.0), (0.5, 1.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for start, strength in zip((0.0, 0.5), strengths):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(frames)
    hooked = bench.call(SetClipHooks, clip, True, True, hooks)[0]
    with torch.inference_mode():
        conds = hooked.encode_from_tokens_scheduled(hooked.tokenize("a red cat"))
    for (context, _), strength in zip(conds, strengths, strict=True):
        expected = states(comfy.sd.load_lora_for_models(None, clip, lora(), 0.0, strength)[1], "a red cat")
        assert difference(context[0, : len(expected)], expected) < 1e-5  # the host drops a scheduled text's mask


EDITED = {
    "matrix": LAYER,
    "embedding": "gemma2_2b.transformer.model.embed_tokens",
    "norm": "gemma2_2b.transformer.model.layers.1.input_layernorm",
    "last norm": "gemma2_2b.transformer.model.norm",
}


def edit(clip, name: str, factor: float = 1.5) -> None:
    """Changes a weight in place, as another pack's node would."""
    with torch.inference_mode():
        clip.cond_stage_model.get_submodule(EDITED[name]).weight.mul_(factor).add_(0.1)


def load_in_inference_mode():
    """As the host's executor runs the loader."""
    with torch.inference_mode():
        return bench.load_gemma(str(bench.folder() / "sana"))


@pytest.mark.parametrize("name", EDITED)
@pytest.mark.parametrize("load", [load_in_inference_mode, lambda: bench.load_gemma(str(bench.folder() / "sana"))])
def test_an_edit_in_place_between_prompts_is_noticed(name, load):
    clip = load()
    before = states(clip, "a red cat")
    for _ in range(2):
        edit(clip, name)
        after = states(clip, "a red cat")
        assert difference(after, before) > 1e-2
        assert difference(after, reference(clip, "a red cat")) < 1e-5
        before = after


def test_an_edit_inside_a_run_is_noticed(clip):
    """Both prompts are encoded in one pass through a graph, with a node between them that edits."""
    encoder, tokens = clip.load_model().model, clip.tokenize("a red cat")
    with torch.inference_mode():
        before, _, _ = encoder.encode_token_weights(tokens)
        encoder.get_submodule(LAYER).weight[3] += 1
        after, _, extra = encoder.encode_token_weights(tokens)
    used = extra["attention_mask"].bool()
    assert difference(after[used], before[used]) > 1e-3
    assert difference(after[used], reference(clip, "a red cat")) < 1e-5


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_after_unloading_and_loading_again_is_noticed(name):
    clip = load_in_inference_mode()
    states(clip, "a red cat")
    comfy.model_management.unload_all_models()  # outside inference mode, as after /free
    states(clip, "a red cat")
    edit(clip, name)
    assert difference(states(clip, "a red cat"), reference(clip, "a red cat")) < 1e-5


@pytest.mark.parametrize("back", [True, False], ids=["moved back outside", "still there"])
def test_weights_moved_in_inference_mode_count_their_edits(back, positions):
    clip = load_in_inference_mode()
    with torch.inference_mode():
        clip.cond_stage_model.to(torch.bfloat16)
    if back:
        clip.cond_stage_model.to(torch.float32)
    states(clip, "a dog")
    positions.clear()
    states(clip, "a red cat")
    assert max(positions) < 10
    edit(clip, "matrix")
    assert difference(states(clip, "a red cat"), reference(clip, "a red cat")) < 1e-5


def test_weights_made_in_inference_mode_by_another_loader_get_counters(positions):
    """The host's own way to build a CLIP, moved outside inference mode: reading their counters raises."""
    clip = bench.load_gemma(str(bench.folder() / "sana"))
    with torch.inference_mode():
        for module in clip.cond_stage_model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.double(), requires_grad=False)
    clip.cond_stage_model.to(torch.float32)
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        assert clip.cond_stage_model.get_submodule(LAYER).weight._version
    for name in (None, "matrix", "norm"):
        if name:
            edit(clip, name)
        states(clip, "a dog")
        positions.clear()
        assert difference(states(clip, "a red cat"), reference(clip, "a red cat")) < 1e-5
        assert positions[0] < 10


@pytest.fixture
def streamed(clip, monkeypatch):
    """The encoder as where the host streams weights: at every load the small ones are copied anew, from a backup."""
    patcher = clip.patcher
    saved = collections.namedtuple("Saved", ["weight"])

    def load(self, _, force_patch_weights=False):  # noqa: ARG001 - the host's signature
        for key, entry in patcher.backup.items():
            comfy.utils.set_attr_param(patcher.model, key, entry.weight)
        for key, weight in list(patcher.model.named_parameters()):
            if key.endswith("norm.weight"):
                patcher.backup[key] = saved(weight)
                comfy.utils.set_attr_param(patcher.model, key, weight.to(torch.float32, copy=True))
        for callback in patcher.get_all_callbacks(CallbacksMP.ON_LOAD):
            callback(patcher, None, 0, False, False)

    monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    monkeypatch.setattr(comfy.model_management.LoadedModel, "model_use_more_vram", load)
    yield clip
    monkeypatch.undo()
    patcher.backup.clear()
    comfy.model_management.unload_all_models()


def test_copies_that_streaming_makes_at_every_load_keep_the_cache_valid(streamed, positions):
    norm = "gemma2_2b.transformer.model.layers.0.input_layernorm.weight"
    states(streamed, "a red cat")
    made = streamed.cond_stage_model.get_parameter(norm)
    positions.clear()
    states(streamed, "a dog")
    assert streamed.cond_stage_model.get_parameter(norm) is not made and max(positions) < 10


@pytest.mark.parametrize("name", EDITED)
def test_an_edit_of_what_is_streamed_is_noticed(streamed, name):
    key = f"{EDITED[name]}.weight"
    before = states(streamed, "a red cat")
    saved = streamed.patcher.backup.get(key)
    weight = saved.weight if saved else streamed.cond_stage_model.get_parameter(key)
    with torch.inference_mode():
        weight.mul_(1.5)
    after = states(streamed, "a red cat")
    assert difference(after, before) > 1e-3
    assert difference(after, reference(streamed, "a red cat")) < 1e-5


def test_an_edit_of_a_streamed_copy_is_noticed_until_the_host_copies_anew(streamed):
    before = states(streamed, "a red cat")
    tokens = streamed.tokenize("a red cat")
    with torch.inference_mode():
        streamed.cond_stage_model.get_submodule(EDITED["norm"]).weight.mul_(1.5)
        context, mask = streamed.cond_stage_model.encode_tokens([token for token, _ in tokens[CLIP_NAME][0]])
    assert difference(context[mask.bool()], before) > 1e-3
    assert torch.equal(states(streamed, "a red cat"), before)


def test_weights_that_are_replaced_are_noticed(clip):
    states(clip, "a red cat")
    layer = clip.cond_stage_model.get_submodule(LAYER)
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)
    assert difference(states(clip, "a red cat"), reference(clip, "a red cat")) < 1e-5


def test_another_format_is_noticed(clip):
    before = states(clip, "a red cat")
    clip.cond_stage_model.to(torch.bfloat16)
    after = states(clip, "a red cat")
    assert difference(after, before) > 1e-4
    assert difference(after, reference(clip, "a red cat")) < 1e-5


def test_two_encoders_do_not_share_a_cache(clip, tmp_path):
    tokenizer = tiny.tokenizer(tmp_path / "tokenizer")
    tiny.gemma(len(tokenizer), seed=5).save_pretrained(tmp_path / "text_encoder")
    other = bench.load_gemma(str(tmp_path))
    for _ in range(2):
        for each in (clip, other):
            assert difference(states(each, "a red cat"), reference(each, "a red cat")) < 1e-5


def test_nothing_is_cached_for_an_encoder_in_training(clip):
    clip.cond_stage_model.get_submodule(LAYER).weight.requires_grad_(True)
    context, _, _ = clip.load_model().model.encode_token_weights(clip.tokenize("a red cat"))
    assert context.requires_grad and not clip.cond_stage_model.prefix_cache.entries


def test_unloading_frees_the_cache(clip):
    states(clip, "a red cat")
    assert clip.cond_stage_model.prefix_cache.entries
    comfy.model_management.unload_all_models()
    assert not clip.cond_stage_model.prefix_cache.entries
    assert difference(states(clip, "a red cat"), reference(clip, "a red cat")) < 1e-5


def test_a_cached_prefix_is_used_where_it_lies(clip):
    """Nothing of it is copied for a prompt: on a GPU that would be an upload per layer."""
    states(clip, "a red cat")
    (entry,) = clip.cond_stage_model.prefix_cache.entries
    lengths = {keys.shape[2] for keys, _ in entry.result.keys_values}
    copied = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            copies = operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            copied.extend(
                one.shape
                for one in args
                if copies and isinstance(one, torch.Tensor) and one.ndim == 4 and one.shape[2] in lengths
            )
            return operation(*args, **(kwargs or {}))

    with Copies():
        states(clip, "a dog")
    assert clip.cond_stage_model.prefix_cache.entries == [entry] and lengths and not copied


def test_a_copy_of_the_model_has_a_cache_of_its_own(clip):
    states(clip, "a red cat")
    other = copy.deepcopy(clip.cond_stage_model)
    assert not other.prefix_cache.entries and clip.cond_stage_model.prefix_cache.entries


def test_a_clone_of_the_clip_uses_the_cache(clip, positions):
    states(clip, "a red cat")
    positions.clear()
    states(clip.clone(), "a dog")
    assert max(positions) < 10


# Products in strips


@pytest.mark.parametrize("rows", [1, KERNEL_ROWS - 1, KERNEL_ROWS, 2 * KERNEL_ROWS, 3 * KERNEL_ROWS + 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_product_in_strips_is_that_of_the_wide_weight(rows, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(linear_ops, "STRIP_ELEMENTS", 1)
    layer = TextOperations.Linear(48, rows, bias=False)
    layer.weight = torch.nn.Parameter(torch.randn(rows, 48).to(dtype), requires_grad=False)
    x = torch.randn(2, 7, 48)
    monkeypatch.setattr(comfy.ops, "cast_bias_weight", None)  # the host's way: not taken
    with torch.inference_mode():
        assert difference(layer(x), x @ layer.weight.float().T) < 1e-6


def test_weights_that_are_changed_on_the_way_go_the_hosts_way():
    layer = TextOperations.Linear(48, 64, bias=False, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    layer.weight_function = [lambda weight: weight * 2]
    x = torch.randn(2, 48)
    with torch.inference_mode():
        assert difference(layer(x), 2 * x @ layer.weight.float().T) < 1e-6


def test_a_gradient_passes_through_the_layer():
    layer = TextOperations.Linear(48, 64, bias=False, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 48, requires_grad=True)
    layer(x).square().sum().backward()
    wide = layer.weight.detach().float()
    assert difference(x.grad, 2 * (x.detach() @ wide.T) @ wide) < 1e-5
    assert layer.weight.grad is not None


def test_the_encoder_is_made_of_these_layers():
    layers = bench.clip().cond_stage_model.get_submodule(LAYER.rpartition(".")[0])
    assert isinstance(layers, SoftcapAttention) and isinstance(layers.q_proj, TextOperations.Linear)


# What acts beside the weights


def with_activation(clip):
    """A clone in which another pack has replaced an activation."""
    changed = clip.clone()
    changed.patcher.add_object_patch("gemma2_2b.transformer.model.layers.0.mlp.activation", torch.tanh)
    return changed


def states_of(clip, prompt: str = "a cat") -> torch.Tensor:
    return bench.call(bench.OURS["GemmaEncode"], clip, prompt)[0][0][0]


@pytest.mark.parametrize("first", ["clean", "changed"])
def test_a_clone_with_a_replaced_object_shares_no_prefix_with_the_clean_encoder(first):
    clean = bench.load_gemma(str(bench.folder() / "sana"))
    changed = with_activation(clean)
    for clip in (clean, changed) if first == "clean" else (changed, clean):
        states_of(clip)
    alone = bench.load_gemma(str(bench.folder() / "sana"))
    assert torch.equal(states_of(clean), states_of(alone))
    assert torch.equal(states_of(changed), states_of(with_activation(alone)))
    assert not torch.equal(states_of(changed), states_of(clean))


def test_a_hook_on_a_layer_turns_the_cache_off():
    clip = bench.load_gemma(str(bench.folder() / "sana"))
    before = states_of(clip)
    layer = clip.cond_stage_model.gemma2_2b.transformer.model.layers[0].mlp.down_proj
    handle = layer.register_forward_hook(lambda _module, _inputs, out: out * 2)
    changed = states_of(clip)
    handle.remove()
    assert not torch.equal(changed, before) and torch.equal(states_of(clip), before)
