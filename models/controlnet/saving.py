"""CONTROL_NET -> a file of its control branch alone, in 16 bits, that needs nothing beside it to load again.

NVIDIA's names where the embeddings are the base's, diffusers' where the ControlNet has its own.
"""

import torch

from ..files.layout import StateDict
from ..files.quantized_file import write_safetensors
from ..runtime.precision import FLOAT16
from ..sana.convert import to_file_layout
from .control import SanaControlNet
from .convert import to_nvidia_layout
from .detection import HEADS, TRAINED_FOR, TRAINED_IN, WIRING


def metadata_of(control: SanaControlNet) -> dict[str, str]:
    """What no tensor tells, for the header of the file."""
    config = control.control_model.config
    trained_in = {TRAINED_IN: config.blocks.trained_in} if config.blocks.trained_in else {}
    return {
        "format": "pt",
        TRAINED_FOR: ",".join(config.trained_for),
        WIRING: config.wiring,
        HEADS: str(config.blocks.num_cross_attention_heads),
        **trained_in,
    }


def tensors_of(control: SanaControlNet) -> StateDict:
    """The tensors of the file, (N, K, 1, 1) for pointwise convolutions, in the format the ControlNet was trained in."""
    config = control.control_model.config
    dtype = torch.float16 if config.blocks.trained_in == FLOAT16 else torch.bfloat16
    state_dict = {key: each.to("cpu", dtype) for key, each in control.control_model_wrapped.model_state_dict().items()}
    return to_file_layout(state_dict) if config.own_embeddings else to_nvidia_layout(state_dict)


def save_controlnet(control: SanaControlNet, path: str, metadata: dict[str, str] | None = None) -> int:
    """Writes a new file and returns its size in bytes. metadata: for the header, besides what loading needs.

    Raises ValueError for another family's ControlNet, OSError with one sentence for a place that cannot be written to.
    """
    if not isinstance(control, SanaControlNet):
        raise ValueError(
            f"This control_net is a {type(control).__name__} of another family: connect a SANA ControlNet of SANA "
            "ControlNet Loader."
        )
    state_dict = tensors_of(control)
    layout = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in state_dict.items()}
    return write_safetensors(path, layout, [state_dict], (metadata or {}) | metadata_of(control))
