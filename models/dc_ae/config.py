"""What a DC-AE autoencoder is made of: the numbers that define both of its halves.

Source: DC-AE, arXiv 2410.10733.
Not here: how the numbers are read off a file (`detection.py`).
"""

from dataclasses import dataclass

ATTENTION_HEAD_DIM, LATENT_CHANNELS = 32, 32  # of every released model
SANA_LATENT_SCALE = 0.41407  # raw DC-AE f32c32 latents times this have unit variance; part of every released model


@dataclass(frozen=True)
class DCAEHalfConfig:
    """One half (encoder or decoder) of DC-AE, stages ordered from full resolution to the latent."""

    block_types: tuple[str, ...]  # "ResBlock" or "EfficientViTBlock", one a stage
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]  # of the multi-scale projections, one tuple a stage
    pixel_shuffle: bool = False  # upsamples by a convolution to 4 x channels and pixel shuffle, as DC-AE-Lite's decoder


@dataclass(frozen=True)
class DCAEConfig:
    """The deep compression autoencoder; the spatial ratio is 2 ** (stages - 1)."""

    image_channels: int
    latent_channels: int
    attention_head_dim: int
    scaling_factor: float
    encoder: DCAEHalfConfig
    decoder: DCAEHalfConfig  # no layers in the first stage: the last convolution upsamples in its place
    out_activation: str = "relu"  # before the last convolution: "relu", or "silu" in DC-AE-Lite
