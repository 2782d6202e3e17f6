"""What SANA's block overwrites because no one else needs it: the same sums as in `model.py`, with less memory.

Shared by the networks for a CPU (`cpu.py`) and a CUDA device (`cuda.py`), which put these classes before the plain
ones. Where a gradient is wanted or a compiler plans the memory, the plain computation takes their place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.overwrite import can_overwrite
from .embeddings import LAYER_NORM_EPS


def modulate_inplace(x: Tensor, shift: Tensor, one_plus_scale: Tensor) -> Tensor:
    """`modulate` whose result takes the place of the normalized tokens; x stays."""
    x = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    return torch.addcmul(shift, x, one_plus_scale, out=x)


class InplaceMixFFN:
    """Mix-FFN that activates in place; before `GLUMBConv`."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if not can_overwrite():
            return super().forward(x, grid)
        x = F.silu(self.conv_inverted(x), inplace=True).transpose(1, 2).unflatten(2, grid)
        x = self.depthwise(x).flatten(2).transpose(1, 2)
        x, gate = x.chunk(2, dim=-1)
        return self.conv_point(F.silu(gate, inplace=True) * x)


class InplaceBlock:
    """A block that adds in place, once the residual stream is its own; before `SanaBlock`."""

    def forward(self, x, context, bias, modulation, grid, transformer_options: dict) -> Tensor:
        if not can_overwrite():
            return super().forward(x, context, bias, modulation, grid, transformer_options)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.rows(modulation)
        # Not in place: x is the caller's, and a patch may want to compare it with the result.
        x = torch.addcmul(x, gate_msa, self.attn1(self.modulate(x, shift_msa, scale_msa), transformer_options))
        x.add_(self.attn2(x, context, bias, transformer_options))
        return x.addcmul_(gate_mlp, self.ff(self.modulate(x, shift_mlp, scale_mlp), grid))

    def rows(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Modulation (B, 6, C) that all blocks share -> shift, scale and gate of both branches, (B, 1, C) each."""
        return self.scale_shift_table(modulation)

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return modulate_inplace(x, shift, 1 + scale)
