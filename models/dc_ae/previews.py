"""True-color previews of DC-AE latents, without a file for them: colors fitted to the autoencoder itself.

The model and the autoencoder reach a sampler on separate wires, or the latter not at all. So the DC-AE that a graph
loaded last is remembered here. If previews are on, images of colored shapes are encoded with it and a linear map is
fitted from the latents back to them: when it is loaded or, where previews were off then, when it is next used. Nothing
is fitted while previews are off, nothing while a sampler asks for the colors, and nothing is written to disk.
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

# A latent position stands for 32 x 32 px. One color each would show 1024 px as 32 x 32 dots, so a position becomes
# GRID x GRID dots, computed from its neighbors too: DC-AE spreads what it encodes of a place over them.
GRID = 4
NEIGHBORS = 3  # a side, the position itself in the middle
IMAGES, IMAGE_SIZE = 16, 192  # px; together a third of the arithmetic of decoding 1024 px
RIDGE = 0.1  # against fitting the few hundred positions of those images too closely
# Not finite, out of memory, a file of something else: no reason to stop the run itself.
FAULTS = (ValueError, RuntimeError, OSError, UnpicklingError, SafetensorError)


@dataclass(frozen=True, eq=False)
class ColorMap:
    """Colors in [-1, 1] of latents as the model has them.

    factors: (3, C) and bias: (3,), of a whole position, from it alone. kernel: (3 GRID^2, C, 3, 3) and offset, of a
    position's dots, from it and its neighbors. inverse: (C, 3), pseudo-inverse of the factors.
    """

    factors: Tensor
    bias: Tensor
    kernel: Tensor
    offset: Tensor
    inverse: Tensor

    def on(self, device: torch.device) -> "ColorMap":
        """The map on a device, copied there once."""
        if self.factors.device == device:
            return self
        if device not in COPIES.setdefault(self, {}):
            COPIES[self][device] = ColorMap(*(tensor.to(device) for tensor in vars(self).values()))
        return COPIES[self][device]

    def colors(self, x0: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, GRID h, GRID w)."""
        here, padded = self.on(x0.device), F.pad(x0.float(), (NEIGHBORS // 2,) * 4, mode="replicate")
        return F.pixel_shuffle(F.conv2d(padded, here.kernel, here.offset), GRID)

    def refine(self, x0: Tensor) -> Tensor:
        """Latents for which `factors` give `colors`: (B, C, h, w) -> (1, C, GRID h, GRID w), of the first image.

        The host applies one linear map to each position. The finer map goes into its hook before that; whoever leaves
        the hook out still gets the coarse colors.
        """
        x0, here = x0[:1].float(), self.on(x0.device)
        coarse = x0.repeat_interleave(GRID, dim=2).repeat_interleave(GRID, dim=3)
        missing = self.colors(x0) - torch.einsum("dc,bchw->bdhw", here.factors, coarse) - here.bias[:, None, None]
        return coarse + torch.einsum("cd,bdhw->bchw", here.inverse, missing)


COPIES: "weakref.WeakKeyDictionary[ColorMap, dict]" = weakref.WeakKeyDictionary()  # of color maps, by device


def shapes(count: int = IMAGES, size: int = IMAGE_SIZE) -> Tensor:
    """Images (count, size, size, 3) in [0, 1]: plain or graded backgrounds, with up to three soft or hard shapes."""
    generator = torch.Generator().manual_seed(0)  # the host's random numbers stay as they are
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    images = []
    for number in range(count):
        colors, (across, down, hardness) = random(5, 3), random(3) * 2 - 1
        grade = torch.sigmoid((x * across + y * down) * 4 * (1 + 4 * hardness.abs()))[..., None]
        image = torch.lerp(colors[0].expand(size, size, 3), colors[1 if number % 4 else 0], grade)
        for shape in range(number % 4):
            left, top, wide, high, soft = random(5)
            place = (x - 1.4 * left + 0.7) / (0.2 + 0.6 * wide), (y - 1.4 * top + 0.7) / (0.2 + 0.6 * high)
            distance = torch.hypot(*place) if shape % 2 else torch.maximum(place[0].abs(), place[1].abs())
            inside = ((1 - distance) * size / (4 + 20 * soft)).clamp(0, 1)[..., None]
            image = torch.lerp(image, colors[2 + shape].expand_as(image), inside)
        images.append(image)
    return torch.stack(images)


def regress(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression with a free constant: weights (inputs' width, targets' width) and constants."""
    inputs, targets = inputs.double(), targets.double()
    mean, level = inputs.mean(0), targets.mean(0)
    centered = inputs - mean
    gram = centered.T @ centered + RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    weights = torch.linalg.solve(gram, centered.T @ (targets - level))
    return weights.float(), (level - mean @ weights).float()


@torch.no_grad()
def fit(vae) -> ColorMap:
    """Encodes a few images and regresses their colors on the latents. Raises what encoding raises."""
    images = shapes()
    latent = vae.encode_whole(images).float().cpu() * SANA_LATENT_SCALE
    dots = F.adaptive_avg_pool2d(images.movedim(-1, 1) * 2 - 1, [GRID * size for size in latent.shape[2:]])
    around = F.unfold(F.pad(latent, (NEIGHBORS // 2,) * 4, mode="replicate"), NEIGHBORS)
    factors, bias = regress(rows(latent), rows(F.avg_pool2d(dots, GRID)))
    kernel, offset = regress(rows(around), rows(F.pixel_unshuffle(dots, GRID)))
    kernel = kernel.T.unflatten(1, (-1, NEIGHBORS, NEIGHBORS))
    return ColorMap(factors.T, bias, kernel, offset, torch.linalg.pinv(factors.T))


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

    vae: gives a DC-AE that is still to be fitted, or None. find_tiny: gives the path of the user's tiny decoder, or
    None; set by the pack's entry point, which knows the host's folders. tiny: the last path it gave and its decoder.
    """

    vae: Callable = lambda: None
    current: ColorMap | None = None
    fits: dict[str, ColorMap | None] = field(default_factory=dict)
    find_tiny: Callable[[], str | None] | None = None
    tiny: tuple[str, TinyPreview | None] | None = None

    def remember(self, vae) -> None:
        """Takes a DC-AE that was loaded for the previews, and fits their colors to it if they are on."""
        self.vae = weakref.ref(vae)
        self.prepare()

    def prepare(self) -> None:
        """Fits the colors to the DC-AE loaded last, if previews are on and that is still to be done.

        A fit that fails is logged, and leaves no previews.
        """
        if args.preview_method == LatentPreviewMethod.NoPreviews:
            return
        vae, self.vae = self.vae(), lambda: None
        if vae is not None:
            key = fingerprint(vae)
            if key not in self.fits:
                self.fits[key] = self.try_fit(vae)
            self.current = self.fits[key]

    def preview(self) -> ColorMap | TinyPreview | None:
        """What shows a latent: the user's tiny decoder if the host is set to those, else the fitted colors, if any."""
        wanted = self.find_tiny is not None and args.preview_method == LatentPreviewMethod.TAESD
        path = self.find_tiny() if wanted else None
        if path is not None and (self.tiny is None or self.tiny[0] != path):
            self.tiny = path, self.try_tiny(path)
        return (path and self.tiny[1]) or self.current

    def try_tiny(self, path: str) -> TinyPreview | None:
        try:
            return TinyPreview(path)
        except FAULTS as error:
            logger.warning("SANA: %s is no TAESANA decoder, so previews do without: %s", shown(path), first_line(error))
            return None

    def try_fit(self, vae) -> ColorMap | None:
        try:
            return fit(vae)
        except FAULTS as error:
            logger.warning("SANA: no previews, because fitting their colors to the DC-AE failed: %s", error)
            return None


MEMORY = Memory()  # of the process: the two ends have no wire between them
