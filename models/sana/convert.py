"""Key layouts of SANA's files: NVIDIA's -> diffusers', and diffusers' <-> the network's. Dict in, dict out.

Tensors are shared, sliced or reshaped, never changed. Source: key lists of NVlabs/Sana checkpoints and of diffusers.
"""

import re

from torch import Tensor, nn

from ..files.layout import StateDict, split_rows

NVIDIA_SANA_KEYS = {
    "x_embedder.proj": "patch_embed.proj",
    "t_block.1": "time_embed.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
    "cfg_embedder.mlp.0": "time_embed.guidance_embedder.linear_1",
    "cfg_embedder.mlp.2": "time_embed.guidance_embedder.linear_2",
}
NVIDIA_BLOCK_KEYS = {
    "scale_shift_table": "scale_shift_table",
    "attn.q_norm": "attn1.norm_q",
    "attn.k_norm": "attn1.norm_k",
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.q_norm": "attn2.norm_q",
    "cross_attn.k_norm": "attn2.norm_k",
    "cross_attn.proj": "attn2.to_out.0",
    "mlp.inverted_conv.conv": "ff.conv_inverted",
    "mlp.depth_conv.conv": "ff.conv_depth",
    "mlp.point_conv.conv": "ff.conv_point",
}
NVIDIA_FUSED_KEYS = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}
CONTROL_BRANCH = "controlnet."  # of NVIDIA's files of a base with its ControlNet; `models/controlnet` reads it
# Training leftovers that inference does not read.
NVIDIA_UNUSED_KEYS = ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")

TABLE = "scale_shift_table"  # a parameter of its block in files, a module of its own in the network
POINTWISE = re.compile(
    r"\.ff\.conv_(inverted|point)\.weight$"
)  # 1x1 convolutions in files, linear layers in the network


def convert_nvidia_sana(state_dict: StateDict) -> StateDict:
    """NVIDIA's SANA keys -> diffusers'; fused q, k, v rows are split. Unknown keys stay, for the strict load."""
    time_embed = "time_embed" if "cfg_embedder.mlp.0.weight" in state_dict else "time_embed.emb"
    keys = NVIDIA_SANA_KEYS | {
        "t_embedder.mlp.0": f"{time_embed}.timestep_embedder.linear_1",
        "t_embedder.mlp.2": f"{time_embed}.timestep_embedder.linear_2",
    }
    out: StateDict = {}
    for key, tensor in state_dict.items():
        if key in NVIDIA_UNUSED_KEYS:
            continue
        stem, _, suffix = key.rpartition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if block is None:
            out[keys[key] if key in keys else f"{keys.get(stem, stem)}.{suffix}".lstrip(".")] = tensor
            continue
        prefix, inner = f"transformer_blocks.{block[1]}.", block[2]
        stem, _, suffix = inner.rpartition(".")
        if stem in NVIDIA_FUSED_KEYS:
            out |= split_rows(tuple(prefix + name for name in NVIDIA_FUSED_KEYS[stem]), suffix, tensor)
        elif inner in NVIDIA_BLOCK_KEYS:
            out[prefix + NVIDIA_BLOCK_KEYS[inner]] = tensor
        else:
            out[f"{prefix}{NVIDIA_BLOCK_KEYS.get(stem, stem)}.{suffix}"] = tensor
    return out


def to_network_layout(state_dict: StateDict) -> StateDict:
    """The keys and shapes of files -> those of the network: tables are modules, 1x1 convolutions linear layers.

    A file that holds (N, K) already, as quantized ones do, stays as it is.
    """
    out = {}
    for key, tensor in state_dict.items():
        if key.rpartition(".")[2] == TABLE:
            key = f"{key}.weight"
        elif POINTWISE.search(key) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor.flatten(1)
        out[key] = tensor
    return out


def to_file_layout(state_dict: StateDict) -> StateDict:
    """The reverse, for saving. Quantized linear layers, which have a mark beside them, keep their two dimensions."""
    out = {}
    for key, tensor in state_dict.items():
        if key.endswith(f"{TABLE}.weight"):
            key = key.removesuffix(".weight")
        elif POINTWISE.search(key) and f"{key.removesuffix('weight')}comfy_quant" not in state_dict:
            tensor = reshaped(tensor)
        out[key] = tensor
    return out


def reshaped(weight: Tensor) -> Tensor:
    """(N, K) -> (N, K, 1, 1), also of the host's parameters that are patched only while they are written."""
    return PatchedWhenWritten(weight) if type(weight) not in (Tensor, nn.Parameter) else weight[:, :, None, None]


class PatchedWhenWritten(nn.Parameter):
    """What safetensors sees of such a parameter: its shape at once, its values from `to`, as the host has it."""

    def __new__(cls, source: nn.Parameter):
        return super().__new__(cls, source.detach()[:, :, None, None], requires_grad=False)

    def __init__(self, source: nn.Parameter):
        self.source = source

    @property
    def device(self):
        return self.source.device

    def to(self, *args, **kwargs) -> Tensor:
        return self.source.to(*args, **kwargs)[:, :, None, None]
