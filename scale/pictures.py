"""Pictures as files of the store: their names, and the width and height that png, jpg and webp begin with.

Pure: the standard library. Source: PNG (ISO/IEC 15948) 11.2.2, JPEG (ITU-T T.81) B.2.2, WebP container and VP8 (RFC
6386) 9.1.
"""

import hashlib
import struct

FOLDER, MORE = "images", "more"  # of a row's first picture, and of further ones
# Frame headers of JPEG are the markers C0 to CF but for tables (C4), extensions (C8) and arithmetic conditions (CC).
NO_FRAME = {0xC4, 0xC8, 0xCC}


def picture_name(name: str, number: int, suffix: str) -> str:
    """Path in the store: a row's first picture under its own name, further ones in a folder where no first one is."""
    shelf = hashlib.sha1(name.encode()).hexdigest()[:3]
    return f"{MORE}/{shelf}/{name}_{number}{suffix}" if number else f"{FOLDER}/{shelf}/{name}{suffix}"


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height of a picture in px; (0, 0) for what is none of the three formats, or is cut off."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp_size(data)
    except (struct.error, IndexError):
        pass
    return 0, 0


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Of the first frame header among the segments, each of which says how long it is."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">xBH", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of a lossy, lossless or extended file, which begin with other chunks."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF  # two bits above are for scaling
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        width, above_width, height, above_height = struct.unpack_from("<HBHB", data, 24)  # 24 bits each
        return width + (above_width << 16) + 1, height + (above_height << 16) + 1
    return 0, 0
