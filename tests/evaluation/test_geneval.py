"""GenEval's rules on invented boxes: each kind of prompt, right and wrong in every way that it can be."""

import numpy as np
import pytest
from sana_native.evaluation.geneval import (
    COLOR_TEXTS,
    COLORS,
    MOST,
    RELATIONS,
    Found,
    color_texts,
    judge,
    nearest_colors,
    objects_to_color,
    read_task,
    relations,
    select,
)

CLASSES = ("dog", "cat", "bench", "mouse", "keyboard")
LEFT, RIGHT = (0.0, 100.0, 100.0, 200.0), (300.0, 100.0, 400.0, 200.0)


def task(tag: str, *include: dict, exclude: tuple = ()):
    return read_task({"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "p"}, CLASSES)


def clause(name: str, count: int = 1, **rest) -> dict:
    return {"class": name, "count": count, **rest}


def dogs(count: int, confidence: float = 0.95) -> list[Found]:
    return [Found("dog", confidence, (50.0 * i, 0.0, 50.0 * i + 40, 40.0)) for i in range(count)]


def reasons(one, *found: Found, colors: dict | None = None) -> tuple[str, ...]:
    return judge(one, select(found, one.tag), colors or {}).reasons


COUNT_3 = task("counting", clause("dog", 3), exclude=(clause("dog", 4),))
BESIDE = task("position", clause("dog"), clause("cat", position=["right of", 0]))
RED_DOG = task("colors", clause("dog", color="red"))
BOTH = task("color_attr", clause("dog", color="red"), clause("cat", color="blue"))
DOG, CAT = Found("dog", 0.8, LEFT), Found("cat", 0.7, RIGHT)


@pytest.mark.parametrize(
    ("one", "found", "colors", "expected"),
    [
        (task("single_object", clause("dog")), [DOG], {}, ()),
        (task("single_object", clause("dog")), [], {}, ("1 dog expected, 0 found",)),
        (task("single_object", clause("dog")), [CAT], {}, ("1 dog expected, 0 found",)),
        (task("single_object", clause("dog")), [*dogs(5), CAT], {}, ()),  # more than it names does no harm
        (task("single_object", clause("dog")), [Found("dog", 0.3, LEFT)], {}, ("1 dog expected, 0 found",)),
        (task("single_object", clause("dog")), [Found("dog", 0.31, LEFT)], {}, ()),
        (task("two_object", clause("dog"), clause("cat")), [DOG, CAT], {}, ()),
        (task("two_object", clause("dog"), clause("cat")), [DOG], {}, ("1 cat expected, 0 found",)),
        (task("two_object", clause("dog"), clause("cat")), [], {},
         ("1 dog expected, 0 found", "1 cat expected, 0 found")),
        (COUNT_3, dogs(3), {}, ()),
        (COUNT_3, dogs(2), {}, ("3 dog expected, 2 found",)),
        (COUNT_3, dogs(4), {}, ("fewer than 4 dog expected, 4 found",)),
        (COUNT_3, [*dogs(3), *dogs(1, 0.9)], {}, ()),  # not above the threshold of counting
        (COUNT_3, dogs(3, 0.89), {}, ("3 dog expected, 0 found",)),
        (COUNT_3, [*dogs(2), CAT, dogs(1)[0]], {}, ()),  # boxes that are equal count twice: no suppression
        (RED_DOG, [DOG], {DOG: "red"}, ()),
        (RED_DOG, [DOG], {DOG: "blue"}, ("red dog expected, blue found",)),
        (RED_DOG, [CAT], {}, ("1 dog expected, 0 found",)),
        (task("colors", clause("dog", 2, color="red")), dogs(2), dict(zip(dogs(2), ("red", "pink"), strict=True)),
         ("red dog expected, red and pink found",)),
        (BOTH, [DOG, CAT], {DOG: "red", CAT: "blue"}, ()),
        (BOTH, [DOG, CAT], {DOG: "blue", CAT: "red"}, ("red dog expected, blue found", "blue cat expected, red found")),
        (BESIDE, [DOG, CAT], {}, ()),
        (BESIDE, [Found("dog", 0.8, RIGHT), Found("cat", 0.7, LEFT)], {},
         ("cat right of dog expected, left of it found",)),
        (BESIDE, [DOG, Found("cat", 0.7, LEFT)], {}, ("cat right of dog expected, at no side of it found",)),
        (BESIDE, [CAT], {}, ("1 dog expected, 0 found", "cat right of an object expected, which is missing")),
        # Only the most confident object of a class is placed: the dog at the far right does not count.
        (BESIDE, [DOG, Found("dog", 0.5, (900.0, 100.0, 999.0, 200.0)), CAT], {}, ()),
    ],
)  # fmt: skip
def test_an_image_is_judged(one, found, colors, expected):
    assert reasons(one, *found, colors=colors) == expected


def test_exclude_alone_can_fail_and_needs_its_number():
    one = task("counting", clause("dog"), exclude=(clause("cat", 2),))
    cats = [Found("cat", 0.95, LEFT), Found("cat", 0.95, RIGHT)]
    assert reasons(one, *dogs(1), cats[0]) == ()
    assert reasons(one, *dogs(1), *cats) == ("fewer than 2 cat expected, 2 found",)


def test_the_most_confident_objects_decide_and_only_so_many():
    many = [Found("dog", 0.4 + i / 100, (float(i), 0.0, i + 1.0, 1.0)) for i in range(MOST + 4)]
    assert select(many, "colors")["dog"] == many[: -MOST - 1 : -1]
    assert objects_to_color(RED_DOG, select(many, "colors")) == [many[-1]]
    assert objects_to_color(task("colors", clause("dog", 30, color="red")), select(many, "colors")) == []
    assert select(many, "counting") == {} and len(select(many, "counting", 0.5)["dog"]) == 9


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), {"left of", "above"}),  # at 45 degrees both hold
        ((45, 0, 55, 10), {"above"}),
        ((45, 90, 55, 100), {"below"}),
        ((90, 45, 100, 55), {"right of"}),
        ((45, 45, 55, 55), set()),
        # Sides of 10 and 10: centers up to 2 px apart have no direction, and of the rest the margin is taken off.
        ((47, 45, 57, 55), set()),
        ((48.9, 45, 58.9, 55), set()),  # 3.9 px: (3.9 - 2) / 3.9 is below a half
        ((49.1, 45, 59.1, 55), {"right of"}),
        # A large object around the other: 14 px to the right, but the margin is 11.
        ((14, 0, 114, 100), set()),
        # 65 degrees from the horizontal: above alone.
        ((45 + 40 * np.cos(np.radians(65)), 45 - 40 * np.sin(np.radians(65)), 55 + 40 * np.cos(np.radians(65)),
          55 - 40 * np.sin(np.radians(65))), {"above"}),
    ],
)  # fmt: skip
def test_where_a_box_is_from_the_one_in_the_middle(box, expected):
    assert relations(box, (45, 45, 55, 55)) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations((45, 45, 55, 55), box) == {opposite[name] for name in expected}


def test_names_of_both_lists_mean_one_class():
    for name in ("mouse", "computer mouse"):
        assert task("single_object", clause(name)).include[0].name == "computer mouse"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "has no tag and include"),
        ({"tag": "colors", "include": []}, "has no tag and include"),
        ({"tag": "colors", "include": {"class": "dog"}}, "needs a list for include"),
        ({"tag": "colors", "include": ["dog"]}, "needs clauses such as"),
        ({"tag": "colors", "include": [clause("unicorn")]}, 'the class "unicorn", which the detector does not know'),
        ({"tag": "colors", "include": [clause("dog", 0)]}, "needs a count of 1 or more for dog, not 0"),
        ({"tag": "colors", "include": [{"class": "dog"}]}, "needs a count of 1 or more for dog, not None"),
        ({"tag": "colors", "include": [clause("dog", color="teal")]}, 'the color "teal", which is none of red, orange'),
        ({"tag": "position", "include": [clause("dog", position=["left of", 0])]}, "no earlier one"),
        (
            {"tag": "position", "include": [clause("cat"), clause("dog", position=["on", 0])]},
            "needs a position such as",
        ),
        (
            {"tag": "position", "include": [clause("cat"), clause("dog", position=["left of", None])]},
            "needs a position such as",
        ),
        ({"tag": "counting", "include": [clause("dog")], "exclude": [clause("emu")]}, 'the class "emu"'),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        read_task(row, CLASSES)


def test_the_nearest_mean_of_a_colors_texts_is_the_color():
    texts = color_texts("dog")
    assert texts[:3] == ["a photo of a red dog", "a photo of a red-colored dog", "a photo of a red object"]
    assert len(texts) == len(COLORS) * len(COLOR_TEXTS)
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(len(texts), 6)) * rng.uniform(0.1, 10, (len(texts), 1))
    images = rng.normal(size=(20, 6))
    means = []
    for color in range(len(COLORS)):  # as the paper's: normalized, averaged, normalized
        three = [embeddings[3 * color + i] / np.linalg.norm(embeddings[3 * color + i]) for i in range(3)]
        means.append(np.mean(three, axis=0) / np.linalg.norm(np.mean(three, axis=0)))
    expected = [COLORS[int(np.argmax([image @ mean for mean in means]))] for image in images]
    assert nearest_colors(images, embeddings) == expected and len(set(expected)) > 3


def test_every_relation_can_be_asked_for():
    for relation in RELATIONS:
        assert task("position", clause("dog"), clause("cat", position=[relation, 0])).include[1].position[0] == relation
