"""Prompts to pictures in this process with the pack's networks and solver; many at once, which the server does not do.

The figures of a picture equal those of the graph of nodes up to rounding; `make demo` draws through the real host.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from .train.data import SIDE
from .train.pack import prepare_imports

prepare_imports()

import comfy.model_management  # noqa: E402
from sana_native.models.config import SANA_LATENT_SCALE  # noqa: E402
from sana_native.models.gemma import encode_prompts  # noqa: E402
from sana_native.models.loader import load_dc_ae, load_gemma, load_sana  # noqa: E402
from sana_native.models.model_base import TIMESTEP_ROUNDING  # noqa: E402
from sana_native.samplers.flow_dpm import sample_flow_dpm  # noqa: E402
from sana_native.samplers.schedules import get_sigmas_flow_dpm  # noqa: E402


class Denoiser:
    """The network with classifier-free guidance, as the samplers call it: x (B, 32, h, w), sigma (B,) -> denoised."""

    def __init__(self, patcher, context: Tensor, masks: Tensor, cfg: float):
        self.inner_model = SimpleNamespace(model_patcher=patcher)  # where the samplers look up the model's sampling
        self.network, self.context, self.masks, self.cfg = patcher.model.diffusion_model, context, masks, cfg

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        timesteps = torch.trunc(1000 * sigma + TIMESTEP_ROUNDING).repeat(2)
        velocity, away = self.network(torch.cat([x, x]), timesteps, self.context, self.masks).chunk(2)
        return x - sigma[:, None, None, None] * (away + self.cfg * (velocity - away))


class Painter:
    """The demo checkpoint, loaded as the pack's nodes load it, in float32."""

    def __init__(self, checkpoint: Path):
        path = str(checkpoint)
        self.clip = load_gemma(path, {"dtype": torch.float32})
        self.vae = load_dc_ae(path, {"dtype": torch.float32})
        patcher = load_sana(path, {"dtype": torch.float32})
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        self.patcher, self.network = patcher, patcher.model.diffusion_model

    def encode(self, prompts: list[str], negative_prompt: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Context (B, L, C) and mask (B, L) of the prompts, then of the negative; L without what all prompts pad."""
        pairs = [encode_prompts(self.clip, prompt, negative_prompt) for prompt in prompts]
        context, negative = (torch.cat([pair[i][0][0] for pair in pairs]) for i in (0, 1))
        mask, negative_mask = (torch.cat([pair[i][0][1]["attention_mask"] for pair in pairs]) for i in (0, 1))
        length = int(torch.maximum(mask.sum(dim=1), negative_mask.sum(dim=1)).max())
        return context[:, :length], mask[:, :length], negative[:, :length], negative_mask[:, :length]

    @torch.inference_mode()
    def paint(self, prompts: list[str], seeds: list[int], steps: int = 20, cfg: float = 4.5) -> Tensor:
        """Pictures (B, 3, SIDE, SIDE) in [0, 1], picture i from noise of seed i."""
        positive, mask, negative, negative_mask = self.encode(prompts)
        context, masks = torch.cat([positive, negative]), torch.cat([mask, negative_mask])
        shape = (32, SIDE // 32, SIDE // 32)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        device = next(self.network.parameters()).device
        context, masks, noise = context.to(device), masks.to(device), noise.to(device)

        denoiser = Denoiser(self.patcher, context, masks, cfg)
        latent = sample_flow_dpm(denoiser, noise, get_sigmas_flow_dpm(steps, self.network.config.shift), disable=True)
        return self.vae.decode(latent.cpu() / SANA_LATENT_SCALE).movedim(-1, 1).float()
