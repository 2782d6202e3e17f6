"""Draws `demo/pictures`, ten pictures of a thing that the demo model does not know: `python -m demo.train.new_thing`.

A traffic light, drawn here, on the demo's backgrounds, in its sizes and places, with captions as the demo was trained.
"""

from pathlib import Path

from PIL import Image, ImageDraw

from .data import BACKGROUNDS, REACH, SIDE, SIZES

FOLDER = Path(__file__).resolve().parents[1] / "pictures"
NAME, SCALE = "traffic light", 8
SCENES = (
    ("yellow", "big", ""), ("blue", "big", "left"), ("white", "medium", ""), ("pink", "small", "top"),
    ("green", "medium", "right"), ("orange", "big", ""), ("purple", "small", "bottom left"), ("blue", "medium", ""),
    ("white", "big", "right"), ("yellow", "small", "top right"),
)  # fmt: skip
OFFSETS = {"": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom left": (-1, 1), "top right": (1, -1)}


def draw_thing(size: int) -> Image.Image:
    """The traffic light with a transparent surrounding, drawn large and reduced for smooth edges."""
    unit = size * SCALE / 32
    image = Image.new("RGBA", (size * SCALE, size * SCALE))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle([9 * unit, 1 * unit, 23 * unit, 31 * unit], 4 * unit, "#33323e")
    for row, color in enumerate(("#f8312f", "#fcd53f", "#00d26a")):
        top = (2.5 + 9.25 * row) * unit
        draw.ellipse([11.75 * unit, top, 20.25 * unit, top + 8.5 * unit], color)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def caption_of(background: str, size: str, place: str) -> str:
    """place: "" for the center."""
    article = "an" if background == "orange" else "a"
    thing = f"a {'' if size == 'medium' else size + ' '}{NAME}"
    return f"{thing} {place or 'in the center'} on {article} {background} background"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for number, (background, size, place) in enumerate(SCENES):
        picture, side = Image.new("RGBA", (SIDE, SIDE), BACKGROUNDS[background]), SIZES[size]
        corner = tuple((SIDE - side) // 2 + REACH * direction for direction in OFFSETS[place])
        picture.alpha_composite(draw_thing(side), corner)
        name = FOLDER / f"{number:02}"
        picture.convert("RGB").save(name.with_suffix(".png"), optimize=True)
        name.with_suffix(".txt").write_text(caption_of(background, size, place) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
