"""The demo's pictures and captions: one drawn thing on one plain background, 128 x 128 px.

The things are icons of Microsoft's Fluent Emoji (flat), MIT licence; `icons.py` says where `icons.json` comes from. The
pictures are rendered when they are needed.
"""

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RUNS = Path(__file__).resolve().parent / "runs"
ICONS = Path(__file__).resolve().parents[1] / "icons.json"
SIDE = 128

# What a caption says, and the icon it stands for. All are bold shapes that stay recognisable at 44 px.
THINGS = {
    "red apple": "red-apple", "strawberry": "strawberry", "banana": "banana", "pineapple": "pineapple",
    "watermelon": "watermelon", "carrot": "carrot", "doughnut": "doughnut", "mushroom": "mushroom",
    "cactus": "cactus", "sunflower": "sunflower", "tree": "deciduous-tree", "heart": "red-heart",
    "star": "star", "sun": "sun", "moon": "crescent-moon", "rainbow": "rainbow",
    "fire": "fire", "snowman": "snowman-without-snow", "rocket": "rocket", "car": "automobile",
    "sailboat": "sailboat", "house": "house", "umbrella": "umbrella", "crown": "crown",
    "soccer ball": "soccer-ball", "cat face": "cat-face", "dog face": "dog-face", "frog": "frog",
    "fish": "tropical-fish", "butterfly": "butterfly", "ghost": "ghost", "guitar": "guitar",
}  # fmt: skip
BACKGROUNDS = {
    "white": (255, 255, 255), "yellow": (255, 240, 130), "green": (96, 190, 110),
    "blue": (90, 150, 240), "pink": (255, 160, 200), "gray": (130, 130, 130),
}  # fmt: skip
SIZES = {"small": 44, "medium": 60, "big": 88}
PLACES = {
    "top left": (-1, -1), "top": (0, -1), "top right": (1, -1), "left": (-1, 0), "center": (0, 0), "right": (1, 0),
    "bottom left": (-1, 1), "bottom": (0, 1), "bottom right": (1, 1),
}  # fmt: skip
REACH = {"small": 32, "medium": 32, "big": 16}  # px from the centre to a side's place; whole or half latent positions

THING_NAMES, BACKGROUND_NAMES = list(THINGS), list(BACKGROUNDS)


@dataclass(frozen=True)
class Scene:
    """What is in a picture; `x`, `y` are the left and top edge of the thing in pixels."""

    thing: str
    background: str
    size: str
    place: str
    x: int
    y: int


def is_held_out(thing: str, background: str) -> bool:
    """Whether this pair is kept from every training step: about one pair in eight, at most one background a thing."""
    return (THING_NAMES.index(thing) + 3 * BACKGROUND_NAMES.index(background)) % 8 == 0


def load_sprites(sizes: tuple[int, ...] = tuple(SIZES.values())) -> dict[tuple[str, int], Tensor]:
    """Every thing at every size in px, as (4, size, size): red, green, blue in [0, 1], then coverage in [0, 1]."""
    import resvg_py
    from PIL import Image

    icons = json.loads(ICONS.read_text())["icons"]
    sprites = {}
    for name, icon in THINGS.items():
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{icons[icon]}</svg>'
        for size in sizes:
            png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
            pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32) / 255
            sprites[name, size] = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return sprites


def fill(colour: tuple[int, int, int]) -> Tensor:
    """A plain picture of one colour given in 0..255: (3, SIDE, SIDE) in [0, 1]."""
    return (torch.tensor(colour, dtype=torch.float32) / 255)[:, None, None].expand(3, SIDE, SIDE).clone()


def paste(picture: Tensor, sprite: Tensor, x: int, y: int) -> None:
    """Draws a sprite into a (3, SIDE, SIDE) picture in place, its top left corner at (x, y)."""
    size = sprite.shape[-1]
    region = picture[:, y : y + size, x : x + size]
    region.lerp_(sprite[:3], sprite[3:])


def render(scene: Scene, sprites: dict[tuple[str, int], Tensor]) -> Tensor:
    """The picture of a scene, (3, SIDE, SIDE) in [0, 1]."""
    picture = fill(BACKGROUNDS[scene.background])
    paste(picture, sprites[scene.thing, SIZES[scene.size]], scene.x, scene.y)
    return picture


def draw_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """A random scene; `held_out` False gives training pairs only, True held-out pairs only, None both."""
    while True:
        thing, background = rng.choice(THING_NAMES), rng.choice(BACKGROUND_NAMES)
        if held_out is None or is_held_out(thing, background) == held_out:
            break
    size = rng.choice(list(SIZES))
    place = "center" if rng.random() < 0.5 else rng.choice(list(PLACES))
    side = SIZES[size]
    x, y = ((SIDE - side) // 2 + direction * REACH[size] for direction in PLACES[place])
    return Scene(thing, background, size, place, x, y)


def to_model(pictures: Tensor) -> Tensor:
    """[0, 1] to the autoencoder's [-1, 1]."""
    return pictures * 2 - 1


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture of two batches (B, 3, H, W) in [0, 1]."""
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()
