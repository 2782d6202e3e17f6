"""What the host's loading and memory code must know of Lumina-Next, per checkpoint."""

import comfy.latent_formats
import comfy.supported_models_base

from ..runtime.other_nodes import UNetConfig
from ..runtime.precision import Precision
from .config import LuminaConfig
from .convert import to_file_layout
from .model_base import LuminaModel

# The host's own factor of Lumina 2, which has the same width, tokens and feed-forward part; not measured for this one.
MEMORY_FACTOR = 1.4


class LuminaSupported(comfy.supported_models_base.BASE):
    """Lumina-Next; built for one checkpoint by the loader."""

    kind = "Lumina-Next"  # for messages of the patcher
    unet_extra_config = {}
    latent_format = comfy.latent_formats.SDXL
    memory_usage_factor = MEMORY_FACTOR
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]

    def __init__(self, config: LuminaConfig, precision: Precision):
        super().__init__(UNetConfig(config=config))
        self.supported_inference_dtypes = [precision.compute]
        self.set_inference_dtype(precision.weights, precision.compute)
        self.sampling_settings = {"shift": config.shift, "multiplier": 1.0}

    def get_model(self, state_dict: dict, prefix: str = "", device=None) -> LuminaModel:  # noqa: ARG002 - the host's signature
        return LuminaModel(self, device=device)

    def inpaint_model(self) -> bool:
        return False

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        return super().process_unet_state_dict_for_saving(to_file_layout(state_dict))
