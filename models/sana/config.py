"""What a checkpoint is made of: the numbers that define a SANA transformer and a DC-AE autoencoder.

Source: SANA, arXiv 2410.10629; SANA-1.5, arXiv 2501.18427; SANA-Sprint, arXiv 2503.09641; DC-AE, arXiv 2410.10733.
Not here: how the numbers are read off a file (`detection.py`).
"""

from dataclasses import dataclass

from ..runtime.precision import count

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


RELEASED = {(1152, 28): "0.6B", (2240, 20): "1.6B", (2240, 60): "4.8B"}  # width and depth -> the name of the size


def describe_sana(config: SanaConfig, parameters: int, layout: str) -> str:
    family = "SANA-Sprint" if config.guidance_embeds else "SANA-1.5" if config.qk_norm else "SANA"
    size = RELEASED.get((config.hidden_size, config.depth), f"{config.hidden_size} wide, {config.depth} deep")
    trained = f"trained in {config.trained_in}" if config.trained_in else "training format unknown"
    native = 32 * config.sample_size
    return f"{family} {size} ({count(parameters)} parameters, {layout} layout), {trained}, native {native} px"
