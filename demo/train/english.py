"""English captions: how things, their sizes and places are worded, in which order, and what is not in the picture."""

import random
import re
from collections.abc import Callable, Sequence

from . import words
from .data import THING_NAMES
from .things import THINGS

Told = tuple[str, str | None, str | None]  # thing, size and place; None where the caption is silent

CANONICAL = 0.55  # how often a thing goes by its own name, a place or a size by its plainest word
PLURAL, COLOURED, ADJECTIVE, BEHIND = 0.06, 0.08, 0.12, 0.03  # how often a noun is so
TYPO, NEGATION, GLUED, LABELLED, STRAY = 0.15, 0.15, 0.25, 0.08, 0.15
SHORTEST_TYPO = 5  # letters of a word that may be misspelt
ALPHABET = "abcdefghijklmnopqrstuvwxyz"

# Of one thing: {n} is the noun with its article, {sn} that with its size too, {z} its size behind it, {p} its place,
# {g} words that say nothing.
PLAIN_FORM = "{sn} {p}"
PLACE_FIRST = (
    "{p} {sn}", "{p}, {sn}", "{p}: {sn}", "{p} there is {sn}", "{p} is {sn}", "{p} we see {sn}", "{p} you see {sn}",
    "{p} - {sn}", "{p} stands {sn}", "{p} put {sn}", "{p} = {sn}", "{p} has {sn}", "{p} {g} {sn}", "{p} {g} {sn}",
    "{p} {g} {sn}",
)  # fmt: skip
PLACE_BEHIND = (
    "{sn}, {p}", "{sn} is {p}", "{sn} stands {p}", "{sn} that is {p}", "{sn} which is {p}", "{sn} ({p})", "{sn} - {p}",
    "{sn} placed {p}", "{sn} sitting {p}", "{sn}: {p}", "{sn} shown {p}", "{sn} located {p}", "{sn} should be {p}",
    "{sn} goes {p}", "put {sn} {p}", "place {sn} {p}",
    "{sn}, it is {p}", "{sn}. it belongs {p}", "{sn} {p}", "{sn} {g} {p}", "{sn} {g} {p}", "{sn} {g} {p}",
    "{g} {sn} {p}",
)  # fmt: skip
SIZE_BEHIND = (
    "{n}, {z}", "{n} {z}", "{n} that is {z}", "{n} which is {z}", "{n} ({z})", "{n} - {z}", "{n}: {z}", "{n} is {z}",
    "{n}, it is {z}", "{n}. it has to be {z}", "{n}, which must be {z}", "{n} of the {z} kind",
)  # fmt: skip
BOTH_BEHIND = (
    "{n}, {z}, {p}", "{n}, {z}, {p}", "{n} {z} {p}", "{n}, {p}, {z}", "{n} {p} {z}", "{n} {p}, {z}", "{n} ({z}, {p})",
    "{n} that is {z} and {p}", "{n} is {z} and {p}", "{n} - {z} - {p}", "{n}: {z}, {p}", "{n}, {z} and {p}",
    "{n} {p} ({z})", "{n}, {z} {p}", "{n}; {z}; {p}", "{p}, {n}, {z}", "{p}: {n}, {z}", "{p} {n} {z}", "{z}, {p}, {n}",
    "{z} {p} {n}", "{n} {p}, it is {z}", "{n} {p}. it has to be {z}", "{n}, it is {z} and {p}", "{p} {n}, it's {z}",
    "{n} {p}, which must be {z}", "{n}, {z}, which is {p}",
)  # fmt: skip
HARD = 0.45  # how often a thing is worded in another form than the plain one


def choose(rng: random.Random, options: Sequence[str]) -> str:
    """The first of the options mostly, or any of them."""
    return options[0] if rng.random() < CANONICAL else rng.choice(options)


def unknown_word(rng: random.Random) -> str:
    """A word that says nothing of the picture, real or made up."""
    style = rng.random()
    if style < 0.4:
        return rng.choice(words.UNKNOWN)
    if style < 0.6:
        return "".join(rng.choice(words.SYLLABLES) for _ in range(rng.randint(1, 3)))
    begin, end = (rng.choice(words.UNKNOWN + words.GLUE) for _ in range(2))
    blend = begin[: rng.randint(1, len(begin))] + end[-rng.randint(1, len(end)) :]
    return begin if blend in KNOWN_WORDS else blend


def plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun[:-3] + "men" if noun.endswith("man") else noun + "s"


def with_article(noun: str, is_plural: bool, rng: random.Random) -> str:
    """A noun phrase with an article, or with none, which is what hurried people write."""
    style = rng.random()
    if style < 0.2:
        return noun
    if style < 0.3:
        return f"{'the' if style < 0.27 else rng.choice(('my', 'this', 'your', 'our'))} {noun}"
    if is_plural:
        return f"some {noun}" if style < 0.8 else noun
    if style < 0.34:
        return f"{rng.choice(('one', '1', 'single', 'some'))} {noun}"
    vowel = noun[0].lower() in "aeiou"
    return f"an {noun}" if vowel != (rng.random() < 0.03) else f"a {noun}"


def english_name(thing: str, rng: random.Random) -> str:
    return choose(rng, (thing, *words.OTHER_NAMES.get(thing, ())))


def size_word(size: str, rng: random.Random) -> str:
    word = choose(rng, words.SIZE_WORDS[size])
    return f"{rng.choice(words.SIZE_ADVERBS)} {word}" if size != "medium" and rng.random() < 0.05 else word


def noun_phrases(thing: str, name: str, size: str | None, rng: random.Random) -> tuple[str, str]:
    """A thing with its article: with its size in front of it, and without."""
    is_plural = name in words.PLURALS
    if name.isascii() and not is_plural and rng.random() < PLURAL:
        name, is_plural = plural(name), True
    own = [colour for colour, things in words.OWN_COLOURS.items() if thing in things]
    if own and rng.random() < COLOURED:
        name = f"{rng.choice(own)} {name}"
    if rng.random() < ADJECTIVE:
        name = f"{rng.choice(words.ADJECTIVES) if rng.random() < 0.6 else unknown_word(rng)} {name}"
    if rng.random() < BEHIND:
        name += " " + rng.choice(words.BEHIND_NOUN).format(w=unknown_word(rng))
    bare = with_article(name, is_plural, rng)
    return with_article(f"{size_word(size, rng)} {name}", is_plural, rng) if size else bare, bare


def place_phrase(place: str, rng: random.Random) -> str:
    """Where something is, in words."""
    style = rng.random()
    if style < 0.4:
        return rng.choice(words.PLACE_PLAIN).format(p=place)
    if place in words.OTHER_PLACES:
        phrase = rng.choice(words.OTHER_PLACES[place]).format(p=place)
    elif style < 0.55:
        up, side = place.split()
        parts = {"v": rng.choice(words.UP_DOWN[up]), "h": rng.choice(words.SIDEWAYS[side])}
        phrase = rng.choice(words.SPLIT_CORNERS).format(**parts)
    else:
        name = choose(rng, words.PLACE_WORDS[place])
        phrase = rng.choice(words.CORNER_PHRASES).format(p=name)
    return phrase + (rng.choice(words.FRAME_WORDS) if rng.random() < 0.08 else "")


def draw_form(size: str | None, place: str | None, rng: random.Random) -> str:
    """A form that has room for what is told of a thing."""
    if rng.random() >= HARD or not (size or place):
        return PLAIN_FORM
    if size and place:
        return rng.choice(rng.choice((PLACE_FIRST, PLACE_BEHIND, BOTH_BEHIND, BOTH_BEHIND)))
    return rng.choice(rng.choice((PLACE_FIRST, PLACE_BEHIND)) if place else SIZE_BEHIND)


def fill_form(form: str, thing: str, name: str, size: str | None, place: str | None, rng: random.Random) -> str:
    sized, bare = noun_phrases(thing, name, size, rng)
    where = place_phrase(place, rng) if place else ""
    behind = rng.choice(words.SIZE_BEHIND).format(s=size_word(size, rng)) if size else ""
    filler = glue(rng, least=1) if "{g}" in form else ""
    return form.format(sn=sized, n=bare, z=behind, p=where, g=filler).strip()


Say = Callable[..., str]  # (index of the thing, form or None, size=True, place=True) -> its phrase


def word_standing(items: list[Told], say: Say, stand: tuple[str, str], rng: random.Random) -> str | None:
    """Two things by how they stand to one another, if that is all that is to be told of their places."""
    told = {item[2] is not None for item in items}
    chance = rng.random()
    if told == {True} and stand in words.RELATIONS and chance < 0.4:
        joint = rng.choice(("", "", "is ", "stands ")) + rng.choice(words.RELATIONS[stand])
    elif told == {False} and in_one_row(stand) and chance < 0.5:
        joint = rng.choice(words.BESIDE)
    else:
        return None
    phrases = [say(i, PLAIN_FORM, place=False) for i in (0, 1)]
    if told == {False} and rng.random() < 0.15:
        return f"{' and '.join(phrases)} side by side"
    return f" {joint} ".join(phrases)


def word_shared(items: list[Told], say: Say, rng: random.Random) -> str | None:
    """Two things whose sizes or places are told after both of them."""
    sizes, chance = {item[1] for item in items}, rng.random()
    if len(sizes) == 1 and None not in sizes and chance < 0.15:
        return f"{' and '.join(say(i, PLAIN_FORM, size=False) for i in (0, 1))}, both {size_word(items[0][1], rng)}"
    if all(item[2] for item in items) and chance > 0.95:
        both = " and ".join(say(i, PLAIN_FORM, place=False) for i in (0, 1))
        return f"{both}, {' and '.join(place_phrase(item[2], rng) for item in items)}"
    return None


def describe(items: list[Told], name: Callable[[str], str], stand: tuple[str, ...], rng: random.Random) -> str:
    """The things of a caption. `stand` has the places that they truly have, told or not."""

    def say(index: int, form: str | None = None, size: bool = True, place: bool = True) -> str:
        thing, own_size, own_place = items[index]
        own_size, own_place = own_size if size else None, own_place if place else None
        return fill_form(form or draw_form(own_size, own_place, rng), thing, name(thing), own_size, own_place, rng)

    if len(items) == 1:
        return say(0)
    text = word_standing(items, say, stand, rng) or word_shared(items, say, rng)
    if text:
        return text
    alike = all(bool(a) == bool(b) for a, b in zip(items[0][1:], items[1][1:], strict=True))
    form = draw_form(*items[0][1:], rng) if alike and rng.random() < 0.7 else None
    style = rng.random()
    if style < 0.6:
        joint = " and " if style < 0.42 else ", "
    elif style < 0.7:
        joint = f" {glue(rng, least=1)} "
    else:
        joint = f" {rng.choice(words.TOGETHER)} " if style < 0.85 else rng.choice((", and ", "; ", ". ", ", then "))
    return joint.join(say(i, form) for i in (0, 1))


def in_one_row(stand: tuple) -> bool:
    """Whether two places are left and right of one another."""
    rows = [next((word for word in ("top", "bottom") if word in place), "") for place in stand]
    return rows[0] == rows[1] and {place.split()[-1] for place in stand} == {"left", "right"}


def missing(items: list[Told], name: Callable[[str], str], rng: random.Random) -> str:
    """What a caption says is not in the picture: another thing, or something that is never drawn."""
    if rng.random() < 0.15:
        return rng.choice(words.NO_THINGS)
    there = {item[0] for item in items}
    thing = rng.choice([other for other in THING_NAMES if other not in there])
    size = rng.choice(list(words.SIZE_WORDS)) if rng.random() < 0.1 else None
    return noun_phrases(thing, name(thing), size, rng)[0]


def word_negation(text: str, name: Callable[[str], str], items: list[Told], rng: random.Random) -> str:
    """A caption's things, and before or after them what there is not."""
    absent = missing(items, name, rng)
    if rng.random() < 0.2:
        return f"{rng.choice(words.WITHOUT_FIRST).format(x=absent)} {text}"
    return text + rng.choice((" ", " ", ", ")) + rng.choice(words.WITHOUT).format(x=absent)


def word_background(colour: str, rng: random.Random) -> str:
    colour = choose(rng, words.COLOUR_WORDS[colour])
    if rng.random() < 0.07:
        colour = f"{rng.choice(words.COLOUR_ADVERBS)} {colour}"
    return rng.choice(words.BACKGROUNDS).format(b=colour)


def glue(rng: random.Random, least: int = 0) -> str:
    """Up to three words that say nothing here, and perhaps a mark."""
    chosen = [
        rng.choice(words.GLUE) if rng.random() < 0.75 else unknown_word(rng) for _ in range(rng.randint(least, 3))
    ]
    return " ".join(chosen) + (rng.choice(words.GLUE_MARKS) if rng.random() < 0.35 else "")


def write_glued(background: str | None, items: list[Told], name: Callable[[str], str], rng: random.Random) -> str:
    """The parts of a caption with any words between them: no sentence, but its parts in a readable order."""
    behind, order = rng.random() < 0.3, rng.sample(range(3), 3)
    parts = []
    for thing, size, place in items:
        sized, bare = noun_phrases(thing, name(thing), size, rng)
        where = place_phrase(place, rng) if place else ""
        own = [bare, size_word(size, rng), where] if behind and size else [sized, "", where]
        parts += [own[index] for index in order if own[index]]
    if background:
        colour = choose(rng, words.COLOUR_WORDS[background])
        said = colour if rng.random() < 0.5 else rng.choice(words.BACKGROUNDS).format(b=colour)
        parts.insert(0 if rng.random() < 0.4 else len(parts), said)
    text = glue(rng) if rng.random() < 0.6 else ""
    for part in parts:
        is_colour = background and part is parts[0]  # before a noun it would be the thing's
        text += f" {part}{rng.choice(('', '', ','))} {glue(rng, least=int(bool(is_colour)))}"
    return dress(re.sub(r" ([,.:;?!])", r"\1", " ".join(text.split())).strip(" ,;:-"), rng)


def write_labelled(background: str | None, items: list[Told], name: Callable[[str], str], rng: random.Random) -> str:
    """What is told as a list of labels and values, in any order but that each thing's own stay together."""

    def label(kind: str) -> str:
        return unknown_word(rng) if rng.random() < 0.3 else rng.choice(words.LABELS[kind])

    sign, groups = rng.choice((": ", ": ", " ", " = ", " - ", " is ")), []
    for thing, size, place in items:
        noun = name(thing)
        told = [("thing", with_article(noun, noun in words.PLURALS, rng))]
        told += [("size", size_word(size, rng))] if size else []
        told += [("place", place_phrase(place, rng))] if place else []
        rng.shuffle(told)
        groups.append(told)
    if background:
        groups.insert(rng.choice((0, len(groups))), [("background", choose(rng, words.COLOUR_WORDS[background]))])
    mark = rng.choice((", ", ", ", "; ", ". ", " / ", " | ", " "))
    return dress(mark.join(f"{label(kind)}{sign}{value}" for group in groups for kind, value in group), rng)


def write_alone(name: str, rng: random.Random) -> str:
    """Nothing but a thing's name."""
    text = name if rng.random() < 0.5 else with_article(name, name in words.PLURALS, rng)
    return text.upper() if rng.random() < 0.15 else dress(text, rng)


def write_english(
    background: str | None,
    items: list[Told],
    name: Callable[[str], str],
    stand: tuple[str, ...],
    rng: random.Random,
) -> str:
    """A caption as people write it; `name` words a thing."""
    if rng.random() < GLUED:
        return write_glued(background, items, name, rng)
    if rng.random() < LABELLED:
        return write_labelled(background, items, name, rng)
    text = describe(items, name, stand, rng)
    if rng.random() < NEGATION:
        text = word_negation(text, name, items, rng)
    if rng.random() < STRAY:  # words that say nothing, between what is told
        text += rng.choice((" ", ", ", ". ")) + glue(rng, least=1)
    if rng.random() < 0.45:
        text = f"{rng.choice(words.OPENINGS)} {text}"
    if background:
        said = word_background(background, rng)
        joint = rng.choice((", ", ", ", " ", " - ", ". ", "; "))
        if rng.random() < 0.3:  # a colour alone would be the thing's
            text = said + (joint if " " in said else ": ") + text
        else:
            text += joint + said
    if rng.random() < 0.1:
        text += rng.choice((", ", " ", " - ", ". ")) + rng.choice(words.CLOSINGS)
    if rng.random() < 0.05:
        text = f"{' '.join(unknown_word(rng) for _ in range(rng.randint(1, 3)))}{rng.choice((', ', ' ', ': '))}{text}"
    elif rng.random() < 0.05:
        text += rng.choice((", ", " ")) + " ".join(unknown_word(rng) for _ in range(rng.randint(1, 4)))
    return dress(text.replace("a orange", "an orange"), rng)


def known_words() -> frozenset[str]:
    """Every word that names something drawable; a misspelling must not become one."""
    tables = (*words.OTHER_NAMES.values(), *words.SIZE_WORDS.values(), *words.PLACE_WORDS.values())
    tables += (*words.COLOUR_WORDS.values(), tuple(THINGS))
    return frozenset(word for table in tables for name in table for word in name.lower().split())


KNOWN_WORDS = known_words()


def misspell(word: str, rng: random.Random) -> str:
    """One letter dropped, doubled, swapped with the next one or replaced, not the first one mostly."""
    i = rng.randrange(0 if rng.random() < 0.1 else 1, len(word) - 1)
    other = rng.choice(ALPHABET)
    wrong = rng.choice((
        word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + word[i + 1] + word[i] + word[i + 2 :],
        word[:i] + other + word[i + 1 :], word[:i] + other + word[i:],
    ))  # fmt: skip
    return word if wrong.lower() in KNOWN_WORDS else wrong


def with_typo(text: str, rng: random.Random) -> str:
    """The text with one of its longer words misspelt."""
    parts = text.split(" ")
    long = [i for i, part in enumerate(parts) if len(part) >= SHORTEST_TYPO and part.isascii() and part.isalpha()]
    if long:
        index = rng.choice(long)
        parts[index] = misspell(parts[index], rng)
    return " ".join(parts)


def dress(text: str, rng: random.Random) -> str:
    """Capitals, a mark at the end and misspellings, as people leave them."""
    if rng.random() < TYPO:
        text = with_typo(text, rng)
        text = with_typo(text, rng) if rng.random() < 0.2 else text
    style = rng.random()
    if style < 0.16:
        text = text[0].upper() + text[1:]
    elif style < 0.20:
        text = text.title()
    elif style < (0.30 if len(text) < 20 else 0.21):
        text = text.upper()
    return text + (rng.choice((".", ".", ".", "!", "?", "...", ",")) if rng.random() < 0.12 else "")
