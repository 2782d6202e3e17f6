"""The linear diffusion transformer of SANA, SANA-1.5 and SANA-Sprint.

Source: SANA, arXiv 2410.10629 section 3.2; SANA-1.5, arXiv 2501.18427 (qk-norm); SANA-Sprint, arXiv 2503.09641
(guidance embedding). Module names are those of diffusers' SanaTransformer2DModel, unfused, so that stock LoRA nodes
find their layers.
Not here: NVIDIA's fused key layout (`convert.py`), the noise schedule (`model_sampling.py`).
"""

from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.ops import cast_to_input
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

from ..layers import GLUMBConv, linear_attention_of_tokens
from ..runtime.cpu import absorbed_attention as few_words
from ..runtime.cpu.absorbed_attention import Words
from ..runtime.cpu.malloc import raise_mmap_threshold
from ..runtime.layer_weights import cast_weights, is_plain_layer
from ..runtime.overwrite import can_overwrite
from ..runtime.weight_fingerprint import lent_weights
from .config import SELF_ATTENTION_HEAD_DIM, SanaConfig
from .kept_words import KEPT_WORDS, same

FREQUENCY_CHANNELS = 256  # sinusoid width of the time and guidance embeddings
QK_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6
MASK_BIAS = -10000.0  # the reference's bias for padding; finite, so it is exact in float16 too
FLOAT16_MAX = 65504.0
DENSE_CHANGES = "sana_dense_changes"  # in transformer_options: index of a block -> changes of its depthwise convolution


def position_embedding(height: int, width: int, hidden_size: int, base_size: int, scale: float, device) -> Tensor:
    """2-D sine-cosine table (H * W, C) in float32: the first half of C encodes the column, the second the row.

    Coordinates are stretched so that any grid spans [0, base_size / scale), which keeps 2K and 4K models valid off
    their native shape. Computed anew for every grid: a cache keyed on the token count would confuse H x W with W x H.
    """
    omega = 10000.0 ** -(torch.arange(hidden_size // 4, dtype=torch.float64, device=device) / (hidden_size // 4))

    def encode(size: int) -> Tensor:
        position = torch.arange(size, dtype=torch.float64, device=device) * (base_size / (size * scale))
        angle = position[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (size, C / 2)

    columns = encode(width)[None].expand(height, -1, -1)
    rows = encode(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1).reshape(height * width, hidden_size).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Affine-free LayerNorm over C, then scale and shift. x: (B, N, C); shift, scale: (B, 1, C)."""
    x = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
    return torch.addcmul(shift, x, 1 + scale, out=x if can_overwrite() else None)


def add(x: Tensor, change: Tensor) -> Tensor:
    """x + change, in x itself where that may be."""
    return x.add_(change) if can_overwrite() else x + change


def add_gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """x + gate * change, likewise. x, change: (B, N, C); gate: (B, 1, C)."""
    return x.addcmul_(gate, change) if can_overwrite() else torch.addcmul(x, gate, change)


class MLPEmbedder(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, in_channels: int, hidden_size: int, activation, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.linear_1 = operations.Linear(in_channels, hidden_size, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class TimeEmbed(nn.Module):
    """adaLN-single: one projection of the time (and in SANA-Sprint of the guidance scale) shared by all blocks.

    forward: timesteps (B,), guidance (B,) or None -> modulation (B, 6, C), embedding (B, C).
    """

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device, "operations": operations}
        self.guidance_scale = config.guidance_embeds_scale
        if config.guidance_embeds:
            self.timestep_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
            self.guidance_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
        else:
            self.emb = nn.Module()  # a level more, as in the checkpoints without guidance
            self.emb.timestep_embedder = MLPEmbedder(FREQUENCY_CHANNELS, size, F.silu, **kw)
        self.linear = operations.Linear(size, 6 * size, dtype=dtype, device=device)

    def forward(self, timesteps: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedder = self.timestep_embedder if hasattr(self, "guidance_embedder") else self.emb.timestep_embedder
        embedding = embedder(timestep_embedding(timesteps, FREQUENCY_CHANNELS).to(dtype))
        if hasattr(self, "guidance_embedder"):
            scaled = guidance * self.guidance_scale
            embedding = embedding + self.guidance_embedder(timestep_embedding(scaled, FREQUENCY_CHANNELS).to(dtype))
        return self.linear(F.silu(embedding)).unflatten(1, (6, -1)), embedding


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

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(x)), self.to_v(x)
        out = self.to_out[0](linear_attention_of_tokens(q, k, v, SELF_ATTENTION_HEAD_DIM))
        # Networks trained in float16 have learnt to saturate here; in a wider format the clamp must be explicit.
        clamp = x.dtype == torch.float16 if self.clamp is None else self.clamp
        return out.clamp(-FLOAT16_MAX, FLOAT16_MAX) if clamp else out


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
        if not (
            few_words.allowed(x, transformer_options) and is_plain_layer(self.to_q) and is_plain_layer(self.to_out[0])
        ):
            return self.attend(x, *self.keys_and_values(context), bias, transformer_options)
        texts = self.words_of(context, bias, transformer_options)
        equal = [(words, len(list(rows))) for words, rows in groupby(texts)]  # pictures of one text attend together
        parts = [
            self.attend_to_words(part, words, transformer_options)
            for part, (words, _) in zip(x.split([rows for _, rows in equal]), equal, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm_k(self.to_k(context)), self.to_v(context)

    def words_of(self, context: Tensor, bias: Tensor | None, transformer_options: dict) -> list[Words]:
        """One a row of context, the same for equal rows; in a run, those of the step before if it had such a row."""
        norm = [] if isinstance(self.norm_k, nn.Identity) else [self.norm_k]
        kept = transformer_options.get(KEPT_WORDS)
        weights = None if kept is None else lent_weights(self.to_k, *norm, self.to_v, self.to_out[0])
        rows = list(zip(context, [None] * len(context) if bias is None else bias[:, 0], strict=True))
        found = []
        for row in rows:
            words = next((words for words, other in zip(found, rows) if all(map(same, row, other))), None)
            if words is None and weights is not None:
                words = kept.find(self, weights, *row)
            if words is None:
                words = self.make_words(*row)
                if weights is not None:
                    kept.keep(self, weights, *row, words)
            found.append(words)
        return found

    def make_words(self, context: Tensor, bias: Tensor | None) -> Words:
        """Of one text, states (L, C) and bias (L,)."""
        context, bias = few_words.seen(context, bias)
        k, v = self.keys_and_values(context[None])
        return Words(k[0], v[0], bias, self.num_heads)

    def attend(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        mask = None if bias is None else bias.expand(-1, x.shape[1], -1)
        q = self.norm_q(self.to_q(x))
        return self.to_out[0](
            optimized_attention(q, k, v, self.num_heads, mask=mask, transformer_options=transformer_options)
        )

    def attend_to_words(self, x: Tensor, words: Words, transformer_options: dict) -> Tensor:
        """For pictures x (B, N, C) with the same text."""
        if len(words) == 1:
            return words.attend_to_one(self.to_out[0]).expand_as(x)
        positions = x.flatten(0, 1)
        if not words.pays(len(positions)):
            k, v = (part.expand(len(x), -1, -1) for part in (words.k, words.v))
            bias = None if words.bias is None else words.bias.expand(len(x), 1, -1)
            return self.attend(x, k, v, bias, transformer_options)
        if isinstance(self.norm_q, nn.Identity) and words.pays_for_queries(len(positions)):
            with cast_weights(self.to_q, x) as weights:
                scores = words.scores(positions, *weights)
        else:
            scores = words.scores_of_queries(self.norm_q(self.to_q(positions)))
        with cast_weights(self.to_out[0], x) as weights:
            return words.attend(scores, *weights).unflatten(0, x.shape[:2])


class SanaBlock(nn.Module):
    """Linear self-attention, cross-attention and Mix-FFN.

    x (B, N, C), context (B, L, C), modulation (B, 6, C) -> (B, N, C).
    """

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        kw = {"dtype": dtype, "device": device}
        self.scale_shift_table = nn.Parameter(torch.empty(6, config.hidden_size, **kw))
        self.attn1 = LiteLA(config, operations=operations, **kw)
        self.attn2 = CrossAttention(config, operations=operations, **kw)
        self.ff = GLUMBConv(config.hidden_size, config.mlp_hidden_size, operations=operations, **kw)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor | None,
        modulation: Tensor,
        grid: tuple[int, int],
        transformer_options: dict,
    ) -> Tensor:
        table = cast_to_input(self.scale_shift_table, modulation)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (table + modulation).chunk(
            6, dim=1
        )  # (B, 1, C) each
        # Not in place: x is the caller's, and a patch may want to compare it with the result.
        x = torch.addcmul(x, gate_msa, self.attn1(modulate(x, shift_msa, scale_msa)))
        x = add(x, self.attn2(x, context, bias, transformer_options))  # neither normalised nor gated
        image = modulate(x, shift_mlp, scale_mlp).transpose(1, 2).unflatten(2, grid)  # (B, N, C) -> (B, C, H, W)
        changes = transformer_options.get(DENSE_CHANGES, {}).get(transformer_options.get("block_index"), ())
        return add_gated(x, gate_mlp, self.ff(image, changes).flatten(2).transpose(1, 2))


class Sana(nn.Module):
    """SANA's denoising network.

    forward:
        x: (B, 32, H, W) noisy latent, scaled to unit variance.
        timesteps: (B,) noise level in [0, 1000]; in [0, 1] for SANA-Sprint.
        context: (B, L, caption_channels) states of the text encoder.
        attention_mask: (B, L), 1 for a token and 0 for padding, or None when every position counts.
        guidance: (B,) guidance scale embedded by SANA-Sprint.
        Returns the velocity, noise - x0, (B, 32, H, W).
    """

    def __init__(self, config: SanaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.config = config
        self.dtype = dtype
        self.patch_embed = nn.Module()
        self.patch_embed.proj = operations.Conv2d(config.in_channels, size, 1, **kw)
        self.time_embed = TimeEmbed(config, operations=operations, **kw)
        self.caption_projection = MLPEmbedder(config.caption_channels, size, gelu_tanh, operations=operations, **kw)
        self.caption_norm = operations.RMSNorm(size, eps=1e-5, **kw)
        self.transformer_blocks = nn.ModuleList(
            SanaBlock(config, operations=operations, **kw) for _ in range(config.depth)
        )
        self.scale_shift_table = nn.Parameter(torch.empty(2, size, **kw))
        self.proj_out = operations.Linear(size, config.out_channels, **kw)

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
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, attention_mask, guidance, transformer_options, **kwargs)

    def _forward(self, x, timesteps, context, attention_mask=None, guidance=None, transformer_options={}, **kwargs):  # noqa: ARG002, B006
        raise_mmap_threshold()
        grid = x.shape[-2:]
        dtype = x.dtype
        # Contiguous once here: every later sum keeps the layout, and LayerNorm would copy any other.
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2).contiguous()  # (B, N, C)
        if self.config.interpolation_scale is not None:
            base, scale = self.config.sample_size, self.config.interpolation_scale
            x = (x + position_embedding(*grid, x.shape[-1], base, scale, x.device)).to(dtype)

        modulation, embedding = self.time_embed(timesteps, guidance, dtype)
        context = self.caption_norm(self.caption_projection(context))
        bias = None if attention_mask is None else (1 - attention_mask.to(dtype))[:, None] * MASK_BIAS  # (B, 1, L)

        x = self._run_blocks(x, context, bias, modulation, grid, transformer_options)

        shift, scale = (cast_to_input(self.scale_shift_table, embedding) + embedding[:, None]).chunk(2, dim=1)
        x = self.proj_out(modulate(x, shift, scale))
        return x.transpose(1, 2).unflatten(2, grid)

    def _run_blocks(self, x, context, bias, modulation, grid, transformer_options: dict) -> Tensor:
        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        options = transformer_options | {"total_blocks": len(self.transformer_blocks), "block_type": "double"}
        for i, block in enumerate(self.transformer_blocks):
            options["block_index"] = i
            if ("double_block", i) in replace:

                def original(args: dict, block=block) -> dict:
                    img = block(args["img"], args["txt"], bias, args["vec"], grid, args["transformer_options"])
                    return {"img": img, "txt": args["txt"]}

                args = {"img": x, "txt": context, "vec": modulation, "transformer_options": options}
                out = replace[("double_block", i)](args, {"original_block": original})
                x, context = out["img"], out["txt"]
            else:
                x = block(x, context, bias, modulation, grid, options)
        return x
