"""What `scale` costs and gives on the demo: `python -m tools.host --extra demo -- -m demo.scale_out judge|overhead|...`

judge: held-out prompts over two local workers, and what their pictures show. overhead: a row beside the same prompt on
the bare server, and two workers beside one. soak: memory over many rows. What is computed is counted in processor
seconds of the command and its servers, because other programs of a machine stretch the clock. Each ends with a line of
JSON to keep.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .judge import Judge, marks, shares
from .measure import Case, draw_mixed_cases
from .train.pack import ROOT

WORKFLOW = ROOT / "workflows" / "demo_txt2img.json"
SETS = ("Prompt.prompt={prompt}", "SanaNativeSampler.seed={seed}", "SanaNativeSampler.steps={steps}")
WARM_UP = 3  # rows before a measurement: the first ones load the models
SETTLED = 0.2  # share of a soak's rows after which its memory counts
SAMPLE_SECONDS = 1.0


def write_prompts(path: Path, cases: list[Case], steps: int) -> None:
    rows = [{"prompt": case.caption.text, "seed": case.seed, "steps": steps} for case in cases]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def command(prompts: Path, out: Path, workers: int) -> list[str]:
    sets = [text for one in SETS for text in ("--set", one)]
    files = ("--workflow", WORKFLOW, "--prompts", prompts, "--out", out, "--workers", workers)
    return [str(one) for one in (sys.executable, ROOT / "scale", "run", *files, *sets, "--cpu")]


def judge(args: argparse.Namespace) -> dict:
    """Shares of right pictures among those that two workers drew from a file of held-out prompts."""
    from sana_native.scale.manifest import all_records
    from sana_native.scale.store import open_store

    cases = draw_mixed_cases(args.count // 2)
    write_prompts(args.out / "prompts.jsonl", cases, args.steps)
    code = subprocess.run(command(args.out / "prompts.jsonl", args.out / "job", 2), check=False).returncode
    eye, rows = Judge(), []
    records = list(all_records(open_store(str(args.out / "job"))))
    for record in records:
        if record.status == "done":
            pixels = np.array(Image.open(args.out / "job" / record.files[0]).convert("RGB"))
            picture = torch.from_numpy(pixels).movedim(-1, 0).float() / 255
            rows.append(marks(cases[record.index].caption, eye.look(picture)))
    workers = len({record.worker for record in records})
    return {"exit": code, "rows": len(cases), "records": len(records), "pictures": len(rows), "workers": workers,
            "steps": args.steps, **{name: round(share, 4) for name, share in shares(rows).items()}}  # fmt: skip


class Bench:
    """Two workers of this process, and the processor seconds of it and of their servers."""

    def __init__(self, args: argparse.Namespace):
        from sana_native.scale.command import find_host, parser
        from sana_native.scale.graph import Options, read_workflow
        from sana_native.scale.worker import Job, Worker

        arguments = command(args.out / "prompts.jsonl", args.out / "job", 2)[2:]
        host = find_host(parser().parse_args([*arguments, "--work", str(args.out / "work")]))
        self.workers = [Worker(f"worker-{n}", host, {"OMP_NUM_THREADS": "1"}) for n in range(2)]
        self.cases, self.steps, self.used = draw_mixed_cases(5000), args.steps, 0
        for worker in self.workers:
            worker.start()
            prompt = worker.prompt_of(read_workflow(WORKFLOW))
            worker.take_job(Job(prompt, SETS, Options(), str(args.out / "job")))
            self.run_scale(worker, WARM_UP)

    def rows(self, count: int) -> list:
        """Rows that nobody has drawn, else the host would take their pictures from its cache."""
        from sana_native.scale.rows import Row

        numbers = range(self.used, self.used + count)
        self.used += count
        return [
            Row(n, f"row {n}", f"{n:09}", self.cases[n].caption.text, seed=self.cases[n].seed, steps=self.steps)
            for n in numbers
        ]

    def run_scale(self, worker, count: int) -> None:
        from sana_native.scale.manifest import Shard

        rows, records = self.rows(count), []
        worker.run_shard(Shard(rows[0].index, rows), [], records.append)
        wrong = [record.error for record in records if record.status != "done"]
        if wrong or len(records) != count:
            raise RuntimeError(f"{len(records)} of {count} rows ran, and of these failed: {wrong[:3]}")

    def run_bare(self, worker, count: int) -> None:
        for row in self.rows(count):
            worker.server.run(worker.template.fill([row]))

    def seconds(self) -> float:
        return time.process_time() + sum(server_seconds(worker.server.pid) for worker in self.workers)

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()


def server_seconds(pid: int) -> float:
    """Processor seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def overhead(args: argparse.Namespace) -> dict:
    """Processor seconds of a row by scale and of a prompt on the bare server, in turn; and by two workers at once."""
    bench = Bench(args)

    def measure(run) -> tuple[float, float]:
        cpu, wall = bench.seconds(), time.perf_counter()
        run()
        return bench.seconds() - cpu, time.perf_counter() - wall

    def both() -> None:
        threads = [threading.Thread(target=bench.run_scale, args=(w, args.block)) for w in bench.workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    first, found = bench.workers[0], {"bare": [], "scale": [], "two": []}
    runs = {"bare": lambda: bench.run_bare(first, args.block), "scale": lambda: bench.run_scale(first, args.block),
            "two": both}  # fmt: skip
    try:
        for turn in range(args.turns):
            for name in sorted(runs, reverse=bool(turn % 2)):
                rows = args.block * (2 if name == "two" else 1)
                cpu, wall = measure(runs[name])
                found[name].append((cpu / rows, wall / rows))
    finally:
        bench.stop()
    cpu = {name: statistics.median(one for one, _ in values) for name, values in found.items()}
    wall = {name: statistics.median(one for _, one in values) for name, values in found.items()}
    return {
        "rows_a_block": args.block, "blocks": args.turns, "steps": args.steps, "load": round(os.getloadavg()[0], 1),
        "cpu_seconds_a_row": {name: round(value, 4) for name, value in cpu.items()},
        "wall_seconds_a_row": {name: round(value, 4) for name, value in wall.items()},
        "overhead_cpu": round(cpu["scale"] / cpu["bare"] - 1, 4),
        "overhead_wall": round(wall["scale"] / wall["bare"] - 1, 4),
        "two_workers_cpu": round(2 * cpu["scale"] / cpu["two"], 3),
        "two_workers_wall": round(wall["scale"] / wall["two"], 3),
    }  # fmt: skip


def soak(args: argparse.Namespace) -> dict:
    """Memory of the command and its server over many rows, and whether every picture is there as recorded."""
    import hashlib

    from sana_native.scale.manifest import all_records
    from sana_native.scale.store import open_store

    write_prompts(args.out / "prompts.jsonl", draw_mixed_cases(args.count // 2), args.steps)
    out, work, samples = args.out / "job", args.out / "work", []
    run = subprocess.Popen([*command(args.out / "prompts.jsonl", out, 1), "--work", str(work)])
    while run.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        try:
            for pid in work.glob("*/worker-0/server.pid"):  # below the job's own folder
                server = resident(int(pid.read_text(encoding="utf-8")))
                samples.append((sum(1 for _ in out.glob("images/*/*")), server, resident(run.pid)))
        except (OSError, ValueError, IndexError):
            continue  # not started yet, or just ended
    records, store = list(all_records(open_store(str(out)))), open_store(str(out))
    whole = sum(
        record.status == "done" and hashlib.sha256(store.get(record.files[0])).hexdigest() == record.sha256[0]
        for record in records
    )
    late = np.array([one for one in samples if one[0] >= SETTLED * args.count], dtype=float).reshape(-1, 3)
    return {"exit": run.returncode, "rows": args.count, "records": len(records), "pictures_as_recorded": whole,
            "steps": args.steps, "samples": len(late), "server": slope(late[:, 0], late[:, 1]),
            "command": slope(late[:, 0], late[:, 2])}  # fmt: skip


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope(rows: np.ndarray, memory: np.ndarray) -> dict[str, float]:
    """MB in 1000 rows by least squares, its standard error, and the mean. Raises: RuntimeError for too few samples."""
    if len(rows) < 3 or rows.min() == rows.max():
        raise RuntimeError(f"A slope needs three samples of memory over several rows, and there are {len(rows)}.")
    x = (rows - rows.mean()) / 1000
    rate = float((x * memory).sum() / (x * x).sum())
    rest = memory - memory.mean() - rate * x
    error = float(np.sqrt((rest**2).sum() / max(len(x) - 2, 1) / (x * x).sum()))
    return {"mb_in_1000_rows": round(rate, 3), "standard_error": round(error, 3), "mb": round(float(memory.mean()), 1)}


COMMANDS = {"judge": judge, "overhead": overhead, "soak": soak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--count", type=int, default=500, help="rows of judge and soak")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--block", type=int, default=10, help="rows of a measurement of overhead")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each kind")
    parser.add_argument("--out", type=Path, help="folder for prompts, pictures and records; default: a temporary one")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread of a server only waits for the first
    with tempfile.TemporaryDirectory() as folder:
        args.out = args.out or Path(folder)
        args.out.mkdir(parents=True, exist_ok=True)
        sys.stdout.write(json.dumps({"what": args.what, **COMMANDS[args.what](args)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
