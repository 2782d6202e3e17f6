"""The host's LoRA adapters as SANA needs them: whether one fits a weight, its alpha set later, exact DoRA."""

import math

import comfy.model_management
import torch
from comfy.weight_adapter import GLoRAAdapter, LoHaAdapter, LoKrAdapter, LoRAAdapter
from torch import Tensor

# Places in the host's tuples of an adapter's parts.
ALPHA = 2
MAGNITUDE = {LoRAAdapter: 4, LoHaAdapter: 7, LoKrAdapter: 8}


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Outputs and everything else, as the host flattens a weight."""
    return tensor.shape[0], math.prod(tensor.shape[1:])


def change_shape(patch) -> tuple[int, int] | None:
    """Rows and columns of what a patch adds to a flattened weight; None for a kind that is not known here."""
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, _ = patch.weights
        return up.shape[0], math.prod(down.shape[1:]) * (1 if mid is None else math.prod(mid.shape[2:]))
    if isinstance(patch, LoHaAdapter):
        w1_a, w1_b, _, _, _, t1 = patch.weights[:6]
        if t1 is None:
            return w1_a.shape[0], math.prod(w1_b.shape[1:])
        return w1_a.shape[1], w1_b.shape[1] * math.prod(t1.shape[2:])
    if isinstance(patch, LoKrAdapter):
        w1, w2, _, w1_a, w1_b, w2_a, w2_b, t2 = patch.weights[:8]
        first = matrix_shape(w1) if w1 is not None else (w1_a.shape[0], w1_b.shape[1])
        if w2 is not None:
            second = matrix_shape(w2)
        else:
            kernel = 1 if t2 is None else math.prod(t2.shape[2:])
            second = w2_a.shape[0 if t2 is None else 1], w2_b.shape[1] * kernel
        return first[0] * second[0], first[1] * second[1]
    if isinstance(patch, GLoRAAdapter):  # b1 @ b2, or b2 @ b1 in older files: the rank is the smaller inner size
        (rows1, inner1), (rows2, inner2) = (matrix_shape(factor) for factor in patch.weights[2:4])
        return (rows1, inner2) if inner1 == rows2 and (inner2 != rows1 or inner1 <= inner2) else (rows2, inner1)
    if isinstance(patch, tuple) and patch[0] == "diff":
        return matrix_shape(patch[1][0])
    return None


def fits(patch, weight: Tensor) -> bool:
    """True when the host can add the patch to the weight, and the sum means what was trained."""
    if isinstance(patch, LoRAAdapter) and patch.weights[0].shape[1] != patch.weights[1].shape[0]:
        return False
    if isinstance(patch, LoHaAdapter) and patch.weights[5] is None:
        w1_a, w1_b, _, w2_a, w2_b = patch.weights[:5]
        if w1_a.shape[1] != w1_b.shape[0] or w2_a.shape[1] != w2_b.shape[0]:
            return False
    if has_magnitude(patch):
        magnitude = patch.weights[magnitude_index(patch)]
        if magnitude.shape[0] != weight.shape[0] and magnitude.shape[:2] != (1, weight.shape[1]):
            return False
    change, own = change_shape(patch), matrix_shape(weight)
    if change is None or change == own:
        return True
    if isinstance(patch, LoKrAdapter):  # newer hosts cut the rows of a part out of a fused layer's, and reshape nothing
        offset = getattr(patch, "row_offset", None)
        return offset is not None and change[1] == own[1] and 0 <= offset <= change[0] - own[0]
    # OneTrainer's DoRA and LoHa of a depthwise convolution: one row, reshaped.
    return type(patch) is not LoRAAdapter and change == (1, weight.numel())


def rank_of(patch) -> int | None:
    """Rank as the host counts it; None for a patch that is not of low rank."""
    if isinstance(patch, LoRAAdapter | LoHaAdapter):
        return patch.weights[1].shape[0]
    if isinstance(patch, LoKrAdapter):
        w1_b, w2_b = patch.weights[4], patch.weights[6]
        return next((factor.shape[0] for factor in (w2_b, w1_b) if factor is not None), None)
    return None


def magnitude_index(patch) -> int | None:
    return MAGNITUDE.get(getattr(patch, "plain", type(patch)))


def in_network_shape(patch, weight: Tensor | None):
    """A difference, or a weight to set, in the weight's shape: files hold those of 1x1 convolutions as (N, K, 1, 1)."""
    if weight is None or not (isinstance(patch, tuple) and len(patch) == 2 and patch[0] in ("diff", "set")):
        return patch
    kind, (tensor, *others) = patch
    is_pointwise = weight.ndim == 2 and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
    return (kind, (tensor.flatten(1), *others)) if is_pointwise else patch


def has_magnitude(patch) -> bool:
    index = magnitude_index(patch)
    return index is not None and patch.weights[index] is not None


def rebuild(patch, weights: tuple, kind: type | None = None):
    """The adapter with other weights, and as another class; what a newer host notes on adapters goes along."""
    built = (kind or type(patch))(patch.loaded_keys, weights)
    vars(built).update({name: value for name, value in vars(patch).items() if name not in ("loaded_keys", "weights")})
    return built


def with_alpha(patch, alpha: float):
    return rebuild(patch, (*patch.weights[:ALPHA], alpha, *patch.weights[ALPHA + 1 :]))


def multiply_out(patch: LoKrAdapter) -> LoKrAdapter:
    """A Tucker-decomposed second factor as one tensor, with the scale; the host fails on its memory layout."""
    w1, _, alpha, w1_a, w1_b, w2_a, w2_b, t2, magnitude = patch.weights
    w2 = torch.einsum("ijkl,jr,ip->prkl", t2.float(), w2_b.float(), w2_a.float()).contiguous()
    if alpha is not None:
        w2 *= alpha / w2_b.shape[0]
    return rebuild(patch, (w1, w2, None, w1_a, w1_b, None, None, None, magnitude))


def prepare(patch):
    """The adapter as its trainer meant it: DoRA exactly, and without the forms that the host stumbles over."""
    if type(patch) is LoKrAdapter and patch.weights[7] is not None:
        patch = multiply_out(patch)
    if type(patch) is LoHaAdapter and patch.weights[5] is None:  # OneTrainer's of a convolution has four dimensions
        flat = (
            part.flatten(1) if isinstance(part, Tensor) and i in (0, 1, 3, 4) else part
            for i, part in enumerate(patch.weights)
        )
        patch = rebuild(patch, tuple(flat))
    if type(patch) in EXACT and has_magnitude(patch):
        patch = rebuild(patch, patch.weights, EXACT[type(patch)])
    return patch


class ExactMagnitude:
    """DoRA as trainers apply it: the changed weight is normalized, then scaled, along the axis of the magnitude.

    The host divides by the norm of the unchanged weight when the magnitude is one per output, as PEFT's is.
    """

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset,
        function,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight=None,
    ) -> Tensor:
        index = magnitude_index(self)
        plain = rebuild(self, (*self.weights[:index], None, *self.weights[index + 1 :]), self.plain)
        merged = plain.calculate_weight(
            weight.clone(), key, 1.0, strength_model, offset, function, intermediate_dtype, original_weight
        ).float()
        magnitude = comfy.model_management.cast_to_device(self.weights[index], weight.device, torch.float32)
        axis = 0 if magnitude.shape[0] == weight.shape[0] else 1
        others = [dim for dim in range(merged.ndim) if dim != axis]
        norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
        # A row of zeros stays one.
        norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        merged *= magnitude.reshape([-1 if dim == axis else 1 for dim in range(merged.ndim)]) / norm
        return weight.add_((merged - weight).to(weight.dtype), alpha=strength)


class ExactLoRA(ExactMagnitude, LoRAAdapter):
    """DoRA on a LoRA."""

    plain = LoRAAdapter


class ExactLoHa(ExactMagnitude, LoHaAdapter):
    """DoRA on a LoHa."""

    plain = LoHaAdapter


class ExactLoKr(ExactMagnitude, LoKrAdapter):
    """DoRA on a LoKr."""

    plain = LoKrAdapter


EXACT = {LoRAAdapter: ExactLoRA, LoHaAdapter: ExactLoHa, LoKrAdapter: ExactLoKr}
