"""DC-AE as a host VAE: every method of the host's class works on it, with its own ratios, tiles and memory needs."""

import logging
from collections.abc import Callable
from contextlib import contextmanager

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..runtime.precision import require_finite
from .config import DCAEConfig
from .memory_estimate import SIDES, Pass
from .model import AutoencoderDC

logger = logging.getLogger(__name__)

RATIO = 32
# 1024 px tiles with 128 px overlap: in 512 px ones the attention, global per tile, leaves visible seams in plain areas.
TILE = 32
OVERLAP = 4

DECODE_CURE = "load the autoencoder in bfloat16 or float32"
ENCODE_CURE = "check the node that made the image, and load the autoencoder in float32"


@contextmanager
def muted(message: str):
    """Drops one message of the host's root logger."""
    root = logging.getLogger()

    def keep(record: logging.LogRecord) -> bool:
        return message not in record.getMessage()

    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


class TiledAutoencoderDC(AutoencoderDC):
    """DC-AE that takes the exact tiles it is told to, and smaller ones when memory runs out.

    side: of the tiles in px; None for the whole.
    """

    side: int | None = None

    def encode(self, x: Tensor) -> Tensor:
        return self.shrinking(super().encode, x, max(x.shape[2:]))

    def decode(self, z: Tensor) -> Tensor:
        return self.shrinking(super().decode, z, RATIO * max(z.shape[2:]))

    def shrinking(self, run: Callable[[Tensor, int | None], Tensor], x: Tensor, size: int) -> Tensor:
        """run(x, side) with the first side that does not run out of memory. Raises what the smallest one raises."""
        smaller = [side for side in SIDES if side < (self.side or size)]
        for side in (self.side, *smaller):
            try:
                return run(x, side)
            except Exception as error:
                comfy.model_management.raise_non_oom(error)
                if not smaller or side == smaller[-1]:
                    raise
            # Out of the except block, where the error no longer holds the tensors of its frames.
            comfy.model_management.soft_empty_cache()
            logger.info(
                "SANA: out of memory %s, so smaller tiles are tried", "whole" if side is None else f"at {side} px"
            )


class SanaVAE(comfy.sd.VAE):
    """The host's VAE around DC-AE. Latents are raw, as in the host's other families: the model applies the scale.

    encode: image (B, H, W, 3) in [0, 1] -> (B, 32, H/32, W/32), cropped to a multiple of 32. decode: the reverse.
    """

    def __init__(self, config: DCAEConfig, state_dict: dict, dtype: torch.dtype | None = None, device=None):
        with muted("No VAE weights detected"):
            super().__init__(sd={})  # the host fills in its own defaults and stops for want of weights it knows
        self.latent_channels = config.latent_channels
        self.downscale_ratio = self.upscale_ratio = RATIO
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.memory_used_decode = lambda shape, dtype: self.needed(decoding(shape, dtype, self.device))
        self.memory_used_encode = lambda shape, dtype: self.needed(Pass(*shape[-2:], dtype, self.device.type))

        self.device = comfy.model_management.vae_device() if device is None else device
        offload_device = comfy.model_management.vae_offload_device()
        dtype = dtype or comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.vae_dtype = dtype if dtype in self.working_dtypes else torch.float32  # DC-AE overflows in float16
        self.first_stage_model = self.network(config, self.vae_dtype).eval().to(self.vae_dtype)
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.output_device = comfy.model_management.intermediate_device()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload_device
        )
        self.first_stage_model.load_state_dict(state_dict, strict=True, assign=self.patcher.is_dynamic())
        self.model_size()

    @staticmethod
    def network(config: DCAEConfig, dtype: torch.dtype | None = None) -> AutoencoderDC:
        return TiledAutoencoderDC(config, dtype=dtype, operations=comfy.ops.manual_cast)

    def room(self, memory: float) -> float:
        """What is left of it for a pass when the host has kept its reserve."""
        return memory - comfy.model_management.extra_reserved_memory()

    def most_room(self) -> float:
        """Bytes for a pass when only the autoencoder is on the device."""
        return self.room(comfy.model_management.get_total_memory(self.device) - self.model_size())

    def needed(self, one: Pass) -> float:
        """Peak bytes of the whole or, if that cannot fit, of the exact tiles that can."""
        return one.memory(one.choose(self.most_room()))

    def decode_tiled_(self, samples: Tensor, tile_x: int = TILE, tile_y: int = TILE, overlap: int = OVERLAP) -> Tensor:
        return super().decode_tiled_(samples, *tile_arguments(tile_x, tile_y, overlap, 1))

    def encode_tiled_(
        self,
        pixel_samples: Tensor,
        tile_x: int = TILE * RATIO,
        tile_y: int = TILE * RATIO,
        overlap: int = OVERLAP * RATIO,
    ) -> Tensor:
        return super().encode_tiled_(pixel_samples, *tile_arguments(tile_x, tile_y, overlap, RATIO))

    def fits(self, one: Pass) -> bool:
        """Whether the device has room for one picture, if only in the smallest exact tiles."""
        smallest = one.memory(one.choose(0))
        fits = smallest <= self.most_room()
        if not fits:
            logger.warning(
                "SANA: %d x %d px take %.1f GB even in exact tiles, more than there is; ComfyUI's tiles take their "
                "place, which blend parts that differ slightly from the whole",
                *(one.width, one.height, smallest / 2**30),
            )
        return fits

    @contextmanager
    def tiles(self, one: Pass):
        """Within it the network works in exact tiles, if those are what there is room for now."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=self.needed(one))
        free = self.room(self.patcher.get_free_memory(self.device))
        side = one.choose(free)
        if side is not None:
            logger.info(
                "SANA: %d x %d px in tiles of %d px, exactly as the whole, which takes %.1f GB where %.1f are free",
                *(one.width, one.height, side, one.memory() / 2**30, max(free, 0) / 2**30),
            )
        self.first_stage_model.side = side
        try:
            yield
        finally:
            self.first_stage_model.side = None

    def decode(self, samples_in: Tensor, vae_options: dict = {}) -> Tensor:  # noqa: B006 - the host's signature
        self.check_latent(samples_in)
        one = decoding(samples_in.shape, self.vae_dtype, self.device)
        if not self.fits(one):
            return self.decode_tiled(samples_in)
        with self.tiles(one):
            return self.decode_whole(samples_in, vae_options)

    def decode_whole(self, samples: Tensor, vae_options: dict = {}) -> Tensor:  # noqa: B006 - the host's signature
        self.check_latent(samples)
        images = super().decode(samples, vae_options)
        require_finite(images, "The image decoded by DC-AE", DECODE_CURE)
        return images

    def decode_tiled(
        self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.check_latent(samples)
        images = super().decode_tiled(samples, tile_x, tile_y, overlap, tile_t, overlap_t)
        require_finite(images, "The image decoded by DC-AE", DECODE_CURE)
        return images

    def check_latent(self, samples: Tensor) -> None:
        if samples.shape[1] != self.latent_channels:
            raise ValueError(
                f"This latent has {samples.shape[1]} channels where DC-AE decodes {self.latent_channels}: "
                "it comes from another model, so use that model's VAE."
            )
        require_finite(
            samples,
            "The latent to decode",
            "look for the stage that made it, often a float16 model; use bfloat16 there",
        )

    def encode(self, pixel_samples: Tensor) -> Tensor:
        self.check_size(pixel_samples)
        one = Pass(*pixel_samples.shape[1:3], self.vae_dtype, self.device.type)
        if not self.fits(one):
            return self.encode_tiled(pixel_samples)
        with self.tiles(one):
            return self.encode_whole(pixel_samples)

    def encode_whole(self, pixels: Tensor) -> Tensor:
        self.check_size(pixels)
        latent = super().encode(pixels)
        require_finite(latent, "The latent encoded by DC-AE", ENCODE_CURE)
        return latent

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.check_size(pixel_samples)
        latent = super().encode_tiled(pixel_samples, tile_x, tile_y, overlap, tile_t, overlap_t)
        require_finite(latent, "The latent encoded by DC-AE", ENCODE_CURE)
        return latent

    def check_size(self, pixels: Tensor) -> None:
        if min(pixels.shape[1:3]) < RATIO:
            raise ValueError(
                f"This image is {pixels.shape[2]} x {pixels.shape[1]} px; DC-AE needs at least {RATIO} px a side: "
                "scale it up."
            )


def decoding(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Pass:
    """Of a latent (B, 32, h, w)."""
    return Pass(RATIO * shape[-2], RATIO * shape[-1], dtype, device.type)


def require_dc_ae(vae: comfy.sd.VAE) -> None:
    if not isinstance(vae, SanaVAE):
        raise ValueError(
            f"This VAE is {type(vae).__name__}, not DC-AE: load SANA's autoencoder with SANA DC-AE Loader."
        )


def tile_arguments(tile_x: int, tile_y: int, overlap: int, unit: int) -> tuple[int, int, int]:
    """Tile sides and overlap that the host can tile with; `unit` of their positions make one of the latent.

    The host halves either side in turn, so a side is an even number of units, and the overlap stays below the half.
    """
    sides = [max(side // (2 * unit), 1) * 2 * unit for side in (tile_x, tile_y)]
    return *sides, min(overlap, min(sides) // 4) // unit * unit


def decode_image(
    vae: SanaVAE, samples: Tensor, tiling: str = "auto", tile_size: int = TILE * RATIO, overlap: int = OVERLAP * RATIO
) -> Tensor:
    """Latent (B, 32, h, w) -> image (B, 32h, 32w, 3) in [0, 1].

    tiling: "auto" tiles when the device's memory would not do, "on" always, "off" only after it has run out.
    Raises ValueError for a VAE or latent of another family and for values that are not finite.
    """
    require_dc_ae(vae)
    if tiling == "on":
        return vae.decode_tiled(samples, tile_x=tile_size // RATIO, tile_y=tile_size // RATIO, overlap=overlap // RATIO)
    return vae.decode(samples) if tiling == "auto" else vae.decode_whole(samples)


def encode_image(
    vae: SanaVAE, pixels: Tensor, tiling: str = "auto", tile_size: int = TILE * RATIO, overlap: int = OVERLAP * RATIO
) -> Tensor:
    """Image (B, H, W, 3) in [0, 1] -> raw latent (B, 32, H/32, W/32), cropped to a multiple of 32.

    `tiling` and what is raised are as in `decode_image`.
    """
    require_dc_ae(vae)
    if tiling == "on":
        return vae.encode_tiled(pixels, tile_x=tile_size, tile_y=tile_size, overlap=overlap)
    return vae.encode(pixels) if tiling == "auto" else vae.encode_whole(pixels)
