"""The noise schedule of SANA in the host's terms: rectified flow with a shift.

Source: SANA, arXiv 2410.10629 appendix (Flow-DPM-Solver). SANA-Sprint needs no class of its own: with sigma = sin t /
(sin t + cos t) TrigFlow is the same rectified flow (SANA-Sprint, arXiv 2503.09641, section 3.1).
"""

import torch
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow, time_snr_shift
from torch import Tensor

FIRST_TIME = 0.999  # SANA's grids begin here and treat it as pure noise


class ModelSamplingSana(ModelSamplingDiscreteFlow, CONST):
    """Rectified flow that begins with unscaled noise at the first sigma of SANA's own grids, as the reference does."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        first = time_snr_shift(self.shift, FIRST_TIME)
        sigma = torch.where(sigma >= first - 1e-6, torch.ones_like(sigma), sigma)
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)
