"""What the name of a file or folder tells of a SANA release, for what no tensor tells: native size, format of training,
shift.

Source: names of the releases on the hub, of diffusers' and trainers' folders, and of the hub's own cache.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

# What a file or folder name tells of a release, however the user joins the words: "Sana_1600M_1024px_BF16",
# "sana-1.6b-1024". A picture size counts only with its unit or after the model's size: people count steps so too.
SIZE = r"(?:600m|1600m|4800m|0\.6b|1\.6b|4\.8b)"
NAMED_SIZES = {
    128: re.compile(rf"4kpx|4096px|{SIZE}[^a-z0-9]*(?:4k|4096)(?![a-z0-9])"),
    64: re.compile(rf"2kpx|2048px|{SIZE}[^a-z0-9]*(?:2k|2048)(?![a-z0-9])"),
    32: re.compile(rf"1024px|{SIZE}[^a-z0-9]*1024(?!\d)"),
    16: re.compile(rf"512px|{SIZE}[^a-z0-9]*512(?!\d)"),
}
# The first releases were trained in float16 unless their name says BF16; those with qk-norm are told by tensors.
FIRST_RELEASE = re.compile(r"sana.*?(?:600m|1600m|0\.6b|1\.6b)[^a-z0-9]*(?:512|1024)(?!\d)")
BFLOAT16_RELEASE = re.compile(rf"sana.*?{SIZE}.*bf16")
SMALL_AT_1024 = re.compile(r"sana.*?(?:600m|0\.6b)[^a-z0-9]*1024(?!\d)")


def native_sample_size(names: list[str], source_config: Mapping[str, Any], positions: int | None) -> int:
    """Latent side the model was trained at, from config.json, a saved position table or the names; else 32."""
    if "sample_size" in source_config:
        return int(source_config["sample_size"])
    if positions is not None:
        return isqrt(positions)
    for name in names:
        for size, pattern in NAMED_SIZES.items():
            if pattern.search(name):
                return size
    return 32


def training_format(names: list[str], qk_norm: bool, sample_size: int) -> str | None:
    """ "float16" or "bfloat16", as a release was trained; None when nothing tells.

    All with qk-norm or of 2K and 4K were trained in bfloat16, so tensors, config.json or the position table tell those.
    """
    if qk_norm or sample_size >= 64 or any(map(BFLOAT16_RELEASE.search, names)):
        return "bfloat16"
    return "float16" if any(map(FIRST_RELEASE.search, names)) else None


def release_shift(
    names: list[str], source: Mapping[str, Any], positions: int | None, small: bool, sample_size: int
) -> float:
    """Shift of the noise schedule: config.json's, else of the release. small: the 0.6B without qk-norm.

    NVIDIA's own files of the 0.6B at 1024 px take 4; its diffusers folder says 3.
    """
    if "flow_shift" in source:
        return float(source["flow_shift"])
    if small and sample_size == 32 and (positions is not None or any(map(SMALL_AT_1024.search, names))):
        return 4.0
    return 6.0 if sample_size >= 128 else 3.0
