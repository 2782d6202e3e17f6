"""What a state dict that is not of the expected family seems to be, for an error message."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

StateDict = Mapping[str, Tensor]

# What a user is likely to hand over by mistake: ends of keys that give the family away (all of those joined by +), and
# its name. The families of this pack are in `models/registry.py`.
HOST_LOADER = "use the host's own loader"
OTHER_LANGUAGE_MODEL = f"another language model ({HOST_LOADER})"
GEMMA_1 = "a Gemma-1 text encoder (use SANA Gemma Loader)"
LUMINA_2 = f"a Lumina 2 model ({HOST_LOADER})"
OTHER_DC_AE = "a DC-AE for other models (SANA's are dc-ae-f32c32-sana-1.0 and 1.1)"
QUANTIZED = "a model quantized by {}, which this version does not load (take the bf16 file)"
ENGINE = "a 4-bit model for Nunchaku or another engine, which this version does not load (take the bf16 file)"
# Ends of keys of quantizers that the host lacks. SDNQ keeps a `scale` beside each weight; these are layers of ours.
QUANTIZERS = {
    "weight.absmax": QUANTIZED.format("bitsandbytes"),
    "SCB": QUANTIZED.format("bitsandbytes"),
    "qweight": ENGINE,
    "weight._data": QUANTIZED.format("quanto"),
    "attn1.to_q.scale": QUANTIZED.format("SDNQ"),
    "attn.to_q.scale": QUANTIZED.format("SDNQ"),
    "attn.qkv.scale": QUANTIZED.format("SDNQ"),
    "self_attn.q_proj.scale": QUANTIZED.format("SDNQ"),
    "ff.conv_inverted.scale": QUANTIZED.format("SDNQ"),
    "conv1.scale": QUANTIZED.format("SDNQ"),
}
FOREIGN_ENGINES = tuple(f".{end}" for end in QUANTIZERS)
# What shares most names with a family of ours, or all of them. A ControlNet comes before its base model.
RELATIVES = QUANTIZERS | {
    "zero_convs.0.0.weight": f"a Stable Diffusion ControlNet ({HOST_LOADER})",
    "controlnet_cond_embedding.conv_in.weight": f"a Stable Diffusion ControlNet ({HOST_LOADER})",
    "controlnet_blocks.0.weight": f"another family's ControlNet ({HOST_LOADER})",
    "patch_embedding.weight+caption_norm.weight": "a SANA-Video transformer, which this version does not load",
    "blocks.0.mlp.t_conv.weight": "a SANA-Video transformer, which this version does not load",
    "noise_refiner.0.attention.qkv.weight": LUMINA_2,
    "noise_refiner.0.attn.to_q.weight": LUMINA_2,
    "layers.0.pre_feedforward_layernorm.weight+self_attn.q_norm.weight": f"a Gemma-3 text encoder ({HOST_LOADER})",
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": f"a UMT5 text encoder ({HOST_LOADER})",
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": "a T5 1.0 text encoder (use t5-v1_1-xxl)",
    "encoder.conv_in.conv.weight": OTHER_DC_AE,
    "encoder.project_in.conv.conv.weight": OTHER_DC_AE,
}
# A checkpoint of several parts is named after its diffusion model, so text encoders and autoencoders come after these.
DIFFUSION_MODELS = {
    "double_blocks.0.img_attn.qkv.weight": f"a Flux-like model ({HOST_LOADER})",
    "single_transformer_blocks.0.attn.to_q.weight": f"a Flux-like model ({HOST_LOADER})",
    "joint_blocks.0.x_block.attn.qkv.weight": f"a Stable Diffusion 3 model ({HOST_LOADER})",
    "pos_embed.proj.weight+transformer_blocks.0.attn.add_q_proj.weight": f"a Stable Diffusion 3 model ({HOST_LOADER})",
    "input_blocks.0.0.weight": f"a Stable Diffusion model ({HOST_LOADER})",
    "down_blocks.0.resnets.0.conv1.weight+time_embedding.linear_1.weight": f"a Stable Diffusion model ({HOST_LOADER})",
}
OTHER_PARTS = {
    "layers.0.self_attn.q_proj.weight+layers.0.mlp.gate_proj.weight": OTHER_LANGUAGE_MODEL,
    "encoder.layers.0.mlp.fc1.weight+embeddings.token_embedding.weight": f"a CLIP text encoder ({HOST_LOADER})",
}
FOREIGN = (RELATIVES, DIFFUSION_MODELS, OTHER_PARTS)


def describe(state_dict: StateDict, tables: Iterable[Mapping[str, str]] = FOREIGN) -> str:
    """What a state dict seems to be, by the first row of the tables whose ends of keys it has."""
    # SVDQuant's files hold low-rank parts too, under the same names.
    if any("lora_" in key for key in state_dict) and not any(key.endswith(FOREIGN_ENGINES) for key in state_dict):
        return "a LoRA (load it with a LoRA node)"
    for table in tables:
        for keys, family in table.items():
            if all(any(f".{key}".endswith(f".{end}") for key in state_dict) for end in keys.split("+")):
                return GEMMA_1 if family == OTHER_LANGUAGE_MODEL and has_gemma_vocabulary(state_dict) else family
    first = sorted(state_dict)[:2]
    return (
        f"something else ({len(state_dict)} tensors, such as {', '.join(first)})" if first else "a file without tensors"
    )


def has_gemma_vocabulary(state_dict: StateDict) -> bool:
    """Gemma 1 has the names of Llama's tensors; only the size of its vocabulary tells it."""
    return any(
        key.endswith("embed_tokens.weight") and tensor.shape[:1] == (256000,) for key, tensor in state_dict.items()
    )


def depth_of(state_dict: StateDict, prefix: str, first: int = 0) -> int:
    """Count of the indices N among keys `<prefix>N.`, from `first`. Raises KeyError with the first one that lacks."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.")
    found = {int(match[1]) for match in map(pattern.match, state_dict) if match}
    for index in range(first, first + len(found)):
        if index not in found:
            raise KeyError(f"{prefix}{index}")
    return len(found)
