"""Presets are valid settings, and pictures held out of a training are measured and not trained."""

import pytest
import torch
from sana_native.training.encode import EncodedSample, hold_out
from sana_native.training.plot import draw_losses
from sana_native.training.recipes import CUSTOM, LORA_RECIPES, MODEL_RECIPES, with_recipe
from sana_native.training.settings import MODEL, Settings


@pytest.mark.parametrize("name", [*LORA_RECIPES, *MODEL_RECIPES])
def test_a_preset_is_trained_with(run, name):
    settings = with_recipe(Settings(), name)
    assert (settings == Settings()) == (name == CUSTOM)
    changes = {field: value for field, value in vars(settings).items() if field not in ("steps", "batch_size", "seed")}
    _, record = run(**changes | {"target": MODEL if name in MODEL_RECIPES else settings.target, "steps": 2})
    assert len(record.losses) == 2


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="The preset fast is unknown: choose one of custom, LoRA small, LoRA style"):
        with_recipe(Settings(), "fast")


def samples(count: int, repeats: int = 2) -> list[EncodedSample]:
    """Pictures with their mirror images after them, each as often as it comes in an epoch."""
    plain = [EncodedSample(f"{i}", "", (64, 64), f"{i}") for i in range(count) for _ in range(repeats)]
    return plain + [EncodedSample(f"{i} mirrored", "", (64, 64), f"{i}") for i in range(count)]


def test_held_out_pictures_are_from_all_over_the_set_and_their_mirror_images_go_with_them():
    trained, held = hold_out(samples(10), 2)
    assert [one.latent_path for one in held] == ["2", "7"]
    assert len(trained) == 24 and not {one.picture for one in trained} & {"2", "7"}
    assert hold_out(samples(3), 0) == (samples(3), [])


def test_a_set_is_not_held_out_whole():
    with pytest.raises(ValueError, match="validation 3 leaves no picture to train on, of 3 in the set: enter fewer"):
        hold_out(samples(3), 3)


def test_what_is_held_out_does_not_reach_the_training(run, encoded, monkeypatch):
    _, held = hold_out(encoded.samples, 1)
    seen = []
    real = EncodedSample.latent
    monkeypatch.setattr(EncodedSample, "latent", lambda self: seen.append(self.latent_path) or real(self))
    measured = []

    def tell(trainer, _):
        measured.append(len(trainer.record.held_out))
        seen.append("step")

    _, record = run(steps=6, validation=1, save_every=3, tell=tell)
    assert [step for step, _ in record.held_out] == [0, 3, 6] and measured == [1, 1, 2, 2, 2, 2]
    assert all(len(row) == 5 and torch.tensor(row).isfinite().all() for _, row in record.held_out)
    between = seen[seen.index("step") + 1 : len(seen) - seen[::-1].index("step") - 1]
    at_save = between.count(held[0].latent_path)
    assert at_save == len(record.held_out[0][1]), "measured once more, at each level, and not trained"


def test_the_plot_shows_held_out_pictures_beside_those_that_are_trained():
    losses, levels = [1.0, 0.5], [(0, [1.0]), (2, [0.2])]
    plain = draw_losses(losses, levels, ["a"])
    both = draw_losses(losses, levels, ["a"], [(0, [1.0]), (2, [0.9])])
    assert plain.tobytes() != both.tobytes()
