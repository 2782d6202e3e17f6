"""Passes replayed as CUDA graphs: what is captured, what runs as usual, and when a graph is no longer valid.

A recorder stands for the GPU (`tests/support/fake_cuda_graph.py`).
"""

import copy
import logging

import pytest
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from sana_native.models.runtime import cuda_graph
from sana_native.models.runtime.cuda_graph import MOST, GraphCache, held_memory, release_graphs, use_graphs
from sana_native.tests.support.fake_cuda_graph import POOL, FakeRecorder, record_on_the_cpu


class Network(torch.nn.Module):
    """A network that can have graphs, and counts the passes that run as usual or to be captured."""

    graphs: GraphCache | None = None

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.requires_grad_(False)
        self.passes = 0

    def compute(self, x, scale):
        self.passes += 1
        out = self.second(self.first(x))
        return out if scale is None else out * scale

    def forward(self, x, scale=None, **options):
        return self.graphs.run(self, self.compute, {"x": x, "scale": scale}, options)


@pytest.fixture
def recorder() -> FakeRecorder:
    return FakeRecorder()


@pytest.fixture
def network(recorder) -> Network:
    torch.manual_seed(0)
    built = Network()
    built.graphs = GraphCache(recorder)
    return built


@pytest.fixture(autouse=True)
def _as_in_a_run(monkeypatch):
    record_on_the_cpu(monkeypatch)
    with torch.inference_mode():
        yield


def check(network: Network, x: torch.Tensor, **given) -> torch.Tensor:
    """The result, which has to be bit-equal to the one without graphs."""
    passes = network.passes
    wanted = network.compute(x, given.get("scale"))
    network.passes = passes
    found = network(x, **given)
    assert torch.equal(found, wanted)
    return found


# Captures and replays


def test_the_second_pass_of_a_shape_is_captured_and_later_ones_replayed(network, recorder):
    check(network, torch.randn(2, 4))
    assert (recorder.captures, network.passes) == (0, 1)
    check(network, torch.randn(2, 4))
    for _ in range(3):
        check(network, torch.randn(2, 4))  # other values: every replay copies its inputs
    assert recorder.captures == 1 and recorder.replays == 1 + 4  # one at the capture


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.randn(3, 4)},
        {"x": torch.randn(2, 4), "scale": torch.ones(1)},
        {"x": torch.randn(4, 2).T},
    ],
    ids=["batch", "an input more", "layout"],
)
def test_every_signature_has_a_graph_of_its_own(network, recorder, other):
    for _ in range(3):
        check(network, torch.randn(2, 4))
        check(network, **other)
    assert recorder.captures == 2


def test_a_format_of_its_own_is_a_graph_of_its_own(network, recorder):
    def plus_one(x):
        return x + 1

    for dtype in (torch.float32, torch.bfloat16) * 2:
        found = network.graphs.run(network, plus_one, {"x": torch.ones(2, dtype=dtype)})
        assert found.dtype == dtype
    assert recorder.captures == 2


def test_a_later_replay_leaves_an_earlier_result_as_it_was(network):
    outs, values = [], []
    for _ in range(4):
        outs.append(network(torch.randn(2, 4)))
        values.append(outs[-1].clone())
    assert all(map(torch.equal, outs, values))


def test_the_inputs_of_the_caller_are_left_alone(network):
    x = torch.randn(2, 4)
    kept = x.clone()
    for _ in range(3):
        network(x).zero_()
    assert torch.equal(x, kept)


def test_the_graph_unused_for_longest_gives_way(network, recorder):
    shapes = [torch.randn(rows, 4) for rows in range(1, MOST + 2)]
    for _ in range(2):
        for x in shapes[:MOST]:
            check(network, x)
    check(network, shapes[0])
    for _ in range(2):
        check(network, shapes[MOST])
    assert recorder.captures == MOST + 1 and len(network.graphs.recordings) == MOST
    check(network, shapes[0])
    assert recorder.captures == MOST + 1
    check(network, shapes[1])
    assert recorder.captures == MOST + 2


# What runs as usual


def warmed(network: Network) -> torch.Tensor:
    """An input whose shape has a graph."""
    for _ in range(2):
        check(network, torch.randn(2, 4))
    return torch.randn(2, 4)


def runs_as_usual(network: Network, caplog, reason: str, x=None, **options) -> None:
    """It neither captures nor replays, and says why once."""
    recorder = network.graphs.recorder
    before, passes = (recorder.captures, recorder.replays), network.passes
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            network(torch.randn(2, 4) if x is None else x, **options)
    assert (recorder.captures, recorder.replays) == before and network.passes == passes + 3
    (line,) = (record.message for record in caplog.records)
    assert reason in line and line.endswith("such passes run as usual")


@pytest.mark.parametrize(
    "options",
    [
        {"patches_replace": {"dit": {("double_block", 0): print}}},
        {"patches": {"attn1_patch": [print]}},
        {"optimized_attention_override": print},
        {"control": {"input": [torch.ones(1)]}},
        {"prefetch_dynamic_vbars": True},
        {"of_a_node_to_come": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_others_put_into_the_pass_runs_as_usual(network, caplog, options):
    warmed(network)
    runs_as_usual(network, caplog, f"sets {next(iter(options))}", **options)


def test_what_the_host_tells_in_every_run_is_no_obstacle(network, recorder):
    options = {
        "cond_or_uncond": [0, 1],
        "uuids": ["a"],
        "sigmas": torch.ones(1),
        "sample_sigmas": torch.ones(3),
        "wrappers": {"diffusion_model": {"a": [print]}},
        "callbacks": {"on_cleanup": {"a": [print]}},
        "patches": {"attn1_patch": {}},
        "patches_replace": {},
        "control": None,
        "prefetch_dynamic_vbars": False,
    }
    for _ in range(3):
        network(torch.randn(2, 4), **options)
    assert recorder.captures == 1


def test_a_hooked_or_replaced_layer_runs_as_usual(network, caplog):
    warmed(network)
    handle = network.first.register_forward_hook(lambda *_: None)
    runs_as_usual(network, caplog, "hooked, replaced or compiled a layer")
    handle.remove()
    network.second.forward = torch.zeros_like  # in the place where a bypass LoRA puts its own
    assert not network(torch.randn(2, 4)).any()


def test_a_compiled_layer_runs_as_usual(network, caplog):
    warmed(network)
    network.first.compile(backend="eager")
    runs_as_usual(network, caplog, "hooked, replaced or compiled a layer")


def test_a_lora_that_the_host_adds_during_the_pass_runs_as_usual(network, caplog):
    warmed(network)
    network.first.weight_function, network.first.bias_function = [LowVramPatch("key", {}, None, None)], []
    runs_as_usual(network, caplog, "changes weights during the pass")


def test_a_pass_for_gradients_runs_as_usual(network, caplog):
    with torch.inference_mode(False):
        runs_as_usual(network, caplog, "gradients are wanted", torch.randn(2, 4))


def test_weights_that_the_host_has_taken_off_the_device_free_the_graphs_and_run_as_usual(network, recorder, caplog):
    x = warmed(network)
    network.second.to("meta")
    with caplog.at_level(logging.INFO):
        found = network.graphs.run(network, lambda x: x + 1, {"x": x})
    assert torch.equal(found, x + 1) and "not all of its weights are on the device" in caplog.text
    assert not network.graphs.recordings and recorder.released == 1


def test_quantized_weights_run_as_usual(network, monkeypatch, caplog):
    warmed(network)
    monkeypatch.setattr(cuda_graph, "is_plain", lambda tensor: tensor is not network.second.weight)
    runs_as_usual(network, caplog, "quantized")


@pytest.mark.parametrize("hip", [None, "6.4"])
def test_other_devices_run_as_usual(network, caplog, monkeypatch, hip):
    network.graphs.recorder.device_type = "cpu" if hip else "cuda"
    monkeypatch.setattr(torch.version, "hip", hip)
    runs_as_usual(network, caplog, "not run on an NVIDIA card but on " + ("AMD" if hip else "cpu"))


def test_a_capture_that_fails_is_said_once_and_not_tried_again_for_the_shape(caplog):
    network = Network()
    network.graphs = GraphCache(FakeRecorder(RuntimeError("operation not permitted\nwhen stream is capturing")))
    for _ in range(4):
        check(network, torch.randn(2, 4))
    (line,) = (record.message for record in caplog.records)
    assert "a pass with inputs of 2 x 4 cannot be captured" in line
    assert "(RuntimeError: operation not permitted when stream is capturing)" in line
    assert network.graphs.recorder.captures == 1 and not network.graphs.held
    network.graphs.recorder.failing = None
    for _ in range(2):
        check(network, torch.randn(3, 4))  # another shape is
    check(network, torch.randn(2, 4))
    assert network.graphs.recorder.captures == 2


# When a graph is no longer valid


def test_an_edit_in_place_reaches_the_next_replay(network, recorder):
    x = warmed(network)
    network.first.weight.mul_(2)
    check(network, x)
    assert recorder.captures == 1


@pytest.mark.parametrize("layer", ["first", "second"])
def test_a_weight_in_another_place_drops_every_graph(network, recorder, layer):
    x = warmed(network)
    for _ in range(2):
        check(network, torch.randn(5, 4))
    kept = getattr(network, layer).weight
    getattr(network, layer).weight = torch.nn.Parameter(kept * 2, requires_grad=False)
    check(network, x)
    assert recorder.captures == 3 and len(network.graphs.recordings) == 1
    getattr(network, layer).weight.data = kept.clone()
    check(network, x)
    assert recorder.captures == 4


def test_a_replaced_layer_with_the_same_weights_drops_the_graph(network, recorder):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, replacement = warmed(network), Doubled(4, 4)
    replacement.weight, replacement.bias = network.second.weight, network.second.bias
    network.second = replacement
    check(network, x)
    assert recorder.captures == 2


def test_a_copied_network_has_graphs_of_its_own(network, recorder):
    x = warmed(network)
    copied = copy.deepcopy(network)
    assert copied.graphs is not network.graphs and not copied.graphs.recordings
    for _ in range(3):
        check(copied, x)
    assert (recorder.captures, copied.graphs.recorder.captures) == (1, 1)


# Memory


def test_the_memory_of_all_graphs_is_told_until_they_are_dropped(network, recorder):
    device = torch.device("cpu")
    for rows in (2, 3):
        for _ in range(3):
            check(network, torch.randn(rows, 4))
    assert held_memory(device) == 2 * POOL
    network.graphs.clear()
    assert held_memory(device) == 0 and recorder.released == 1


def patcher_of(network: Network, monkeypatch) -> ModelPatcher:
    monkeypatch.setattr(cuda_graph, "CudaRecorder", FakeRecorder)
    patcher = ModelPatcher(network, torch.device("cpu"), torch.device("cpu"))
    assert use_graphs(patcher)
    return patcher


def test_unloading_frees_the_graphs(network, monkeypatch):
    patcher = patcher_of(network, monkeypatch)
    warmed(network)
    clone = patcher.clone()
    clone.detach(unpatch_all=False)  # as the host does where another clone takes over
    assert network.graphs.recordings
    clone.detach()
    assert not network.graphs.recordings and network.graphs.recorder.released == 1


def test_a_model_without_such_a_network_says_so(caplog):
    patcher = ModelPatcher(torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu"))
    with caplog.at_level(logging.INFO):
        assert not use_graphs(patcher)
    assert "cuda_graphs is on, but has no effect" in caplog.text
    release_graphs(patcher, True)
