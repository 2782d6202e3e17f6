"""Image sizes SANA was trained on: for every square size a table of aspect ratios, each with its height and width.

Source: the tables of diffusers' SANA pipelines, which come from PixArt-alpha (1024) and PixArt-Sigma (2048). The key is
height / width, rounded as there, because the nearest key decides.
"""

import math

RATIO = 32  # image pixels per latent cell

BINS_1024: dict[float, tuple[int, int]] = {
    0.25: (512, 2048),
    0.28: (512, 1856),
    0.32: (576, 1792),
    0.33: (576, 1728),
    0.35: (576, 1664),
    0.4: (640, 1600),
    0.42: (640, 1536),
    0.48: (704, 1472),
    0.5: (704, 1408),
    0.52: (704, 1344),
    0.57: (768, 1344),
    0.6: (768, 1280),
    0.68: (832, 1216),
    0.72: (832, 1152),
    0.78: (896, 1152),
    0.82: (896, 1088),
    0.88: (960, 1088),
    0.94: (960, 1024),
    1.0: (1024, 1024),
    1.07: (1024, 960),
    1.13: (1088, 960),
    1.21: (1088, 896),
    1.29: (1152, 896),
    1.38: (1152, 832),
    1.46: (1216, 832),
    1.67: (1280, 768),
    1.75: (1344, 768),
    2.0: (1408, 704),
    2.09: (1472, 704),
    2.4: (1536, 640),
    2.5: (1600, 640),
    3.0: (1728, 576),
    4.0: (2048, 512),
}

BINS_2048: dict[float, tuple[int, int]] = {
    0.25: (1024, 4096),
    0.26: (1024, 3968),
    0.27: (1024, 3840),
    0.28: (1024, 3712),
    0.32: (1152, 3584),
    0.33: (1152, 3456),
    0.35: (1152, 3328),
    0.4: (1280, 3200),
    0.42: (1280, 3072),
    0.48: (1408, 2944),
    0.5: (1408, 2816),
    0.52: (1408, 2688),
    0.57: (1536, 2688),
    0.6: (1536, 2560),
    0.68: (1664, 2432),
    0.72: (1664, 2304),
    0.78: (1792, 2304),
    0.82: (1792, 2176),
    0.88: (1920, 2176),
    0.94: (1920, 2048),
    1.0: (2048, 2048),
    1.07: (2048, 1920),
    1.13: (2176, 1920),
    1.21: (2176, 1792),
    1.29: (2304, 1792),
    1.38: (2304, 1664),
    1.46: (2432, 1664),
    1.67: (2560, 1536),
    1.75: (2688, 1536),
    2.0: (2816, 1408),
    2.09: (2944, 1408),
    2.4: (3072, 1280),
    2.5: (3200, 1280),
    2.89: (3328, 1152),
    3.0: (3456, 1152),
    3.11: (3584, 1152),
    3.62: (3712, 1024),
    3.75: (3840, 1024),
    3.88: (3968, 1024),
    4.0: (4096, 1024),
}

# Square size -> height / width -> (height, width) in pixels, all multiples of 32.
RESOLUTION_BINS: dict[int, dict[float, tuple[int, int]]] = {
    512: {ratio: (height // 2, width // 2) for ratio, (height, width) in BINS_1024.items()},
    1024: BINS_1024,
    2048: BINS_2048,
    4096: {ratio: (height * 2, width * 2) for ratio, (height, width) in BINS_2048.items()},
}

# What a user picks, width:height -> height / width: square, then wide and tall forms from mild to extreme.
ASPECT_RATIOS: dict[str, float] = {"1:1": 1.0} | {
    f"{a}:{b}": b / a
    for wide, tall in ((5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (21, 9), (3, 1), (4, 1))
    for a, b in ((wide, tall), (tall, wide))
}


SMALL_SIZE = 256  # of PixArt's smallest models and of the demo; its table's sides are multiples of 16 only


def nearest_bin(height: int, width: int, size: int) -> tuple[int, int]:
    """Trained (height, width) nearest in aspect ratio to the one asked for, as diffusers' pipelines bin it.

    Raises:
        ValueError: if the size has no table, or a side is not positive.
    """
    if height <= 0 or width <= 0:
        raise ValueError(f"The image is {width}x{height}, but both sides must be above 0; enter the size in pixels.")
    ratio, bins = height / width, _bins(size)
    return bins[min(bins, key=lambda key: abs(key - ratio))]


def bin_size(size: int, aspect_ratio: str) -> tuple[int, int]:
    """Trained (width, height) for a square size and a label of `ASPECT_RATIOS`; a tall label is its wide one turned.

    Raises:
        ValueError: if the size has no table, or the label is unknown.
    """
    if aspect_ratio not in ASPECT_RATIOS:
        raise ValueError(f"The aspect ratio {aspect_ratio} is unknown; choose one of {', '.join(ASPECT_RATIOS)}.")
    return bin_sides(size, *map(int, aspect_ratio.split(":")))


def bin_sides(size: int, width: float, height: float) -> tuple[int, int]:
    """Trained (width, height) for a square size, nearest in aspect ratio to two sides of any unit; tall as wide ones.

    Raises:
        ValueError: if the size has no table, or a side is not positive.
    """
    if size == SMALL_SIZE:
        return small_size(width, height)
    # The reference's own rounding is not symmetric (4:3 and 3:4 land on different rectangles); users expect it to be.
    short, long = nearest_bin(min(width, height), max(width, height), size)
    return (long, short) if width >= height else (short, long)


def exact_sides(width: int, height: int) -> tuple[int, int]:
    """The smallest multiples of 32 that hold (width, height): nothing is scaled on the way back."""
    return -(-width // RATIO) * RATIO, -(-height // RATIO) * RATIO


def scaled_sides(width: int, height: int, wanted: tuple[int, int], cover: bool) -> tuple[int, int]:
    """(width, height) of an image scaled to cover a wanted (width, height), or to fit inside it, one side exactly.

    In integers: the references' int(width * (wanted / width)) falls one short for 1018 of 37,249 sizes, and their crop
    then begins at -1.
    """
    by_width = wanted[0] * height, wanted[1] * width  # the larger tells which side asks for the larger scale
    if (by_width[0] >= by_width[1]) == cover:
        quotient, rest = divmod(height * wanted[0], width)
        return wanted[0], max(quotient + (cover and rest > 0), 1)
    quotient, rest = divmod(width * wanted[1], height)
    return max(quotient + (cover and rest > 0), 1), wanted[1]


def small_size(a: float, b: float) -> tuple[int, int]:
    """(width, height) of about 256 x 256 px for a ratio a : b; multiples of 32, so that SANA takes it too."""
    height, width = nearest_bin(b, a, 1024)
    sides = [(side // (4 * RATIO) * RATIO, -(-side // (4 * RATIO)) * RATIO) for side in (width, height)]
    return min(((w, h) for w in sides[0] for h in sides[1]), key=lambda size: abs(math.log(size[0] * b / size[1] / a)))


def describe_rounding(width: int, height: int) -> list[str]:
    """A line for a size in pixels that is no multiple of 32, which the latent rounds down; [] for one that is."""
    used = width // RATIO * RATIO, height // RATIO * RATIO
    if used == (width, height):
        return []
    return [f"{width} x {height} px becomes {used[0]} x {used[1]} px: SANA's sides are multiples of {RATIO}."]


def _bins(size: int) -> dict[float, tuple[int, int]]:
    if size not in RESOLUTION_BINS:
        sizes = ", ".join(map(str, RESOLUTION_BINS))
        raise ValueError(f"Size {size} has no trained resolutions, only {sizes} have; choose one of these.")
    return RESOLUTION_BINS[size]
