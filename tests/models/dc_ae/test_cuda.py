"""DC-AE's path for a CUDA device, run on the CPU, against the plain network and the path of `inplace.py`."""

import copy
from pathlib import Path

import comfy.model_management
import comfy.ops
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sana_native.models.dc_ae import cuda_layers, inplace_layers
from sana_native.models.dc_ae.detection import detect_dc_ae
from sana_native.models.dc_ae.inplace import CudaAutoencoderDC, InplaceAutoencoderDC, choose_network
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.tests.support import tiny

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "demo" / "checkpoint"
WIDTHS = {"encoder_block_out_channels": (8, 8, 16, 32, 32, 64), "decoder_block_out_channels": (8, 8, 16, 32, 32, 64)}
SIZE = (3, 5)  # of the latent
HALVES = ["encode", "decode"]


@pytest.fixture(scope="module", params=["DC-AE", "DC-AE-Lite"])
def reference(request):
    return tiny.dc_ae(**WIDTHS) if request.param == "DC-AE" else tiny.dc_ae_lite(**WIDTHS)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The path is taken on the CPU, sub-pixel convolutions at sizes of a test."""
    monkeypatch.setattr(cuda_layers, "DEVICE", "cpu")
    monkeypatch.setattr(cuda_layers, "SUB_PIXEL_POSITIONS", 1)


def network(reference, kind: type = CudaAutoencoderDC, dtype=torch.float32):
    model = kind(detect_dc_ae(reference.state_dict()), operations=comfy.ops.manual_cast)
    model.load_state_dict(reference.state_dict())
    return model.eval().to(dtype)


def sample(half: str, size=SIZE, count=1, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    if half == "decode":
        return torch.randn(count, 32, *size, generator=generator).to(dtype)
    return (torch.rand(count, 3, 32 * size[0], 32 * size[1], generator=generator) * 2 - 1).to(dtype)


@torch.inference_mode()
def run(model, half: str, x, tile_size: int | None = None) -> torch.Tensor:
    model.tile_size = tile_size
    return getattr(model, half)(x).float()


def error(ours, expected) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(("size", "count"), [((1, 1), 2), ((1, 2), 1), (SIZE, 3)], ids=str)
def test_it_has_the_keys_and_values_of_the_plain_network(reference, half, size, count):
    plain, model, x = network(reference, AutoencoderDC), network(reference), sample(half, size, count)
    assert list(plain.state_dict()) == list(model.state_dict())
    before = x.clone()
    assert error(run(model, half, x), run(plain, half, x)) < 2e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("half", HALVES)
def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_network(reference, half):
    exact = run(network(reference, AutoencoderDC), half, sample(half))
    x = sample(half, dtype=torch.bfloat16)
    plain = error(run(network(reference, AutoencoderDC, torch.bfloat16), half, x), exact)
    assert 0 < error(run(network(reference, dtype=torch.bfloat16), half, x), exact) < 1.05 * plain


@pytest.fixture(scope="module")
def trained():
    """The demo's autoencoder, and what it makes of a picture of 256 px: input and float32 result of either half."""
    theirs = diffusers.AutoencoderDC.from_pretrained(CHECKPOINT, subfolder="vae").eval().requires_grad_(False)
    image = torch.from_numpy(np.array(Image.open(ROOT / "docs" / "demo.png").convert("RGB").resize((256, 256))))
    image = image.permute(2, 0, 1)[None] / 127.5 - 1
    plain = network(theirs, AutoencoderDC)
    latent = run(plain, "encode", image)
    return theirs, {"encode": (image, latent), "decode": (latent, run(plain, "decode", latent))}


@pytest.mark.parametrize("half", HALVES)
def test_trained_weights_give_what_the_plain_network_gives(trained, half):
    theirs, samples = trained
    x, exact = samples[half]
    assert error(run(network(theirs), half, x), exact) < 1e-5


@pytest.mark.parametrize("half", HALVES)
def test_trained_weights_in_bfloat16_are_nearer_to_float32_than_in_diffusers(trained, half, monkeypatch):
    theirs, samples = trained
    x, exact = samples[half][0].bfloat16(), samples[half][1]
    convolve = torch.nn.functional.conv2d

    def rounded_as_in_cudnn(x, weight, bias=None, *args, **kwargs):
        out = convolve(x, weight, None, *args, **kwargs)
        return out if bias is None else out + bias[:, None, None]

    monkeypatch.setattr(torch.nn.functional, "conv2d", rounded_as_in_cudnn)
    ours = error(run(network(theirs, dtype=torch.bfloat16), half, x), exact)
    assert 0 < ours < 1.05 * error(run(network(theirs, AutoencoderDC, torch.bfloat16), half, x), exact)
    with torch.inference_mode():
        other = getattr(copy.deepcopy(theirs).bfloat16(), half)(x)
    assert ours < error(other["latent" if half == "encode" else "sample"].float(), exact)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("tile_size", [40, 96])
def test_tiles_equal_the_whole(reference, half, tile_size):
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 1e-3)):
        model, x = network(reference, dtype=dtype), sample(half, dtype=dtype)
        before = x.clone()
        assert error(run(model, half, x, tile_size), run(model, half, x)) < limit
        assert torch.equal(x, before)


@pytest.mark.parametrize("half", HALVES)
def test_input_on_another_device_takes_the_path_of_the_cpu(reference, half, monkeypatch):
    monkeypatch.setattr(cuda_layers, "DEVICE", "cuda")
    model, other, x = network(reference), network(reference, InplaceAutoencoderDC), sample(half, count=2)
    for tile_size in (None, 96):
        assert torch.equal(run(model, half, x, tile_size), run(other, half, x, tile_size))


@pytest.mark.parametrize("half", HALVES)
def test_maps_beyond_what_cudnn_indexes_take_the_path_in_row_bands(reference, half, monkeypatch):
    model, other, x = network(reference), network(reference, InplaceAutoencoderDC), sample(half, count=2)
    monkeypatch.setattr(cuda_layers, "CUDNN_INT32_LIMIT", 1)
    assert torch.equal(run(model, half, x), run(other, half, x))
    for limit in (20_000, 80_000, 200_000):  # some layers of each kind
        monkeypatch.setattr(cuda_layers, "CUDNN_INT32_LIMIT", limit)
        assert error(run(model, half, x), run(other, half, x)) < 2e-6


@pytest.mark.parametrize("half", HALVES)
def test_hooks_changed_weights_and_functions_on_them_act(reference, half):
    plain, model, x = network(reference, AutoencoderDC), network(reference), sample(half)
    before = run(model, half, x)
    for one in (plain, model):
        for number, module in enumerate(one.modules()):
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.weight_function = [lambda weight: weight * 0.9]
                with torch.no_grad():
                    module.weight.mul_(1.05)
                if number % 7 == 0:
                    module.register_forward_hook(lambda _, __, out: 1.1 * out)
    expected = run(plain, half, x)
    assert error(expected, before) > 1e-2
    assert error(run(model, half, x), expected) < 2e-6


def test_results_that_a_hook_holds_on_to_stay(reference):
    model, saw = network(reference), []
    for name in ("decoder.up_blocks.1.0", "decoder.up_blocks.2", "decoder.up_blocks.4.1"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out: saw.append((out, out.clone())))
    run(model, "decode", sample("decode"))
    assert len(saw) == 3 and all(torch.equal(out, before) for out, before in saw)


def test_gradients_reach_the_input_and_every_weight(reference):
    model = network(reference)
    image = sample("encode", (2, 2)).requires_grad_()
    model.decode(model.encode(image)).square().mean().backward()
    assert image.grad.abs().sum() > 0 and all(parameter.grad is not None for parameter in model.parameters())


def test_float32_sums_of_a_sub_pixel_weight_are_rounded_once():
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3)).to(dtype)
        expected = inplace_layers.sub_pixel_weight(weight)
        assert torch.allclose(cuda_layers.sub_pixel_weight(weight), expected, rtol=0, atol=2e-6)


def test_a_torch_without_the_fused_norm_gets_the_same_from_strips(reference, monkeypatch):
    monkeypatch.setattr(cuda_layers, "NORM_IS_FUSED", False)
    monkeypatch.setattr(cuda_layers.F, "rms_norm", None)
    for half in HALVES:
        plain, x = network(reference, AutoencoderDC), sample(half)
        assert error(run(network(reference), half, x), run(plain, half, x)) < 2e-6


# Which network


@pytest.mark.parametrize(
    ("vae", "host", "kind"),
    [
        ("cuda", "cuda", CudaAutoencoderDC),
        ("cuda:1", "cuda", CudaAutoencoderDC),
        ("cpu", "cuda", CudaAutoencoderDC),
        ("cpu", "cpu", InplaceAutoencoderDC),
        ("mps", "mps", InplaceAutoencoderDC),
        ("xpu", "xpu", InplaceAutoencoderDC),
    ],
)
def test_the_loader_chooses_by_the_device_and_by_the_one_it_could_be_moved_to(vae, host, kind, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(host))
    assert choose_network(torch.device(vae)) is kind
