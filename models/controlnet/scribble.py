"""White lines on black, as SANA's ControlNets were trained on, from a drawing or from a soft edge map.

Source: NVlabs/Sana, `tools/controlnet/utils.py`: non-maximum suppression of an edge map, blur, threshold, and lines
made thinner or thicker. Its constants are for pixel values of 0 to 255.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SKETCH, EDGE_MAP = "sketch", "edge map"
MODES = (SKETCH, EDGE_MAP)
MAX_THICKNESS = 24  # up to which the released ControlNets were trained
SIGMA = 3.0  # of both blurs, in pixels
EDGE_THRESHOLD = 127.0  # of an edge's peak
LINE_THRESHOLD = 4.0  # of the blurred peaks: lines of about 15 pixels
ERODED_BY = 4
# Neighbours that a peak is compared with, one line through the pixel each: across, down and both diagonals.
DIRECTIONS = (
    ((0, 0, 0), (1, 1, 1), (0, 0, 0)),
    ((0, 1, 0), (0, 1, 0), (0, 1, 0)),
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
)


def scribble(image: Tensor, mode: str = SKETCH, thickness: int = 2) -> Tensor:
    """Binary lines, 1 on 0, of images (B, H, W, C) in [0, 1] -> (B, H, W, 3).

    mode: SKETCH for a drawing, dark on bright or bright on dark; EDGE_MAP for the soft map of an edge detector.
    thickness: 0 to 24; 0 erodes the lines, 1 to 3 leave them, more makes them wider by half of it.
    """
    image = image[..., :3].movedim(-1, 1).float()
    lines = lines_of_sketch(image) if mode == SKETCH else lines_of_edges(image.mean(dim=1, keepdim=True))
    return with_thickness(lines, thickness).movedim(1, -1).expand(-1, -1, -1, 3).contiguous()


def lines_of_sketch(image: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H, W): what differs from a bright or dark border by half of the range in any channel."""
    edges = (image[..., 0, :], image[..., -1, :], image[..., 0], image[..., -1])
    border = torch.cat([edge.flatten(1) for edge in edges], dim=1).mean(dim=1)
    bright = (border > 0.5)[:, None, None, None]
    return (torch.where(bright, 1 - image, image).amax(dim=1, keepdim=True) > 0.5).float()


def lines_of_edges(edges: Tensor) -> Tensor:
    """Soft edges (B, 1, H, W) -> lines of even width along their peaks."""
    blurred = blur(edges * 255, 25)
    peak = torch.zeros_like(blurred, dtype=torch.bool)
    for direction in DIRECTIONS:
        peak |= largest_along(blurred, direction) == blurred
    peaks = 255.0 * (peak & (blurred > EDGE_THRESHOLD))
    return (blur(peaks, 19).round() > LINE_THRESHOLD).float()


def largest_along(x: Tensor, direction: tuple[tuple[int, ...], ...]) -> Tensor:
    """Largest of each pixel and its two neighbours in one direction; (B, 1, H, W)."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
    places = [(row, column) for row in range(3) for column in range(3) if direction[row][column]]
    return torch.stack([padded[..., row : row + height, column : column + width] for row, column in places]).amax(dim=0)


def blur(x: Tensor, size: int) -> Tensor:
    """Gaussian blur of (B, 1, H, W) with a kernel of `size` pixels, mirrored at the borders."""
    at = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    kernel = torch.exp(-at.square() / (2 * SIGMA**2))
    kernel = kernel / kernel.sum()
    x = F.conv2d(mirrored(x, size // 2, dim=-1), kernel[None, None, None])
    return F.conv2d(mirrored(x, size // 2, dim=-2), kernel[None, None, :, None])


def mirrored(x: Tensor, width: int, dim: int) -> Tensor:
    """x with `width` more pixels at both ends of a dimension, mirrored as often as a short one needs."""
    length = x.shape[dim]
    at = torch.arange(-width, length + width, device=x.device)
    if length == 1:
        return x.index_select(dim, at * 0)
    period = 2 * (length - 1)
    at = at % period
    return x.index_select(dim, torch.where(at < length, at, period - at))


def with_thickness(lines: Tensor, thickness: int) -> Tensor:
    """Lines (B, 1, H, W) made thinner at 0, as they are from 1 to 3, wider from 4 on."""
    if thickness == 0:
        return 1 - dilated(1 - lines, ERODED_BY)
    size = thickness // 2
    return dilated(lines, size) if size > 1 else lines


def dilated(x: Tensor, size: int) -> Tensor:
    """Largest value of a square of `size` pixels around each; zeros beyond the border."""
    before, after = size // 2, size - 1 - size // 2
    return F.max_pool2d(F.pad(x, (before, after, before, after)), size, stride=1)
