"""SANA-Sprint's consistency sampling (sCM) with noise that is the same on every device.

Source: SANA-Sprint arXiv 2503.09641, sCM arXiv 2410.11081; diffusers' SCMScheduler("trigflow", sigma_data 0.5).
The loop is the host's `sample_lcm`; there is no TrigFlow code here, because none is needed:

    TrigFlow    x_t = cos t x0 + sin t z            x0 = cos t x_t - sin t F          z of standard deviation sigma_data
    flow        x_s = (1 - s) x0 + s e              x0 = x_s - s v                    e of standard deviation 1

With s = sin t / (sin t + cos t) a TrigFlow state divided by sigma_data (cos t + sin t) is a flow state, and the network
of SANA-Sprint is a velocity v of that flow. An sCM step then reads: predict x0, mix it with fresh noise at the next s.
"""

from collections.abc import Callable, Sequence

from comfy.k_diffusion import sampling as k_diffusion
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
    noise_sampler = step_noise_sampler(x, (extra_args or {}).get("seed"), batch_index)
    return k_diffusion.sample_lcm(model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler)
