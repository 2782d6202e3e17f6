"""Says what is in a picture of the demo by comparing it with fresh renderings; knows nothing of any generator.

python -m demo.judge --count 500                    # its own error rate, on true renderings
python -m demo.judge --picture output/demo.png      # one picture
"""

import argparse
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .train.captions import Caption
from .train.data import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    PLACES,
    REACH,
    SIDE,
    SIZES,
    THING_NAMES,
    Item,
    Scene,
    Sprites,
    draw_scene,
    fill,
    load_sprites,
    render,
)

WINDOW = max(SIZES.values())  # px; what is compared at a place
SHIFT = 6  # px by which a thing may stand beside its place, in both directions
MARGIN = SHIFT + WINDOW // 2 - (SIDE // 2 - REACH)  # px that a shifted window reaches beyond the picture
# A second thing counts from this share of what its rendering would explain if it were there exactly.
SECOND_THING = 0.4
CLOSE = 0.25  # a pixel's largest difference to the background's colour that counts, each channel in [0, 1]


@dataclass(frozen=True)
class Verdict:
    """What was seen, and the mean squared error that is left, values in [0, 1]."""

    background: str
    items: tuple[Item, ...]
    error: float


class Judge:
    """Compares with every thing in every size at every place, moved a little too, on every background.

    more: sprites of things that are none of the demo's.
    """

    def __init__(self, more: Sprites | None = None):
        sprites = load_sprites() | (more or {})
        names = dict.fromkeys([*THING_NAMES, *(thing for thing, _ in more or {})])
        self.kinds = [(thing, size) for thing in names for size in SIZES]
        self.colour = torch.zeros(len(self.kinds), 3, WINDOW, WINDOW)
        self.coverage = torch.zeros(len(self.kinds), 1, WINDOW, WINDOW)
        for i, (thing, size) in enumerate(self.kinds):
            side = SIZES[size]
            inside = slice((WINDOW - side) // 2, (WINDOW + side) // 2)
            self.colour[i, :, inside, inside] = sprites[thing, side][:3]
            self.coverage[i, :, inside, inside] = sprites[thing, side][3:]
        # Top left corners, in a picture with the margin around it, of the windows at every place and shift.
        self.corners = [
            (place, *(SIDE // 2 - WINDOW // 2 + d * REACH + MARGIN + move for d, move in zip(way, moves, strict=True)))
            for place, way in PLACES.items()
            for moves in [(x, y) for y in (-SHIFT, 0, SHIFT) for x in (-SHIFT, 0, SHIFT)]
        ]
        self.added: dict[str, tuple[Tensor, Tensor]] = {}

    def renderings(self, background: str) -> tuple[Tensor, Tensor]:
        """What each kind adds to a background, (K, 3 * WINDOW * WINDOW), and the square of that, (K,)."""
        if background not in self.added:
            added = (self.coverage * (self.colour - fill(BACKGROUNDS[background], WINDOW))).flatten(1)
            self.added[background] = added, added.square().sum(dim=1)
        return self.added[background]

    def look(self, picture: Tensor) -> Verdict:
        """What a picture (3, SIDE, SIDE) in [0, 1] shows: a background, one thing or none, and perhaps a second."""
        background = see_background(picture)
        difference = torch.nn.functional.pad(picture - fill(BACKGROUNDS[background]), (MARGIN,) * 4)
        items = [self.see_item(difference, background, least) for least in (0.0, SECOND_THING)]
        return Verdict(
            background, tuple(item for item in items if item), difference.square().sum().item() / picture.numel()
        )

    def see_item(self, difference: Tensor, background: str, least: float) -> Item | None:
        """The thing whose rendering explains most of a difference to the background, which is taken off in place.

        With D the difference in a window and K a rendering, |D|^2 - |D - K|^2 = 2 D.K - |K|^2 is what K explains. None
        if that is less than `least` of |K|^2, which is what a rendering explains of itself.
        """
        added, squares = self.renderings(background)
        windows = torch.stack([difference[:, y : y + WINDOW, x : x + WINDOW].flatten() for _, x, y in self.corners])
        explained = 2 * windows @ added.T - squares
        window, kind = divmod(int(explained.argmax()), len(self.kinds))
        if explained[window, kind] < least * squares[kind]:
            return None
        place, x, y = self.corners[window]
        difference[:, y : y + WINDOW, x : x + WINDOW] -= added[kind].view(3, WINDOW, WINDOW)
        return Item(*self.kinds[kind], place)


def see_background(picture: Tensor) -> str:
    """The colour that most of the picture is close to."""
    distances = [
        (picture - fill(BACKGROUNDS[name])).abs().amax(dim=0).clamp_max(CLOSE).mean() for name in BACKGROUND_NAMES
    ]
    return BACKGROUND_NAMES[int(torch.stack(distances).argmin())]


def silhouette(picture: Tensor) -> Tensor:
    """Where a picture (3, H, W) in [0, 1] is not its background: (H, W) of booleans."""
    difference = picture - fill(BACKGROUNDS[see_background(picture)], picture.shape[-1])
    return difference.abs().amax(dim=0) > CLOSE


def overlap(picture: Tensor, other: Tensor) -> float:
    """Intersection over union of two pictures' silhouettes, 1 where both are empty."""
    a, b = silhouette(picture), silhouette(other)
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def marks(caption: Caption, verdict: Verdict) -> dict[str, bool]:
    """What of a caption's words is true of the picture, for each of them that it has.

    `thing` asks for the right things and no others; `size` and `place` for those of every thing that is told.
    """
    seen = {item.thing: item for item in verdict.items}
    told = {thing: (size, place) for thing, size, place in caption.items}
    right = {"thing": sorted(item.thing for item in verdict.items) == sorted(told)}
    for number, name in enumerate(("size", "place")):
        words = {thing: facts[number] for thing, facts in told.items() if facts[number]}
        if words:
            right[name] = all(t in seen and getattr(seen[t], name) == word for t, word in words.items())
    if caption.background:
        right["background"] = verdict.background == caption.background
    right["all"] = all(right.values())
    return right


def shares(rows: Iterable[dict[str, bool]]) -> dict[str, float]:
    """How often each mark is true where it is asked for."""
    columns: dict[str, list[bool]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items()}


def whole_caption(scene: Scene) -> Caption:
    """All that there is to say of a scene, without words."""
    return Caption("", scene.background, tuple((item.thing, item.size, item.place) for item in scene.items))


def judge_itself(judge: Judge, count: int, seed: int = 0) -> dict[str, float]:
    """Shares it gets right on true renderings, which should be all."""
    rng, sprites = random.Random(seed), load_sprites()
    scenes = [draw_scene(rng, held_out=None) for _ in range(count)]
    return shares(marks(whole_caption(scene), judge.look(render(scene, sprites))) for scene in scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help=f"a picture of {SIDE} x {SIDE} px")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    judge = Judge()
    if args.picture:
        from torchvision.io import ImageReadMode, read_image

        verdict = judge.look(read_image(str(args.picture), ImageReadMode.RGB).float() / 255)
        items = ", ".join(f"{item.size} {item.thing} {item.place}" for item in verdict.items)
        line = f"{items}, on {verdict.background}; mean squared error {verdict.error:.5f}"
    else:
        rates = judge_itself(judge, args.count, args.seed)
        errors = ", ".join(f"{name} {1 - share:.1%}" for name, share in rates.items())
        line = f"errors on {args.count} true renderings: {errors}"
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
