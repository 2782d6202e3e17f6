"""The latent of SANA's autoencoder as the host handles it."""

from collections.abc import Callable

import comfy.latent_formats

from .config import SANA_LATENT_SCALE
from .previews import MEMORY
from .tiny_decoder import TINY_DECODER


class SanaLatent(comfy.latent_formats.LatentFormat):
    """DC-AE f32c32: 32 channels at 1/32 of the image; the model sees them scaled to unit variance.

    The host's latent2rgb preview reads the three `latent_rgb_factors` at the start of a run: None, for no preview,
    until colors were fitted to a DC-AE. Reading them computes nothing. TAESANA is handed over by them as well, because
    the host's own tiny decoder is an 8x one: a file for 32x would not load into it and would stop the run.
    """

    latent_channels = 32
    spacial_downscale_ratio = 32
    scale_factor = SANA_LATENT_SCALE

    @property
    def taesd_decoder_name(self) -> str | None:
        """Only where there is no such file, so that the host names the missing one."""
        return TINY_DECODER if MEMORY.find_tiny is not None and MEMORY.find_tiny() is None else None

    @property
    def latent_rgb_factors(self) -> list[list[float]] | None:
        preview = MEMORY.preview()
        return None if preview is None else preview.factors.T.tolist()

    @property
    def latent_rgb_factors_bias(self) -> list[float] | None:
        preview = MEMORY.preview()
        return None if preview is None else preview.bias.tolist()

    @property
    def latent_rgb_factors_reshape(self) -> Callable | None:
        preview = MEMORY.preview()
        return None if preview is None else preview.refine
