"""Latents to edit: a picture with a mask on its cells, and a latent enlarged to whole cells."""

import math
from dataclasses import dataclass

import comfy.sd
import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import (
    ANY,
    Sides,
    batch_size,
    cell_mask,
    center_crop,
    enlarge,
    fit_mask,
    grown,
    pad_by_reflection,
    pad_mask,
    rgb,
)

PAD, CROP = SIDES = ("pad", "crop")
PIXEL, LATENT = UPSCALE_METHODS = ("pixel", "latent")


@dataclass(frozen=True)
class InpaintTarget:
    """What to encode and how its mask lies on the latent.

    canvas (B, H, W, 3) and mask (M, H, W): the picture with what outpainting adds. pixels: the canvas at whole cells,
    to encode. noise_mask (M, h cell, w cell).
    """

    canvas: Tensor
    mask: Tensor
    pixels: Tensor
    noise_mask: Tensor


def cell_of(vae: comfy.sd.VAE) -> int:
    """Pixels a side of a cell of its latents: 32 of DC-AE, 8 of PixArt's and Lumina-Next's VAE.

    Raises:
        ValueError: for the VAE of videos or of sound, and without one.
    """
    if vae is None:
        raise ValueError("There is no VAE to encode with: connect that of SANA DC-AE Loader or Load VAE.")
    ratio = vae.spacial_compression_encode() if vae.latent_dim == 2 else None
    if not isinstance(ratio, int):
        raise ValueError(
            "This VAE does not encode single images, so its latent has no cells to mask: connect SANA DC-AE Loader, or "
            "Load VAE with the VAE of PixArt or Lumina-Next."
        )
    return ratio


def inpaint_target(
    image: Tensor, mask: Tensor | None, cell: int, sides: Sides, *, rule: str = ANY, grow: int = 1, fit: str = PAD
) -> InpaintTarget:
    """Lay a picture (B, H, W, C) and its mask (M, H, W) on whole cells, with `sides` added to be generated.

    Args:
        rule, grow: as of `cell_mask`; cells with added pixels are masked by any rule.
        fit: "pad" mirrors the picture at the right and bottom up to the next multiple of a cell; "crop" cuts it evenly
            down to one, and the mask does not touch what is cut. With added pixels it is padded.

    Raises:
        ValueError: if nothing is masked, a cropped picture has no cell, or the batches do not fit.
    """
    image = rgb(image)
    painted, canvas = fit_mask(mask, image), pad_by_reflection(image, sides)
    fitted, added = pad_mask(painted, sides), pad_mask(torch.zeros_like(painted[:1]), sides)
    batch_size({"image": image, "mask": fitted})
    pixels, covered = canvas, fitted
    if fit == CROP and sides == Sides():  # of added pixels the composite would leave the mirror image where it is cut
        pixels, covered = center_crop(canvas, cell), center_crop(fitted, cell)
        added = center_crop(added, cell)
        if 0 in pixels.shape:
            raise ValueError(
                f"The image is smaller than a cell of {cell} px, so nothing is left of it: set sides to pad."
            )
    height, width = pixels.shape[1:3]
    pixels = pad_by_reflection(pixels, Sides(right=-width % cell, bottom=-height % cell))
    # No rule leaves out what is added, however little of a cell it is.
    cells = grown(torch.maximum(cell_mask(covered, cell, rule), cell_mask(added, cell)), grow)
    if not cells.any():
        raise ValueError(
            f"No cell of {cell} x {cell} px is masked, so nothing would be generated: mask a part of the image, set "
            f"cells to {ANY}, or enter the pixels to add in left, top, right or bottom."
        )
    return InpaintTarget(canvas, fitted, pixels, enlarge(cells, cell))


def encode_target(vae: comfy.sd.VAE, target: InpaintTarget) -> dict[str, Tensor]:
    """The host's latent of a target, with its mask. A batch of masks over one image repeats its latent."""
    samples = vae.encode(target.pixels)
    if len(target.noise_mask) > len(samples):
        samples = samples.repeat(len(target.noise_mask), *[1] * (samples.ndim - 1))
    return {"samples": samples, "noise_mask": target.noise_mask}


def upscaled_size(height: int, width: int, cell: int, factor: float, megapixels: float = 0.0) -> tuple[int, int]:
    """(height, width) in cells nearest to `factor` times the size in cells, or to `megapixels` (of 2^20) unless 0."""
    if megapixels:
        factor = math.sqrt(megapixels * 2**20 / (height * width)) / cell
    return max(1, round(height * factor)), max(1, round(width * factor))


def upscale_latent(
    vae: comfy.sd.VAE, latent: dict, factor: float, megapixels: float = 0.0, method: str = PIXEL
) -> dict[str, Tensor]:
    """The host's latent at a larger or smaller size, in whole cells.

    "pixel" decodes, scales the image and encodes it; "latent" interpolates the latent, which blurs the image: 32
    channels at 1/32 hold a picture that is not their average. A mask goes along.

    Raises:
        ValueError: for a VAE or latent that is not of single images.
    """
    cell, samples = cell_of(vae), latent["samples"]
    if samples.ndim != 4:
        raise ValueError(f"This latent has {samples.ndim} dimensions, but an image's has 4: connect that of an image.")
    size = upscaled_size(*samples.shape[-2:], cell, factor, megapixels)
    if method == LATENT:
        larger = F.interpolate(samples.float(), size, mode="bilinear", antialias=True).to(samples)
    else:
        if samples.shape[1] != getattr(vae, "latent_channels", samples.shape[1]):
            raise ValueError(
                f"This latent has {samples.shape[1]} channels where this VAE decodes {vae.latent_channels}: connect "
                "the VAE of the model that made the latent."
            )
        images = vae.decode(samples).movedim(-1, 1)
        pixels = tuple(cell * side for side in size)
        images = F.interpolate(images.float(), pixels, mode="bicubic", antialias=True).clamp(0, 1)
        larger = vae.encode(images.movedim(1, -1))
    scaled = {key: value for key, value in latent.items() if key != "noise_mask"} | {"samples": larger}
    if (mask := latent.get("noise_mask")) is not None:
        # Every cell that the mask touches: sampled at the cells' centers, a small one would be lost.
        cells = F.adaptive_max_pool2d(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size)
        scaled["noise_mask"] = enlarge(cells[:, 0], cell)
    return scaled
