"""CLIP embeddings of pictures and texts by the host's own CLIP Vision and CLIP, projected into the space they share."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CLIP_VISION, PROJECTION = "clip_vision_model", "visual_projection"
BATCH = 16  # pictures embedded at a time
WHERE_FROM = (
    "save model.safetensors of https://huggingface.co/openai/clip-vit-large-patch14 as "
    "clip-vit-large-patch14.safetensors in models/clip_vision, and again, or as a link, in models/text_encoders"
)


@torch.inference_mode()
def embed_images(vision, images: Tensor) -> np.ndarray:
    """Projected embeddings (B, D), not normalized, of the centers of pictures (B, H, W, C) in [0, 1].

    Raises: ValueError for an encoder that is no CLIP, or whose projection is missing.
    """
    if getattr(vision, "model_type", None) != CLIP_VISION:
        found = getattr(vision, "model_type", type(vision).__name__)
        raise ValueError(f"This CLIP Vision is a {found}, which has no text half; for a CLIP score {WHERE_FROM}.")
    require_projection(getattr(vision.model, PROJECTION, None), "CLIP Vision")
    parts = [vision.encode_image(part, crop=True)["image_embeds"] for part in images.split(BATCH)]
    return torch.cat(parts).float().cpu().numpy()


@torch.inference_mode()
def embed_texts(clip, texts: Sequence[str]) -> np.ndarray:
    """Projected embeddings (N, D), not normalized, of texts as they are written: parentheses are no weights.

    Of a long text the first 75 tokens count, all that CLIP can read.

    Raises: ValueError for an encoder that is no single CLIP, or whose projection is missing.
    """
    name = getattr(clip.cond_stage_model, "clip", None)
    transformer = getattr(getattr(clip.cond_stage_model, str(name), None), "transformer", None)
    projection = getattr(transformer, "text_projection", None)
    if projection is None:
        raise ValueError(
            f"This CLIP is a {type(clip.cond_stage_model).__name__}, not one CLIP text encoder; load it with Load CLIP "
            f"of type stable_diffusion: {WHERE_FROM}."
        )
    require_projection(projection, "CLIP")
    pooled = []
    for text in texts:
        tokens = clip.tokenize(text, disable_weights=True)
        pooled.append(clip.encode_from_tokens(tokens, return_pooled="unprojected")[1].float().cpu())
    # By hand: the host leaves the projection out for the encoder of Stable Diffusion 1, which needs none.
    return torch.nn.functional.linear(torch.cat(pooled), projection.weight.float().cpu()).numpy()


def require_projection(layer: torch.nn.Module | None, what: str) -> None:
    """Raises: ValueError for a missing projection, which the host leaves as it finds the memory."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.is_meta or not torch.isfinite(weight).all() or not weight.any():
        raise ValueError(
            f"The file of {what} lacks the projection into the space that pictures and texts share, as encoders made "
            f"for diffusion models do: {WHERE_FROM}."
        )
