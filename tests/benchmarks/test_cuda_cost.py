"""What DC-AE costs on a CUDA device at full size: kernels, GB moved and peak memory, counted on fake tensors.

The limits are what the field's implementations need, or less: at 1024 px ComfyUI's own class decodes in 415 kernels,
48.6 GB and 1154 MiB and diffusers' in 610, 76.3 and 1666, both counted by the same rules.
"""

import pytest
import torch
from sana_native.benchmarks import fake_cuda, networks
from sana_native.models.dc_ae.inplace import CudaAutoencoderDC
from sana_native.models.dc_ae.memory_estimate import Workload

HALVES = ("decode", "encode")


@pytest.fixture(scope="module")
def network():
    """Both halves, without weights."""
    return networks.autoencoder("ours", "cuda").to(torch.bfloat16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def counted(network):
    """count(stage, size, tile size, batch) -> cost; each is counted once."""
    known = {}

    def count(stage: str, size: int, tile_size: int | None = None, batch: int = 1) -> fake_cuda.Cost:
        key = stage, size, tile_size, batch
        if key not in known:
            shape = (batch, 32, size // 32, size // 32) if stage == "decode" else (batch, 3, size, size)
            with fake_cuda.device():
                x = torch.empty(shape, dtype=torch.bfloat16, device="cuda")
                fake_cuda.move(network).tile_size = tile_size
                known[key] = fake_cuda.count(lambda: getattr(network, stage)(x))
        return known[key]

    return count


def test_the_network_is_the_one_for_a_cuda_device(network):
    assert type(network) is CudaAutoencoderDC


@pytest.mark.parametrize(
    ("stage", "size", "kernels", "gigabytes", "mib"),
    [
        ("decode", 512, 380, 11.5, 200),
        ("decode", 1024, 380, 42, 785),
        ("decode", 2048, 380, 165, 3130),
        ("encode", 512, 350, 9.2, 200),
        ("encode", 1024, 350, 35, 790),
        ("encode", 2048, 350, 138, 3150),
    ],
)
def test_a_whole_image_takes_few_kernels_and_passes_over_memory(counted, stage, size, kernels, gigabytes, mib):
    cost = counted(stage, size)
    assert kernels / 2 < cost.kernels <= kernels
    assert gigabytes / 2 < cost.gigabytes <= gigabytes
    assert mib / 2 < cost.peak_mib <= mib


@pytest.mark.parametrize("stage", HALVES)
def test_nothing_is_copied_between_the_host_and_the_device(counted, stage):
    assert counted(stage, 1024).uploads == []  # from the device to the host is an error of the count itself


@pytest.mark.parametrize("stage", HALVES)
def test_a_batch_is_not_split(counted, stage):
    one, four = counted(stage, 512), counted(stage, 512, batch=4)
    assert four.kernels == one.kernels and four.peak < 4.01 * one.peak


@pytest.mark.parametrize("stage", HALVES)
def test_tiles_take_much_less_memory_and_little_more_traffic(counted, stage):
    whole, tiled = counted(stage, 2048), counted(stage, 2048, 1024)
    assert tiled.peak < 0.36 * whole.peak and tiled.gigabytes < 1.2 * whole.gigabytes and tiled.kernels < 2000


@pytest.mark.parametrize("stage", HALVES)
@pytest.mark.parametrize(
    ("size", "tile_size"), [(512, None), (1024, None), (2048, None), (1024, 512), (2048, 1024)], ids=str
)
def test_the_host_is_told_of_what_is_needed_and_of_little_more(counted, stage, size, tile_size):
    told = Workload(size, size, torch.bfloat16, "cuda").memory(tile_size)
    assert 1 <= told / counted(stage, size, tile_size).peak <= 1.3
