"""Which formats weights are kept and computed in: one decision per file, from how it was trained, what was asked for
and what the device computes fast.

Transformers trained in float16 have learnt to saturate at its limit, so they need that format, or a wider one with an
explicit clamp; those trained in bfloat16, Gemma and DC-AE overflow in float16.
Source: SANA, arXiv 2410.10629; README of NVlabs/Sana; diffusers issues 10241 and 10336.
Not here: how the device and the host's start flags are asked (`device.py`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT16, BFLOAT16 = "float16", "bfloat16"  # what a transformer can have been trained in
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Device:
    """What a device is good at, for one model."""

    name: str  # as in "float16 is slow on <name>"
    float16: bool = False  # computes in it at full speed
    bfloat16: bool = False
    bfloat16_on_request: bool = False  # does so too, but results differ from one processor to the next
    float8: bool = False  # float8 weights stay as they are: it multiplies them, or 16 bits would not fit
    tight: bool = False  # weights of 32 bits would not fit


@dataclass(frozen=True)
class Request:
    """A format somebody has asked for, and where."""

    dtype: torch.dtype | None = None
    by: str = ""


@dataclass(frozen=True)
class Precision:
    """The decision. clamp: saturate self-attention at float16's limit. warning: one sentence, or nothing to warn of."""

    weights: torch.dtype
    compute: torch.dtype
    clamp: bool
    reason: str
    warning: str = ""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, which pass through a sum: one pass, no map of booleans."""
    return math.isfinite(tensor.sum(dtype=torch.float32).item())


def require_finite(tensor: Tensor, stage: str, cure: str) -> None:
    """Raises ValueError naming the stage and the cure when the tensor holds NaN or infinity."""
    if not all_finite(tensor):
        raise ValueError(f"{stage} holds NaN or infinity: {cure}.")


def require_finite_states(states: Tensor) -> None:
    """Raises ValueError when what a text encoder gave holds NaN or infinity."""
    if not all_finite(states):
        raise ValueError(
            "The text encoder gave states with NaN or infinity: load it in bfloat16 or float32, or download its "
            "weights again."
        )


def require_finite_result(latent: Tensor, dtype: torch.dtype, cure: str) -> None:
    """Raises ValueError naming the format of a run and the cure when its latent holds NaN or infinity."""
    if not all_finite(latent):
        raise ValueError(f"Denoising gave a latent with NaN or infinity in {dtype}: {cure}.")


def fastest(trained_in: str | None, device: Device) -> tuple[torch.dtype, str]:
    """The format to compute a transformer in when nobody asks for one, and why.

    Without a word on its training it is treated as bfloat16's, with the clamp: right for both kinds.
    """
    half = torch.float16 if trained_in == FLOAT16 else torch.bfloat16
    if device.float16 if trained_in == FLOAT16 else device.bfloat16:
        return half, "safe however it was trained" if trained_in is None else "as it was trained"
    return torch.float32, f"{name_of(half)} is slow on {device.name}"


def sana_precision(
    trained_in: str | None, stored: torch.dtype | None, request: Request, device: Device, quantized: str = ""
) -> Precision:
    """Formats of a SANA transformer: what is asked for decides how weights are kept, never that they overflow.

    trained_in: FLOAT16, BFLOAT16 or None when nothing tells. stored: format of most of the file's weights.
    quantized: the host's name for the formats of the quantized layers, "" for none.
    """
    clamp = trained_in != BFLOAT16
    compute, why = fastest(trained_in, device)
    asked, by = request.dtype, f"asked for by {request.by}"

    if quantized:
        ignored = f", so {request.by} has no effect" if asked else ""
        return Precision(compute, compute, clamp, f"the file is quantized as {quantized}{ignored}")
    if asked is None:
        if stored in FLOAT8 and device.float8:
            return Precision(stored, compute, clamp, "as the file stores them")
        if compute == torch.float32 and device.tight:
            half = torch.float16 if trained_in == FLOAT16 else torch.bfloat16
            return Precision(half, compute, clamp, "32 bits would not fit in the memory")
        return Precision(compute, compute, clamp, why)
    if asked in (torch.float32, torch.float64):
        return Precision(asked, asked, clamp, by)
    if asked == torch.bfloat16:
        fast = device.bfloat16 or device.bfloat16_on_request
        return Precision(asked, torch.bfloat16 if fast else torch.float32, clamp, by)
    if asked in (torch.float16, *FLOAT8):
        harmful = asked == torch.float16 and trained_in != FLOAT16 and device.float16
        told = "was trained in bfloat16" if trained_in == BFLOAT16 else "is not known to be trained in float16"
        warning = (
            f"the model {told} and may overflow in the float16 {by}, so it is computed in {name_of(compute)}; "
            "bfloat16 weights are as small and need no cast"
        )
        return Precision(asked, compute, clamp, by, warning if harmful else "")
    return Precision(
        compute, compute, clamp, why, f"the {name_of(asked)} {by} holds no usable weights and is not taken"
    )


def lumina_precision(
    name: str, stored: torch.dtype | None, request: Request, device: Device, quantized: str = ""
) -> Precision:
    """Formats of a Lumina-Next transformer, trained in bfloat16; arguments as of `sana_precision`.

    Raises ValueError for float16, which its authors' own code does not offer.
    """
    if request.dtype == torch.float16 and not quantized:
        raise ValueError(
            f"{name} is a Lumina-Next transformer, which overflows in the float16 asked for by {request.by}: set "
            "weight_dtype to bfloat16 or float32."
        )
    return sana_precision(BFLOAT16, stored, request, device, quantized)


def gemma_precision(stored: torch.dtype, request: Request, device: Device) -> Precision:
    """Formats of the text encoder: its matrix products are in bfloat16 where the device is fast at it.

    On a CPU unasked, too: what it changes in the demo's images is less than their rounding to 8 bits (63 to 74 dB).
    Weights in float16 or float32 are multiplied in float32: bfloat16 would round them, and Gemma-2 overflows in
    float16. stored: format of most of the file's weights.
    """
    by, weights, warning = f"asked for by {request.by}", request.dtype or stored, ""
    if request.dtype == torch.float16 and stored != torch.float16:
        weights = stored
        warning = f"the float16 {by} is not taken, because Gemma was trained in bfloat16 and overflows in float16"
    fast = device.bfloat16 or device.bfloat16_on_request
    compute = torch.bfloat16 if fast and weights in (torch.bfloat16, *FLOAT8) else torch.float32
    reason = by if weights == request.dtype else "as the file stores them"
    return Precision(weights, compute, False, reason, warning)


def dc_ae_precision(request: Request, device: Device) -> Precision:
    """Format of the autoencoder, kept and computed in the same one."""
    best = torch.bfloat16 if device.bfloat16 else torch.float32
    why = "as it was trained" if device.bfloat16 else f"bfloat16 is slow on {device.name}"
    if request.dtype in (torch.bfloat16, torch.float32):
        return Precision(request.dtype, request.dtype, False, f"asked for by {request.by}")
    if request.dtype is None:
        return Precision(best, best, False, why)
    asked = f"the {name_of(request.dtype)} asked for by {request.by}"
    return Precision(best, best, False, why, f"{asked} is not taken, because DC-AE gives black images in it")


def count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def describe_precision(precision: Precision) -> str:
    clamp = ", self-attention clamped" if precision.clamp else ""
    return f"weights {name_of(precision.weights)}, computed in {name_of(precision.compute)}{clamp} ({precision.reason})"
