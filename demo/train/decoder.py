"""Trains the demo's DC-AE decoder further: `python -m demo.train.decoder [--minutes M]`. Resumes where it was stopped.

It sees latents of the finished encoder, with noise. The encoder stays as it is, so this can run beside the training of
the transformer.
"""

import argparse
import copy
import functools
import random

import torch
from torch import Tensor

from . import fast_norm
from .autoencoder import FOLDER as AUTOENCODER_FOLDER
from .autoencoder import LATENT_NOISE, SANA_LATENT_SCALE, RMSNorm2d, build, reconstruct, reconstruction_loss
from .data import RUNS, SIZES, draw_scene, load_sprites, psnr, render, to_model
from .loop import Run, load_ema
from .muon import Muon
from .transformer import distinct_scenes, load_latents

FOLDER = RUNS / "decoder"
BATCH, THREADS = 5, 2
PEAK = 1.5e-3


def load_autoencoder():
    """The encoder, with the decoder that was trained further if there is one."""
    model = load_ema(build(), AUTOENCODER_FOLDER)
    if (FOLDER / "ema.pt").exists():
        load_ema(model.decoder, FOLDER)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    sprites, latents = load_sprites(), load_latents()["latents"]
    scenes = distinct_scenes()
    model = load_ema(build(), AUTOENCODER_FOLDER)
    rng = random.Random(-1)
    held_out = torch.stack([render(draw_scene(rng, held_out=True), sprites) for _ in range(24)])
    whole = copy.deepcopy(model)
    RMSNorm2d.forward, exact_forward = fast_norm.fast_forward, RMSNorm2d.forward
    decoder = model.decoder.requires_grad_(True).to(memory_format=torch.channels_last)
    run = Run(FOLDER, decoder, args.minutes, PEAK, decay=0.995, optimizer=Muon(decoder, PEAK))

    def compute_loss(seed: int) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(len(scenes), (BATCH,), generator=generator).tolist()
        latent = latents[index]
        spread = LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        noisy = latent + spread * torch.randn(latent.shape, generator=generator)
        pictures = torch.stack([render(scenes[i], sprites) for i in index])
        mask = torch.zeros(BATCH, 1, *pictures.shape[-2:])
        for row, i in enumerate(index):
            scene, size = scenes[i], SIZES[scenes[i].size]
            mask[row, :, scene.y : scene.y + size, scene.x : scene.x + size] = sprites[scene.thing, size][3:] > 0
        with torch.autocast("cpu", torch.bfloat16):
            output = decoder((noisy / SANA_LATENT_SCALE).contiguous(memory_format=torch.channels_last)).float()
        loss = reconstruction_loss(output, to_model(pictures), mask)
        return loss, f"picture {loss.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, THREADS * step + thread) for thread in range(THREADS)]

    def evaluate() -> str:
        whole.decoder.load_state_dict(run.ema)
        RMSNorm2d.forward = exact_forward
        decibels = psnr(reconstruct(whole, held_out), held_out).mean()
        RMSNorm2d.forward = fast_norm.fast_forward
        return f"{decibels:.2f} dB on held-out pictures"

    run.train(losses, evaluate, every=3)


if __name__ == "__main__":
    main()
