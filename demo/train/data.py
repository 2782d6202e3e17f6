"""The demo's pictures: one or two drawn things on a plain background, 256 x 256 px, rendered when they are needed.

Every thing stands at one of nine places, whose centres are 64, 128 or 192 px from the left and from the top. So a thing
of one size always lies the same way on the autoencoder's 32 px grid.
"""

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .things import THINGS

RUNS = Path(__file__).resolve().parent / "runs"
ICONS = Path(__file__).resolve().parents[1] / "icons.json"
SIDE = 256

BACKGROUNDS = {
    "white": (255, 255, 255), "yellow": (255, 240, 130), "green": (150, 215, 150), "blue": (120, 175, 245),
    "pink": (255, 190, 215), "gray": (140, 140, 140), "purple": (190, 160, 235), "orange": (255, 190, 110),
}  # fmt: skip
SIZES = {"small": 64, "medium": 96, "big": 128}
PLACES = {
    "top left": (-1, -1), "top": (0, -1), "top right": (1, -1), "left": (-1, 0), "center": (0, 0), "right": (1, 0),
    "bottom left": (-1, 1), "bottom": (0, 1), "bottom right": (1, 1),
}  # fmt: skip
REACH = 64  # px between the centres of neighbouring places
# Two things stand at opposite sides, so that even big ones do not overlap.
OPPOSITE_PLACES = tuple(
    (a, b) for a in PLACES for b in PLACES if 2 in [abs(i - j) for i, j in zip(PLACES[a], PLACES[b], strict=True)]
)
HELD_OUT_ONE_IN = 8

THING_NAMES, BACKGROUND_NAMES, SIZE_NAMES, PLACE_NAMES = list(THINGS), list(BACKGROUNDS), list(SIZES), list(PLACES)

Sprites = dict[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Item:
    """One thing in a picture."""

    thing: str
    size: str
    place: str

    def corner(self) -> tuple[int, int]:
        """Its left and top edge in pixels."""
        return tuple((SIDE - SIZES[self.size]) // 2 + direction * REACH for direction in PLACES[self.place])


@dataclass(frozen=True)
class Scene:
    """What is in a picture: one or two things."""

    background: str
    items: tuple[Item, ...]


def is_held_out(thing: str, place: str, background: str) -> bool:
    """Whether this combination is kept from every training step of the transformer: one in eight."""
    number = THING_NAMES.index(thing) + 3 * PLACE_NAMES.index(place) + 5 * BACKGROUND_NAMES.index(background)
    return number % HELD_OUT_ONE_IN == 0


def draw_scene(rng: random.Random, held_out: bool | None = False, count: int | None = None) -> Scene:
    """A random scene of `count` things, or of one or two.

    `held_out` False gives scenes of trained combinations only, True scenes of held-out combinations only, None all.
    """
    while True:
        background = rng.choice(BACKGROUND_NAMES)
        number = count or rng.choice((1, 2))
        places = rng.choice(OPPOSITE_PLACES) if number == 2 else (rng.choice(("center", *PLACE_NAMES)),)
        things = rng.sample(THING_NAMES, number)
        items = tuple(Item(thing, rng.choice(SIZE_NAMES), place) for thing, place in zip(things, places, strict=True))
        if held_out is None or all(is_held_out(i.thing, i.place, background) == held_out for i in items):
            return Scene(background, items)


def draw_facing_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """Two things left and right, or at the top and at the bottom, of which captions can say how they stand."""
    while True:
        scene = draw_scene(rng, held_out, 2)
        if {item.place for item in scene.items} in ({"left", "right"}, {"top", "bottom"}):
            return scene


def rasterise(svg_body: str, size: int) -> Tensor:
    """An icon as (4, size, size): red, green, blue in [0, 1], then coverage in [0, 1]."""
    import resvg_py
    from PIL import Image

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{svg_body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def load_sprites(sizes: tuple[int, ...] = tuple(SIZES.values())) -> Sprites:
    """Every thing at every size in px, as (4, size, size)."""
    icons = json.loads(ICONS.read_text())["icons"]
    return {(name, size): rasterise(icons[thing.icon], size) for name, thing in THINGS.items() for size in sizes}


def fill(colour: tuple[int, int, int], side: int = SIDE) -> Tensor:
    """A plain picture of one colour given in 0..255: (3, side, side) in [0, 1]."""
    return (torch.tensor(colour, dtype=torch.float32) / 255)[:, None, None].expand(3, side, side).clone()


def paste(picture: Tensor, sprite: Tensor, x: int, y: int) -> None:
    """Draws a sprite into a (3, H, W) picture in place, its top left corner at (x, y); parts outside are cut off."""
    height, width = picture.shape[-2:]
    left, top = max(x, 0), max(y, 0)
    part = sprite[:, top - y : height - y, left - x : width - x]
    picture[:, top : top + part.shape[-2], left : left + part.shape[-1]].lerp_(part[:3], part[3:])


def render(scene: Scene, sprites: Sprites) -> Tensor:
    """The picture of a scene, (3, SIDE, SIDE) in [0, 1]."""
    picture = fill(BACKGROUNDS[scene.background])
    for item in scene.items:
        paste(picture, sprites[item.thing, SIZES[item.size]], *item.corner())
    return picture


def to_model(pictures: Tensor) -> Tensor:
    """[0, 1] to the autoencoder's [-1, 1]."""
    return pictures * 2 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture of two batches (B, 3, H, W) in [0, 1]."""
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
