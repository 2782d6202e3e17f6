"""Scores of a folder of pictures, each with its 95 % interval and N: CLIP score, CMMD, KID, FID, PSNR, SSIM, GenEval.

    make evaluate PICTURES=folder [METRICS=clip,cmmd,fid] [PROMPTS=file] [REFERENCE=folder] [CLIP=file] [INCEPTION=file]
        [DETECTOR=file] [COUNTING_THRESHOLD=0.9] [OUT=output/evaluation.json]

clip needs the prompts: a prompt file whose ids are the pictures' names, a .txt beside each picture, or the text that
SANA Save Named writes. cmmd, kid and fid need real pictures in REFERENCE, for fid also a .npz with mu and sigma. psnr
and ssim compare with pictures of the same names in REFERENCE. geneval needs GenEval's evaluation_metadata.jsonl as
PROMPTS, or its folders in PICTURES, and a detector. Embeddings and detected objects are stored beside the result in
parts, and read again when the same pictures are evaluated again. docs/evaluation.md says what each number means.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .command_line import run_command, say
from .evaluation_files import require_clip, require_inception
from .evaluation_geneval import geneval_scores, read_counting_threshold, read_plan, require_networks
from .evaluation_networks import Networks
from .evaluation_pictures import EvaluationError, by_stem, find_pictures, read_picture

# Metric -> the network that it needs; geneval says itself which.
METRICS = {
    "clip": "clip", "cmmd": "clip", "kid": "inception", "fid": "inception", "psnr": None, "ssim": None, "geneval": None
}  # fmt: skip
NEED_REFERENCE = ("cmmd", "kid", "fid", "psnr", "ssim")
PATHS = ("pictures", "prompts", "reference", "clip", "inception", "detector", "out")  # among the arguments
# The image's own prompt as SANA Save Named writes it: a text of a PNG; in jpg and webp lines of an EXIF tag.
DESCRIPTION, EXIF_DESCRIPTION = "Description", 0x010E
EXIF_LINES = re.compile(rf"{DESCRIPTION}: (.*?)(?:\nSeed: \d+)?", re.DOTALL)


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, words in (
        ("pictures", "the folder of pictures, and the folders in it"),
        ("metrics", f"some of {', '.join(METRICS)}; clip if left out"),
        ("prompts", "a prompt file whose ids are the pictures' names"),
        ("reference", "the folder to compare with, for fid also a .npz with mu and sigma"),
        ("clip", "CLIP ViT-L/14 in one file"),
        ("inception", "FID's Inception v3"),
        ("detector", "RT-DETR v4, for geneval"),
        ("counting-threshold", "above which geneval counts an object in prompts of numbers; 0.9 if left out"),
        ("out", "where to write the JSON; a .md comes beside it"),
    ):
        parser.add_argument(f"--{name}", default="", help=words)
    given = parser.parse_args(arguments)
    metrics = given.metrics or "clip"
    given.metrics = [name.strip() for name in metrics.split(",") if name.strip()]
    given.out = given.out or "output/evaluation.json"
    given.counting_threshold = read_counting_threshold(given.counting_threshold)
    for name in PATHS:  # make gives ~ as it was typed
        setattr(given, name, os.path.expanduser(getattr(given, name)))
    unknown = [name for name in given.metrics if name not in METRICS]
    if unknown:
        raise EvaluationError(f"METRICS={','.join(given.metrics)}: {unknown[0]} is none of {', '.join(METRICS)}.")
    if not given.metrics:
        raise EvaluationError(f"METRICS={metrics} names none; give some of {', '.join(METRICS)}, joined by commas.")
    if not given.out.endswith(".json") or os.path.isdir(given.out):
        raise EvaluationError(f"OUT={given.out} is no name of a JSON file; give one that ends in .json.")
    if not given.pictures:
        raise EvaluationError("There is nothing to evaluate; give PICTURES= a folder of pictures.")
    without = [name for name in given.metrics if name in NEED_REFERENCE and not given.reference]
    if without:
        raise EvaluationError(
            f"{without[0]} compares with pictures, and there are none; give REFERENCE= a folder of them, such as "
            "MJHQ-30K's."
        )
    return given


def prompts_of(pictures: Sequence[Path], prompts: str) -> list[str]:
    """The prompt of each picture.  Raises: EvaluationError that names the first picture without one."""
    known = dict(read_prompts(prompts)) if prompts else {}
    found = []
    for path in pictures:
        text = by_stem(known, path) if prompts else prompt_beside(path)
        if not (text or "").strip():
            cure = (
                f"no row of {prompts} has the id {path.stem}"
                if prompts
                else f"give PROMPTS=, put {path.stem}.txt beside it, or save with SANA Save Named"
            )
            raise EvaluationError(f"The prompt of {path} is not known: {cure}.")
        found.append(text)
    return found


def prompt_beside(path: Path) -> str | None:
    """What a .txt beside a picture says, or the picture itself."""
    beside = path.with_suffix(".txt")
    if beside.is_file():
        try:
            return beside.read_text(encoding="utf-8-sig").strip()
        except UnicodeDecodeError:
            raise EvaluationError(f"{beside} is not UTF-8; save it as UTF-8.") from None
    from sana_native.training.pictures import UNREADABLE

    try:
        with Image.open(path) as file:
            text = getattr(file, "text", {}).get(DESCRIPTION)
            return exif_prompt(file) if text is None else text
    except UNREADABLE as error:
        raise EvaluationError(f"{path} cannot be read as a picture ({error}); mend it, or take it away.") from None


def exif_prompt(file: Image.Image) -> str | None:
    """The prompt in a picture's EXIF; None for one of other programs, such as a camera's."""
    try:
        text = str(file.getexif().get(EXIF_DESCRIPTION, ""))
    except SyntaxError:  # Pillow's for an EXIF that is none
        return None
    with contextlib.suppress(UnicodeError):  # Pillow reads UTF-8 as Latin-1
        text = text.encode("latin-1").decode("utf-8")
    lines = EXIF_LINES.fullmatch(text)
    return lines and lines[1]


def read_prompts(prompts: str) -> Iterator[tuple[str, str]]:
    """Name and prompt of each row of a prompt file.  Raises: EvaluationError for a row that cannot be read."""
    from sana_native.scale.rows import BadRow, read_rows

    try:
        for row in read_rows(prompts):
            if isinstance(row, BadRow):
                raise EvaluationError(f"PROMPTS={prompts}: {row}; correct it.")
            yield row.name, row.prompt
    except OSError as error:
        raise EvaluationError(f"PROMPTS={prompts} cannot be read ({error.strerror}); give a prompt file.") from None


def measure(metric: str, given: argparse.Namespace, networks: Networks):
    """The score of a metric."""
    from sana_native.evaluation import metrics
    from sana_native.evaluation.report import Score

    pictures = find_pictures(given.pictures, "PICTURES")
    if metric == "clip":
        texts = prompts_of(pictures, given.prompts)
        return Score("CLIP score", metrics.clip_score(networks.embed("clip", pictures), networks.texts(texts)))
    if metric in ("psnr", "ssim"):
        return compared(metric, pictures, find_pictures(given.reference, "REFERENCE"))
    if metric == "fid" and given.reference.endswith(".npz"):
        return Score("FID", metrics.fid(networks.embed("inception", pictures), read_moments(given.reference)), 2)
    others = find_pictures(given.reference, "REFERENCE")
    few = min(len(pictures), len(others)) < metrics.LEAST_FOR_KID
    note = f"fewer than {metrics.LEAST_FOR_KID} pictures: only large differences show" if few else ""
    kind = METRICS[metric]
    found = getattr(metrics, metric)(networks.embed(kind, pictures), networks.embed(kind, others))
    return Score(metric.upper(), found, {"cmmd": 3, "kid": 5}.get(metric, 2), note)


def by_name(pictures: Sequence[Path], what: str) -> dict[str, Path]:
    """Pictures by name.  Raises: EvaluationError for two of one name, whose pair is not sure."""
    found = {}
    for path in pictures:
        if path.stem in found:
            raise EvaluationError(
                f"{what} has {found[path.stem]} and {path}, where one picture of the name {path.stem} was expected; "
                "rename one, take one away, or evaluate their folders one by one."
            )
        found[path.stem] = path
    return found


def compared(metric: str, pictures: Sequence[Path], others: Sequence[Path]):
    """PSNR or SSIM of pictures and those of the same names.  Raises: EvaluationError for a name without one pair."""
    import torch
    from sana_native.evaluation import pictures as pair
    from sana_native.evaluation.intervals import mean_of
    from sana_native.evaluation.report import Score

    by_name(pictures, "PICTURES")
    known, values, equal = by_name(others, "REFERENCE"), [], 0
    for path in pictures:
        if path.stem not in known:
            raise EvaluationError(f"{path.name} has no picture of its name in REFERENCE to be compared with.")
        a, b = (torch.from_numpy(read_picture(one)).float() / 255 for one in (path, known[path.stem]))
        try:
            pair.require_equal_sizes(a, b)
            if metric == "psnr" and torch.equal(a, b):
                equal += 1
            else:
                values.append(getattr(pair, metric)(a, b))
        except ValueError as error:
            raise EvaluationError(f"{path} and {known[path.stem]}: {error}") from None
    if not values:
        raise EvaluationError(f"All {equal} pictures equal theirs in REFERENCE, bit for bit: there is no PSNR.")
    note = f"without {equal} pictures that are equal" if equal else ""
    return Score({"psnr": "PSNR, dB", "ssim": "SSIM"}[metric], mean_of(values), 2 if metric == "psnr" else 4, note)


def read_moments(path: str):
    """Mean and covariance as pytorch-fid and clean-fid save them.  Raises: EvaluationError."""
    from sana_native.evaluation.inception import FEATURES
    from sana_native.evaluation.metrics import Moments

    try:
        with np.load(path) as file:
            found = Moments(file["mu"], file["sigma"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EvaluationError(f"REFERENCE={path} is no file with mu and sigma ({error}).") from None
    if found.mean.shape != (FEATURES,) or found.covariance.shape != (FEATURES, FEATURES):
        raise EvaluationError(
            f"REFERENCE={path} has mu of shape {found.mean.shape} and sigma of {found.covariance.shape}, where "
            f"{FEATURES} features were expected, as pytorch-fid and clean-fid save them; give such a file."
        )
    return found


def require_inputs(given: argparse.Namespace) -> None:
    """What is missing is said before the first network runs, whichever metric it is of.

    Raises: EvaluationError, ValueError or FileNotFoundError, each with the cure.
    """
    from sana_native.evaluation.metrics import require_enough_for_fid

    pictures = find_pictures(given.pictures, "PICTURES")  # the user's own files before those to download
    if "clip" in given.metrics:
        prompts_of(pictures, given.prompts)
    if "fid" in given.metrics:
        require_enough_for_fid("pictures", len(pictures))
        if given.reference.endswith(".npz"):
            read_moments(given.reference)
        else:
            require_enough_for_fid("reference pictures", len(find_pictures(given.reference, "REFERENCE")))
    if any(name in NEED_REFERENCE for name in given.metrics if name != "fid"):
        find_pictures(given.reference, "REFERENCE")
    for kind in {METRICS[name] for name in given.metrics}:
        if kind:
            require_clip(given.clip) if kind == "clip" else require_inception(given.inception)


def evaluate(given: argparse.Namespace) -> None:
    from sana_native.evaluation.report import as_json, table

    require_inputs(given)
    plan = read_plan(given.pictures, given.prompts) if "geneval" in given.metrics else None
    if plan:
        require_networks(plan, given)
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    networks, scores = Networks(given), []
    for name in given.metrics:
        scores += geneval_scores(plan, given, networks) if name == "geneval" else [measure(name, given, networks)]
    about = {name: getattr(given, name) for name in PATHS if name not in ("prompts", "out")}
    out.write_text(as_json(scores, **about), encoding="utf-8")
    out.with_suffix(".md").write_text(table(scores), encoding="utf-8")
    say(f"{table(scores)}\n{out}")


def main(arguments: list[str] | None = None) -> int:
    try:
        given = read_arguments(arguments)
        from demo.train.pack import prepare_imports

        prepare_imports()
        evaluate(given)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
