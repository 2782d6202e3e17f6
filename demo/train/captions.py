"""Captions of the demo's pictures, from a small grammar with varied wording."""

import random

from .data import BACKGROUND_NAMES, PLACES, SIZES, THING_NAMES, Scene

# {t}: the thing with size and article; {n}: the thing with size, no article; {b}: the background's colour.
TEMPLATES = (
    "{t} on a {b} background", "{t} on {b}", "{n}, {b} background", "picture of {t} on a {b} background",
    "{t} in front of a {b} background", "{b} background with {t}", "{n} on {b} background", "a {b} picture with {t}",
    "an emoji of {t} on {b}", "drawing of {t}, {b} background", "{n} {b}", "a picture of {t} on {b}",
)  # fmt: skip
PLACED_TEMPLATES = (
    "{t} {p} on a {b} background", "{n} {p}, {b} background", "{t} {p} on {b}", "{b} background with {t} {p}",
    "picture of {t} {p} on a {b} background", "{t} on a {b} background, {p}",
)  # fmt: skip
PLACE_WORDS = {place: (place, f"at the {place}", f"in the {place}") for place in PLACES}
PLACE_WORDS["center"] = ("center", "in the center", "in the middle")
SIZE_WORDS = {
    "small": ("small", "little", "tiny"), "medium": ("medium", "medium-sized"), "big": ("big", "large", "huge"),
}  # fmt: skip


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def draw_caption(scene: Scene, rng: random.Random) -> str:
    """A caption that is true of the scene; it may leave size and place unsaid."""
    noun = scene.thing
    if rng.random() < 0.5:
        words = SIZE_WORDS[scene.size]
        noun = f"{words[0] if rng.random() < 0.6 else rng.choice(words)} {noun}"
    thing = f"the {noun}" if rng.random() < 0.1 else f"{article(noun)} {noun}"
    if rng.random() < 0.4:
        template, place = rng.choice(PLACED_TEMPLATES), rng.choice(PLACE_WORDS[scene.place])
    else:
        template, place = (TEMPLATES[0] if rng.random() < 0.25 else rng.choice(TEMPLATES)), ""
    caption = template.format(t=thing, n=noun, b=scene.background, p=place)
    style = rng.random()
    if style < 0.05:
        return caption.upper()
    if style < 0.25:
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.random() < 0.1 else caption


def vocabulary() -> list[str]:
    """Every word a caption can hold."""
    text = [*THING_NAMES, *BACKGROUND_NAMES, *TEMPLATES, *(w for ws in PLACE_WORDS.values() for w in ws)]
    text += [w for ws in SIZE_WORDS.values() for w in ws] + list(SIZES) + ["a an the"]
    words = " ".join(text).replace(",", " ").split()
    return sorted({word for word in words if not word.startswith("{")})
