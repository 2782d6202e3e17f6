"""The rules by which kernels, bytes and peak memory are counted on fake CUDA tensors, and what is refused there."""

import comfy.ldm.modules.attention as attention
import comfy.model_management
import pytest
import torch
import torch.nn.functional as F
from sana_native.benchmarks import fake_cuda
from torch._subclasses.fake_tensor import DynamicOutputShapeException

CHANNELS, SIDE = 64, 32
MAP = 2 * CHANNELS * SIDE * SIDE  # bytes in bfloat16
fake = pytest.mark.usefixtures("device")


@pytest.fixture
def device():
    with fake_cuda.device():
        yield


def tensor(*shape: int, dtype=torch.bfloat16, device="cuda") -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=device)


def channels_last(*shape: int) -> torch.Tensor:
    return tensor(*shape).to(memory_format=torch.channels_last)


@fake
def test_an_operation_reads_its_inputs_and_writes_its_outputs_once():
    x, y = tensor(CHANNELS, SIDE, SIDE), tensor(CHANNELS, 1, 1)
    assert fake_cuda.count(lambda: x + x).kernel_bytes == {"add": 2 * MAP}
    assert fake_cuda.count(lambda: x.mul_(y.expand_as(x))).kernel_bytes == {"mul_": 2 * MAP + 2 * CHANNELS}
    assert fake_cuda.count(lambda: x.copy_(x.flip(0))).kernel_bytes == {"flip": 2 * MAP, "copy_": 2 * MAP}


@fake
def test_views_and_allocations_are_no_kernels_but_a_copy_is_one():
    x = tensor(CHANNELS, SIDE, SIDE)
    cost = fake_cuda.count(lambda: torch.empty_like(x.permute(1, 2, 0)[1:].unflatten(2, (2, -1)).reshape(31, -1)))
    assert cost.kernel_counts == {"clone": 1}
    assert fake_cuda.count(lambda: x.reshape(-1).chunk(2)).kernels == 0


@fake
def test_a_lookup_reads_what_it_returns():
    table, tokens = tensor(1000, CHANNELS), torch.empty(SIDE, dtype=torch.long, device="cuda")
    assert fake_cuda.count(lambda: F.embedding(tokens, table)).kernel_bytes == {"embedding": 2 * 2 * SIDE * CHANNELS}


@fake
def test_composite_operations_are_taken_apart_but_for_those_that_cuda_fuses():
    x, weight = tensor(2, 5, CHANNELS), tensor(CHANNELS)
    assert fake_cuda.count(lambda: F.linear(x, tensor(CHANNELS, CHANNELS), weight)).kernel_counts == {"addmm": 1}
    assert fake_cuda.count(lambda: F.rms_norm(x, (CHANNELS,), weight)).kernel_counts == {"_fused_rms_norm": 1}
    q = tensor(1, 8, 16, 72)
    name = "scaled_dot_product_attention"
    assert fake_cuda.count(lambda: F.scaled_dot_product_attention(q, q, q)).kernel_counts == {name: 1}
    tokens = fake_cuda.count(lambda: F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))
    assert tokens.kernel_counts == {name: 1}  # a view: flash, memory-efficient and cuDNN's attention lay it out so
    x = channels_last(1, CHANNELS, SIDE, SIDE)
    assert fake_cuda.count(lambda: F.interpolate(x, scale_factor=2)).kernel_counts == {"upsample_nearest2d": 1}


@fake
def test_a_convolution_is_cudnns():
    x, bias, results = channels_last(1, CHANNELS, SIDE, SIDE), tensor(CHANNELS), []
    weight, copy, added = (
        tensor(CHANNELS, CHANNELS, 3, 3),
        "copy of a convolution's weight",
        "addition of a convolution's bias",
    )
    cost = fake_cuda.count(lambda: results.append(F.conv2d(x, weight, bias, padding=1)))
    assert cost.kernel_counts == {"convolution": 1, copy: 1, added: 1} and cost.kernel_bytes[added] == 2 * MAP
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    kernels = fake_cuda.count(
        lambda: F.conv2d(x, weight.to(memory_format=torch.channels_last), padding=1)
    ).kernel_counts
    assert kernels == {"_to_copy": 1, "convolution": 1}
    for plain in (tensor(CHANNELS, CHANNELS, 1, 1), tensor(CHANNELS, 1, 3, 3)):
        groups = CHANNELS // plain.shape[1]
        assert fake_cuda.count(lambda plain=plain, groups=groups: F.conv2d(x, plain, groups=groups)).kernels == 1


@fake
def test_the_peak_is_of_what_is_alive_at_once_without_weights_and_inputs():
    x = tensor(CHANNELS, SIDE, SIDE)
    assert fake_cuda.count(lambda: x.view(-1).neg().neg().neg()).peak == 2 * MAP
    assert fake_cuda.count(lambda: x.neg().neg_()).peak == MAP
    assert fake_cuda.count(lambda: [x.neg() for _ in range(3)]).peak == 3 * MAP
    assert fake_cuda.count(lambda: x.view(-1).mul_(2)).peak == 0


@fake
@pytest.mark.parametrize("run", [torch.Tensor.item, bool, float], ids=lambda run: run.__name__)
def test_a_value_that_the_host_asks_for_is_refused(run):
    x = tensor(1)
    with pytest.raises(fake_cuda.HostCopy, match="a value of a tensor on the device is asked for"):
        fake_cuda.count(lambda: run(x))


@fake
def test_a_copy_to_the_cpu_is_refused():
    x, target = tensor(3, 5), torch.empty(3, 5)
    for run in (x.cpu, lambda: x.to("cpu", torch.float32), lambda: target.copy_(x)):
        with pytest.raises(fake_cuda.HostCopy, match=r"a tensor \(3, 5\) is copied from the device to the CPU"):
            fake_cuda.count(run)


@fake
def test_a_shape_that_depends_on_values_is_refused():
    x = tensor(3)
    with pytest.raises(DynamicOutputShapeException):
        fake_cuda.count(x.nonzero)


@fake
def test_uploads_are_told_from_kernels_and_work_on_the_cpu_is_free():
    x = torch.empty(3, 5)
    cost = fake_cuda.count(lambda: (x + 1).to("cuda"))
    assert cost.uploads == [60] and cost.kernels == 0
    assert fake_cuda.count(lambda: torch.tensor([1.0], device="cuda")).uploads == [4]


@fake
def test_the_host_says_that_its_device_is_a_cuda_one():
    management = comfy.model_management
    own = torch.device("cuda", 0)
    assert management.get_torch_device() == management.vae_device() == management.text_encoder_device() == own
    assert management.intermediate_device().type == management.unet_offload_device().type == "cpu"
    assert management.vae_dtype(own, [torch.bfloat16, torch.float32]) == torch.bfloat16
    assert not management.should_use_bf16(torch.device("cpu")) and management.is_nvidia()
    assert management.get_free_memory(own) == fake_cuda.MEMORY == management.get_free_memory(own, True)[0]
    assert attention.optimized_attention is attention.attention_pytorch


def test_afterwards_the_host_and_tensors_are_as_before():
    before = {name: getattr(comfy.model_management, name) for name in fake_cuda.host_settings()}
    chosen = attention.optimized_attention
    with pytest.raises(ZeroDivisionError), fake_cuda.device():
        assert any(getattr(comfy.model_management, name) is not value for name, value in before.items())
        raise ZeroDivisionError
    assert all(getattr(comfy.model_management, name) is value for name, value in before.items())
    assert attention.optimized_attention is chosen
    assert torch.ones(2, requires_grad=True).sum().item() == 2 and torch.is_grad_enabled()
