"""A small masked part of a picture, enlarged to the size a model was trained at, and put back.

A part of 100 px is three cells wide in a 32 px latent, too few for detail; enlarged to 1024 px it has 32.
Pictures are (B, H, W, C), masks (B, H, W), both in [0, 1].
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import TOUCHED, batch_size, composite, fit_mask, rgb

STEP = 32  # sides of the enlarged part in pixels are multiples of it, whole cells of every VAE
NARROWEST = 2  # a part is at most so many times as long as wide, which models were trained on


@dataclass(frozen=True)
class Crop:
    """Where the parts of a batch lie: all of one size, one place each. context: pixels around the mask."""

    original: Tensor
    mask: Tensor
    places: tuple[tuple[int, int], ...]  # (top, left)
    height: int
    width: int
    context: int

    def cut(self, batch: Tensor) -> Tensor:
        """(B, H, W, ...) -> (B, height, width, ...)"""
        parts = zip(batch, self.places, strict=True)
        return torch.stack([part[top : top + self.height, left : left + self.width] for part, (top, left) in parts])


def crop_to_mask(image: Tensor, mask: Tensor | None, size: int, context: int = 64) -> tuple[Crop, Tensor, Tensor]:
    """Cut out what is masked with some context around it, and scale it to about size x size pixels.

    Returns the place, the parts (B, h, w, 3) and their masks (B, h, w); h and w are multiples of 32.

    Raises:
        ValueError: if a mask is empty, or the batches do not fit.
    """
    image = rgb(image)
    fitted = fit_mask(mask, image)
    count = batch_size({"image": image, "mask": fitted})
    boxes = [_masked_box(one, number, len(fitted)) for number, one in enumerate(fitted, 1)]
    boxes = boxes if len(boxes) == count else boxes * count
    images, masks = image.expand(count, -1, -1, -1), fitted.expand(count, -1, -1)
    limits = images.shape[1:3]
    sides = [max(box[axis][1] - box[axis][0] for box in boxes) + 2 * context for axis in (0, 1)]
    sides = [max(side, math.ceil(max(sides) / NARROWEST)) for side in sides]
    height, width = (min(side, limit) for side, limit in zip(sides, limits, strict=True))
    places = tuple((_start(rows, height, limits[0]), _start(columns, width, limits[1])) for rows, columns in boxes)
    crop = Crop(images, masks, places, height, width, context)
    scale = size / math.sqrt(height * width)
    target = tuple(max(STEP, round(side * scale / STEP) * STEP) for side in (height, width))
    parts = resize(crop.cut(images), target)
    scaled = F.interpolate(crop.cut(masks)[:, None], target, mode="bilinear", antialias=True)[:, 0]
    return crop, parts, scaled.clamp(0, 1)


def stitch(crop: Crop, parts: Tensor, feather: int = 24) -> Tensor:
    """The parts (B, h, w, C) scaled back and composited into the original, exact outside the mask and its feather.

    The feather ends within the context, so that the part's own border does not show.

    Raises:
        ValueError: if there are neither one nor as many parts as originals, nor one original for all.
    """
    count = batch_size({"original": crop.original, "image": parts})
    single = len(crop.places) == 1
    originals, masks = crop.original.expand(count, -1, -1, -1), crop.mask.expand(count, -1, -1)
    whole = Crop(originals, masks, crop.places * (count if single else 1), crop.height, crop.width, crop.context)
    small = resize(rgb(parts).to(originals), (crop.height, crop.width)).expand(count, -1, -1, -1)
    merged = composite(whole.cut(originals), small, whole.cut(masks), min(feather, crop.context))
    stitched = originals.clone()
    for image, part, (top, left) in zip(stitched, merged, whole.places, strict=True):
        image[top : top + crop.height, left : left + crop.width] = part
    return stitched


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B, *size, C), bicubic with antialiasing, within [0, 1]."""
    scaled = F.interpolate(images.movedim(-1, 1), size, mode="bicubic", antialias=True)
    return scaled.clamp(0, 1).movedim(1, -1)


def _masked_box(mask: Tensor, number: int, count: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and one after the last of the masked rows, and of the columns. number: of the mask among `count`."""
    inside = mask > TOUCHED
    if not inside.any():
        where = "" if count == 1 else f" with mask {number} of {count}"
        raise ValueError(f"The mask is empty, so there is no part to cut out{where}: mask a part of the image.")
    found = []
    for axis in (1, 0):
        lines = inside.any(dim=axis).nonzero()
        found.append((int(lines[0]), int(lines[-1]) + 1))
    return found[0], found[1]


def _start(masked: tuple[int, int], length: int, limit: int) -> int:
    return min(max(0, (masked[0] + masked[1] - length) // 2), limit - length)
