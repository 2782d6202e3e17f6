"""Golden values and parity of both wirings, through each file layout."""

import diffusers
import pytest
import torch
from sana_native.models.controlnet.config import DIFFUSERS, NVLABS
from sana_native.models.registry import load_model
from sana_native.models.sana.loader import load_sana
from sana_native.tests.support import controlnets, tiny

# First four values of the output by wiring and whose embeddings the control branch has.
PLAIN = (0.703302, 0.012736, 0.517532, -0.467583)
GOLDEN = {
    ("folder", None): (-0.174177, 0.274938, -0.048396, -0.410931),
    ("merged", None): (0.382963, 0.244653, -0.115375, -0.351304),
    ("folder", NVLABS): (0.382963, 0.244653, -0.115375, -0.351304),
    ("merged", DIFFUSERS): (0.673154, 0.608284, 0.114257, -0.273083),
}


@pytest.fixture(scope="module")
def base() -> diffusers.SanaTransformer2DModel:
    return tiny.transformer(num_layers=4)


@pytest.fixture(scope="module")
def files(base, tmp_path_factory) -> dict[str, str]:
    return dict(zip(("folder", "merged"), controlnets.save_layouts(tmp_path_factory.mktemp("controlnets"), base)))


def seed_9() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    x, hint, states = (torch.randn(shape, generator=generator) for shape in ((1, 32, 3, 5), (1, 32, 3, 5), (1, 6, 64)))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    return {"x": x, "hint": hint, "timesteps": torch.tensor([700.0]), "context": states, "attention_mask": mask}


def predict(base, control, given: dict, strength: float = 1.0) -> torch.Tensor:
    """The pack's networks together, as the host joins them."""
    with torch.inference_mode():
        residuals = control.control_model(**given, base=base)
        scaled = {"input": [None if one is None else one * strength for one in residuals["input"]]}
        return base(**{key: value for key, value in given.items() if key != "hint"}, control=scaled)


def first(out: torch.Tensor) -> torch.Tensor:
    return out.flatten()[:4]


@pytest.mark.parametrize(("file", "wiring"), GOLDEN, ids=str)
def test_golden_values_of_each_wiring_through_its_layout(files, file, wiring):
    base = load_sana(files["merged"]).model.diffusion_model
    control = load_model("controlnet", files[file], {"wiring": wiring})
    out = predict(base, control, seed_9())
    assert torch.allclose(first(out), torch.tensor(GOLDEN[file, wiring]), atol=5e-6)


def test_the_base_out_of_the_merged_file_is_the_base(files):
    given = {key: value for key, value in seed_9().items() if key != "hint"}
    with torch.inference_mode():
        out = load_sana(files["merged"]).model.diffusion_model(**given)
    assert torch.allclose(first(out), torch.tensor(PLAIN), atol=2e-6)


def test_residuals_are_those_of_diffusers(files):
    given = seed_9()
    control = load_model("controlnet", files["folder"])
    with torch.inference_mode():
        found = control.control_model(**given)["input"]
        expected = controlnets.reference()(
            given["x"],
            given["context"],
            given["timesteps"],
            given["hint"],
            encoder_attention_mask=given["attention_mask"],
            return_dict=False,
        )[0]
    assert found[:2] == [None, None] and len(found) == 2 + controlnets.BLOCKS
    for one, other, mean in zip(found[2:], expected, (1.29903, 1.41239), strict=True):
        assert one.shape == (1, 15, 64) and abs(one.abs().mean().item() - mean) < 1e-5
        assert ((one - other).norm() / other.norm()).item() < 2e-6


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_nvidias_wiring_is_that_of_the_reference(files, base, strength):
    given = seed_9()
    expected = controlnets.nvlabs_forward(
        base,
        controlnets.reference(),
        *(given[key] for key in ("x", "hint", "timesteps", "context", "attention_mask")),
        strength,
    )
    out = predict(
        load_sana(files["merged"]).model.diffusion_model,
        load_model("controlnet", files["merged"]),
        given,
        strength,
    )
    assert ((out - expected).norm() / expected.norm()).item() < 2e-6
