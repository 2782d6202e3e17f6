"""Toy flows for the sampler tests: the host's real CONST model sampling around a velocity field written by hand."""

from types import SimpleNamespace

import comfy.model_sampling
import torch


class FlowModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """What the host builds for ModelType.FLOW."""


def flow_model_sampling(shift=3.0):
    model_sampling = FlowModelSampling()
    model_sampling.set_parameters(shift=shift)
    return model_sampling


def curved_velocity(x, sigma):
    """Neither linear in x nor in sigma, and every element sees its neighbours in the same item."""
    return torch.tanh(1.3 * x + sigma) - 0.5 * x * sigma + 0.3 * torch.sin(3 * x.roll(1, -1) * (1 - sigma))


def flow_denoiser(velocity=curved_velocity, model_sampling=None):
    """Denoiser of the k-diffusion contract; `calls` collects the sigmas it was asked at."""
    model_sampling = model_sampling or flow_model_sampling()
    calls = []

    def model(x, sigma, **_):
        calls.append(float(sigma[0]))
        return model_sampling.calculate_denoised(sigma, velocity(x, sigma.view(-1, 1, 1, 1)), x)

    patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": model_sampling}[name])
    model.inner_model, model.calls = SimpleNamespace(model_patcher=patcher), calls
    return model


def fake_denoiser():
    """Denoiser for tensors without values: as `flow_denoiser`, but it looks at none of the sigmas."""
    model_sampling = flow_model_sampling()
    patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": model_sampling}[name])

    def model(x, sigma, **_):
        return x - x * sigma.view(-1, 1, 1, 1)

    model.inner_model = SimpleNamespace(model_patcher=patcher)
    return model


def initial_noise(batch=1, seed=0, dtype=torch.float32):
    """(B, 32, 4, 4), drawn like the host's noise on the CPU."""
    return torch.randn(batch, 32, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
