"""Masks on the coarse grid of a latent, pictures padded to that grid, and results composited over the original.

A cell of DC-AE's latent is 32 x 32 px. The host samples a mask at the cells' centers, so a thin stroke can miss all of
them; here a cell looks at all of its pixels. Pictures are (B, H, W, C), masks (B, H, W), both in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ANY, HALF, SOFT = CELL_RULES = ("any pixel", "half", "soft")
TOUCHED = 1 / 512  # half a step of an 8-bit mask


@dataclass(frozen=True)
class Sides:
    """Pixels to add at each side of a picture."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def pad_by_reflection(images: Tensor, sides: Sides) -> Tensor:
    """(B, H, W, C) with mirrored pixels at its sides; beyond the picture's own size the mirror image is mirrored."""
    rows = _mirrored(images.shape[1], sides.top, sides.bottom, images.device)
    columns = _mirrored(images.shape[2], sides.left, sides.right, images.device)
    return images[:, rows][:, :, columns]


def pad_mask(mask: Tensor, sides: Sides) -> Tensor:
    """(B, H, W) with ones at its sides: what is added is to be generated."""
    return F.pad(mask, (sides.left, sides.right, sides.top, sides.bottom), value=1.0)


def rgb(images: Tensor, name: str = "image") -> Tensor:
    """(B, H, W, 3) of images with alpha or with one channel, which is a gray picture. Raises ValueError for others."""
    if 0 in images.shape:
        raise ValueError(f"The {name} holds nothing, its shape is {tuple(images.shape)}: check the node that made it.")
    channels = images.shape[-1] if images.ndim == 4 else 0
    if channels not in (1, 3, 4):
        raise ValueError(
            f"The {name} is of shape {tuple(images.shape)}, but (images, height, width, 3) is expected: convert it to "
            "RGB first."
        )
    return images.expand(*images.shape[:3], 3) if channels == 1 else images[..., :3]


def fit_mask(mask: Tensor | None, images: Tensor) -> Tensor:
    """The mask (M, h, w) or (h, w) at the size of the pictures (B, H, W, C); zeros where there is none.

    Scaled with antialiasing, so that a thin stroke of a larger mask still leaves a trace.
    """
    size = images.shape[1:3]
    if mask is None:
        return images.new_zeros(1, *size)
    mask = mask.reshape(-1, *mask.shape[-2:]).to(images)
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask[:, None], size, mode="bilinear", antialias=True)[:, 0]
    return mask.clamp(0, 1)


def cell_mask(mask: Tensor, cell: int, rule: str = ANY, grow: int = 0) -> Tensor:
    """The mask (B, H, W) as cells (B, ceil(H / cell), ceil(W / cell)).

    Args:
        rule: "any pixel" masks a cell that the mask touches, "half" one it covers by half; "soft" gives a cell the mean
            of its pixels. Cells at the edge count the pixels that they have.
        grow: Cells to add around the masked ones.
    """
    height, width = mask.shape[-2:]
    edges = (0, -width % cell, 0, -height % cell)
    padded = F.pad(mask[:, None], edges)
    if rule == ANY:
        cells = (F.max_pool2d(padded, cell) > TOUCHED).to(mask)
    else:
        there = F.pad(torch.ones_like(mask[:1, None]), edges)
        mean = F.avg_pool2d(padded, cell) / F.avg_pool2d(there, cell)
        cells = (mean >= 0.5).to(mask) if rule == HALF else mean.clamp(0, 1)
    return grown(cells[:, 0], grow)


def grown(cells: Tensor, grow: int) -> Tensor:
    """Cells (B, h, w) with as many around the masked ones."""
    return F.max_pool2d(cells, 2 * grow + 1, stride=1, padding=grow) if grow else cells


def enlarge(cells: Tensor, cell: int) -> Tensor:
    """Cells (B, h, w) as pixels (B, h cell, w cell), which the host's sampling of masks gives back unchanged."""
    return cells.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)


def feather_outwards(mask: Tensor, feather: int) -> Tensor:
    """Weights (B, H, W) of a result over the original: 1 where the mask touches, falling to exactly 0 beyond `feather`.

    They fall in a straight line with the Euclidean distance in pixels.
    """
    inside, far = mask > TOUCHED, float(feather + 1)
    along = _distance_along_rows(inside).clamp(max=far)
    squared = torch.full_like(along, far * far)
    height = along.shape[-2]
    for step in range(-min(feather, height - 1), min(feather, height - 1) + 1):
        here, there = slice(max(0, -step), height - max(0, step)), slice(max(0, step), height - max(0, -step))
        nearer = along[:, there] ** 2 + step * step
        squared[:, here] = torch.minimum(squared[:, here], nearer)
    return (1 - squared.sqrt() / far).clamp(0, 1)


def composite(original: Tensor, result: Tensor, mask: Tensor, feather: int = 24) -> Tensor:
    """The result over the original: bit-equal to the original outside the mask and its feather.

    Args:
        original: (B, H, W, C), see `rgb`.
        result: As `original`, or larger at its right and bottom, or smaller and then centered, by less than a cell.
        mask: (B, H, W) or (H, W) of what was to be generated. Each of the three may hold one for all.
        feather: Pixels over which the result fades into the original, outside the mask.

    Raises:
        ValueError: for sizes or batches that do not belong together.
    """
    original, result = rgb(original, "original"), rgb(result, "result").to(original)
    mask = mask.reshape(-1, *mask.shape[-2:]).to(original)
    size = mask.shape[-2:]
    if original.shape[1:3] != size:
        raise ValueError(
            f"The original is {_size(original.shape[1:3])} px, but the mask is {_size(size)} px: connect image and "
            "mask of the same SANA Inpaint Latent."
        )
    count = batch_size({"original": original, "result": result, "mask": mask})
    original, mask = original.expand(count, -1, -1, -1), mask.expand(count, -1, -1)
    placed, there = _place(result.expand(count, -1, -1, -1), size)
    weight = (feather_outwards(mask, feather) * there)[..., None]
    mixed = original + weight * (placed - original)
    return torch.where(weight == 0, original, torch.where(weight == 1, placed, mixed))


def batch_size(parts: dict[str, Tensor]) -> int:
    """How many images parts of one or of equally many make together. Raises ValueError for other numbers."""
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values()) - {1}) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"The batches do not fit together, there are {found}: connect one for all, or equally many.")
    return max(counts.values())


def center_crop(images: Tensor, cell: int) -> Tensor:
    """(B, H, W, ...) cropped evenly to multiples of a cell, as the host's VAE crops a picture."""
    (top, height), (left, width) = ((side % cell // 2, side // cell * cell) for side in images.shape[1:3])
    return images[:, top : top + height, left : left + width]


def _mirrored(length: int, before: int, after: int, device: torch.device) -> Tensor:
    period = max(2 * (length - 1), 1)
    position = torch.arange(-before, length + after, device=device) % period
    return torch.minimum(position, period - position)


def _distance_along_rows(inside: Tensor) -> Tensor:
    """Pixels to the nearest one of its row that is inside; very many where there is none."""
    width = inside.shape[-1]
    position = torch.arange(width, device=inside.device, dtype=torch.float32).expand(inside.shape)
    before = position - position.masked_fill(~inside, -1e6).cummax(-1).values
    after = position.masked_fill(~inside, 1e6).flip(-1).cummin(-1).values.flip(-1) - position
    return torch.minimum(before, after)


def _place(result: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The result on a canvas (height, width), and (1, H, W) ones where it lies there."""
    placed = result.new_zeros(len(result), *size, 3)
    there = result.new_zeros(1, *size)
    differences = [have - want for have, want in zip(result.shape[1:3], size, strict=True)]
    if max(map(abs, differences)) >= 64:
        raise ValueError(
            f"The result is {_size(result.shape[1:3])} px, but the original is {_size(size)} px: connect the image "
            "decoded from the latent of SANA Inpaint Latent, at its own size."
        )
    top, left = (max(0, -difference) // 2 for difference in differences)
    height, width = (min(have, want) for have, want in zip(result.shape[1:3], size, strict=True))
    placed[:, top : top + height, left : left + width] = result[:, :height, :width]
    there[:, top : top + height, left : left + width] = 1
    return placed, there


def _size(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]}"
