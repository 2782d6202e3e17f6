"""Prompts to pictures in this process with the pack's networks and solvers; many at once, which the server does not do.

The figures of a picture equal those of the graph of nodes up to rounding; `make demo` draws through the real host.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from .train.data import SIDE
from .train.pack import CHECKPOINT, prepare_imports

prepare_imports()

import comfy.model_management  # noqa: E402
from comfy.k_diffusion.sampling import sample_euler  # noqa: E402
from sana_native.models.dc_ae.config import SANA_LATENT_SCALE  # noqa: E402
from sana_native.models.dc_ae.loader import load_dc_ae  # noqa: E402
from sana_native.models.gemma.loader import load_gemma  # noqa: E402
from sana_native.models.gemma.text_encoder import encode_prompts  # noqa: E402
from sana_native.models.registry import load_model  # noqa: E402
from sana_native.models.sana.loader import load_sana  # noqa: E402
from sana_native.models.sana.model_base import TIMESTEP_ROUNDING  # noqa: E402
from sana_native.samplers.flow_dpm import sample_flow_dpm  # noqa: E402
from sana_native.samplers.schedules import get_sigmas_flow_dpm, get_sigmas_flow_euler, get_sigmas_scm  # noqa: E402
from sana_native.samplers.scm import sample_scm  # noqa: E402

SOLVERS: dict[str, tuple[Callable, Callable]] = {
    "Flow-DPM": (sample_flow_dpm, get_sigmas_flow_dpm),
    "Euler": (sample_euler, get_sigmas_flow_euler),
}
CHUNK, DECODED = 20, 4  # pictures denoised and decoded at a time


class Denoiser:
    """The network as the samplers call it: x (B, 32, h, w), sigma (B,) -> denoised, of the same shape.

    SANA is guided by a second pass over the negative prompt, half of `context`; SANA-Sprint by its embedded guidance.
    control: a ControlNet's network, the scaled latents (B, 32, h, w) of its images, and its strength.
    """

    def __init__(
        self,
        patcher,
        context: Tensor,
        masks: Tensor,
        cfg: float,
        control: tuple[nn.Module, Tensor, float] | None = None,
    ):
        self.inner_model = SimpleNamespace(model_patcher=patcher)  # where the samplers look up the model's sampling
        self.model, self.context, self.masks, self.cfg = patcher.model, context, masks, cfg
        self.control = control

    def predict(self, x: Tensor, time: Tensor, guidance: Tensor | None = None) -> Tensor:
        """The velocity (B, 32, h, w); of a batch that is the images twice, the control's images count twice too."""
        network, residuals = self.model.diffusion_model, None
        if self.control is not None:
            branch, hint, strength = self.control
            hint = hint.repeat(len(x) // len(hint), 1, 1, 1)
            kinds = branch(x, hint, time, self.context, self.masks, guidance, base=network)
            residuals = {kind: [None if one is None else strength * one for one in own] for kind, own in kinds.items()}
        return network(x, time, self.context, self.masks, guidance=guidance, control=residuals)

    def __call__(self, x: Tensor, sigma: Tensor, **_) -> Tensor:
        if self.model.is_sprint:
            velocity = self.predict(x, sigma, torch.full_like(sigma, self.cfg))
        else:
            timesteps = torch.trunc(1000 * sigma + TIMESTEP_ROUNDING).repeat(2)
            velocity, away = self.predict(torch.cat([x, x]), timesteps).chunk(2)
            velocity = away + self.cfg * (velocity - away)
        return x - sigma[:, None, None, None] * velocity


class Painter:
    """A demo checkpoint, loaded as the pack's nodes load it, in float32.

    Text encoder and autoencoder are the demo SANA's where the checkpoint has none of its own. controlnet: a ControlNet
    for it, or None.
    """

    def __init__(self, checkpoint: Path, controlnet: Path | None = None):
        others = str(checkpoint if (checkpoint / "vae").is_dir() else CHECKPOINT)
        self.clip = load_gemma(others, {"dtype": torch.float32})
        self.vae = load_dc_ae(others, {"dtype": torch.float32})
        self.patcher = load_sana(str(checkpoint), {"dtype": torch.float32})
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        self.is_sprint = self.patcher.model.is_sprint
        self.network = self.patcher.model.diffusion_model
        self.control = None
        if controlnet is not None:
            loaded = load_model("controlnet", str(controlnet))
            loaded.require_base(self.network.config)
            self.control = loaded.control_model.to(next(self.network.parameters()).device)

    def encode(self, prompts: list[str], negative_prompt: str = "") -> tuple[Tensor, Tensor]:
        """Context (B, L, C) and mask (B, L) of the prompts, and for SANA of the negative prompt B times after them.

        L leaves out what all of them pad.
        """
        pairs = [encode_prompts(self.clip, prompt, negative_prompt) for prompt in prompts]
        chosen = [pair[0] for pair in pairs] + ([] if self.is_sprint else [pair[1] for pair in pairs])
        context = torch.cat([conditioning[0][0] for conditioning in chosen])
        mask = torch.cat([conditioning[0][1]["attention_mask"] for conditioning in chosen])
        length = int(mask.sum(dim=1).max())
        return context[:, :length], mask[:, :length]

    @torch.inference_mode()
    def paint_latents(
        self,
        prompts: list[str],
        seeds: list[int],
        steps: int = 20,
        cfg: float = 4.5,
        solver: str = "Flow-DPM",
        negative_prompt: str = "",
        sigmas: Tensor | None = None,
        hints: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Scaled latents (B, 32, h, w), number i from noise of seed i; `sigmas` replaces the solver's own schedule.

        hints: scaled latents of the ControlNet's images, one a prompt. strength: of the ControlNet.
        """
        shape = (32, SIDE // 32, SIDE // 32)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        device = next(self.network.parameters()).device
        context, masks = (tensor.to(device) for tensor in self.encode(prompts, negative_prompt))
        control = None if hints is None else (self.control, hints.to(device), strength)
        denoiser = Denoiser(self.patcher, context, masks, cfg, control)
        if self.is_sprint:
            sigmas = get_sigmas_scm(steps) if sigmas is None else sigmas
            return sample_scm(denoiser, noise.to(device), sigmas, {"seed": seeds[0]}, disable=True)
        sample, get_sigmas = SOLVERS[solver]
        sigmas = get_sigmas(steps, self.network.config.shift) if sigmas is None else sigmas
        return sample(denoiser, noise.to(device), sigmas, disable=True)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of scaled latents (B, 32, h, w)."""
        parts = latents.cpu().split(DECODED)
        return torch.cat([self.vae.decode(part / SANA_LATENT_SCALE).movedim(-1, 1).float() for part in parts])

    def paint(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
        """Pictures (B, 3, SIDE, SIDE) in [0, 1]; arguments as of `paint_latents`."""
        parts = [slice(start, start + CHUNK) for start in range(0, len(prompts), CHUNK)]
        return torch.cat([self.decode(self.paint_latents(prompts[part], seeds[part], **options)) for part in parts])
