"""Whole runs of SANA with replayed steps give the same latents as without; a recorder stands for the GPU."""

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from sana_native.models.runtime import cuda_graph
from sana_native.models.sana import loader
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.fake_cuda_graph import FakeRecorder, record_on_the_cpu

STEPS = 4
LAYER = "diffusion_model.transformer_blocks.0.attn1.to_v.weight"


@pytest.fixture
def on_a_card(monkeypatch):
    """SANA's network for a CUDA device, on the CPU."""
    monkeypatch.setattr(loader, "choose_network", lambda _: (CudaSana, 1.0))
    record_on_the_cpu(monkeypatch)


def loaded(family: str = "sana", cuda_graphs: bool = True):
    return bench.fresh_model(family, cuda_graphs=cuda_graphs)


def recorder_of(patcher) -> FakeRecorder:
    return patcher.model.diffusion_model.graphs.recorder


def run(patcher, **options) -> torch.Tensor:
    return bench.ksampler(patcher, bench.encoded(), steps=STEPS, **options)


def with_lora(patcher, seed: int):
    clone, generator = patcher.clone(), torch.Generator().manual_seed(seed)
    difference = torch.randn(patcher.model.state_dict()[LAYER].shape, generator=generator) * 0.1
    assert clone.add_patches({LAYER: ("diff", (difference,))})
    return clone


@pytest.mark.usefixtures("on_a_card")
@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_run_is_captured_once_and_gives_the_same_latent(family):
    plain, replayed = loaded(family, cuda_graphs=False), loaded(family)
    assert plain.model.diffusion_model.graphs is None
    for seed in (1, 2):
        assert torch.equal(run(replayed, seed=seed), run(plain, seed=seed))
    assert recorder_of(replayed).captures == 1
    assert recorder_of(replayed).replays == 1 + 2 * STEPS - 1  # one at the capture; the first step runs as usual


@pytest.mark.usefixtures("on_a_card")
def test_two_sizes_in_one_session_keep_their_graphs():
    plain, replayed = loaded(cuda_graphs=False), loaded()
    for width in (128, 64, 128, 64):
        latent = bench.empty(width, 128)
        assert torch.equal(run(replayed, latent=latent), run(plain, latent=latent))
    assert recorder_of(replayed).captures == 2


@pytest.mark.usefixtures("on_a_card")
def test_a_lora_a_second_one_and_none_again_act_at_once():
    plain, replayed = loaded(cuda_graphs=False), loaded()
    latents = []
    for seed in (1, 2, None):
        latents.append(run(replayed if seed is None else with_lora(replayed, seed)))
        assert torch.equal(latents[-1], run(plain if seed is None else with_lora(plain, seed)))
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])
    assert recorder_of(replayed).captures >= 1


@pytest.mark.usefixtures("on_a_card")
def test_guidance_that_patches_attention_runs_as_usual():
    plain, replayed = loaded(cuda_graphs=False), loaded()
    run(replayed)
    captures, replays = recorder_of(replayed).captures, recorder_of(replayed).replays
    (found,), (wanted,) = (bench.call(PerturbedAttentionGuidance, one, 3.0) for one in (replayed, plain))
    assert torch.equal(run(found), run(wanted))
    # The pass of prompt and negative prompt is replayed, the perturbed one of the prompt is not captured.
    assert (recorder_of(replayed).captures, recorder_of(replayed).replays) == (captures, replays + STEPS)


@pytest.mark.usefixtures("on_a_card")
def test_weights_that_are_only_in_part_on_the_device_run_as_usual(caplog):
    plain, replayed = loaded(cuda_graphs=False), loaded()
    layer = replayed.model.diffusion_model.transformer_blocks[0].ff.conv_point
    layer.weight_function.append(comfy.model_patcher.LowVramPatch("key", {"key": []}, None, None))
    with caplog.at_level("INFO"):
        bench.velocity(replayed)
    assert recorder_of(replayed).captures == 0 and "when memory is short" in caplog.text
    layer.weight_function.clear()
    assert torch.equal(bench.velocity(replayed), bench.velocity(plain))


@pytest.mark.usefixtures("on_a_card")
def test_unloading_gives_the_graphs_back():
    replayed = loaded()
    run(replayed)
    network = replayed.model.diffusion_model
    assert network.graphs.recordings and network.graphs.held
    comfy.model_management.unload_all_models()
    assert not network.graphs.recordings and not network.graphs.held


@pytest.mark.usefixtures("on_a_card")
def test_the_host_keeps_the_weights_in_place_and_is_told_twice_the_memory(monkeypatch):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda _: False)
    plain, replayed = loaded(cuda_graphs=False), loaded()
    assert isinstance(plain, Dynamic) and not isinstance(replayed, Dynamic)
    shape = (2, 32, 32, 32)
    told = [patcher.model.memory_required(shape) for patcher in (plain, replayed)]
    assert told[1] == pytest.approx(2 * told[0])


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_on_a_cpu_the_option_changes_nothing(family, caplog):
    with caplog.at_level("INFO"):
        plain, replayed = loaded(family, cuda_graphs=False), loaded(family)
    assert isinstance(replayed.model.diffusion_model, CpuSana)
    assert caplog.text.count("cuda_graphs is on, but has no effect") == 1
    assert torch.equal(bench.velocity(replayed), bench.velocity(plain))
    assert replayed.model.memory_usage_factor == plain.model.memory_usage_factor


@pytest.mark.usefixtures("on_a_card")
def test_a_model_loaded_anew_by_the_host_has_graphs_too():
    replayed = loaded()
    function, arguments = replayed.cached_patcher_init
    assert function(*arguments, disable_dynamic=True).model.diffusion_model.graphs is not None


def test_a_compiler_meets_no_graphs(monkeypatch):
    monkeypatch.setattr("sana_native.models.sana.model.optimized_attention", attention_pytorch)  # as in test_compile.py
    network = bench.fresh_model("sana", cuda_graphs=False).model.diffusion_model
    fast = CudaSana(network.config, dtype=torch.float32, operations=torch.nn).requires_grad_(False)
    fast.graphs = cuda_graph.GraphCache(FakeRecorder())
    given = {
        "x": torch.randn(1, 32, 2, 2),
        "timesteps": torch.ones(1),
        "context": torch.randn(1, 16, tiny.CAPTION_CHANNELS),
    }
    with torch.no_grad():
        for _ in range(3):
            torch.compile(fast, backend="eager", fullgraph=True)(**given)
    assert fast.graphs.recorder.captures == 0
