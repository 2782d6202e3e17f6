"""The CLIP file that scores need: found or named, with where it comes from, and loaded by the host's classes."""

from __future__ import annotations

from pathlib import Path

SOURCE = "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/model.safetensors"
NAME = "clip-vit-large-patch14.safetensors"


def require_clip(clip: str) -> Path:
    """The file, which holds both halves.  Raises: FileNotFoundError with the cure."""
    path = Path(clip or NAME).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: clip and cmmd need CLIP ViT-L/14 with both its halves; download {SOURCE} (1.7 GB), "
            f"save it as {NAME}, and give its path as CLIP=."
        )
    return path


def load_clip_vision(clip: str):
    """The picture's half.  Raises: ValueError for a file that is no CLIP Vision."""
    import comfy.clip_vision

    path = require_clip(clip)
    found = comfy.clip_vision.load(str(path))
    if found is None:
        raise ValueError(f"{path} holds no CLIP Vision that ComfyUI knows; take {SOURCE}.")
    return found


def load_clip(clip: str):
    """The text's half."""
    import comfy.sd

    return comfy.sd.load_clip([str(require_clip(clip))], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
