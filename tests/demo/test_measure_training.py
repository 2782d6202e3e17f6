"""The measure of a thing that the demo learns from ten pictures: what it asks for, and that the judge knows it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo():
    """The demo's modules; the package is found from the root, which must not stay on sys.path."""
    sys.path.append(str(ROOT))
    try:
        import demo.judge
        import demo.measure
        import demo.measure_training
        import demo.train.data
    finally:
        sys.path.remove(str(ROOT))
    modules = demo.judge, demo.measure, demo.measure_training, demo.train.data
    return SimpleNamespace(judge=modules[0], measure=modules[1], training=modules[2], data=modules[3])


def test_the_prompts_are_new_combinations(demo):
    known = {path.read_text(encoding="utf-8").strip() for path in demo.training.FOLDER.glob("*.txt")}
    captions = demo.training.draw_new_captions(50, 1)
    assert len({one.text for one in captions}) == 50 and len(known) == 10
    assert not known & {one.text for one in captions}
    assert all("traffic light" in one.text and one.items[0][0] == "traffic light" for one in captions)


def test_the_judge_knows_the_new_thing_and_takes_no_other_for_it(demo):
    sprites = demo.training.sprites_of_new_thing()
    judge, more = demo.judge.Judge(sprites), demo.data.load_sprites() | sprites
    for caption in demo.training.draw_new_captions(4, 2):
        thing, size, place = caption.items[0]
        scene = demo.data.Scene(caption.background, (demo.data.Item(thing, size, place),))
        assert demo.judge.marks(caption, judge.look(demo.data.render(scene, more)))["all"]
    for case in demo.measure.draw_cases(4, 1):
        (thing, size, place), *_ = case.caption.items
        scene = demo.data.Scene(case.caption.background, (demo.data.Item(thing, size or "big", place or "center"),))
        assert demo.judge.marks(case.caption, judge.look(demo.data.render(scene, more)))["thing"]


@pytest.mark.heavy
def test_ten_pictures_teach_a_thing_and_cost_no_other(demo):
    """A few of the fifty prompts that `python -m demo.measure training --count 50` draws."""
    count = 6
    bench = demo.measure.Bench(demo.measure.CHECKPOINT)
    new = [
        demo.measure.Case(caption, 8000 + number)
        for number, caption in enumerate(demo.training.draw_new_captions(count, 3))
    ]
    rows = []
    table = SimpleNamespace(add=lambda *_, **marks: rows.append(marks["thing"]))
    demo.training.measure_learning(bench, new, demo.measure.draw_cases(count, 1), table, steps=10, cfg=4.5)
    before, others_before, after, others_after = rows
    assert before < 0.2 and after >= 0.8
    assert others_after > others_before - 1.5 / count  # one picture
