"""Trains the demo's linear DiT: `python -m demo.train.transformer [--minutes M]`. Resumes where it was stopped.

Flow matching as in SANA: x = (1 - sigma) x0 + sigma noise, the network predicts noise - x0; sigma is a logit-normal
draw bent by the shift 3. Latents and text states come from the frozen autoencoder and text encoder, computed once.
"""

import argparse
import functools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from .autoencoder import FOLDER as AUTOENCODER_FOLDER
from .autoencoder import SANA_LATENT_SCALE
from .autoencoder import build as build_autoencoder
from .captions import draw_caption
from .data import RUNS, SIDE, Scene, draw_scene, load_sprites, render, to_model
from .loop import Run, load_ema, save_atomically
from .text import encode_captions
from .text_encoder import CONFIG as TEXT_CONFIG
from .text_encoder import load_text_model

from sana_native.models.config import SanaConfig  # noqa: E402, I001 - importable only after the imports above
from sana_native.models.sana import Sana  # noqa: E402

FOLDER = RUNS / "transformer"
HIDDEN, DEPTH, CROSS_HEADS, MLP_RATIO, SHIFT = 192, 5, 4, 2.5, 3.0
CONFIG = SanaConfig(
    hidden_size=HIDDEN, depth=DEPTH, num_cross_attention_heads=CROSS_HEADS, caption_channels=TEXT_CONFIG["hidden_size"],
    mlp_hidden_size=int(MLP_RATIO * HIDDEN), in_channels=32, out_channels=32, qk_norm=False, guidance_embeds=False,
    guidance_embeds_scale=0.1, interpolation_scale=None, sample_size=SIDE // 32, shift=SHIFT, clamp_attention=None,
)  # fmt: skip
CAPTIONS = 24576
BATCH, THREADS = 64, 2
DROPOUT = 0.1  # how often the caption is replaced by the empty negative prompt
PLAIN = 0.1  # how often a caption comes without the instruction, for users who switch it off


def build(operations=nn) -> Sana:
    model = Sana(CONFIG, operations=operations)
    for table in [model.scale_shift_table, *(block.scale_shift_table for block in model.transformer_blocks)]:
        nn.init.normal_(table, std=HIDDEN**-0.5)
    nn.init.normal_(model.time_embed.linear.weight, std=0.02)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    for block in model.transformer_blocks:  # cross-attention joins in as it becomes useful
        nn.init.zeros_(block.attn2.to_out[0].weight)
    return model


def caption_scenes() -> tuple[list[Scene], list[str], list[bool]]:
    """Random training scenes, a caption of each, and whether it comes without the instruction."""
    rng = random.Random(1)
    scenes = [draw_scene(rng) for _ in range(CAPTIONS)]
    return scenes, [draw_caption(scene, rng) for scene in scenes], [rng.random() < PLAIN for _ in scenes]


def make_texts() -> dict[str, Tensor]:
    """The states (P, L, C) and mask (P, L) of every caption."""
    _, captions, plain = caption_scenes()
    context, mask = encode_captions(load_text_model(), captions, plain)
    return {"context": context.bfloat16(), "mask": mask}


def distinct_scenes() -> list[Scene]:
    """Every different scene of the captions once."""
    return list(dict.fromkeys(caption_scenes()[0]))


def make_latents() -> dict[str, Tensor]:
    """The scaled latents (S, 32, 4, 4) of every different picture, and which of them each caption (P,) is of."""
    scenes = distinct_scenes()
    numbers = {scene: i for i, scene in enumerate(scenes)}
    sprites, autoencoder = load_sprites(), load_ema(build_autoencoder(), AUTOENCODER_FOLDER)

    def encode(start: int) -> Tensor:
        pictures = torch.stack([render(scene, sprites) for scene in scenes[start : start + 32]])
        with torch.no_grad():
            return autoencoder.encode(to_model(pictures)) * SANA_LATENT_SCALE

    with ThreadPoolExecutor(THREADS) as pool:
        latents = torch.cat(list(pool.map(encode, range(0, len(scenes), 32))))
    return {"latents": latents, "picture": torch.tensor([numbers[scene] for scene in caption_scenes()[0]])}


def load_once(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, computed once and kept in the runs folder."""
    path = FOLDER / f"{name}.pt"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_atomically(make(), path)
    return torch.load(path, weights_only=True)


def load_latents() -> dict[str, Tensor]:
    return load_once("latents", make_latents)


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (B,) in (0, 1): logit-normal, one in ten uniform so that both ends are seen; then the shift."""
    u = torch.where(
        torch.rand(count, generator=generator) < 0.1,
        torch.rand(count, generator=generator).clamp(0.001, 0.999),
        torch.randn(count, generator=generator).sigmoid(),
    )
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=24)
    args = parser.parse_args()
    torch.manual_seed(0)
    pool = load_latents() | load_once("texts", make_texts)
    model = build()
    run = Run(FOLDER, model, args.minutes, peak=1.5e-3, decay=0.999)

    def compute_loss(seed: int, count: int = BATCH) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randint(CAPTIONS, (count,), generator=generator)
        latent = pool["latents"][pool["picture"][index]]
        context, mask = pool["context"][index].float(), pool["mask"][index].clone()
        mask[torch.rand(count, generator=generator) < DROPOUT, 1:] = 0  # of the empty prompt only BOS is seen
        length = int(mask.sum(dim=1).max())
        sigma = draw_sigmas(count, generator)
        noise = torch.randn(latent.shape, generator=generator)
        x = torch.lerp(latent, noise, sigma[:, None, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(x, (1000 * sigma).floor(), context[:, :length], mask[:, :length])
        loss = (velocity.float() - (noise - latent)).square().mean()
        return loss, f"loss {loss.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        backup = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(run.ema)
        _, note = compute_loss(-1, count=512)
        model.load_state_dict(backup)
        return note

    run.train(losses, evaluate, every=2)


if __name__ == "__main__":
    main()
