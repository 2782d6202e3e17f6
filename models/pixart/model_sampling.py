"""The noise levels of PixArt's LCM in the host's terms: every 20th of the 1000 timesteps, and a boundary at the image.

Source: Latent Consistency Models, arXiv 2310.04378, section 4; PixArt-delta, arXiv 2401.05252.
"""

from comfy.model_sampling import EPS, V_PREDICTION, X0, ModelSamplingDiscrete
from torch import Tensor

TIMESTEPS = 1000
STRIDE = 20  # timesteps between those that were distilled: 19, 39, ..., 999
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
HIGHEST_SIGMA = 157.407  # of the last of the 1000 timesteps, in units of the image
TOLERANCE = 1e-3  # of a noise level, which the host computes in float32


def require_noise_prediction(model_sampling: object) -> None:
    """Raises ValueError where a stock node has put another kind of sampling in the place of PixArt's noise levels."""
    predicts_noise = isinstance(model_sampling, EPS) and not isinstance(model_sampling, V_PREDICTION | X0)
    if predicts_noise and isinstance(model_sampling, ModelSamplingDiscrete):
        if abs(float(model_sampling.sigma_max) - HIGHEST_SIGMA) <= TOLERANCE * HIGHEST_SIGMA:
            return
    kinds = " with ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise ValueError(
        f"This PixArt model was set to sample as {kinds} from {float(model_sampling.sigma_max):.4g}, but it predicts "
        f"noise at levels from {HIGHEST_SIGMA:.4g} to 0: bypass the ModelSampling node that set it, or take "
        "ModelSamplingDiscrete with eps, or with lcm for an LCM LoRA, and zsnr off."
    )


class ModelSamplingLCM(ModelSamplingDiscrete, EPS):
    """Discrete noise levels of the distilled timesteps, whose prediction is blended with the input near the image."""

    def __init__(self, model_config):
        super().__init__(model_config)
        self.set_sigmas(self.sigmas[STRIDE - 1 :: STRIDE].clone())

    def timestep(self, sigma: Tensor) -> Tensor:
        return super().timestep(sigma) * STRIDE + (STRIDE - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        return super().sigma((timestep.float() - (STRIDE - 1)) / STRIDE)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """x0 (B, C, H, W) of noise predicted at sigma (B,), with the consistency model's boundary condition."""
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        t = self.timestep(sigma).view(-1, *[1] * (x0.ndim - 1)) * TIMESTEP_SCALING
        total = t**2 + SIGMA_DATA**2
        return x0 * (t / total**0.5) + model_input * (SIGMA_DATA**2 / total)


def is_consistency(model_sampling: object) -> bool:
    """Whether a model samples at the distilled timesteps alone: ours, or what the host's node makes for an LCM LoRA."""
    return len(getattr(model_sampling, "sigmas", ())) == TIMESTEPS // STRIDE
