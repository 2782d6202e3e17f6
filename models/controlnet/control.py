"""The host's CONTROL_NET of a SANA ControlNet, for its own Apply ControlNet, KSampler and the like.

The host resizes the control image, encodes it with the VAE of the apply node, scales strength, keeps the range of steps
and stacks ControlNets. Here: the base for the control branch, the time of a step, and what cannot work.
"""

from collections.abc import Iterable

import comfy.controlnet
import torch
from torch import Tensor, nn

from ..dc_ae.latent_formats import SanaLatent
from ..sana.config import SanaConfig
from ..sana.model import Sana
from .config import KINDS, SANA_1_5, SPRINT, kind_of

OF_A_RUN = ("base", "exact_timesteps")  # in extra_args while a run lasts
BRIGHT = 0.5  # mean of a control image above which it is no white drawing on black
CHANNELS_OF_A_BLOCK = 12  # largest activations of a block at once, in widths of the model: the Mix-FFN's and the inputs
ROWS = 2  # images of a batch that the estimate counts: a prompt with its negative


def clamp_image(image: Tensor) -> Tensor:
    """An image (B, C, H, W) in [0, 1] again, which a bicubic resize overshoots."""
    return image.clamp(0.0, 1.0)


class SanaControlNet(comfy.controlnet.ControlNet):
    """A SANA ControlNet as the host handles it. control_model: a `SanaControl` of `model.py`."""

    def __init__(self, control_model: nn.Module | None = None, load_device: torch.device | None = None):
        super().__init__(
            control_model,
            compression_ratio=1,  # beside that of the VAE
            latent_format=SanaLatent(),
            load_device=load_device,
            extra_conds=["attention_mask", "guidance"],
            preprocess_image=clamp_image,
        )
        self.upscale_algorithm = "bicubic"  # the default leaves holes in lines of one pixel
        self.base_model = None

    def pre_run(self, model, percent_to_timestep_function) -> None:
        """Raises ValueError for a base model or VAE that this ControlNet cannot work with."""
        network = model.diffusion_model
        if not isinstance(network, Sana):
            raise ValueError(
                f"A SANA ControlNet was applied to a model of another family ({type(model).__name__}): bypass its "
                "Apply node, or load a SANA model with SANA Model Loader."
            )
        self.require_base(network.config)
        self.require_vae()
        super().pre_run(model, percent_to_timestep_function)
        self.base_model = model
        self.manual_cast_dtype = model.get_dtype_inference()  # one format for both, as in the merged network
        self.set_extra_arg("base", network)

    def require_base(self, base: SanaConfig) -> None:
        config = self.control_model.config
        own, kind = config.blocks, kind_of(base)
        if base.hidden_size != own.hidden_size:
            raise ValueError(
                f"This ControlNet is for models of width {own.hidden_size}, and the model is {base.hidden_size} wide: "
                "load the ControlNet of the model's size (0.6B: 1152, 1.6B: 2240)."
            )
        if base.depth <= own.depth:
            raise ValueError(
                f"This ControlNet has {own.depth} blocks and needs a model of at least {own.depth + 1}, but the model "
                f"has {base.depth}: load the model that the ControlNet was made for."
            )
        if kind == SPRINT and SPRINT not in config.trained_for:
            raise ValueError(
                "This ControlNet was not trained for SANA-Sprint, whose time and guidance it does not know: load a "
                "SANA model, or a ControlNet whose metadata say trained_for = sprint."
            )

    def require_vae(self) -> None:
        vae = self.vae
        if vae is not None and (vae.latent_channels, vae.spacial_compression_encode()) != (
            SanaLatent.latent_channels,
            SanaLatent.spacial_downscale_ratio,
        ):
            raise ValueError(
                "The VAE of Apply ControlNet is another model's: connect the DC-AE of SANA DC-AE Loader, which encodes "
                "the control image for a SANA ControlNet."
            )

    def check(self, base: SanaConfig) -> list[str]:
        """Warnings about the base and the control image of a run."""
        found, kind = [], kind_of(base)
        told = self.control_model.config.trained_for
        if kind not in told and kind != SPRINT:
            names = " and ".join(KINDS[one] for one in told)
            reason = ", which has other features (qk-norm)" if kind == SANA_1_5 else ""
            found.append(f"Load a {names} model: this ControlNet was not trained for {KINDS[kind]}{reason}.")
        if self.cond_hint_original is not None and float(self.cond_hint_original.mean()) > BRIGHT:
            found.append("Invert the control image: SANA's ControlNet expects white lines on black, and it is bright.")
        return found

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: dict):
        if self.base_model is not None:
            # The host's own timestep is in the format of the weights, in which 982 and 984 are the same.
            timesteps = self.model_sampling_current.timestep(t).float()
            self.set_extra_arg("exact_timesteps", self.base_model.process_timestep(timesteps))
        return super().get_control(x_noisy, t, cond, batched_number, transformer_options)

    def cleanup(self) -> None:
        for name in OF_A_RUN:
            self.extra_args.pop(name, None)
        self.base_model = None
        super().cleanup()

    def copy(self) -> "SanaControlNet":
        other = type(self)(load_device=self.load_device)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(other)
        for name in OF_A_RUN:
            other.extra_args.pop(name, None)
        return other

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes of the residuals and of one block, at the native size: the host asks before it knows the latent."""
        own = self.control_model.config.blocks
        values = ROWS * own.sample_size**2 * own.hidden_size * (own.depth + CHANNELS_OF_A_BLOCK)
        return values * dtype.itemsize + super().inference_memory_requirements(dtype)


def controlnets_of(conds: Iterable[dict]) -> list[SanaControlNet]:
    """Every SANA ControlNet of a run's conditionings, stacked ones too, each once."""
    found: dict[int, SanaControlNet] = {}
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            if isinstance(control, SanaControlNet):
                found[id(control)] = control
            control = control.previous_controlnet
    return list(found.values())
