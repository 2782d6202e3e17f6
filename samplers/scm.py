"""SANA-Sprint's consistency sampling (sCM) with noise that is the same on every device.

Source: SANA-Sprint arXiv 2503.09641, sCM arXiv 2410.11081; diffusers' SCMScheduler("trigflow", sigma_data 0.5).
The steps are those of the host's `sample_lcm`, to the last bit; there is no TrigFlow code here, because none is needed:

    TrigFlow    x_t = cos t x0 + sin t z            x0 = cos t x_t - sin t F          z of standard deviation sigma_data
    flow        x_s = (1 - s) x0 + s e              x0 = x_s - s v                    e of standard deviation 1

With s = sin t / (sin t + cos t) a TrigFlow state divided by sigma_data (cos t + sin t) is a flow state, and the network
of SANA-Sprint is a velocity v of that flow. An sCM step then reads: predict x0, mix it with fresh noise at the next s.
"""

from collections.abc import Callable, Sequence

import torch
from comfy.utils import model_trange
from torch import Tensor

from .noise import step_noise_sampler


def sample_scm(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
    batch_index: Sequence[int] | None = None,
) -> Tensor:
    """Consistency steps: at every sigma predict the clean latent, then noise it afresh to the next sigma.

    Args:
        model: Denoiser of the k-diffusion contract on a rectified flow.
        x: Noisy latent (B, C, H, W) at sigmas[0].
        sigmas: Flow noise levels (steps + 1,), descending, see `schedules.get_sigmas_scm`.
        extra_args: Passed to the model; "seed" also seeds the noise of the steps.
        batch_index: Number of every image in the batch it comes from, which seeds its noise; None for 0 to B - 1.
    """
    if len(sigmas) < 2:
        return x
    extra_args = extra_args or {}
    noise_sampler = step_noise_sampler(x, extra_args.get("seed"), batch_index)
    # All of it before the first step: a copy to the device between two steps would wait for the one that runs.
    noise = [noise_sampler(None, None) if sigma > 0 else None for sigma in sigmas[1:].tolist()]
    return _sample_steps(model, x, sigmas, noise, extra_args, callback, disable)


@torch.no_grad()
def _sample_steps(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    noise: list[Tensor | None],
    extra_args: dict,
    callback: Callable | None,
    disable: bool | None,
) -> Tensor:
    """noise: for the end of every step, None where it ends without; a question that no step has to wait for."""
    s_in = x.new_ones([x.shape[0]])
    model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    for i in model_trange(len(noise), disable=disable):
        denoised = model(x, sigmas[i] * s_in, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised if noise[i] is None else model_sampling.noise_scaling(sigmas[i + 1], noise[i], denoised)
    return x
