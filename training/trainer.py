"""The training of a LoRA, or of all weights: steps, saves, and a resume that goes on to the bit.

What is random at a step follows from the seed and the step alone, so a state needs no generator's.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from .adapters import AdapterSet
from .buckets import BatchPlan
from .encode import EncodedSet, hold_out
from .families import family_of
from .network import (
    copy_for_training,
    require_latents,
    require_states,
    require_trainable,
    require_wholly_trainable,
    training_mode,
)
from .optimizer import (
    ADAMW_8BIT,
    ROUNDED,
    STATE_BYTES,
    EMA,
    Average,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
)
from .prediction import Prediction
from .preview import Preview, generate
from .processes import ALONE, Processes
from .record import Record, Report
from .resumption import compare, origin_of
from .run_config import config_of, write_config
from .run_lock import locked_run
from .seeds import generator_of
from .set_loss import SetLoss
from .settings import AVERAGED, LORA, MODEL, RunFiles, Settings, with_ending
from .state import RECORD, load_state, no_state, require_writable, save_state, save_whole
from .weights import WeightSet, require_memory

logger = logging.getLogger(__name__)

STEP, ROUNDING = 4, 6  # places of a step's random numbers and of its roundings among those of a run
FIXED_SAMPLES = 4
MEMORY_CURE = (
    f"choose {ADAMW_8BIT}, ema 0, or for a bfloat16 model {ROUNDED} where that is enough, or train a LoRA with SANA "
    "Train LoRA"
)
MOST_SKIPPED = 20  # steps in a row without a finite gradient
TRAINED = "adapter."


class Trainer:
    """One run on a model's own copy, of a LoRA or of all weights. Use inside `training_mode`."""

    def __init__(
        self,
        patcher: Any,
        data: EncodedSet,
        settings: Settings,
        files: RunFiles,
        base: str = "",
        processes: Processes = ALONE,
    ):
        if not data.samples:
            raise ValueError("The training set is empty: put pictures into its folder.")
        for name in ("learning_rate", "alpha"):
            if not getattr(settings, name):
                raise ValueError(f"Nothing is learned with {name} 0: enter {getattr(Settings, name):g}, as usual.")
        processes.require_pictures(settings.batch_size, settings.accumulation)
        self.data, self.settings, self.files, self.base = data, settings, files, base
        self.processes = processes
        null = data.null()
        self.samples, self.held_out = hold_out(data.samples, settings.validation)
        if settings.target == MODEL:
            require_wholly_trainable(patcher)
            require_room(patcher, settings)
        require_trainable(patcher)
        require_states(patcher.model, null.states)
        require_latents(patcher.model, self.samples[0].latent(), self.samples[0].size)
        self.patcher = copy_for_training(patcher)  # last, as it reads the whole file again
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        self.predict = Prediction(self.patcher, family_of(patcher.model), settings.checkpointing)
        self.family, self.losses = self.predict.family, SetLoss(self.predict, null, settings, self.samples[0])
        self.origin = origin_of(settings, self.predict.network, data)
        self.trained = what_is_trained(self.patcher, self.predict, settings)
        self.parameters = self.trained.parameters()
        self.optimizer = make_optimizer(
            settings.optimizer, self.parameters.values(), settings.learning_rate, settings.weight_decay, self.roundings
        )
        self.average = Average(self.parameters, settings.ema) if settings.ema else None
        self.plan = BatchPlan([sample.size for sample in self.samples], settings.batch_size, settings.seed)
        self.record, self.skipped, self.checked = Record(), 0, False
        self.whole = True  # whether weights, average and record are of the same step
        self.saved: int | None = None  # the step of the state on the disk

    def roundings(self) -> torch.Generator:
        """Of the random numbers by which a step's weights are rounded, the same in every process."""
        generator = generator_of(self.settings.seed, ROUNDING, self.record.step)
        return torch.Generator(self.predict.device).manual_seed(generator.initial_seed())

    def resume(self) -> None:
        """Goes on from the run's state. Raises ValueError for that of another run."""
        tensors, stored = load_state(self.files.state)
        try:
            self.record = Record.of(stored)
        except ValueError as error:
            raise no_state(self.files.state) from error
        self.trained.load(part_of(tensors, TRAINED))
        self.record.notices = compare(stored, self.origin, bool(self.patcher.patches))
        load_optimizer(self.optimizer, self.parameters, tensors)
        if self.average is not None:  # a run that had none so far begins it with the weights it has learned
            self.average.load(part_of(tensors, EMA) or self.parameters)
        self.saved = self.record.step

    def run(self, tell: Callable[[Report], None], preview: Preview | None = None) -> bool:
        """Trains to the last step and saves; when the user interrupts it, saves what there is and returns False.

        tell: called after every step. Raises ValueError where the loss is not finite in the end; nothing is saved then.
        After any other fault what was learned is saved before it is raised.
        """
        finished = True
        with self.trained.attached():
            try:
                self.run_steps(tell, preview)
            except comfy.model_management.InterruptProcessingException:
                finished = False
                self.reload()
            except Exception:
                self.rescue()
                raise
            if not self.losses.is_finite():
                raise ValueError(f"The loss is not finite after step {self.record.step}: {self.way_back()}.")
        self.save()
        self.log("The training is finished" if finished else "The training was stopped")
        return finished

    def rescue(self) -> None:
        """Saves the steps since the last save, as far as the fault that ended the run leaves them whole.

        Not in one of several processes, as the others may wait for it in the middle of a sum.
        """
        new = self.record.step > (self.saved or 0) and self.whole and self.skipped <= MOST_SKIPPED
        if self.processes.count > 1 or not new:
            return
        try:
            self.reload()
            if self.losses.is_finite():
                self.save()
        except (RuntimeError, OSError, ValueError, MemoryError) as error:  # the first fault is what the user must read
            logger.warning("SANA: the steps since the last save could not be saved: %s", error)

    def run_steps(self, tell: Callable[[Report], None], preview: Preview | None) -> None:
        settings, begun, first = self.settings, time.monotonic(), self.record.step
        if not self.record.fixed:
            self.measure_fixed()
        if preview and first == 0:
            row = self.record.fixed[0][1]
            tell(Report(0, settings.steps, sum(row) / len(row), 0.0, math.nan, self.sample(preview)))
        while self.record.step < settings.steps:
            self.stop_if_asked()
            rate, loss = self.train_step()
            step = self.record.step
            due = settings.sample_every and step % settings.sample_every == 0
            saved = settings.save_every and step % settings.save_every == 0 and step < settings.steps
            if due or saved:
                self.measure_fixed()
            if saved and self.losses.is_finite():
                self.save()
                self.write(self.files.result_at(step))
            sample = self.sample(preview) if preview and (due or step == settings.steps) else None
            left = (settings.steps - step) * (time.monotonic() - begun) / (step - first)
            tell(Report(step, settings.steps, loss, rate, left, sample))
        if self.record.fixed[-1][0] != self.record.step:
            self.measure_fixed()

    def stop_if_asked(self) -> None:
        """Raises the host's exception, in every process, when the user has stopped any of them; takes that back."""
        asked = comfy.model_management.processing_interrupted()
        if self.processes.any(asked, self.predict.device):
            comfy.model_management.interrupt_current_processing(False)
            raise comfy.model_management.InterruptProcessingException

    def train_step(self) -> tuple[float, float]:
        """One step of the optimizer. Returns its rate and its loss.

        Raises ValueError when no gradient was finite for many steps.
        """
        settings, step = self.settings, self.record.step
        batches = [self.plan[step * settings.accumulation + part] for part in range(settings.accumulation)]
        sizes = [len(indices) for indices in batches]
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        shares = [share for share in self.processes.shares(sizes) if share.places]
        for share in shares:
            generator = generator_of(settings.seed, STEP, step, share.part)
            samples = [self.samples[index] for index in batches[share.part]]
            loss = self.losses.of_batch(samples, generator, share.places).sum() / sum(sizes)
            loss.backward()
            total += float(loss.detach())
        if not self.checked:
            self.require_gradients(computed=bool(shares))
            self.checked = True
        total = self.gather(total)
        rate = learning_rate(step, settings.learning_rate, settings.schedule, settings.warmup, settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm or math.inf)
        self.whole = False
        if math.isfinite(float(norm)):
            self.optimizer.step()
            self.trained.publish()
            self.skipped = 0
        else:
            self.count_skipped()
        self.record.step += 1
        self.record.losses.append(total)
        if self.average is not None:
            self.average.update(self.parameters, self.record.step)
        self.whole = True
        return rate, total

    def require_gradients(self, computed: bool) -> None:
        """Raises ValueError, in every process, where the gradient of a step reached not all that is trained.

        computed: whether this process had a share of the step.
        """
        missing = [name for name, value in self.parameters.items() if computed and value.grad is None]
        if self.processes.any(bool(missing), self.predict.device):
            raise ValueError(
                f"The gradient did not reach {len(missing)} of {len(self.parameters)} tensors that are trained "
                f"({missing[0] if missing else 'in another process'}): connect the model straight from SANA Model "
                "Loader, and start ComfyUI without --use-sage-attention and --enable-dynamic-vram."
            )

    def gather(self, loss: float) -> float:
        """Adds up the gradients of all processes, and their losses, whose sum it returns."""
        if self.processes.count == 1:
            return loss
        total = torch.tensor(loss, device=self.predict.device)
        for value in self.parameters.values():
            value.grad = torch.zeros_like(value) if value.grad is None else value.grad
        self.processes.add_up([total, *(value.grad for value in self.parameters.values())])
        return float(total)

    def count_skipped(self) -> None:
        self.skipped += 1
        if self.skipped > MOST_SKIPPED:
            raise ValueError(f"No gradient was finite for {self.skipped} steps: {self.way_back()}.")

    def way_back(self) -> str:
        """The cure of a run that has diverged."""
        if self.saved is None:
            return "lower learning_rate, and begin a new run, as no state of this one was saved"
        return f"lower learning_rate, and go on from step {self.saved}, the last one saved, in {self.files.state}"

    def measure_fixed(self) -> None:
        """Records the loss of the first pictures, and of those held out, at fixed noises: comparable from step to
        step."""
        self.record.fixed.append((self.record.step, self.losses.at_fixed_noises(self.samples[:FIXED_SAMPLES])))
        if self.held_out:
            self.record.held_out.append((self.record.step, self.losses.at_fixed_noises(self.held_out)))

    def sample(self, preview: Preview) -> Tensor:
        """Raw latents of the preview's prompts. Decoding may take the model's place on the device: see `reload`."""
        return generate(self.predict, preview, self.settings.seed)

    def reload(self) -> None:
        """Brings the model back onto the device, where a decode may have taken its place."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)

    def results(self) -> dict[str, dict[str, Tensor]]:
        """What was trained so far in the layout of files, by the ending of its name.

        Of a LoRA the averaged weights where there are; of a model both.
        """
        if self.settings.target == LORA or self.average is None:
            return {"": self.trained.file_tensors(self.average.values if self.average else self.parameters)}
        both = {"": self.parameters, AVERAGED: self.average.values}
        return {ending: self.trained.file_tensors(values) for ending, values in both.items()}

    def metadata(self) -> dict[str, str]:
        """Header of a result's file: of a LoRA PEFT's configuration, and of either what the training was."""
        options = self.data.options
        told = {"base_model": self.base, "shift": self.predict.shift, "step": self.record.step}
        told |= {"instruction": self.data.instruction, "trigger_word": options.trigger_word, "size": options.size}
        told |= {
            name: value for name, value in asdict(self.settings).items() if name not in ("save_every", "sample_every")
        }
        told["time_sampling"] = self.losses.time_sampling
        architecture = self.family.architecture if self.settings.target == LORA else self.family.name
        own = {"modelspec.architecture": architecture, RECORD: json.dumps(told)}
        return self.trained.file_metadata() | own

    def save(self) -> None:
        """The state, then the LoRA or model, each whole or not at all; by one process of a run."""
        self.saved = self.record.step
        if not self.processes.writes:
            return
        tensors = {TRAINED + name: value for name, value in self.parameters.items()}
        tensors |= optimizer_tensors(self.optimizer, self.parameters)
        if self.average is not None:
            tensors |= {EMA + name: value for name, value in self.average.values.items()}
        save_state(tensors, asdict(self.record) | self.origin, self.files.state)
        self.write(self.files.result)
        self.log(f"{self.files.result} and its state are saved")

    def log(self, event: str) -> None:
        if self.processes.writes:
            logger.info("SANA: %s, step %d of %d.", event, self.record.step, self.settings.steps)

    def write(self, path: str) -> None:
        if self.processes.writes:
            for ending, tensors in self.results().items():
                save_whole(tensors, with_ending(path, ending), self.metadata())


def what_is_trained(patcher: Any, predict: Prediction, settings: Settings) -> AdapterSet | WeightSet:
    """Of a model's copy on its device, by the settings' target."""
    if settings.target == MODEL:
        # Its LoRAs are in the weights now, and must not be taken out of them again.
        patcher.patches.clear()
        patcher.backup.clear()
        return WeightSet(predict.network, settings.optimizer != ROUNDED)
    trained = AdapterSet(
        predict.network, settings.layers, settings.rank, settings.alpha, settings.seed, predict.family,
        settings.algorithm,
    )  # fmt: skip
    for adapter in trained.adapters.values():
        adapter.to(predict.device)
    return trained


def require_room(patcher: Any, settings: Settings) -> None:
    """Raises ValueError where all weights cannot be trained on the model's device."""
    weights = list(patcher.model.diffusion_model.parameters())
    require_memory(
        sum(one.numel() for one in weights),
        max(one.element_size() for one in weights),
        settings.optimizer != ROUNDED,
        STATE_BYTES.get(settings.optimizer, 0),
        bool(settings.ema),
        comfy.model_management.get_total_memory(patcher.load_device),
        MEMORY_CURE,
    )


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def train(
    patcher: Any,
    data: EncodedSet,
    settings: Settings,
    files: RunFiles,
    tell: Callable[["Trainer", Report], None],
    resume: bool = False,
    preview: Preview | None = None,
    base: str = "",
    processes: Processes = ALONE,
) -> tuple[dict[str, Tensor], Record]:
    """Trains a LoRA or a model, saves it, and returns the record of its run and a LoRA in the layout of files.

    Not a model, which is read from its file.

    resume: go on from the state in `files`. tell: called after every step with the trainer and the report.
    Raises ValueError for a model, a set or settings that cannot be trained with, for a new run in the files of another,
    and OSError for files that cannot be written.
    """
    with training_mode():
        trainer = Trainer(patcher, data, settings, files, base, processes)
        with locked_run(os.path.dirname(files.state)) if processes.writes else nullcontext():
            if resume:
                trainer.resume()
            elif processes.writes and os.path.exists(files.state):
                raise ValueError(
                    f"{files.state} is of a run that was begun already: go on with that, or choose another name."
                )
            if processes.writes:
                for path in (files.state, with_ending(files.result_at(settings.steps), AVERAGED), files.result):
                    require_writable(path)
                write_config(config_of(patcher, data, settings, files, base))
            trainer.log(f"The training of {files.result} {'goes on' if resume else 'begins'}")
            for notice in trainer.record.notices:
                logger.warning("SANA: %s", notice)
            trainer.run(lambda report: tell(trainer, report), preview)
        lora = trainer.results()[""] if settings.target == LORA else {}
        return {name: value.detach().cpu() for name, value in lora.items()}, trainer.record
