"""Trains the demo's DC-AE f32c32: `python -m demo.train.autoencoder [--minutes M]`. Resumes where it was stopped.

The released scaling factor 0.41407 is made true for this model too: a penalty keeps every channel of the scaled latent
at zero mean and unit variance. Noise on the latent in training keeps the decoder smooth for what a diffusion model will
hand it. Most steps see parts of pictures, cut on the 32 px grid and full of what is drawn; the last ones see whole
pictures, so that the attention meets as much plain background as it will later.
"""

import argparse
import copy
import functools
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fast_norm
from .data import (
    BACKGROUNDS,
    RUNS,
    SIDE,
    SIZES,
    THING_NAMES,
    Sprites,
    draw_scene,
    fill,
    load_sprites,
    paste,
    psnr,
    render,
    to_model,
)
from .loop import DEVICE, Run, autocast, to_device
from .muon import Muon
from .pack import prepare_imports

prepare_imports()

from sana_native.models.dc_ae.config import SANA_LATENT_SCALE, DCAEConfig, DCAEHalfConfig  # noqa: E402
from sana_native.models.dc_ae.model import AutoencoderDC, RMSNorm2d  # noqa: E402

FOLDER = RUNS / "autoencoder"
WIDTHS = (16, 32, 64, 128, 128, 256)
BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
KERNELS = ((), (), (), (5,), (5,), (5,))
CONFIG = DCAEConfig(
    3, 32, 32, SANA_LATENT_SCALE,
    DCAEHalfConfig(BLOCKS, WIDTHS, (1, 1, 1, 2, 2, 1), KERNELS),
    DCAEHalfConfig(BLOCKS, WIDTHS, (1, 1, 2, 2, 3, 1), KERNELS),
)  # fmt: skip
THREADS = 2  # a step's gradients are computed in so many threads
PICTURES = {96: 14, 128: 8, SIDE: 3}  # side of a picture or cut in px, and how many a thread sees at a step
CUTS = (96, 96, 128)
WHOLE_FROM = 0.85  # share of the time after which whole pictures are seen
FREE = 0.2  # share of pictures with any size, offset, flip and colours; the rest are the demo's own
FREE_SIZES = (48, 72, 110, 150)
LATENT_NOISE = 0.2  # largest standard deviation of the noise on a scaled latent
MOMENT_WEIGHT, EDGE_WEIGHT, SQUARE_WEIGHT, THING_WEIGHT = 0.05, 0.5, 1.0, 2.0


def build(operations=nn) -> AutoencoderDC:
    model = AutoencoderDC(CONFIG, operations=operations)
    for module in model.modules():
        if isinstance(module, RMSNorm2d):
            nn.init.constant_(module.weight, 0.3)  # residual branches start quiet
            nn.init.zeros_(module.bias)
    nn.init.ones_(model.decoder.norm_out.weight)
    return model


def draw_free(rng: random.Random, sprites: Sprites) -> Tensor:
    """A picture unlike the demo's own: one to three things anywhere, mirrored or not, on a slope of two colours."""
    ends = [torch.tensor([rng.random() for _ in range(3)])[:, None, None] for _ in range(2)]
    slope = torch.linspace(0, 1, SIDE) * (rng.random() < 0.5)
    slope = slope[None, None, :] if rng.random() < 0.5 else slope[None, :, None]
    picture = torch.lerp(*ends, slope.expand(1, SIDE, SIDE)).contiguous()
    for _ in range(rng.randint(1, 3)):
        sprite = sprites[rng.choice(THING_NAMES), rng.choice(FREE_SIZES)]
        sprite = sprite.flip(-1) if rng.random() < 0.5 else sprite
        x, y = (rng.randint(-sprite.shape[-1] // 3, SIDE - 2 * sprite.shape[-1] // 3) for _ in range(2))
        paste(picture, sprite, x, y)
    return picture


def draw_picture(rng: random.Random, sprites: Sprites, side: int) -> tuple[Tensor, Tensor]:
    """A picture (3, side, side) in [0, 1], cut around something if it is no whole one, and where it is drawn on."""
    if rng.random() < FREE:
        picture, x, y = draw_free(rng, sprites), rng.randint(0, SIDE - side), rng.randint(0, SIDE - side)
        drawn = torch.full((1, SIDE, SIDE), 0.5)
    else:
        scene = draw_scene(rng)
        picture = render(scene, sprites)
        drawn = (picture != fill(BACKGROUNDS[scene.background])).any(dim=0, keepdim=True).float()
        item = rng.choice(scene.items)
        half = (side - SIZES[item.size]) // 2  # from the thing's edge to the cut's, were it in the middle
        x, y = ((edge - half) // 32 * 32 + 32 * rng.choice((-1, 0, 0, 1)) for edge in item.corner())
        x, y = (min(max(edge, 0), SIDE - side) for edge in (x, y))
    return picture[:, y : y + side, x : x + side], drawn[:, y : y + side, x : x + side]


def draw_batch(seed: int, sprites: Sprites, side: int) -> tuple[Tensor, Tensor]:
    """Training pictures (B, 3, H, W) in [-1, 1], and where they are drawn on (B, 1, H, W)."""
    rng = random.Random(seed)
    pairs = [draw_picture(rng, sprites, side) for _ in range(PICTURES[side])]
    pictures, drawn = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    return to_model(pictures).contiguous(memory_format=torch.channels_last), drawn


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor, drawn: Tensor) -> Tensor:
    """Absolute and squared differences, weighted towards what is drawn, and those of neighbouring pixels' steps."""
    weight = 1 + THING_WEIGHT * drawn
    difference = (output - target).abs()
    loss = ((difference + SQUARE_WEIGHT * difference.square()) * weight).mean()
    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))
    return loss + EDGE_WEIGHT * edge


def moment_penalty(latent: Tensor) -> Tensor:
    """How far the channels of a scaled latent (B, C, h, w) are from zero mean and unit variance."""
    return latent.mean(dim=(0, 2, 3)).square().mean() + (latent.std(dim=(0, 2, 3)) - 1).square().mean()


@torch.no_grad()
def reconstruct_latent(model: AutoencoderDC, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] of raw latents (B, 32, h, w)."""
    return ((model.decode(latents) + 1) / 2).clamp(0, 1)


@torch.no_grad()
def reconstruct(model: AutoencoderDC, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] through the autoencoder and back."""
    return reconstruct_latent(model, model.encode(to_model(pictures)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=85)
    args = parser.parse_args()
    torch.manual_seed(0)
    sprites = load_sprites((*SIZES.values(), *FREE_SIZES))
    RMSNorm2d.forward = fast_norm.fast_forward
    model = build().to(memory_format=torch.channels_last)
    run = Run(FOLDER, model, args.minutes, peak=2e-3, decay=0.998, optimizer=Muon(model, 2e-3))
    rng = random.Random(-1)
    held_out = torch.stack([render(draw_scene(rng, held_out=True), sprites) for _ in range(24)]).to(DEVICE)

    def compute_loss(seed: int, side: int) -> tuple[Tensor, str]:
        pictures, drawn = to_device(*draw_batch(seed, sprites, side))
        generator = torch.Generator().manual_seed(seed)
        with autocast():
            latent = model.encode(pictures).float() * SANA_LATENT_SCALE
            spread = LATENT_NOISE * torch.rand(len(pictures), 1, 1, 1, generator=generator)
            noisy = latent + (spread * torch.randn(latent.shape, generator=generator)).to(DEVICE)
            output = model.decode(noisy / SANA_LATENT_SCALE).float()
        moments = moment_penalty(latent)
        loss = reconstruction_loss(output, pictures, drawn)
        return loss + MOMENT_WEIGHT * moments, f"picture {loss.item():.4f} moments {moments.item():.4f}"

    def losses(step: int) -> list:
        side = SIDE if run.progress() > WHOLE_FROM else CUTS[step % len(CUTS)]
        return [functools.partial(compute_loss, THREADS * step + thread, side) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        ema = copy.deepcopy(model)
        ema.load_state_dict(run.ema)
        return f"{psnr(reconstruct(ema.eval(), held_out), held_out).mean():.2f} dB on held-out pictures"

    run.train(losses, evaluate, every=4)


if __name__ == "__main__":
    main()
