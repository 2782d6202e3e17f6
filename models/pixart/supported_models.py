"""What the host's loading and memory code must know of PixArt, per checkpoint."""

import comfy.latent_formats
import comfy.supported_models
from torch import Tensor

from ..files.saved_config import pack_config
from ..runtime.other_nodes import UNetConfig
from ..runtime.precision import Precision
from .config import ALPHA, CONFIG_KEY, PixArtConfig
from .model_base import PixArtModel


def config_tensor(config: PixArtConfig) -> Tensor:
    """The fields no shape tells, as a tensor of a file."""
    fields = {"family": config.family, "sample_size": config.sample_size, "distilled": config.distilled}
    return pack_config(fields | {"num_layers": config.depth})


def file_state_dict(config: PixArtConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is saved of a network's state dict: its tensors, with what none of them tells beside them."""
    return state_dict | {CONFIG_KEY: config_tensor(config)}


class PixArtSupported(comfy.supported_models.PixArtAlpha):
    """PixArt-alpha and PixArt-Sigma; built for one checkpoint by the loader. Noise levels and memory are the host's."""

    def __init__(self, config: PixArtConfig, precision: Precision):
        # The host reads depth and width for the names of layers in a LoRA.
        super().__init__(UNetConfig(config=config, depth=config.depth, hidden_size=config.hidden_size))
        self.kind = config.family  # for messages of the patcher
        self.latent_format = (comfy.latent_formats.SD15 if config.family == ALPHA else comfy.latent_formats.SDXL)()
        self.supported_inference_dtypes = [precision.compute]
        self.set_inference_dtype(precision.weights, precision.compute)

    def get_model(self, state_dict: dict, prefix: str = "", device=None) -> PixArtModel:  # noqa: ARG002 - the host's signature
        return PixArtModel(self, device=device).eval()

    def inpaint_model(self) -> bool:
        return False

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        own = file_state_dict(self.unet_config["config"], state_dict)
        return super().process_unet_state_dict_for_saving(own)
