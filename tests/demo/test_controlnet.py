"""Training and measuring the demo's scribble ControlNet, as far as it can be seen in seconds."""

import random

import pytest
import torch
from sana_native.models.controlnet.config import NVLABS
from sana_native.models.registry import load_model


@pytest.fixture(scope="module")
def base(demo):
    return demo.train.controlnet.load_base(demo.train.controlnet.CHECKPOINT)


@pytest.fixture(scope="module")
def pairs(demo):
    return demo.train.controlnet.make_pairs(demo.train.controlnet.CHECKPOINT, 16)


def test_pictures_have_no_combination_that_is_held_out(demo):
    train, data = demo.train.controlnet, demo.train.data
    sprites = data.load_sprites((train.SPRITE,))
    rng, seen = random.Random(0), []
    for _ in range(50):
        picture, caption = train.draw_picture(rng, sprites)
        seen.append(demo.judge.silhouette(picture).float().mean().item())
        assert picture.shape == (3, 256, 256) and any(name in caption for name in data.BACKGROUND_NAMES)
        assert not any(word in caption.split() for word in ("left", "right", "top", "bottom", "small", "big"))
    assert min(seen) < 0.05 and max(seen) > 0.2  # things of every size


@pytest.mark.parametrize(("corner", "place"), [((48, 48), "center"), ((-16, -16), "top left"), ((112, 50), "right")])
def test_a_moved_thing_counts_at_the_nearest_place(demo, corner, place):
    assert demo.train.controlnet.nearest_place(*corner) == place


def test_a_scribble_is_of_lines_around_the_thing(demo):
    scene = demo.train.data.Scene("blue", (demo.train.data.Item("rocket", "big", "center"),))
    picture = demo.train.data.render(scene, demo.train.data.load_sprites())
    lines = demo.train.controlnet.draw_scribble(picture)
    assert set(lines.unique().tolist()) == {0.0, 1.0} and 0.02 < lines.mean() < 0.3
    thick = demo.train.controlnet.draw_scribble(picture, 20)
    assert thick.mean() > lines.mean() and (thick >= lines).all()


def test_pairs_are_pictures_scribbles_and_texts(pairs):
    assert pairs["latents"].shape == pairs["hints"].shape == (16, 32, 8, 8)
    assert pairs["context"].shape[:2] == pairs["mask"].shape
    assert not torch.equal(pairs["latents"], pairs["hints"])


def test_a_new_controlnet_changes_nothing_and_learns_by_its_output_layers(demo, base, pairs):
    train = demo.train.controlnet
    control, rows = train.build(base), torch.arange(8)
    given = train.compute_loss(base, control, pairs, rows, 1)
    with torch.no_grad():
        assert given.item() == train.compute_loss(base, None, pairs, rows, 1).item()
    given.backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in control.controlnet_blocks)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_an_export_is_small_and_loads_in_nvidias_wiring(demo, base, tmp_path):
    train = demo.train.controlnet
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(train.build(base).state_dict(), folder / "ema.pt")
    for name, checkpoint, kind in (("a", train.CHECKPOINT, "sana-1.5"), ("b", train.SPRINT_CHECKPOINT, "sprint")):
        assert train.export(folder, checkpoint, tmp_path / name) < 8e6
        config = load_model("controlnet", str(tmp_path / name)).control_model.config
        assert (config.wiring, config.own_embeddings, config.blocks.depth) == (NVLABS, False, train.BLOCKS)
        assert config.trained_for == (kind,) and config.blocks.qk_norm


def test_overlap_is_that_of_what_is_drawn(demo):
    sprites = demo.train.data.load_sprites()
    draw = demo.train.data.render

    def scene(size: str, place: str, background: str = "blue"):
        return draw(demo.train.data.Scene(background, (demo.train.data.Item("pizza", size, place),)), sprites)

    overlap = demo.judge.overlap
    assert overlap(scene("big", "center"), scene("big", "center", "pink")) > 0.9  # the background does not count
    assert 0.1 < overlap(scene("big", "center"), scene("small", "center")) < 0.4
    assert overlap(scene("small", "left"), scene("small", "right")) == 0
    plain = demo.train.data.fill((255, 255, 255))
    assert overlap(plain, plain) == 1


def test_cases_of_the_measure_are_held_out_and_tell_no_place(demo):
    cases, pictures = demo.measure.draw_control_cases(12)
    judge = demo.judge.Judge()
    for case, picture in zip(cases, pictures, strict=True):
        ((thing, size, place),) = case.caption.items
        assert (size, place) == (None, None) and thing in case.caption.text
        (item,) = judge.look(picture).items
        assert item.thing == thing
        assert demo.train.data.is_held_out(thing, item.place, case.caption.background)


@pytest.fixture
def stand_ins(demo, base, monkeypatch, tmp_path):
    """Untrained ControlNets that change something, in place of the trained ones, and single steps."""
    train, measure = demo.train.controlnet, demo.measure
    torch.manual_seed(0)
    control = train.build(base)
    for parameter in control.controlnet_blocks.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(control.state_dict(), tmp_path / "ema.pt")
    for name, checkpoint in (("", train.CHECKPOINT), ("SPRINT_", train.SPRINT_CHECKPOINT)):
        folder = tmp_path / (name or "SANA")
        train.export(tmp_path, checkpoint, folder)
        monkeypatch.setattr(measure, f"{name}CONTROLNET_CHECKPOINT", folder)
    monkeypatch.setattr(measure, "CONTROL_STEPS", {"SANA": 2, "SANA-Sprint": 1})


@torch.inference_mode()
def measure_control(demo, monkeypatch, capsys, *options: str) -> list[list[str]]:
    """The cells of the printed table's rows."""
    monkeypatch.setattr("sys.argv", ["measure", "control", "--count", "2", *options])
    demo.measure.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SANA")]
    return [line.strip("| ").split(" | ") for line in lines]


@pytest.mark.usefixtures("stand_ins")
def test_the_measure_compares_both_models_with_and_without_control(demo, monkeypatch, capsys, tmp_path):
    rows = measure_control(demo, monkeypatch, capsys, "--plot", str(tmp_path / "seen.png"))
    assert [row[:3] for row in rows] == [
        [model, steps, strength]
        for model, steps, middle in (("SANA", "2", "0.7"), ("SANA-Sprint", "1", "0.5"))
        for strength in ("0", middle, "1")
    ]
    shares = [[float(cell.rstrip("%")) for cell in row[3:]] for row in rows]
    assert all(0 <= value <= 100 for row in shares for value in row) and {len(row) for row in shares} == {4}
    overlaps = [tuple(row[2:]) for row in shares]
    assert len(set(overlaps[:3])) == len(set(overlaps[3:])) == 3, "the ControlNet acts, and its strength"
    assert len(list(tmp_path.glob("seen_*.png"))) == 6


def test_the_measure_says_what_is_not_trained(demo, monkeypatch, capsys, tmp_path):
    for name in ("CONTROLNET_CHECKPOINT", "SPRINT_CONTROLNET_CHECKPOINT"):
        monkeypatch.setattr(demo.measure, name, tmp_path / "missing")
    monkeypatch.setattr("sys.argv", ["measure", "control", "--count", "1"])
    demo.measure.main()
    assert capsys.readouterr().out.count("missing is not there: train it with demo.train.controlnet.") == 2
