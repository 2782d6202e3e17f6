"""Devices other than the CPU: no float64 there, and none of the CPU's ways."""

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.sana import cpu
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.embeddings import add_position_embedding, position_encoding
from sana_native.models.sana.loader import choose_network
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

SANA_2K = SanaConfig(64, 2, 4, 64, 96, 32, 32, False, False, 0.1, 1.0, 64, 3.0, None)


class NoFloat64(TorchDispatchMode):
    """Fails as a device without float64 does; "meta" stands in for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002 - torch's signature
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta" and tensor.dtype == torch.float64:
                raise TypeError(f"{function} makes float64 on a device that has none")
        return out


def test_the_mode_refuses_float64_on_the_device():
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        torch.zeros(3, dtype=torch.float64, device="meta")


@pytest.mark.parametrize("network", [Sana, CpuSana, CudaSana])
def test_2k_models_run_without_float64_on_the_device(network, monkeypatch):
    # What the host uses on a GPU; its other attention asks the device for its free memory.
    monkeypatch.setattr("sana_native.models.sana.model.optimized_attention", attention_pytorch)
    sana = network(SANA_2K, dtype=torch.float32, device="meta", operations=comfy.ops.disable_weight_init)
    x, context = torch.empty(1, 32, 8, 8, device="meta"), torch.empty(1, 16, 64, device="meta")
    with NoFloat64(), torch.no_grad():
        out = Sana._forward(sana, x, torch.empty(1, device="meta"), context, torch.empty(1, 16, device="meta"))
    assert out.shape == x.shape and out.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_position_table_is_that_of_float64(dtype):
    x = torch.randn(2, 35, 64).to(dtype)
    table = torch.empty(5, 7, 64, dtype=torch.float64)
    omega = 10000.0 ** -(torch.arange(16, dtype=torch.float64) / 16)
    for dim, start in ((1, 0), (0, 32)):  # the column in the first half of the channels, then the row
        size = table.shape[dim]
        angle = (torch.arange(size, dtype=torch.float64) * (64 / size)).view((-1, 1, 1) if dim == 0 else (-1, 1))
        table[..., start : start + 16], table[..., start + 16 : start + 32] = (
            (angle * omega).sin(),
            (angle * omega).cos(),
        )
    expected = (x + table.float().flatten(0, 1)).to(dtype)
    assert torch.equal(add_position_embedding(x, (5, 7), 64, 1.0), expected)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_in_float32_as_on_a_gpu_the_position_table_is_nearly_that_of_float64(size):
    wide, narrow = (position_encoding(size, 1120, 64 / size, "cpu", each) for each in (torch.float64, torch.float32))
    assert wide.dtype == narrow.dtype == torch.float32
    assert (wide - narrow).abs().max() < 1e-5


def test_the_network_is_chosen_by_the_device_and_malloc_changed_once_for_a_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "raise_mmap_threshold", lambda: calls.append(1))
    assert choose_network(torch.device("cuda"))[0] is CudaSana and choose_network(torch.device("mps"))[0] is Sana
    assert calls == []
    network, _ = choose_network(torch.device("cpu"))
    assert network is CpuSana and calls == [1]
    built = tiny.randomize(network(SANA_2K, operations=comfy.ops.disable_weight_init), seed=1)
    with torch.inference_mode():
        for _ in range(3):
            built(torch.zeros(1, 32, 4, 4), torch.ones(1), torch.zeros(1, 16, 64))
    assert calls == [1]


def test_all_networks_have_the_same_keys_and_shapes():
    states = [build(SANA_2K, device="meta", operations=torch.nn).state_dict() for build in (Sana, CpuSana, CudaSana)]
    plain, *fast = ({key: tensor.shape for key, tensor in state.items()} for state in states)
    assert all(keys == plain for keys in fast)
