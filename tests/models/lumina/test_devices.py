"""The released size on a CUDA device that is not there: formats and places of every tensor, and no float64."""

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.lumina.config import LuminaConfig
from sana_native.models.lumina.model import Lumina
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

RELEASED = LuminaConfig(2304, 24, 32, 8, 2048, 6144, 1024, 4)


class Watch(TorchDispatchMode):
    """Fails on float64 on the device, and on a value that the CPU would have to wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002 - torch's signature
        out = function(*args, **(kwargs or {}))
        assert function is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                assert tensor.dtype != torch.float64, f"{function} makes float64 on the device"
        return out


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (64, 256)], ids=str)
@torch.no_grad()
def test_a_step_of_the_released_model_stays_on_the_device_without_float64(size, monkeypatch):
    monkeypatch.setattr("sana_native.models.lumina.model.optimized_attention", attention_pytorch)
    with FakeTensorMode(allow_non_fake_inputs=False), Watch():
        kw = {"device": "cuda", "dtype": torch.bfloat16}
        network = Lumina(RELEASED, operations=comfy.ops.disable_weight_init, **kw)
        x, context = torch.randn(2, 4, *size, **kw), torch.randn(2, 77, 2048, **kw)
        out = network(x, torch.full((2,), 0.5, device="cuda"), context, torch.ones(2, 77, device="cuda"))
        assert out.shape == x.shape and out.dtype == torch.bfloat16 and out.device.type == "cuda"
