"""Whether the demo model learns a thing from ten pictures by the pack's own trainer: `python -m demo.measure training`.

The pictures are `demo/pictures`, of a traffic light, which no other training of the demo saw. The judge is given its
renderings as those of every other thing.
"""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import numpy as np
import torch
from sana_native.models.lora.loader import load_lora
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import encode_set
from sana_native.training.trainer import RunFiles, Settings, train
from torch import Tensor

from .judge import Judge
from .train.captions import Caption
from .train.data import BACKGROUND_NAMES, PLACE_NAMES, SIDE, SIZE_NAMES, SIZES, Sprites
from .train.new_thing import FOLDER, NAME, SCENES, caption_of, draw_thing

# As docs/train.md says for the demo.
SETTINGS = Settings(
    steps=60, batch_size=5, learning_rate=1e-3, layers="attention + mix-ffn", schedule="cosine", save_every=0
)
LEARNING_RATES = {"LoKr": 1e-2}  # it has fewer values: at 1e-3 it does not learn the thing in 60 steps


def sprites_of_new_thing() -> Sprites:
    """The thing at every size, as `data.load_sprites` gives the others."""
    images = {size: np.asarray(draw_thing(size), dtype=np.float32) / 255 for size in SIZES.values()}
    return {(NAME, size): torch.from_numpy(image).permute(2, 0, 1).contiguous() for size, image in images.items()}


def draw_new_captions(count: int, seed: int) -> list[Caption]:
    """Captions of the thing in combinations of background, size and place that its pictures do not have."""
    rng, known, chosen = random.Random(seed), set(SCENES), []
    everything = [(b, size, place) for b in BACKGROUND_NAMES for size in SIZE_NAMES for place in PLACE_NAMES]
    new = [one for one in everything if (one[0], one[1], "" if one[2] == "center" else one[2]) not in known]
    for background, size, place in rng.sample(new, count):
        text = caption_of(background, size, "" if place == "center" else place)
        chosen.append(Caption(text, background, ((NAME, size, place),)))
    return chosen


def learn(painter, folder: Path, settings: Settings = SETTINGS) -> str:
    """Trains a LoRA on the pictures. Returns its file."""
    found = read_folder(str(FOLDER), SetOptions(size=SIDE, bins=False))
    encoded = encode_set(found, painter.vae, painter.clip, True, str(folder / "cache"), lambda *_: None)
    files = RunFiles(str(folder / "run" / "state.safetensors"), str(folder / "lora.safetensors"))
    train(painter.patcher, encoded, settings, files, lambda *_: None, base="demo")
    return files.result


def apply(painter, lora: str) -> None:
    """Gives a painter the LoRA."""
    painter.patcher = load_lora(painter.patcher, lora, 1.0)
    comfy.model_management.load_models_gpu([painter.patcher], force_full_load=True)


def measure_learning(bench, new: list, others: list, table, algorithm: str = SETTINGS.algorithm, **options) -> Tensor:
    """Rows of a table before and after the training, for prompts of the new thing and of others."""
    rate = LEARNING_RATES.get(algorithm, SETTINGS.learning_rate)
    settings = replace(SETTINGS, algorithm=algorithm, learning_rate=rate)
    bench.judge = Judge(sprites_of_new_thing())
    with tempfile.TemporaryDirectory() as folder:
        for model in ("before", "after"):
            if model == "after":
                apply(bench.painter, learn(bench.painter, Path(folder), settings))
            pictures = bench.paint(new, **options)
            table.add(f"{len(new)} of the new thing", model, **bench.rate(new, pictures))
            table.add(f"{len(others)} of other things", model, **bench.score(others, **options))
    return pictures
