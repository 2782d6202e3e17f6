"""Gemma-2 with matrix products in bfloat16, for devices that are fast at it: half the bytes and two thirds of the
kernels of the host's layers, and a smaller error than transformers' bfloat16.

In float32 stay the residual stream, norms, the rotation of queries and keys, scores and softmax: none of them reads a
matrix, so a wide one costs nothing.
"""

from typing import NamedTuple

import torch
from comfy.text_encoders import llama
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ..runtime.weight_fingerprint import is_changed
from .model import ATTENTION_SOFTCAP, Gemma2, KeysValues, SoftcapAttention

MATRICES = torch.bfloat16
MASKED = torch.finfo(torch.float32).min


class Scales(NamedTuple):
    """What a layer's four norms multiply by, each (C,) in float32."""

    attention: Tensor
    after_attention: Tensor
    mlp: Tensor
    after_mlp: Tensor


def norms_of(layer: nn.Module) -> list[nn.Module]:
    return [
        layer.input_layernorm,
        layer.post_attention_layernorm,
        layer.pre_feedforward_layernorm,
        layer.post_feedforward_layernorm,
    ]


def is_hosts_own(layer: nn.Module) -> bool:
    """Whether a layer and the parts whose forward is not called here are the host's, without hooks or replacements."""
    parts = [layer, layer.self_attn, *norms_of(layer)]
    kinds = [llama.TransformerBlockGemma2, SoftcapAttention] + 4 * [llama.RMSNorm]
    plain = all(type(part) is kind and not is_changed(part) for part, kind in zip(parts, kinds, strict=True))
    return plain and hasattr(layer.self_attn, "q_proj")  # a newer host can merge it with others


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Rotary embedding of x (B, h, L, d), in float32. rotation: the host's cosines (d) and sines (d / 2), +, -."""
    cos, sin, negative_sin = rotation
    half = sin.shape[-1]
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], negative_sin)
    out[..., half:].addcmul_(x[..., :half], sin)
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Soft-capped attention, as `softcap_attention` but with fewer kernels, in float32.

    q: (B, h, L, d); k, v: (B, g, K, d), h a multiple of g; mask: added, to (B, 1, 1, L, K). Returns (B, h, L, d).
    """
    groups, keys = k.shape[1], k.shape[2]
    rows, columns = q.reshape(-1, q.shape[1] // groups * q.shape[2], q.shape[3]), k.flatten(0, 1).mT
    # The factor is part of the product; what is multiplied by 0 is not read.
    scores = torch.baddbmm(q.new_empty(()), rows, columns, beta=0, alpha=q.shape[3] ** -0.5 / ATTENTION_SOFTCAP)
    scores = scores.tanh_().view(len(q), groups, -1, q.shape[2], keys)
    weights = torch.softmax(torch.add(mask, scores, alpha=ATTENTION_SOFTCAP), dim=-1)
    return (weights.view(-1, rows.shape[1], keys) @ v.float().flatten(0, 1)).view(q.shape)


def self_attention(
    layer: SoftcapAttention, x: Tensor, rotation: tuple, mask: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Of normalized x (B, L, C) in bfloat16, and keys (float32) and values (bfloat16) of all P + L positions."""
    q, k, v = (
        product.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
        for product in (layer.q_proj(x), layer.k_proj(x), layer.v_proj(x))
    )
    # Heads of both in one tensor are rotated by the kernels of one.
    q, k = rotate(torch.cat((q, k), dim=1), rotation).split([layer.num_heads, layer.num_kv_heads], dim=1)
    if past is not None:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    out = attend(q, k, v, mask).transpose(1, 2).to(MATRICES, memory_format=torch.contiguous_format)
    return layer.o_proj(out.flatten(2)), (k, v)


def run_layer(
    layer: nn.Module, x: Tensor, scales: Scales, rotation: tuple, mask: Tensor, past: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x: (B, L, C) in float32, as is what it returns beside the keys and values."""
    size, eps = x.shape[-1:], layer.input_layernorm.eps
    h = rms_norm(x, size, scales.attention, eps).to(MATRICES)
    h, present = self_attention(layer.self_attn, h, rotation, mask, past)
    # A product of the factor and the sum is one kernel, and its factor is not rounded.
    x = torch.addcmul(x, rms_norm(h, size, eps=eps), scales.after_attention)
    h = layer.mlp(rms_norm(x, size, scales.mlp, eps).to(MATRICES))
    return torch.addcmul(x, rms_norm(h, size, eps=eps), scales.after_mlp), present


def causal_mask(known: int, length: int, device: torch.device) -> Tensor:
    """Of L positions after P known ones: 0 where a position attends, (L, P + L)."""
    return torch.full((length, known + length), MASKED, device=device).triu_(known + 1)


class Bfloat16Gemma2(Gemma2):
    """Gemma2 that gives states in float32 from matrix products in bfloat16.

    Text generation is the host's. What other packs have put hooks on or replaced is computed by the host's layers, in
    float32.
    """

    def continue_from(self, past: KeysValues, embeds: Tensor) -> tuple[Tensor, KeysValues]:
        """As Gemma2's; keys are in float32, values in bfloat16, which they are computed in."""
        if not self.is_hosts_own():
            return super().continue_from(past, embeds)
        mask = causal_mask(past[0][0].shape[2] if past else 0, embeds.shape[1], embeds.device)
        x, _, present = self.run(embeds, mask, past)
        return self.normalize(x), present

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        embeds: Tensor | None = None,
        intermediate_output: int | None = None,
        final_layer_norm_intermediate: bool = True,
        **options,
    ) -> tuple[Tensor, Tensor | None]:
        """The host's call for all positions at once: final states (B, L, C) and those after one layer.

        attention_mask: (B, L), 0 for padding.
        """
        known = embeds is not None and attention_mask is not None and isinstance(intermediate_output, int | None)
        if not known or not self.is_hosts_own():
            options |= {"intermediate_output": intermediate_output}
            options |= {"final_layer_norm_intermediate": final_layer_norm_intermediate}
            return super().forward(input_ids, attention_mask, embeds, **options)
        mask = causal_mask(0, embeds.shape[1], embeds.device)
        mask = mask.masked_fill(attention_mask[:, None, None, None] == 0, MASKED)
        x, intermediate, _ = self.run(embeds, mask, [], intermediate_output)
        if intermediate is not None and final_layer_norm_intermediate:
            intermediate = self.normalize(intermediate)
        return self.normalize(x), intermediate

    def run(
        self, x: Tensor, mask: Tensor, past: KeysValues, intermediate: int | None = None
    ) -> tuple[Tensor, Tensor | None, KeysValues]:
        """States after the last layer, those after another, and the keys and values of all positions.

        x: (B, L, C) in float32; mask: added, to (B, 1, 1, L, P + L); intermediate: number of a layer.
        """
        scales = self.scales(x.device)
        known = mask.shape[-1] - mask.shape[-2]
        positions = torch.arange(known, mask.shape[-1], device=x.device)[None]
        rotation = self.model.compute_freqs_cis(positions, x.device)
        chosen, present = None, []
        for i, layer in enumerate(self.model.layers):
            x, keys_values = run_layer(layer, x, scales[i], rotation, mask, past[i] if past else None)
            chosen = x if intermediate in (i, i - len(self.model.layers)) else chosen
            present.append(keys_values)
        return x, chosen, present

    def normalize(self, x: Tensor) -> Tensor:
        """By the last norm."""
        norm = self.model.norm
        return rms_norm(x, x.shape[-1:], norm.weight.to(x) + 1, norm.eps)

    def is_hosts_own(self) -> bool:
        return not is_changed(self.model.norm) and all(map(is_hosts_own, self.model.layers))

    def scales(self, device: torch.device) -> list[Scales]:
        """One per layer. All at once: one by one they would be 8 kernels a layer."""
        weights = [norm.weight.to(device) for layer in self.model.layers for norm in norms_of(layer)]
        scales = (torch.stack(weights).float() + 1).unbind()
        return [Scales(*scales[i : i + 4]) for i in range(0, len(scales), 4)]
