"""What compilers make of the network: one graph for all blocks, and no more than one a dimension that changes."""

from collections.abc import Callable

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.model import Sana
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture(params=[Sana, CpuSana, CudaSana])
def build(request, monkeypatch) -> Callable[[int], Sana]:
    """Makes a network of so many blocks."""
    # What the host uses on a GPU; its attention for the CPU asks for the free memory, which no compiler can follow.
    monkeypatch.setattr("sana_native.models.sana.model.optimized_attention", attention_pytorch)
    torch._dynamo.reset()

    def make(depth: int) -> Sana:
        config = SanaConfig(64, depth, 4, 64, 96, 32, 32, False, False, 0.1, None, 32, 3.0, None)
        network = request.param(config, dtype=torch.float32, operations=comfy.ops.manual_cast).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        return network

    return make


def inputs(height: int, width: int, tokens: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(2, tokens, 64, generator=generator)
    x = torch.randn(2, 32, height, width, generator=generator)
    return x, torch.full((2,), 500.0), context, torch.ones(2, tokens)


@torch.inference_mode()
def test_twelve_blocks_compiled_one_by_one_share_a_graph(build):
    network = build(12)
    expected = network(*inputs(4, 6, 16))
    counter = CompileCounterWithBackend("aot_eager")
    for block in network.transformer_blocks:
        block.compile(backend=counter)
    out = network(*inputs(4, 6, 16))
    assert counter.frame_count == 1
    assert (out - expected).abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("whole", [False, True], ids=["12 blocks one by one", "whole"])
def test_no_recompile_after_the_second_length_and_the_second_size(build, whole):
    network = build(1 if whole else 12)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(network, backend=counter, fullgraph=True) if whole else network
    for block in () if whole else network.transformer_blocks:
        block.compile(backend=counter)
    for height, width, tokens in ((4, 6, 16), (4, 6, 32), (8, 6, 32), (8, 10, 32)):  # each dimension changes once
        run(*inputs(height, width, tokens))
    known = counter.frame_count
    assert known <= 4
    for height, width, tokens in ((4, 10, 16), (10, 12, 48), (6, 6, 64)):
        run(*inputs(height, width, tokens))
    assert counter.frame_count == known
