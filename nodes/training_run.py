"""What runs a training behind its node: the run's files, what the node shows meanwhile, the host's next Run."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image

from ..training.captions import Caption
from ..training.plot import as_image, as_tensor, draw_losses, means
from ..training.preview import Preview
from ..training.record import FIXED_LEVELS, Record
from ..training.settings import LATEST, LORA, MODEL, RunFiles, Settings, numbers_of
from .host_server import running_server
from .warnings import show

FOLDER = "sana_training"  # below the output folder: the cache, and each run's state
RESULTS = {LORA: "loras", MODEL: "diffusion_models"}  # the host's folders, which its loaders list
STATE = "state.safetensors"
RUN_NAME = re.compile(r"[\w][\w .-]{0,99}")
NAME_BYTES = 200  # of the 255 that file systems allow, less the number, the step and the endings
PREVIEW_SIDE = 768
SECONDS_BETWEEN_CURVES = 2.0  # drawing and sending one takes a twentieth of a second
LOST = Counter()  # how often a training found a file of the cache missing
STOPPED = Counter()  # how often a run of a name, None for any, was stopped; a name that is linked is None to the host


@dataclass(frozen=True)
class SamplePrompts:
    """Conditionings to generate while a model is trained, and the VAE that decodes them; each None where it is open."""

    positive: Any
    negative: Any
    vae: Any

    def preview(self, encoded_set) -> Preview | None:
        """At the size of the first picture; None without prompts or VAE."""
        if not self.positive or self.vae is None:
            return None
        size, width = encoded_set.samples[0].latent().shape[-2:], encoded_set.null().states.shape[-1]
        other = captions_of(self.negative, width)[0] if self.negative else None
        return Preview(captions_of(self.positive, width), other, tuple(size))


def node_output(result, record, samples: torch.Tensor | None, path: str) -> io.NodeOutput:
    """The outputs of a training node, whose curve and pictures stay on it."""
    plot = as_tensor(draw(record))
    shown = ui.PreviewImage(plot).as_dict()
    if samples is not None:
        shown["images"] = ui.PreviewImage(samples).as_dict()["images"] + shown["images"]
    samples = ExecutionBlocker(None) if samples is None else samples
    return io.NodeOutput(result, {"loss": record.losses}, samples, plot, path, ui=shown)


def mark_of_runs(name: str, resume: str, target: str) -> list:
    """Changes when a run of the name was stopped, so that the host does not give its result again for a press of Run,
    and when another run became the last."""
    return [STOPPED[name], run_files(name, resume, target).state if resume == LATEST else ""]


def draw(record) -> Image.Image:
    return draw_losses(record.losses, record.fixed, [f"at noise {level:g}" for level in FIXED_LEVELS], record.held_out)


class Watch:
    """Shows a training on its node: progress, text, the curve so far, and the sample pictures, which it decodes."""

    def __init__(self, vae):
        self.vae, self.bar, self.first, self.last, self.recent, self.drawn = vae, None, None, None, [], 0.0

    def __call__(self, trainer, report) -> None:
        if report.sample is not None:
            with torch.inference_mode():  # as the host's executor runs it
                self.last = self.vae.decode(report.sample)
            self.first = self.last if self.first is None else self.first
            trainer.reload()
        self.bar = self.bar or comfy.utils.ProgressBar(report.steps)
        self.bar.update_absolute(report.step, report.steps, self.picture(trainer, report))
        if not report.step:
            return
        self.recent = [*self.recent[-19:], report.loss]
        mean = sum(self.recent) / len(self.recent)
        minutes, seconds = divmod(round(report.seconds_left), 60)
        write_on_node(
            f"{held_out(trainer.record)}step {report.step} of {report.steps}, {minutes}:{seconds:02} left\n"
            f"loss {report.loss:.4f}, mean {mean:.4f}\nrate {report.rate:.2g}"
        )

    def picture(self, trainer, report) -> tuple[str, Image.Image, int] | None:
        """The last samples over the curve, as the host's progress takes a picture; None too soon after another."""
        now = time.monotonic()
        if report.sample is None and report.step < report.steps and now - self.drawn < SECONDS_BETWEEN_CURVES:
            return None
        self.drawn = now
        curve = draw(trainer.record)
        return "JPEG", curve if self.last is None else stacked(as_image(self.last), curve), PREVIEW_SIDE

    def pictures(self) -> torch.Tensor | None:
        """The samples before the first step, or of the first after a resume, and the last; None without any."""
        if self.last is None or self.first is self.last:
            return self.last
        return torch.cat([self.first, self.last])


def held_out(record) -> str:
    """The loss of the pictures that are not trained, as a line of text; empty without any.

    The first line, because a small node shows two of them.
    """
    if not record.held_out:
        return ""
    (_, first), (_, last) = means([record.held_out[0], record.held_out[-1]])
    return f"held out {last:.4f}, first {first:.4f}\n"


def stacked(samples: Image.Image, curve: Image.Image) -> Image.Image:
    """Samples over a curve of the same width."""
    height = round(samples.height * curve.width / samples.width)
    whole = Image.new("RGB", (curve.width, height + curve.height))
    whole.paste(samples.resize((curve.width, height), Image.Resampling.LANCZOS), (0, 0))
    whole.paste(curve, (0, height))
    return whole


@contextmanager
def noted(name: str, settings: Settings, watch: Watch) -> Iterator[list]:
    """Notes for the host's next Run that the run within was stopped, or that a file of the cache was missing.

    Says in the end where the run had no step left, or went on otherwise than before. Within it the record of the run is
    put into the list.
    """
    records: list[Record] = []
    try:
        yield records
    except FileNotFoundError:  # a file of the cache
        LOST[FOLDER] += 1
        raise
    new = []
    if records[0].step < settings.steps:
        STOPPED.update([name, None])
    elif watch.bar is None:
        new.append(f"The run has {records[0].step} steps already: enter more than that in steps to go on with it.")
    if new or records[0].notices:
        show([*records[0].notices, *new], new)  # the training has logged its own


def write_on_node(text: str) -> None:
    """Live text on the node that runs, where somebody watches."""
    server, context = running_server(), get_executing_context()
    if server is not None and context is not None and server.client_id is not None:
        server.send_progress_text(text, context.node_id, server.client_id)


def output_folder() -> str:
    return os.path.join(folder_paths.get_output_directory(), FOLDER)


def run_files(name: str, resume: str, target: str = LORA) -> RunFiles:
    """Files of the next run of a name, or of its last. Raises ValueError for a name that no file can have, and where
    there is no run to go on with, or the last that has a result has no state."""
    if not RUN_NAME.fullmatch(name):
        raise ValueError(f"name {name!r} cannot be a file's: use up to 100 letters, digits, spaces, dots, - and _.")
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"name {name} takes {len(name.encode())} bytes, and a file's {NAME_BYTES}: use a shorter one.")
    runs, results = output_folder(), result_folder(target)
    begun, written = numbers_of(name, runs), numbers_of(name, results)
    states = sorted(one for one in begun if os.path.isfile(os.path.join(runs, f"{name}_{one:05}", STATE)))
    if resume == LATEST and not states:
        raise ValueError(f"There is no run of the name {name} to go on with: choose resume new, or its name.")
    # A run that failed before its first save leaves a folder, and nothing to go on with.
    if resume == LATEST and max(written, default=0) > states[-1]:
        raise ValueError(
            f"The last run of the name, {name}_{max(written):05}, has no state in {runs} to go on with: choose resume "
            f"new, or, to go on with {name}_{states[-1]:05}, move away what is left of it there and in {results}."
        )
    run = f"{name}_{states[-1] if resume == LATEST else max([*begun, *written], default=0) + 1:05}"
    return RunFiles(os.path.join(runs, run, STATE), os.path.join(results, f"{run}.safetensors"))


def result_folder(target: str) -> str:
    """The folder of the host's that has the name of the kind of file, or its first."""
    paths = folder_paths.get_folder_paths(RESULTS[target])
    return next((path for path in paths if os.path.basename(path) == RESULTS[target]), paths[0])


def captions_of(conditioning, width: int) -> list[Caption]:
    """Captions of a conditioning; every position counts where its encoder gives no mask.

    width: of the training set's states. Raises ValueError for a conditioning of another text encoder.
    """
    found = next((states.shape[-1] for states, _ in conditioning if states.shape[-1] != width), None)
    if found is not None:
        raise ValueError(
            f"The sample prompt was encoded to states of {found} where the captions have {width}: encode both with the "
            "same clip."
        )
    masks = [
        extra["attention_mask"][0] if "attention_mask" in extra else torch.ones(states.shape[1])
        for states, extra in conditioning
    ]
    return [Caption(states[0].float(), mask) for (states, _), mask in zip(conditioning, masks, strict=True)]
