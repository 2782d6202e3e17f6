"""The explicit midpoint method for rectified flows, the second-order solver that Lumina-Next's authors sample with.

Source: Lumina-Next, arXiv 2406.18583 section 2.4; torchdiffeq's "midpoint" in its authors' demo.
"""

from collections.abc import Callable

import torch
from comfy.utils import model_trange
from torch import Tensor


def sample_midpoint(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
) -> Tensor:
    """Steps along the slope at the middle of each step, which takes two evaluations of the model.

    The middle is that of the noise levels themselves; the host's `dpm_2` takes that of their logarithms, and a plain
    Euler step at the end.

    Args:
        model: Denoiser of the k-diffusion contract on a rectified flow.
        x: Noisy latent (B, C, H, W) at sigmas[0].
        sigmas: Noise levels (steps + 1,), descending, such as `schedules.get_sigmas_lumina` gives.
        extra_args: Passed to the model.
    """
    extra_args, ones, levels = extra_args or {}, x.new_ones([x.shape[0]]), sigmas.tolist()
    for i in model_trange(len(levels) - 1, disable=disable):
        if levels[i] == levels[i + 1]:  # an empty step, which at 0 would divide by it
            continue
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = model(x, sigma * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        middle = (sigma + sigma_next) / 2
        halfway = torch.lerp(denoised, x, middle / sigma)
        slope = (halfway - model(halfway, middle * ones, **extra_args)) / middle
        x = x + slope * (sigma_next - sigma)
    return x
