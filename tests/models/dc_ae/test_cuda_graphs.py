"""Decodes of DC-AE that are replayed give the same images; a recorder stands for the GPU."""

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from sana_native.models.dc_ae import loader
from sana_native.models.dc_ae.inplace import CudaAutoencoderDC, InplaceAutoencoderDC
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.dc_ae.vae import decoding
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.fake_cuda_graph import POOL, FakeRecorder, record_on_the_cpu


@pytest.fixture
def on_a_card(monkeypatch):
    """DC-AE's network for a CUDA device, on the CPU."""
    monkeypatch.setattr(loader, "choose_network", lambda _: CudaAutoencoderDC)
    record_on_the_cpu(monkeypatch)


def loaded(cuda_graphs: bool = True):
    return load_dc_ae(str(bench.folder() / "sana"), {"cuda_graphs": cuda_graphs})


def latent(seed: int, size: int = 128) -> torch.Tensor:
    return bench.clean_latent(size, size, seed)["samples"]


def recorder_of(vae) -> FakeRecorder:
    return vae.first_stage_model.decoder.graphs.recorder


@torch.inference_mode()
def check(vae, plain, samples: torch.Tensor) -> torch.Tensor:
    found = vae.decode(samples)
    assert torch.equal(found, plain.decode(samples))
    return found


@pytest.mark.usefixtures("on_a_card")
def test_the_second_decode_of_a_size_is_captured_and_later_ones_replayed():
    plain, vae = loaded(cuda_graphs=False), loaded()
    first = check(vae, plain, latent(1))
    kept = first.clone()
    for seed in (2, 3, 4):
        check(vae, plain, latent(seed))
    assert torch.equal(first, kept)
    assert recorder_of(vae).captures == 1 and recorder_of(vae).replays == 1 + 3
    for _ in range(2):
        check(vae, plain, latent(5, 64))
    assert recorder_of(vae).captures == 2


@pytest.mark.usefixtures("on_a_card")
def test_tiles_run_as_usual(monkeypatch):
    vae, plain = loaded(), loaded(cuda_graphs=False)
    for one in (vae, plain):
        monkeypatch.setattr(one.patcher, "get_free_memory", lambda _: 0)
    for _ in range(3):
        check(vae, plain, latent(1, 512))
    assert recorder_of(vae).captures == 0


@pytest.mark.usefixtures("on_a_card")
def test_encoding_has_no_graphs():
    vae, plain = loaded(), loaded(cuda_graphs=False)
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(vae.encode(bench.picture()), plain.encode(bench.picture()))
    assert recorder_of(vae).captures == 0


@pytest.mark.usefixtures("on_a_card")
def test_what_graphs_hold_is_told_for_every_decode_until_the_unloading():
    vae, other = loaded(), loaded(cuda_graphs=False)
    workload = decoding(latent(1).shape, vae.vae_dtype, vae.device)
    before = vae.needed(workload), other.needed(workload), other.free_memory(10**9)
    with torch.inference_mode():
        for seed in (1, 2):
            vae.decode(latent(seed))
    after = vae.needed(workload), other.needed(workload), other.free_memory(10**9)
    assert after == (before[0] + POOL, before[1] + POOL, before[2] - POOL)
    comfy.model_management.unload_all_models()
    assert (vae.needed(workload), other.needed(workload), other.free_memory(10**9)) == before


@pytest.mark.usefixtures("on_a_card")
def test_the_host_keeps_the_weights_in_place(monkeypatch):
    class Dynamic(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    assert isinstance(loaded(cuda_graphs=False).patcher, Dynamic) and not isinstance(loaded().patcher, Dynamic)


def test_on_a_cpu_the_option_changes_nothing(caplog):
    with caplog.at_level("INFO"):
        plain, vae = loaded(cuda_graphs=False), loaded()
    assert type(vae.first_stage_model) is InplaceAutoencoderDC
    assert caplog.text.count("cuda_graphs is on, but has no effect") == 1
    for seed in (1, 2, 3):
        check(vae, plain, latent(seed))
