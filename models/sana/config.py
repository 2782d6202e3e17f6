"""What a checkpoint is made of: the numbers that define a SANA transformer and a DC-AE autoencoder.

Source: SANA, arXiv 2410.10629; SANA-1.5, arXiv 2501.18427; SANA-Sprint, arXiv 2503.09641; DC-AE, arXiv 2410.10733.
Not here: how the numbers are read off a file (`detection.py`).
"""

from dataclasses import dataclass

SELF_ATTENTION_HEAD_DIM = 32
CONFIG_KEY = "sana_config"  # of what no tensor tells, among the tensors of a saved file


@dataclass(frozen=True)
class Release:
    """A size that NVIDIA has released: no tensor's shape tells its name or its cross-attention heads."""

    name: str
    hidden_size: int
    depth: int
    num_cross_attention_heads: int


RELEASES = (Release("0.6B", 1152, 28, 16), Release("1.6B", 2240, 20, 20), Release("4.8B", 2240, 60, 20))


def releases_of_width(hidden_size: int) -> tuple[Release, ...]:
    return tuple(release for release in RELEASES if release.hidden_size == hidden_size)


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
