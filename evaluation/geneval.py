"""GenEval's rules: whether the objects found in an image are those that its prompt names, judged on boxes.

Source: Ghosh et al., arXiv 2310.11513, and the authors' evaluation (github.com/djghosh13/geneval), whose thresholds and
choice of objects are followed: the most confident objects of a class, as many as a clause counts, must have the color
and the position; boxes that overlap all count, as no suppression follows the detector there either. Not here: masks.
Pure: boxes and embeddings come from `detector.py` and `embed.py`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import normalized

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
# For a color and a class: their embeddings' mean stands for the color.
COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
OTHER_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # COCO's -> GenEval's
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # above which an object counts; the latter in prompts of numbers
MOST = 16  # objects of a class
MARGIN = 0.1  # of both objects' sides: centers that are nearer have no direction
DIRECTION = 0.5  # of the line between centers, along an axis: within 60 degrees of it
COUNTING = "counting"
# Tag -> name, in the paper's order.
TASKS = {
    "single_object": "single object",
    "two_object": "two objects",
    COUNTING: "counting",
    "colors": "colors",
    "position": "position",
    "color_attr": "color attribution",
}

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """A detected object: its class as GenEval names it, confidence in [0, 1], box (left, top, right, bottom) in px."""

    name: str
    confidence: float
    box: Box


@dataclass(frozen=True)
class Clause:
    """What a prompt asks for. position: the relation, and the place of the clause that it is to, counted from 0."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Task:
    """A row of GenEval's metadata: every clause of include must hold, none of exclude."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def needs_color(self) -> bool:
        return any(clause.color for clause in self.include)


@dataclass(frozen=True)
class Verdict:
    """reasons: why an image is wrong, one for each clause that fails."""

    reasons: tuple[str, ...]

    @property
    def right(self) -> bool:
        return not self.reasons


Objects = Mapping[str, Sequence[Found]]


def geneval_name(name: str) -> str:
    """GenEval's name of one of COCO's classes, three of which it renames."""
    return OTHER_NAMES.get(name, name)


# Metadata


def read_task(row: Mapping, classes: Collection[str]) -> Task:
    """A row of the metadata. classes: names of the detector's classes, COCO's.

    Raises: ValueError with what is wrong, for what would be judged as something else or never hold.
    """
    if not isinstance(row.get("tag"), str) or not row.get("include"):
        raise ValueError("has no tag and include, as rows of GenEval's evaluation_metadata.jsonl have")
    known = {geneval_name(name) for name in classes}
    include = [_read_clause(part, known) for part in _list_of(row, "include")]
    for place, clause in enumerate(include):
        if clause.position and not 0 <= clause.position[1] < place:
            raise ValueError(f"places {clause.name} {clause.position[0]} clause {clause.position[1]}, no earlier one")
    exclude = [_read_clause(part, known) for part in _list_of(row, "exclude")]
    return Task(row["tag"], str(row.get("prompt", "")), tuple(include), tuple(exclude))


def _list_of(row: Mapping, name: str) -> list:
    found = row.get(name) or []
    if not isinstance(found, list):
        raise ValueError(f"needs a list for {name}")
    return found


def _read_clause(part: object, known: Collection[str]) -> Clause:
    if not isinstance(part, Mapping):
        raise ValueError('needs clauses such as {"class": "dog", "count": 1}')
    name, count = geneval_name(str(part.get("class"))), part.get("count")
    if name not in known:
        raise ValueError(f'has the class "{part.get("class")}", which the detector does not know')
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"needs a count of 1 or more for {name}, not {count}")
    color, position = part.get("color"), part.get("position")
    if color is not None and color not in COLORS:
        raise ValueError(f'has the color "{color}", which is none of {", ".join(COLORS)}')
    if position is not None:
        pair = isinstance(position, list | tuple) and len(position) == 2
        if not pair or position[0] not in RELATIONS or type(position[1]) is not int:
            raise ValueError(f"needs a position such as [{RELATIONS[0]!r}, 0], not {position}")
        position = tuple(position)
    return Clause(name, count, color, position)


# Rules


def select(found: Iterable[Found], tag: str, counting: float = COUNTING_THRESHOLD) -> dict[str, list[Found]]:
    """Objects by class, the most confident ones first: those above the threshold, and at most `MOST` of a class.

    counting: the threshold of prompts of numbers.
    """
    least = counting if tag == COUNTING else THRESHOLD
    objects: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.confidence):
        same = objects.setdefault(one.name, []) if one.confidence > least else None
        if same is not None and len(same) < MOST:
            same.append(one)
    return objects


def objects_to_color(task: Task, objects: Objects) -> list[Found]:
    """The objects whose colors decide: those of clauses with a color, where there are as many as they count."""
    wanted = [(clause, objects.get(clause.name, [])[: clause.count]) for clause in task.include if clause.color]
    return list(dict.fromkeys(one for clause, some in wanted if len(some) == clause.count for one in some))


def judge(task: Task, objects: Objects, colors: Mapping[Found, str]) -> Verdict:
    """Whether an image shows what its prompt names. colors: of the objects of `objects_to_color`."""
    reasons, matched = [], []
    for clause in task.include:
        some = objects.get(clause.name, [])[: clause.count]
        wrong = next((reason for rule in RULES.values() if (reason := rule(clause, some, matched, colors))), "")
        matched.append([] if wrong else some)
        reasons += [wrong] if wrong else []
    for clause in task.exclude:
        number = len(objects.get(clause.name, []))
        if number >= clause.count:
            reasons.append(f"fewer than {clause.count} {clause.name} expected, {number} found")
    return Verdict(tuple(reasons))


def _too_few(clause: Clause, some: Sequence[Found], _matched, _colors) -> str:
    return f"{clause.count} {clause.name} expected, {len(some)} found" if len(some) < clause.count else ""


def _off_color(clause: Clause, some: Sequence[Found], _matched, colors: Mapping[Found, str]) -> str:
    if clause.color is None:
        return ""
    seen = [colors[one] for one in some]
    return f"{clause.color} {clause.name} expected, {' and '.join(seen)} found" if set(seen) != {clause.color} else ""


def _out_of_place(clause: Clause, some: Sequence[Found], matched: Sequence[Sequence[Found]], _colors) -> str:
    if clause.position is None:
        return ""
    relation, target = clause.position
    if not matched[target]:
        return f"{clause.name} {relation} an object expected, which is missing"
    for one in some:
        for other in matched[target]:
            if relation not in (found := relations(one.box, other.box)):
                where = " and ".join(sorted(found)) or "at no side of"
                return f"{clause.name} {relation} {other.name} expected, {where} it found"
    return ""


# What a clause is checked for, in this order; the first that fails is the reason. A check -> its reason, or "".
RULES: dict[str, Callable[..., str]] = {"count": _too_few, "color": _off_color, "position": _out_of_place}

# Relation -> axis, and the sign of the offset of centers along it.
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
RELATIONS = tuple(SIDES)


def relations(a: Box, b: Box) -> set[str]:
    """Where a is from b: none, one or two of `RELATIONS`. The offset of their centers counts beyond a margin."""
    corners = np.array([a, b], dtype=np.float64).reshape(2, 2, 2)  # object, corner, axis
    offset = corners[0].mean(axis=0) - corners[1].mean(axis=0)
    sides = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    beyond = np.maximum(np.abs(offset) - MARGIN * sides, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    part = beyond / np.linalg.norm(offset)
    return {name for name, (axis, sign) in SIDES.items() if sign * part[axis] > DIRECTION}


# Colors


def color_texts(name: str) -> list[str]:
    """Texts of a class's colors: the templates of the first color, then of the next."""
    return [text.format(color=color, name=name) for color in COLORS for text in COLOR_TEXTS]


def nearest_colors(images: np.ndarray, texts: np.ndarray) -> list[str]:
    """The color of each image (N, D) whose mean of normalized text embeddings (colors x templates, D) is nearest."""
    means = normalized(texts).reshape(len(COLORS), len(COLOR_TEXTS), -1).mean(axis=1)
    return [COLORS[i] for i in (normalized(images) @ normalized(means).T).argmax(axis=1)]
