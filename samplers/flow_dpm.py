"""Flow-DPM-Solver: multistep DPM-Solver++ on a rectified flow, orders 1 to 3.

Source: DPM-Solver++ arXiv 2211.01095 (Algorithm 2 is order 2), SANA arXiv 2410.10629 (appendix: the same with alpha and
sigma of a flow); order 3 as in diffusers' DPMSolverMultistepScheduler(use_flow_sigmas, final_sigmas_type "zero").

A flow state is x_s = alpha_s x0 + sigma_s e with alpha = 1 - sigma. With lambda = log(alpha / sigma), half the log SNR,
the probability flow from s to t has the exact solution

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral over [lambda_s, lambda_t] of exp(lambda) x0(lambda) d lambda,

and the solver puts a polynomial through the last `order` predictions m0, m1, m2 of x0. With h = lambda_t - lambda_s:

    order 1   x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) m0
    order 2   ... + alpha_t (1 - exp(-h)) / 2 * D1                              (midpoint form)
    order 3   ... + alpha_t (1 - (1 - exp(-h)) / h) D1 - alpha_t ((h - 1 + exp(-h)) / h^2 - 1/2) D2

Order 1 is Euler, since alpha_t (1 - exp(-h)) = 1 - sigma_t / sigma_s, and the host's own code. Order 2 is the host's
`dpmpp_2m_sde` without its noise (not `dpmpp_2m`, which steps in -log sigma), to float32's rounding: the host computes
its coefficients on the device and asks for a value of them in every step, which the step before then has to finish for.

D1 and D2 estimate h x0' and h^2 x0'' / 2 by divided differences. The exact weight of this D2 is twice the one above:
the reference leaves the 2 out, and order 3 follows the reference, so it too converges with the square of the step only,
at a third to a half of order 2's error.
"""

import math
from collections.abc import Callable

import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.model_sampling import CONST
from comfy.utils import model_trange
from torch import Tensor

# Below this number of steps the reference also lowers the order of the last but one step.
FEW_STEPS = 15


def sample_flow_dpm(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict | None = None,
    callback: Callable | None = None,
    disable: bool | None = None,
    order: int = 2,
) -> Tensor:
    """Deterministic DPM-Solver++ steps along a rectified flow; the first and the last step are of order 1.

    Args:
        model: Denoiser of the k-diffusion contract on a rectified flow.
        x: Noisy latent (B, C, H, W) at sigmas[0]; the state keeps its dtype.
        sigmas: Flow noise levels (steps + 1,), descending from at most 1. A level that repeats the one before is a step
            of length zero and is skipped.
        extra_args: Passed to the model.
        order: 1, 2 or 3.

    Raises:
        ValueError: if the order is another, the model is no rectified flow, or a level before the last is 0.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"Flow-DPM was asked for order {order}, but it has 1, 2 and 3; choose 2.")
    model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
    if not isinstance(model_sampling, CONST):
        raise ValueError(
            f"Flow-DPM steps along a rectified flow, but this model samples as "
            f"{type(model_sampling).__name__}, which is none; choose a stock sampler such as dpmpp_2m, for a PixArt "
            "with the scheduler sana_pixart."
        )
    sigmas, callback = skip_empty_steps(sigmas, callback)
    levels = sigmas.tolist()
    if order > 1 and any(level <= 0 for level in levels[:-1]):
        raise ValueError(
            f"Flow-DPM was given the noise levels {', '.join(f'{level:.4g}' for level in levels)}, but only the last "
            "may be 0: take the schedule apart there, or choose order 1."
        )
    if order == 1:
        return k_diffusion.sample_euler(model, x, sigmas, extra_args, callback, disable)
    if order == 2:
        sigmas = k_diffusion.offset_first_sigma_for_snr(sigmas, model_sampling)  # as in the host's order 2
    return _sample_multistep(model, x, sigmas, sigmas.tolist(), order, extra_args or {}, callback, disable)


def skip_empty_steps(sigmas: Tensor, callback: Callable | None) -> tuple[Tensor, Callable | None]:
    """Sigmas without a level equal to the one before, where no solver can divide; callback still counts every step."""
    levels = sigmas.tolist()
    places = [i for i, level in enumerate(levels) if i == 0 or level != levels[i - 1]]
    if len(places) == len(levels):
        return sigmas, callback
    ends = [place - 1 for place in places[1:]]
    numbered = callback and (lambda info: callback(info | {"i": ends[info["i"]]}))
    return sigmas[places], numbered


@torch.no_grad()
def _sample_multistep(
    model: Callable,
    x: Tensor,
    sigmas: Tensor,
    levels: list[float],
    order: int,
    extra_args: dict,
    callback: Callable | None,
    disable: bool | None,
) -> Tensor:
    """Orders 2 and 3. levels: the sigmas as Python numbers, for coefficients that no step has to wait for."""
    s_in = x.new_ones([x.shape[0]])
    lambdas = [half_log_snr(sigma) for sigma in levels]
    orders = step_orders(levels, order)
    m: list[Tensor] = []  # predictions of x0, newest first
    for i in model_trange(len(levels) - 1, disable=disable):
        denoised = model(x, sigmas[i] * s_in, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        if levels[i + 1] == 0:
            x = denoised
            continue
        m = [denoised, *m[:2]]
        weights = multistep_weights(1 - levels[i + 1], lambdas[max(i - orders[i] + 1, 0) : i + 2])
        x = x * (levels[i + 1] / levels[i])
        for weight, prediction in zip(weights, m):
            x.add_(prediction, alpha=weight)
    return x


def half_log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma) of a flow noise level: -inf for pure noise, inf for the clean image."""
    if sigma <= 0 or sigma >= 1:
        return math.copysign(math.inf, 0.5 - sigma)
    return math.log((1 - sigma) / sigma)


def step_orders(sigmas: list[float], order: int = 3) -> list[int]:
    """Order of every step: it grows from 1 as predictions come in, and falls to 1 where sigma reaches 0.

    A schedule that stops above 0 is the first part of a divided run and does not fall.
    """
    n = len(sigmas) - 1
    orders = [min(order, i + 1) for i in range(n)]
    if n > 0 and sigmas[-1] == 0:
        orders[-1] = 1
        if 1 < n < FEW_STEPS:
            orders[-2] = min(orders[-2], 2)
    return orders


def multistep_weights(alpha_t: float, lambdas: list[float]) -> list[float]:
    """Weights of the predictions m0, m1, m2 in x_t, see the top of this file for the formulas.

    Args:
        alpha_t: 1 - sigma at the end of the step.
        lambdas: [..., lambda_s, lambda_t], two values for order 1, three for order 2, four for order 3. A first value
            of -inf (a run from sigma 1) is a prediction infinitely far away: it gets the weight 0.
    """
    *past, lambda_s, lambda_t = lambdas
    h = lambda_t - lambda_s
    e = -math.expm1(-h)
    if not past:
        return [alpha_t * e]
    k0 = h / (lambda_s - past[-1])  # 1 / r0
    if len(past) == 1:
        d1 = alpha_t * e / 2 * k0
        return [alpha_t * e + d1, -d1]
    h0, h1 = lambda_s - past[1], past[1] - past[0]
    k1, r = h / h1, h0 / (h0 + h1)
    phi_2, phi_3 = alpha_t * (1 - e / h), alpha_t * ((h - e) / h**2 - 0.5)
    # D1 = d0 + r (d0 - d1) and D2 = h / (h0 + h1) (d0 - d1), with d0 = k0 (m0 - m1) and d1 = k1 (m1 - m2)
    q = phi_2 * r - phi_3 * h / (h0 + h1)
    d0, d1 = (phi_2 + q) * k0, q * k1
    return [alpha_t * e + d0, -d0 - d1, d1]
