"""Checks of the latent that a run of any family is to denoise: of an image, its channels, its values finite."""

from torch import Tensor

from .precision import require_finite

LATENT_CURE = "look for the node that made it, often a VAE Encode in float16; use bfloat16 or float32 there"


def require_latent(latent: Tensor, channels: int, family: str, nodes: str, cure: str) -> None:
    """Raises ValueError for what is no latent of the family to denoise, or holds NaN or infinity.

    nodes: what makes a latent of the family. cure: of another number of channels.
    """
    require_image_latent(latent.shape, family, nodes)
    if latent.shape[1] != channels:
        raise ValueError(f"This latent has {latent.shape[1]} channels where {family} needs {channels}: {cure}.")
    require_finite(latent, "The latent to denoise", LATENT_CURE)


def require_image_latent(shape: tuple[int, ...], family: str, nodes: str) -> None:
    """Raises ValueError for the latent of a video or a sound, and for one without an image.

    nodes: what makes a latent of the family.
    """
    if len(shape) == 4 and 0 in shape:
        raise ValueError(
            f"The latent to denoise holds nothing, its shape is {tuple(shape)}: check the node that made it, such as "
            "Latent From Batch with an index beyond the batch."
        )
    if len(shape) == 4:
        return
    raise ValueError(
        f"The latent to denoise has {len(shape)} dimensions, {tuple(shape)}, but {family} needs the 4 of an image: "
        f"take {nodes}, instead of a video's or a sound's latent."
    )
