"""AutoencoderKL by our loader against diffusers, and what is refused."""

from functools import cache

import comfy.sd
import diffusers
import pytest
import safetensors.torch
import torch
from sana_native.models.dc_ae.vae import require_dc_ae
from sana_native.models.registry import load_model
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench


@cache
def reference() -> diffusers.AutoencoderKL:
    return pixart.kl()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pipeline")
    reference().save_pretrained(folder / "vae")
    return str(folder)


@torch.inference_mode()
def test_a_diffusers_folder_decodes_and_encodes_as_diffusers(path, caplog):
    caplog.set_level("INFO")
    vae = load_model("vae", path)
    assert "AutoencoderKL with 4 channels, SDXL's, for PixArt-Sigma, weights float32" in caplog.text
    latent = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    expected = (reference().decode(latent).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((vae.decode(latent) - expected).abs().max()) < 1e-4
    image = torch.rand(1, 48, 64, 3, generator=torch.Generator().manual_seed(4))
    encoded = reference().encode(image.permute(0, 3, 1, 2) * 2 - 1).latent_dist.mode()
    assert float((vae.encode(image) - encoded).abs().max()) < 1e-4 * float(encoded.abs().max())
    with pytest.raises(ValueError, match=r"likely that of Stable Diffusion 1.5 or SDXL, not SANA's DC-AE"):
        require_dc_ae(vae)


@pytest.mark.parametrize("node", ["VAEDecode", "VAEDecodeTiled"])
def test_a_latent_of_sana_is_refused_in_one_sentence(path, node):
    tiles = {"tile_size": 512} if node == "VAEDecodeTiled" else {}
    with pytest.raises(ValueError, match=r"has 32 channels where AutoencoderKL decodes 4: .* for SANA a DC-AE\."):
        bench.call(node, vae=load_model("vae", path), samples={"samples": torch.zeros(1, 32, 4, 4)}, **tiles)


@pytest.mark.parametrize("tiled", ["", "Tiled"])
def test_what_is_empty_or_smaller_than_a_cell_is_refused_in_one_sentence(tiled, path):
    vae, tiles = load_model("vae", path), {"tile_size": 512, "overlap": 64} if tiled else {}
    for shape in ((0, 4, 8, 8), (1, 4, 0, 8)):
        with pytest.raises(ValueError, match=r"^This latent holds nothing, its shape is \(.*\): check the node that"):
            bench.call(f"VAEDecode{tiled}", vae=vae, samples={"samples": torch.zeros(shape)}, **tiles)
    with pytest.raises(ValueError, match=r"^This image is 64 x 7 px; AutoencoderKL needs at least 8 px a side: scale"):
        bench.call(f"VAEEncode{tiled}", pixels=torch.zeros(1, 7, 64, 3), vae=vae, **tiles)
    with pytest.raises(ValueError, match=r"^This batch holds no image, its shape is \(0, 64, 64, 3\): check the node"):
        bench.call(f"VAEEncode{tiled}", pixels=torch.zeros(0, 64, 64, 3), vae=vae, **tiles)


def test_tiles_decode_the_whole_image(path):
    """By the host's blending, which DC-AE's exact tiles are not: a tile sees less of the image than the whole does."""
    vae = load_model("vae", path)
    latent = {"samples": torch.randn(1, 4, 20, 12, generator=torch.Generator().manual_seed(3))}
    whole = bench.call("VAEDecode", vae, latent)[0]
    assert torch.allclose(bench.call("VAEDecodeTiled", vae, latent, 512)[0], whole, atol=1e-4)
    tiled = bench.call("VAEDecodeTiled", vae, latent, 96, 32)[0]
    assert tiled.shape == whole.shape == (1, 160, 96, 3)
    assert 0 < float((tiled - whole).abs().mean()) < 0.5 * float(whole.std())  # 0.31; of another place 1.1


def test_a_single_file_as_stable_diffusion_names_it_loads_alike(path, tmp_path):
    folder = load_model("vae", path)
    file = str(tmp_path / "sdxl_vae.safetensors")
    state_dict = {key: value.contiguous() for key, value in folder.first_stage_model.state_dict().items()}
    safetensors.torch.save_file(state_dict | {"model_ema.decay": torch.ones(1)}, file)
    single = load_model("vae", file)
    assert isinstance(single, comfy.sd.VAE) and single.latent_channels == 4
    a, b = folder.first_stage_model.state_dict(), single.first_stage_model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def small(**config) -> dict:
    blocks = config.pop("blocks", 4)
    kind = "DownEncoderBlock2D", "UpDecoderBlock2D"
    return diffusers.AutoencoderKL(
        down_block_types=kind[:1] * blocks,
        up_block_types=kind[1:] * blocks,
        block_out_channels=(32,) * blocks,
        **config,
    ).state_dict()


def without(key: str) -> dict:
    return {name: tensor for name, tensor in reference().state_dict().items() if name != key}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: small(latent_channels=16), r"is an autoencoder with 16 latent channels, but PixArt's has 4"),
        (lambda: small(blocks=3), r"is an autoencoder with another ratio than 8, but PixArt's has 4"),
        (small, r"looks like an AutoencoderKL but has tensors of other shapes: download it again"),
        (
            lambda: without("decoder.conv_norm_out.bias"),
            r"does not fit its architecture \(1 missing, such as decoder\.",
        ),
        (
            lambda: without("encoder.conv_in.weight"),
            r"looks like an AutoencoderKL but encoder.conv_in.weight is missing",
        ),
    ],
)
def test_another_or_damaged_autoencoder_is_refused_in_one_sentence(make, sentence, tmp_path):
    safetensors.torch.save_file(make(), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_model("vae", str(tmp_path / "x.safetensors"))
