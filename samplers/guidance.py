"""Guidance as functions of a model's options: perturbed attention, and CFG-Zero* on the velocity.

Source: Perturbed-Attention Guidance, arXiv 2403.17377, with the adaptive scale of diffusers' pipelines; CFG-Zero*,
arXiv 2503.18886. Both run in the host's hooks after and instead of classifier-free guidance.
"""

import math
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.model_sampling import CONST
from torch import Tensor

TIMESTEPS = 1000
TIMESTEP_ROUNDING = 1e-3  # keeps a whole timestep whole when its sigma is rounded to float32
AUTO = "auto"


def values_alone(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None = None) -> Tensor:  # noqa: ARG001 - the host's contract
    """The perturbed attention: every token attends to itself alone."""
    return v


@dataclass(frozen=True)
class PerturbedAttention:
    """Steps away from what the network predicts without attention among pixels, in some of its blocks.

    Called by the host after classifier-free guidance. blocks: their numbers; none means the family's own block.
    adaptive: what the scale loses a timestep below 1000. start, end: noise levels between which it acts; of a flow its
    sigma, of other models timestep / 1000. Raises ValueError for a start below the end.
    """

    scale: float
    blocks: tuple[int, ...] = ()
    adaptive: float = 0.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.start < self.end:
            raise ValueError(
                f"SANA PAG begins at sigma_start {self.start:g} and ends at sigma_end {self.end:g}, but noise falls "
                "along a run, so no step would be guided: make sigma_start the larger one."
            )

    def __call__(self, args: dict[str, Any]) -> Tensor:
        scale = self.scale_at(self.level_of(args["model"].model_sampling, args["sigma"]))
        if scale <= 0:
            return args["denoised"]
        options = args["model_options"].copy()
        for kind, number in [("double_block", block) for block in self.blocks] or [("middle", 0)]:
            options = comfy.model_patcher.set_model_options_patch_replace(options, values_alone, "attn1", kind, number)
        # The same conditioning, so the same ControlNet.
        (perturbed,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        return args["denoised"] + (args["cond_denoised"] - perturbed) * scale

    def level_of(self, model_sampling: Any, sigma: Tensor) -> float:
        """The noise level of a step from 1 to 0, read from the device only where it decides something."""
        if self.adaptive == 0 and self.start >= 1 and self.end <= 0:
            return 1.0
        if isinstance(model_sampling, CONST):
            return float(sigma.max())
        return float(model_sampling.timestep(sigma.max())) / TIMESTEPS

    def scale_at(self, level: float) -> float:
        if not self.end <= level <= self.start:
            return 0.0
        timestep = math.floor(TIMESTEPS * level + TIMESTEP_ROUNDING)
        return max(0.0, self.scale - self.adaptive * (TIMESTEPS - timestep))


def parse_blocks(text: str, depth: int) -> tuple[int, ...]:
    """Block numbers of a network of `depth` blocks; none for "auto". Raises ValueError for anything else."""
    if text.strip().lower() == AUTO:
        return ()
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) < depth for part in parts):
        raise ValueError(
            f"blocks of SANA PAG is {text!r}, but this network has blocks 0 to {depth - 1}: write auto, or numbers of "
            "them such as 8, 9."
        )
    return tuple(dict.fromkeys(map(int, parts)))


def cfg_zero_star(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance from the part of the unconditional velocity that lies along the conditional one.

    a u + scale (c - a u) with a = <c, u> / |u|^2 of each image; cond, uncond (B, ...), also of velocities times sigma.
    """
    c, u = cond.flatten(1).float(), uncond.flatten(1).float()
    factor = (c * u).sum(dim=1) / u.square().sum(dim=1).clamp(min=1e-8)
    part = uncond * factor.to(uncond).view(-1, *[1] * (uncond.ndim - 1))
    return part + scale * (cond - part)


@dataclass(frozen=True)
class ZeroStarGuidance:
    """CFG-Zero* in the place of classifier-free guidance, as the host calls it: of x - x0, sigma times the velocity.

    zero_init_steps: first steps of a run in which the velocity is zero, so that nothing moves; never the last one.
    """

    zero_init_steps: int = 1

    def __call__(self, args: dict[str, Any]) -> Tensor:
        cond, scale = args["cond"], args["cond_scale"]
        guided = cond if math.isclose(scale, 1.0) else cfg_zero_star(cond, args["uncond"], scale)
        sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
        steps = 0 if sigmas is None else min(self.zero_init_steps, len(sigmas) - 2)
        if steps <= 0:
            return guided
        # On the device, so that no step waits. A solver's points within a step lie above its end.
        moves = args["sigma"].max() <= sigmas[steps].to(args["sigma"])
        return torch.where(moves, guided, torch.zeros_like(guided))


def with_perturbed_attention(
    patcher: comfy.model_patcher.ModelPatcher, guidance: PerturbedAttention
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model with this guidance, or the model itself at scale 0."""
    if guidance.scale == 0:
        return patcher
    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(guidance)
    return clone


def with_cfg_zero_star(
    patcher: comfy.model_patcher.ModelPatcher, guidance: ZeroStarGuidance
) -> comfy.model_patcher.ModelPatcher:
    """A clone of the model that is guided by CFG-Zero*. Raises ValueError for a model without a velocity or cfg."""
    if not isinstance(patcher.get_model_object("model_sampling"), CONST):
        raise ValueError(
            f"CFG-Zero* guides a velocity, but this {type(patcher.model).__name__} predicts noise: bypass SANA "
            "CFG-Zero Star."
        )
    if getattr(getattr(patcher.model.diffusion_model, "config", None), "guidance_embeds", False):
        raise ValueError(
            "CFG-Zero* has no effect on SANA-Sprint, whose guidance is embedded and which runs at cfg 1: bypass SANA "
            "CFG-Zero Star."
        )
    clone = patcher.clone()
    clone.set_model_sampler_cfg_function(guidance)
    return clone
