"""The networks that scores need, each loaded once and only when what it computes is not stored yet."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .evaluation_files import require_clip, require_detector, require_inception
from .evaluation_pictures import PART, Picked, stored


class Networks:
    def __init__(self, given: argparse.Namespace):
        self.given, self.loaded = given, {}
        self.parts = Path(given.out).with_suffix("").with_name(f"{Path(given.out).stem}_parts")

    def embed(self, kind: str, pictures: Sequence[Path]) -> np.ndarray:
        """Embeddings (N, D) of pictures. kind: clip or inception."""
        return np.concatenate(list(self.embed_parts(kind, [(path,) for path in pictures])))

    def embed_parts(self, kind: str, picked: Sequence[Picked], done: str = "pictures embedded") -> Iterator[np.ndarray]:
        file = require_clip(self.given.clip) if kind == "clip" else require_inception(self.given.inception)
        compute = self.by_clip if kind == "clip" else self.by_inception
        yield from stored(picked, network_name(kind, file), compute, self.parts, done)

    def detect(self, pictures: Sequence[Path]) -> Iterator[np.ndarray]:
        """Objects (N, 6) of each picture, as `evaluation/detector.py` gives them."""
        name = network_name("detector", require_detector(self.given.detector))
        picked = [(path,) for path in pictures]
        parts = stored(picked, name, self.by_detector, self.parts, "pictures searched for objects")
        for start, part in zip(range(0, len(pictures), PART), parts, strict=True):
            for place in range(min(PART, len(pictures) - start)):
                yield part[part[:, 0] == place, 1:]

    def by_clip(self, pictures: list[np.ndarray]) -> np.ndarray:
        import torch
        from sana_native.evaluation.embed import embed_images

        from .evaluation_files import load_clip_vision

        vision = self.loaded.setdefault("vision", None) or load_clip_vision(self.given.clip)
        self.loaded["vision"] = vision
        return np.concatenate([embed_images(vision, torch.from_numpy(one)[None].float() / 255) for one in pictures])

    def by_inception(self, pictures: list[np.ndarray]) -> np.ndarray:
        from sana_native.evaluation.inception import inception_features

        from .evaluation_files import load_inception

        network = self.loaded.setdefault("inception", None) or load_inception(self.given.inception)
        self.loaded["inception"] = network
        return np.concatenate([inception_features(network, [one]) for one in pictures])

    def by_detector(self, pictures: list[np.ndarray]) -> np.ndarray:
        """(N, 7): the place of a picture, and an object in it."""
        from sana_native.evaluation.detector import detect

        from .evaluation_files import load_detector

        model = self.loaded.setdefault("detector", None) or load_detector(self.given.detector)
        self.loaded["detector"] = model
        return np.concatenate([np.insert(detect(model, one), 0, place, axis=1) for place, one in enumerate(pictures)])

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        from sana_native.evaluation.embed import embed_texts

        from .evaluation_files import load_clip

        clip = self.loaded.setdefault("clip", None) or load_clip(self.given.clip)
        self.loaded["clip"] = clip
        return embed_texts(clip, prompts)


def network_name(kind: str, file: Path) -> str:
    return f"{kind} {file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}"
