"""The diffusion transformer of PixArt-alpha and PixArt-Sigma: the host's network, right at every size.

Source: PixArt-alpha, arXiv 2310.00426; PixArt-Sigma, arXiv 2403.04692 (compression of keys and values). Module names
are the authors', as in the host, so that its save, LoRA and training nodes find the layers.
What the host's lacks: a position grid of fixed span, computed wide; sides that the patch size does not divide; a mask
of the text, so that texts of different length are one batch; patches of other nodes.
Not here: key layouts of files (`convert.py`), the conditioning on its way to the network (`model_base.py`).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.mmdit import Mlp, timestep_embedding
from comfy.ldm.pixart.blocks import AttentionKVCompress, MultiHeadCrossAttention
from comfy.ldm.pixart.pixartms import PixArtMS
from torch import Tensor, nn

from ..layers import mask_bias
from ..runtime.attention_patches import ATTN1, ATTN2, NO_PATCHES, with_block_patches
from ..runtime.network_calls import call_replacement, call_wrapped, find_block_replacement
from ..runtime.prefetch import prefetched
from .config import HEAD_DIM, PATCH_SIZE, RATIO, PixArtConfig

MIDDLE_BLOCK = 14  # what guidance by perturbed attention acts on
LAYER_NORM_EPS = 1e-6
MAX_AXES = 16  # encoded ones that are stored, of at most 0.3 MB each at 2K


def encode_axis(size: int, hidden_size: int, span: int, device) -> Tensor:
    """Sines and cosines (size, C / 2) in float32 of one axis, whose coordinates reach from 0 to the span."""
    # In float64, so on the CPU: not every device has it, and one row of each axis is small.
    quarter = hidden_size // 4
    omega = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    position = torch.arange(size, dtype=torch.float64, device="cpu") * (span / size)
    angle = position[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float().to(device)


def token_grid(x: Tensor) -> tuple[int, int]:
    """Rows and columns of the tokens of a latent (B, C, H, W), whose sides the patch size need not divide."""
    return -(-x.shape[-2] // PATCH_SIZE), -(-x.shape[-1] // PATCH_SIZE)


def position_embedding(rows: Tensor, columns: Tensor) -> Tensor:
    """2-D table (H * W, C) of encoded rows (H, C / 2) and columns (W, C / 2): the first half of C is the column's."""
    grid = [columns[None].expand(len(rows), -1, -1), rows[:, None].expand(-1, len(columns), -1)]
    return torch.cat(grid, dim=-1).flatten(0, 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Affine-free LayerNorm over C, then scale and shift. x: (B, N, C); shift, scale: (B, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), 1 + scale)


class PixArtSelfAttention(AttentionKVCompress):
    """Softmax attention among the tokens of the image, whose keys and values may be pooled. (B, N, C) -> (B, N, C)."""

    def forward(self, x: Tensor, grid: tuple[int, int], transformer_options: dict) -> Tensor:
        patches = transformer_options.get(ATTN1, NO_PATCHES)
        q, k, v = self.project(*patches.inputs(x, x, x))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.sr_ratio > 1:
            k, v = self.pool(k, grid), self.pool(v, grid)
        attend = partial(optimized_attention, heads=self.num_heads, transformer_options=transformer_options)
        return patches.output(self.proj(patches.attend(attend, q, k, v)))

    def project(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        if q is k and k is v:
            return list(self.qkv(q).chunk(3, dim=-1))
        return [self.qkv(x).chunk(3, dim=-1)[part] for part, x in enumerate((q, k, v))]  # a patch has changed one

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.sr(x.transpose(1, 2).unflatten(2, grid))  # (B, N, C) -> (B, C, h, w)
        return self.norm(x.flatten(2).transpose(1, 2))


class PixArtCrossAttention(MultiHeadCrossAttention):
    """Softmax attention from image to text. x (B, N, C), context (B, L, C), bias (B, 1, L) or None -> (B, N, C)."""

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None, transformer_options: dict) -> Tensor:
        patches = transformer_options.get(ATTN2, NO_PATCHES)
        q, k, v = patches.inputs(x, context, context)
        q, (keys, values) = self.q_linear(q), self.kv_linear(k).chunk(2, dim=-1)
        if v is not k:  # a patch has changed one of them
            values = self.kv_linear(v).chunk(2, dim=-1)[1]
        mask = None if bias is None else bias.expand(-1, q.shape[1], -1)
        attend = partial(optimized_attention, heads=self.num_heads, mask=mask, transformer_options=transformer_options)
        return patches.output(self.proj(patches.attend(attend, q, keys, values)))


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward. x (B, N, C), context (B, L, C), t (B, 6, C) -> (B, N, C)."""

    def __init__(self, config: PixArtConfig, index: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, ratio = config.hidden_size, config.kv_ratios[index]
        kw = {"dtype": dtype, "device": device, "operations": operations}
        heads = size // HEAD_DIM
        self.attn = PixArtSelfAttention(size, heads, sr_ratio=ratio, qk_norm=config.qk_norm, **kw)
        self.cross_attn = PixArtCrossAttention(size, heads, **kw)
        self.mlp = Mlp(size, 4 * size, act_layer=partial(nn.GELU, approximate="tanh"), **kw)
        self.scale_shift_table = nn.Parameter(torch.empty(6, size, dtype=dtype, device=device))

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor | None,
        t: Tensor,
        grid: tuple[int, int],
        transformer_options: dict,
    ) -> Tensor:
        table = self.scale_shift_table.to(dtype=x.dtype, device=x.device)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = (table + t).chunk(6, dim=1)
        x = x + gate_msa * self.attn(modulate(x, shift_msa, scale_msa), grid, transformer_options)
        x = x + self.cross_attn(x, context, bias, transformer_options)  # neither normalized nor gated
        return x + gate_mlp * self.mlp(modulate(x, shift_mlp, scale_mlp))


class PixArt(PixArtMS):
    """PixArt's denoising network.

    forward:
        x: (B, 4, H, W) noisy latent, scaled to unit variance.
        timesteps: (B,) in [0, 999].
        context: (B, L, caption_channels) states of the text encoder.
        attention_mask: (B, L), 1 for a token and 0 for padding, or None when every position counts.
        image_size: (B, 2) height and width in pixels, of models that embed them; None for those of the latent.
        control: {"input": residuals (B, N, C) or None, one a block}, added to the block's input; the host's contract.
        Returns the noise, (B, 4, H, W).
    """

    def __init__(self, config: PixArtConfig, dtype=None, device=None, operations: Any = None, **sizes):  # noqa: ARG002 - the host's LoRA names read them
        kw = {"dtype": dtype, "device": device, "operations": operations}
        super().__init__(
            hidden_size=config.hidden_size,
            depth=0,  # the host's blocks: ours are below
            num_heads=config.hidden_size // HEAD_DIM,
            pred_sigma=config.learns_variance,
            caption_channels=config.caption_channels,
            micro_condition=config.micro_conditions,
            model_max_length=1,
            **kw,
        )
        self.config = config
        self.depth = config.depth
        del self.y_embedder.y_embedding  # random numbers, for training alone
        self.blocks = nn.ModuleList(PixArtBlock(config, index, **kw) for index in range(config.depth))
        self.heads = dict.fromkeys((ATTN1, ATTN2), (self.num_heads, HEAD_DIM))
        self.axes: dict[tuple[int, torch.device], Tensor] = {}

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - the host's own signature; never written to
        **kwargs,
    ) -> Tensor:
        args = x, timesteps, context, attention_mask, image_size, transformer_options
        return call_wrapped(self, self._forward, transformer_options, *args, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        transformer_options: dict = {},  # noqa: B006 - as above
        control: dict | None = None,
        **kwargs,  # noqa: ARG002 - conditionings of other nodes
    ) -> Tensor:
        height, width = x.shape[-2:]
        grid = token_grid(x)
        tokens = self.embed_image(x, grid)
        t = self.embed_time(timesteps, image_size, x)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        context = self.y_embedder.y_proj(context)
        bias = mask_bias(attention_mask, x.dtype)

        tokens = self._run_blocks(tokens, context, bias, modulation, grid, x.shape, control, transformer_options)

        out = self.final_layer(tokens, t)
        out = self.unpatchify(out, PATCH_SIZE * grid[0], PATCH_SIZE * grid[1])
        return out[:, : self.in_channels, :height, :width]

    def embed_image(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, N, C) of a latent, with their positions."""
        positions = position_embedding(*(self.axis(size, x.device) for size in grid))
        return (self.x_embedder(x) + positions).to(x.dtype)

    def embed_time(self, timesteps: Tensor, image_size: Tensor | None, x: Tensor) -> Tensor:
        """Embedding (B, C) of the time, and of the image's size in models that embed it."""
        t = self.t_embedder(timesteps, x.dtype)
        return t + self.embed_size(image_size, x) if self.micro_conditioning else t

    def axis(self, size: int, device: torch.device) -> Tensor:
        """`encode_axis`, sent to the device once: nothing but its length, this network and the device decide it."""
        if torch.compiler.is_compiling():  # a compiled graph would be made anew once the cache is filled
            return encode_axis(size, self.hidden_size, self.config.span, device)
        if (size, device) not in self.axes:
            if len(self.axes) == MAX_AXES:
                self.axes.clear()
            with torch.inference_mode(False):  # training reads it too
                self.axes[size, device] = encode_axis(size, self.hidden_size, self.config.span, device)
        return self.axes[size, device]

    def embed_size(self, image_size: Tensor | None, x: Tensor) -> Tensor:
        """Embedding (B, C) of the image's height, width, and height / width."""
        if image_size is None:
            image_size = torch.tensor([x.shape[-2:]], device=x.device) * RATIO
        size = image_size.float().expand(x.shape[0], 2)
        ratio = size[:, :1] / size[:, 1:]

        def embed(embedder: nn.Module, values: Tensor) -> Tensor:
            return embedder.mlp(timestep_embedding(values.flatten(), embedder.frequency_embedding_size).to(x.dtype))

        sizes = embed(self.csize_embedder, size).reshape(x.shape[0], -1)
        return torch.cat([sizes, embed(self.ar_embedder, ratio)], dim=1)

    def _run_blocks(self, x, context, bias, modulation, grid, shape, control, transformer_options: dict) -> Tensor:
        options = transformer_options | {"total_blocks": len(self.blocks), "block_type": "double"}
        middle = min(MIDDLE_BLOCK, len(self.blocks) // 2)
        residuals = {} if control is None else dict(enumerate(control.get("input") or ()))
        for i, block in enumerate(prefetched(self.blocks, x.device, options)):
            options = options | {"block_index": i}
            own = with_block_patches(options, i, middle, shape, self.heads)
            x = x if residuals.get(i) is None else x + residuals[i].to(x.dtype)
            replacement = find_block_replacement(transformer_options, i)
            if replacement is None:
                x = block(x, context, bias, modulation, grid, own)
                continue

            def original(args: dict, block=block) -> Tensor:
                return block(args["img"], args["txt"], bias, args["vec"], grid, args["transformer_options"])

            args = {"img": x, "txt": context, "vec": modulation, "transformer_options": own}
            x, context = call_replacement(replacement, original, args)
        return x
