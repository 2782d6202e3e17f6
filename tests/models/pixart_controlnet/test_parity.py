"""PixArt's ControlNet against the paper's wiring, in every layout, alone and through the host's own nodes."""

import json
from pathlib import Path

import comfy.sample
import comfy.samplers
import pytest
import safetensors.torch
import torch
from sana_native.models.pixart.loader import load_pixart
from sana_native.models.registry import load_model
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import layouts, pixart, tiny
from sana_native.tests.support import pixart_controlnets as controlnets
from sana_native.tests.support import workbench as bench

KINDS = ("alpha 512", "alpha 1024-MS")
LAYOUTS = ("merged", "branch", "diffusers folder")
ERROR = 3e-6


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(kind):
    return pixart.reference(kind, layers=4)


@pytest.fixture(scope="module")
def files(kind, base, tmp_path_factory) -> dict[str, str]:
    root, control = tmp_path_factory.mktemp("files"), controlnets.reference(kind)
    folder = root / "diffusers" / "controlnet"
    folder.mkdir(parents=True)
    safetensors.torch.save_file(control.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    about = {"_class_name": "PixArtControlNetAdapterModel", "num_layers": controlnets.BLOCKS}
    (folder / "config.json").write_text(json.dumps(about))
    return {
        "merged": controlnets.save_merged(root / "authors", base, control, kind),
        "branch": layouts.save(root / "control.safetensors", controlnets.authors_branch(control)),
        "diffusers folder": str(root / "diffusers"),
    }


@pytest.fixture(scope="module")
def model(files):
    """The base, out of the same file as the ControlNet."""
    loaded = load_pixart(files["merged"])
    warn_about_runs(loaded)
    return loaded


def inputs(height: int = 96, width: int = 128) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    size = (2, 4, height // 8, width // 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return {
        "x": torch.randn(size, generator=generator),
        "hint": torch.randn((1, *size[1:]), generator=generator),
        "timesteps": torch.tensor([700.0, 700.0]),
        "context": torch.randn(2, 5, pixart.TEXT_WIDTH, generator=generator),
        "attention_mask": mask,
    }


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_the_noise_is_that_of_the_papers_wiring(kind, base, model, files, layout):
    control, given, strength = load_model("controlnet", files[layout]), inputs(), 0.7
    network = model.model.diffusion_model
    residuals = control.control_model(**given, base=network)["input"]
    assert residuals[0] is None and len(residuals) == 1 + controlnets.BLOCKS
    scaled = {"input": [None if each is None else each * strength for each in residuals]}
    rest = {key: value for key, value in given.items() if key != "hint"}
    found = network(**rest, control=scaled)
    reference = controlnets.reference(kind)
    expected = controlnets.predict(base, reference, *given.values(), strength)
    assert relative(found, expected) < ERROR
    assert relative(network(**rest), expected) > 0.05


def test_the_base_out_of_the_merged_file_is_the_base(kind, base, model, tmp_path):
    alone = load_pixart(pixart.save(base, kind, "authors with pos_embed", tmp_path)).model.diffusion_model
    found = model.model.diffusion_model
    assert found.config == alone.config
    assert all(torch.equal(each, alone.state_dict()[key]) for key, each in found.state_dict().items())


# Through Apply ControlNet and KSampler


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("vae")
    pixart.kl(0.18215).save_pretrained(folder / "vae")
    return load_model("vae", str(folder))


def drawing(size: int = 64) -> torch.Tensor:
    """White lines on black."""
    image = torch.zeros(1, size, size, 3)
    image[:, size // 4 : size // 4 + 4, size // 8 : -size // 8] = 1
    return image


def conds() -> tuple[list, list]:
    generator = torch.Generator().manual_seed(5)
    return tuple([[torch.randn(1, length, pixart.TEXT_WIDTH, generator=generator), {}]] for length in (5, 1))


def apply(control, vae, image=None, strength: float = 1.0) -> tuple[list, list]:
    image = drawing() if image is None else image
    return bench.call("ControlNetApplyAdvanced", *conds(), control, image, strength, 0.0, 1.0, vae=vae)


def euler(model, given, cfg: float = 4.5, steps: int = 3) -> torch.Tensor:
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return bench.call("KSampler", model, 7, steps, cfg, "euler", "sana_pixart", *given, latent, 1.0)[0]["samples"]


@torch.inference_mode()
def by_reference(kind, base, model, vae, cfg: float = 4.5, steps: int = 3, strength: float = 1.0) -> torch.Tensor:
    """The same run by diffusers' blocks: Euler steps of the guided noise."""
    sampling, control = model.get_model_object("model_sampling"), controlnets.reference(kind)
    sigmas = comfy.samplers.calculate_sigmas(sampling, "sana_pixart", steps)
    hint = vae.encode(drawing()) * 0.18215
    x = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 7) * torch.sqrt(1 + sigmas[0] ** 2)
    for sigma, after in zip(sigmas, sigmas[1:]):
        scaled, t = x / torch.sqrt(1 + sigma**2), sampling.timestep(sigma).float().reshape(1)
        noise = [controlnets.predict(base, control, scaled, hint, t, cond[0][0], None, strength) for cond in conds()]
        x = x + (after - sigma) * (noise[1] + cfg * (noise[0] - noise[1]))
    return x / 0.18215


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_apply_controlnet_and_ksampler_give_what_the_paper_gives(kind, base, model, vae, files, strength):
    control = load_model("controlnet", files["merged"])
    found = euler(model, apply(control, vae, strength=strength))
    assert relative(found, by_reference(kind, base, model, vae, strength=strength)) < 1e-5
    assert relative(euler(model, conds()), found) > 1e-2


def test_equal_runs_are_bit_equal_and_two_controlnets_add_up(model, vae, files):
    control = load_model("controlnet", files["branch"])
    once = euler(model, apply(control, vae))
    assert torch.equal(euler(model, apply(control, vae)), once)
    half = apply(control, vae, strength=0.5)
    both = bench.call("ControlNetApplyAdvanced", *half, control, drawing(), 0.5, 0.0, 1.0, vae=vae)
    assert relative(euler(model, both), once) < 1e-5


def test_perturbed_attention_keeps_the_control(model, vae, files):
    control = load_model("controlnet", files["branch"])
    (guided,) = bench.call(bench.OURS["PAG"], model, 3.0)
    found = euler(guided, apply(control, vae))
    assert relative(found, euler(guided, conds())) > 1e-2 and relative(found, euler(model, apply(control, vae))) > 1e-3


# What is warned of and refused


def test_a_sigma_and_a_bright_image_get_a_warning(vae, files, tmp_path, caplog):
    sigma = load_pixart(pixart.save(pixart.reference("Sigma 512", layers=4), "Sigma 512", "authors", tmp_path))
    warn_about_runs(sigma)
    control = load_model("controlnet", files["branch"])
    euler(sigma, apply(control, vae, 1 - drawing()), steps=1)
    assert "Load a PixArt-alpha model: PixArt's ControlNets were not trained for PixArt-Sigma." in caplog.text
    assert "Invert the control image: PixArt's ControlNet expects a HED map, white on black" in caplog.text


def test_models_and_vaes_of_others_are_refused(model, vae, files, tmp_path):
    control = load_model("controlnet", files["branch"])
    with pytest.raises(ValueError, match=r"A PixArt ControlNet was applied to a model of another family \(SanaModel\)"):
        sana = bench.call("ControlNetApplyAdvanced", *bench.encoded(), control, drawing(), 1.0, 0.0, 1.0, vae=vae)
        bench.ksampler(bench.model("sana"), sana)
    with pytest.raises(ValueError, match="The VAE of Apply ControlNet is another model's: connect PixArt's own, which"):
        euler(model, apply(control, bench.vae()), steps=1)
    short = load_pixart(pixart.save(pixart.reference(layers=2), "alpha 512", "authors", tmp_path))
    with pytest.raises(ValueError, match="has 2 blocks of width 144 and the model 2 of width 144: load a PixArt-alpha"):
        euler(short, apply(control, vae), steps=1)


def test_a_damaged_file_is_refused_in_one_sentence(files, kind, tmp_path):
    content = controlnets.authors_branch(controlnets.reference(kind))
    for change, told in (
        ({"controlnet.1.after_proj.bias": None}, r"1 missing, such as controlnet.1.after_proj.bias of"),
        ({"controlnet.0.gate": torch.ones(1)}, r"1 unexpected, such as controlnet.0.gate of"),
        ({"controlnet.0.before_proj.weight": torch.ones(100, 100)}, r"ControlNet of width 100, no multiple of the 72"),
    ):
        changed = {key: each for key, each in (content | change).items() if each is not None}
        with pytest.raises(ValueError, match=told):
            load_model("controlnet", layouts.save(tmp_path / "x.safetensors", changed))
    with pytest.raises(ValueError, match=r"is a PixArt ControlNet \(use SANA ControlNet Loader\), not a SANA transf"):
        load_model("transformer", files["branch"])
    with pytest.raises(
        ValueError, match=r"is a SANA transformer \(use SANA Model Loader\), not a PixArt ControlNet or"
    ):
        load_model("controlnet", layouts.save(tmp_path / "y.safetensors", tiny.transformer().state_dict()))
