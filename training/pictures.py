"""A picture file of any kind -> RGB of the size it is trained at, and what was done to it."""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

ORIENTATION = 0x0112  # EXIF
NOTEWORTHY_CROP = 0.05
WIDE_GRAY = ("I", "I;16", "I;16B", "I;16L", "F")
SIXTEEN_TO_EIGHT = 257


@dataclass
class Picture:
    """RGB of a file. notes: what had to be converted."""

    image: Image.Image
    notes: list[str] = field(default_factory=list)


def read_picture(path: str) -> Picture:
    """An upright RGB picture; raises OSError or ValueError for a file that Pillow cannot read to its end."""
    with Image.open(path) as file:
        file.load()
        notes = [] if file.getexif().get(ORIENTATION, 1) == 1 else ["turned as its EXIF says"]
        image = ImageOps.exif_transpose(file)
    if image.mode in WIDE_GRAY:
        values = np.asarray(image, dtype=np.float64)
        values = values / SIXTEEN_TO_EIGHT if values.max(initial=0) > 255 else values
        return Picture(Image.fromarray(values.round().astype(np.uint8)).convert("RGB"), [*notes, "16 bits made 8"])
    if image.mode == "CMYK":
        return Picture(image.convert("RGB"), [*notes, "CMYK converted to RGB"])
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, "white")
        return Picture(Image.alpha_composite(below, image).convert("RGB"), [*notes, "alpha laid on white"])
    return Picture(image.convert("RGB"), notes)


def enlargement(image: Image.Image, size: Size) -> float:
    """How much a picture must grow to cover a size."""
    return max(size[0] / image.height, size[1] / image.width)


def cropped_part(image: Image.Image, size: Size) -> float:
    """The part of a picture that is cut off when it covers a size."""
    scale = enlargement(image, size)
    return 1 - size[0] * size[1] / (image.height * image.width * scale * scale)


def fit_picture(image: Image.Image, size: Size, mirrored: bool = False) -> Tensor:
    """Resized to cover the size and cropped in the middle: (H, W, 3) in [0, 1]."""
    image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
    image = ImageOps.mirror(image) if mirrored else image
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
