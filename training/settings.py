"""The settings of a run and where its files lie."""

import os
import re
from dataclasses import dataclass

from .algorithms import LORA as PLAIN_LORA
from .loss import TIME_SAMPLINGS
from .optimizer import ADAMW, CONSTANT

LORA, MODEL = "LoRA", "model"  # what is trained and written
AVERAGED = "_ema"  # ending of the name of a model's average
NEW, LATEST = "new", "latest"  # a run is begun, or the last is gone on with
CONFIG = "run.json"


@dataclass(frozen=True)
class Settings:
    """Of a run; `steps` counts those before a resume too. ema: decay, 0 for none. rank, alpha, layers, algorithm:
    of a LoRA. validation: how many pictures are not trained but measured."""

    steps: int = 500
    batch_size: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    schedule: str = CONSTANT
    warmup: int = 0
    rank: int = 16
    alpha: float = 16.0
    layers: str = "attention qkv"
    time_sampling: str = TIME_SAMPLINGS[0]
    caption_dropout: float = 0.1
    null_mask: str = "bos"
    ema: float = 0.0
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    checkpointing: bool = True
    seed: int = 0
    save_every: int = 250
    sample_every: int = 0
    target: str = LORA
    optimizer: str = ADAMW
    validation: int = 0
    algorithm: str = PLAIN_LORA


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files lie: its state, and the LoRA or model, which is also written with the step in its name."""

    state: str
    result: str

    @property
    def config(self) -> str:
        """What a command needs to go on with the run, see `run_config.py`."""
        return os.path.join(os.path.dirname(self.state), CONFIG)

    def result_at(self, step: int) -> str:
        return with_ending(self.result, f"_step{step:06}")


def with_ending(path: str, ending: str) -> str:
    """A file's name with an ending before that of its format."""
    stem, extension = os.path.splitext(path)
    return f"{stem}{ending}{extension}"


def numbers_of(name: str, folder: str) -> list[int]:
    """Numbers of the runs of a name of which a folder holds something: their own folders, or files of their results."""
    run = re.compile(rf"{re.escape(name)}_(\d{{5,}})((_step\d{{6,}})?({AVERAGED})?\.safetensors)?")
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    return [int(match[1]) for entry in entries if (match := run.fullmatch(entry))]
