"""A ControlNet that computes with layers of the model it acts on, as the host's own nodes handle it.

The host resizes the control image, encodes it with the VAE of the apply node, scales strength, keeps the range of steps
and stacks ControlNets. Here: the base for the control branch, the time of a step, and what cannot work.
"""

from collections.abc import Iterable

import comfy.controlnet
import torch
from torch import Tensor, nn

OF_A_RUN = ("base", "exact_timesteps")  # in extra_args while a run lasts
BRIGHT = 0.5  # mean of a control image above which it is no white drawing on black
NOTEWORTHY_CROP = 0.1  # of a control image, which the host crops in its middle
CHANNELS_OF_A_BLOCK = 12  # largest activations of a block at once, in widths of the model: the FFN's and the inputs
ROWS = 2  # images of a batch that the estimate counts: a prompt with its negative


def clamp_image(image: Tensor) -> Tensor:
    """An image (B, C, H, W) in [0, 1] again, which a bicubic resize overshoots."""
    return image.clamp(0.0, 1.0)


class BaseControlNet(comfy.controlnet.ControlNet):
    """The host's CONTROL_NET of a control branch that is called with `base`, the network that it acts on.

    A family's own class says which models it fits (`require_model`), what may be unintended (`check`), and the tokens
    and widths for the estimate of memory (`size_of_run`).
    """

    conds: tuple[str, ...] = ("attention_mask",)  # of the base, which the branch is given too

    def __init__(self, control_model: nn.Module | None = None, load_device: torch.device | None = None):
        super().__init__(
            control_model,
            compression_ratio=1,  # beside that of the VAE
            latent_format=self.latent_format_of(None),
            load_device=load_device,
            extra_conds=list(self.conds),
            preprocess_image=clamp_image,
        )
        self.upscale_algorithm = "bicubic"  # the default leaves holes in lines of one pixel
        self.base_model = None

    def latent_format_of(self, model):
        """The format of the control image's latent; model: the base, None before one is known."""
        raise NotImplementedError

    def require_model(self, model) -> None:
        """Raises ValueError for a base model or VAE that this ControlNet cannot work with."""
        raise NotImplementedError

    def check(self, base) -> list[str]:
        """Warnings about the base, by its configuration, and the control image of a run."""
        raise NotImplementedError

    def check_images(self, batch: int, height: int, width: int) -> list[str]:
        """Warnings about control images of another shape or number than a run's images. height, width: in any unit."""
        if self.cond_hint_original is None:
            return []
        count, _, own_height, own_width = self.cond_hint_original.shape
        found, part = [], own_width * height / (own_height * width)
        if min(part, 1 / part) < 1 - NOTEWORTHY_CROP:
            found.append(
                f"The control image is {own_width} x {own_height} px, another shape than the image: "
                f"{1 - min(part, 1 / part):.0%} of it is cropped. Bring it to the image's shape."
            )
        if count not in (1, batch):
            found.append(
                f"There are {count} control images for {batch} images: they are taken in turn. Give one, or as many."
            )
        return found

    def size_of_run(self) -> tuple[int, int, int]:
        """Tokens at the native size, width, and number of copied blocks."""
        raise NotImplementedError

    def pre_run(self, model, percent_to_timestep_function) -> None:
        """Raises ValueError as `require_model` does."""
        self.require_model(model)
        super().pre_run(model, percent_to_timestep_function)
        self.base_model = model
        self.latent_format = self.latent_format_of(model)
        self.manual_cast_dtype = model.get_dtype_inference()  # one format for both, as in the merged network
        self.set_extra_arg("base", model.diffusion_model)

    @property
    def is_bright(self) -> bool:
        return self.cond_hint_original is not None and float(self.cond_hint_original.mean()) > BRIGHT

    def fits_vae(self, latent_format) -> bool:
        """Whether the apply node's VAE, where it has one, gives latents of this shape."""
        if self.vae is None:
            return True
        shape = self.vae.latent_channels, self.vae.spacial_compression_encode()
        return shape == (latent_format.latent_channels, latent_format.spacial_downscale_ratio)

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

    def copy(self) -> "BaseControlNet":
        other = type(self)(load_device=self.load_device)
        other.control_model, other.control_model_wrapped = self.control_model, self.control_model_wrapped
        self.copy_to(other)
        for name in OF_A_RUN:
            other.extra_args.pop(name, None)
        return other

    def inference_memory_requirements(self, dtype: torch.dtype) -> int:
        """Bytes of the residuals and of one block, at the native size: the host asks before it knows the latent."""
        tokens, width, blocks = self.size_of_run()
        values = ROWS * tokens * width * (blocks + CHANNELS_OF_A_BLOCK)
        return values * dtype.itemsize + super().inference_memory_requirements(dtype)


def controlnets_of(conds: Iterable[dict]) -> list[BaseControlNet]:
    """Every ControlNet of the pack in a run's conditionings, stacked ones too, each once."""
    found: dict[int, BaseControlNet] = {}
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            if isinstance(control, BaseControlNet):
                found[id(control)] = control
            control = control.previous_controlnet
    return list(found.values())
