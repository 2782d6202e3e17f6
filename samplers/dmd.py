"""One step of PixArt-alpha's DMD: noise of unit variance is taken for timestep 400, and its image is predicted.

Source: Distribution Matching Distillation, arXiv 2311.18828; diffusers' PixArtAlphaPipeline with one inference step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .schedules import pixart_sigma

DMD_TIMESTEP = 400  # the only one that was distilled
FIRST_TIMESTEP = 999
TOLERANCE = 1e-3  # of the first sigma, which the host keeps in float32


def sample_pixart_dmd(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,  # noqa: ARG001 - the contract's arguments
) -> Tensor:
    """The image predicted from pure noise in one step, whatever the number of steps.

    Args:
        model: Denoiser of the k-diffusion contract on PixArt's sigmas.
        x: Pure noise (B, C, H, W) at sigmas[0], as the host scales it.
        sigmas: Noise levels (steps + 1,), of which the first must be PixArt's highest.

    Raises:
        ValueError: for a run that begins below pure noise, or from an image.
    """
    if len(sigmas) < 2:
        return x
    first, highest = float(sigmas[0]), pixart_sigma(FIRST_TIMESTEP)
    if abs(first - highest) > TOLERANCE * highest:
        raise ValueError(
            f"The sampler sana_pixart_dmd begins at pure noise, {highest:.4g}, not at {first:.4g}: set denoise to 1, "
            "and use it with PixArt-alpha's DMD model alone."
        )
    given = getattr(model, "latent_image", None)
    if given is not None and bool(given.any()):
        raise ValueError(
            "The sampler sana_pixart_dmd makes new images and ignores the one it was given: use SANA Empty Latent."
        )
    sigma = pixart_sigma(DMD_TIMESTEP)
    noise = x / (1 + first**2) ** 0.5
    levels = torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)
    image = model(noise * (1 + sigma**2) ** 0.5, levels, **(extra_args or {}))
    if callback is not None:
        callback({"x": x, "i": 0, "sigma": sigmas[0], "sigma_hat": sigmas[0], "denoised": image})
    return image
