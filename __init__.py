"""SANA Native: NVIDIA's SANA family as a first-class citizen of ComfyUI."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"  # help pages: web/docs/<node id>/<language>.md

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
