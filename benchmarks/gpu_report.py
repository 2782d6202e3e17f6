"""The report of a run on a GPU: rows measured within a time budget, JSON after each of them, a table at the end."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu_clock import peak_mib, sync_sites, time_runs, trace_kernels
from benchmarks.measuring import heading, row, write

OURS = "ours"  # the variant that the others of a stage are compared with
COLUMNS = (
    *("stage", "variant", "ms", "best", "host ms", "peak MiB", "launches", "syncs"),
    *("error", "of the roofline", "time / ours", "note"),
)
MEASURED = ("ms", "best_ms", "host_ms", "runs", "peak_mib", "launches", "busy_ms", "top_kernels", "syncs")
FIELDS = (
    *("stage", "variant", *MEASURED, "operations", "bytes", "roofline"),
    *("error", "error_to", "saving", "note", "failed"),
)
RESERVE = 15  # s that are left to close the report
ERROR_LENGTH = 400
FLOAT32_ON_CPU = "float32 on a CPU"
WINS = 0.1  # share of a step or decode that a kernel has to save to move into the pack


@dataclass(frozen=True)
class Work:
    """What a call has to do at least: floating-point operations in 16 bits, and bytes read and written once."""

    operations: float = 0
    bytes: float = 0


@dataclass(frozen=True)
class Saving:
    """The stage that a fused kernel would serve, and how often that calls it."""

    stage: str
    calls: float


class Report:
    """Rows of one card. budget: seconds in all. device: "cuda" or "cpu". only: parts of stage names, or all."""

    def __init__(self, path: Path, device: str, budget: float, tiny: bool = False, only: list[str] | None = None):
        self.path, self.device, self.budget, self.tiny, self.only = path, device, budget, tiny, only or []
        self.begun = time.monotonic()
        self.rows: list[dict] = []
        self.skipped: list[dict] = []
        self.works: dict[str, Work] = {}  # by stage
        self.ceilings = {"operations": None, "bytes": None}  # a second, as measured on this card
        self.about = describe_machine(device) | {"tiny": tiny, "budget_s": budget}

    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.begun)

    def wants(self, stage: str) -> bool:
        return not self.only or any(part in stage for part in self.only)

    def skip(self, stage: str, variant: str, why: str) -> None:
        self.skipped.append({"stage": stage, "variant": variant, "why": why})
        self.save()

    def measure(
        self,
        stage: str,
        variant: str,
        run: Callable,
        work: Work | Callable[[], Work] = Work(),
        error: Callable[[], float] | None = None,
        error_to: str = FLOAT32_ON_CPU,
        detail: bool = True,
        saving: Saving | None = None,
        note: str = "",
    ) -> dict | None:
        """A row for a call; whatever it raises is written into the row. None where the stage is not asked for.

        work: what the call has to do at least. error: relative, to what `error_to` names. detail: whether kernels and
        synchronizing lines are traced too. saving: for a fused kernel.
        """
        if not self.wants(stage):
            return None
        if self.left() < RESERVE:
            return self.skip(stage, variant, "the time was up")
        found = dict.fromkeys(FIELDS) | {"stage": stage, "variant": variant, "note": note}
        found["saving"] = saving and asdict(saving)
        try:
            found |= self.timed(run)
            if detail:
                found |= self.traced(run, note)
            if error is not None:
                found |= {"error": error(), "error_to": error_to}
            asked = work() if callable(work) else work
            found |= {"operations": asked.operations, "bytes": asked.bytes}
            found["roofline"] = self.share_of_roofline(asked, found["ms"])
        except Exception as failure:  # noqa: BLE001 - the other rows are worth having
            found["failed"] = describe_failure(failure)
        return self.add(found)

    def timed(self, run: Callable) -> dict:
        import torch

        with torch.inference_mode():
            return {"peak_mib": peak_mib(run, self.device), **time_runs(run, self.device)}

    def traced(self, run: Callable, note: str) -> dict:
        """Kernels and waits; where the machine does not let a process trace them, the note says why."""
        import torch

        with torch.inference_mode():
            found = {"syncs": sync_sites(run, self.device)}
            try:
                return found | trace_kernels(run, self.device)
            except RuntimeError as failure:
                return found | {"note": f"{note} kernels not traced: {describe_failure(failure)}".strip()}

    def share_of_roofline(self, work: Work, ms: float) -> float | None:
        """Least time that the card's measured ceilings allow, as a share of the time taken."""
        if self.ceilings["operations"] is None or not (work.operations or work.bytes):
            return None
        least = max(work.operations / self.ceilings["operations"], work.bytes / self.ceilings["bytes"])
        return least * 1e3 / ms

    def fail(self, stage: str, failure: Exception, variant: str = "-") -> None:
        """For what fails before a row of the stage could be measured."""
        trace = "".join(traceback.format_exception(failure)[-3:])
        self.add(
            dict.fromkeys(FIELDS)
            | {"stage": stage, "variant": variant, "note": trace[-1500:], "failed": describe_failure(failure)}
        )

    def add(self, found: dict) -> dict:
        self.rows.append(found)
        self.save()
        write(row(self.cells(found)))
        return found

    def find(self, stage: str, variant: str = OURS) -> dict | None:
        rows = (one for one in self.rows if (one["stage"], one["variant"]) == (stage, variant) and not one["failed"])
        return next(rows, None)

    def save(self) -> None:
        """JSON of all there is so far, and the table, each in one step, so that a killed run leaves whole files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ceilings = {f"{name}_per_second": value for name, value in self.ceilings.items()}
        seconds = {"seconds": round(time.monotonic() - self.begun, 1)}
        text = json.dumps(self.about | seconds | ceilings | {"rows": self.rows, "skipped": self.skipped}, indent=1)
        for path, content in ((self.path, text + "\n"), (self.path.with_suffix(".md"), self.table())):
            part = path.with_name(path.name + ".part")
            part.write_text(content, encoding="utf-8")
            part.replace(path)

    def cells(self, found: dict) -> list[str]:
        """Of the table, in the order of COLUMNS."""
        if found["failed"]:
            return [found["stage"], found["variant"], found["failed"].replace("|", "/"), *["-"] * (len(COLUMNS) - 3)]
        ours = self.find(found["stage"])
        syncs = None if found["syncs"] is None else sum(found["syncs"].values())
        return [
            found["stage"],
            found["variant"],
            *(number(found[field]) for field in ("ms", "best_ms", "host_ms", "peak_mib", "launches")),
            number(syncs),
            number(found["error"], ".2e"),
            number(found["roofline"], ".0%"),
            number(ours and found["ms"] / ours["ms"], ".2f"),
            found["note"] or "-",
        ]

    def table(self) -> str:
        """Markdown of the whole run."""
        about = self.about
        lines = [f"# {about['card']}", ""]
        lines += [f"{name.replace('_', ' ')}: {value}  " for name, value in about.items() if name != "card"]
        if self.ceilings["operations"]:
            lines.append(
                f"ceilings: {self.ceilings['operations'] / 1e12:.3g} TFLOP/s in bfloat16, "
                f"{self.ceilings['bytes'] / 1e12:.3g} TB/s copied  "
            )
        lines += ["", heading(COLUMNS), *(row(self.cells(found)) for found in self.rows)]
        if savings := self.savings():
            lines += ["", f"Kernels move into the pack from {WINS:.0%} of a step or decode on:", "", *savings]
        lines += ["", *(f"Skipped: {one['stage']}, {one['variant']}: {one['why']}." for one in self.skipped)]
        return "\n".join(lines).rstrip() + "\n"

    def savings(self) -> list[str]:
        """Rows of what each fused kernel would save of its stage, against the fastest form without one."""
        rows = []
        for found in self.rows:
            if not found["saving"] or found["failed"]:
                continue
            stage, calls = found["saving"]["stage"], found["saving"]["calls"]
            others = [
                one["ms"]
                for one in self.rows
                if one["stage"] == found["stage"] and not one["saving"] and not one["failed"]
            ]
            if (whole := self.find(stage)) and others:
                share = (min(others) - found["ms"]) * calls / whole["ms"]
                rows.append(row((found["stage"], found["variant"], stage, f"{share:.1%}")))
        return [heading(("part", "kernel", "stage", "saves")), *rows] if rows else []


def number(value: float | None, how: str = "") -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:{how or ('.0f' if abs(value) >= 100 else '.3g')}}"


def describe_failure(failure: Exception) -> str:
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:ERROR_LENGTH]


def describe_machine(device: str) -> dict:
    import platform

    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    found = {"card": card, "date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda if device == "cuda" else None}
    for name in ("triton", "diffusers", "transformers"):
        found[name] = version_of(name)
    return found


def version_of(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def file_name(card: str, tiny: bool, only: list[str] | None = None) -> str:
    """Of a report, without its ending: `gpu-nvidia-h100-80gb-hbm3`; of some stages, with their names behind it."""
    parts = ("gpu", card, "tiny" if tiny else "", *(("only", *only) if only else ()))
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)))
