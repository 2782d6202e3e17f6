"""Checks of what other nodes put on the model: patches that SANA's network does not have, and unconditional passes.

The host keeps patches in `transformer_options` and leaves it to each network which of them it calls; what a network
does not call has no effect and raises nothing.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP

from ..runtime.other_nodes import has_self_attention_guidance, owner_of, setting_of

ATTENTION_PATCHES = ("attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch")
BLOCK_KINDS = ("double_block", "middle", "input")  # in the keys of replaced attention; ("middle", 0) is the PAG block
UNCONDITIONAL_BY = "sana_native_unconditional_by"  # in transformer_options: what asks for an unconditional pass
BYPASS = "by {}, but its guidance is embedded: bypass that node between the loader and the sampler"
# Nodes that change how cfg joins two predictions, by what their functions are called.
CFG_ALONE = ("CFGZeroStar", "CFGNorm", "TCFG", "Mahiro", "RescaleCFG", "RenormCFG", "FreSca",
             "SkipLayerGuidanceDiTSimple", "VideoLinearCFGGuidance", "VideoTriangleCFGGuidance")  # fmt: skip
CFG_WRAPPERS = ("CFGOverride",)
ONE_IMAGE = ("RenormCFG", "TemporalScoreRescaling")  # they ask whether a tensor with a value an image is true
EASY_CACHE = 0.05  # two runs of the demo: 25 and 27 dB at it, 11 and 15 dB at 0.1
NAG = "Normalized Attention Guidance"
OTHER_NAG = "by {}, but its guidance is embedded: take SANA NAG instead, which needs no such pass"
# Guiders that run an unconditional pass because of cfg alone.
PLAIN_GUIDERS = ("CFGGuider", "Guider_Basic", "Guider_DualModel")


def refuse_patches(model_options: Mapping[str, Any], is_sprint: bool, batch_size: int = 1) -> None:
    """Raises ValueError for patches that would spoil every image, or that fail with a batch."""
    options = model_options.get("transformer_options", {})
    for name in map(owner_of, _guidance_functions(model_options)):
        if batch_size > 1 and name in ONE_IMAGE:
            raise ValueError(f"{name} computes with one image at a time: set batch_size to 1, or bypass that node.")
    if "HyperTile" in map(owner_of, options.get("patches", {}).get("attn1_patch", ())):
        raise ValueError(
            "HyperTile cuts the queries of a softmax attention into tiles, but SANA's attention is linear and costs "
            "the same without: bypass that node."
        )
    if has_self_attention_guidance(options):
        raise ValueError(
            "Self-Attention Guidance reads the softmax map of the self-attention, but SANA's linear attention has "
            "none: bypass that node, or take Perturbed-Attention Guidance."
        )
    if is_sprint and owner_of(model_options.get("sampler_cfg_function")) == "Perp-Neg":  # also at cfg 1
        refuse_unconditional_pass({UNCONDITIONAL_BY: BYPASS.format("Perp-Neg")})


def check_patches(transformer_options: Mapping[str, Any], control: Mapping[str, Any] | None, depth: int) -> list[str]:
    """One sentence for everything in a pass that has no effect on a network of `depth` blocks."""
    found = [
        f"Bypass {owner_of(patch)}: its {name} has no effect on SANA."
        for name, patches in transformer_options.get("patches", {}).items()
        for patch in patches
        if name not in ATTENTION_PATCHES
    ]
    for (owner, kind), numbers in _unused_blocks(transformer_options, depth).items():
        blocks = f"{kind} {', '.join(map(str, sorted(numbers)))}"
        found.append(f"Choose among double_block 0 to {depth - 1}: {owner} at {blocks} has no effect on SANA.")
    if transformer_options.get("rope_options"):
        found.append("Bypass ScaleROPE: it has no effect on SANA, which has no rotary embedding.")
    for part in sorted(control or {}):
        if part != "input" and any(residual is not None for residual in control[part]):
            found.append(f'Bypass the ControlNet: its "{part}" residuals have no effect, made for another model.')
    return list(dict.fromkeys(found))


def check_guidance(guider: Any, is_sprint: bool, size: tuple[int, int]) -> list[str]:
    """One sentence for guidance and caches that have no effect in a run, or more than was wanted.

    size: (height, width) of the latent.
    """
    model_options = guider.model_options
    functions, found = list(_guidance_functions(model_options)), []
    has_cfg = type(guider).__name__ not in PLAIN_GUIDERS or not math.isclose(guider.cfg, 1.0)
    if not has_cfg and not model_options.get("disable_cfg1_optimization"):
        idle = [name for name in map(owner_of, functions) if name in CFG_ALONE]
        idle += [name for name in map(owner_of, guidance_wrappers(guider)) if name in CFG_WRAPPERS and is_sprint]
        found += [f"Bypass {name}: it changes what cfg does, and this run has cfg 1." for name in idle]
    cutoffs = [setting_of(function, "freq_cutoff") for function in functions if owner_of(function) == "FreSca"]
    found += [
        f"Set freq_cutoff of FreSca to {max(1, max(size) // 8)}: {cutoff} takes every frequency of this latent for low."
        for cutoff in cutoffs
        if cutoff is not None and cutoff >= max(size) // 2
    ]
    cache = model_options.get("transformer_options", {}).get("easycache")
    name, threshold = getattr(cache, "name", ""), getattr(cache, "reuse_threshold", 0.0)
    if cache is not None and is_sprint:
        found.append(f"Bypass {name or 'EasyCache'}: each of SANA-Sprint's few steps counts.")
    elif name == "EasyCache" and threshold > EASY_CACHE:
        found.append(
            f"Set reuse_threshold of EasyCache to {EASY_CACHE:g}, or take LazyCache: it skips steps that count."
        )
    return list(dict.fromkeys(found))


def _unused_blocks(transformer_options: Mapping[str, Any], depth: int) -> dict[tuple[str, str], set]:
    """(node, kind of block) -> numbers of the blocks that it replaces, or whose attention, but SANA does not have."""
    found = defaultdict(set)
    for name, replace in transformer_options.get("patches_replace", {}).items():
        for key, patch in replace.items():
            if not _is_used(name, key, depth):
                found[owner_of(patch), str(key[0])].add(key[1])
    return found


def _is_used(name: str, key: tuple, depth: int) -> bool:
    kinds = {"dit": ("double_block",), "attn1": BLOCK_KINDS, "attn2": BLOCK_KINDS}.get(name, ())
    return key[0] in kinds and key[1] < depth


def unconditional_by(guider: Any, sampler: str) -> str | None:
    """What asks for an unconditional pass besides cfg, and the cure, as the end of a sentence; None for cfg itself."""
    kind = type(guider).__name__
    if kind not in PLAIN_GUIDERS:
        name = kind.removeprefix("Guider_")
        return f"by the {name} guider, but its guidance is embedded: take BasicGuider or CFGGuider with cfg 1.0 instead"
    if not math.isclose(guider.cfg, 1.0):
        return None
    if sampler.endswith("_pp"):
        return f"by the sampler {sampler}, but its guidance is embedded: choose the sampler sana_scm instead"
    overrides = [name for name in map(owner_of, guidance_wrappers(guider)) if name in CFG_WRAPPERS]
    if overrides:
        return BYPASS.format(overrides[0])
    if guider.model_options.get("disable_cfg1_optimization"):
        nodes = " or ".join(dict.fromkeys(map(owner_of, _guidance_functions(guider.model_options)))) or "a node"
        return (OTHER_NAG if nodes == NAG else BYPASS).format(nodes)
    return None


def guidance_wrappers(guider: Any) -> list[Any]:
    """What other nodes have put around each prediction of a guider."""
    return guider.model_patcher.get_all_wrappers(WrappersMP.PREDICT_NOISE)


def _guidance_functions(model_options: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("sampler_cfg_function", "sampler_calc_cond_batch_function"):
        if name in model_options:
            yield model_options[name]
    for name in ("sampler_pre_cfg_function", "sampler_post_cfg_function"):
        yield from model_options.get(name, ())
    options = model_options.get("transformer_options", {})
    for patches in options.get("patches", {}).values():
        yield from patches
    for replace in options.get("patches_replace", {}).values():
        yield from replace.values()


def refuse_unconditional_pass(transformer_options: Mapping[str, Any]) -> None:
    """Raises ValueError, naming what asked for the pass where the run's watch has found it."""
    reason = transformer_options.get(UNCONDITIONAL_BY)
    if reason:
        raise ValueError(f"SANA-Sprint was asked for an unconditional pass {reason}.")
    raise ValueError(
        "SANA-Sprint was asked for an unconditional pass, but its guidance is embedded: set cfg to 1.0 on the sampler, "
        "and the guidance scale with the FluxGuidance node."
    )
