"""What a compiler makes of the network: one graph, also on both sides of the watershed."""

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.lumina.config import OPTIONS_KEY, LuminaConfig, LuminaOptions
from sana_native.models.lumina.model import Lumina
from torch._dynamo.testing import CompileCounterWithBackend

OPTIONS = {OPTIONS_KEY: LuminaOptions(watershed=0.3)}


@pytest.fixture
def network(monkeypatch) -> Lumina:
    # What the host uses on a GPU; its attention for the CPU asks for the free memory, which no compiler can follow.
    monkeypatch.setattr("sana_native.models.lumina.model.optimized_attention", attention_pytorch)
    torch._dynamo.reset()
    config = LuminaConfig(72, 2, 2, 1, 16, 64, 32, 4)
    made = Lumina(config, dtype=torch.float32, operations=comfy.ops.manual_cast).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def inputs(time: float) -> tuple:
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 12, generator=generator), torch.randn(2, 6, 16, generator=generator)
    return x, torch.full((2,), 1 - time), context, torch.ones(2, 6), OPTIONS


@torch.inference_mode()
def test_the_whole_network_is_one_graph_for_all_times(network):
    expected = [network(*inputs(time)) for time in (0.1, 0.5, 0.9)]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True)
    for time, reference in zip((0.1, 0.5, 0.9), expected, strict=True):
        assert (compiled(*inputs(time)) - reference).abs().max() < 1e-5
    assert counter.frame_count == 1
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_blocks_compiled_one_by_one_share_a_graph(network):
    expected = network(*inputs(0.5))
    counter = CompileCounterWithBackend("aot_eager")
    for block in network.layers:
        block.compile(backend=counter)
    assert (network(*inputs(0.5)) - expected).abs().max() < 1e-5
    assert counter.frame_count == 1
