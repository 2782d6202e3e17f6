"""A picture file of any kind -> RGB of the size it is trained at, and what was done to it."""

import io
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

ORIENTATION = 0x0112  # EXIF
NOTEWORTHY_CROP = 0.05
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")  # modes of Pillow, all gray
SIXTEEN_TO_EIGHT = 257
# What Pillow raises for a damaged file; an image of more than 179 million pixels is none that it opens.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass
class Picture:
    """RGB of a file. notes: what had to be converted."""

    image: Image.Image
    notes: list[str] = field(default_factory=list)


def read_picture(source: str | bytes) -> Picture:
    """An upright RGB picture of a path, or of a file's bytes.

    Raises ValueError with the reason for a file that Pillow cannot read to its end, or whose values have no known
    range.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            file.load()
            notes = [] if file.getexif().get(ORIENTATION, 1) == 1 else ["turned as its EXIF says"]
            image, is_png = ImageOps.exif_transpose(file), file.format == "PNG"
    except UnidentifiedImageError as error:
        raise ValueError("it is no picture that Pillow knows") from error
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    if image.mode in SIXTEEN_BITS or (image.mode == "I" and is_png):  # I: Pillow before 10.3
        values = np.asarray(image, dtype=np.float64) / SIXTEEN_TO_EIGHT
        return Picture(gray_of(values), [*notes, "16 bits made 8"])
    if image.mode == "F":
        return Picture(gray_of(255 * unit_floats(image)), [*notes, "floats made 8 bits"])
    if image.mode == "I":
        raise ValueError("its values are integers of 32 bits, whose range is not known: save it with 8 or 16")
    if image.mode == "CMYK":
        return Picture(image.convert("RGB"), [*notes, "CMYK converted to RGB"])
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, "white")
        return Picture(Image.alpha_composite(below, image).convert("RGB"), [*notes, "alpha laid on white"])
    return Picture(image.convert("RGB"), notes)


def gray_of(values: np.ndarray) -> Image.Image:
    """Of values (H, W) from 0 to 255."""
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


def unit_floats(image: Image.Image) -> np.ndarray:
    """Values (H, W) of a picture of floats. Raises ValueError for those that are not from 0 to 1."""
    values = np.asarray(image, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():  # not for NaN either
        found = f"from {values.min():g} to {values.max():g}" if np.isfinite(values).all() else "that are not finite"
        raise ValueError(f"its values are floats {found}, where 0 to 1 was expected: save it with 8 or 16 bits")
    return values


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
