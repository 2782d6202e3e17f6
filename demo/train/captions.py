"""Captions of the demo's pictures from a grammar: in English, in Chinese, or with emoji for the things' names.

Two in three English captions are worded as in `english.py`, as people write; the others come from the frames here.
"""

import random
import re
from dataclasses import dataclass

from . import words
from .data import BACKGROUND_NAMES, PLACE_NAMES, SIZE_NAMES, THING_NAMES, Item, Scene
from .english import english_name, write_alone, write_english
from .forms import is_held_out_form, write_form
from .things import THINGS

LANGUAGES = ("english", "chinese", "emoji")
SHARES = (0.5, 0.25, 0.25)  # of the languages in training

# {i}: what stands in the picture; {b}: the background's colour. The last of each are never trained on.
ENGLISH = (
    "{i} on a {b} background", "{i} on {b}", "{i}, {b} background", "picture of {i} on a {b} background",
    "{i} in front of a {b} background", "{b} background with {i}", "a {b} picture with {i}", "on {b}: {i}",
    "an emoji of {i} on {b}", "drawing of {i}, {b} background", "a picture of {i} on {b}", "on a {b} background, {i}",
)  # fmt: skip
HELD_OUT_ENGLISH = ("a {b} background and {i}", "{b} picture of {i}", "with a {b} background, a drawing of {i}")
CHINESE = (
    "{b}背景上{i}", "{i}，{b}背景", "{b}背景，{i}", "在{b}背景上，{i}", "一幅{b}的图，{i}", "画{i}，背景是{b}",
    "{b}的背景，{i}", "图中{i}，背景{b}",
)  # fmt: skip
HELD_OUT_CHINESE = ("{i}，一幅{b}的图", "画一幅图：{i}，背景{b}")
# Loose wordings are put together from these: an opening, the things and the colour in any order.
ENGLISH_OPENINGS = (
    "", "", "draw", "show me", "an image of", "there is", "please paint", "we see", "emoji:", "clipart,", "picture:",
    "this is", "with", "and", "a drawing,",
)  # fmt: skip
ENGLISH_COLOURS = (
    "{b} background", "on {b}", "background: {b}", "on a {b} background", "the background is {b}", "{b}", "all in {b}",
    "over {b}", "against a {b} background", "colored {b}", "in front of {b}", "{b} picture", "with {b} background",
    "a {b} one", "the picture is {b}", "{b} and", "and {b}",
)  # fmt: skip
CHINESE_OPENINGS = (
    "", "", "画", "请画", "图中有", "这是", "表情：", "我要", "一幅图", "有", "图中", "画：", "图：", "上面有",
)  # fmt: skip
CHINESE_COLOURS_SAID = (
    "{b}背景", "背景为{b}", "{b}的背景", "底色{b}", "{b}", "背景{b}", "后面是{b}", "{b}的图", "{b}底色", "一幅{b}",
    "图的背景是{b}", "{b}图", "用{b}", "在{b}上", "背景：{b}", "{b}做底色", "有{b}",
)  # fmt: skip
LOOSE = 0.5  # how often a training caption is worded loosely
BARE = ("{i}", "{i}", "picture of {i}", "an emoji of {i}")  # say nothing of the background
EMOJI_FRAMES = ("{i} {b}", "{i}{b}")  # beside those of the two languages

SIZE_WORDS = {
    "small": ("small", "little", "tiny"), "medium": ("medium", "medium-sized"), "big": ("big", "large", "huge"),
}  # fmt: skip
CHINESE_SIZES = {"small": ("小", "小小的"), "medium": ("中等的", "中号"), "big": ("大", "大大的")}
CHINESE_PLACES = {
    "top left": ("左上角", "左上方"), "top": ("上方", "上面"), "top right": ("右上角", "右上方"),
    "left": ("左边", "左侧"), "center": ("中间", "中央"), "right": ("右边", "右侧"),
    "bottom left": ("左下角", "左下方"), "bottom": ("下方", "下面"), "bottom right": ("右下角", "右下方"),
}  # fmt: skip
CHINESE_COLOURS = {
    "white": "白色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "pink": "粉色", "gray": "灰色",
    "purple": "紫色", "orange": "橙色",
}  # fmt: skip
PLURALS = ("grapes", "cherries", "scissors")
PLACE_PHRASES = ("{p}", "{p}", "at the {p}", "in the {p}")
FREE = 0.67  # how often a training caption in English is worded freely
FREE_BACKGROUND_SAID, ONE_PLACE = 0.87, 0.06  # of those; how often only one of two things has its place told
ALONE = 0.3  # how often a caption of a thing in the center is its name alone
CHINESE_NEGATION = 0.05
LONGEST = 110  # letters of a free caption in training: every token of the longest one costs all of them time
SIZE_SAID, PLACE_SAID, BACKGROUND_SAID = 0.6, 0.85, 0.96  # how often; the place of a thing off the centre always


@dataclass(frozen=True)
class Caption:
    """A text and what it tells: None where it is silent. `items` has thing, size and place, in the text's order."""

    text: str
    background: str | None
    items: tuple[tuple[str, str | None, str | None], ...]


def with_article(noun: str, thing: str) -> str:
    if thing in PLURALS:
        return f"some {noun}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def english_item(thing: str, size: str | None, place: str | None, rng: random.Random) -> str:
    noun = thing
    if size:
        noun = f"{SIZE_WORDS[size][0] if rng.random() < 0.6 else rng.choice(SIZE_WORDS[size])} {noun}"
    style = rng.random()
    if style < 0.8:
        noun = f"the {noun}" if style < 0.1 else with_article(noun, thing)
    if place:
        noun += " " + rng.choice(PLACE_PHRASES).format(p=place)
        if place == "center" and rng.random() < 0.3:
            noun = noun.replace("center", "middle")
    return noun


def chinese_item(noun: str, size: str | None, place: str | None, rng: random.Random) -> str:
    noun = (rng.choice(CHINESE_SIZES[size]) if size else "") + noun
    noun = noun if rng.random() < 0.15 else f"一个{noun}"
    if not place:
        return noun
    where = rng.choice(CHINESE_PLACES[place])
    return rng.choice((f"{where}有{noun}", f"{where}{noun}", f"{noun}在{where}"))


def loose_frame(openings: tuple, colours: tuple, joints: tuple, rng: random.Random) -> str:
    """A frame of an opening, the things and the colour, in any order that leaves the opening before the things."""
    parts = [" ".join(filter(None, (rng.choice(openings), "{i}"))), rng.choice(colours)]
    rng.shuffle(parts)
    return rng.choice(joints).join(parts)


def draw_facts(
    scene: Scene, rng: random.Random, background_said: float = BACKGROUND_SAID
) -> tuple[str | None, list[tuple[str, str | None, str | None]], tuple[str, ...]]:
    """What a caption of the scene will tell: the background, and of each thing its size and place, or None.

    Also the places that the things truly have.
    """
    items = list(scene.items)
    rng.shuffle(items)
    together = rng.random() < PLACE_SAID  # with two things: both places or neither

    def tell(item: Item) -> tuple[str, str | None, str | None]:
        alone = len(items) == 1
        said = (item.place != "center" or rng.random() < 0.5) if alone else together
        return item.thing, item.size if rng.random() < SIZE_SAID else None, item.place if said else None

    background = scene.background if rng.random() < background_said else None
    return background, [tell(item) for item in items], tuple(item.place for item in items)


def draw_caption(scene: Scene, rng: random.Random, language: str | None = None, held_out: bool = False) -> Caption:
    """A caption that is true of the scene.

    language: one of LANGUAGES, or None for a random one. held_out: in a frame that is never trained on.
    """
    language = language or rng.choices(LANGUAGES, SHARES)[0]
    if not held_out and language != "chinese" and rng.random() < FREE:
        return draw_free_caption(scene, rng, language)
    return draw_framed_caption(scene, rng, language, held_out)


def draw_free_caption(scene: Scene, rng: random.Random, language: str) -> Caption:
    """A caption in English as people write it, never in a form that is held out."""
    while True:
        background, items, stand = draw_facts(scene, rng, FREE_BACKGROUND_SAID)
        if len(items) == 2 and rng.random() < ONE_PLACE:
            items[1] = (*items[1][:2], None)
        alone = stand == ("center",) and rng.random() < ALONE
        if alone:
            background, items = None, [(items[0][0], None, None)]

        def name(thing: str) -> str:
            return THINGS[thing].emoji if language == "emoji" else english_name(thing, rng)

        text = write_alone(name(items[0][0]), rng) if alone else write_english(background, items, name, stand, rng)
        if len(text) <= LONGEST and not is_held_out(text):
            return Caption(text, background, tuple(items))


def draw_form_caption(scene: Scene, rng: random.Random) -> Caption:
    """A caption in a whole sentence form that is never trained on."""
    return Caption(*write_form(scene, rng))


def is_held_out(text: str) -> bool:
    return is_held_out_form(text) or any(pattern.fullmatch(text) for pattern in HELD_OUT_FRAMES)


HELD_OUT_FRAMES = [
    re.compile(frame.format(i=".+", b=f"({'|'.join(BACKGROUND_NAMES)})") + "[.]?", re.IGNORECASE)
    for frame in HELD_OUT_ENGLISH
]


def negate(text: str, items: list[tuple], attribute: str, rng: random.Random) -> str:
    """A Chinese caption's things, and another one that is not to be drawn."""
    there = {item[0] for item in items}
    absent = rng.choice([thing for thing in THING_NAMES if thing not in there])
    return text + rng.choice(words.CHINESE_WITHOUT).format(x=getattr(THINGS[absent], attribute))


def draw_framed_caption(scene: Scene, rng: random.Random, language: str, held_out: bool) -> Caption:
    """A caption in one of the frames, or put together from an opening, the things and the colour."""
    background, items, _ = draw_facts(scene, rng)
    in_chinese = language == "chinese" or (language == "emoji" and rng.random() < 0.3)
    attribute = {"english": "name", "chinese": "chinese", "emoji": "emoji"}[language]
    phrase = chinese_item if in_chinese else english_item
    phrases = [phrase(getattr(THINGS[thing], attribute), size, place, rng) for thing, size, place in items]
    if in_chinese:
        joined = rng.choice(("，", "和", "，")).join(phrases)
        if not held_out and rng.random() < CHINESE_NEGATION:
            joined = negate(joined, items, attribute, rng)
        frames = HELD_OUT_CHINESE if held_out else CHINESE
        loose = (CHINESE_OPENINGS, CHINESE_COLOURS_SAID, ("，", "", " ", "。", "：", "，和"))
    else:
        joined = (" and " if rng.random() < 0.75 else ", ").join(phrases)
        frames = HELD_OUT_ENGLISH if held_out else ENGLISH
        loose = (ENGLISH_OPENINGS, ENGLISH_COLOURS, (", ", " ", ": ", ". ", " - "))
        if language == "emoji" and not held_out and rng.random() < 0.15:
            frames = EMOJI_FRAMES
    text = frame_text(joined, background, frames, None if held_out else loose, in_chinese, rng)
    style = rng.random()
    if not in_chinese and style < 0.2:
        text = text.upper() if style < 0.01 else text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text += "。" if in_chinese else "."
    return Caption(text, background, tuple(items))


def frame_text(
    joined: str, background: str | None, frames: tuple, loose: tuple | None, in_chinese: bool, rng: random.Random
) -> str:
    """The things' words in a frame with the background's."""
    if background is None:
        return (joined if in_chinese else rng.choice(BARE)).format(i=joined)
    if loose and rng.random() < LOOSE:
        frames = (loose_frame(*loose, rng),)
    frame = frames[0] if rng.random() < 0.2 else rng.choice(frames)
    text = frame.format(i=joined, b=CHINESE_COLOURS[background] if in_chinese else background)
    return text.replace("a orange", "an orange")


def fact_indices(caption: Caption) -> list[int]:
    """Background, then thing, size and place of the first and of the second thing, each as an index.

    The last index of a list stands for what the caption leaves unsaid, or for the thing that is not there.
    """
    silent = (None, None, None)
    facts = [index_of(caption.background, BACKGROUND_NAMES)]
    for thing, size, place in (caption.items + (silent,))[:2]:
        facts += [index_of(thing, THING_NAMES), index_of(size, SIZE_NAMES), index_of(place, PLACE_NAMES)]
    return facts


def index_of(name: str | None, names: list[str]) -> int:
    return len(names) if name is None else names.index(name)


def fact_classes() -> list[int]:
    """How many values each of `fact_indices` can have."""
    item = [len(THING_NAMES) + 1, len(SIZE_NAMES) + 1, len(PLACE_NAMES) + 1]
    return [len(BACKGROUND_NAMES) + 1, *item, *item]


def chinese_words() -> list[str]:
    """Every Chinese word for a thing, size, place or colour, and every emoji."""
    words = [thing.chinese for thing in THINGS.values()] + [thing.emoji for thing in THINGS.values()]
    words += CHINESE_COLOURS.values()
    return words + [word for table in (CHINESE_SIZES, CHINESE_PLACES) for own in table.values() for word in own]


def english_tables() -> list[str]:
    """What the captions' English words stand in, tables and frames alike."""
    tables = [THING_NAMES, BACKGROUND_NAMES, ENGLISH, HELD_OUT_ENGLISH, PLACE_NAMES, PLACE_PHRASES, BARE]
    tables += [ENGLISH_OPENINGS, ENGLISH_COLOURS, *SIZE_WORDS.values()]
    for own in (words.OTHER_NAMES, words.SIZE_WORDS, words.PLACE_WORDS, words.OTHER_PLACES, words.COLOUR_WORDS):
        tables += own.values()
    tables += [*words.RELATIONS.values(), words.BESIDE, words.TOGETHER, words.CORNER_PHRASES, words.WITHOUT]
    return [text for table in tables for text in table]


def vocabulary() -> list[str]:
    """Every English word that tells something, and every word of `chinese_words`."""
    text = " ".join([*english_tables(), "a an the some and middle backdrop behind"])
    for mark in (",", ":", "?", "{i}", "{b}", "{p}", "{x}"):
        text = text.replace(mark, " ")
    return [*sorted(set(text.split())), *chinese_words()]
