"""Names and shapes of every released model's tensors, in each layout, written to `tensors.json` beside this file.

diffusers' and transformers' layouts come from their own classes on the meta device; NVIDIA's and the DC-AE authors' are
written down here from their key lists, apart from the pack's tables and from those of `layouts.py`.
Run: python tests/full_size/generate.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import transformers

DATA = Path(__file__).with_name("tensors.json")
Shapes = dict[str, tuple[int, ...]]

LATENT, CAPTION = 32, 2304
# Model -> width, depth, cross-attention heads, qk-norm, guidance embedding.
SANA = {
    "SANA 0.6B": (1152, 28, 16, False, False),
    "SANA 1.6B": (2240, 20, 20, False, False),
    "SANA-1.5 1.6B": (2240, 20, 20, True, False),
    "SANA-1.5 4.8B": (2240, 60, 20, True, False),
    "SANA-Sprint 0.6B": (1152, 28, 16, True, True),
    "SANA-Sprint 1.6B": (2240, 20, 20, True, True),
}
WIDTHS = (128, 256, 512, 512, 1024, 1024)
ATTENTION_FROM, KERNEL = 3, 5
ENCODER_LAYERS = (2, 2, 2, 3, 3, 3)
# Autoencoder -> layers of the decoder's stages, whether its inner ones are attention, and whether it shuffles pixels.
DC_AE = {
    "dc-ae-f32c32-sana-1.0 and 1.1": ((3, 3, 3, 3, 3, 3), True, False),
    "dc-ae-lite-f32c32-sana-1.1": ((0, 3, 5, 4, 4, 4), False, True),
}


def diffusers_sana(width: int, depth: int, heads: int, qk_norm: bool, guidance: bool) -> torch.nn.Module:
    return diffusers.SanaTransformer2DModel(
        num_attention_heads=width // 32,
        num_layers=depth,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=width // heads,
        cross_attention_dim=width,
        guidance_embeds=guidance,
        qk_norm="rms_norm_across_heads" if qk_norm else None,
    )


def layer(name: str, *weight: int, bias: bool = True) -> Shapes:
    """A linear layer or convolution; `bias` has the weight's rows."""
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def nvidia_sana(width: int, depth: int, _heads: int, qk_norm: bool, guidance: bool) -> Shapes:
    """NVIDIA's layout at 1024 px, with the buffer and the training leftovers its files carry."""
    hidden = width * 5 // 2
    out = {"pos_embed": (1, 32 * 32, width), "y_embedder.y_embedding": (300, CAPTION)}
    out |= layer("x_embedder.proj", width, LATENT, 1, 1)
    out |= layer("t_embedder.mlp.0", width, 256) | layer("t_embedder.mlp.2", width, width)
    out |= layer("t_block.1", 6 * width, width)
    out |= layer("y_embedder.y_proj.fc1", width, CAPTION) | layer("y_embedder.y_proj.fc2", width, width)
    out |= {"attention_y_norm.weight": (width,)}
    if guidance:
        out |= layer("cfg_embedder.mlp.0", width, 256) | layer("cfg_embedder.mlp.2", width, width)
        out |= layer("logvar_linear", 1, width)
    for index in range(depth):
        block = f"blocks.{index}"
        out |= {f"{block}.scale_shift_table": (6, width)}
        out |= layer(f"{block}.attn.qkv", 3 * width, width, bias=False) | layer(f"{block}.attn.proj", width, width)
        out |= layer(f"{block}.cross_attn.q_linear", width, width)
        out |= layer(f"{block}.cross_attn.kv_linear", 2 * width, width)
        out |= layer(f"{block}.cross_attn.proj", width, width)
        if qk_norm:
            out |= {f"{block}.{a}.{n}.weight": (width,) for a in ("attn", "cross_attn") for n in ("q_norm", "k_norm")}
        out |= layer(f"{block}.mlp.inverted_conv.conv", 2 * hidden, width, 1, 1)
        out |= layer(f"{block}.mlp.depth_conv.conv", 2 * hidden, 1, 3, 3)
        out |= layer(f"{block}.mlp.point_conv.conv", width, hidden, 1, 1, bias=False)
    return out | layer("final_layer.linear", LATENT, width) | {"final_layer.scale_shift_table": (2, width)}


def diffusers_dc_ae(decoder_layers: tuple[int, ...], attention: bool, pixel_shuffle: bool) -> torch.nn.Module:
    types = ("ResBlock",) * ATTENTION_FROM + ("EfficientViTBlock",) * 3
    scales = ((),) * ATTENTION_FROM + ((KERNEL,),) * 3
    return diffusers.AutoencoderDC(
        encoder_block_types=types,
        decoder_block_types=types if attention else "ResBlock",
        encoder_layers_per_block=ENCODER_LAYERS,
        decoder_layers_per_block=decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales if attention else ((),) * 6,
        upsample_block_type="pixel_shuffle" if pixel_shuffle else "interpolate",
        downsample_block_type="Conv",
        decoder_conv_act_fn="relu" if attention else "silu",
        scaling_factor=0.41407,
    )


def original_block(name: str, width: int, attention: bool) -> Shapes:
    """One block of the DC-AE authors' layout: residual convolutions, or attention and its FFN."""
    if not attention:
        out = layer(f"{name}.main.conv1.conv", width, width, 3, 3)
        out |= layer(f"{name}.main.conv2.conv", width, width, 3, 3, bias=False)
        return out | norm(f"{name}.main.conv2.norm", width)
    context, local = f"{name}.context_module.main", f"{name}.local_module.main"
    out = layer(f"{context}.qkv.conv", 3 * width, width, 1, 1, bias=False)
    out |= layer(f"{context}.aggreg.0.0", 3 * width, 1, KERNEL, KERNEL, bias=False)
    out |= layer(f"{context}.aggreg.0.1", 3 * width, 32, 1, 1, bias=False)
    out |= layer(f"{context}.proj.conv", width, 2 * width, 1, 1, bias=False) | norm(f"{context}.proj.norm", width)
    out |= layer(f"{local}.inverted_conv.conv", 8 * width, width, 1, 1)
    out |= layer(f"{local}.depth_conv.conv", 8 * width, 1, 3, 3)
    out |= layer(f"{local}.point_conv.conv", width, 4 * width, 1, 1, bias=False)
    return out | norm(f"{local}.point_conv.norm", width)


def original_dc_ae(decoder_layers: tuple[int, ...], attention: bool, pixel_shuffle: bool) -> Shapes:
    """The DC-AE authors' layout."""
    out = layer("encoder.project_in.conv", WIDTHS[0], 3, 3, 3)
    for stage, width in enumerate(WIDTHS):
        ops = f"encoder.stages.{stage}.op_list"
        for index in range(ENCODER_LAYERS[stage]):
            out |= original_block(f"{ops}.{index}", width, stage >= ATTENTION_FROM)
        if stage < 5:
            out |= layer(f"{ops}.{ENCODER_LAYERS[stage]}.main.conv", WIDTHS[stage + 1], width, 3, 3)
    out |= layer("encoder.project_out.main.op_list.0.conv", LATENT, WIDTHS[5], 3, 3)

    ratio = 4 if pixel_shuffle else 1
    out |= layer("decoder.project_in.main.conv", WIDTHS[5], LATENT, 3, 3)
    for stage, width in enumerate(WIDTHS):
        ops, first = f"decoder.stages.{stage}.op_list", int(stage < 5)
        if first and decoder_layers[stage]:
            out |= layer(f"{ops}.0.main.conv.conv", ratio * width, WIDTHS[stage + 1], 3, 3)
        for index in range(decoder_layers[stage]):
            out |= original_block(f"{ops}.{first + index}", width, attention and stage >= ATTENTION_FROM)
    if decoder_layers[0]:
        last = layer("decoder.project_out.op_list.2.conv", 3, WIDTHS[0], 3, 3)
        return out | norm("decoder.project_out.op_list.0", WIDTHS[0]) | last
    last = layer("decoder.project_out.op_list.2.conv.conv", 3 * ratio, WIDTHS[1], 3, 3)
    return out | norm("decoder.project_out.op_list.0", WIDTHS[1]) | last


def gemma() -> torch.nn.Module:
    config = transformers.Gemma2Config(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
    )
    return transformers.Gemma2Model(config)


def shapes_of(build: Callable, *args) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build(*args).state_dict().items()}


def packed(shapes: Shapes) -> dict[str, list[int]]:
    """Tensors that differ in one number of their name only, as one: `blocks.{0-19}.attn.qkv.weight`."""
    for place in range(2):
        groups: dict[tuple, list[int]] = {}
        for key, shape in shapes.items():
            parts = re.split(r"(?<=\.)(\d+)(?=\.)", key)
            index = 2 * place + 1
            number = int(parts[index]) if index < len(parts) else -1
            groups.setdefault((*parts[:index], None, *parts[index + 1 :], tuple(shape)), []).append(number)
        shapes = {}
        for (*parts, shape), numbers in groups.items():
            runs = [[numbers[0], numbers[0]]]
            for number in numbers[1:]:
                if number == runs[-1][1] + 1:
                    runs[-1][1] = number
                else:
                    runs.append([number, number])
            for first, last in runs:
                label = "" if first < 0 else str(first) if first == last else f"{{{first}-{last}}}"
                shapes["".join(label if part is None else part for part in parts)] = shape
    return {key: list(shape) for key, shape in shapes.items()}


def unpacked(patterns: dict[str, list[int]]) -> Shapes:
    """The reverse of `packed`."""
    out: Shapes = {}
    for pattern, shape in patterns.items():
        match = re.search(r"\{(\d+)-(\d+)\}", pattern)
        names = [pattern]
        if match:
            names = [pattern.replace(match[0], str(n)) for n in range(int(match[1]), int(match[2]) + 1)]
        if match and "{" in names[0]:
            out |= unpacked(dict.fromkeys(names, shape))
        else:
            out |= {name: tuple(shape) for name in names}
    return out


def tensors() -> dict[str, dict[str, Shapes]]:
    """Layout -> model -> names and shapes."""
    return {
        "diffusers": {name: shapes_of(diffusers_sana, *args) for name, args in SANA.items()}
        | {name: shapes_of(diffusers_dc_ae, *args) for name, args in DC_AE.items()},
        "NVIDIA": {name: nvidia_sana(*args) for name, args in SANA.items()},
        "DC-AE authors": {name: original_dc_ae(*args) for name, args in DC_AE.items()},
        "transformers": {"Gemma-2-2b": shapes_of(gemma)},
    }


def load() -> dict[str, dict[str, Shapes]]:
    """What `tensors` gave when the data were written."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return {layout: {name: unpacked(shapes) for name, shapes in models.items()} for layout, models in data.items()}


def write() -> None:
    lines = json.dumps(
        {layout: {name: packed(shapes) for name, shapes in models.items()} for layout, models in tensors().items()},
        indent=1,
    )
    DATA.write_text(re.sub(r"\[\s+([\d,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", lines) + "\n", "utf-8")


if __name__ == "__main__":
    write()
