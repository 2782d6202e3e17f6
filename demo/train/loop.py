"""What every training run here shares: a resumable state on disk, EMA weights, the learning rate, a log."""

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STALLED = 30  # s; a step that took longer was compiled or the process stood still, and does not count
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16)


def to_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def save_atomically(state: Any, path: Path) -> None:
    """Writes beside the target and renames, so that a run killed at any moment leaves a whole file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def cosine_rate(step: int, progress: float, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, under a half cosine from the peak to a hundredth as progress goes 0 to 1."""
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def gradients_in_parallel(parameters: list[nn.Parameter], losses: list[Callable[[], tuple[Tensor, str]]]) -> str:
    """Sets `.grad` to the mean gradient of losses, each computed in a thread of its own; returns the first note.

    On a shared machine this keeps two cores busy where OpenMP's barriers would wait for a core that does other work:
    measured with four busy neighbours, 1 to 2 s a step instead of 8 to 20 s. Set OMP_NUM_THREADS=1 beside it.
    """

    def work(loss: Callable[[], tuple[Tensor, str]]) -> tuple[tuple[Tensor, ...], str]:
        value, note = loss()
        return torch.autograd.grad(value, parameters), note

    with ThreadPoolExecutor(len(losses)) as pool:
        results = list(pool.map(work, losses))
    for index, parameter in enumerate(parameters):
        parameter.grad = sum(grads[index] for grads, _ in results) / len(results)
    return results[0][1]


def adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


class Run:
    """One training run in a folder: `state.pt` to resume from, `ema.pt` to use, `log.txt` to read."""

    def __init__(self, folder: Path, model: nn.Module, minutes: float, peak: float, decay: float, optimizer=None):
        self.folder, self.model, self.minutes, self.peak, self.decay = folder, model.to(DEVICE), minutes, peak, decay
        folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = optimizer or adamw(model, peak)
        self.step, self.seconds = 0, 0.0
        self.resume()

    def resume(self) -> None:
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True, map_location=DEVICE)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.ema = state["step"], state["seconds"], state["ema"]
            self.log(f"resumed at step {self.step}")
        else:
            self.ema = {name: p.detach().clone() for name, p in self.model.state_dict().items()}

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema}
        save_atomically(state | {"step": self.step, "seconds": self.seconds}, self.folder / "state.pt")
        save_atomically(self.ema, self.folder / "ema.pt")

    def log(self, line: str) -> None:
        with open(self.folder / "log.txt", "a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def progress(self) -> float:
        """Share of the given minutes that are over."""
        return self.seconds / (60 * self.minutes)

    def update(self) -> None:
        """One optimiser step on the gradients that are set, clipped to a norm of 1, and one of the EMA."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(self.step, self.progress(), self.peak, warmup=100)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            state = self.model.state_dict()
            torch._foreach_lerp_(list(self.ema.values()), [state[name] for name in self.ema], 1 - decay)
        self.step += 1

    @contextmanager
    def with_ema(self) -> Iterator[None]:
        """The model with its EMA weights, as long as it lasts."""
        backup = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        yield
        self.model.load_state_dict(backup)

    def train(self, losses: Callable[[int], list[Callable]], evaluate: Callable[[], str], every: float) -> None:
        """Trains for the given minutes of running time, over all resumptions.

        `losses(step)` gives the step's loss functions, one a thread. The state is written once a minute and at the end;
        the EMA weights are evaluated every `every` minutes.
        """
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        written = evaluated = started = time.time()
        while self.seconds < 60 * self.minutes:
            note = gradients_in_parallel(parameters, losses(self.step))
            self.update()
            now = time.time()
            taken, started = now - started, now
            if taken < STALLED:
                self.seconds += taken
            if self.step % 20 == 0:
                self.log(f"step {self.step} {note} {self.seconds:.0f} s of {60 * self.minutes:.0f} s")
            done = self.seconds >= 60 * self.minutes
            if now - written > 60 or done:
                self.save()
                written = now
            if now - evaluated > 60 * every or done:
                self.log(f"step {self.step} evaluation: {evaluate()}")
                evaluated = time.time()


def load_ema(model: nn.Module, folder: Path) -> nn.Module:
    model.load_state_dict(torch.load(folder / "ema.pt", weights_only=True, map_location="cpu"))
    return model.eval().requires_grad_(False).to(DEVICE)
