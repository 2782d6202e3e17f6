"""The noise schedule of SANA in the host's terms: rectified flow with a shift.

Source: SANA, arXiv 2410.10629 appendix (Flow-DPM-Solver). SANA-Sprint needs no class of its own: with sigma = sin t /
(sin t + cos t) TrigFlow is the same rectified flow (SANA-Sprint, arXiv 2503.09641, section 3.1).
"""

import torch
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow, time_snr_shift
from torch import Tensor

from ..runtime.run_checks import HIGHEST_FLOW

FIRST_TIME = 0.999  # SANA's grids begin here and treat it as pure noise


def require_flow(model_sampling: object) -> None:
    """Raises ValueError where a stock node has put another kind of sampling in the place of SANA's flow."""
    if isinstance(model_sampling, CONST) and float(model_sampling.sigma_max) <= HIGHEST_FLOW:
        return
    kinds = " with ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This SANA model was set to sample as {kinds}, but it was trained on a rectified flow: bypass the "
        "ModelSampling node that set it, or take ModelSamplingSD3, which changes the shift only."
    )


def time_factor(model_sampling: object) -> float:
    """What the host's timestep is of sigma: 1000, or 1 for the classes that have no multiplier, such as Flux's."""
    return getattr(model_sampling, "multiplier", 1.0)


class ModelSamplingSana(ModelSamplingDiscreteFlow, CONST):
    """Rectified flow that begins with unscaled noise at the first sigma of SANA's own grids, as the reference does."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        first = time_snr_shift(self.shift, FIRST_TIME)
        # A latent handed on with its noise, as an inversion leaves it, has none here: undo inverse_noise_scaling.
        starts = (sigma >= first - 1e-6) & noise.any()  # not an `if`, which would wait for the device
        sigma = torch.where(starts, torch.ones_like(sigma), sigma)
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)
