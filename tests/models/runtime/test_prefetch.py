"""The host's prefetch around a loop over blocks: who is asked when, and where it is not asked at all."""

import inspect
import sys
from types import SimpleNamespace

import comfy.model_prefetch
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.lumina.config import LuminaConfig
from sana_native.models.lumina.model import Lumina
from sana_native.models.pixart.config import PixArtConfig
from sana_native.models.pixart.model import PixArt
from sana_native.models.runtime import prefetch
from sana_native.models.runtime.prefetch import prefetched
from sana_native.models.sana.convert import to_network_layout
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny

CUDA, OPTIONS = torch.device("cuda"), {"prefetch_dynamic_vbars": True}


@pytest.fixture
def blocks() -> torch.nn.ModuleList:
    return torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))


def run(blocks, device=CUDA, calls=None) -> list:
    found = []
    for block in prefetched(blocks, device, OPTIONS):
        found.append(block)
        if calls is not None:
            calls.append("compute")
    return found


def recording(calls: list, queue: object = "queue", newer: bool = False) -> SimpleNamespace:
    """A host that prefetches; newer: with the arguments that hosts after 0.30 have besides."""

    def make(modules, device, transformer_options):
        calls.append(("make", modules, device, transformer_options))
        return queue

    def pop(queue, device, module):
        calls.append(("pop", queue, device, module))

    def newer_pop(queue, device, module, dtype=None, core=None, enable_graph=False, generator=None, malloc_scope=None):
        assert (dtype, core, enable_graph, generator, malloc_scope) == (None, None, False, None, None)
        pop(queue, device, module)

    def graph(*_, **__):
        raise AssertionError("A memory graph was asked for; docs/development.md says why none is.")

    graphs = {"malloc_graph_begin": graph, "malloc_graph_end": graph, "malloc_graph_scope": graph} if newer else {}
    return SimpleNamespace(make_prefetch_queue=make, prefetch_queue_pop=newer_pop if newer else pop, **graphs)


@pytest.mark.parametrize("newer", [False, True], ids=["0.30", "with graphs"])
def test_each_block_is_announced_before_it_computes_and_the_end_after_the_last(monkeypatch, blocks, newer):
    calls = []
    monkeypatch.setattr(prefetch, "host_prefetch", lambda: recording(calls, newer=newer))
    assert run(blocks, calls=calls) == list(blocks)
    steps = [step for block in blocks for step in (("pop", "queue", CUDA, block), "compute")]
    assert calls == [("make", list(blocks), CUDA, OPTIONS), *steps, ("pop", "queue", CUDA, None)]


def pixart(**kw) -> torch.nn.Module:
    return PixArt(PixArtConfig("PixArt-Sigma", 72, 3, 16, 4, True, False, False, (1, 1, 1), 64), **kw)


def lumina(**kw) -> torch.nn.Module:
    return Lumina(LuminaConfig(72, 3, 2, 1, 16, 64, 32, 4), **kw)


@pytest.mark.parametrize("build", [pixart, lumina])
def test_a_step_of_another_family_announces_its_blocks_too(monkeypatch, build):
    calls, device = [], torch.device("meta")
    monkeypatch.setattr(prefetch, "host_prefetch", lambda: recording(calls))
    monkeypatch.setattr(f"sana_native.models.{build.__name__}.model.optimized_attention", attention_pytorch)
    network = build(device=device, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    network(torch.empty(1, 4, 8, 8, device=device), torch.empty(1, device=device), torch.empty(1, 5, 16, device=device))
    blocks = list(getattr(network, {"pixart": "blocks", "lumina": "layers"}[build.__name__]))
    assert calls[0][:3] == ("make", blocks, device) and calls[0][3]["total_blocks"] == 3
    assert [call[3] for call in calls[1:]] == [*blocks, None]


def test_a_host_that_has_nothing_to_prefetch_is_not_asked_again(monkeypatch, blocks):
    calls = []
    monkeypatch.setattr(prefetch, "host_prefetch", lambda: recording(calls, queue=None))
    assert run(blocks) == list(blocks) and [call[0] for call in calls] == ["make"]


def test_nothing_is_prefetched_on_a_cpu(monkeypatch, blocks):
    calls = []
    monkeypatch.setattr(prefetch, "host_prefetch", lambda: recording(calls))
    assert run(blocks, torch.device("cpu")) == list(blocks) and not calls


def test_nothing_is_prefetched_by_an_older_host(monkeypatch, blocks):
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", None)  # as if there were no such file
    assert prefetch.host_prefetch() is None and run(blocks) == list(blocks)


def test_the_hosts_own_functions_take_these_arguments():
    assert prefetch.host_prefetch() is comfy.model_prefetch
    for function in (comfy.model_prefetch.make_prefetch_queue, comfy.model_prefetch.prefetch_queue_pop):
        inspect.signature(function).bind(1, 2, 3)


def test_the_hosts_own_queue_is_emptied_in_order(monkeypatch, blocks):
    """Its real functions, with nothing to bring: the modules have no place in its memory."""
    management = comfy.model_prefetch.comfy.model_management
    monkeypatch.setattr(management, "NUM_STREAMS", 2)
    monkeypatch.setattr(management, "is_device_cpu", lambda *_: False)
    monkeypatch.setattr(management, "device_supports_non_blocking", lambda *_: True)
    monkeypatch.setattr(management, "sync_stream", lambda *_: None)
    brought = []
    monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", lambda modules, *_: brought.append(modules))
    monkeypatch.setattr(management.args, "fast_disk", True, raising=False)
    monkeypatch.setattr(comfy.model_prefetch, "PREFETCH_QUEUES", [])
    queues = comfy.model_prefetch.PREFETCH_QUEUES
    assert run(blocks) == list(blocks)
    assert len(brought) == 3 and queues == [[None]]


def identity(args: dict, extra: dict) -> dict:
    return extra["original_block"](args)


def doubled(q, k, v, extra_options):  # noqa: ARG001 - the host's contract
    return q * 2, k, v


@pytest.fixture
def sana() -> Sana:
    reference = tiny.transformer(num_layers=3)
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    built = Sana(config, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    built.load_state_dict(to_network_layout(reference.state_dict()))
    return built.requires_grad_(False)


@pytest.mark.parametrize("newer", [False, True], ids=["0.30", "with graphs"])
@pytest.mark.parametrize(
    "options, control",
    [
        ({}, None),
        ({"patches_replace": {"dit": {("double_block", 1): identity}}}, None),
        ({"patches": {"attn1_patch": [doubled]}}, None),
        ({}, {"input": [None, torch.ones(2, 15, 1)]}),
    ],
    ids=["plain", "a replaced block", "an attention patch", "a control residual"],
)
def test_sanas_blocks_are_announced_in_order_and_compute_the_same(monkeypatch, sana, newer, options, control):
    calls = []
    generator = torch.Generator().manual_seed(9)
    given = {
        "x": torch.randn(2, 32, 3, 5, generator=generator),
        "timesteps": torch.full((2,), 700.0),
        "context": torch.randn(2, 6, tiny.CAPTION_CHANNELS, generator=generator),
        "attention_mask": None,
    }
    with torch.inference_mode():
        plain = sana(**given, transformer_options=options, control=control)
        monkeypatch.setattr(prefetch, "host_prefetch", lambda: recording(calls, newer=newer))
        as_on_cuda = lambda blocks, _, options: prefetched(blocks, CUDA, options)  # noqa: E731 - of one use
        monkeypatch.setattr("sana_native.models.sana.model.prefetched", as_on_cuda)
        found = sana(**given, transformer_options=options, control=control)
    assert torch.equal(found, plain)
    assert [call[3] for call in calls[1:]] == [*sana.transformer_blocks, None]
