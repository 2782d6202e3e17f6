"""The control branch of PixArt-alpha: copies of the base's first blocks that read the control image's latent.

Source: PixArt-delta, arXiv 2401.05252, section 4 (ControlNet-Transformer), and its authors' released class. Module
names are theirs. With base blocks b, copied blocks c, patch embedding with positions P, input layer E and output
layers Z:

    h = c_0(b_0(P(x)) + E(P(hint))), h = c_i(h); Z_i(h_i) is added to the input of base block i + 1
"""

from typing import Any

from torch import Tensor, nn

from ..layers import mask_bias
from ..pixart.config import PixArtConfig
from ..pixart.model import PixArt, PixArtBlock, token_grid


class ControlBlock(nn.Module):
    """A copied block with its output layer, and in the first of them the input layer."""

    def __init__(self, config: PixArtConfig, index: int, dtype=None, device=None, operations: Any = None):
        super().__init__()
        size, kw = config.hidden_size, {"dtype": dtype, "device": device}
        self.copied_block = PixArtBlock(config, index, operations=operations, **kw)
        if index == 0:
            self.before_proj = operations.Linear(size, size, **kw)
        self.after_proj = operations.Linear(size, size, **kw)


class PixArtControl(nn.Module):
    """The control branch. config: of the copied blocks; depth is their number.

    forward:
        x: (B, 4, H, W) noisy latent. hint: (B or 1, 4, H, W) scaled latent of the control image.
        timesteps: (B,), context: (B, L, C), attention_mask: (B, L), image_size: (B, 2): as the base is given them.
        exact_timesteps: (B,), in place of the timesteps, which the host rounds to the format of x.
        base: the network that the residuals are for, whose embeddings and first block are used.
        Returns {"input": residuals (B, N, C) or None}, each for the input of the base's block at its place.
    """

    def __init__(self, config: PixArtConfig, dtype=None, device=None, operations: Any = None):
        super().__init__()
        self.config, self.dtype = config, dtype
        kw = {"dtype": dtype, "device": device, "operations": operations}
        self.controlnet = nn.ModuleList(ControlBlock(config, index, **kw) for index in range(config.depth))

    def forward(
        self,
        x: Tensor,
        hint: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        image_size: Tensor | None = None,
        base: PixArt | None = None,
        exact_timesteps: Tensor | None = None,
        **kwargs,  # noqa: ARG002 - "control_type" of the host's union ControlNets, and conditionings of other nodes
    ) -> dict[str, list[Tensor | None]]:
        grid = token_grid(x)
        t = base.embed_time(timesteps if exact_timesteps is None else exact_timesteps, image_size, x)
        modulation = base.t_block(t).unflatten(1, (6, -1))
        given = base.y_embedder.y_proj(context), mask_bias(attention_mask, x.dtype), modulation, grid, {}

        h = base.blocks[0](base.embed_image(x, grid), *given)
        h = h + self.controlnet[0].before_proj(base.embed_image(hint, grid))
        residuals: list[Tensor | None] = [None]
        for block in self.controlnet:
            h = block.copied_block(h, *given)
            residuals.append(block.after_proj(h))
        return {"input": residuals}
