"""Next-DiT, the transformer of Lumina-Next, with the names of its authors' files.

Source: Lumina-Next, arXiv 2406.18583 section 2. Not here: rotary positions (`rotary.py`), key layouts of files
(`convert.py`).
"""

import math
from typing import Any

import comfy.ldm.common_dit
import torch
import torch.nn.functional as F
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.lumina.model import FeedForward
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder
from comfy.ops import CastWeightBiasOp, cast_bias_weight, cast_to_input, uncast_bias_weight
from torch import Tensor, nn

from ..layers import mask_bias
from ..runtime.network_calls import call_replacement, call_wrapped, find_block_replacement
from ..runtime.prefetch import prefetched
from ..runtime.table_cache import TableCache
from .config import OPTIONS_KEY, PATCH_SIZE, PIXELS_PER_TOKEN, TRAINED_SIDE, LuminaConfig, LuminaOptions
from .rotary import both_rotations, rotary_table

NORM_EPS = 1e-5
FINAL_NORM_EPS = 1e-6
TRAINED_TOKENS = (TRAINED_SIDE // PIXELS_PER_TOKEN) ** 2
MAX_TABLES = 2  # of rotations, 5 MB at 1024 px and 19 MB at 2048 px


class HeadGate(nn.Module, CastWeightBiasOp):
    """How much each head takes of the text: x (B, N, h * d) times the tanh of one weight per head.

    A layer of its own with the host's way of casting, because the host merges, patches and moves the parameters of
    such layers only.
    """

    def __init__(self, num_heads: int, dtype=None, device=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, dtype=dtype, device=device))
        self.register_parameter("bias", None)
        self.weight_function, self.bias_function = [], []

    def forward(self, x: Tensor) -> Tensor:
        if not (self.comfy_cast_weights or self.weight_function):
            return self.scaled(x, cast_to_input(self.weight, x))
        weight, bias, stream = cast_bias_weight(self, x, offloadable=True)
        out = self.scaled(x, weight)
        uncast_bias_weight(self, weight, bias, stream)
        return out

    def scaled(self, x: Tensor, weight: Tensor) -> Tensor:
        return (x.unflatten(-1, (len(weight), -1)) * weight.tanh()[:, None]).flatten(-2)


class Attention(nn.Module):
    """Self-attention over the image and gated cross-attention to the text, with the same rotated queries.

    forward: x (B, N, C), text (B, L, D), rope as `rotary_table` gives it, bias (B, 1, L) or None, sharpness: factor of
    the self-attention's logits -> (B, N, C).
    """

    def __init__(self, config: LuminaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kv_size, kw = (
            config.hidden_size,
            config.num_kv_heads * config.head_dim,
            {"dtype": dtype, "device": device},
        )
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.wq = operations.Linear(size, size, bias=False, **kw)
        self.wk = operations.Linear(size, kv_size, bias=False, **kw)
        self.wv = operations.Linear(size, kv_size, bias=False, **kw)
        self.wk_y = operations.Linear(config.caption_channels, kv_size, bias=False, **kw)
        self.wv_y = operations.Linear(config.caption_channels, kv_size, bias=False, **kw)
        self.gate = HeadGate(config.num_heads, **kw)
        self.wo = operations.Linear(size, size, bias=False, **kw)
        self.q_norm = operations.LayerNorm(size, eps=NORM_EPS, **kw)  # across heads
        self.k_norm = operations.LayerNorm(kv_size, eps=NORM_EPS, **kw)
        self.ky_norm = operations.LayerNorm(kv_size, eps=NORM_EPS, **kw)

    def forward(
        self, x: Tensor, text: Tensor, rope: Tensor, bias: Tensor | None, sharpness: float, transformer_options: dict
    ) -> Tensor:
        q = apply_rope1(self.heads(self.q_norm(self.wq(x))), rope)
        k = apply_rope1(self.heads(self.k_norm(self.wk(x))), rope)
        k_text, v_text = self.heads(self.ky_norm(self.wk_y(text))), self.heads(self.wv_y(text))
        mask = None if bias is None else bias.expand(-1, x.shape[1], -1)
        # The factor is in the queries, because not every attention function of the host takes a scale.
        image = self.attend(q * sharpness, k, self.heads(self.wv(x)), None, transformer_options)
        return self.wo(image + self.gate(self.attend(q, k_text, v_text, mask, transformer_options)))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, h, N, d)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, transformer_options: dict) -> Tensor:
        return optimized_attention(
            q,
            k,
            v,
            self.num_heads,
            mask=mask,
            skip_reshape=True,
            enable_gqa=True,
            transformer_options=transformer_options,
        )


class Block(nn.Module):
    """Attention and gated feed-forward part, each between two norms.

    x (B, N, C), text (B, L, D), conditioning (B, 1, A) -> (B, N, C).
    """

    def __init__(self, config: LuminaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.attention = Attention(config, operations=operations, **kw)
        self.feed_forward = FeedForward(size, config.mlp_hidden_size, 1, None, kw | {"operations": operations})
        self.attention_norm1 = operations.RMSNorm(size, eps=NORM_EPS, **kw)
        self.attention_norm2 = operations.RMSNorm(size, eps=NORM_EPS, **kw)
        self.ffn_norm1 = operations.RMSNorm(size, eps=NORM_EPS, **kw)
        self.ffn_norm2 = operations.RMSNorm(size, eps=NORM_EPS, **kw)
        self.attention_y_norm = operations.RMSNorm(config.caption_channels, eps=NORM_EPS, **kw)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(config.conditioning_size, 4 * size, **kw))

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        conditioning: Tensor,
        rope: Tensor,
        bias: Tensor | None,
        sharpness: float,
        transformer_options: dict,
    ) -> Tensor:
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.adaLN_modulation(conditioning).chunk(4, dim=-1)
        h, text = self.attention_norm1(x) * (1 + scale_msa), self.attention_y_norm(text)
        h = self.attention(h, text, rope, bias, sharpness, transformer_options)
        x = torch.addcmul(x, gate_msa.tanh(), self.attention_norm2(h))
        h = self.feed_forward(self.ffn_norm1(x) * (1 + scale_mlp))
        return torch.addcmul(x, gate_mlp.tanh(), self.ffn_norm2(h))


class FinalLayer(nn.Module):
    """x (B, N, C), conditioning (B, 1, A) -> (B, N, D), each token's patch; of twice the latent's channels."""

    def __init__(self, config: LuminaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.linear = operations.Linear(size, PATCH_SIZE**2 * 2 * config.in_channels, **kw)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(config.conditioning_size, size, **kw))

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        scale = self.adaLN_modulation(conditioning)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=FINAL_NORM_EPS) * (1 + scale))


def mean_of_text(context: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B, C) over the positions that count, of the encoder's states as they come."""
    if mask is None:
        return context.float().mean(dim=1).to(context.dtype)
    weights = mask.float()[..., None]
    return ((context.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(context.dtype)


class Lumina(nn.Module):
    """Lumina-Next's denoising network.

    forward:
        x: (B, 4, H, W) noisy latent; odd sides are padded to whole patches.
        timesteps: (B,) noise level in [0, 1]; the network itself counts from noise to image.
        context: (B, L, caption_channels) states of the text encoder.
        attention_mask: (B, L), 1 for a token and 0 for padding, or None when every position counts.
        transformer_options: a LuminaOptions under OPTIONS_KEY; without one, what diffusers does.
        Returns the velocity, noise - x0, (B, 4, H, W).
    """

    def __init__(self, config: LuminaConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, width, kw = config.hidden_size, config.conditioning_size, {"dtype": dtype, "device": device}
        self.config = config
        self.dtype = dtype
        self.in_channels = config.in_channels  # which nodes of the host read
        self.x_embedder = operations.Linear(PATCH_SIZE**2 * config.in_channels, size, **kw)
        self.t_embedder = TimestepEmbedder(width, operations=operations, **kw)
        self.cap_embedder = nn.Sequential(
            operations.LayerNorm(config.caption_channels, eps=NORM_EPS, **kw),
            operations.Linear(config.caption_channels, width, **kw),
        )
        self.layers = nn.ModuleList(Block(config, operations=operations, **kw) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, operations=operations, **kw)
        self.tables = TableCache(MAX_TABLES)
        self.pad_token = nn.Parameter(torch.empty(size, **kw))  # of batches with several sizes; carried, not used

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - the host's own signature; never written to
        **kwargs,
    ) -> Tensor:
        args = x, timesteps, context, attention_mask, transformer_options
        return call_wrapped(self, self._forward, transformer_options, *args, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - as above
        **kwargs,  # noqa: ARG002 - conditionings of other nodes
    ) -> Tensor:
        height, width = x.shape[-2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(x, (PATCH_SIZE, PATCH_SIZE))
        grid = x.shape[-2] // PATCH_SIZE, x.shape[-1] // PATCH_SIZE
        options = transformer_options.get(OPTIONS_KEY) or LuminaOptions()
        times = 1 - timesteps
        rope = rotary_table(times, self.rotations(grid, size_scale(grid, options), x.device), options.watershed)
        bias = mask_bias(attention_mask, x.dtype)
        conditioning = self.t_embedder(times, x.dtype) + self.cap_embedder(mean_of_text(context, attention_mask))

        conditioning = conditioning[:, None]
        x = self.x_embedder(patchify(x))
        x = self._run_blocks(x, context, conditioning, rope, bias, sharpness(grid, options), transformer_options)
        x = self.final_layer(x, conditioning)
        return -unpatchify(x, grid)[:, : self.config.in_channels, :height, :width]  # the rest is a variance

    def rotations(self, grid: tuple[int, int], scale: float, device: torch.device) -> Tensor:
        """`both_rotations`, sent to the device once."""
        key = grid, scale, device
        return self.tables.get(key, lambda: both_rotations(grid, self.config.head_dim, scale, device))

    def _run_blocks(self, x, context, conditioning, rope, bias, sharp: float, transformer_options: dict) -> Tensor:
        options = transformer_options | {"total_blocks": len(self.layers), "block_type": "double"}
        for i, block in enumerate(prefetched(self.layers, x.device, options)):
            options = options | {"block_index": i}
            replacement = find_block_replacement(transformer_options, i)
            if replacement is None:
                x = block(x, context, conditioning, rope, bias, sharp, options)
                continue

            def original(args: dict, block=block) -> Tensor:
                more = args["pe"], bias, sharp, args["transformer_options"]
                return block(args["img"], args["txt"], args["vec"], *more)

            args = {"img": x, "txt": context, "vec": conditioning, "pe": rope, "transformer_options": options}
            x, context = call_replacement(replacement, original, args)
        return x


def patchify(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W / 4, C * 4); channels first within a patch."""
    x = x.unflatten(3, (-1, PATCH_SIZE)).unflatten(2, (-1, PATCH_SIZE))  # (B, C, h, p, w, q)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h * w, 4 * D) -> (B, D, 2 * h, 2 * w); channels last within a patch, unlike on the way in."""
    x = x.unflatten(2, (PATCH_SIZE, PATCH_SIZE, -1)).unflatten(1, grid)  # (B, h, w, p, q, D)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def size_scale(grid: tuple[int, int], options: LuminaOptions) -> float:
    """Side of the image in units of the trained one: the root of the areas' ratio; 1 where sizes are not scaled."""
    if options.size_scaling == "off":
        return 1.0
    scale = math.sqrt(grid[0] * grid[1] / TRAINED_TOKENS)
    return max(scale, 1.0) if options.size_scaling == "above 1024 px" else scale


def sharpness(grid: tuple[int, int], options: LuminaOptions) -> float:
    """Factor of the self-attention's logits that keeps its entropy with more tokens: 1 at the trained number."""
    if not options.proportional_attention:
        return 1.0
    return math.sqrt(math.log(grid[0] * grid[1]) / math.log(TRAINED_TOKENS))
