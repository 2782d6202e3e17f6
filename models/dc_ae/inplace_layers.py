"""The blocks of DC-AE in place and in row bands: the values of `layers.py` in less memory and time.

`forward_inplace` works without autograd, on channels-last input, which it may overwrite. Whoever calls it has made sure
of that and that every layer inside is an unmodified one (`is_unmodified`); `forward` is that of the plain class.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import apply_kv_state, kv_state, split_heads_fp32
from ..runtime.layer_weights import cast_weights, is_plain_layer
from ..runtime.overwrite import can_overwrite
from ..runtime.row_bands import (
    add_in_row_bands_,
    empty_map,
    in_parts,
    in_strips,
    row_bands,
    rows_of,
    sliding_rows,
    strips,
)
from .layers import (
    ATTENTION_EPS,
    DownBlock,
    EfficientViTBlock,
    GLUMBConv,
    MultiscaleLinearAttention,
    ResBlock,
    RMSNorm2d,
    UpBlock,
    Upsample,
)
from .shortcuts import space_to_channel, square_of, squares, unshuffled

# Below, preparing the weights takes longer than it saves. No tile is so small: it would round unlike the whole.
SUB_PIXEL_POSITIONS = 256
CONTAINERS = (nn.Sequential, nn.ModuleList)


def normalized(norm: RMSNorm2d, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The norm of x in float32, a strip of tokens at a time, with the same strips of x and of channels-last others.

    A float32 x is overwritten on the way.
    """
    weight, bias = (comfy.model_management.cast_to(t, torch.float32, x.device) for t in (norm.weight, norm.bias))
    x, scratch = x.contiguous(memory_format=torch.channels_last), None  # a copy where convolutions lose the layout
    for tokens, *rest in strips(x, *others):
        values = tokens
        if x.dtype != torch.float32:
            scratch = torch.empty_like(tokens, dtype=torch.float32) if scratch is None else scratch[: len(tokens)]
            values = scratch.copy_(tokens)
        square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
        values.mul_(square.div_(x.shape[1]).add_(norm.eps).rsqrt_())
        yield torch.addcmul(bias, values, weight, out=values), tokens, *rest


def add_normalized_(norm: RMSNorm2d, x: Tensor, branch: Tensor) -> Tensor:
    """x += norm(branch); branch is overwritten."""
    for values, _, tokens in normalized(norm, branch, x):
        tokens.copy_(values.add_(tokens))
    return x


def activate_normalized_(norm: RMSNorm2d, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """activation(norm(x)) in the place of x."""
    x = x.contiguous(memory_format=torch.channels_last)
    for values, tokens in normalized(norm, x):
        tokens.copy_(activation(values))
    return x


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B, C, H, W): on a CPU a product with its tokens, which needs no copy of the weights."""
    if x.device.type != "cpu":
        return layer(x)
    with cast_weights(layer, x) as (weight, bias):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class InplaceResBlock(ResBlock):
    """Residual block in row bands."""

    halo = 2

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.conv1(x), inplace=True))

    def forward_inplace(self, x: Tensor) -> Tensor:
        return add_in_row_bands_(x, self.branch, partial(add_normalized_, self.norm), self.halo)


class InplaceAttention(MultiscaleLinearAttention):
    """Attention in two passes over the row bands: the sums over all keys first, then every query."""

    def project_to(self, x: Tensor, out: Tensor) -> None:
        """x (1, C, H, W) to out (H, W, 3C)."""
        tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
        torch.cat([self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)], dim=-1, out=out.flatten(0, 1))

    def forward_inplace(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] <= self.head_dim:
            return self(x)
        for image in x.split(1):
            self.attend_(image)
        return x

    def attend_(self, x: Tensor) -> None:
        """`forward` in place for x (1, C, H, W)."""
        channels, width = x.shape[1], x.shape[3]
        scales = [nn.Identity(), *self.to_qkv_multiscale]
        halo = max((scale.proj_in.kernel_size[0] for scale in self.to_qkv_multiscale), default=1) // 2
        widest = 3 * channels * len(scales)
        queries, states = [], [0.0] * len(scales)
        for _, _, band, qkv in sliding_rows(x, self.project_to, 3 * channels, halo, widest):
            queries.append([])
            for i, scale in enumerate(scales):
                tokens = scale(qkv)[:, :, band].permute(0, 2, 3, 1).flatten(0, 2)
                q, k, v = tokens.unflatten(1, (-1, 3, self.head_dim)).unbind(dim=2)  # (N, h, d)
                queries[-1].append(F.relu(q))
                states[i] = states[i] + kv_state(F.relu(split_heads_fp32(k)), split_heads_fp32(v))
        for start, stop in row_bands(x, widest):
            out = x.new_empty((stop - start) * width, len(scales), channels)
            for i, q in enumerate(queries.pop(0)):
                out[:, i] = apply_kv_state(split_heads_fp32(q), states[i], ATTENTION_EPS).flatten(1)
            out = self.to_out(out.flatten(1)).unflatten(0, (1, -1, width))
            add_normalized_(self.norm_out, x[:, :, start:stop], out.permute(0, 3, 1, 2))


class InplaceGLUMBConv(GLUMBConv):
    """GLUMBConv in row bands, whose expansion is computed once per row."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        inner = 8 * x.shape[1]
        for image in x.split(1):
            for start, stop, band, rows in sliding_rows(image, self.expand_to, inner, halo=1, widest=inner):
                value, gate = self.conv_depth(rows)[:, :, band].chunk(2, dim=1)
                out = pointwise(self.conv_point, F.silu(gate, inplace=True) * value)
                add_normalized_(self.norm, image[:, :, start:stop], out)
        return x

    def expand_to(self, x: Tensor, out: Tensor) -> None:
        """x (1, C, H, W) through the first layer and SiLU, to out (H, W, 8C)."""
        with cast_weights(self.conv_inverted, x) as (weight, bias):
            tokens = x.permute(0, 2, 3, 1).flatten(0, 2)
            torch.addmm(bias, tokens, weight.flatten(1).mT, out=out.view(-1, out.shape[2]))
        F.silu(out, inplace=True)


class InplaceEfficientViTBlock(EfficientViTBlock):
    """Attention and GLUMBConv in place."""

    attention, feed_forward = InplaceAttention, InplaceGLUMBConv

    def forward_inplace(self, x: Tensor) -> Tensor:
        return self.conv_out.forward_inplace(self.attn.forward_inplace(x))


class InplaceDownBlock(DownBlock):
    """Downsampling whose shortcut is added in row bands, channels last throughout."""

    halo = 1

    def forward_inplace(self, x: Tensor) -> Tensor:
        out = in_parts(self.conv, x, self.out_channels, taken=2)
        for image, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in row_bands(target, 2 * self.out_channels):
                target[:, :, start:stop].add_(space_to_channel(image[:, :, 2 * start : 2 * stop], self.out_channels))
        return out


class InplaceUpsample(Upsample):
    """Upsampling by a sub-pixel convolution, or with its pixel shuffle in row bands."""

    @property
    def halo(self) -> int:
        """Of the doubled resolution."""
        return 2 if self.pixel_shuffle else 1

    def forward_inplace(self, x: Tensor) -> Tensor:
        if self.pixel_shuffle:
            return self.shuffle_in_row_bands(x)
        if x.shape[2] * x.shape[3] < SUB_PIXEL_POSITIONS:
            return self.upsample(x)
        with cast_weights(self.conv, x) as (weight, bias):
            convolve = partial(F.conv_transpose2d, weight=sub_pixel_weight(weight), bias=bias, stride=2, padding=1)
            return in_parts(convolve, x, len(weight), given=2)

    def shuffle_in_row_bands(self, x: Tensor) -> Tensor:
        out = empty_map(x, self.conv.out_channels // 4, 2 * x.shape[2], 2 * x.shape[3])
        for image, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in row_bands(image, self.conv.out_channels):
                rows = rows_of(self.conv, image, start, stop, halo=1)
                squares(target[:, :, 2 * start : 2 * stop]).copy_(unshuffled(rows, 2, 2).contiguous())
        return out


class InplaceUpBlock(InplaceUpsample, UpBlock):
    """Upsampling whose shortcut is added in row bands."""

    def forward_inplace(self, x: Tensor) -> Tensor:
        out = super().forward_inplace(x)
        rows, columns = square_of(self.repeats)
        for image, target in zip(x.split(1), out.split(1), strict=True):
            for start, stop in row_bands(image, 2 * x.shape[1]):
                values = image[:, :, start:stop]
                if self.repeats > 4:  # otherwise not called: it would lose the layout
                    values = values.repeat_interleave(self.repeats // 4, dim=1)
                squares(target[:, :, 2 * start : 2 * stop]).add_(unshuffled(values, rows, columns).contiguous())
        return out


def sub_pixel_weight(weight: Tensor) -> Tensor:
    """Weight (C, D, 4, 4) of a transposed convolution that equals the 3x3 one (D, C, 3, 3) after nearest upsampling.

    Positions with equal values share the sum of their weights: 16 products in place of 36.
    """
    spread = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.float32, device=weight.device)
    summed = weight.new_empty(*weight.shape[:2], 16)
    for some, target in in_strips(weight.flatten(2), summed):
        target.copy_(some.float() @ torch.kron(spread, spread))
    return summed.unflatten(2, (4, 4)).transpose(0, 1)


def is_unmodified(module: nn.Module) -> bool:
    """Whether all inside a module is the host's plain layers and this folder's, without hooks or other forwards."""
    return all(is_plain_layer(one) or is_own_layer(one) for one in module.modules())


def is_own_layer(module: nn.Module) -> bool:
    """Whether a module is exactly what this folder or torch's containers define: a subclass may compute anything."""
    own = type(module) in CONTAINERS or type(module).__module__.rpartition(".")[0] == __package__
    patched = "forward" in vars(module) or module._compiled_call_impl is not None
    return own and not (patched or module._forward_hooks or module._forward_pre_hooks)


def in_sequence(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """The modules one after another, those of plain sequences in the place of the sequence."""
    for module in modules:
        if type(module) is nn.Sequential and is_own_layer(module):
            yield from in_sequence(module)
        else:
            yield module


def run(modules: Iterable[nn.Module], x: Tensor, whole: bool = True) -> Tensor:
    """The modules one after another on an x (B, C, H, W) that is the caller's own, in place where that is allowed.

    whole: whether those that can work on the whole map may do so; in row bands they need less memory.
    """
    for module in in_sequence(modules):  # in one loop, so that nothing but `x` holds on to a map of a lower resolution
        x = x.contiguous(memory_format=torch.channels_last)  # 1 x 1 positions have no layout that a layer would keep
        if not can_overwrite():
            x = module(x)
        elif not is_unmodified(module):
            x = module(x).clone()  # a hook may hold on to the result, which the next block overwrites
        elif whole and hasattr(module, "forward_whole"):
            x = module.forward_whole(x)
        elif hasattr(module, "forward_inplace"):
            x = module.forward_inplace(x)
        else:  # a 3x3 convolution
            x = in_parts(module, x, module.out_channels)
    return x
