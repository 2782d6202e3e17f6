"""Sentence forms that are never trained on: they measure whether the text is understood or only known.

{sn} is a thing with its size and article, {n} without its size, {s} its size, {p} its place, {b} the background;
a 2 marks the second thing. What a form has no room for is left open.
"""

import random
import re

from .data import BACKGROUND_NAMES, Scene
from .english import english_name, place_phrase, size_word, with_article
from .words import COLOUR_WORDS, PLURALS

ONE_THING = (
    "what about {sn} {p}? and paint everything behind it {b}",
    "{b} is the color behind {sn} {p}",
    "you may put {n} {p}, {s}, and let all the rest be {b}",
    "it is {b} everywhere, but {p} lives {sn}",
    "{n}. {s}. {p}. {b}.",
    "imagine a wall in {b}, and hanging on it {p}, {sn}",
    "my idea: {p}, {n} in {s} size; background? {b}!",
    "{s} is the size of {n} that waits {p} on {b} cardboard",
    "size {s}, position {p}, subject {n}, color {b}",
    "if you look {p} you will find {sn}, the wall being {b}",
    "what i ask for is {n} and a {b} ground to set it off",
    "somebody left {sn} {p}, with {b} paint all over the place",
)
TWO_THINGS = (
    "{sn} {p} is looking at {sn2} {p2}, {b} around them",
    "while {sn} stays {p}, {sn2} stays {p2}; the wall is {b}",
    "{b} page: first {sn} {p}, second {sn2} {p2}",
    "two things, {n} and {n2}: the former {p}, the latter {p2}, on {b}",
    "{p} you find {sn} whereas {p2} you find {sn2}, with {b} in the back",
    "{n}: {s}, {p}. {n2}: {s2}, {p2}. {b}.",
    "both {n} and {n2} should appear, upon a surface of {b}",
    "fill it with {b} first, then add {sn} {p} and finally {sn2} {p2}",
)
FORMS = {1: ONE_THING, 2: TWO_THINGS}
COLOURS = "|".join(word for said in COLOUR_WORDS.values() for word in said)
PATTERNS = [
    re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(form).replace(r"\{b\}", f"({COLOURS})")), re.IGNORECASE)
    for forms in FORMS.values()
    for form in forms
]


def is_held_out_form(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in PATTERNS)


def write_form(scene: Scene, rng: random.Random) -> tuple[str, str, tuple]:
    """A caption of the scene in a held-out form: its text, and the background and the items that it tells."""
    form = rng.choice(FORMS[len(scene.items)])
    slots, told = {"b": rng.choice(COLOUR_WORDS[scene.background])}, []
    for end, item in zip(("", "2"), scene.items, strict=False):
        name, size = english_name(item.thing, rng), size_word(item.size, rng)
        slots[f"n{end}"] = with_article(name, name in PLURALS, rng)
        slots[f"sn{end}"] = with_article(f"{size} {name}", name in PLURALS, rng)
        slots[f"s{end}"], slots[f"p{end}"] = size, place_phrase(item.place, rng)
        has_size = f"{{s{end}}}" in form or f"{{sn{end}}}" in form
        told.append((item.thing, item.size if has_size else None, item.place if f"{{p{end}}}" in form else None))
    assert scene.background in BACKGROUND_NAMES
    return form.format(**slots), scene.background, tuple(told)
