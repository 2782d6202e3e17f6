"""How much two pictures of equal size differ: PSNR, SSIM, and a map of where; and how far apart two latents are.

Source: Wang et al., Image Quality Assessment, 2004 (SSIM, with its window of 11 and sigma 1.5). Checked against
torchmetrics.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
STABLE = (0.01**2, 0.03**2)  # of values from 0 to 1
EQUAL = math.inf  # PSNR of equal pictures
# Colors of the map from no difference to all, as (r, g, b) at equal distances.
COLORS = ((0.0, 0.0, 0.0), (0.35, 0.05, 0.45), (0.8, 0.2, 0.3), (1.0, 0.6, 0.1), (1.0, 1.0, 0.85))


@dataclass(frozen=True)
class Difference:
    """PSNR in dB (infinite for equal pictures), SSIM (1 for equal ones), the largest difference of values in [0, 1]."""

    psnr: float
    ssim: float
    largest: float

    def __str__(self) -> str:
        if self.largest == 0:
            return "equal, bit for bit"
        return f"PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, largest difference {self.largest:.4f}"


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1]."""
    error = (a.double() - b.double()).square().mean().item()
    return EQUAL if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of (H, W, C) in [0, 1], over a window at every pixel, mirrored at the edges.

    Raises: ValueError for a picture smaller than half a window.
    """
    half = WINDOW // 2
    if min(a.shape[:2]) <= half:
        raise ValueError(
            f"SSIM needs sides of more than {half} px, and this picture is {a.shape[1]} x {a.shape[0]} px."
        )
    places = torch.arange(-half, half + 1, dtype=torch.float64)
    line = torch.exp(-places.square() / (2 * SIGMA**2))
    line = line / line.sum()

    def blurred(x: Tensor) -> Tensor:  # (C, H, W)
        x = torch.nn.functional.pad(x[:, None], (half,) * 4, mode="reflect")
        x = torch.nn.functional.conv2d(x, line[None, None, :, None])
        return torch.nn.functional.conv2d(x, line[None, None, None])[:, 0]

    x, y = (one.double().cpu().movedim(-1, 0) for one in (a, b))
    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x.square(), blurred(y * y) - mean_y.square()
    both = blurred(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + STABLE[0]) / (mean_x.square() + mean_y.square() + STABLE[0])
    return (likeness * (2 * both + STABLE[1]) / (var_x + var_y + STABLE[1])).mean().item()


def difference_of(a: Tensor, b: Tensor) -> Difference:
    """Of pictures (H, W, C) with values in [0, 1].

    Raises: ValueError for pictures of two sizes or numbers of channels, and for values that are not finite.
    """
    require_equal_sizes(a, b)
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError(
            "A picture has values that are not finite, so there is no difference; look for the node that made them, "
            "such as a VAE in float16."
        )
    return Difference(psnr(a, b), ssim(a, b), (a.double() - b.double()).abs().max().item())


def require_equal_sizes(a: Tensor, b: Tensor) -> None:
    if a.shape[2] != b.shape[2]:
        raise ValueError(
            f"Pictures of {a.shape[2]} and of {b.shape[2]} channels have no difference; give both or neither an alpha "
            "channel, as with Split Image with Alpha."
        )
    if a.shape != b.shape:
        sizes = [f"{one.shape[1]} x {one.shape[0]} px in {one.shape[2]} channels" for one in (a, b)]
        raise ValueError(
            f"Pictures of {sizes[0]} and of {sizes[1]} have no difference; bring both to one size, as with SANA Fit "
            "Back."
        )


def latent_distance(latent: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference of latents of one shape, relative to that of the reference; 0 for equal ones.

    Raises: ValueError for latents of two shapes, or a reference of zeros.
    """
    if latent.shape != reference.shape:
        shapes = f"{tuple(latent.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"Latents of shapes {shapes} have no distance; generate both at one size with one VAE.")
    length = reference.double().square().mean().sqrt().item()
    if not length:
        raise ValueError(
            "The reference latent is zero everywhere, so no distance is relative to it; generate an image."
        )
    return (latent.double() - reference.double()).square().mean().sqrt().item() / length


def difference_map(a: Tensor, b: Tensor, gain: float = 4.0) -> Tensor:
    """Where two pictures (H, W, C) differ, (H, W, 3): black where they are equal, bright where `gain` times the largest
    channel's difference is 1 or more.
    """
    require_equal_sizes(a, b)
    level = (gain * (a - b).abs().amax(dim=-1)).clamp(0, 1) * (len(COLORS) - 1)
    lower = level.floor().clamp_max(len(COLORS) - 2).long()
    colors = torch.tensor(COLORS, device=a.device)
    part = (level - lower)[..., None]
    return colors[lower] * (1 - part) + colors[lower + 1] * part
