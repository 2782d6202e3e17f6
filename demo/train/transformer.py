"""Trains the demo's linear DiT: `python -m demo.train.transformer [--minutes M]`. Resumes where it was stopped.

Flow matching as in SANA: x = (1 - sigma) x0 + sigma noise, the network predicts noise - x0; sigma is a logit-normal
draw bent by the shift 3. Latents and text states come from the frozen autoencoder and text encoder, computed once.
"""

import argparse
import functools
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .autoencoder import FOLDER as AUTOENCODER_FOLDER
from .autoencoder import SANA_LATENT_SCALE
from .autoencoder import build as build_autoencoder
from .captions import draw_caption
from .curve import JudgeCurve
from .data import RUNS, SIDE, Scene, draw_facing_scene, draw_scene, load_sprites, render, to_model
from .loop import DEVICE, Run, autocast, load_ema, save_atomically, to_device
from .muon import Muon
from .text import encode_captions
from .text_encoder import CONFIG as TEXT_CONFIG
from .text_encoder import encode_text, load_text_model
from .warm import read_part

from sana_native.models.sana.config import SanaConfig  # noqa: E402, I001 - importable only after the imports above
from sana_native.models.sana.model import Sana  # noqa: E402

FOLDER = RUNS / "transformer"
HIDDEN, DEPTH, CROSS_HEADS, MLP_RATIO, SHIFT = 192, 6, 4, 2.5, 3.0
CONFIG = SanaConfig(
    hidden_size=HIDDEN, depth=DEPTH, num_cross_attention_heads=CROSS_HEADS, caption_channels=TEXT_CONFIG["hidden_size"],
    mlp_hidden_size=int(MLP_RATIO * HIDDEN), in_channels=32, out_channels=32, qk_norm=True, guidance_embeds=False,
    guidance_embeds_scale=0.1, interpolation_scale=1.0, sample_size=SIDE // 32, shift=SHIFT, clamp_attention=None,
)  # fmt: skip
SCENES, CAPTIONS_EACH = 32_000, 3
BATCH, THREADS = 64, 2
LONGEST = 37  # tokens of a caption; one in a hundred is longer
JUDGED = 24  # pictures that the judge sees at every evaluation
PEAK, WARM_PEAK = 1.5e-3, 1e-3  # rates from nothing and from an exported transformer
DROPOUT = 0.1  # how often the caption is replaced by the empty negative prompt
PLAIN = 0.15  # how often a caption comes without the instruction, for negative prompts and users who switch it off


def initialise(model: Sana) -> Sana:
    """Gives a new network the values that the layers' own initialisation leaves open."""
    for table in [model.scale_shift_table, *(block.scale_shift_table for block in model.transformer_blocks)]:
        nn.init.normal_(table.weight, std=HIDDEN**-0.5)
    nn.init.normal_(model.time_embed.linear.weight, std=0.02)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    for block in model.transformer_blocks:  # cross-attention joins in as it becomes useful
        nn.init.zeros_(block.attn2.to_out[0].weight)
    return model


def build(operations=nn) -> Sana:
    return initialise(Sana(CONFIG, operations=operations))


def training_scenes() -> list[Scene]:
    """The scenes the transformer is trained on: three in ten hold one thing, one in ten two that face each other."""
    rng = random.Random(11)
    return [draw_facing_scene(rng) if i % 10 == 9 else draw_scene(rng, count=1 + (i % 10 > 2)) for i in range(SCENES)]


def draw_short_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of not more than LONGEST tokens: every one has as many as the longest, and costs as much."""
    while len(encode_text(text := draw_caption(scene, rng).text)) > LONGEST:
        pass
    return text


def training_captions() -> tuple[list[str], list[bool]]:
    """CAPTIONS_EACH captions of every scene, one scene's beside one another; whether each is without instruction."""
    rng = random.Random(12)
    captions = [draw_short_caption(scene, rng) for scene in training_scenes() for _ in range(CAPTIONS_EACH)]
    return captions, [rng.random() < PLAIN for _ in captions]


def make_texts() -> dict[str, Tensor]:
    """The states (P, L, C) and mask (P, L) of every caption."""
    context, mask = encode_captions(load_text_model(), *training_captions())
    return {"context": context, "mask": mask}


def make_latents() -> dict[str, Tensor]:
    """The scaled latents (S, 32, 8, 8) of every scene's picture."""
    scenes, sprites = training_scenes(), load_sprites()
    autoencoder = load_ema(build_autoencoder(), AUTOENCODER_FOLDER)

    def encode(start: int) -> Tensor:
        pictures = torch.stack([render(scene, sprites) for scene in scenes[start : start + 16]]).to(DEVICE)
        with torch.no_grad(), autocast():
            return (autoencoder.encode(to_model(pictures)) * SANA_LATENT_SCALE).bfloat16().cpu()

    with ThreadPoolExecutor(THREADS) as pool:
        return {"latents": torch.cat(list(pool.map(encode, range(0, len(scenes), 16))))}


def load_once(name: str, make: Callable[[], dict[str, Tensor]], folder: Path = FOLDER) -> dict[str, Tensor]:
    """What `make` gives, computed once and kept in the runs folder."""
    path = folder / f"{name}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_atomically(make(), path)
    return torch.load(path, weights_only=True)


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (B,) in (0, 1): logit-normal, one in ten uniform so that both ends are seen; then the shift."""
    u = torch.where(
        torch.rand(count, generator=generator) < 0.1,
        torch.rand(count, generator=generator).clamp(0.001, 0.999),
        torch.randn(count, generator=generator).sigmoid(),
    )
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def load_data() -> tuple[Tensor, dict[str, Tensor]]:
    """The latents of all scenes and the text states of all captions, computed at the first call."""
    return load_once("latents", make_latents)["latents"], load_once("texts", make_texts)


def draw_pairs(
    latents: Tensor, texts: dict[str, Tensor], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, 32, 8, 8), and context (B, L, C) and mask (B, L) of a caption of each; L is always the same."""
    scene = torch.randint(SCENES, (count,), generator=generator)
    caption = CAPTIONS_EACH * scene + torch.randint(CAPTIONS_EACH, (count,), generator=generator)
    return latents[scene].float(), texts["context"][caption].float(), texts["mask"][caption]


def compile_for_threads(model: Sana) -> nn.Module:
    """The network compiled for a fixed batch: two minutes once, then a step takes three quarters of the time.

    Only with the C++ wrapper do threads run side by side: the other one holds Python's lock.
    """
    return torch.compile(model, options={"cpp_wrapper": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--start", type=Path, help="an exported SANA whose transformer to begin with")
    parser.add_argument("--eager", action="store_true", help="do not compile: worth it for short runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    latents, texts = load_data()
    model, peak = build(), WARM_PEAK if args.start else PEAK
    if args.start:
        model.load_state_dict(read_part("transformer", args.start))
    run = Run(FOLDER, model, args.minutes, peak, decay=0.998, optimizer=Muon(model, peak))
    curve = JudgeCurve(JUDGED, SHIFT)
    compiled = model if args.eager else compile_for_threads(model)

    def compute_loss(seed: int, network: nn.Module = compiled, count: int = BATCH) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed)
        latent, context, mask = draw_pairs(latents, texts, count, generator)
        mask[torch.rand(count, generator=generator) < DROPOUT, 1:] = 0  # of the empty prompt only BOS is seen
        sigma = draw_sigmas(count, generator)
        noise = torch.randn(latent.shape, generator=generator)
        latent, noise, sigma, context, mask = to_device(latent, noise, sigma, context, mask)
        x = torch.lerp(latent, noise, sigma[:, None, None, None])
        with autocast():
            velocity = network(x, (1000 * sigma).floor(), context, mask)
        loss = (velocity.float() - (noise - latent)).square().mean()
        return loss, f"loss {loss.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        with run.with_ema():
            _, note = compute_loss(-1, model, count=512)
            return f"{note}; right on {JUDGED} held-out captions: {curve.rate(model)}"

    with sdpa_kernel(SDPBackend.MATH):  # for so few tokens a quarter faster than the fused one, whose gradient is slow
        run.train(losses, evaluate, every=4)


if __name__ == "__main__":
    main()
