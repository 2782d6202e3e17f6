"""DC-AE as a host VAE: every method of the host's class works on it, with its own ratios, tiles and memory needs."""

import logging
from collections.abc import Callable
from contextlib import contextmanager, suppress

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from torch import Tensor, nn

from ..runtime.cuda_graph import held_memory, use_graphs
from ..runtime.device import disk_options
from ..runtime.precision import require_finite
from .config import DCAEConfig
from .memory_estimate import Workload
from .previews import MEMORY

logger = logging.getLogger(__name__)

RATIO = 32
IMAGE_CHANNELS = (3, 4)  # RGB, and with alpha, which is left out
# 1024 px tiles with 128 px overlap: in 512 px ones the attention, global per tile, leaves visible seams in plain areas.
TILE = 32
OVERLAP = 4

LATENT_CURE = "look for the stage that made it, often a float16 model; use bfloat16 there"
DECODE_CURE = "load the autoencoder in bfloat16 or float32"
ENCODE_CURE = "check the node that made the image, and load the autoencoder in float32"
EMPTY_CURE = "check the node that made it, such as one that takes images from a batch"
DC_AE_CURE = "connect the VAE of SANA DC-AE Loader, which loads dc-ae-f32c32-sana-1.0 or 1.1"
STOCK_CURE = "with PixArt and Lumina-Next use the stock VAE Decode and VAE Encode; with SANA "
# Latent channels and pixels per latent position of the host's other VAEs -> whose it likely is.
OTHER_VAES = {
    (4, 8): "Stable Diffusion 1.5 or SDXL",
    (16, 8): "SD3, FLUX, Qwen-Image or Wan 2.1",
    (128, 16): "FLUX.2",
    (48, 16): "Wan 2.2",
    (64, 32): "HunyuanImage",
    (128, 32): "LTX-Video",
}


def is_finite(tensor: Tensor) -> Tensor:
    """A scalar that is finite when all values are, for `require_finite`: one pass, without a map of booleans."""
    return tensor.sum(dtype=torch.float32)


class SanaVAE(comfy.sd.VAE):
    """The host's VAE around DC-AE. Latents are raw, as in the host's other families: the model applies the scale.

    encode: image (B, H, W, 3) in [0, 1] -> (B, 32, H/32, W/32), cropped to a multiple of 32. decode: the reverse.
    network: the class of DC-AE to build, with `tile_size` in px as `InplaceAutoencoderDC` has it. cuda_graphs: whether
    decodes are replayed, for which the weights stay where they are.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        config: DCAEConfig,
        state_dict: dict,
        dtype: torch.dtype | None = None,
        device=None,
        cuda_graphs: bool = False,
    ):
        # The host sets its defaults, looks the parameters of its own network up in this config and finds none.
        with suppress(KeyError):
            super().__init__(sd={}, config={})
        # Instances have their own by then; those of the class hold no reference to the instance.
        del self.memory_used_decode, self.memory_used_encode
        self.latent_channels = config.latent_channels
        self.downscale_ratio = self.upscale_ratio = RATIO
        self.working_dtypes = [torch.bfloat16, torch.float32]

        self.device = comfy.model_management.vae_device() if device is None else device
        offload_device = comfy.model_management.vae_offload_device()
        dtype = dtype or comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.vae_dtype = dtype if dtype in self.working_dtypes else torch.float32  # DC-AE overflows in float16
        model = network(config, dtype=self.vae_dtype, operations=comfy.ops.manual_cast)
        self.first_stage_model = model.eval().to(self.vae_dtype)
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.output_device = comfy.model_management.intermediate_device()
        patcher_class = comfy.model_patcher.ModelPatcher if cuda_graphs else comfy.model_patcher.CoreModelPatcher
        options = disk_options(patcher_class, state_dict)
        self.patcher = patcher_class(
            self.first_stage_model, load_device=self.device, offload_device=offload_device, **options
        )
        self.first_stage_model.load_state_dict(state_dict, strict=True, assign=self.patcher.is_dynamic())
        if cuda_graphs:
            use_graphs(self.patcher)
        self.model_size()

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Peak bytes for a latent (B, 32, h, w); the host's name."""
        return self.needed(decoding(shape, dtype, self.device))

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Peak bytes for an image (B, 3, H, W); the host's name."""
        return self.needed(Workload(*shape[-2:], dtype, self.device.type))

    def free_memory(self, memory: float) -> float:
        """What is left of it for a pass, beside the host's reserve and the graphs' memory, which it takes for free."""
        return memory - comfy.model_management.extra_reserved_memory() - held_memory(self.device)

    def most_free_memory(self) -> float:
        """Bytes for a pass when only the autoencoder is on the device."""
        return self.free_memory(comfy.model_management.get_total_memory(self.device) - self.model_size())

    def needed(self, workload: Workload) -> float:
        """Peak bytes of the whole or, if that cannot fit, of the exact tiles that can."""
        return workload.memory(workload.choose_tile_size(self.most_free_memory())) + held_memory(self.device)

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

    def fits(self, workload: Workload) -> bool:
        """Whether the device has memory for one image, if only in the smallest exact tiles."""
        smallest = workload.memory(workload.choose_tile_size(0))
        fits = smallest <= self.most_free_memory()
        if not fits:
            logger.warning(
                "SANA: %d x %d px take %.1f GB even in exact tiles, more than there is; ComfyUI's tiles take their "
                "place, which blend parts that differ slightly from the whole",
                *(workload.width, workload.height, smallest / 2**30),
            )
        return fits

    @contextmanager
    def exact_tiles(self, workload: Workload):
        """Within it the network works in exact tiles, if the whole does not fit the memory that is free now."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=self.needed(workload))
        free = self.free_memory(self.patcher.get_free_memory(self.device))
        tile_size = workload.choose_tile_size(free)
        if tile_size is not None:
            takes = f"takes {workload.memory() / 2**30:.1f} GB where {max(free, 0) / 2**30:.1f} are free"
            logger.info(
                "SANA: %d x %d px in tiles of %d px, exactly as the whole, which %s",
                *(workload.width, workload.height, tile_size),
                takes if workload.is_one_map() else "has more values than the device's convolutions count",
            )
        self.first_stage_model.tile_size = tile_size
        try:
            yield
        finally:
            self.first_stage_model.tile_size = None

    def decode(self, samples_in: Tensor, vae_options: dict = {}) -> Tensor:  # noqa: B006 - the host's signature
        self.check_latent(samples_in)
        workload = decoding(samples_in.shape, self.vae_dtype, self.device)
        if not self.fits(workload):
            return self.decode_checked(super().decode_tiled, samples_in)
        with self.exact_tiles(workload):
            return self.decode_checked(super().decode, samples_in, vae_options)

    def decode_whole(self, samples: Tensor) -> Tensor:
        """decode, in tiles only after memory has run out."""
        self.check_latent(samples)
        return self.decode_checked(super().decode, samples)

    def decode_tiled(
        self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.check_latent(samples)
        samples = samples[:, :, 0] if samples.ndim == 5 else samples
        return self.decode_checked(super().decode_tiled, samples, tile_x, tile_y, overlap, tile_t, overlap_t)

    def decode_checked(self, decode: Callable[..., Tensor], samples: Tensor, *args) -> Tensor:
        """decode(samples, *args). Raises ValueError naming the latent or the decoder for an image that is not finite.

        One check: values of the latent that are not finite reach the image. Its sum is taken on the device.
        """
        MEMORY.prepare()
        network, sums = self.first_stage_model, []
        network.sums = sums
        try:
            images = decode(samples, *args)
        finally:
            network.sums = None
        total = torch.stack(sums).sum() if sums else is_finite(images)  # none where another pack replaced the decode
        if not torch.isfinite(total):
            require_finite(is_finite(samples), "The latent to decode", LATENT_CURE)
            require_finite(total, "The image decoded by DC-AE", DECODE_CURE)
        return images

    def check_latent(self, samples: Tensor) -> None:
        """Raises ValueError for a latent of another model."""
        if samples.ndim == 5 and samples.shape[2] != 1:
            raise ValueError(
                f"This latent holds {samples.shape[2]} frames of a video, where DC-AE decodes images: "
                "it comes from a video model, so use that model's VAE."
            )
        if samples.shape[1] != self.latent_channels:
            raise ValueError(
                f"This latent has {samples.shape[1]} channels where DC-AE decodes {self.latent_channels}: "
                "it comes from another model, so use that model's VAE."
            )
        if 0 in samples.shape:
            raise ValueError(f"This latent holds nothing, its shape is {tuple(samples.shape)}: {EMPTY_CURE}.")

    def encode(self, pixel_samples: Tensor, not_video: bool | None = None) -> Tensor:  # noqa: ARG002 - newer hosts'
        self.check_image(pixel_samples)
        workload = Workload(*pixel_samples.shape[1:3], self.vae_dtype, self.device.type)
        if not self.fits(workload):
            return self.encode_checked(super().encode_tiled, pixel_samples)
        with self.exact_tiles(workload):
            return self.encode_checked(super().encode, pixel_samples)

    def encode_whole(self, pixels: Tensor) -> Tensor:
        """encode, in tiles only after memory has run out."""
        self.check_image(pixels)
        return self.encode_checked(super().encode, pixels)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x=None,
        tile_y=None,
        overlap=None,
        tile_t=None,
        overlap_t=None,
        not_video: bool | None = None,  # noqa: ARG002 - newer hosts'; DC-AE encodes images alone
    ) -> Tensor:
        self.check_image(pixel_samples)
        return self.encode_checked(super().encode_tiled, pixel_samples, tile_x, tile_y, overlap, tile_t, overlap_t)

    def encode_checked(self, encode: Callable[..., Tensor], pixels: Tensor, *args) -> Tensor:
        MEMORY.prepare()
        latent = encode(pixels, *args)
        require_finite(is_finite(latent), "The latent encoded by DC-AE", ENCODE_CURE)
        return latent

    def check_image(self, pixels: Tensor) -> None:
        """Raises ValueError for what is no RGB image or too small; the log says what is cropped."""
        if pixels.ndim != 4 or pixels.shape[-1] not in IMAGE_CHANNELS:
            found = f"has {pixels.shape[-1]} channels" if pixels.ndim == 4 else f"is of shape {tuple(pixels.shape)}"
            raise ValueError(
                f"This image {found}, where DC-AE encodes images of 3 channels (RGB): convert it to RGB first, a mask "
                "or a one-channel image with Convert Mask to Image."
            )
        if not len(pixels):
            raise ValueError(f"This batch holds no image, its shape is {tuple(pixels.shape)}: {EMPTY_CURE}.")
        height, width = pixels.shape[1:3]
        if min(height, width) < RATIO:
            raise ValueError(
                f"This image is {width} x {height} px; DC-AE needs at least {RATIO} px a side: scale it up."
            )
        if height % RATIO or width % RATIO:
            cropped = width // RATIO * RATIO, height // RATIO * RATIO
            logger.info(
                "SANA: the image of %d x %d px is cropped to %d x %d px, because DC-AE encodes multiples of %d",
                *(width, height, *cropped, RATIO),
            )


def decoding(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Workload:
    """Of a latent (B, 32, h, w)."""
    return Workload(RATIO * shape[-2], RATIO * shape[-1], dtype, device.type)


def require_dc_ae(vae: comfy.sd.VAE) -> None:
    """Raises ValueError that says whose VAE it likely is."""
    if isinstance(vae, SanaVAE):
        return
    family = None
    if isinstance(vae, comfy.sd.VAE):
        family = OTHER_VAES.get((vae.latent_channels, vae.spacial_compression_encode()))
    likely = f"likely that of {family}" if family else "that of another model"
    cure = STOCK_CURE if family == OTHER_VAES[4, 8] else ""
    raise ValueError(f"This VAE is {likely}, not SANA's DC-AE: {cure}{DC_AE_CURE}.")


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

    tiling: "auto" tiles when the device's memory is insufficient, "on" always, "off" only after it has run out.
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
