"""A folder of pictures, encoded by the tiny SANA's own parts, and short trainings on it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sana_native.tests.support import workbench as bench
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import EncodedSet, encode_set
from sana_native.training.trainer import RunFiles, Settings, train

SIDE = 64


def write_picture(path: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE), caption: str | None = "a cat") -> Path:
    """A smooth picture of a size (width, height), whose latent is not noise, and its caption."""
    small = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, size in enumerate([(64, 64), (64, 64), (128, 32), (64, 64)]):
        write_picture(folder / f"{index}.png", index, size, f"a cat number {index}" + " on a mat" * index)
    return folder


@pytest.fixture(scope="session")
def encoded(pictures, tmp_path_factory) -> EncodedSet:
    """Three squares and a wide one, as the executor encodes them."""
    cache = str(tmp_path_factory.mktemp("cache"))
    found = read_folder(str(pictures), SetOptions(size=SIDE))
    with torch.inference_mode():
        return encode_set(found, bench.vae(), bench.clip(), True, cache, lambda *_: None)


@pytest.fixture
def files(tmp_path) -> RunFiles:
    return RunFiles(str(tmp_path / "run" / "state.safetensors"), str(tmp_path / "loras" / "mine.safetensors"))


SETTINGS = Settings(steps=4, batch_size=2, learning_rate=1e-2, rank=2, alpha=4.0, save_every=0, seed=3)


@pytest.fixture
def run(encoded, files):
    """A training in the executor's inference mode: `run(steps=4, resume=True)` -> LoRA and record.

    Without `resume` a run of its own, for which the state of the one before is removed.
    """

    def start(resume: bool = False, tell=lambda *_: None, model=None, preview=None, **changes):
        if not resume:
            Path(files.state).unlink(missing_ok=True)
        with torch.inference_mode():
            settings = replace(SETTINGS, **changes)
            return train(model or bench.model("sana"), encoded, settings, files, tell, resume, preview, "tiny")

    return start
