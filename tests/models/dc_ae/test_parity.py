"""DC-AE against diffusers' AutoencoderDC and the host's own class: same weights, same image, float32."""

import inspect

import comfy.ops
import pytest
import torch
from comfy.ldm.ace.vae.autoencoder_dc import AutoencoderDC as HostAutoencoderDC
from sana_native.models.dc_ae.detection import detect_dc_ae
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.tests.support import tiny

TOLERANCE = 1e-5
# Height and width; at 128 px the innermost stage has 16 positions, which takes the quadratic attention.
SIZES = [(128, 128), (256, 192), (64, 416)]


@pytest.fixture(scope="module")
def reference():
    return tiny.dc_ae()


@pytest.fixture(scope="module")
def model(reference):
    model = AutoencoderDC(detect_dc_ae(reference.state_dict()), operations=comfy.ops.manual_cast)
    model.load_state_dict(reference.state_dict())
    return model


def relative_error(ours, expected) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def image(size) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_encode_equals_diffusers(model, reference, size):
    assert relative_error(model.encode(image(size)), reference.encode(image(size)).latent) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_decode_equals_diffusers(model, reference, size):
    latent = torch.randn(2, 32, size[0] // 32, size[1] // 32, generator=torch.Generator().manual_seed(6)) * 2.4
    assert relative_error(model.decode(latent), reference.decode(latent).sample) <= TOLERANCE


@torch.inference_mode()
def test_encode_and_decode_equal_the_hosts_music_class(model, reference):
    accepted = inspect.signature(HostAutoencoderDC).parameters
    config = {key: value for key, value in reference.config.items() if key in accepted} | {"scaling_factor": 1.0}
    host = HostAutoencoderDC(**config)
    host.load_state_dict(reference.state_dict())
    latent = model.encode(image((128, 128)))

    assert relative_error(latent, host.encode(image((128, 128)))) <= TOLERANCE
    assert relative_error(model.decode(latent), host.decode(latent)) <= TOLERANCE
