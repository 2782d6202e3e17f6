"""What a checkpoint is made of: the numbers that define a PixArt transformer.

Source: PixArt-alpha, arXiv 2310.00426; PixArt-Sigma, arXiv 2403.04692; PixArt-delta, arXiv 2401.05252 (LCM).
Not here: how the numbers are read off a file (`detection.py`).
"""

from dataclasses import dataclass

HEAD_DIM = 72  # of every release
PATCH_SIZE = 2
RATIO = 8  # image pixels per latent cell
ALPHA, SIGMA = "PixArt-alpha", "PixArt-Sigma"
LCM, DMD = "LCM", "DMD"
SPAN, SPAN_256 = 32, 16  # coordinates of the position grid reach this far on each axis; 16 for PixArt-alpha at 256 px
CONFIG_KEY = "pixart_config"  # of the tensor that a saved file keeps beside the weights
TOKENS = {ALPHA: 120, SIGMA: 300}  # of a prompt, in training


@dataclass(frozen=True)
class PixArtConfig:
    """The diffusion transformer of PixArt-alpha, PixArt-Sigma, and their distilled forms."""

    family: str  # ALPHA or SIGMA: they differ in the autoencoder and in the length of prompts
    hidden_size: int
    depth: int
    caption_channels: int  # width of the text encoder's states, 4096 for T5-XXL
    in_channels: int
    learns_variance: bool  # the last half of the output is the variance, which no sampler here reads
    micro_conditions: bool  # the image's size and aspect ratio are embedded (alpha 1024-MS)
    qk_norm: bool
    kv_ratios: tuple[int, ...]  # a block's keys and values are pooled by this factor along each axis; 1: not at all
    sample_size: int | None  # native latent side; None: nothing tells
    distilled: str | None = None  # LCM, DMD or None

    @property
    def span(self) -> int:
        return SPAN_256 if self.family == ALPHA and self.sample_size == 32 else SPAN
