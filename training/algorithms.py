"""LoRA, DoRA and LoKr: what each trains beside a linear layer, what it makes of the layer's result, its parts in files.

Source: LoRA, arXiv 2106.09685, with the initial values of diffusers' script (PEFT's "gaussian"); DoRA, arXiv
2402.09353, whose norm carries no gradient as its section 4.3 says; LoKr, arXiv 2212.02119, with the factors and the
initial values of LyCORIS. Parts in files: PEFT's names for the two matrices of a LoRA, LyCORIS' for the rest, because
the host reads these.
"""

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LORA, DORA, LOKR = "LoRA", "DoRA", "LoKr"
# Parts with the two axes of a kernel in the file of a 1x1 convolution.
KERNEL_PARTS = ("lora_A.weight", "lora_B.weight", "dora_scale", "lokr_w2")


class Lora(nn.Module):
    """Adds alpha / rank times up down x. down (r, in), up (out, r)."""

    mark: ClassVar[str] = "down"  # the parameter that tells its states from those of the others
    peft: ClassVar[dict | None] = {}  # for PEFT's configuration; None where PEFT does not read it

    def __init__(self, layer: nn.Module, targets: int, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        outputs, inputs = layer.weight.shape
        self.targets, self.scale = targets, alpha / rank
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=generator) / rank)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def change(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale

    def forward(self, _: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """A layer, what it is given, (..., in), and what it gives, (..., out) -> the changed result."""
        return out + self.change(x).to(out.dtype)

    def file_parts(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Values of its parameters -> parts in a file for each target.

        alpha / rank is multiplied in, so a reader that knows no alpha applies them at their trained strength too.
        """
        up = values["up"].float() * self.scale
        return [{"lora_A.weight": values["down"].float(), "lora_B.weight": rows} for rows in up.chunk(self.targets)]


class Dora(Lora):
    """A LoRA that sets the direction of each row of the weight, beside a magnitude (out,) that sets its length."""

    mark: ClassVar[str] = "magnitude"
    peft: ClassVar[dict | None] = {"use_dora": True}

    def __init__(self, layer: nn.Module, targets: int, rank: int, alpha: float, generator: torch.Generator):
        super().__init__(layer, targets, rank, alpha, generator)
        self.magnitude = nn.Parameter(torch.linalg.vector_norm(layer.weight.detach().float(), dim=1))

    @torch.no_grad()
    def row_norms(self, layer: nn.Module) -> Tensor:
        """Of the changed weight, (out,), in float32 as those who read the file compute them."""
        norms = torch.linalg.vector_norm(layer.weight.float() + self.up @ self.down * self.scale, dim=1)
        return norms.clamp_min(torch.finfo(norms.dtype).tiny)  # a row of zeros stays one

    def forward(self, layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        ratio = self.magnitude / self.row_norms(layer)
        plain = out if layer.bias is None else out - layer.bias.to(out.dtype)
        return out + (ratio - 1).to(out.dtype) * plain + ratio.to(out.dtype) * self.change(x).to(out.dtype)

    def file_parts(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        rows = values["magnitude"].float()[:, None].chunk(self.targets)
        return [parts | {"dora_scale": own} for parts, own in zip(super().file_parts(values), rows, strict=True)]


class Lokr(nn.Module):
    """Adds the Kronecker product of w1 (T, a, c) and w2 (T, b, d), one for each of T targets: out = T a b, in = c d.

    With a rank r below half of its longer side w2 is w2_a (T, b, r) times w2_b (T, r, d), scaled by alpha / rank. From
    there on it is trained whole, as LyCORIS does, and alpha has no effect.
    """

    mark: ClassVar[str] = "w1"
    peft: ClassVar[dict | None] = None

    def __init__(self, layer: nn.Module, targets: int, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        outputs, inputs = layer.weight.shape
        (a, b), (c, d) = nearest_factors(outputs // targets), nearest_factors(inputs)
        self.w1 = uniform(generator, targets, a, c)
        if rank < max(b, d) / 2:
            self.alpha, self.scale = alpha, alpha / rank
            self.w2_a = uniform(generator, targets, b, rank)
            self.w2_b = nn.Parameter(torch.zeros(targets, rank, d))
        else:
            self.alpha, self.scale = float(rank), 1.0
            self.w2 = nn.Parameter(torch.zeros(targets, b, d))

    def forward(self, _: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """A layer, what it is given, (..., in), and what it gives, (..., out) -> the changed result."""
        groups = x.unflatten(-1, (self.w1.shape[2], -1))  # (..., in) -> (..., c, d)
        products = [product(groups, **factors) for factors in of_targets(self.named_parameters(), x.dtype)]
        return out + (torch.cat(products, dim=-1) * self.scale).to(out.dtype)

    def file_parts(self, values: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Values of its parameters -> parts in a file for each target."""
        alpha = torch.tensor(self.alpha)  # which LyCORIS asks for
        return [
            {f"lokr_{name}": value for name, value in factors.items()} | {"alpha": alpha}
            for factors in of_targets(values.items(), torch.float32)
        ]


def of_targets(values: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Stacks of factors -> those of each target."""
    cast = {name: value.to(dtype) for name, value in values}
    return [dict(zip(cast, factors, strict=True)) for factors in zip(*cast.values(), strict=True)]


def product(
    groups: Tensor, w1: Tensor, w2: Tensor | None = None, w2_a: Tensor | None = None, w2_b: Tensor | None = None
) -> Tensor:
    """x (..., c, d) -> the Kronecker product of w1 (a, c) and w2 (b, d) times x, (..., a b), without making it."""
    inner = F.linear(F.linear(groups, w2_b), w2_a) if w2 is None else F.linear(groups, w2)  # (..., c, b)
    return F.linear(inner.mT, w1).mT.flatten(-2)  # (..., b, a) -> (..., a b)


def uniform(generator: torch.Generator, targets: int, rows: int, columns: int) -> nn.Parameter:
    """(T, rows, columns), as PyTorch begins linear layers."""
    return nn.Parameter((2 * torch.rand(targets, rows, columns, generator=generator) - 1) / math.sqrt(columns))


def nearest_factors(size: int) -> tuple[int, int]:
    """The two factors of a size that lie nearest to each other, the smaller first, as LyCORIS chooses them."""
    small = next(one for one in range(math.isqrt(size), 0, -1) if size % one == 0)
    return small, size // small


ALGORITHMS: dict[str, type[nn.Module]] = {LORA: Lora, DORA: Dora, LOKR: Lokr}


def algorithm_of(names: Iterable[str]) -> str | None:
    """Which one has parameters of these names, `<layer>.<parameter>`; None for those of a whole model."""
    parts = {name.rpartition(".")[2] for name in names}
    # A DoRA has what a LoRA has.
    return next((name for name in (DORA, LORA, LOKR) if ALGORITHMS[name].mark in parts), None)
