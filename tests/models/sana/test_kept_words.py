"""What a run keeps of its texts leaves the result, and is forgotten when the weights or the run change."""

from collections.abc import Iterator
from itertools import chain

import comfy.hooks
import comfy.model_patcher
import comfy.ops
import pytest
import torch
from sana_native.models.runtime.cpu.absorbed_attention import Words
from sana_native.models.runtime.weight_fingerprint import SAMPLES, lent_weights, sample
from sana_native.models.sana import model as sana
from sana_native.models.sana.kept_words import KEPT_WORDS, MOST_WORDS, KeptWords, Text
from sana_native.models.sana.model_base import SanaModel
from sana_native.tests.models.sana.test_cpu import VARIANTS, build, difference, inputs
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench

BLOCKS = 2  # of the tiny networks
LAYER = "transformer_blocks.1.attn2"


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """How many words each text had whose keys and values a layer has made."""
    lengths, make = [], sana.CrossAttention.keys_and_values
    monkeypatch.setattr(
        sana.CrossAttention, "keys_and_values", lambda self, text: lengths.append(text.shape[1]) or make(self, text)
    )
    return lengths


def keeping(kept: KeptWords) -> dict:
    return {KEPT_WORDS: kept}


def forget(monkeypatch) -> None:
    """Every step is the first one then."""
    monkeypatch.setattr(SanaModel, "with_kept_words", lambda _, options: options)


def lora(strength: float = 0.3) -> dict[str, torch.Tensor]:
    network = bench.model("sana").model.diffusion_model
    size, generator, out = network.config.hidden_size, torch.Generator().manual_seed(2), {}
    for layer in ("to_k", "to_v", "to_out.0"):
        for part, shape in (("A", (4, size)), ("B", (size, 4))):
            name = f"diffusion_model.{LAYER}.{layer}.lora_{part}.weight"
            out[name] = torch.randn(shape, generator=generator) * strength
    return out


# Once a run


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_run_makes_the_words_of_each_text_once(family, batch_size, made):
    model = bench.model(family)
    bench.draw(model, bench.encode("a red cat", ""), bench.empty(batch_size=batch_size), steps=3)
    blocks = len(model.model.diffusion_model.transformer_blocks)
    assert len(made) == blocks * (1 if family == "sprint" else 2)
    assert family == "sprint" or min(made) == 1  # without padding


def test_texts_that_follow_each_other_in_a_run_are_told_apart(made, monkeypatch):
    """Each for a part of the steps."""
    model, (cat, empty) = bench.model("sana"), bench.encode("a red cat", "")
    dog, _ = bench.encode("a blue dog", "")
    cat, dog = bench.changed(cat, end_percent=0.4), bench.changed(dog, start_percent=0.4)
    drawn = bench.draw(model, (cat + dog, empty), steps=6)
    assert len(made) == 3 * len(model.model.diffusion_model.transformer_blocks)
    forget(monkeypatch)
    assert difference(drawn, bench.draw(model, (cat + dog, empty), steps=6)) < 1e-6


@pytest.mark.parametrize("length", [5, MOST_WORDS + 1])
def test_pictures_with_the_same_text_share_its_words(length, made):
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [length, length, 40, length])
    for row in (1, 3):
        given["context"][row] = given["context"][0]
    with torch.inference_mode():
        shared = network(**given)
        assert made == [length, 40] * len(network.transformer_blocks)
        alone = [network(**{name: None if x is None else x[i : i + 1] for name, x in given.items()}) for i in range(4)]
    assert difference(shared, torch.cat(alone)) < 1e-6


@pytest.mark.parametrize("grid", [(2, 2), (11, 13)], ids=["few positions", "many"])
@pytest.mark.parametrize("lengths", [[1], [4], [300], [1, 30], [17, 4, 1]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_later_steps_give_the_same_velocity(variant, lengths, grid, made):
    network, kept = build(variant), KeptWords(BLOCKS)
    given = inputs(tiny.CAPTION_CHANNELS, lengths, grid, sprint=variant == "sprint")
    short = sorted(length for length in lengths if length <= MOST_WORDS) * len(network.transformer_blocks)
    with torch.inference_mode():
        for step in range(3):
            given |= {"x": given["x"] + 1, "timesteps": given["timesteps"] / 2}
            made.clear()
            velocity = network(**given, transformer_options=keeping(kept))
            assert sorted(length for length in made if length <= MOST_WORDS) == (sorted(short) if step == 0 else [])
            assert difference(velocity, network(**given)) < 1e-6


def test_words_stay_multiplied_for_a_small_picture():
    network, kept = build("sana"), KeptWords(BLOCKS)
    given = inputs(tiny.CAPTION_CHANNELS, [1, 2], (2, 2))
    with torch.inference_mode():
        for _ in range(2):
            stepped = network(**given, transformer_options=keeping(kept))
        assert difference(stepped, network(**given)) < 1e-6
    words = [words for text in kept.texts for _, words in text.words.values()]
    assert len(words) == 2 * len(network.transformer_blocks)
    assert all((one.attended is not None) == (len(one) == 1) != (one.multiplied is not None) for one in words)


def test_nothing_is_kept_beyond_a_run():
    model = bench.model("sana")
    bench.draw(model, bench.encoded())
    assert model.model.kept_words is None
    bad = bench.clean_latent()
    bad["samples"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        bench.draw(model, bench.encoded(), bad)
    assert model.model.kept_words is None


# Other weights


def in_place(layer: torch.nn.Linear) -> None:
    layer.weight.data.copy_(layer.weight * 1.5)  # as the host writes


def replaced(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)


def changed_at_every_use(layer: torch.nn.Linear) -> None:
    layer.weight_function = [lambda weight: weight * 1.5]


def with_a_hook(layer: torch.nn.Linear) -> None:
    layer.register_forward_hook(lambda _, __, out: out * 1.5)


@pytest.mark.parametrize("change", [in_place, replaced, changed_at_every_use, with_a_hook])
@pytest.mark.parametrize("name", ["to_k", "to_v", "to_out.0"])
def test_another_weight_within_a_run_is_noticed(name, change, made):
    kept = KeptWords(BLOCKS)
    with torch.inference_mode():  # as a node loads a model, which leaves its weights without a count of their changes
        network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [1, 4], (2, 2))
        for _ in range(2):
            before = network(**given, transformer_options=keeping(kept))
        assert len(made) == 2 * len(network.transformer_blocks)
        change(network.get_submodule(f"{LAYER}.{name}"))
        after = network(**given, transformer_options=keeping(kept))
        assert difference(after, before) > 1e-4
        assert difference(after, network(**given)) < 1e-6


@pytest.mark.parametrize("hooked", [(0, 1), (0,)], ids=["on both texts", "on one"])
def test_a_scheduled_lora_acts_with_each_of_its_strengths(hooked, monkeypatch, made):
    """The host writes it into the weights where they lie. Both texts are the same one."""
    model, (text, _) = bench.fresh_model("sana"), bench.encoded()
    hooks, frames = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for start, strength in ((0.0, 0.0), (0.3, 1.0), (0.7, -1.0)):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(frames)
    conds = [text, bench.changed(text)]
    for index in hooked:
        (conds[index],) = comfy.hooks.set_conds_props([conds[index]], 1.0, "default", hooks=hooks)
    blocks, steps = len(model.model.diffusion_model.transformer_blocks), 6
    drawn = bench.draw(model, conds, steps=steps)
    assert len(made) == blocks * (steps if hooked == (0, 1) else steps + 1)  # kept where no hook acts
    forget(monkeypatch)
    assert difference(drawn, bench.draw(model, conds, steps=steps)) < 1e-6
    assert difference(drawn, bench.draw(model, (text, text), steps=steps)) > 1e-3


def test_nothing_is_kept_beside_an_injected_adapter(made):
    model, acting = bench.fresh_model("sana").clone(), []
    inject = comfy.model_patcher.PatcherInjection(lambda _: acting.append(1), lambda _: acting.pop())
    model.set_injections("an adapter", [inject])
    bench.draw(model, bench.encode("a red cat", ""), steps=3)
    assert len(made) == 3 * 2 * len(model.model.diffusion_model.transformer_blocks)


def test_a_patch_that_writes_into_the_text_acts_in_every_step(made):
    network, given, kept = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40]), KeptWords(BLOCKS)

    def write(args: dict, extra: dict) -> dict:
        args["txt"].mul_(0.5)
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 1): write}}}
    with torch.inference_mode():
        expected = network(**given, transformer_options=options)
        assert difference(expected, network(**given)) > 1e-4
        for _ in range(3):
            made.clear()
            assert difference(network(**given, transformer_options=options | keeping(kept)), expected) < 1e-6
        assert not made


def of_length(length: int) -> Words:
    k = torch.zeros(length, 64)
    return Words(k, k, None, 2)


def a_layer() -> torch.nn.Linear:
    return comfy.ops.disable_weight_init.Linear(4, 4, device="cpu")


def test_a_text_that_is_written_into_later_is_another_one():
    kept, layer, context, bias = KeptWords(1), a_layer(), torch.ones(3, 4), torch.zeros(3)
    weights = lent_weights(layer)
    kept.keep(layer, weights, context, bias, of_length(3))
    assert kept.find(layer, weights, context, bias) is not None
    for changed in (context, bias):
        changed.sub_(1)
        assert kept.find(layer, weights, context, bias) is None
        changed.add_(1)
    assert kept.find(layer, weights, context, bias) is not None


@pytest.mark.parametrize("width", [1152, 2240])
def test_no_two_values_of_a_sample_are_of_the_same_column(width):
    """A change of some columns alone is seen too."""
    taken = sample(torch.arange(width).expand(width, width)).tolist()
    assert len(set(taken)) == len(taken) >= SAMPLES - 1


# How much


def tensors_in(x: object) -> Iterator[torch.Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (dict, list, tuple)):
        yield from chain.from_iterable(map(tensors_in, x.values() if isinstance(x, dict) else x))
    elif isinstance(x, (Text, Words)):
        yield from tensors_in(vars(x))


def test_the_words_of_all_layers_lie_in_one_piece():
    """Pieces between the activations of a step would keep the heap from using their places again."""
    network, kept = build("sana"), KeptWords(BLOCKS)
    given = inputs(tiny.CAPTION_CHANNELS, [1, 4], (11, 13))
    with torch.inference_mode():
        network(**given, transformer_options=keeping(kept))
    for text in kept.texts:
        assert len(text.words) == BLOCKS
        found = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(text)}
        assert len(found) == 2 + (text.bias is not None)  # the text's states, its bias and the words


def test_another_layer_than_those_told_keeps_nothing():
    kept, context = KeptWords(1), torch.ones(3, 4)
    for layer in (first := a_layer(), another := a_layer()):
        kept.keep(layer, lent_weights(layer), context, None, words := of_length(3))
        assert words.lasting == (layer is first)
    assert kept.find(another, lent_weights(another), context, None) is None


def test_the_first_texts_stay_when_there_are_too_many_words():
    """If the oldest one made room, texts that take turns would all be made again in every step."""
    kept, layer = KeptWords(1), a_layer()
    weights = lent_weights(layer)
    given = [torch.full((2, 4), float(number)) for number in range(4)]
    for _ in range(2):
        for context, length in zip(given, (60, 60, MOST_WORDS + 1, 8)):
            words = of_length(length)
            if kept.find(layer, weights, context, None) is None:
                kept.keep(layer, weights, context, None, words)
                assert words.lasting == (length < MOST_WORDS)
    assert [text.length for text in kept.texts] == [60, 60, 8]


def test_words_are_kept_multiplied_where_the_picture_is_small_and_they_are_few():
    kept, layer = KeptWords(1), a_layer()

    def stays(length: int, positions: int) -> bool:
        k = torch.empty(length, 1152)
        words = Words(k, k, None, 16)
        assert not words.stays_multiplied(positions)
        kept.keep(layer, lent_weights(layer), torch.full((2, 4), float(length)), None, words)
        return words.stays_multiplied(positions)

    assert stays(30, 215) and stays(6, 64)
    assert not (stays(5, 216) or stays(1, 64))  # together more than 36
