"""Training all weights of the tiny SANA: gradients, exact resumes, files that the loaders read, and what cannot fit."""

import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import diffusers
import pytest
import safetensors
import torch
from sana_native.models.sana.loader import load_sana
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS
from sana_native.training import trainer as trainer_file
from sana_native.training.loss import flow_loss
from sana_native.training.network import training_mode
from sana_native.training.optimizer import ADAMW_8BIT, ROUNDED
from sana_native.training.rounding import round_by_chance
from sana_native.training.seeds import generator_of
from sana_native.training.settings import MODEL
from sana_native.training.state import load_state
from sana_native.training.trainer import Trainer
from sana_native.training.weights import WeightSet, require_memory
from safetensors.torch import load_file

WHOLE = {"target": MODEL, "learning_rate": 1e-3, "weight_decay": 0.0}
ROUNDING = {"ema": 0.9, "optimizer": ROUNDED}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_weights_learn_and_the_model_given_stays_as_it_was(run, files):
    before = bench.velocity(bench.model("sana"))
    _, record = run(steps=20, **WHOLE)
    (_, first), (_, last) = record.fixed[0], record.fixed[-1]
    assert sum(last) < 0.9 * sum(first)
    assert torch.equal(bench.velocity(bench.model("sana")), before)
    start = load_file(bench.folder() / "sana" / "transformer" / "diffusion_pytorch_model.safetensors")
    trained = load_file(files.result)
    unchanged = [name for name, value in start.items() if torch.equal(trained[name], value.to(trained[name].dtype))]
    assert not unchanged


def test_gradients_of_all_weights_equal_those_of_diffusers_network(encoded, files):
    """By their names in files, so that each is of the weight it is called by."""
    reference = diffusers.SanaTransformer2DModel.from_pretrained(bench.folder() / "sana" / "transformer")
    x0, noise = (torch.randn(2, 32, 4, 4, generator=generator_of(place)) for place in (1, 2))
    sigma = torch.tensor([0.3, 0.8])
    positive, _ = bench.encoded()
    states, mask = positive[0][0].repeat(2, 1, 1), positive[0][1]["attention_mask"].repeat(2, 1)
    with torch.inference_mode(), training_mode():
        states, mask = states.clone(), mask.clone()
        trainer = Trainer(bench.model("sana"), encoded, replace(SETTINGS, **WHOLE, checkpointing=True), files)
        with trainer.trained.attached():
            loss = flow_loss(trainer.predict, x0, states, mask, sigma, noise).mean()
            loss.backward()
        ours = trainer.trained.file_tensors({name: value.grad for name, value in trainer.parameters.items()})

        def predict(noisy, sigma, states, mask):
            return reference(noisy, states, sigma * 1000, encoder_attention_mask=mask).sample

        other = flow_loss(predict, x0, states, mask, sigma, noise).mean()
        other.backward()
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=0)
    largest = max(float(value.grad.abs().max()) for value in reference.parameters())
    for name, value in reference.named_parameters():
        assert torch.allclose(ours[name], value.grad, rtol=1e-3, atol=1e-6 * largest), name


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "accumulation": 2, "optimizer": ADAMW_8BIT}, ROUNDING])
def test_a_resumed_run_of_all_weights_equals_one_without_a_stop_to_the_bit(run, files, changes):
    if "optimizer" in changes:
        pytest.importorskip("bitsandbytes")
    model = bench.fresh_model("sana", dtype=torch.bfloat16) if changes is ROUNDING else None
    run(steps=6, model=model, **WHOLE, **changes)
    whole, state = load_file(files.result), load_state(files.state)[0]
    run(steps=3, model=model, **WHOLE, **changes)
    _, record = run(steps=6, model=model, resume=True, **WHOLE, **changes)
    assert equal(load_file(files.result), whole) and equal(load_state(files.state)[0], state)
    assert len(record.losses) == 6


def test_the_file_is_a_model_for_our_loader_and_diffusers(run, files):
    """Both predict the same, and another thing than the model it was trained on."""
    run(steps=3, **WHOLE)
    model = load_sana(files.result, {})
    comfy.model_management.load_models_gpu([model])
    pipeline = diffusers.SanaTransformer2DModel.from_config(
        diffusers.SanaTransformer2DModel.load_config(bench.folder() / "sana" / "transformer")
    )
    tensors = load_file(files.result)
    tensors.pop("sana_config")
    pipeline.load_state_dict(tensors)
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    positive, _ = bench.encoded()
    states, mask = positive[0][0].clone(), positive[0][1]["attention_mask"].clone()
    with torch.no_grad():
        reference = pipeline(x, states, torch.tensor([700.0]), encoder_attention_mask=mask).sample
    ours = bench.velocity(model)
    assert bench.relative(ours, x - 0.7 * reference) < 1e-5
    assert bench.relative(ours, bench.velocity(bench.model("sana"))) > 1e-3
    assert model.model.diffusion_model.config == bench.model("sana").model.diffusion_model.config


def test_the_average_lies_beside_the_weights_and_every_save_has_a_step(run, files):
    run(steps=3, **WHOLE | {"ema": 0.5, "save_every": 2})
    folder = Path(files.result).parent
    names = [f"mine{step}{ending}.safetensors" for step in ("", "_step000002") for ending in ("", "_ema")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert not equal(load_file(folder / names[0]), load_file(folder / names[1]))
    with safetensors.safe_open(folder / names[1], "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "SANA"


def test_weights_of_16_bits_are_trained_in_32(files, encoded):
    """A step that is less than what bfloat16 can tell apart is not lost."""
    model = bench.fresh_model("sana", dtype=torch.bfloat16)
    with torch.inference_mode(), training_mode():
        trainer = Trainer(model, encoded, replace(SETTINGS, **WHOLE), files)
        own = trainer.trained.own
        name = next(name for name, value in own.items() if value.dtype == torch.bfloat16 and value.ndim == 2)
        before = own[name].detach().clone()
        with trainer.trained.attached():
            for _ in range(4):
                trainer.train_step()
        master = trainer.parameters[name]
        assert master.dtype == torch.float32 and not torch.equal(master, master.to(torch.bfloat16).float())
        assert torch.equal(own[name], master.to(torch.bfloat16)) and not torch.equal(own[name], before)
        assert own[name].grad is None
        assert trainer.results()[""][name].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("weight_bytes", "copied", "state_bytes", "needed"),
    [(4, True, 8, "25.7"), (4, True, 2, "16.1"), (2, True, 8, "28.9"), (2, True, 2, "19.3"), (2, False, 2, "9.6")],
)
def test_what_cannot_fit_is_refused_with_the_number(weight_bytes, copied, state_bytes, needed):
    kinds = 1_605_000_000, weight_bytes, copied, state_bytes, False
    require_memory(*kinds, (float(needed) + 0.1) * 1e9, "")
    with pytest.raises(ValueError, match=f"To train all 1.60 billion weights takes {needed} GB without activations"):
        require_memory(*kinds, (float(needed) - 0.1) * 1e9, "choose another")


def test_bfloat16_weights_without_a_float32_copy_learn_from_steps_that_rounding_to_the_nearest_would_lose(
    files, encoded
):
    """And nothing but them, their gradients and the optimizer's state is held between steps."""
    pytest.importorskip("bitsandbytes")
    settings = replace(SETTINGS, **WHOLE | {"learning_rate": 1e-5, "optimizer": ROUNDED})
    with torch.inference_mode(), training_mode():
        trainer = Trainer(bench.fresh_model("sana", dtype=torch.bfloat16), encoded, settings, files)
        assert all(trainer.parameters[name] is weight for name, weight in trainer.trained.own.items())
        before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
        with trainer.trained.attached():
            for _ in range(4):
                trainer.train_step()
        assert not any(wide.numel() for wide in trainer.optimizer.wide)
        moved, lost = [], []
        for name, value in trainer.parameters.items():
            if value.dtype == torch.bfloat16 and value.numel() > 2000:
                moved.append((value != before[name]).float().mean())
                lost.append(((before[name].float() + 4e-5).bfloat16() == before[name]).float().mean())
    assert min(lost) > 0.5 and min(moved) > 0.001 and max(moved) < 0.3


@pytest.mark.parametrize("value", [1.0 + 2**-9, -3.0 - 2**-10, 2.5e-20, 1.0])
def test_rounding_by_chance_is_right_in_the_mean_and_gives_neighbours_only(value):
    x = torch.full((40_000,), value)
    rounded = round_by_chance(x, torch.Generator().manual_seed(0)).float()
    spread = abs(value) * 2**-7  # the distance of two neighbours, or more
    assert (rounded - x).abs().max() < spread and float((rounded - x).mean().abs()) < 0.01 * spread


def test_a_device_that_is_too_small_is_refused_before_anything_is_loaded(run, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: 1e5)  # stands for a small GPU
    monkeypatch.setattr(trainer_file, "WeightSet", None)
    with pytest.raises(ValueError, match="and the device has 0.0: choose AdamW 8-bit, ema 0, or for a bfloat16 model"):
        run(**WHOLE)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("sprint", "SANA-Sprint cannot be trained as a plain flow"),
        ("lumina", "SANA Train Model trains SANA and SANA-1.5, and this model is Lumina-Next: connect one of these"),
    ],
)
def test_models_that_are_not_trained_whole_are_refused(run, family, message):
    model = bench.lumina() if family == "lumina" else bench.model(family)
    with pytest.raises(ValueError, match=message):
        run(model=model, **WHOLE)


def test_without_bitsandbytes_its_optimizer_is_refused_before_the_first_step(run, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    cure = "install it into ComfyUI's Python, or choose AdamW"
    for target in (WHOLE, {}):
        with pytest.raises(ValueError, match=f"AdamW 8-bit needs the package bitsandbytes, which is not .+: {cure}."):
            run(optimizer="AdamW 8-bit", **target)
    with pytest.raises(ValueError, match=f"{ROUNDED} needs the package bitsandbytes"):
        run(optimizer=ROUNDED, **WHOLE)
    assert not Path(files.config).exists()


def test_a_run_of_a_lora_is_not_gone_on_with_as_a_model(run):
    run()
    with pytest.raises(ValueError, match="The run was begun with another model, or trains a LoRA"):
        run(steps=8, resume=True, **WHOLE)


def test_weight_sets_leave_other_tensors_than_their_own():
    network = bench.fresh_model("sana").model.diffusion_model
    with torch.inference_mode(False):
        weights = WeightSet(network)
        with pytest.raises(ValueError, match="The run was begun with another model"):
            weights.load({"x": torch.zeros(1)})
