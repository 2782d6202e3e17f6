"""What a checkpoint is made of: the numbers that define a SANA transformer and a DC-AE autoencoder.

Source: SANA, arXiv 2410.10629; SANA-1.5, arXiv 2501.18427; SANA-Sprint, arXiv 2503.09641; DC-AE, arXiv 2410.10733.
Not here: how the numbers are read off a file (`model_detection.py`).
"""

from dataclasses import dataclass

SANA_LATENT_SCALE = 0.41407  # raw DC-AE f32c32 latents times this have unit variance; part of every released model
SELF_ATTENTION_HEAD_DIM = 32

# Cross-attention heads cannot be read off any tensor shape; these are the released widths (0.6B; 1.6B and 4.8B).
CROSS_ATTENTION_HEADS = {1152: 16, 2240: 20}
DEPTHS = {1152: (28,), 2240: (20, 60)}  # of the released models of a width


@dataclass(frozen=True)
class SanaConfig:
    """The linear diffusion transformer of SANA, SANA-1.5 and SANA-Sprint."""

    hidden_size: int
    depth: int
    num_cross_attention_heads: int
    caption_channels: int  # width of the text encoder's states, 2304 for Gemma-2-2b
    mlp_hidden_size: int  # channels after the gate, 2.5 times hidden_size in the released models
    in_channels: int
    out_channels: int
    qk_norm: bool  # RMSNorm over the full width of q and k, in both attentions (SANA-1.5 and Sprint)
    guidance_embeds: bool  # SANA-Sprint: guidance scale and time in [0, 1] are embedded
    guidance_embeds_scale: float
    interpolation_scale: float | None  # None: no positional embedding (512 and 1024 px); 1.0: 2K; 2.0: 4K
    sample_size: int  # native latent side; the base of the positional embedding
    shift: float  # flow shift of the noise schedule
    clamp_attention: bool | None  # saturate self-attention at +-65504; None: only when computing in float16
    trained_in: str | None = None  # "float16" or "bfloat16"; None: nothing tells


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
