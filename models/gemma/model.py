"""Gemma-2's layers: the host's classes with what they lack, soft-capped logits and continuing from several positions.

Source: Gemma 2, arXiv 2408.00118 section 2.
"""

import torch
from comfy.text_encoders import llama
from torch import Tensor

from ..runtime.precision import FLOAT8

ATTENTION_SOFTCAP = 50.0
LOGIT_SOFTCAP = 30.0  # of the next token's scores, in text generation
KeysValues = list[tuple[Tensor, Tensor]]  # one pair per layer, each (B, g, P, d)


def softcap_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **_) -> Tensor:
    """Softmax attention whose logits tanh limits to +-50.

    q: (B, h, L, d); k, v: (B, g, K, d), h a multiple of g; mask: added to (B, h, L, K). Returns (B, L, h * d).
    """
    q = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # (B, g, h / g * L, d): heads that share keys, one below another
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = torch.tanh(scores / ATTENTION_SOFTCAP) * ATTENTION_SOFTCAP
    if mask is not None:
        scores = (scores.unflatten(2, (heads // k.shape[1], -1)) + mask.unsqueeze(-3)).flatten(2, 3)
    out = torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v
    return out.unflatten(2, (heads // k.shape[1], -1)).flatten(1, 2).transpose(1, 2).flatten(2)


class SoftcapAttention(llama.Attention):
    """The host's attention layer with Gemma-2's soft-capping, whatever attention function it is handed."""

    def forward(self, *args, optimized_attention=None, **kwargs):  # noqa: ARG002 - replaced on purpose
        return super().forward(*args, optimized_attention=softcap_attention, **kwargs)


class Gemma2(llama.Gemma2_2B):
    """Gemma-2 with soft-capped attention; the width and depth come from `config_dict`."""

    def __init__(self, config_dict: dict, dtype, device, operations):
        super().__init__(config_dict, dtype, device, operations)
        self.model.fixed_kv = False  # newer hosts: attention over such a cache passes the soft cap by
        for layer in self.model.layers:
            layer.self_attn = SoftcapAttention(self.model.config, device=device, dtype=dtype, ops=operations)
        if dtype in FLOAT8:  # the norms add one to their weights, which float8 cannot
            for module in self.modules():
                if isinstance(module, llama.RMSNorm):
                    module.to(torch.bfloat16)

    def logits(self, x: Tensor) -> Tensor:
        return torch.tanh(super().logits(x) / LOGIT_SOFTCAP) * LOGIT_SOFTCAP

    def continue_from(self, past: KeysValues, embeds: Tensor) -> tuple[Tensor, KeysValues]:
        """Final states (1, L, C) of positions that follow P known ones, and the keys and values of all P + L.

        embeds: (1, L, C), none of them padding. The host's own loop continues by single positions only.
        """
        network, length = self.model, embeds.shape[1]
        known = past[0][0].shape[2] if past else 0
        positions = torch.arange(known, known + length, device=embeds.device)[None]
        rotation = network.compute_freqs_cis(positions, embeds.device)
        if hasattr(llama, "rope_matrix"):  # newer hosts: else every layer makes one of it
            rotation = llama.rope_matrix(rotation)
        mask = embeds.new_full((length, known + length), -torch.inf).triu_(known + 1)
        x, present = embeds, []
        for i, layer in enumerate(network.layers):
            before = (*past[i], known) if past else ()
            x, (keys, values, _) = layer(x, attention_mask=mask, freqs_cis=rotation, past_key_value=before)
            present.append((keys, values))
        return network.norm(x), present
