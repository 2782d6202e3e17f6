"""True-colour previews of DC-AE latents, without a file for them: colours fitted to the autoencoder itself.

The model and the autoencoder reach a sampler on separate wires, or the latter not at all. So the DC-AE that a graph
loaded last is remembered here, and when the host first asks a SANA model's latent format for colours, pictures of
coloured shapes are encoded with it and a linear map is fitted from the latents back to them. Nothing is fitted while
previews are off, and nothing is written to disk.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pickle import UnpicklingError  # what torch raises; nothing here unpickles

import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from safetensors import SafetensorError
from torch import Tensor

from ..files.file_errors import first_line, shown
from .config import SANA_LATENT_SCALE
from .tiny_decoder import TinyPreview

logger = logging.getLogger(__name__)

# A latent position stands for 32 x 32 px. One colour each would show 1024 px as 32 x 32 dots, so a position is drawn as
# GRID x GRID dots, and from its neighbours too: DC-AE spreads what it knows of a place over them.
GRID = 4
NEIGHBOURS = 3  # a side, the position itself in the middle
PICTURES, SIDE = 16, 192  # px; together a third of the arithmetic of decoding 1024 px
RIDGE = 0.1  # against fitting the few hundred positions of those pictures too closely
# Not finite, out of memory, a file of something else: no reason to stop the drawing itself.
FAULTS = (ValueError, RuntimeError, OSError, UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class ColourMap:
    """Colours in [-1, 1] of latents as the model has them.

    factors: (3, C) and bias: (3,), of a whole position, from it alone. kernel: (3 GRID^2, C, 3, 3) and offset, of a
    position's dots, from it and its neighbours.
    """

    factors: Tensor
    bias: Tensor
    kernel: Tensor
    offset: Tensor

    def colours(self, x0: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, GRID h, GRID w)."""
        padded = F.pad(x0.float(), (NEIGHBOURS // 2,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(padded, self.kernel.to(x0.device), self.offset.to(x0.device)), GRID)

    def refine(self, x0: Tensor) -> Tensor:
        """Latents for which `factors` give `colours`: (B, C, h, w) -> (1, C, GRID h, GRID w), of the first picture.

        The host applies one linear map to each position. Its hook before that is where the finer one has its place, and
        whoever leaves the hook out still gets the coarse colours.
        """
        x0 = x0[:1].float()
        factors, bias = self.factors.to(x0.device), self.bias.to(x0.device)
        coarse = x0.repeat_interleave(GRID, dim=2).repeat_interleave(GRID, dim=3)
        missing = self.colours(x0) - torch.einsum("dc,bchw->bdhw", factors, coarse) - bias[:, None, None]
        return coarse + torch.einsum("cd,bdhw->bchw", torch.linalg.pinv(factors), missing)


def shapes(count: int = PICTURES, side: int = SIDE) -> Tensor:
    """Pictures (count, side, side, 3) in [0, 1]: plain or graded grounds, with up to three soft or hard shapes."""
    generator = torch.Generator().manual_seed(0)  # the host's random numbers stay as they are
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    pictures = []
    for number in range(count):
        colours, (across, down, hardness) = random(5, 3), random(3) * 2 - 1
        grade = torch.sigmoid((x * across + y * down) * 4 * (1 + 4 * hardness.abs()))[..., None]
        picture = torch.lerp(colours[0].expand(side, side, 3), colours[1 if number % 4 else 0], grade)
        for shape in range(number % 4):
            left, top, wide, high, soft = random(5)
            place = (x - 1.4 * left + 0.7) / (0.2 + 0.6 * wide), (y - 1.4 * top + 0.7) / (0.2 + 0.6 * high)
            distance = torch.hypot(*place) if shape % 2 else torch.maximum(place[0].abs(), place[1].abs())
            inside = ((1 - distance) * side / (4 + 20 * soft)).clamp(0, 1)[..., None]
            picture = torch.lerp(picture, colours[2 + shape].expand_as(picture), inside)
        pictures.append(picture)
    return torch.stack(pictures)


def regress(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression with a free constant: weights (inputs' width, targets' width) and constants."""
    inputs, targets = inputs.double(), targets.double()
    mean, level = inputs.mean(0), targets.mean(0)
    centred = inputs - mean
    gram = centred.T @ centred + RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (targets - level))
    return weights.float(), (level - mean @ weights).float()


def fit(vae) -> ColourMap:
    """Encodes a few pictures and regresses their colours on the latents. Raises what encoding raises."""
    pictures = shapes()
    latent = vae.encode_whole(pictures).float().cpu() * SANA_LATENT_SCALE
    dots = F.adaptive_avg_pool2d(pictures.movedim(-1, 1) * 2 - 1, [GRID * size for size in latent.shape[2:]])
    around = F.unfold(F.pad(latent, (NEIGHBOURS // 2,) * 4, mode="replicate"), NEIGHBOURS)
    factors, bias = regress(rows(latent), rows(F.avg_pool2d(dots, GRID)))
    kernel, offset = regress(rows(around), rows(F.pixel_unshuffle(dots, GRID)))
    return ColourMap(factors.T, bias, kernel.T.unflatten(1, (-1, NEIGHBOURS, NEIGHBOURS)), offset)


def rows(maps: Tensor) -> Tensor:
    """(B, C, ...) -> (positions, C)."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)


def fingerprint(vae) -> str:
    """Of the encoder's last layer, the same for every file of the same encoder."""
    weight = vae.first_stage_model.encoder.conv_out.weight.detach()
    return sha256(weight.float().cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass
class Memory:
    """The DC-AE that was loaded last, without keeping it alive, and the fits of this process by fingerprint.

    find_tiny: gives the path of the user's tiny decoder, or None; set by the pack's entry point, which knows the host's
    folders. tiny: the path asked for last with what came of it.
    """

    vae: Callable = lambda: None
    current: ColourMap | None = None
    fits: dict[str, ColourMap | None] = field(default_factory=dict)
    find_tiny: Callable[[], str | None] | None = None
    tiny: tuple[str, TinyPreview | None] | None = None

    def remember(self, vae) -> None:
        self.vae = weakref.ref(vae)

    def preview(self) -> ColourMap | TinyPreview | None:
        """What shows a latent: the user's tiny decoder if the host is set to those, else fitted colours."""
        wanted = self.find_tiny is not None and args.preview_method == LatentPreviewMethod.TAESD
        path = self.find_tiny() if wanted else None
        if path is not None and (self.tiny is None or self.tiny[0] != path):
            self.tiny = path, self.try_tiny(path)
        return (path and self.tiny[1]) or self.colour_map()

    def try_tiny(self, path: str) -> TinyPreview | None:
        try:
            return TinyPreview(path)
        except FAULTS as error:
            logger.warning("SANA: %s is no TAESANA decoder, so previews do without: %s", shown(path), first_line(error))
            return None

    def colour_map(self) -> ColourMap | None:
        """For the DC-AE loaded last; None when none was, or its fit failed, which is logged."""
        vae, self.vae = self.vae(), lambda: None
        if vae is not None:
            key = fingerprint(vae)
            if key not in self.fits:
                self.fits[key] = self.try_fit(vae)
            self.current = self.fits[key]
        return self.current

    def try_fit(self, vae) -> ColourMap | None:
        try:
            return fit(vae)
        except FAULTS as error:
            logger.warning("SANA: no previews, because fitting their colours to the DC-AE failed: %s", error)
            return None


MEMORY = Memory()  # of the process: the two ends have no wire between them
