"""What a checkpoint is made of: the numbers that define a Next-DiT of Lumina-Next, and the settings of a run.

Source: Lumina-Next, arXiv 2406.18583. Not here: how the numbers are read off a file (`detection.py`).
"""

from dataclasses import dataclass

PATCH_SIZE = 2
RATIO = 8  # image pixels per latent cell
PIXELS_PER_TOKEN = PATCH_SIZE * RATIO  # a side
TRAINED_SIDE = 1024  # pixels of the square whose positions and attention need no scaling


@dataclass(frozen=True)
class LuminaConfig:
    """The transformer of Lumina-Next T2I and SFT; all but the shift can be read off shapes."""

    hidden_size: int
    depth: int
    num_heads: int
    num_kv_heads: int
    caption_channels: int  # width of the text encoder's states, 2048 for Gemma-1 2B
    mlp_hidden_size: int
    conditioning_size: int  # width of the sum of time and text that modulates every block
    in_channels: int
    shift: float = 1.0  # flow shift of the noise schedule; the authors' demo samples with 4

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


SIZE_SCALING = ("always", "above 1024 px", "off")


@dataclass(frozen=True)
class LuminaOptions:
    """How a run treats other image sizes than the trained one, and what it guides.

    watershed: share of the way to the image during which positions are interpolated; afterwards the base of the rotary
        frequencies is raised instead. size_scaling: one of SIZE_SCALING. proportional_attention: sharpen the
        self-attention with the number of image tokens. guided_channels: how many latent channels, the first ones,
        classifier-free guidance acts on; the rest is taken from the prompt's pass.
    """

    watershed: float = 1.0
    size_scaling: str = "always"
    proportional_attention: bool = True
    guided_channels: int = 3


CUSTOM = "custom"
# What the two references do: diffusers' LuminaPipeline, and the demo of Alpha-VLLM.
PRESETS = {
    "diffusers": LuminaOptions(),
    "authors": LuminaOptions(watershed=0.3, size_scaling="above 1024 px"),
}
OPTIONS_KEY = "lumina"  # in transformer_options
