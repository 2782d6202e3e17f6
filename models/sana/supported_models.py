"""What the host's loading and memory code must know of SANA, per checkpoint."""

import dataclasses

import comfy.supported_models_base
from torch import Tensor, nn

from ..dc_ae.latent_formats import SanaLatent
from ..files.saved_config import pack_config
from ..lora.depthwise import without_branches
from ..runtime.other_nodes import UNetConfig
from ..runtime.precision import Precision
from .config import CONFIG_KEY, SanaConfig
from .convert import to_file_layout
from .model_base import SanaModel

# In the host's unit, 0.01 MiB of activations per latent position and byte, at a width of 2240, on a CPU: 6.25 as
# `benchmarks/memory.py` measures a step of 256 px, 5.4 at 512 px, with a margin.
MEMORY_FACTOR_AT_2240 = 7.5

# Fields that no tensor tells; saved with the weights so that a saved model loads without its config.json.
SAVED_FIELDS = (
    "num_cross_attention_heads",
    "guidance_embeds_scale",
    "interpolation_scale",
    "sample_size",
    "clamp_attention",
    "trained_in",
)


def config_tensor(config: SanaConfig) -> Tensor:
    """The fields no shape tells, and the shift, as a tensor of a file."""
    values = dataclasses.asdict(config)
    fields = {name: values[name] for name in SAVED_FIELDS} | {"flow_shift": config.shift, "num_layers": config.depth}
    return pack_config(fields)


def file_state_dict(config: SanaConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is saved of a network's state dict: in the layout of files, with what no tensor tells beside it."""
    return to_file_layout(without_branches(state_dict)) | {CONFIG_KEY: config_tensor(config)}


class SanaSupported(comfy.supported_models_base.BASE):
    """SANA, SANA-1.5 and SANA-Sprint; built for one checkpoint by the loader."""

    kind = "SANA"  # for messages of the patcher
    unet_extra_config = {}
    latent_format = SanaLatent
    vae_key_prefix = ["vae."]
    text_encoder_key_prefix = ["text_encoders."]

    def __init__(
        self,
        config: SanaConfig,
        precision: Precision,
        network: type[nn.Module],
        memory_factor: float = MEMORY_FACTOR_AT_2240,
    ):
        """network: the class that is built, Sana or a faster one for a device, with the same keys. memory_factor: its
        activations, as `MEMORY_FACTOR_AT_2240`."""
        super().__init__(UNetConfig(config=config))
        self.network = network
        self.supported_inference_dtypes = [precision.compute]
        self.set_inference_dtype(precision.weights, precision.compute)
        # Sprint keeps the multiplier too, which SanaModel divides out: stock nodes that set a shift work on both then.
        self.sampling_settings = {"shift": 1.0 if config.guidance_embeds else config.shift, "multiplier": 1000}
        self.memory_usage_factor = memory_factor * config.hidden_size / 2240

    def get_model(self, state_dict: dict, prefix: str = "", device=None) -> SanaModel:  # noqa: ARG002 - the host's signature
        return SanaModel(self, device=device)

    def inpaint_model(self) -> bool:
        return False

    def process_unet_state_dict_for_saving(self, state_dict: dict) -> dict:
        own = file_state_dict(self.unet_config["config"], state_dict)
        return super().process_unet_state_dict_for_saving(own)
