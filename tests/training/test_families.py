"""LoRA training of PixArt and Lumina-Next: the loss, a few steps, and files that every reader takes."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import comfy.model_management
import comfy.sd
import diffusers
import peft
import pytest
import safetensors
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from safetensors.torch import load_file
from sana_native.models.lora.loader import load_lora
from sana_native.models.pixart.loader import load_pixart
from sana_native.models.registry import load_model
from sana_native.tests.models.lumina.test_parity import expected_velocity
from sana_native.tests.support import pixart, tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS, SIDE
from sana_native.training import trainer as trainer_file
from sana_native.training.captions import Caption
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import LATENT, MASK, STATES, EncodedSample, EncodedSet, encode_set, save_part
from sana_native.training.families import PIXART, family_of
from sana_native.training.family import PRESETS
from sana_native.training.network import copy_for_training, training_mode
from sana_native.training.prediction import Prediction
from sana_native.training.preview import Preview
from sana_native.training.state import save_whole
from sana_native.training.trainer import Trainer, train

FAMILIES = ("Sigma 512", "alpha 1024-MS", "Lumina-Next")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name of a family -> its tiny model, and the width of its text states."""

    @cache
    def build(name: str):
        if name == "Lumina-Next":
            return bench.lumina(), tiny.LUMINA_CAPTION_CHANNELS
        folder = tmp_path_factory.mktemp("pixart")
        saved = pixart.save(pixart.reference(name, layers=2), name, "diffusers folder", folder)
        return load_pixart(saved), pixart.TEXT_WIDTH

    return build


@pytest.fixture
def data(models, tmp_path):
    """Four latents of two sizes with states of a family's width, as the cache holds them."""

    def build(name: str) -> EncodedSet:
        generator, width = torch.Generator().manual_seed(8), models(name)[1]

        def text(file: str, length: int) -> str:
            states = torch.randn(length, width, generator=generator)
            save_part({STATES: states, MASK: torch.ones(length)}, str(tmp_path / file), file)
            return str(tmp_path / file)

        samples = []
        for index, (height, wide) in enumerate([(8, 8), (8, 8), (4, 16), (8, 8)]):
            latent = str(tmp_path / f"latent{index}")
            small = torch.randn(1, 4, 2, 2, generator=generator)
            smooth = torch.nn.functional.interpolate(small, (height, wide), mode="bicubic")[0] / 0.13
            save_part({LATENT: smooth}, latent, "a latent")
            samples.append(EncodedSample(latent, text(f"text{index}", 4 + index), (8 * height, 8 * wide)))
        return EncodedSet(tuple(samples), text("null", 1), False, SetOptions(SIDE))

    return build


def training(models, data, files, name: str, **changes):
    """A run of its own, for which the state of the one before is removed."""
    model, encoded = models(name)[0], data(name)
    Path(files.state).unlink(missing_ok=True)
    with torch.inference_mode():
        return train(model, encoded, replace(SETTINGS, **changes), files, lambda *_: None)


def loss_inputs(width: int):
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    return x0, torch.randn(3, 6, width, generator=generator), torch.ones(3, 6), noise


def predict_of(patcher) -> Prediction:
    return Prediction(patcher, family_of(patcher.model))


def mean_squared(predicted, target):
    return (predicted.float() - target.float()).square().flatten(1).mean(dim=1)


@pytest.mark.parametrize("name", ["Sigma 512", "alpha 1024-MS"])
@torch.no_grad()
def test_pixarts_loss_is_that_of_the_noise_as_diffusers_scheduler_adds_it(models, name):
    model, width = models(name)
    predict = predict_of(model)
    x0, states, mask, noise = loss_inputs(width)
    timesteps = torch.tensor([3, 347, 990])
    loss = predict.loss(x0, states, mask, predict.sampling.sigmas[timesteps], noise)
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    noisy = scheduler.add_noise(x0, noise, timesteps)
    predicted = model.model.diffusion_model(noisy, timesteps.float(), states, mask)
    torch.testing.assert_close(loss, mean_squared(predicted, noise), rtol=1e-6, atol=0)
    reference = pixart.reference(name, layers=2)
    sizes = {"resolution": None, "aspect_ratio": None}
    if reference.config.use_additional_conditions:
        sizes = {"resolution": torch.full((3, 2), 64.0), "aspect_ratio": torch.ones(3, 1)}
    output = reference(noisy, states, timesteps, added_cond_kwargs=sizes, encoder_attention_mask=mask).sample
    torch.testing.assert_close(loss, mean_squared(output.chunk(2, dim=1)[0], noise), rtol=1e-5, atol=0)


@torch.no_grad()
def test_luminas_loss_is_its_authors_who_count_from_noise_to_image(models):
    model, width = models("Lumina-Next")
    x0, states, mask, noise = loss_inputs(width)
    time = 0.4
    sigma = torch.full((3,), 1 - time)
    loss = predict_of(model).loss(x0, states, mask, sigma, noise)
    between = time * x0 + (1 - time) * noise
    network = model.model.diffusion_model
    velocity = -network(between, sigma, states, mask)  # the authors' direction
    torch.testing.assert_close(loss, mean_squared(velocity, x0 - noise), rtol=1e-6, atol=0)
    of_diffusers = -expected_velocity(tiny.lumina(), between, time, states, mask)
    torch.testing.assert_close(loss, mean_squared(of_diffusers, x0 - noise), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_steps_lower_the_loss_and_leave_the_model(models, data, files, name):
    before = {key: value.clone() for key, value in models(name)[0].model.diffusion_model.state_dict().items()}
    lora, record = training(models, data, files, name, steps=40, rank=4, layers="attention + mix-ffn")
    (_, first), (step, last) = record.fixed[0], record.fixed[-1]
    assert step == 40 and sum(last) < 0.9 * sum(first)
    after = models(name)[0].model.diffusion_model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_equals_one_without_a_stop_to_the_bit(models, data, files, name):
    whole, _ = training(models, data, files, name, steps=4)
    training(models, data, files, name, steps=2)
    with torch.inference_mode():
        resumed, _ = train(models(name)[0], data(name), SETTINGS, files, lambda *_: None, resume=True)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_reaches_every_adapter_without_checkpointing_too(models, data, files, name):
    """The trainer itself raises where it does not; with checkpointing every other test here asks the same."""
    options = {"layers": "all linear", "checkpointing": False, "caption_dropout": 1.0}
    _, record = training(models, data, files, name, steps=1, **options)
    assert record.step == 1


def prediction_of(patcher, width: int) -> torch.Tensor:
    comfy.model_management.load_models_gpu([patcher])
    x0, states, mask, noise = loss_inputs(width)
    with torch.inference_mode():
        return predict_of(patcher)(x0 + noise, torch.full((3,), 0.7), states, mask)


@pytest.mark.parametrize(
    ("layers", "algorithm"), [*((layers, "LoRA") for layers in PRESETS), ("all linear", "DoRA"), ("all linear", "LoKr")]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_acts_as_the_trained_adapters_in_every_loader(models, data, files, name, layers, algorithm):
    model, width = models(name)
    plain = prediction_of(model, width)
    with torch.inference_mode(), training_mode():
        trainer = Trainer(model, data(name), replace(SETTINGS, steps=3, layers=layers, algorithm=algorithm), files)
        trainer.run(lambda _: None)
        with trainer.trained.attached():
            trained = prediction_of(trainer.patcher, width)
    assert bench.relative(trained, plain) > 1e-3
    stock, _ = comfy.sd.load_lora_for_models(model, None, load_file(files.result), 1.0, 0)
    readers = [stock] if name == "Lumina-Next" else [stock, load_lora(model, files.result, 1.0)]
    for reader in readers:
        assert bench.relative(prediction_of(reader, width), trained) < 1e-5
    assert bench.relative(prediction_of(model, width), plain) < 1e-6


def with_pefts_names(path: str) -> dict[str, torch.Tensor]:
    """A file of linear layers whose magnitudes have PEFT's name and shape."""
    return {
        name.replace("dora_scale", "lora_magnitude_vector"): value.flatten() if "dora_scale" in name else value
        for name, value in load_file(path).items()
    }


def test_our_loader_reads_a_dora_of_pixart_with_pefts_names(models, data, files, tmp_path):
    model, width = models("Sigma 512")
    training(models, data, files, "Sigma 512", layers="all linear", algorithm="DoRA")
    save_whole(with_pefts_names(files.result), str(tmp_path / "peft.safetensors"))
    ours, same = (load_lora(model, path, 1.0) for path in (files.result, str(tmp_path / "peft.safetensors")))
    assert torch.equal(prediction_of(ours, width), prediction_of(same, width))


@pytest.mark.parametrize("algorithm", ["LoRA", "DoRA"])
def test_a_pixart_lora_acts_on_diffusers_network_through_peft(models, data, files, algorithm):
    model, width = models("Sigma 512")
    training(models, data, files, "Sigma 512", layers="all linear", algorithm=algorithm)
    with safetensors.safe_open(files.result, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    reference = pixart.reference("Sigma 512", layers=2)
    options = {key.removeprefix("transformer."): value for key, value in config.items()}
    changed = peft.inject_adapter_in_model(peft.LoraConfig(**options), copy.deepcopy(reference))
    tensors = {key.removeprefix("transformer."): value for key, value in with_pefts_names(files.result).items()}
    peft.set_peft_model_state_dict(changed, tensors)
    x0, states, mask, noise = loss_inputs(width)
    ours = load_lora(model, files.result, 1.0)
    predict, sigma = predict_of(ours), torch.full((3,), 0.7)
    noisy = predict.sampling.calculate_input(sigma, x0 + noise)
    timesteps, sizes = predict.sampling.timestep(sigma), {"resolution": None, "aspect_ratio": None}
    with torch.no_grad():
        output = changed(noisy, states, timesteps, added_cond_kwargs=sizes, encoder_attention_mask=mask).sample
    assert bench.relative(prediction_of(ours, width), output.chunk(2, dim=1)[0]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_sample_pictures_are_finite_and_follow_the_training(models, data, files, name):
    encoded, shown = data(name), []
    caption = encoded.samples[0].caption()
    preview = Preview([caption], Caption(caption.states * 0, caption.mask), (8, 8), steps=4)
    settings = replace(SETTINGS, steps=4, sample_every=2)
    with torch.inference_mode():
        train(models(name)[0], encoded, settings, files, lambda _, report: shown.append(report.sample), preview=preview)
    first, last = shown[0], shown[4]  # before the first step and after the fourth
    assert first.shape == (1, 4, 8, 8) and last.isfinite().all() and not torch.equal(first, last)


def test_pixart_is_trained_at_uniform_timesteps_whatever_was_chosen(models, data, files):
    sampling = models("Sigma 512")[0].get_model_object("model_sampling")
    sigma = PIXART.levels(sampling, torch.Generator().manual_seed(0), 20_000, "uniform")
    timesteps = sampling.timestep(sigma).float()
    assert float(timesteps.mean()) == pytest.approx(499.5, abs=8) and float(timesteps.std()) == pytest.approx(
        288.7, 0.02
    )
    training(models, data, files, "Sigma 512", time_sampling="logit-normal")
    with safetensors.safe_open(files.result, "pt") as file:
        told = json.loads(file.metadata()["sana_training"])
        assert file.metadata()["modelspec.architecture"] == "PixArt/lora"
    assert told["time_sampling"] == "uniform" and told["shift"] is None


def test_pictures_and_captions_are_encoded_by_the_familys_own_parts(pictures, tmp_path):
    pixart.kl().save_pretrained(tmp_path / "vae")
    vae, clip = load_model("vae", str(tmp_path)), bench.lumina_clip()
    with torch.inference_mode():
        found = read_folder(str(pictures), SetOptions(size=SIDE))
        encoded = encode_set(found, vae, clip, True, str(tmp_path / "cache"), lambda *_: None)
    assert [tuple(one.latent().shape) for one in encoded.samples[:3]] == [(4, 8, 8), (4, 8, 8), (4, 4, 16)]
    assert encoded.samples[0].caption().states.shape[-1] == tiny.LUMINA_CAPTION_CHANNELS
    assert encoded.null().mask.tolist() == [1.0] and bool(encoded.samples[3].caption().mask.all())


def test_captions_and_latents_of_another_familys_encoders_are_refused(models, data, files, monkeypatch):
    """Before the model is read from its file again."""
    monkeypatch.setattr(trainer_file, "copy_for_training", lambda _: pytest.fail("the model was read"))
    encoded = data("Sigma 512")
    with pytest.raises(ValueError, match="encoded to states of 64 where Lumina-Next needs 32: connect its own text"):
        with torch.inference_mode():
            train(models("Lumina-Next")[0], encoded, SETTINGS, files, lambda *_: None)
    found = "of 64 x 64 px was encoded to a latent of 4 channels and 8 x 8 cells where SANA needs 32 channels and 2 x 2"
    with pytest.raises(ValueError, match=f"{found} cells: connect the DC-AE of SANA DC-AE Loader to SANA Encode Train"):
        with torch.inference_mode():
            train(bench.model("sana"), encoded, SETTINGS, files, lambda *_: None)


@pytest.mark.parametrize(("name", "vae"), [("Sigma 512", "SDXL"), ("alpha 1024-MS", "Stable Diffusion 1")])
def test_a_set_of_sana_is_refused_for_pixart_with_the_vae_it_needs(models, encoded, files, name, vae):
    with pytest.raises(ValueError, match=f"where PixArt needs 4 channels .+: connect the VAE of {vae} from Load VAE"):
        with torch.inference_mode():
            train(models(name)[0], encoded, SETTINGS, files, lambda *_: None)
    assert not Path(files.config).exists()


@pytest.mark.parametrize(("name", "told"), [("LCM", "PixArt-LCM"), ("DMD", "PixArt-DMD")])
def test_a_distilled_pixart_is_refused(tmp_path: Path, name, told):
    pipeline = pixart.pipeline("alpha 512", name)
    folder = tmp_path / f"PixArt-alpha-{name}"
    pipeline.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"{told} cannot be trained to predict plain noise"):
        copy_for_training(load_model("transformer", str(folder)))


def test_a_pixart_that_was_set_to_sample_as_another_model_is_refused(models):
    (changed,) = bench.call(ModelSamplingDiscrete, models("Sigma 512")[0], "v_prediction", False)
    with pytest.raises(ValueError, match="bypass the ModelSampling node"):
        copy_for_training(changed)


def test_other_models_have_no_row():
    assert family_of(torch.nn.Linear(1, 1)) is None
