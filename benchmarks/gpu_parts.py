"""Parts of a step and of a decode on a GPU: plain torch as the networks have it, other ways in torch, fused kernels.

Shapes are those of the 1.6B transformer with both passes of cfg at 1024 px, and of DC-AE's finest stage at 1024 px.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

from benchmarks.gpu_report import FLOAT32_ON_CPU, OURS, Report, Saving, Work
from benchmarks.gpu_stages import relative_error
from benchmarks.networks import TRANSFORMERS

BATCH, SIZE, HEAD_DIM = 2, 1024, 32
STEP, DECODE = "step 1.6B x2 1024", "decode 1024"
BLOCKS = 20
FINE_CHANNELS, FINE_SIZE = 128, 1024
# Residual blocks of DC-AE's decoder in units of one at full resolution: three at each, with twice the channels on a
# quarter of the positions, then four times on a sixteenth.
FINE_BLOCKS = 3 * (1 + 1 / 2 + 1 / 4)
TINY_SIZES = {"batch": 1, "tokens": 16, "channels": 64, "hidden": 64, "fine_channels": 32, "fine_size": 8}
FLOAT64 = "float64"


def sizes(tiny: bool) -> SimpleNamespace:
    if tiny:
        return SimpleNamespace(**TINY_SIZES)
    width, _, _, hidden = TRANSFORMERS["1.6B"]
    tokens = (SIZE // 32) ** 2
    return SimpleNamespace(
        **{"batch": BATCH, "tokens": tokens, "channels": width, "hidden": hidden},
        **{"fine_channels": FINE_CHANNELS, "fine_size": FINE_SIZE},
    )


def tensor_bytes(*tensors) -> Work:
    """Each of them read or written once."""
    return Work(bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def kernels():
    """The module of fused kernels; None where there is no Triton."""
    try:
        from benchmarks import triton_kernels
    except ImportError:
        return None
    return triton_kernels


class Part:
    """Rows of one part. saving: the stage it is a part of, for its fused forms."""

    def __init__(self, report: Report, stage: str, work: Work, saving: Saving | None = None):
        self.report, self.stage, self.work, self.saving = report, f"part {stage}", work, saving

    def row(
        self, variant: str, run: Callable, error: Callable | None = None, error_to: str = OURS, fused=False
    ) -> None:
        saving = self.saving if fused else None
        self.report.measure(self.stage, variant, run, self.work, error, error_to, saving=saving)

    def kernel_row(self, name: str, run: Callable) -> None:
        """A row for a kernel in Triton; its error is that of the kernel's small case."""
        import torch

        module = kernels()
        if module is None:
            return self.report.skip(self.stage, "Triton", "there is no Triton")
        case = module.CASES[name]
        error = functools.partial(case.error, torch.bfloat16, self.report.device)
        self.row("Triton", functools.partial(run, module), error, FLOAT64, fused=True)


def normal(report: Report, *shape: int):
    """Random bfloat16 values on the device, maps with channels last."""
    import torch

    x = torch.randn(*shape, device=report.device, dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def parts(report: Report) -> None:
    if not report.wants("part"):
        return
    size = sizes(report.tiny)
    for part in (depthwise_gate, linear_attention, modulation, projection, norm_add, bias_silu):
        try:
            part(report, size)
        except Exception as failure:  # noqa: BLE001 - the other parts are worth having
            report.fail(f"part {part.__name__}", failure)


def depthwise_gate(report: Report, size: SimpleNamespace) -> None:
    import torch.nn.functional as F

    side, hidden = round(size.tokens**0.5), size.hidden
    x = normal(report, size.batch, size.tokens, 2 * hidden)
    weight, bias = normal(report, 2 * hidden, 1, 3, 3).contiguous(), normal(report, 2 * hidden)
    work = tensor_bytes(x, weight, bias, x[..., :hidden])
    part = Part(report, "SiLU, depthwise and gate", work, Saving(STEP, BLOCKS))

    def plain(planes: bool):
        maps = F.silu(x).transpose(1, 2).unflatten(2, (side, side))
        maps = F.conv2d(maps.contiguous() if planes else maps, weight, bias, padding=1, groups=2 * hidden)
        value, gate = maps.flatten(2).transpose(1, 2).chunk(2, dim=-1)
        return F.silu(gate) * value

    part.row(OURS, functools.partial(plain, False))
    part.row("planes", functools.partial(plain, True), lambda: relative_error(plain(True), plain(False)))
    part.kernel_row("depthwise_gate", lambda module: module.depthwise_gate(x, weight, bias, (side, side)))


def linear_attention(report: Report, size: SimpleNamespace) -> None:
    from sana_native.models.layers import linear_attention_of_tokens

    q, k, v = (normal(report, size.batch, size.tokens, size.channels) for _ in range(3))
    part = Part(report, "linear attention", tensor_bytes(q, k, v, q), Saving(STEP, BLOCKS))
    wanted = linear_attention_of_tokens(*(x.float().cpu() for x in (q, k, v)), HEAD_DIM)
    rows = {OURS: linear_attention_of_tokens}
    if report.device == "cuda":  # torch has no such product for a CPU
        rows["bfloat16 products"] = linear_attention_in_bfloat16
    for name, function in rows.items():
        run = functools.partial(function, q, k, v, HEAD_DIM)
        part.row(name, run, lambda run=run: relative_error(run(), wanted), FLOAT32_ON_CPU)
    part.kernel_row("linear_attention", lambda module: module.linear_attention(q, k, v, HEAD_DIM))


def linear_attention_in_bfloat16(q, k, v, head_dim: int, eps: float = 1e-15):
    """Products of bfloat16 summed in float32; the state is split in two bfloat16 parts, which lose nothing visible."""
    import torch
    import torch.nn.functional as F

    images = len(q)
    q, k, v = (x.unflatten(-1, (-1, head_dim)).transpose(1, 2).flatten(0, 1) for x in (F.relu(q), F.relu(k), v))
    products = torch.bmm(k.mT, v, out_dtype=torch.float32)
    state = torch.cat([products, k.sum(dim=1, dtype=torch.float32).unsqueeze(-1)], dim=-1)
    high = state.to(q.dtype)
    out = sum(torch.bmm(q, part, out_dtype=torch.float32) for part in (high, (state - high).to(q.dtype)))
    out = (out[..., :-1] / (out[..., -1:] + eps)).to(q.dtype)
    return out.unflatten(0, (images, -1)).transpose(1, 2).flatten(2)


def modulation(report: Report, size: SimpleNamespace) -> None:
    import comfy.quant_ops
    from sana_native.models.sana.embeddings import LAYER_NORM_EPS, modulate

    x = normal(report, size.batch, size.tokens, size.channels)
    shift, scale = (normal(report, size.batch, 1, size.channels) for _ in range(2))
    part = Part(report, "LayerNorm and modulation", tensor_bytes(x, x), Saving(STEP, 2 * BLOCKS))
    wanted = modulate(*(tensor.float().cpu() for tensor in (x, shift, scale)))
    part.row(OURS, lambda: modulate(x, shift, scale))
    fused = getattr(comfy.quant_ops.ck, "adaln", None)
    if fused is None:
        return report.skip(part.stage, "host's adaln", "this host has none")

    def run():
        return fused(x, scale, shift, LAYER_NORM_EPS)

    part.row("host's adaln", run, lambda: relative_error(run(), wanted), FLOAT32_ON_CPU, fused=True)


def projection(report: Report, size: SimpleNamespace) -> None:
    import torch.nn.functional as F

    side, channels, hidden = round(size.tokens**0.5), size.channels, 2 * size.hidden
    x = normal(report, size.batch, size.tokens, channels)
    weight, bias = normal(report, hidden, channels), normal(report, hidden)
    maps, kernel = x.transpose(1, 2).unflatten(2, (side, side)), weight[:, :, None, None]
    work = tensor_bytes(x, weight, bias, x.new_empty(size.batch, size.tokens, hidden, device="meta"))
    operations = 2 * size.batch * size.tokens * channels * hidden
    part = Part(report, "1x1 convolution", Work(operations, work.bytes))
    part.row(OURS, lambda: F.linear(x, weight, bias))
    part.row("conv2d", lambda: F.conv2d(maps, kernel, bias))


def norm_add(report: Report, size: SimpleNamespace) -> None:
    import torch.nn.functional as F
    from sana_native.models.dc_ae.layers import RMSNorm2d

    channels = size.fine_channels
    x, y = (normal(report, 1, channels, size.fine_size, size.fine_size) for _ in range(2))
    norm = RMSNorm2d(channels, device=report.device, dtype=x.dtype).requires_grad_(False)
    norm.weight.copy_(normal(report, channels))
    norm.bias.copy_(normal(report, channels))
    part = Part(report, "norm, bias and residual", tensor_bytes(x, x, y), Saving(DECODE, FINE_BLOCKS))
    plain = x + norm(y)

    def tokens():
        update = F.rms_norm(y.permute(0, 2, 3, 1), (channels,), norm.weight, norm.eps).add_(norm.bias)
        return x + update.permute(0, 3, 1, 2)

    part.row(OURS, lambda: x + norm(y))
    part.row("rms_norm of tokens", tokens, lambda: relative_error(tokens(), plain))
    part.kernel_row("norm_add", lambda module: module.norm_add(x, y, norm.weight, norm.bias))


def bias_silu(report: Report, size: SimpleNamespace) -> None:
    import torch.nn.functional as F

    channels = size.fine_channels
    x = normal(report, 1, channels, size.fine_size, size.fine_size)
    weight, bias = normal(report, channels, channels, 3, 3), normal(report, channels)
    operations = 2 * 9 * channels * x.numel()
    work = Work(operations, tensor_bytes(x, x, weight).bytes)
    part = Part(report, "convolution, bias and SiLU", work, Saving(DECODE, FINE_BLOCKS))
    part.row(OURS, lambda: F.silu(F.conv2d(x, weight, bias, padding=1), inplace=True))
    part.kernel_row("bias_silu", lambda module: module.bias_silu(F.conv2d(x, weight, padding=1), bias))
