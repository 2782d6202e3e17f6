"""The linear diffusion transformer of SANA, SANA-1.5 and SANA-Sprint.

Source: SANA, arXiv 2410.10629 section 3.2; SANA-1.5, arXiv 2501.18427 (qk-norm); SANA-Sprint, arXiv 2503.09641
(guidance embedding). Module names are those of diffusers' SanaTransformer2DModel, unfused, so that stock LoRA nodes
find their layers.
Not here: embeddings and modulation (`embeddings.py`), key layouts of files (`convert.py`), the noise schedule
(`model_sampling.py`), what makes the network fast on a CPU (`cpu.py`).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor, nn

from ..layers import linear_attention_of_tokens, mask_bias
from ..runtime.attention_patches import ATTN1, ATTN2, NO_PATCHES, with_block_patches
from ..runtime.network_calls import call_replacement, call_wrapped, find_block_replacement
from ..runtime.prefetch import prefetched
from .config import SELF_ATTENTION_HEAD_DIM, SanaConfig
from .embeddings import MLPEmbedder, ScaleShiftTable, TimeEmbed, add_position_embedding, gelu_tanh, modulate

QK_NORM_EPS = 1e-5
FLOAT16_MAX = 65504.0


class LiteLA(nn.Module):
    """ReLU linear self-attention, heads of 32 channels. (B, N, C) -> (B, N, C)."""

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.clamp = config.clamp_attention
        self.to_q = operations.Linear(size, size, bias=False, **kw)
        self.to_k = operations.Linear(size, size, bias=False, **kw)
        self.to_v = operations.Linear(size, size, bias=False, **kw)
        self.norm_q = operations.RMSNorm(size, eps=QK_NORM_EPS, **kw) if config.qk_norm else nn.Identity()
        self.norm_k = operations.RMSNorm(size, eps=QK_NORM_EPS, **kw) if config.qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([operations.Linear(size, size, **kw)])

    def forward(self, x: Tensor, transformer_options: dict) -> Tensor:
        patches = transformer_options.get(ATTN1, NO_PATCHES)
        q, k, v = patches.inputs(x, x, x)
        q, k, v = self.norm_q(self.to_q(q)), self.norm_k(self.to_k(k)), self.to_v(v)
        out = self.to_out[0](patches.attend(self.attend, q, k, v))
        # Networks trained in float16 have learnt to saturate here; in a wider format the clamp must be explicit.
        clamp = x.dtype == torch.float16 if self.clamp is None else self.clamp
        return patches.output(out.clamp(-FLOAT16_MAX, FLOAT16_MAX) if clamp else out)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention_of_tokens(q, k, v, SELF_ATTENTION_HEAD_DIM)


class CrossAttention(nn.Module):
    """Softmax attention from image to text. x (B, N, C), context (B, L, C), bias (B, 1, L) or None -> (B, N, C)."""

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.num_heads = config.num_cross_attention_heads
        self.to_q = operations.Linear(size, size, **kw)
        self.to_k = operations.Linear(size, size, **kw)
        self.to_v = operations.Linear(size, size, **kw)
        self.norm_q = operations.RMSNorm(size, eps=QK_NORM_EPS, **kw) if config.qk_norm else nn.Identity()
        self.norm_k = operations.RMSNorm(size, eps=QK_NORM_EPS, **kw) if config.qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([operations.Linear(size, size, **kw)])

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        patches = transformer_options.get(ATTN2, NO_PATCHES)
        q, k, v = patches.inputs(x, context, context)
        q, k, v = self.norm_q(self.to_q(q)), self.norm_k(self.to_k(k)), self.to_v(v)
        attend = partial(self.attend, bias=bias, transformer_options=transformer_options)
        return patches.output(self.to_out[0](patches.attend(attend, q, k, v)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        mask = None if bias is None else bias.expand(-1, q.shape[1], -1)
        return optimized_attention(q, k, v, self.num_heads, mask=mask, transformer_options=transformer_options)


class GLUMBConv(nn.Module):
    """SANA's Mix-FFN: inverted bottleneck with a 3x3 depthwise convolution and a SiLU gate, without norm or residual.

    Its 1x1 convolutions are linear layers on tokens; files keep them as (N, K, 1, 1).
    forward: x (B, N, C) of a grid (H, W) with N = H * W -> (B, N, C).
    """

    def __init__(self, channels: int, hidden_channels: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw, inner = {"dtype": dtype, "device": device}, 2 * hidden_channels
        self.conv_inverted = operations.Linear(channels, inner, **kw)
        self.conv_depth = operations.Conv2d(inner, inner, 3, padding=1, groups=inner, **kw)
        self.conv_point = operations.Linear(hidden_channels, channels, bias=False, **kw)
        self.depthwise_lora: nn.Module | None = None  # what no depthwise weight can hold (`models/lora/depthwise.py`)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = F.silu(self.conv_inverted(x)).transpose(1, 2).unflatten(2, grid)  # (B, N, D) -> (B, D, H, W)
        x = self.depthwise(x).flatten(2).transpose(1, 2)  # -> (B, N, D)
        x, gate = x.chunk(2, dim=-1)
        return self.conv_point(F.silu(gate) * x)

    def depthwise(self, x: Tensor) -> Tensor:
        return self.conv_depth(x) if self.depthwise_lora is None else self.conv_depth(x) + self.depthwise_lora(x)


def middle_block(config: SanaConfig) -> int:
    """The block that guidance by perturbed attention acts on: 8 in SANA 1.6B, else 14, as in the reference."""
    if config.depth == 20 and not config.qk_norm:
        return 8
    return 14 if config.depth > 14 else config.depth // 2


class SanaBlock(nn.Module):
    """Linear self-attention, cross-attention and Mix-FFN.

    x (B, N, C), context (B, L, C), modulation (B, 6, C) -> (B, N, C).
    """

    self_attention, cross_attention, feed_forward = LiteLA, CrossAttention, GLUMBConv

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.scale_shift_table = ScaleShiftTable(6, config.hidden_size, **kw)
        self.attn1 = self.self_attention(config, operations=operations, **kw)
        self.attn2 = self.cross_attention(config, operations=operations, **kw)
        self.ff = self.feed_forward(config.hidden_size, config.mlp_hidden_size, operations=operations, **kw)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor | None,
        modulation: Tensor,
        grid: tuple[int, int],
        transformer_options: dict,
    ) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.scale_shift_table(modulation)
        x = torch.addcmul(x, gate_msa, self.attn1(modulate(x, shift_msa, scale_msa), transformer_options))
        x = x + self.attn2(x, context, bias, transformer_options)  # neither normalized nor gated
        return torch.addcmul(x, gate_mlp, self.ff(modulate(x, shift_mlp, scale_mlp), grid))


class Sana(nn.Module):
    """SANA's denoising network.

    forward:
        x: (B, 32, H, W) noisy latent, scaled to unit variance.
        timesteps: (B,) noise level in [0, 1000]; in [0, 1] for SANA-Sprint.
        context: (B, L, caption_channels) states of the text encoder.
        attention_mask: (B, L), 1 for a token and 0 for padding, or None when every position counts.
        guidance: (B,) guidance scale embedded by SANA-Sprint.
        control: {"input": residuals (B, N, C) or None, one a block}, added to the block's input; the host's contract.
        Returns the velocity, noise - x0, (B, 32, H, W).
    """

    block = SanaBlock

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.config = config
        self.dtype = dtype
        self.in_channels = config.in_channels  # which nodes of the host read
        self.patch_embed = nn.Module()
        self.patch_embed.proj = operations.Conv2d(config.in_channels, size, 1, **kw)
        self.time_embed = TimeEmbed(config, operations=operations, **kw)
        self.caption_projection = MLPEmbedder(config.caption_channels, size, gelu_tanh, operations=operations, **kw)
        self.caption_norm = operations.RMSNorm(size, eps=1e-5, **kw)
        self.transformer_blocks = nn.ModuleList(
            self.block(config, operations=operations, **kw) for _ in range(config.depth)
        )
        self.scale_shift_table = ScaleShiftTable(2, size, **kw)
        self.proj_out = operations.Linear(size, config.out_channels, **kw)
        self.middle_block = middle_block(config)
        self.heads = {
            ATTN1: (size // SELF_ATTENTION_HEAD_DIM, SELF_ATTENTION_HEAD_DIM),
            ATTN2: (config.num_cross_attention_heads, size // config.num_cross_attention_heads),
        }

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        guidance: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - the host's own signature; never written to
        **kwargs,
    ) -> Tensor:
        args = x, timesteps, context, attention_mask, guidance, transformer_options
        return call_wrapped(self, self._forward, transformer_options, *args, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        guidance: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - as above
        control: dict | None = None,
        **kwargs,  # noqa: ARG002 - conditionings of other nodes
    ) -> Tensor:
        shape, dtype = x.shape, x.dtype
        # Contiguous once here: every later sum keeps the layout, and LayerNorm would copy any other.
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2).contiguous()  # (B, N, C)
        if self.config.interpolation_scale is not None:
            x = add_position_embedding(x, shape[-2:], self.config.sample_size, self.config.interpolation_scale)

        modulation, embedding = self.time_embed(timesteps, guidance, dtype)
        context = self.caption_norm(self.caption_projection(context))
        bias = mask_bias(attention_mask, dtype)

        x = self._run_blocks(x, context, bias, modulation, shape, control, transformer_options)

        shift, scale = self.scale_shift_table(embedding[:, None])
        x = self.proj_out(modulate(x, shift, scale))
        return x.transpose(1, 2).unflatten(2, shape[-2:])

    def block_modulations(self, modulation: Tensor) -> list:
        """What every block is given as its modulation: here the one (B, 6, C) that all share."""
        return [modulation] * len(self.transformer_blocks)

    def _run_blocks(self, x, context, bias, modulation, shape, control, transformer_options: dict) -> Tensor:
        options = transformer_options | {"total_blocks": len(self.transformer_blocks), "block_type": "double"}
        residuals = {} if control is None else dict(enumerate(control.get("input") or ()))
        rows = self.block_modulations(modulation)
        for i, block in enumerate(prefetched(self.transformer_blocks, x.device, options)):
            options = options | {"block_index": i}
            own = with_block_patches(options, i, self.middle_block, shape, self.heads)
            x = x if residuals.get(i) is None else x + residuals[i].to(x.dtype)
            replacement = find_block_replacement(transformer_options, i)
            if replacement is None:
                x = block(x, context, bias, rows[i], shape[-2:], own)
                continue

            def original(args: dict, block=block) -> Tensor:
                return block(args["img"], args["txt"], bias, args["vec"], shape[-2:], args["transformer_options"])

            args = {"img": x, "txt": context, "vec": modulation, "transformer_options": own}
            x, context = call_replacement(replacement, original, args)
        last = residuals.get(len(self.transformer_blocks))
        return x if last is None else x + last.to(x.dtype)
