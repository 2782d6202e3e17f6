"""The measure of a thing that the demo learns from ten pictures: what it asks for, and that the judge knows it."""

from types import SimpleNamespace

import pytest


def test_the_prompts_are_new_combinations(demo):
    known = {path.read_text(encoding="utf-8").strip() for path in demo.measure_training.FOLDER.glob("*.txt")}
    captions = demo.measure_training.draw_new_captions(50, 1)
    assert len({one.text for one in captions}) == 50 and len(known) == 10
    assert not known & {one.text for one in captions}
    assert all("traffic light" in one.text and one.items[0][0] == "traffic light" for one in captions)


def test_the_judge_knows_the_new_thing_and_takes_no_other_for_it(demo):
    sprites = demo.measure_training.sprites_of_new_thing()
    judge, more = demo.judge.Judge(sprites), demo.train.data.load_sprites() | sprites
    for caption in demo.measure_training.draw_new_captions(4, 2):
        thing, size, place = caption.items[0]
        scene = demo.train.data.Scene(caption.background, (demo.train.data.Item(thing, size, place),))
        assert demo.judge.marks(caption, judge.look(demo.train.data.render(scene, more)))["all"]
    for case in demo.measure.draw_cases(4, 1):
        (thing, size, place), *_ = case.caption.items
        scene = demo.train.data.Scene(
            case.caption.background, (demo.train.data.Item(thing, size or "big", place or "center"),)
        )
        assert demo.judge.marks(case.caption, judge.look(demo.train.data.render(scene, more)))["thing"]


@pytest.mark.heavy
def test_ten_pictures_teach_a_thing_and_cost_no_other(demo):
    """A few of the fifty prompts that `python -m demo.measure training --count 50` draws."""
    count = 6
    bench = demo.measure.Bench(demo.measure.CHECKPOINT)
    new = [
        demo.measure.Case(caption, 8000 + number)
        for number, caption in enumerate(demo.measure_training.draw_new_captions(count, 3))
    ]
    rows = []
    table = SimpleNamespace(add=lambda *_, **marks: rows.append(marks["thing"]))
    demo.measure_training.measure_learning(bench, new, demo.measure.draw_cases(count, 1), table, steps=10, cfg=4.5)
    before, others_before, after, others_after = rows
    assert before < 0.2 and after >= 0.8
    assert others_after > others_before - 1.5 / count  # one picture
