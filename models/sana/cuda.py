"""SANA's network on a CUDA device: the same keys and sums as `model.py`, in fewer kernels that move fewer bytes.

Eager SANA waits for the launches of its many small kernels and, on all but the largest cards, for the memory. Chosen
once, by the loader. Wherever a gradient is wanted or a compiler fuses the kernels, the plain computation takes its
place.
"""

from functools import partial
from typing import NamedTuple

import comfy.quant_ops
import torch
from torch import Tensor

from ..runtime.cuda_graph import GraphCache
from ..runtime.layer_weights import cast_weights, needs_no_cast
from ..runtime.overwrite import can_overwrite
from .config import SELF_ATTENTION_HEAD_DIM, SanaConfig
from .embeddings import LAYER_NORM_EPS
from .inplace import InplaceBlock, InplaceMixFFN, modulate_inplace
from .model import GLUMBConv, LiteLA, Sana, SanaBlock

# As `supported_models.MEMORY_FACTOR_AT_2240`: 3.0 at every size as `benchmarks/fake_cuda.py` counts it, with a margin
# for what kernels need besides.
MEMORY_FACTOR_AT_2240 = 3.5


class Prepared(NamedTuple):
    """One block's modulation: what all blocks share (B, 6, C), and its own rows of `add_tables`, (B, 1, C) each."""

    shared: Tensor
    rows: tuple[Tensor, ...]


def linear_attention_in_casts(q: Tensor, k: Tensor, v: Tensor, head_dim: int, eps: float = 1e-15) -> Tensor:
    """`linear_attention_of_tokens` whose ReLU, division, casts and changes of layout share their kernels.

    A kernel of torch on CUDA reads and writes any format and layout while it computes; on other devices the same calls
    make copies.
    """
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in (q, k, v))  # (B, h, N, d)
    state = relu_fp32(k).mT @ with_ones_fp32(v)  # (B, h, d, d + 1), the last column for the normalizer
    out = relu_fp32(q) @ state
    result = q.new_empty(q.transpose(1, 2).shape)  # (B, N, h, d)
    torch.div(out[..., :-1], out[..., -1:] + eps, out=result.transpose(1, 2))
    return result.flatten(2)


def relu_fp32(x: Tensor) -> Tensor:
    """ReLU into a contiguous float32 tensor; of torch's operations that are a ReLU this one casts its result."""
    return torch.threshold(x, 0, 0, out=x.new_empty(x.shape, dtype=torch.float32))


def with_ones_fp32(x: Tensor) -> Tensor:
    """(..., d) -> (..., d + 1) with ones at the end, contiguous in float32."""
    out = x.new_empty((*x.shape[:-1], x.shape[-1] + 1), dtype=torch.float32)
    out[..., :-1].copy_(x)
    out[..., -1].fill_(1.0)
    return out


def has_fused_adaln() -> bool:
    """Whether the host's kernel package has LayerNorm, scale and shift as one kernel, and not as torch's operations."""
    package = getattr(comfy.quant_ops, "ck", None)
    if not hasattr(package, "adaln"):
        return False
    backends = package.list_backends().items()
    return any(
        name != "eager" and each["available"] and not each["disabled"] and "adaln" in each["capabilities"]
        for name, each in backends
    )


def add_tables(tables: Tensor, modulation: Tensor, fused: bool) -> list[tuple[Tensor, ...]]:
    """Shift, scale and gate of both branches for every block, (B, 1, C) each.

    tables: of n blocks (n, 6, C). modulation: (B, 6, C), which they share. fused: a kernel will add 1 to the scales;
    else it is added here.
    """
    rows = modulation.new_empty(len(tables), *modulation.transpose(0, 1).shape)  # each as the fused kernel wants it
    torch.add(tables[:, :, None], modulation.transpose(0, 1), out=rows)  # (n, 6, B, C)
    if not fused:
        rows[:, 1::3] += 1
    return [tuple(block[:, :, None].unbind(0)) for block in rows]


class CudaLiteLA(LiteLA):
    """Self-attention with a cast inside every kernel."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not can_overwrite():
            return super().attend(q, k, v)
        return linear_attention_in_casts(q, k, v, SELF_ATTENTION_HEAD_DIM)


class CudaGLUMBConv(InplaceMixFFN, GLUMBConv):
    """Mix-FFN that activates in place."""


class CudaSanaBlock(InplaceBlock, SanaBlock):
    """A block that takes its rows as `CudaSana` has added them for all blocks, or adds them itself."""

    self_attention, feed_forward = CudaLiteLA, CudaGLUMBConv
    fused_adaln = False

    def forward(self, x, context, bias, modulation, grid, transformer_options: dict) -> Tensor:
        if isinstance(modulation, Prepared) and not can_overwrite():  # a compiler has this block alone
            modulation = modulation.shared
        return super().forward(x, context, bias, modulation, grid, transformer_options)

    def rows(self, modulation: Tensor | Prepared) -> tuple[Tensor, ...]:
        if isinstance(modulation, Prepared):
            return modulation.rows
        with cast_weights(self.scale_shift_table, modulation) as (table, _):
            return add_tables(table[None], modulation, self.fused_adaln)[0]

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        if self.fused_adaln:
            return comfy.quant_ops.ck.adaln(x, scale, shift, LAYER_NORM_EPS)
        return modulate_inplace(x, shift, scale)


class CudaSana(Sana):
    """SANA's denoising network for a CUDA device. graphs: where a pass is replayed from; None to run it each time."""

    block = CudaSanaBlock
    graphs: GraphCache | None = None

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations=None):
        super().__init__(config, dtype=dtype, device=device, operations=operations)
        fused = has_fused_adaln()
        for block in self.transformer_blocks:
            block.fused_adaln = fused

    def _forward(self, x, timesteps, context, attention_mask=None, guidance=None, transformer_options={}, **kwargs):  # noqa: B006 - as there
        inputs = (x, timesteps, context, attention_mask, guidance)
        if self.graphs is None or torch.compiler.is_compiling():
            return super()._forward(*inputs, transformer_options, **kwargs)
        control = kwargs.get("control")
        names = ("x", "timesteps", "context", "attention_mask", "guidance")
        forward = partial(super()._forward, transformer_options=transformer_options, control=control)
        options = transformer_options | {"control": control}
        return self.graphs.run(self, forward, dict(zip(names, inputs, strict=True)), options)

    def block_modulations(self, modulation: Tensor) -> list[Tensor] | list[Prepared]:
        """All tables at once, unless the host must still bring them, a block at a time."""
        tables = [block.scale_shift_table for block in self.transformer_blocks]
        if not can_overwrite() or not all(needs_no_cast(table, modulation) for table in tables):
            return super().block_modulations(modulation)
        weights = torch.stack([table.weight for table in tables])
        rows = add_tables(weights, modulation, self.transformer_blocks[0].fused_adaln)
        return [Prepared(modulation, own) for own in rows]
