"""What a step of SANA costs on a CUDA device, pinned: counted at full size on fake tensors, two blocks for all."""

import dataclasses

import comfy.ops
import comfy.quant_ops
import pytest
import torch
from sana_native.benchmarks import fake_cuda
from sana_native.benchmarks.networks import CAPTION_CHANNELS, TRANSFORMERS
from sana_native.models.runtime.precision import Precision
from sana_native.models.sana import cuda
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.loader import choose_network
from sana_native.models.sana.model import Sana
from sana_native.models.sana.supported_models import SanaSupported

BF16, TOKENS = torch.bfloat16, 48
PRECISION = Precision(BF16, BF16, False, "as it was trained")


def config(model: str, qk_norm: bool, blocks: int, interpolation_scale: float | None = None) -> SanaConfig:
    width, depth, heads, hidden = TRANSFORMERS[model]
    return SanaConfig(
        width, blocks or depth, heads, CAPTION_CHANNELS, hidden, 32, 32, qk_norm, False, 0.1, interpolation_scale, 128,
        3.0, False,
    )  # fmt: skip


def step(given: SanaConfig, size: int = 1024, batch: int = 2, network: type[Sana] = CudaSana) -> fake_cuda.Cost:
    with torch.device("meta"):
        built = network(given, dtype=BF16, operations=comfy.ops.disable_weight_init)
    with fake_cuda.device():
        fake_cuda.move(built)
        x = torch.empty(batch, 32, size // 32, size // 32, dtype=BF16, device="cuda")
        context = torch.empty(batch, TOKENS, CAPTION_CHANNELS, dtype=BF16, device="cuda")
        mask, times = torch.empty(batch, TOKENS, dtype=BF16, device="cuda"), torch.empty(batch, device="cuda")
        return fake_cuda.count(lambda: built(x, times, context=context, attention_mask=mask))


def block(model: str, qk_norm: bool, network: type[Sana] = CudaSana) -> tuple[int, float]:
    """Kernels and GB of one more block."""
    two, three = (step(config(model, qk_norm, blocks), network=network) for blocks in (2, 3))
    return three.kernels - two.kernels, three.gigabytes - two.gigabytes


def test_a_cuda_device_gets_the_network_that_is_counted_here():
    assert choose_network(torch.device("cuda"))[0] is CudaSana


@pytest.mark.parametrize(
    ("model", "qk_norm", "kernels", "gigabytes"),
    [("0.6B", False, 31, 0.525), ("1.6B", False, 31, 1.095), ("1.6B", True, 35, 1.15)],
    ids=["0.6B", "1.6B", "1.6B with qk-norm"],
)
def test_a_block_at_1024_px_with_guidance(model, qk_norm, kernels, gigabytes):
    found = block(model, qk_norm)
    assert found[0] <= kernels and found[1] <= gigabytes
    plain = block(model, qk_norm, Sana)
    assert plain[0] == found[0] + 9 and plain[1] > 1.1 * found[1]


def test_the_hosts_adaln_saves_two_kernels_more(monkeypatch):
    """Its operation, one to torch, stands for one kernel: so it is with its CUDA and its Triton backend."""
    monkeypatch.setattr(cuda, "has_fused_adaln", lambda: True)
    kernels, gigabytes = block("1.6B", True)
    assert kernels <= 33 and gigabytes <= 1.13


@pytest.mark.parametrize("interpolation_scale", [None, 1.0], ids=["1024 px", "2K"])
def test_a_whole_step_can_be_captured_as_a_graph(interpolation_scale):
    """Counting raises where a value is asked for; an upload is a tensor that was made on the CPU within the step."""
    given = config("1.6B", True, blocks=0, interpolation_scale=interpolation_scale)
    cost = step(given)
    assert given.depth == 20 and cost.uploads == []
    assert cost.kernels <= 20 * 35 + (33 if interpolation_scale is None else 55)
    assert cost.gigabytes <= 20 * 1.15 + (0.19 if interpolation_scale is None else 0.23)


@pytest.mark.parametrize("size", [1024, 2048, 4096])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("model", "qk_norm", "interpolation_scale"), [("0.6B", False, None), ("1.6B", True, None), ("1.6B", False, 1.0)]
)
def test_the_host_is_told_of_the_memory_that_a_step_takes(
    monkeypatch, model, qk_norm, interpolation_scale, batch, size
):
    given = config(model, qk_norm, 2, interpolation_scale)
    counted = step(given, size, batch).peak
    supported = SanaSupported(dataclasses.replace(given, depth=0), PRECISION, *choose_network(torch.device("cuda")))
    built = supported.get_model({}, device="meta")
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    told = built.memory_required([batch, 32, size // 32, size // 32])
    assert 1.0 <= told / counted <= 1.3
