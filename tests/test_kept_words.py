"""What a run keeps of its texts leaves the result, and is forgotten when the weights or the run change."""

import comfy.hooks
import comfy.sd
import pytest
import torch
from sana_native.models import sana
from sana_native.models.few_words import Words
from sana_native.models.kept_words import KEPT_WORDS, MOST_WORDS, KeptWords
from sana_native.models.model_base import SanaModel
from sana_native.tests import tiny
from sana_native.tests import workbench as bench
from sana_native.tests.test_fast_sana import VARIANTS, build, difference, inputs

LAYER = "transformer_blocks.1.attn2"


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """How many words each text had whose keys and values a layer has made."""
    lengths, make = [], sana.CrossAttention.keys_and_values
    monkeypatch.setattr(
        sana.CrossAttention, "keys_and_values", lambda self, text: lengths.append(text.shape[1]) or make(self, text)
    )
    return lengths


def keeping(kept: KeptWords | None = None) -> dict:
    return {KEPT_WORDS: kept or KeptWords()}


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
    monkeypatch.setattr(SanaModel, "with_kept_words", lambda _, options: options)
    assert difference(drawn, bench.draw(model, (cat + dog, empty), steps=6)) < 1e-6


def test_pictures_with_the_same_text_share_its_words(made):
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 5, 40, 5])
    for row in (1, 3):
        given["context"][row] = given["context"][0]
    with torch.inference_mode():
        shared = network(**given)
        assert made == [5, 40] * len(network.transformer_blocks)
        alone = [network(**{name: None if x is None else x[i : i + 1] for name, x in given.items()}) for i in range(4)]
    assert difference(shared, torch.cat(alone)) < 1e-6


@pytest.mark.parametrize("grid", [(2, 2), (11, 13)], ids=["few positions", "many"])
@pytest.mark.parametrize("lengths", [[1], [4], [300], [1, 30], [17, 4, 1]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_later_steps_give_the_same_velocity(variant, lengths, grid):
    network, kept = build(variant), KeptWords()
    given = inputs(tiny.CAPTION_CHANNELS, lengths, grid, sprint=variant == "sprint")
    with torch.inference_mode():
        for _ in range(3):
            given |= {"x": given["x"] + 1, "timesteps": given["timesteps"] / 2}
            step = network(**given, transformer_options=keeping(kept))
            assert difference(step, network(**given)) < 1e-6
    assert len(kept.texts) == sum(length <= MOST_WORDS for length in lengths)


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
    with torch.no_grad():
        layer.weight.mul_(1.5)


def replaced(layer: torch.nn.Linear) -> None:
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)


def changed_at_every_use(layer: torch.nn.Linear) -> None:
    layer.weight_function = [lambda weight: weight * 1.5]


def with_a_hook(layer: torch.nn.Linear) -> None:
    layer.register_forward_hook(lambda _, __, out: out * 1.5)


@pytest.mark.parametrize("change", [in_place, replaced, changed_at_every_use, with_a_hook])
@pytest.mark.parametrize("name", ["to_k", "to_v", "to_out.0"])
def test_another_weight_within_a_run_is_noticed(name, change):
    network, given, kept = build("sana"), inputs(tiny.CAPTION_CHANNELS, [1, 4], (2, 2)), KeptWords()
    with torch.inference_mode():
        before = network(**given, transformer_options=keeping(kept))
        change(network.get_submodule(f"{LAYER}.{name}"))
        after = network(**given, transformer_options=keeping(kept))
        assert difference(after, before) > 1e-4
        assert difference(after, network(**given)) < 1e-6


def test_a_scheduled_lora_acts_with_each_of_its_strengths():
    """The host writes it into the weights where they lie, which leaves no trace in them."""
    model, (positive, negative) = bench.fresh_model("sana"), bench.encoded()
    hooks, frames = comfy.hooks.create_hook_lora(lora(), 1.0, 0.0), comfy.hooks.HookKeyframeGroup()
    for start, strength in ((0.0, 0.0), (0.3, 1.0), (0.7, -1.0)):
        frames.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(frames)
    conds = comfy.hooks.set_conds_props([positive, negative], 1.0, "default", hooks=hooks)

    def draw() -> torch.Tensor:
        return bench.draw(model, conds, steps=6)

    drawn = draw()
    with pytest.MonkeyPatch.context() as forgetting:
        forgetting.setattr(SanaModel, "with_kept_words", lambda _, options: options)
        assert difference(drawn, draw()) < 1e-6
    assert difference(drawn, bench.draw(model, (positive, negative), steps=6)) > 1e-3


def test_a_patch_that_writes_into_the_text_acts_in_every_step():
    network, given, kept = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40]), KeptWords()

    def write(args: dict, extra: dict) -> dict:
        args["txt"].mul_(0.5)
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 1): write}}}
    with torch.inference_mode():
        expected = network(**given, transformer_options=options)
        assert difference(expected, network(**given)) > 1e-4
        for _ in range(3):
            assert difference(network(**given, transformer_options=options | keeping(kept)), expected) < 1e-6


def test_a_text_that_is_written_into_later_is_another_one():
    kept, layer, context, bias, made = KeptWords(), torch.nn.Identity(), torch.ones(3, 4), torch.zeros(3), []

    def make(*given) -> Words:
        made.append(given)
        return of_length(3)

    for changed in (context, bias, None):
        kept.find(layer, None, context, bias, make)
        if changed is not None:
            changed.sub_(1)
    assert len(made) == 3


# How much


def of_length(length: int) -> Words:
    k = torch.zeros(length, 8)
    return Words(k, k, None, 2, lasting=True)


def test_the_oldest_texts_go_when_there_are_too_many_words():
    kept, layer, numbers = KeptWords(), torch.nn.Identity(), torch.arange(6.0)
    for number in numbers:
        kept.find(layer, None, number.expand(3, 4), None, lambda *_: of_length(MOST_WORDS // 4))
    assert [text.context[0, 0].item() for text in kept.texts] == numbers[-4:].tolist()


def test_a_text_too_long_to_keep_leaves_the_others():
    kept, layer = KeptWords(), torch.nn.Identity()
    for number, length in enumerate((3, MOST_WORDS + 1, 4)):
        context = torch.full((2, 4), float(number))
        words = kept.find(layer, None, context, None, lambda *_, length=length: of_length(length))
        assert len(words) == length
    assert [text.length for text in kept.texts] == [3, 4]


def test_words_are_kept_multiplied_where_the_picture_is_small_and_they_are_few():
    def keep(length: int, positions: int, lasting: bool = True) -> bool:
        k = torch.empty(length, 1152)
        return Words(k, k, None, 16, lasting).keep(positions)

    assert keep(30, 64) and keep(36, 215)
    assert not (keep(37, 64) or keep(36, 216) or keep(30, 64, lasting=False))
