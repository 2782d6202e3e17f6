"""A training of SANA Train LoRA or SANA Train Model outside of the graph, on one device or on several.

    python -m tools.host --extra train -- -m accelerate.commands.launch -m tools.train --config RUN_JSON

RUN_JSON is `run.json` in a run's folder, `output/sana_training/NAME_00001`, as the node writes it. The command goes on
with the run, or begins it where it has no state yet; the node goes on with what the command did. One process needs no
launcher: `-m tools.train --config RUN_JSON`; for two, also without a GPU: `--multi_gpu --num_processes 2` after
`launch`. Ctrl-C and SIGTERM save first; a second Ctrl-C ends at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import signal
import sys
import time

NUMBERED = re.compile(r"(.+)_(\d{5,})")  # folder of a run
MOST_STEPS = 1_000_000
PAUSE = 1.0  # seconds between lines of progress, at least
RECENT = 20  # steps whose mean is told


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="RUN_JSON", help="run.json in a run's folder")
    parser.add_argument("--steps", type=step_count, help="steps in all, those before included, instead of the file's")
    parser.add_argument("--new", action="store_true", help="begin a run of its own with the same set and settings")
    return parser.parse_args(arguments)


def step_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_STEPS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps: enter 1 to {MOST_STEPS}.")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    from demo.train.pack import prepare_imports

    prepare_imports()
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = False  # the host's own choice, so that its node and this agree to the bit
    try:
        from accelerate import PartialState
    except ImportError:
        sys.stderr.write("accelerate is not installed: put --extra train before the -- of tools.host.\n")
        return 1
    state = PartialState(cpu=args.cpu)  # before the host asks for its device
    logging.getLogger().setLevel(logging.ERROR)  # the host's own messages on kernels and devices
    logging.getLogger("sana_native").setLevel(logging.WARNING)
    try:
        return train_run(given)
    except (ValueError, OSError) as error:
        if state.is_main_process:
            sys.stderr.write(f"{error}\n")
        return 1
    finally:
        state.destroy_process_group()


def train_run(given: argparse.Namespace) -> int:
    """Trains to the last step, or to the one at which it is stopped. Returns the exit status."""
    from sana_native.models.registry import load_model
    from sana_native.training.processes import this_process
    from sana_native.training.run_config import read_config
    from sana_native.training.trainer import train

    config, processes = read_config(given.config), this_process()
    steps = config.settings.steps if given.steps is None else given.steps
    settings = dataclasses.replace(config.settings, steps=steps)
    files = new_files(config.files) if given.new else config.files
    resume = os.path.isfile(files.state)
    if processes.writes:
        say(f"{'Goes on with' if resume else 'Begins'} {files.state}, processes: {processes.count}")
    model = load_model("transformer", config.model, config.options)
    stopped = stop_on_signals()
    watch = Watch() if processes.writes else lambda *_: None
    _, record = train(model, config.data, settings, files, watch, resume, None, config.base, processes)
    if processes.writes:
        say(f"{record.step} of {settings.steps} steps are done: {files.result}")
    return 130 if stopped and record.step < settings.steps else 0


def new_files(files):
    """Files of a run with the next free number. Raises ValueError for a folder without one."""
    from sana_native.training.settings import numbers_of

    folder, state = os.path.split(files.state)
    runs, name = os.path.split(folder)
    match = NUMBERED.fullmatch(name)
    if match is None:
        raise ValueError(f"{folder} does not end in a number such as _00001, so none follows: copy run.json elsewhere.")
    results = os.path.dirname(files.result)
    run = f"{match[1]}_{max([*numbers_of(match[1], runs), *numbers_of(match[1], results)], default=0) + 1:05}"
    result = os.path.join(results, f"{run}.safetensors")
    return type(files)(os.path.join(runs, run, state), result)


def stop_on_signals() -> list[int]:
    """Lets Ctrl-C and SIGTERM end the training as the node's Cancel does. Returns the list of signals that came."""
    from comfy.model_management import interrupt_current_processing

    came: list[int] = []

    def stop(number: int, _: object) -> None:
        if number == signal.SIGINT and number in came:
            signal.signal(number, signal.default_int_handler)
            raise KeyboardInterrupt
        came.append(number)
        interrupt_current_processing()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return came


class Watch:
    """Tells of the steps, a line a second at most."""

    def __init__(self):
        self.recent, self.told = [], 0.0

    def __call__(self, trainer, report) -> None:
        if not self.told:
            for notice in trainer.record.notices:
                say(notice)
        self.recent = [*self.recent[1 - RECENT :], report.loss]
        if report.step < report.steps and time.monotonic() - self.told < PAUSE:
            return
        self.told = time.monotonic()
        minutes, seconds = divmod(round(report.seconds_left), 60)
        say(
            f"step {report.step} of {report.steps}, loss {report.loss:.4f}, mean "
            f"{sum(self.recent) / len(self.recent):.4f}, learning rate {report.rate:.2g}, {minutes}:{seconds:02} left"
        )


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
