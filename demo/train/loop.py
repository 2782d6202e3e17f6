"""What every training run here shares: a resumable state on disk, EMA weights, the learning rate, a log."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def save_atomically(state: Any, path: Path) -> None:
    """Writes beside the target and renames, so that a run killed at any moment leaves a whole file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def cosine_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine to one hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class Run:
    """One training run in a folder: `state.pt` to resume from, `ema.pt` to use, `log.txt` to read."""

    def __init__(self, folder: Path, model: nn.Module, steps: int, peak: float, decay: float, weight_decay: float):
        self.folder, self.model, self.steps, self.peak, self.decay = folder, model, steps, peak, decay
        folder.mkdir(parents=True, exist_ok=True)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
        self.step, self.seconds = 0, 0.0
        self.resume()

    def resume(self) -> None:
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
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

    def update(self, loss: Tensor) -> None:
        """One optimiser step and the EMA's; gradients are clipped to a norm of 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_rate(self.step, self.steps, self.peak, warmup=100)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            state = self.model.state_dict()
            torch._foreach_lerp_(list(self.ema.values()), [state[name] for name in self.ema], 1 - decay)

    def train(self, compute_loss: Callable[[int], tuple[Tensor, str]], evaluate: Callable[[], str], every: int) -> None:
        """Runs to `steps`; the loss depends on the step number alone, so that a resumed run draws what it would have.

        The state is written once a minute and at the end, an evaluation of the EMA weights every `every` steps.
        """
        written = started = time.time()
        while self.step < self.steps:
            loss, note = compute_loss(self.step)
            self.update(loss)
            self.step += 1
            now = time.time()
            self.seconds, started = self.seconds + now - started, now
            if self.step % 20 == 0:
                self.log(f"step {self.step}/{self.steps} loss {loss.item():.4f} {note} {self.seconds:.0f} s")
            if now - written > 60 or self.step == self.steps:
                self.save()
                written = now
            if self.step % every == 0 or self.step == self.steps:
                self.log(f"step {self.step} evaluation: {evaluate()}")


def load_ema(model: nn.Module, folder: Path) -> nn.Module:
    model.load_state_dict(torch.load(folder / "ema.pt", weights_only=True))
    return model.eval().requires_grad_(False)
