"""The latent of SANA's autoencoder as the host handles it."""

import comfy.latent_formats

from .config import SANA_LATENT_SCALE


class SanaLatent(comfy.latent_formats.LatentFormat):
    """DC-AE f32c32: 32 channels at 1/32 of the image; the model sees them scaled to unit variance."""

    latent_channels = 32
    spacial_downscale_ratio = 32
    scale_factor = SANA_LATENT_SCALE
