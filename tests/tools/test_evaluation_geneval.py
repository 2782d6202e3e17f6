"""make evaluate METRICS=geneval: rows find their pictures, what is found is stored, every score says by whom."""

import json

import numpy as np
import pytest
import torch
from comfy.ldm.rt_detr.rtdetr_v4 import COCO_CLASSES
from PIL import Image
from sana_native.evaluation import detector
from sana_native.evaluation.embed import embed_images, embed_texts
from sana_native.evaluation.geneval import color_texts, nearest_colors
from sana_native.tests.support.clips import host_text, host_vision, random_clip
from sana_native.tools import evaluate, evaluation_files, evaluation_geneval, evaluation_networks, evaluation_pictures
from sana_native.tools.evaluate import EvaluationError, read_arguments

DOG, CAT = COCO_CLASSES.index("dog"), COCO_CLASSES.index("cat")
BOX, SECOND = (4.2, 5.7, 20.4, 30.0), (30.0, 5.0, 60.9, 31.0)
ROWS = [
    *({"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"} for _ in range(10)),
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}],
     "prompt": "two dogs"},
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"},
]  # fmt: skip


def found(*objects: tuple) -> np.ndarray:
    return np.array([(place, confidence, *box) for place, confidence, box in objects], np.float32).reshape(-1, 6)


@pytest.fixture
def folder(tmp_path):
    """Two pictures of each row, named as `scale run` names them; their first pixel says what the detector finds."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for i in range(len(ROWS)):
        for k in range(2):
            save(tmp_path / "pictures" / f"{i:09}_{k}.png", i, k)
    (tmp_path / "rt_detr_x.safetensors").write_bytes(b"stands in for its name and size")
    (tmp_path / "clip.safetensors").write_bytes(b"stands in for its name and size")
    return tmp_path


def save(path, first: int, second: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(first).integers(0, 256, (40, 64, 3)).astype(np.uint8)
    values[0, 0, :2] = first, second
    Image.fromarray(values).save(path)


@pytest.fixture(autouse=True)
def networks(monkeypatch) -> list[int]:
    """A detector that reads the first pixel, and a small random CLIP; a 1 for each picture that was searched."""
    counts, state = [], random_clip().state_dict()

    def detect(_model, picture):
        counts.append(1)
        return objects_of(*picture[0, 0, :2])

    monkeypatch.setattr(detector, "detect", detect)
    monkeypatch.setattr(evaluation_files, "load_detector", lambda _file: "a detector")
    monkeypatch.setattr(evaluation_files, "load_clip", lambda _file: host_text(state))
    monkeypatch.setattr(evaluation_files, "load_clip_vision", lambda _file: host_vision(state))
    return counts


def objects_of(row: int, k: int) -> np.ndarray:
    if row < 10:  # right but for the second pictures of rows 0 and 1
        return found((DOG, 0.8, BOX)) if k == 0 or row > 1 else found((CAT, 0.9, BOX))
    if row == 10:
        return found((DOG, 0.95, BOX), (DOG, 0.85 if k else 0.91, SECOND))
    return found((DOG, 0.5, BOX)) if k == 0 else found()


def run(folder, *arguments: str) -> dict:
    given = read_arguments(
        ["--pictures", str(folder / "pictures"), "--metrics", "geneval", "--clip", str(folder / "clip.safetensors"),
         "--detector", str(folder / "rt_detr_x.safetensors"), "--out", str(folder / "out" / "scores.json"), *arguments]
    )  # fmt: skip
    evaluate.evaluate(given)
    return json.loads((folder / "out" / "scores.json").read_text(encoding="utf-8"))["scores"]


def with_prompts(folder) -> tuple[str, str]:
    return "--prompts", str(folder / "prompts.jsonl")


def test_each_kind_of_prompt_has_its_score_and_all_have_their_mean(folder, networks):
    scores = run(folder, *with_prompts(folder))
    assert list(scores) == ["GenEval", "GenEval, single object", "GenEval, counting", "GenEval, colors"]
    single, counting = scores["GenEval, single object"], scores["GenEval, counting"]
    assert (single["value"], single["count"]) == (0.9, 20) and 0.6 < single["low"] < 0.9 < single["high"] < 1
    assert (counting["value"], counting["count"], counting["low"]) == (0.5, 2, None)
    assert counting["note"] == "objects of more than 0.9 confidence"
    assert scores["GenEval, colors"]["note"] == "colors of whole boxes, without masks"
    mean = (0.9 + 0.5 + scores["GenEval, colors"]["value"]) / 3
    assert scores["GenEval"]["value"] == pytest.approx(mean) and scores["GenEval"]["count"] == 24
    note = scores["GenEval"]["note"]
    assert "by RT-DETR v4 (rt_detr_x.safetensors), not Mask2Former: published values cannot be compared" in note
    assert "without two objects, position, color attribution" in note and "have no picture" not in note
    assert sum(networks) == 24
    lines = (folder / "out" / "scores_geneval.jsonl").read_text(encoding="utf-8").splitlines()
    wrong = [row for row in map(json.loads, lines) if not row["right"]]
    assert len(lines) == 24 and wrong[0]["picture"].endswith("000000000_1.png")
    assert wrong[0]["reasons"] == ["1 dog expected, 0 found"] and wrong[0]["objects"] == {"cat": 1}
    table = (folder / "out" / "scores.md").read_text(encoding="utf-8")
    assert "| GenEval, single object | 0.900 | 0." in table


def test_a_color_is_that_of_the_box_by_clip(folder):
    share = run(folder, *with_prompts(folder))["GenEval, colors"]["value"]
    state = random_clip().state_dict()
    crop = np.array(Image.open(folder / "pictures" / "000000011_0.png"))[6:30, 4:20]
    image = embed_images(host_vision(state), torch.from_numpy(crop)[None].float() / 255)
    color = nearest_colors(image, embed_texts(host_text(state), color_texts("dog")))[0]
    assert share == (0.5 if color == "red" else 0.0)
    rows = [json.loads(line) for line in (folder / "out" / "scores_geneval.jsonl").read_text().splitlines()]
    assert rows[-2]["reasons"] == ([] if color == "red" else [f"red dog expected, {color} found"])
    assert rows[-1]["reasons"] == ["1 dog expected, 0 found"]


def test_objects_are_stored_and_detected_again_only_where_pictures_change(folder, networks, monkeypatch):
    for module in (evaluation_pictures, evaluation_networks):
        monkeypatch.setattr(module, "PART", 5)
    first = run(folder, *with_prompts(folder))
    assert sum(networks) == 24
    assert run(folder, *with_prompts(folder)) == first and sum(networks) == 24
    lower = run(folder, *with_prompts(folder), "--counting-threshold", "0.8")
    assert lower["GenEval, counting"]["value"] == 1.0 and "more than 0.8" in lower["GenEval, counting"]["note"]
    assert sum(networks) == 24
    save(folder / "pictures" / "000000000_1.png", 5, 0)
    assert run(folder, *with_prompts(folder))["GenEval, single object"]["value"] == 0.95
    assert sum(networks) == 24 + 5


def test_genevals_own_folders_need_no_prompts(folder, tmp_path):
    for i, row in enumerate(ROWS):
        (tmp_path / "own" / f"{i:05}").mkdir(parents=True)
        (tmp_path / "own" / f"{i:05}" / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
        save(tmp_path / "own" / f"{i:05}" / "grid.png", 5, 0)
        for k in range(2):
            save(tmp_path / "own" / f"{i:05}" / "samples" / f"{k:04}.png", i, k)
    own = run(folder, "--pictures", str(tmp_path / "own"))
    assert own == run(folder, *with_prompts(folder)) and own["GenEval"]["count"] == 24


def test_rows_without_a_picture_are_counted(folder):
    (folder / "pictures" / "000000003_0.png").unlink()
    assert "of 12 prompts" not in run(folder, *with_prompts(folder))["GenEval"]["note"]
    (folder / "pictures" / "000000003_1.png").unlink()
    assert "1 of 12 prompts have no picture" in run(folder, *with_prompts(folder))["GenEval"]["note"]


def test_what_is_missing_is_said_before_anything_is_detected(folder, networks, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match="rt_detr_v4-x-hgnet_fp16.safetensors is not there: geneval needs the"):
        run(folder, *with_prompts(folder), "--detector", "")
    with pytest.raises(FileNotFoundError, match="geneval's colors need CLIP ViT-L/14"):
        run(folder, *with_prompts(folder), "--clip", "")
    assert not networks and not (folder / "out").exists()
    rows = [json.dumps(row) for row in ROWS[:11]]
    (folder / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    for path in (folder / "pictures").glob("000000011_*.png"):
        path.unlink()
    assert run(folder, *with_prompts(folder), "--clip", "")["GenEval"]["count"] == 22  # no color, no CLIP


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a dog"}], "line 1: has no tag and include, as rows of GenEval's evaluation_metadata.jsonl have"),
        ([ROWS[0], {**ROWS[0], "include": [{"class": "orc", "count": 1}]}], 'line 2: has the class "orc"'),
        ([{"tag": "counting", "include": ROWS[0]["include"]}], "line 1: has no prompt; correct it"),
        (ROWS[:3], "No row of .*prompts.jsonl has the id 000000003_0, so that .*000000003_0.png cannot be judged"),
    ],
)
def test_rows_that_cannot_be_judged_are_named(rows, message, folder):
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(EvaluationError, match=message):
        run(folder, *with_prompts(folder))


def test_without_metadata_the_two_ways_are_named(folder, tmp_path):
    with pytest.raises(EvaluationError, match=r"no metadata for PICTURES=.*: give PROMPTS=evaluation_metadata.jsonl"):
        run(folder)
    (tmp_path / "prompts.txt").write_text("a dog\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"prompts.txt is no .jsonl file; geneval needs that of https"):
        run(folder, "--prompts", str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize("given", ["high", "0", "1", "-0.5", "nan"])
def test_a_threshold_that_is_none_is_refused(given):
    with pytest.raises(EvaluationError, match=f"COUNTING_THRESHOLD={given}: a number from 0.05 to 1 was expected"):
        read_arguments(["--pictures", ".", "--metrics", "geneval", f"--counting-threshold={given}"])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((-3.0, -2.0, 80.0, 50.0), (0, 0, 64, 40)),
        ((10.2, 10.2, 10.3, 10.4), (10, 10, 11, 11)),
        ((63.9, 39.8, 70.0, 41.0), (63, 39, 64, 40)),
        ((20.0, 8.0, 4.0, 2.0), (4, 2, 20, 8)),
    ],
)
def test_a_box_is_cut_out_inside_its_picture(box, expected):
    assert evaluation_geneval.pixels_of(box, height=40, width=64) == expected
