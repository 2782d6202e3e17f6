"""What a pass costs on a CUDA device, counted without one: kernels, bytes that they move, and peak memory.

    python -m benchmarks.fake_cuda [--stages decode encode step] [--sizes 512 1024] [--implementation ours] [--ops]

In a test or a script:

    cost = fake_cuda.count_stage("decode", 1024)                   # a pass of `networks.call`, or step by step:

    network = networks.build("decode", "ours", torch.bfloat16, "meta", runs_on="cuda")
    with fake_cuda.device():                                       # the host takes its device for a CUDA one
        fake_cuda.move(network)
        latent = torch.randn(1, 32, 32, 32, dtype=torch.bfloat16, device="cuda")
        cost = fake_cuda.count(lambda: network.decode(latent))
    assert cost.kernels <= 450 and cost.gigabytes <= 46 and cost.peak_mib <= 810

Tensors are fake (torch's FakeTensorMode): they have a shape, a format, a layout and a device, and no values, so any
torch will do. Whatever a CUDA device would have to be waited for raises: a value that the host asks for (`.item()`,
`nonzero`) and a copy to the CPU (`HostCopy`). A pass that can be counted can be captured as a CUDA graph.

The rules. An aten operation is one kernel, a view or an allocation none; composite operations are taken apart first. A
kernel reads every distinct input once, dimensions of stride 0 as one, and writes its outputs once; a lookup reads what
it returns. A convolution is cuDNN's: its bias is an addition of its own, its result has the layout of its input, and
beside channels-last input it copies weights that are not. The peak is of what the pass allocates, its results included,
without the weights and inputs. Not counted: workspaces of cuDNN and cuBLAS, hits in the L2 cache.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .measuring import heading, row, write

STAGES = ("decode", "encode", "step")
MEMORY = 24 * 2**30  # bytes of the device that the host is told of
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Composite operations of torch for which CUDA has one kernel.
FUSED = {"scaled_dot_product_attention", "_fused_rms_norm", "native_layer_norm"}
# Without a kernel, though their results are new memory.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "detach_"}
LOOKUPS = {"embedding", "index", "index_select", "gather"}
OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"}  # without reading what they overwrite
SEVERAL_KERNELS = {"constant_pad_nd": 2}  # a fill and a copy


class HostCopy(RuntimeError):
    """The host waits for the device: values are copied from it to the CPU."""


@dataclass
class Cost:
    """Of one pass. kernel_counts and kernel_bytes are by the operation's name; uploads in bytes, CPU to device."""

    kernel_counts: Counter[str] = field(default_factory=Counter)
    kernel_bytes: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    uploads: list[int] = field(default_factory=list)

    @property
    def kernels(self) -> int:
        return self.kernel_counts.total()

    @property
    def gigabytes(self) -> float:
        return self.kernel_bytes.total() / 1e9

    @property
    def peak_mib(self) -> float:
        return self.peak / 2**20

    def add(self, name: str, moved: int, kernels: int = 1) -> None:
        self.kernel_counts[name] += kernels
        self.kernel_bytes[name] += moved


def is_on_device(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def tensors_in(values) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def size_of(tensor: Tensor) -> int:
    """Bytes, with dimensions of stride 0 as one."""
    positions = (length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return tensor.element_size() * torch.Size(positions).numel()


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def is_composite(operation) -> bool:
    """Whether torch makes it of other operations on a CUDA device, too."""
    name = operation.name()
    if operation.namespace != "aten" or operation._schema.name.partition("::")[2] in FUSED:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, COMPOSITE)


class Counting(TorchDispatchMode):
    """Adds every operation on the device to a cost. Raises HostCopy for one that the host would wait for."""

    def __init__(self):
        super().__init__()
        self.cost = Cost()
        self.live, self.known = 0, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # noqa: ARG002 - torch's signature
        kwargs, name = kwargs or {}, operation._schema.name.partition("::")[2]
        if is_composite(operation):
            with self:
                return operation._op_dk(COMPOSITE, *args, **kwargs)
        inputs = tensors_in((args, kwargs))
        if name == "_local_scalar_dense" and any(map(is_on_device, inputs)):
            raise HostCopy("a value of a tensor on the device is asked for, so the host waits for it")
        result = operation(*args, **kwargs)
        if name == "convolution":
            result = self.convolved(result, *args[:3])
        elif name == "scaled_dot_product_attention":  # the kernels leave it with a token's heads together
            result = result.transpose(1, 2).contiguous().transpose(1, 2)
        self.add(operation, name, inputs, tensors_in(result))
        return result

    def add(self, operation, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        here = [tensor for tensor in outputs if is_on_device(tensor)]
        mutates, storages = operation._schema.is_mutable, {storage_of(tensor) for tensor in inputs}
        for tensor in here:
            if storage_of(tensor) not in storages:  # else a view, maybe of a weight
                self.allocate(tensor)
        is_view = not mutates and all(storage_of(tensor) in storages for tensor in outputs)
        if not outputs or is_view or name in ALLOCATIONS or not any(map(is_on_device, [*inputs, *outputs])):
            return
        if name in ("_to_copy", "copy_") and not all(map(is_on_device, [*inputs, *outputs])):
            if not here:
                raise HostCopy(f"a tensor {tuple(outputs[0].shape)} is copied from the device to the CPU")
            self.cost.uploads.append(size_of(outputs[0]))
            return
        written = sum(map(size_of, here))
        if name in LOOKUPS:
            read = written
        else:
            unread = 1 if name in OVERWRITES else 0
            targets = {id(one) for one in outputs} if "out" in operation._overloadname else set()
            distinct = {
                (storage_of(one), one.storage_offset(), one.shape, one.stride()): one
                for one in inputs[unread:]
                if id(one) not in targets
            }
            read = sum(map(size_of, distinct.values()))
        self.cost.add(name, read + written, SEVERAL_KERNELS.get(name, 1))

    def convolved(self, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The result in cuDNN's layout, after counting what cuDNN does beside the convolution."""
        if is_channels_last(x):
            # A dense kernel of one position or one channel is the same in both layouts.
            if weight.ndim == 4 and not is_channels_last(weight) and not weight.is_contiguous():
                weight = weight.contiguous()
            if not is_channels_last(weight):
                self.cost.add("copy of a convolution's weight", 2 * size_of(weight))
            result = torch.empty_like(result, memory_format=torch.channels_last)
        elif not x.is_contiguous():
            self.cost.add("copy of a convolution's input", 2 * size_of(x))
        if bias is not None:
            self.cost.add("addition of a convolution's bias", 2 * size_of(result))
        return result

    def allocate(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.live += size
        self.cost.peak = max(self.cost.peak, self.live)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def count(run: Callable[[], object]) -> Cost:
    """What run() costs, inside `device()`. Raises HostCopy, and torch's errors for operations that depend on values."""
    counting = Counting()
    with counting:
        result = run()
    del result
    return counting.cost


def host_settings() -> dict[str, object]:
    """Names of the host's model_management -> what they would be with an NVIDIA card, of sm_80 or newer."""
    import comfy.model_management as management

    def memory(_device=None, torch_too: bool = False):
        return (MEMORY, MEMORY) if torch_too else MEMORY

    def on_card(device=None, *_, **__) -> bool:
        return device is None or not management.is_device_cpu(device)

    own = torch.device("cuda", 0)
    normal = management.VRAMState.NORMAL_VRAM
    settings = {"cpu_state": management.CPUState.GPU, "vram_state": normal, "set_vram_to": normal}
    settings |= dict.fromkeys(("get_total_memory", "get_free_memory", "maximum_vram_for_weights"), memory)
    settings |= dict.fromkeys(("should_use_fp16", "should_use_bf16", "supports_fp8_compute"), on_card)
    settings |= dict.fromkeys(("is_nvidia", "pytorch_attention_enabled"), lambda: True)
    settings |= dict.fromkeys(("current_stream", "get_offload_stream", "soft_empty_cache"), lambda *_, **__: None)
    return settings | {"is_amd": lambda: False, "get_torch_device": lambda: own, "synchronize": lambda: None}


@contextmanager
def device() -> Iterator[FakeTensorMode]:
    """Within it tensors are fake, nothing wants a gradient, and the host says that its device is a CUDA one."""
    import comfy.ldm.modules.attention as attention
    import comfy.model_management

    chosen = attention.optimized_attention
    with ExitStack() as stack:
        for name, value in host_settings().items():
            stack.enter_context(mock.patch.object(comfy.model_management, name, value))
        for module in list(sys.modules.values()):  # the host chose at import; so did whoever imported its choice
            if vars(module).get("optimized_attention") is chosen:
                stack.enter_context(mock.patch.object(module, "optimized_attention", attention.attention_pytorch))
        stack.enter_context(torch.inference_mode())
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))


def move(network: torch.nn.Module, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """Gives a network on "meta" fake weights on the device, in their own format or this one; inside `device()`."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device="cuda")
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(fake, requires_grad=False) if parameter else fake
    return network


def count_stage(
    stage: str, size: int, implementation: str = "ours", dtype: torch.dtype = torch.bfloat16, **options
) -> Cost:
    """Of a pass of `networks.call`, for which a step is that of ours. options: of `networks.build`."""
    from . import networks

    network = networks.build(stage, implementation, dtype, "meta", runs_on="cuda", **options)
    with device():
        move(network)
        if stage == "step":
            return count(step(network, size, dtype))
        return count(networks.call(stage, implementation, network, size, dtype, "cuda"))


def step(network: torch.nn.Module, size: int, dtype: torch.dtype, tokens: int = 48, batch: int = 2) -> Callable:
    """A pass of our transformer, inside `device()`. tokens: positions of the longest text, a multiple of 16."""
    side, channels = size // 32, network.config.caption_channels
    latent = torch.empty(batch, 32, side, side, dtype=dtype, device="cuda")
    timesteps = torch.empty(batch, device="cuda")
    context = torch.empty(batch, tokens, channels, dtype=dtype, device="cuda")
    mask = torch.empty(batch, tokens, dtype=dtype, device="cuda")
    return lambda: network(latent, timesteps, context=context, attention_mask=mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--implementation", default="ours")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ops", action="store_true", help="list the operations that move most")
    given = parser.parse_args()
    from demo.train.pack import prepare_imports

    prepare_imports()
    write(heading(("stage", "px", "kernels", "GB", "peak MiB")))
    for stage in given.stages:
        for size in given.sizes:
            cost = count_stage(stage, size, given.implementation, getattr(torch, given.dtype))
            write(row((stage, size, cost.kernels, f"{cost.gigabytes:.2f}", f"{cost.peak_mib:.0f}")))
            for name, moved in cost.kernel_bytes.most_common() if given.ops else ():
                write(f"    {cost.kernel_counts[name]:5} {moved / 1e9:8.3f} GB  {name}")


if __name__ == "__main__":
    main()
