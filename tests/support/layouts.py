"""Weights in their authors' layouts, made from diffusers' by its own mapping, not by reversing the pack's tables, and
files as trainers leave them."""

import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

SANA_RENAMES = {
    "patch_embed.proj": "x_embedder.proj",
    "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_embed.guidance_embedder.linear_1": "cfg_embedder.mlp.0",
    "time_embed.guidance_embedder.linear_2": "cfg_embedder.mlp.2",
    "time_embed.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_norm": "attention_y_norm",
    "proj_out": "final_layer.linear",
}
SANA_BLOCK_RENAMES = {
    "attn1.norm_q": "attn.q_norm",
    "attn1.norm_k": "attn.k_norm",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.conv_inverted": "mlp.inverted_conv.conv",
    "ff.conv_depth": "mlp.depth_conv.conv",
    "ff.conv_point": "mlp.point_conv.conv",
}
# First of the parts that are fused -> all of them, and the fused name.
SANA_FUSED = {
    "attn1.to_q": (("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.qkv"),
    "attn2.to_k": (("attn2.to_k", "attn2.to_v"), "cross_attn.kv_linear"),
}


def nvidia_sana(state_dict: Mapping[str, Tensor], sample_size: int = 32) -> dict[str, Tensor]:
    """NVIDIA's layout of diffusers' tensors, with the buffers and training leftovers its files carry."""
    size, caption_channels = state_dict["caption_projection.linear_1.weight"].shape
    like = {"device": state_dict["caption_norm.weight"].device, "dtype": torch.float32}
    out = {
        "pos_embed": torch.ones(1, sample_size**2, size, **like),
        "y_embedder.y_embedding": torch.ones(300, caption_channels, **like),
    }
    if "time_embed.guidance_embedder.linear_1.weight" in state_dict:
        out |= {"logvar_linear.weight": torch.ones(1, size, **like), "logvar_linear.bias": torch.ones(1, **like)}
    for key, tensor in state_dict.items():
        if key == "scale_shift_table":
            out["final_layer.scale_shift_table"] = tensor
            continue
        block = re.match(r"transformer_blocks\.(\d+)\.(.+)", key)
        if block is None:
            stem, _, suffix = key.rpartition(".")
            out[f"{SANA_RENAMES[stem]}.{suffix}"] = tensor
            continue
        prefix, inner = f"transformer_blocks.{block[1]}.", block[2]
        stem, _, suffix = inner.rpartition(".")
        if inner == "scale_shift_table":
            out[f"blocks.{block[1]}.{inner}"] = tensor
        elif stem in SANA_FUSED:
            parts, fused = SANA_FUSED[stem]
            out[f"blocks.{block[1]}.{fused}.{suffix}"] = torch.cat([state_dict[f"{prefix}{p}.{suffix}"] for p in parts])
        elif stem in SANA_BLOCK_RENAMES:
            out[f"blocks.{block[1]}.{SANA_BLOCK_RENAMES[stem]}.{suffix}"] = tensor
    return out


def original_dc_ae(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The DC-AE authors' layout of diffusers' tensors."""
    out = {}
    for key, tensor in state_dict.items():
        half, _, rest = key.partition(".")
        stage = re.match(rf"{'down' if half == 'encoder' else 'up'}_blocks\.(\d+)\.(\d+)\.(.+)", rest)
        if stage is None:
            out[f"{half}.{original_end(half, rest)}"] = tensor
            continue
        base = f"{half}.stages.{stage[1]}.op_list.{stage[2]}"
        inner = stage[3]
        if inner == "attn.to_q.weight":
            parts = [state_dict[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
            out[f"{base}.context_module.main.qkv.conv.weight"] = torch.cat(parts)[:, :, None, None]
        elif inner == "attn.to_out.weight":
            out[f"{base}.context_module.main.proj.conv.weight"] = tensor[:, :, None, None]
        elif inner not in ("attn.to_k.weight", "attn.to_v.weight"):
            out[f"{base}.{original_block(half, inner)}"] = tensor
    return out


def original_end(half: str, rest: str) -> str:
    """Names of the first and last layers, which differ between the halves."""
    stem, _, suffix = rest.rpartition(".")
    names = {
        ("encoder", "conv_in"): "project_in.conv",
        ("encoder", "conv_out"): "project_out.main.op_list.0.conv",
        ("decoder", "conv_in"): "project_in.main.conv",
        ("decoder", "norm_out"): "project_out.op_list.0",
        ("decoder", "conv_out"): "project_out.op_list.2.conv",
        ("decoder", "conv_out.conv"): "project_out.op_list.2.conv.conv",  # upsamples: no layers in the first stage
    }
    return f"{names[half, stem]}.{suffix}"


def original_block(half: str, inner: str) -> str:
    """Names inside a block: a residual block, linear attention, its FFN, or the convolution that changes resolution."""
    stem, _, suffix = inner.rpartition(".")
    names = {
        "conv1": "main.conv1.conv",
        "conv2": "main.conv2.conv",
        "norm": "main.conv2.norm",
        "conv": "main.conv" if half == "encoder" else "main.conv.conv",  # going up it sits inside an upsampler
        "attn.to_qkv_multiscale.0.proj_in": "context_module.main.aggreg.0.0",
        "attn.to_qkv_multiscale.0.proj_out": "context_module.main.aggreg.0.1",
        "attn.norm_out": "context_module.main.proj.norm",
        "conv_out.conv_inverted": "local_module.main.inverted_conv.conv",
        "conv_out.conv_depth": "local_module.main.depth_conv.conv",
        "conv_out.conv_point": "local_module.main.point_conv.conv",
        "conv_out.norm": "local_module.main.point_conv.norm",
    }
    return f"{names[stem]}.{suffix}"


LUMINA_RENAMES = {
    "patch_embedder.proj": "x_embedder",
    "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_caption_embed.caption_embedder": "cap_embedder",
    "norm_out.linear_1": "final_layer.adaLN_modulation.1",
    "norm_out.linear_2": "final_layer.linear",
    ".attn1.to_q.": ".attention.wq.",
    ".attn1.to_k.": ".attention.wk.",
    ".attn1.to_v.": ".attention.wv.",
    ".attn1.norm_q.": ".attention.q_norm.",
    ".attn1.norm_k.": ".attention.k_norm.",
    ".attn2.to_k.": ".attention.wk_y.",
    ".attn2.to_v.": ".attention.wv_y.",
    ".attn2.norm_k.": ".attention.ky_norm.",
    ".attn2.to_out.0.": ".attention.wo.",
    ".gate": ".attention.gate",
    ".norm1.norm.": ".attention_norm1.",
    ".norm1.linear.": ".adaLN_modulation.1.",
    ".norm1_context.": ".attention_y_norm.",
    ".norm2.": ".attention_norm2.",
    ".feed_forward.linear_": ".feed_forward.w",
}


def original_lumina(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Alpha-VLLM's layout of diffusers' tensors."""
    out = {}
    for key, tensor in state_dict.items():
        if ".attn2.to_q." not in key and ".attn2.norm_q." not in key:
            old = next((old for old in LUMINA_RENAMES if old in key), "")
            out[key.replace(old, LUMINA_RENAMES[old]) if old else key] = tensor
    return out


def prefixed(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state_dict.items()}


def training_state(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What NVIDIA's training saves beside the weights: optimizer, schedule, counters and random states."""
    moments = {index: {"step": 7, "exp_avg": torch.zeros_like(t)} for index, t in enumerate(list(weights.values())[:3])}
    return {
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1, 2]}]},
        "scheduler": {"base_lrs": [1e-4], "last_epoch": 7, "_step_count": 8},
        "epoch": 3,
        "step": 7,
        "rng_state": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "generator": torch.Generator().get_state(),
        },
    }


def save(path: Path, content: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """A .pth or .safetensors, with config.json beside it where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({key: tensor.contiguous().clone() for key, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return str(path)
