"""The measure of a fine-tune of the demo's whole model: what it trains on and what it holds out, and a run in small."""

import dataclasses
import random
from types import SimpleNamespace

import pytest


def test_the_set_has_each_picture_once_and_no_held_out_combination(demo):
    data, scenes = demo.train.data, demo.measure_finetune.draw_scenes(400, random.Random(1))
    assert len({(scene.background, frozenset(scene.items)) for scene in scenes}) == 400
    assert not any(data.is_held_out(i.thing, i.place, scene.background) for scene in scenes for i in scene.items)
    assert sum(len(scene.items) == 2 for scene in scenes) == 300


def test_captions_are_trained_wordings_and_the_same_when_the_folder_is_gone_on_with(demo, tmp_path):
    def write() -> list[str]:
        rng = random.Random(2)
        demo.measure_finetune.write_pictures(tmp_path, demo.measure_finetune.draw_scenes(40, rng), rng)
        return [file.read_text(encoding="utf-8").strip() for file in sorted(tmp_path.glob("*.txt"))]

    first = write()
    assert len(first) == 40 and not any(demo.train.captions.is_held_out(text) for text in first)
    stopped_at = sorted(tmp_path.glob("*.png"))[20]
    content = stopped_at.read_bytes()
    stopped_at.unlink()
    assert write() == first and stopped_at.read_bytes() == content


def test_the_change_is_told_with_the_prompts_that_leave_the_places_open(demo):
    def case(place: str | None):
        return demo.measure.Case(demo.train.captions.Caption("", None, (("bee", None, place), ("key", None, place))), 0)

    pairs = [(False, True), (True, False), (True, True)]
    told = demo.measure_finetune.describe_change([case(None), case("left"), case(None)], pairs)
    assert told == (
        "Of 3 pictures 1 became right and 1 wrong; of 2 whose prompt tells no place 1 were right, and 2 are."
    )
    assert "of 0 whose" in demo.measure_finetune.describe_change([case("left")], pairs[:1])


@pytest.mark.heavy
def test_a_few_steps_change_the_painter_to_the_written_average(demo, tmp_path, monkeypatch):
    """A few pictures, steps and prompts of `python -m demo.measure finetune`."""
    tuning = demo.measure_finetune
    few = dataclasses.replace(tuning.SETTINGS, steps=4, batch_size=4, warmup=0, learning_rate=1e-3, save_every=0)
    monkeypatch.setattr(tuning, "PICTURES", 8)
    monkeypatch.setattr(tuning, "HELD_OUT_PICTURES", 2)
    bench, rows = demo.measure.Bench(demo.measure.CHECKPOINT), []
    before, cases = bench.painter.network, {2: demo.measure.draw_cases(2, 2)}
    table = SimpleNamespace(add=lambda things, model, loss, **_: rows.append((things, model, float(loss))))
    pairs = tuning.measure_tuning(bench, cases, table, tmp_path, few, steps=4, cfg=4.5)[2]
    after = bench.painter.network
    assert [row[:2] for row in rows] == [(2, "before"), (2, "after")] and rows[0][2] != rows[1][2]
    assert len(pairs) == 2 and (tmp_path / "model_ema.safetensors").is_file()
    assert after.config == before.config
    moved = [(a - b).abs().max().item() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert 0 < max(moved) < 0.02  # of four steps of at most 1e-3 in each weight
