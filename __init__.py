"""SANA Native: NVIDIA's SANA family as a first-class citizen of ComfyUI."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
