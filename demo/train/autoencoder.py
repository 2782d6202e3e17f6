"""Trains the demo's DC-AE f32c32: `python -m demo.train.autoencoder [--minutes M]`. Resumes where it was stopped.

The released scaling factor 0.41407 is made true for this model too: a penalty keeps every channel of the scaled latent
at zero mean and unit variance. Noise on the latent in training keeps the decoder smooth for what a diffusion model will
hand it.
"""

import argparse
import copy
import functools
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_norm
from .data import BACKGROUNDS, RUNS, SIDE, SIZES, draw_scene, fill, load_sprites, paste, psnr, render, to_model
from .loop import Run
from .pack import prepare_imports

prepare_imports()

from sana_native.models.config import SANA_LATENT_SCALE, DCAEConfig, DCAEHalfConfig  # noqa: E402
from sana_native.models.dc_ae import AutoencoderDC, RMSNorm2d  # noqa: E402

FOLDER = RUNS / "autoencoder"
WIDTHS = (16, 32, 64, 64, 128, 128)
BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
KERNELS = ((), (), (), (5,), (5,), (5,))
CONFIG = DCAEConfig(
    3, 32, 32, SANA_LATENT_SCALE,
    DCAEHalfConfig(BLOCKS, WIDTHS, (1, 2, 2, 2, 2, 1), KERNELS),
    DCAEHalfConfig(BLOCKS, WIDTHS, (2, 2, 2, 2, 2, 2), KERNELS),
)  # fmt: skip
BATCH, THREADS = 4, 2  # pictures a thread, threads a step
LATENT_NOISE = 0.2  # largest standard deviation of the noise on a scaled latent
MOMENT_WEIGHT, EDGE_WEIGHT, THING_WEIGHT = 0.05, 0.5, 2.0


def build(operations=nn) -> AutoencoderDC:
    model = AutoencoderDC(CONFIG, operations=operations)
    for module in model.modules():
        if isinstance(module, RMSNorm2d):
            nn.init.constant_(module.weight, 0.3)  # residual branches start quiet
            nn.init.zeros_(module.bias)
    nn.init.ones_(model.decoder.norm_out.weight)
    return model


def draw_batch(seed: int, sprites: dict) -> tuple[Tensor, Tensor]:
    """Training pictures (B, 3, H, W) in [-1, 1], and where their things are (B, 1, H, W).

    One picture in twelve has a background of any colour.
    """
    rng = random.Random(seed)
    pictures, masks = torch.empty(BATCH, 3, SIDE, SIDE), torch.zeros(BATCH, 1, SIDE, SIDE)
    for picture, mask in zip(pictures, masks, strict=True):
        scene = draw_scene(rng)
        colour = BACKGROUNDS[scene.background]
        if rng.random() < 1 / 12:
            colour = tuple(rng.randint(0, 255) for _ in range(3))
        picture.copy_(fill(colour))
        size, x, y = SIZES[scene.size], scene.x, scene.y
        sprite = sprites[scene.thing, size]
        paste(picture, sprite, x, y)
        mask[:, y : y + size, x : x + size] = sprite[3:] > 0
    return to_model(pictures).contiguous(memory_format=torch.channels_last), masks


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """L1 with more weight on the thing than on the plain background, and L1 of the differences between neighbours."""
    weight = 1 + THING_WEIGHT * mask
    loss = ((output - target).abs() * weight).mean()
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))
    return loss + EDGE_WEIGHT * edge


def moment_penalty(latent: Tensor) -> Tensor:
    """How far the channels of a scaled latent (B, C, h, w) are from zero mean and unit variance."""
    return latent.mean(dim=(0, 2, 3)).square().mean() + (latent.std(dim=(0, 2, 3)) - 1).square().mean()


@torch.no_grad()
def reconstruct(model: AutoencoderDC, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] through the autoencoder and back."""
    return ((model.decode(model.encode(to_model(pictures))) + 1) / 2).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=55)
    args = parser.parse_args()
    torch.manual_seed(0)
    sprites = load_sprites()
    RMSNorm2d.forward = fast_norm.fast_forward
    model = build().to(memory_format=torch.channels_last)
    run = Run(FOLDER, model, args.minutes, peak=2e-3, decay=0.998)
    rng = random.Random(-1)
    held_out = torch.stack([render(draw_scene(rng, held_out=True), sprites) for _ in range(24)])

    def compute_loss(seed: int) -> tuple[Tensor, str]:
        pictures, masks = draw_batch(seed, sprites)
        generator = torch.Generator().manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            latent = model.encode(pictures).float() * SANA_LATENT_SCALE
            spread = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
            noisy = latent + spread * torch.randn(latent.shape, generator=generator)
            output = model.decode(noisy / SANA_LATENT_SCALE).float()
        moments = moment_penalty(latent)
        loss = reconstruction_loss(output, pictures, masks)
        return loss + MOMENT_WEIGHT * moments, f"picture {loss.item():.4f} moments {moments.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        ema = copy.deepcopy(model)
        ema.load_state_dict(run.ema)
        return f"{psnr(reconstruct(ema.eval(), held_out), held_out).mean():.2f} dB on held-out pictures"

    run.train(losses, evaluate, every=5)


if __name__ == "__main__":
    main()
