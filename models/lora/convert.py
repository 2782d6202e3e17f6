"""LoRA files of every trainer -> one layout: internal layer names with the host's names for the parts of an adapter.

Dict in, dict out; tensors are shared, sliced or reshaped, never changed. Source: the keys that peft 0.21 with
diffusers 0.42, LyCORIS 4.1, OneTrainer, SimpleTuner and kohya's scripts write, and NVIDIA's names for SANA's layers.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..files.layout import StateDict, unwrap
from ..sana import convert as sana_convert

TARGET = "diffusion_model."  # what the host puts before a layer's name
METADATA_KEY = "lora_adapter_metadata"  # in the header of what diffusers saves
DOWN, UP, ALPHA, MAGNITUDE = "lora_down.weight", "lora_up.weight", "alpha", "dora_scale"

# Endings of a key -> the host's name for that part; "" for one that no SANA layer can take. The first match counts.
PARTS = tuple(
    (re.compile(rf"(.+?){ending}"), part)
    for ending, part in (
        (r"\.lora_(?:A|B|up|down)(?:\.\w+)*\.bias", ""),
        (r"(?:\.lora_A(?:\.\w+)*|[._]lora[._]down\.weight|\.lora_linear_layer\.down\.weight)", DOWN),
        (r"(?:\.lora_B(?:\.\w+)*|[._]lora[._]up\.weight|\.lora_linear_layer\.up\.weight)", UP),
        (r"\.lora_mid\.weight", "lora_mid.weight"),
        (r"\.([ab][12]\.weight)", None),
        (r"\.alpha", ALPHA),
        (r"\.(?:dora_scale|magnitude|lora_magnitude_vector(?:\.\w+)*)", MAGNITUDE),
        (r"\.oft_R(?:\.\w+)*", ""),
        (r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)", None),
        (r"\.(oft_blocks|oft_diag|rescale|diff|diff_b|w_norm|b_norm)", None),
    )
)
IGNORED = re.compile(r"(?:base_model\.model\.)?(?:text_encoders?[._\d]|lora_te\d*_|bundle_emb\.|_aux\.)")
# What may stand before a layer's name, with dots as underscores.
PREFIXES = (
    "base_model_model_", "lora_unet_", "lora_transformer_", "lycoris_", "diffusion_model_", "transformer_", "model_",
    "unet_", "module_", "ema_model_", "ema_", "_",
)  # fmt: skip
# Names of wrappers in the middle of a layer's, with dots as underscores.
WRAPPED = re.compile(r"(?:^|_)_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)(?=_)")
GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
# Layers only other models have, with dots as underscores -> what they are. The first match counts.
FOREIGN = (
    (r"conv_temp", "SANA-Video"),
    (r"single_transformer_blocks|double_blocks|single_blocks|ff_context", "Flux or a model like it"),
    (r"joint_blocks|attn_add_[qkv]_proj", "Stable Diffusion 3 or a model like it"),
    (r"(?:down|up|mid|input|output|middle)_blocks?_", "Stable Diffusion or SDXL"),
    (r"adaln_single|(?:^|_)ff_net_|mlp_fc[12]", "PixArt or a model like it"),
    (r"(?:^|_)ffn_[02]|img_mlp|img_mod|feed_forward|double_stream_blocks|self_attn", "another model"),
)
BASE_MODEL_FIELDS = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
SANA_LAYERS = (
    r"ff_conv_(?:inverted|depth|point)|mlp_(?:inverted|depth|point)_conv|time_embed_|caption_norm"  # not PixArt's
)
TRAINERS = (
    (r"lycoris_", "SimpleTuner LyCORIS"),
    (r"lora_transformer_|bundle_emb\.|transformer\..+\.(?:lora_(?:up|down)\.|hada_|lokr_|oft_)", "OneTrainer"),
    (r"lora_unet_", "kohya"),
    (r"(?:.+\.)?base_model\.model\.", "PEFT"),
    (r"transformer\.", "diffusers"),
    (r"diffusion_model\.", "ComfyUI"),
)  # fmt: skip
ALGORITHMS = (
    (r"hada_", "LoHa"),
    (r"lokr_", "LoKr"),
    (r"dora_scale|magnitude", "DoRA"),
    (r"\.[ab][12]\.weight$", "GLoRA"),
    (r"oft_", "OFT"),
    (r"lora", "LoRA"),
)
NVIDIA_NAMES = r"(?:^|[._])(?:blocks[._]\d+[._](?:attn[._](?:qkv|proj)|cross_attn|mlp)|[xyt]_embedder|final_layer)"
NVIDIA_TIMESTEP = {"timestep_embedder.linear_1": "t_embedder.mlp.0", "timestep_embedder.linear_2": "t_embedder.mlp.2"}
# Parts with a row for each output of the layer, and parts that all outputs share.
ROW_PARTS = {UP, "hada_w1_a", "hada_w2_a", "diff", "diff_b"}
SHARED_PARTS = {DOWN, ALPHA, "hada_w1_b", "hada_w2_b"}


@dataclass
class LoraKeys:
    """The keys of a LoRA file, sorted. `stems`: what stands for a layer -> part -> key."""

    stems: dict[str, dict[str, str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)  # of text encoders and embeddings
    unknown: list[str] = field(default_factory=list)  # no part of an adapter for a layer


@dataclass
class ConvertedLora:
    """`tensors` in the host's layout, `sources`: layer -> keys of the file it was made from."""

    tensors: StateDict = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)  # keys of adapters that lack a factor


def sort_keys(keys: Iterable[str]) -> LoraKeys:
    found = LoraKeys()
    for key in keys:
        plain = unwrap(key)
        if IGNORED.match(plain):
            found.ignored.append(key)
            continue
        match, part = next(((m, p) for pattern, p in PARTS if (m := pattern.fullmatch(plain))), (None, ""))
        part = match[2] if match and part is None else part
        if part:
            found.stems.setdefault(match[1], {})[part] = key
        else:
            found.unknown.append(key)
    return found


def describe_layout(keys: Iterable[str]) -> str:
    """Who wrote a LoRA and of which kind it is, such as "OneTrainer DoRA"."""
    keys = list(keys)
    trainer = next((name for pattern, name in TRAINERS if any(re.match(pattern, key) for key in keys)), "bare names")
    if any(re.search(NVIDIA_NAMES, key) for key in keys):
        trainer = "NVIDIA names"
    return (
        f"{trainer} {next((name for pattern, name in ALGORITHMS if any(re.search(pattern, k) for k in keys)), 'LoRA')}"
    )


def find_foreign(keys: LoraKeys) -> str | None:
    """The model that a LoRA is for, when a layer's name tells that it is not SANA."""
    stems = [flatten(stem) for stem in keys.stems]
    return next((model for pattern, model in FOREIGN if any(re.search(pattern, stem) for stem in stems)), None)


def base_model_of(metadata: Mapping[str, str] | None) -> str | None:
    """ "SANA" or "PixArt" where a LoRA's header names its base model, as kohya's scripts and ModelSpec's fields do."""
    named = " ".join(str((metadata or {}).get(field, "")) for field in BASE_MODEL_FIELDS).lower()
    return next((family for family in ("PixArt", "SANA") if family.lower() in named), None)


def layer_of(key: str) -> str:
    """The layer of a host's key: `diffusion_model.<layer>.weight` -> `<layer>`."""
    return key.removeprefix(TARGET).rpartition(".")[0]


def flatten(name: str) -> str:
    return name.replace(".", "_")


def layer_aliases(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Names of layers, with dots as underscores -> the internal layers they stand for: three or two for a fused one."""
    outside, inside = (
        {ours: theirs for theirs, ours in names.items()}
        for names in (sana_convert.NVIDIA_SANA_KEYS, sana_convert.NVIDIA_BLOCK_KEYS)
    )
    fused = {parts[0]: (parts, name) for name, parts in sana_convert.NVIDIA_FUSED_KEYS.items()}
    aliases: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        aliases[flatten(layer)] = (layer,)
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", layer)
        inner = block[2] if block else layer
        before = f"blocks.{block[1]}." if block else ""
        singles = inside if block else outside
        if inner in singles:
            aliases[flatten(before + singles[inner])] = (layer,)
        timestep = inner.removeprefix("time_embed.").removeprefix("emb.")  # SANA-Sprint's has no "emb."
        if timestep in NVIDIA_TIMESTEP:
            aliases[flatten(NVIDIA_TIMESTEP[timestep])] = (layer,)
        if inner in fused:
            parts, name = fused[inner]
            aliases[flatten(before + name)] = tuple(layer.removesuffix(inner) + part for part in parts)
    return aliases


def find_layers(stem: str, aliases: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The internal layers that a name stands for, whatever prefixes it carries; () for an unknown one."""
    name = WRAPPED.sub("", flatten(stem))
    while name not in aliases:
        shorter = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), None)
        if shorter is None:
            return ()
        name = shorter
    return aliases[name]


def read_adapter_config(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """PEFT's configuration of the transformer from a file's header; {} without one. Raises ValueError if broken."""
    packed = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
    if not isinstance(packed, dict):
        raise ValueError(f"{METADATA_KEY} is no JSON object")
    check_alphas(packed)
    if any(key.startswith("transformer.") for key in packed):
        packed = {
            key.removeprefix("transformer."): value for key, value in packed.items() if key.startswith("transformer.")
        }
    return packed


def check_alphas(config: Mapping[str, Any]) -> None:
    """Raises ValueError for alphas that are no finite numbers, and for patterns that name no layers."""
    for key, value in config.items():
        name = key.rpartition(".")[2]
        patterns = value if name == "alpha_pattern" and value is not None else {}
        if not isinstance(patterns, dict):
            raise ValueError("alpha_pattern is no JSON object")
        alphas = [*patterns.values(), *([value] if name in ("lora_alpha", "alpha") else [])]
        if not all(alpha is None or (type(alpha) in (int, float) and math.isfinite(alpha)) for alpha in alphas):
            raise ValueError(f"{key} is no number")
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"alpha_pattern {pattern} is no pattern") from error


def adapter_alpha(config: Mapping[str, Any], layer: str, rank: int) -> float | None:
    """The alpha that gives PEFT's scale when it is divided by the rank; None when the configuration tells none."""
    patterns = config.get("alpha_pattern") or {}
    named = [alpha for pattern, alpha in patterns.items() if re.match(rf"(?:.*\.)?(?:{pattern})$", layer)]
    alpha = named[0] if named else config.get("lora_alpha", config.get("alpha"))
    if alpha is None:
        return None
    return float(alpha) * math.sqrt(rank) if config.get("use_rslora") else float(alpha)


def rank_in(parts: StateDict) -> int | None:
    """Rank as the host counts it; None for parts that are not of low rank."""
    return next((parts[name].shape[0] for name in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in parts), None)


def is_complete(parts: Iterable[str]) -> bool:
    """False for an adapter of which some factor is missing, which the host would stumble over."""
    parts = set(parts)

    def has_factor(n: int) -> bool:
        return f"lokr_w{n}" in parts or {f"lokr_w{n}_a", f"lokr_w{n}_b"} <= parts

    return (
        (DOWN in parts) == (UP in parts)
        and len({name for name in parts if name.startswith("hada_w")}) in (0, 4)
        and len(parts.intersection(GLORA)) in (0, len(GLORA))
        and len({"hada_t1", "hada_t2"} & parts) in (0, 2)
        and (has_factor(1) and has_factor(2) or not any(name.startswith("lokr_") for name in parts))
    )


def shape_magnitude(parts: StateDict, key: str) -> StateDict:
    """PEFT's magnitude, one value an output -> the column that LyCORIS and OneTrainer write."""
    if MAGNITUDE not in parts or DOWN not in parts or key.endswith(".dora_scale"):
        return parts
    return parts | {MAGNITUDE: parts[MAGNITUDE].reshape(-1, *[1] * (parts[DOWN].ndim - 1))}


def scale_parts(parts: StateDict, config: Mapping[str, Any], layer: str) -> StateDict:
    """Adds the alpha that only PEFT's configuration tells."""
    if ALPHA in parts or not config:
        return parts
    rank = rank_in(parts)
    if rank is not None:
        alpha = adapter_alpha(config, layer, rank)
        return parts if alpha is None else parts | {ALPHA: torch.tensor(alpha)}
    if "lokr_w1" in parts and config.get("r"):  # two full factors, which PEFT scales and LyCORIS does not
        return parts | {
            "lokr_w1": parts["lokr_w1"] * ((adapter_alpha(config, layer, config["r"]) or config["r"]) / config["r"])
        }
    return parts


def expand_lokr(parts: StateDict) -> StateDict:
    """A Kronecker product of two matrices, multiplied out in float32."""
    factors = []
    for n in (1, 2):
        name = f"lokr_w{n}"
        factors.append(
            parts[name].float() if name in parts else parts[f"{name}_a"].float() @ parts[f"{name}_b"].float()
        )
    rank = rank_in(parts)
    scale = float(parts[ALPHA]) / rank if rank is not None and ALPHA in parts else 1.0
    return {"diff": torch.kron(*factors) * scale}


def split_parts(parts: StateDict, count: int) -> list[StateDict] | None:
    """An adapter of a fused layer -> one for each of its equal parts; None where that is not exactly possible."""
    if "lokr_w1" in parts or "lokr_w1_a" in parts:
        if MAGNITUDE in parts or "lokr_t2" in parts:
            return None
        parts = expand_lokr(parts)
    by_output = MAGNITUDE in parts and parts[MAGNITUDE].shape[0] > 1
    rows = ROW_PARTS | ({MAGNITUDE} if by_output else set())
    if not parts.keys() <= rows | SHARED_PARTS or any(parts[name].shape[0] % count for name in parts.keys() & rows):
        return None
    pieces = {name: tensor.tensor_split(count) for name, tensor in parts.items() if name in rows}
    shared = {name: tensor for name, tensor in parts.items() if name in SHARED_PARTS}
    return [shared | {name: split[index] for name, split in pieces.items()} for index in range(count)]


def convert_lora(
    state_dict: StateDict, keys: LoraKeys, layers: Iterable[str], config: Mapping[str, Any] | None = None
) -> ConvertedLora:
    """A LoRA in any layout -> the host's, for the given internal layers; what fits none is left out.

    config: PEFT's, for the alpha that its files do not hold.
    """
    aliases, out = layer_aliases(layers), ConvertedLora()
    for stem, named in keys.stems.items():
        targets = find_layers(stem, aliases)
        if targets and not is_complete(named):
            out.incomplete += named.values()
            continue
        if not targets or any(layer in out.sources for layer in targets):
            continue
        parts = shape_magnitude({part: state_dict[key] for part, key in named.items()}, named.get(MAGNITUDE, ""))
        parts = scale_parts(parts, config or {}, targets[0])
        pieces = [parts] if len(targets) == 1 else split_parts(parts, len(targets))
        for layer, piece in zip(targets, pieces or (), strict=False):
            out.sources[layer] = list(named.values())
            out.tensors |= {f"{TARGET}{layer}.{part}": tensor for part, tensor in piece.items()}
    return out
