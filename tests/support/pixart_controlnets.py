"""Small PixArt ControlNets with random weights, in the authors' and diffusers' names, and the paper's wiring written out
with diffusers' blocks (PixArt-delta, arXiv 2401.05252, section 4)."""

from pathlib import Path

import diffusers
import torch
from sana_native.tests.support import layouts, pixart, tiny
from torch import Tensor, nn

BLOCKS = 2  # copied
RELEASE = {"alpha 512": "PixArt-XL-2-512-ControlNet", "alpha 1024-MS": "PixArt-XL-2-1024-ControlNet"}


class Adapter(nn.Module):
    """Diffusers' `PixArtControlNetAdapterModel`, by its names: copied blocks, each with its projections."""

    def __init__(self, base: diffusers.PixArtTransformer2DModel):
        super().__init__()
        self.controlnet_blocks = nn.ModuleList()
        for i, block in enumerate(base.transformer_blocks):
            part = nn.Module()
            part.transformer_block = block
            part.after_proj = nn.Linear(base.inner_dim, base.inner_dim)
            if i == 0:
                part.before_proj = nn.Linear(base.inner_dim, base.inner_dim)
            self.controlnet_blocks.append(part)


def reference(kind: str = "alpha 512", seed: int = 5, heads: int = 2) -> Adapter:
    adapter = Adapter(pixart.reference(kind, layers=BLOCKS, heads=heads, seed=seed))
    for part in adapter.controlnet_blocks:
        tiny.randomize(part.after_proj, seed)
    tiny.randomize(adapter.controlnet_blocks[0].before_proj, seed + 1)
    return adapter.requires_grad_(False)


def authors_branch(control: Adapter) -> dict[str, Tensor]:
    """The authors' `controlnet.*`."""
    blocks, out = {}, {}
    for key, tensor in control.state_dict().items():
        _, index, part = key.split(".", 2)
        if part.startswith("transformer_block."):
            blocks[f"transformer_blocks.{index}.{part.removeprefix('transformer_block.')}"] = tensor
        else:
            out[f"controlnet.{index}.{part}"] = tensor
    for key, tensor in pixart.authors_layout(blocks).items():
        _, index, part = key.split(".", 2)
        out[f"controlnet.{index}.copied_block.{part}"] = tensor
    return out


def merged(base: diffusers.PixArtTransformer2DModel, control: Adapter, kind: str) -> dict[str, Tensor]:
    """The authors' single file: the base, as in its own file, with its ControlNet."""
    sample_size, _, _, rows, _ = pixart.KINDS[kind]
    own = pixart.authors_layout(dict(base.state_dict()))
    own["y_embedder.y_embedding"] = torch.zeros(rows, pixart.TEXT_WIDTH)
    own["pos_embed"] = torch.zeros(1, (sample_size // 2) ** 2, base.inner_dim)
    return {f"base_model.{key}": tensor for key, tensor in own.items()} | authors_branch(control)


def save_merged(folder: Path, base: diffusers.PixArtTransformer2DModel, control: Adapter, kind: str) -> str:
    """The merged .pth, with the depth beside it, which no release has."""
    content = {"state_dict": merged(base, control, kind)}
    config = {"num_layers": len(base.transformer_blocks)}
    return layouts.save(folder / f"{RELEASE[kind]}.pth", content, config)


def predict(
    base: diffusers.PixArtTransformer2DModel,
    control: Adapter,
    x: Tensor,
    hint: Tensor,
    timestep: Tensor,
    states: Tensor,
    mask: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """The noise: the branch begins with the base's first block and the control image, and adds to every block after."""
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    size = torch.tensor([[8.0 * x.shape[-2], 8.0 * x.shape[-1]]]).repeat(len(x), 1)
    added = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]} if base.use_additional_conditions else {}
    given = added or {"resolution": None, "aspect_ratio": None}
    modulation, embedded = base.adaln_single(timestep, given, batch_size=len(x), hidden_dtype=x.dtype)
    states = base.caption_projection(states)
    bias = None if mask is None else ((1 - mask.to(x.dtype)) * -10000.0)[:, None]

    def run(block, tokens):
        return block(tokens, encoder_hidden_states=states, encoder_attention_mask=bias, timestep=modulation)

    first, *others = base.transformer_blocks
    tokens = run(first, base.pos_embed(x))
    c = control.controlnet_blocks[0].before_proj(base.pos_embed(hint)) + tokens
    for i, block in enumerate(others):
        if i < BLOCKS:
            copy = control.controlnet_blocks[i]
            c = run(copy.transformer_block, c)
            tokens = tokens + strength * copy.after_proj(c)
        tokens = run(block, tokens)
    shift, scale = (base.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
    out = base.proj_out(base.norm_out(tokens) * (1 + scale) + shift)
    out = out.unflatten(2, (2, 2, -1)).unflatten(1, (rows, columns))  # (B, h, w, p, q, c)
    return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[:, :4]
