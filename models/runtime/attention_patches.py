"""The host's patches on attention, as a transformer's blocks meet them: inputs changed, attention replaced, output
changed.

Source: the contract of the host's `BasicTransformerBlock` (comfy/ldm/modules/attention.py). A block reads its patches
from `transformer_options` under ATTN1 and ATTN2; in a plain run the keys are absent, so that a compiled block guards on
their absence and meets no block index.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

ATTN1, ATTN2 = "sana_native_attn1", "sana_native_attn2"  # in transformer_options: AttentionPatches of the block
HOST_NAMES = {ATTN1: "attn1", ATTN2: "attn2"}


@dataclass(frozen=True)
class AttentionPatches:
    """Patches on one attention of one block. extra_options: what the host hands to each of them besides tensors."""

    before: tuple[Callable, ...] = ()
    replace: Callable | None = None
    after: tuple[Callable, ...] = ()
    extra_options: dict[str, Any] = field(default_factory=dict)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the three projections are given, (B, N, C) each."""
        for patch in self.before:
            changed = patch(q, k, v, self.extra_options)
            if not isinstance(changed, tuple) or len(changed) != 3:
                owner = getattr(patch, "__qualname__", type(patch).__name__).partition(".")[0]
                raise ValueError(
                    f"The attention patch of {owner} was made for another kind of model, as it does not return query, "
                    "key and value: bypass the node that set it."
                )
            q, k, v = changed
        return q, k, v

    def attend(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention, or what takes its place, between the projections and the output layer."""
        return attention(q, k, v) if self.replace is None else self.replace(q, k, v, self.extra_options)

    def output(self, out: Tensor) -> Tensor:
        """What the output layer gives, before the residual connection and its gate."""
        for patch in self.after:
            out = patch(out, self.extra_options)
        return out


NO_PATCHES = AttentionPatches()


def has_attention_patches(transformer_options: Mapping[str, Any]) -> bool:
    patches, replace = transformer_options.get("patches", {}), transformer_options.get("patches_replace", {})
    return any(
        replace.get(name) or patches.get(f"{name}_patch") or patches.get(f"{name}_output_patch")
        for name in HOST_NAMES.values()
    )


def with_block_patches(
    transformer_options: dict[str, Any], index: int, middle: int, shape: tuple[int, ...], heads: Mapping[str, tuple]
) -> dict[str, Any]:
    """The options of block `index`, with its AttentionPatches where it has any.

    middle: index of the block that ("middle", 0) means, all that the host's own nodes can say. shape: of the latent.
    heads: number of heads and their width, for ATTN1 and ATTN2.
    """
    if not has_attention_patches(transformer_options):
        return transformer_options
    extra = {key: value for key, value in transformer_options.items() if key not in ("patches", "patches_replace")}
    extra |= {"original_shape": list(shape), "block": ("double_block", index), "attn_precision": None}
    patches, replaces = transformer_options.get("patches", {}), transformer_options.get("patches_replace", {})
    own = {}
    for key, name in HOST_NAMES.items():
        replace = find_replacement(replaces.get(name, {}), index, middle)
        before, after = tuple(patches.get(f"{name}_patch", ())), tuple(patches.get(f"{name}_output_patch", ()))
        if before or after or replace is not None:
            num_heads, head_dim = heads[key]
            own[key] = AttentionPatches(before, replace, after, extra | {"n_heads": num_heads, "dim_head": head_dim})
    return transformer_options | own


def find_replacement(replace: Mapping[tuple, Callable], index: int, middle: int) -> Callable | None:
    """What replaces the attention of block `index`: its key is (kind, index) or (kind, index, any)."""
    for key, function in replace.items():
        kind, number = key[:2]
        if (kind == "middle" and number == 0 and index == middle) or (
            number == index and (kind, number) != ("middle", 0) and kind in ("double_block", "middle", "input")
        ):
            return function
    return None


def depth_of(network: Any, node: str) -> int:
    """Number of blocks of a network that calls patches on attention. Raises ValueError for any other, naming the node.

    Such a network has the sizes of its heads under ATTN1 and ATTN2.
    """
    if ATTN1 not in (getattr(network, "heads", None) or {}):
        raise ValueError(
            f"{node} changes the attention of SANA and PixArt, but this model is a {type(network).__name__}, on which "
            "it has no effect: bypass that node."
        )
    return network.config.depth
