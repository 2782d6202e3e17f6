"""GenEval of a folder of pictures: rows of its metadata, detected objects, and a score for each kind of prompt."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .evaluation_files import require_clip, require_detector
from .evaluation_networks import Networks
from .evaluation_pictures import EvaluationError, by_stem, find_pictures, read_picture

if TYPE_CHECKING:
    from sana_native.evaluation.geneval import Found, Objects, Task, Verdict
    from sana_native.evaluation.report import Score

# Of GenEval's own folders: 00000/metadata.jsonl, 00000/samples/0000.png.
METADATA, SAMPLES = "metadata.jsonl", "samples"
SOURCE = "https://github.com/djghosh13/geneval/blob/main/prompts/evaluation_metadata.jsonl"


@dataclass(frozen=True)
class Plan:
    """Pictures with the row that each is of. rows: all rows, those without a picture included."""

    pictures: tuple[Path, ...]
    names: tuple[str, ...]
    tasks: tuple[Task, ...]
    rows: int


def read_counting_threshold(given: str) -> float | None:
    """None for GenEval's own.  Raises: EvaluationError for no number between 0 and 1."""
    if not given:
        return None
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0.05 <= value < 1:  # the detector's objects are stored from 0.05 on
        raise EvaluationError(f"COUNTING_THRESHOLD={given}: a number from 0.05 to 1 was expected, such as 0.9.")
    return value


# Rows and pictures


def read_plan(folder: str, prompts: str) -> Plan:
    """The row of every picture.  Raises: EvaluationError that names the row or the picture that cannot be judged."""
    pictures = find_pictures(folder, "PICTURES")
    if not prompts:
        return plan_of_folders(folder, pictures)
    rows, found = {name: (name, task) for name, task in read_metadata(prompts)}, []
    for path in pictures:
        row = by_stem(rows, path)
        if row is None:
            raise EvaluationError(f"No row of {prompts} has the id {path.stem}, so that {path} cannot be judged.")
        found.append(row)
    return Plan(tuple(pictures), *zip(*found, strict=True), len(rows))


def plan_of_folders(folder: str, pictures: Sequence[Path]) -> Plan:
    """Of GenEval's own folders; pictures beside them, such as grid.png, are left out."""
    places = [path for path in pictures if path.parent.name == SAMPLES and metadata_of(path).is_file()]
    if not places:
        raise EvaluationError(
            f"geneval has no metadata for PICTURES={folder}: give PROMPTS={SOURCE.rpartition('/')[2]}, from {SOURCE}, "
            f"or folders such as 00000/{METADATA} and 00000/{SAMPLES}/0000.png."
        )
    known = {}
    for path in places:
        file = metadata_of(path)
        if file not in known:
            tasks = [task for _, task in read_metadata(str(file))]
            if len(tasks) != 1:
                raise EvaluationError(f"{file} has {len(tasks)} rows, where one was expected: that of its {SAMPLES}.")
            known[file] = tasks[0]
    tasks = tuple(known[metadata_of(path)] for path in places)
    return Plan(tuple(places), tuple(str(path.parent.parent) for path in places), tasks, len(known))


def metadata_of(path: Path) -> Path:
    return path.parent.parent / METADATA


def read_metadata(prompts: str) -> Iterator[tuple[str, Task]]:
    """Name and task of each row, named as `scale run` names a row's pictures.

    Raises: EvaluationError for a row that cannot be judged.
    """
    from comfy.ldm.rt_detr.rtdetr_v4 import COCO_CLASSES
    from sana_native.evaluation.geneval import read_task
    from sana_native.scale.formats import READERS
    from sana_native.scale.rows import BadRow, read_rows

    if Path(prompts).suffix.lower() != ".jsonl":
        raise EvaluationError(f"PROMPTS={prompts} is no .jsonl file; geneval needs that of {SOURCE}.")
    try:
        with open(prompts, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for row, (_, fields) in zip(read_rows(prompts), READERS[".jsonl"](file, prompts), strict=True):
                if isinstance(row, BadRow):
                    raise EvaluationError(f"PROMPTS={prompts}: {row}; correct it.")
                try:
                    yield row.name, read_task(fields, COCO_CLASSES)
                except ValueError as error:
                    raise EvaluationError(f"PROMPTS={prompts}: {row.place}: {error}; correct it.") from None
    except OSError as error:
        raise EvaluationError(f"PROMPTS={prompts} cannot be read ({error.strerror}); give a prompt file.") from None


def require_networks(plan: Plan, given: argparse.Namespace) -> None:
    """Raises: FileNotFoundError for a network that the rows need."""
    require_detector(given.detector)
    if any(task.needs_color() for task in plan.tasks):
        require_clip(given.clip)


# Scores


def geneval_scores(plan: Plan, given: argparse.Namespace, networks: Networks) -> list[Score]:
    """Share of right pictures in all and for each kind of prompt; which are wrong and why is written beside `out`."""
    from sana_native.evaluation.geneval import COUNTING_THRESHOLD, judge, select

    counting = COUNTING_THRESHOLD if given.counting_threshold is None else given.counting_threshold
    objects = [
        select(found_objects(rows), task.tag, counting)
        for rows, task in zip(networks.detect(plan.pictures), plan.tasks, strict=True)
    ]
    colors = colors_of(plan, objects, networks)
    verdicts = [judge(*one) for one in zip(plan.tasks, objects, colors, strict=True)]
    out = Path(given.out)
    write_verdicts(out.with_name(f"{out.stem}_geneval.jsonl"), plan, objects, verdicts)
    return scores_of(plan, verdicts, require_detector(given.detector).name, counting)


def found_objects(rows: np.ndarray) -> list[Found]:
    """Of the detector's rows (N, 6)."""
    from comfy.ldm.rt_detr.rtdetr_v4 import COCO_CLASSES
    from sana_native.evaluation.geneval import Found, geneval_name

    return [
        Found(geneval_name(COCO_CLASSES[int(place)]), confidence, tuple(box))
        for place, confidence, *box in rows.tolist()
    ]


def colors_of(plan: Plan, objects: Sequence[Objects], networks: Networks) -> list[dict[Found, str]]:
    """For each picture the colors of the objects whose colors decide."""
    from sana_native.evaluation.geneval import color_texts, nearest_colors, objects_to_color

    asked = [objects_to_color(task, found) for task, found in zip(plan.tasks, objects, strict=True)]
    picked = []
    for path, some in zip(plan.pictures, asked, strict=True):
        height, width = read_picture(path).shape[:2] if some else (0, 0)
        picked += [(path, *pixels_of(one.box, height, width)) for one in some]
    colors: list[dict[Found, str]] = [{} for _ in plan.pictures]
    if not picked:
        return colors
    images = np.concatenate(list(networks.embed_parts("clip", picked, "objects embedded for their colors")))
    places = [(place, one) for place, some in enumerate(asked) for one in some]
    for name in dict.fromkeys(one.name for _, one in places):
        rows = [row for row, (_, one) in enumerate(places) if one.name == name]
        for row, color in zip(rows, nearest_colors(images[rows], networks.texts(color_texts(name))), strict=True):
            place, one = places[row]
            colors[place][one] = color
    return colors


def pixels_of(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, one or more, inside a picture of height and width (px)."""
    left, right = sorted(min(max(round(value), 0), width) for value in (box[0], box[2]))
    top, bottom = sorted(min(max(round(value), 0), height) for value in (box[1], box[3]))
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def scores_of(plan: Plan, verdicts: Sequence[Verdict], detector: str, counting: float) -> list[Score]:
    """The mean of all kinds of prompts, and each kind."""
    from sana_native.evaluation.geneval import COUNTING, TASKS
    from sana_native.evaluation.intervals import mean_of_shares, share_of
    from sana_native.evaluation.report import Score

    notes = {COUNTING: f"objects of more than {counting:g} confidence"}
    tags = dict.fromkeys([*TASKS, *(task.tag for task in plan.tasks)])
    shares = {}
    for tag in tags:
        rows = [row for row, task in enumerate(plan.tasks) if task.tag == tag]
        if rows:
            shares[tag] = share_of([verdicts[row].right for row in rows], [plan.names[row] for row in rows])
            if any(plan.tasks[row].needs_color() for row in rows):
                notes[tag] = "colors of whole boxes, without masks"
    note = f"by RT-DETR v4 ({detector}), not Mask2Former: published values cannot be compared"
    lacking = [name for tag, name in TASKS.items() if tag not in shares]
    note += f"; without {', '.join(lacking)}" if lacking else ""
    without = plan.rows - len(set(plan.names))
    note += f"; {without} of {plan.rows} prompts have no picture" if without else ""
    kinds = [Score(f"GenEval, {TASKS.get(tag, tag)}", one, 3, notes.get(tag, "")) for tag, one in shares.items()]
    return [Score("GenEval", mean_of_shares(list(shares.values())), 3, note), *kinds]


def write_verdicts(path: Path, plan: Plan, objects: Sequence[Objects], verdicts: Sequence[Verdict]) -> None:
    """A line of JSON for each picture: whether it is right, why not, and how many objects of each class it has."""
    with open(path, "w", encoding="utf-8") as file:
        for picture, task, found, verdict in zip(plan.pictures, plan.tasks, objects, verdicts, strict=True):
            row = {
                "picture": str(picture),
                "tag": task.tag,
                "prompt": task.prompt,
                "right": verdict.right,
                "reasons": verdict.reasons,
                "objects": {name: len(some) for name, some in found.items()},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
