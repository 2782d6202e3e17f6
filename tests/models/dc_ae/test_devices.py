"""DC-AE on devices that are neither the CPU nor on whole maps: no float64, which Apple's lack, and no other device."""

import comfy.ops
import pytest
import torch
from sana_native.benchmarks import fake_cuda, networks
from sana_native.models.dc_ae.inplace import InplaceAutoencoderDC
from sana_native.models.dc_ae.memory_estimate import IN_ROW_BANDS, Workload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OnOneDevice(TorchDispatchMode):
    """Raises for float64, and for a result on the CPU beyond a few constants."""

    results = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # noqa: ARG002 - torch's signature
        result = operation(*args, **kwargs or {})
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.results += one.device.type == "cuda"
                if one.dtype == torch.float64 or (one.device.type == "cpu" and one.numel() > 12):
                    raise TypeError(f"{operation} gives {one.dtype} on {one.device}")
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("half", ["decode", "encode"])
def test_row_bands_on_a_device_need_no_float64_and_stay_there(dtype, half):
    """Torch fakes no Apple device here, so a fake CUDA one stands for it, with the network that Apple's get."""
    with torch.device("meta"):
        network = InplaceAutoencoderDC(networks.dc_ae_config(), operations=comfy.ops.disable_weight_init)
    network.eval().requires_grad_(False)
    shapes = {"decode": (2, 32, 16, 24), "encode": (2, 3, 512, 768)}
    with fake_cuda.device():
        fake_cuda.move(network, dtype)
        x = torch.empty(shapes[half], dtype=dtype, device="cuda")
        with OnOneDevice() as mode:
            out = getattr(network, half)(x)
    assert out.shape == shapes["encode" if half == "decode" else "decode"] and out.device.type == "cuda"
    assert mode.results > 500


@pytest.mark.parametrize("device", ["mps", "xpu", "cpu"])
def test_their_needs_are_those_of_row_bands(device):
    workload = Workload(4096, 4096, torch.float32, device)
    assert workload.elements == IN_ROW_BANDS and workload.choose_tile_size(1e15) is None


def test_maps_that_cudnn_cannot_index_are_tiled_there_however_much_memory_is_free():
    assert Workload(4096, 4096, torch.bfloat16, "cuda").choose_tile_size(1e15) == 3072
    assert Workload(4096, 4064, torch.bfloat16, "cuda").choose_tile_size(1e15) is None
