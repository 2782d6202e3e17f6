"""Says what is in a picture of the demo by comparing it with fresh renderings; knows nothing of any generator.

python -m demo.judge                                                # its own error rate, on true renderings
python -m demo.judge --checkpoint demo/checkpoint --count 200       # pictures of held-out prompts, judged
python -m demo.judge --checkpoint demo/checkpoint --rebuild         # the autoencoder alone
python -m demo.judge --picture output/demo.png                      # one picture
"""

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .train.captions import draw_caption
from .train.data import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    PLACES,
    SIDE,
    SIZES,
    THING_NAMES,
    Scene,
    draw_scene,
    fill,
    is_held_out,
    load_sprites,
    psnr,
    render,
)

# Prompts and noise for judging; training draws from other numbers.
PROMPT_SEED = 1_000_003
CHUNK = 50  # pictures at a time


@dataclass(frozen=True)
class Verdict:
    """The closest rendering, and its mean squared error over the picture, values in [0, 1]."""

    thing: str
    background: str
    size: str
    x: int
    y: int
    error: float


class Judge:
    """Compares a picture with every thing in every size at every place on every background: 576 renderings x places."""

    def __init__(self):
        sprites = load_sprites()
        self.kinds = [(thing, size) for thing in THING_NAMES for size in SIZES]
        colour, coverage = torch.zeros(len(self.kinds), 3, SIDE, SIDE), torch.zeros(len(self.kinds), 1, SIDE, SIDE)
        # Offsets at which a thing would leave the picture.
        outside = torch.zeros(len(self.kinds), SIDE, SIDE, dtype=torch.bool)
        for i, (thing, size) in enumerate(self.kinds):
            side = SIZES[size]
            colour[i, :, :side, :side] = sprites[thing, side][:3]
            coverage[i, :, :side, :side] = sprites[thing, side][3:]
            outside[i, SIDE - side + 1 :], outside[i, :, SIDE - side + 1 :] = True, True
        self.outside = outside
        self.templates = []  # a background: spectra of what each thing adds to it, and the square of that
        for background in BACKGROUND_NAMES:
            added = coverage * (colour - fill(BACKGROUNDS[background]))
            self.templates.append((torch.fft.rfft2(added), added.square().sum(dim=(1, 2, 3))))

    def look(self, picture: Tensor) -> Verdict:
        """The best match of a picture (3, SIDE, SIDE) in [0, 1].

        With D the picture less the background and K what a thing adds to it, |D - K|^2 = |D|^2 - 2 D.K + |K|^2; the
        middle term at all places at once is a correlation.
        """
        best = None
        for background, (spectrum, square) in zip(BACKGROUND_NAMES, self.templates, strict=True):
            difference = picture - fill(BACKGROUNDS[background])
            product = (torch.fft.rfft2(difference) * spectrum.conj()).sum(dim=1)
            errors = difference.square().sum() - 2 * torch.fft.irfft2(product, s=(SIDE, SIDE)) + square[:, None, None]
            errors.masked_fill_(self.outside, float("inf"))
            index = int(errors.argmin())
            error = errors.flatten()[index].item() / picture.numel()
            if best is None or error < best.error:
                kind, place = divmod(index, SIDE * SIDE)
                best = Verdict(self.kinds[kind][0], background, self.kinds[kind][1], place % SIDE, place // SIDE, error)
        return best


def place_of(verdict: Verdict) -> str:
    """The nearest of the nine places."""
    side = SIZES[verdict.size]
    reach = (SIDE - side) / 2
    across, down = ((edge - reach) / max(reach - 5, 1) for edge in (verdict.x, verdict.y))
    return min(PLACES, key=lambda place: (PLACES[place][0] - across) ** 2 + (PLACES[place][1] - down) ** 2)


def draw_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes and captions for judging; every other scene pairs a thing with a background it was never trained on."""
    rng = random.Random(PROMPT_SEED + seed)
    scenes = [draw_scene(rng, held_out=i % 2 == 0) for i in range(count)]
    return [(scene, draw_caption(scene, rng)) for scene in scenes]


def tally(judge: Judge, scenes: list[Scene], pictures: Tensor) -> tuple[dict[str, float], list[tuple[Scene, Verdict]]]:
    """Shares of right things, backgrounds, both, both on held-out and on trained pairs; and what was wrong."""
    verdicts = [judge.look(picture) for picture in pictures]
    pairs = list(zip(scenes, verdicts, strict=True))
    right: dict[str, list[bool]] = {}
    for scene, verdict in pairs:
        thing, background = scene.thing == verdict.thing, scene.background == verdict.background
        group = "held-out pairs" if is_held_out(scene.thing, scene.background) else "trained pairs"
        both = thing and background
        for name, value in (("thing", thing), ("background", background), ("both", both), (group, both)):
            right.setdefault(name, []).append(value)
    wrong = [(s, v) for s, v in pairs if (s.thing, s.background) != (v.thing, v.background)]
    return {name: sum(values) / len(values) for name, values in right.items()}, wrong


def save_sheet(pictures: Tensor, path: Path, columns: int = 10) -> None:
    """A contact sheet of pictures (B, 3, H, W) in [0, 1]."""
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(pictures.cpu().clamp(0, 1), path, nrow=columns, padding=2)


def judge_checkpoint(judge: Judge, args: argparse.Namespace) -> None:
    from .generate import Painter

    prompts = draw_prompts(args.count, args.seed)
    painter = Painter(args.checkpoint)
    pictures = []
    for start in range(0, args.count, CHUNK):
        captions = [caption for _, caption in prompts[start : start + CHUNK]]
        seeds = [PROMPT_SEED + args.seed + start + i for i in range(len(captions))]
        pictures.append(painter.paint(captions, seeds, args.steps, args.cfg))
    pictures = torch.cat(pictures)
    shares, wrong = tally(judge, [scene for scene, _ in prompts], pictures)
    captions = dict(prompts)
    for scene, verdict in wrong:
        say(f"  {captions[scene]!r}: {verdict.thing} on {verdict.background}")
    missed = Counter(scene.thing for scene, verdict in wrong if scene.thing != verdict.thing)
    say(f"things missed: {dict(missed.most_common(8))}")
    right = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    say(f"{args.count} pictures, {args.steps} steps, cfg {args.cfg}: {right}")
    if args.sheet:
        save_sheet(pictures, args.sheet)


def judge_autoencoder(args: argparse.Namespace) -> None:
    """Peak signal-to-noise ratio of pictures through the autoencoder and back."""
    from .generate import Painter

    sprites, vae = load_sprites(), Painter(args.checkpoint).vae
    for group, held_out in (("held-out", True), ("trained", False)):
        rng = random.Random(PROMPT_SEED + args.seed)
        pictures = torch.stack([render(draw_scene(rng, held_out), sprites) for _ in range(args.count)])
        rebuilt = vae.decode(vae.encode(pictures.movedim(1, -1))).movedim(-1, 1)
        decibels = psnr(rebuilt, pictures)
        say(f"{args.count} pictures of {group} pairs: {decibels.mean():.2f} dB, worst {decibels.min():.2f} dB")


def judge_itself(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """Shares it gets right on true renderings, which should be all."""
    rng, sprites = random.Random(PROMPT_SEED + seed), load_sprites()
    scenes = [draw_scene(rng, held_out=None) for _ in range(count)]
    shares, _ = tally(judge, scenes, torch.stack([render(scene, sprites) for scene in scenes]))
    return shares


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a demo checkpoint in diffusers layout")
    parser.add_argument("--picture", type=Path, help="a picture of 128 x 128 px")
    parser.add_argument("--rebuild", action="store_true", help="measure the checkpoint's autoencoder instead")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.5)
    parser.add_argument("--sheet", type=Path, help="where to save a contact sheet of the judged pictures, a .png")
    args = parser.parse_args()
    judge = Judge()
    if args.picture:
        from torchvision.io import ImageReadMode, read_image

        verdict = judge.look(read_image(str(args.picture), ImageReadMode.RGB).float() / 255)
        say(f"{verdict.size} {verdict.thing}, {place_of(verdict)}, {verdict.background} background")
        say(f"mean squared error {verdict.error:.5f}")
    elif args.checkpoint and args.rebuild:
        judge_autoencoder(args)
    elif args.checkpoint:
        judge_checkpoint(judge, args)
    else:
        shares = judge_itself(judge, args.count, args.seed)
        errors = ", ".join(f"{name} {1 - share:.1%}" for name, share in shares.items())
        say(f"errors on {args.count} true renderings: {errors}")


if __name__ == "__main__":
    main()
