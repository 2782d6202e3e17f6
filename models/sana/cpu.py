"""SANA's network on a CPU: the same keys and sums as `model.py`, with less memory and fewer products.

Chosen once, by the loader. Wherever a gradient is wanted, a compiler plans the memory, a patch wants to see the
attention, or a layer is not the host's plain one, the plain computation takes its place.
"""

from functools import reduce
from itertools import groupby
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import apply_kv_state, kv_state, split_heads_fp32
from ..runtime.attention_patches import ATTN2
from ..runtime.cpu.absorbed_attention import TextKV, drop_masked_tokens
from ..runtime.cpu.malloc import raise_mmap_threshold
from ..runtime.layer_weights import cast_weights, is_plain_layer
from ..runtime.overwrite import can_overwrite
from .config import SELF_ATTENTION_HEAD_DIM
from .inplace import InplaceBlock, InplaceMixFFN
from .model import CrossAttention, GLUMBConv, LiteLA, Sana, SanaBlock

STRIP_TOKENS = 128  # 1 to 2 MB of float32 at SANA's widths, which stay in a core's cache


def linear_attention_in_strips(q: Tensor, k: Tensor, v: Tensor, head_dim: int, eps: float = 1e-15) -> Tensor:
    """`linear_attention_of_tokens` strip by strip, so that nothing in float32 is as long as the image."""
    q, k, v = (x.unflatten(-1, (-1, head_dim)).split(STRIP_TOKENS, dim=1) for x in (q, k, v))
    strips = (kv_state(split_heads_fp32(F.relu(keys)), split_heads_fp32(values)) for keys, values in zip(k, v))
    state = reduce(add, strips)
    out = [apply_kv_state(split_heads_fp32(F.relu(each)), state, eps).to(each.dtype).flatten(2) for each in q]
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)


class CpuLiteLA(LiteLA):
    """Self-attention in strips of tokens."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().attend(q, k, v)
        return linear_attention_in_strips(q, k, v, SELF_ATTENTION_HEAD_DIM)


class CpuCrossAttention(CrossAttention):
    """Cross-attention that projects the tokens of a short text in place of the pixels."""

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        observed = ATTN2 in transformer_options or "optimized_attention_override" in transformer_options
        plain = is_plain_layer(self.to_q) and is_plain_layer(self.to_out[0])
        if observed or not plain or x.device.type != "cpu" or not can_overwrite():
            return super().forward(x, context, bias, transformer_options)
        rows = list(zip(context, [None] * len(context) if bias is None else bias[:, 0], strict=True))
        # A row with NaN equals none, not even itself.
        first = [
            next((i for i, other in enumerate(rows[:n]) if is_same_text(row, other)), n) for n, row in enumerate(rows)
        ]
        parts, start = [], 0
        for row, count in ((row, len(list(group))) for row, group in groupby(first)):  # one text's images together
            parts.append(self.attend_to_text(x[start : start + count], *rows[row], transformer_options))
            start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def attend_to_text(self, x: Tensor, context: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        """x (B, N, C) of images with the same text, states (L, C) and bias (L,) -> (B, N, C)."""
        context, bias = drop_masked_tokens(context, bias)
        text = TextKV(self.norm_k(self.to_k(context)), self.to_v(context), bias, self.num_heads)
        if len(text) == 1:
            return text.attend_to_one(self.to_out[0]).expand_as(x)
        pixels = x.flatten(0, 1)
        if not text.is_cheaper(len(pixels)):
            q, k, v = self.norm_q(self.to_q(x)), *(part.expand(len(x), -1, -1) for part in (text.k, text.v))
            bias = None if bias is None else bias.expand(len(x), 1, -1)
            return self.to_out[0](self.attend(q, k, v, bias, transformer_options))
        if isinstance(self.norm_q, nn.Identity) and text.is_cheaper_for_queries(len(pixels)):
            with cast_weights(self.to_q, x) as weights:
                scores = text.scores(pixels, *weights)
        else:
            scores = text.scores_of_queries(self.norm_q(self.to_q(pixels)))
        with cast_weights(self.to_out[0], x) as weights:
            return text.attend(scores, *weights).unflatten(0, x.shape[:2])


def is_same_text(row: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    """Whether two rows of a batch have equal states (L, C) and biases (L,)."""
    (states, bias), (other_states, other_bias) = row, other
    return torch.equal(states, other_states) and (bias is None or torch.equal(bias, other_bias))


class CpuGLUMBConv(InplaceMixFFN, GLUMBConv):
    """Mix-FFN that activates in place."""


class CpuSanaBlock(InplaceBlock, SanaBlock):
    """A block that adds in place."""

    self_attention, cross_attention, feed_forward = CpuLiteLA, CpuCrossAttention, CpuGLUMBConv


class CpuSana(Sana):
    """SANA's denoising network for a CPU."""

    block = CpuSanaBlock


def cpu_network() -> type[Sana]:
    """The network for a model that is to run on a CPU; called once for each model that is built."""
    raise_mmap_threshold()
    return CpuSana
