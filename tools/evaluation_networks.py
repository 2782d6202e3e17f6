"""The networks that scores need, each loaded once and only when what it computes is not stored yet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from . import evaluation_files
from .evaluation_pictures import PART, Picked, stored


class Networks:
    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.parts = Path(given.out).with_suffix("").with_name(f"{Path(given.out).stem}_parts")

    def embed(self, kind: str, pictures: Sequence[Path]) -> np.ndarray:
        """Embeddings (N, D) of pictures. kind: clip or inception."""
        return np.concatenate(list(self.embed_parts(kind, [(path,) for path in pictures])))

    def embed_parts(self, kind: str, picked: Sequence[Picked], done: str = "pictures embedded") -> Iterator[np.ndarray]:
        file = (
            evaluation_files.require_clip(self.given.clip)
            if kind == "clip"
            else evaluation_files.require_inception(self.given.inception)
        )
        compute = self.by_clip if kind == "clip" else self.by_inception
        yield from stored(picked, network_name(kind, file), compute, self.parts, done)

    def detect(self, pictures: Sequence[Path]) -> Iterator[np.ndarray]:
        """Objects (N, 6) of each picture, as `evaluation/detector.py` gives them."""
        name = network_name("detector", evaluation_files.require_detector(self.given.detector))
        picked = [(path,) for path in pictures]
        parts = stored(picked, name, self.by_detector, self.parts, "pictures searched for objects")
        for start, part in zip(range(0, len(pictures), PART), parts, strict=True):
            for place in range(min(PART, len(pictures) - start)):
                yield part[part[:, 0] == place, 1:]

    def by_clip(self, pictures: list[np.ndarray]) -> np.ndarray:
        import torch
        from sana_native.evaluation.embed import embed_images

        return np.concatenate(
            [embed_images(self.vision, torch.from_numpy(one)[None].float() / 255) for one in pictures]
        )

    def by_inception(self, pictures: list[np.ndarray]) -> np.ndarray:
        from sana_native.evaluation.inception import inception_features

        return np.concatenate([inception_features(self.inception, [one]) for one in pictures])

    def by_detector(self, pictures: list[np.ndarray]) -> np.ndarray:
        """(N, 7): the place of a picture, and an object in it."""
        from sana_native.evaluation.detector import detect

        return np.concatenate(
            [np.insert(detect(self.detector, one), 0, place, axis=1) for place, one in enumerate(pictures)]
        )

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        from sana_native.evaluation.embed import embed_texts

        return embed_texts(self.clip, prompts)

    @cached_property
    def vision(self):
        return evaluation_files.load_clip_vision(self.given.clip)

    @cached_property
    def clip(self):
        return evaluation_files.load_clip(self.given.clip)

    @cached_property
    def inception(self):
        return evaluation_files.load_inception(self.given.inception)

    @cached_property
    def detector(self):
        return evaluation_files.load_detector(self.given.detector)


def network_name(kind: str, file: Path) -> str:
    return f"{kind} {file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}"
