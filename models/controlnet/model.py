"""The control branch of SANA: copies of the base's first blocks that read the control image's latent.

Source: NVlabs/Sana, `sana_multi_scale_controlnet.py`; diffusers' SanaControlNetModel. Module names are those of
diffusers. With base blocks b, copied blocks c, patch embedding P, input layer E and output layers Z:

    NVlabs     h = c_0(b_0(P(x)) + E(P(hint))), h = c_i(h); Z_i(h_i) is added to the input of base block i + 1
    diffusers  h = c_0(P(x) + E(P(hint))),      h = c_i(h); Z_i(h_i) is added to the input of base block i + 2
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..layers import mask_bias
from ..sana.embeddings import MLPEmbedder, TimeEmbed, add_position_embedding, gelu_tanh
from ..sana.model import Sana, SanaBlock
from .config import NVLABS, ControlNetConfig


class SanaControl(nn.Module):
    """The control branch.

    forward:
        x: (B, 32, H, W) noisy latent. hint: (B or 1, 32, H, W) scaled latent of the control image.
        timesteps: (B,), context: (B, L, C), attention_mask: (B, L), guidance: (B,): as the base is given them.
        exact_timesteps: (B,), in place of the timesteps, which the host rounds to the format of x.
        base: the network that the residuals are for; its embeddings and first block are used where the wiring or the
        file asks for it.
        Returns {"input": residuals (B, N, C) or None}, each for the input of the base's block at its place.
    """

    def __init__(
        self,
        config: ControlNetConfig,
        block: type[SanaBlock] = SanaBlock,
        dtype=None,
        device=None,
        operations: Any = None,
    ):
        super().__init__()
        own, kw = config.blocks, {"dtype": dtype, "device": device}
        size = own.hidden_size
        self.config, self.dtype = config, dtype
        self.input_block = operations.Linear(size, size, **kw)
        self.transformer_blocks = nn.ModuleList(block(own, operations=operations, **kw) for _ in range(own.depth))
        self.controlnet_blocks = nn.ModuleList(operations.Linear(size, size, **kw) for _ in range(own.depth))
        if config.own_embeddings:
            self.patch_embed = nn.Module()
            self.patch_embed.proj = operations.Conv2d(own.in_channels, size, 1, **kw)
            self.time_embed = TimeEmbed(own, operations=operations, **kw)
            self.caption_projection = MLPEmbedder(own.caption_channels, size, gelu_tanh, operations=operations, **kw)
            self.caption_norm = operations.RMSNorm(size, eps=1e-5, **kw)

    @property
    def borrows(self) -> bool:
        """Whether the base's embeddings are used."""
        return self.config.wiring == NVLABS or not self.config.own_embeddings

    def forward(
        self,
        x: Tensor,
        hint: Tensor,
        timesteps: Tensor,
        context: Tensor,
        attention_mask: Tensor | None = None,
        guidance: Tensor | None = None,
        base: Sana | None = None,
        exact_timesteps: Tensor | None = None,
        **kwargs,  # noqa: ARG002 - "control_type" of the host's union ControlNets, and conditionings of other nodes
    ) -> dict[str, list[Tensor | None]]:
        grid = x.shape[-2:]
        timesteps = timesteps if exact_timesteps is None else exact_timesteps
        source = base if self.borrows else self
        positions = (base.config if self.borrows else self.config.blocks).interpolation_scale is not None
        if self.config.rounds_time:
            timesteps = timesteps.to(torch.bfloat16).to(timesteps.dtype)
        modulation, _ = source.time_embed(timesteps, guidance, x.dtype)
        context = source.caption_norm(source.caption_projection(context))
        bias = mask_bias(attention_mask, x.dtype)
        h = self.tokens(source, x, positions)
        if self.config.wiring == NVLABS:
            h = base.transformer_blocks[0](h, context, bias, modulation, grid, {})
        h = h + self.input_block(self.tokens(source, hint, positions and not self.borrows))
        residuals: list[Tensor | None] = [None] if self.config.wiring == NVLABS else [None, None]
        for block, project in zip(self.transformer_blocks, self.controlnet_blocks, strict=True):
            h = block(h, context, bias, modulation, grid, {})
            residuals.append(project(h))
        return {"input": residuals}

    def tokens(self, source: nn.Module, latent: Tensor, positions: bool) -> Tensor:
        """Patch embedding (B, 32, H, W) -> (B, N, C), with the source's table of positions where it has one."""
        x = source.patch_embed.proj(latent).flatten(2).transpose(1, 2).contiguous()
        config = source.config if source is not self else self.config.blocks
        if positions:
            add_position_embedding(x, latent.shape[-2:], config.sample_size, config.interpolation_scale)
        return x
