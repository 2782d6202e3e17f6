"""The command line: run, check, status."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..models.sana.resolution import bin_sides
from ..tools.comfy_server import ServerError
from ..tools.host import PRIVATE, prepare_base
from ..tools.workflow import WorkflowError
from .engine import Engine, LocalEngine
from .graph import FORMATS, Options
from .job import ROOT, RunError, Settings, folder_name, run_job, work_folder
from .manifest import DONE, JobError, Summary, all_records, part_firsts, total_rows
from .progress import read_limit, say
from .rows import SEEDS
from .store import StoreError, open_store
from .worker import HostSettings, WorkerError

LIMITS = {
    "batch": (1, math.inf),
    "gpus_per_worker": (0, math.inf),
    "quality": (1, 100),
    "retries": (0, math.inf),
    "seed_base": SEEDS,
    "timeout": (1, math.inf),
    "workers": (0, math.inf),
    "workers_per_gpu": (1, math.inf),
}
ERRORS = (RunError, JobError, StoreError, WorkerError, WorkflowError, ServerError)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="scale", description="Prompt files to pictures, on any number of workers.")
    commands = top.add_subparsers(dest="command", required=True)
    for name, text in (("run", "run all rows; the same command again goes on"), ("check", "run the first row alone")):
        command = commands.add_parser(name, help=text, allow_abbrev=False)  # detach looks for its own word
        add_job_options(command)
        add_host_options(command)
    status = commands.add_parser("status", help="say what became of the rows", allow_abbrev=False)
    status.add_argument("--out", required=True, help="folder or address of the job")
    status.add_argument("--records", type=Path, help="write all records into one jsonl file")
    status.add_argument("--verify", action="store_true", help="look for the picture of every row that is done")
    return top


def add_job_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workflow", type=Path, required=True, help="JSON file, as saved or for the API")
    command.add_argument("--prompts", type=Path, required=True, help="txt, json, jsonl, csv, tsv or parquet")
    command.add_argument("--out", required=True, help="folder, or an address such as s3://bucket/folder")
    command.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="NODE.INPUT=VALUE",
        help='such as "SANA Gemma Encode.prompt={prompt}"; title, class or id of the node',
    )  # fmt: skip
    command.add_argument("--seed-base", type=int, default=0, help="a row without a seed has this plus its number")
    command.add_argument("--size", type=int, default=1024, help="trained side that rows with a ratio are binned for")
    command.add_argument("--format", choices=FORMATS, default="png")
    command.add_argument("--quality", type=int, default=92, help="of jpg and webp")
    command.add_argument("--batch", type=int, default=1, help="most rows of equal settings in one run")
    command.add_argument("--nvlabs-tags", action="store_true", help="read --ar as height:width")
    command.add_argument("--timeout", type=float, default=300.0, help="seconds for one run")
    command.add_argument("--retries", type=int, default=2, help="for a row that ends its server")
    command.add_argument("--max-failed", default="5%", help="of the last 200 rows: a share, or a number")
    command.add_argument("--retry-failed", action="store_true", help="run rows again that failed in an earlier run")
    command.add_argument("--verify", action="store_true", help="run rows again that are done and lack a picture")
    command.add_argument("--force-new-graph", action="store_true", help="go on in the folder of another job")


def add_host_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--engine", choices=("local", "ray"), default="local")
    command.add_argument("--workers", type=int, default=0, help="default: one a GPU, or one on a CPU")
    command.add_argument("--workers-per-gpu", type=int, default=1)
    command.add_argument("--gpus-per-worker", type=float, default=0.0, help="engine ray; default: 1/workers-per-gpu")
    command.add_argument("--address", default="auto", help="engine ray: of the cluster, or local to start one")
    command.add_argument("--comfyui", type=Path, help="ComfyUI's folder; default: COMFYUI_PATH, or the one around")
    command.add_argument("--python", help="ComfyUI's Python; default: COMFYUI_PYTHON, or this one")
    command.add_argument("--base", type=Path, help="ComfyUI's base directory with models and custom_nodes")
    command.add_argument("--work", type=Path, help="folder of the workers on every machine; default: a temporary one")
    command.add_argument("--cpu", action="store_true", help="compute on the CPU")
    command.add_argument("--detach", action="store_true", help="run on without this terminal")


def settings_of(args: argparse.Namespace, models: Path) -> Settings:
    """Raises: RunError for a value that is none."""
    try:
        limit = read_limit(args.max_failed)
    except ValueError as error:
        raise RunError(str(error)) from None
    if not args.prompts.is_file():
        raise RunError(f"{args.prompts} is no file: give the file of your prompts.")
    for name, (lowest, highest) in LIMITS.items():
        if not lowest <= getattr(args, name) <= highest:  # a timeout may be no number
            most = " or more" if highest == math.inf else f" to {highest}"
            raise RunError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range: give {lowest}{most}.")
    try:
        bin_sides(args.size, 1, 1)
    except ValueError as error:
        raise RunError(f"--size: {error}") from None
    options = Options(args.seed_base, args.size, args.format, args.quality, args.batch)
    return Settings(
        args.workflow, args.prompts, args.out, tuple(args.assignments), options, args.timeout, args.retries, limit,
        args.max_failed, args.retry_failed, args.force_new_graph, args.nvlabs_tags, models, args.verify,
    )  # fmt: skip


def find_host(args: argparse.Namespace) -> HostSettings:
    """Where ComfyUI is: as told, or around the pack, or the private copy. Raises: RunError."""
    around, private = ROOT.parent.parent, PRIVATE / "ComfyUI"
    given = args.comfyui or os.environ.get("COMFYUI_PATH")
    comfyui = Path(given or (around if (around / "main.py").is_file() else private)).absolute()
    if not (comfyui / "main.py").is_file():
        raise RunError(f"{comfyui} holds no ComfyUI: give --comfyui, the folder that its main.py is in.")
    here = [entry.resolve() for entry in (comfyui / "custom_nodes").glob("*")]
    if args.base and not args.base.is_dir():
        raise RunError(f"{args.base} is no folder: give --base, the one that models and custom_nodes are in.")
    base = args.base or (comfyui if ROOT.resolve() in here else prepare_base(PRIVATE / "base"))
    own = PRIVATE / "venv" / "bin" / "python"
    told = args.python or os.environ.get("COMFYUI_PYTHON")
    python = told or (str(own) if comfyui.resolve() == private.resolve() and own.exists() else sys.executable)
    store = open_store(args.out)
    work = args.work.absolute() / folder_name(store) if args.work else work_folder(store)
    # Ray tells what its cluster has; this machine may be one without a GPU.
    cpu = args.cpu or (args.engine == "local" and not has_gpu())
    return HostSettings(str(comfyui), find_python(python), str(base.absolute()), str(work), cpu)


def find_python(name: str) -> str:
    """The path of a Python, as workers have other folders and perhaps another PATH. Raises: RunError."""
    found = shutil.which(name)
    if found is None:
        raise RunError(f"{name} is no Python that can be run: give --python, the one that ComfyUI runs with.")
    return os.path.abspath(found)  # a link into an environment is not followed, or it would leave that


def has_gpu() -> bool:
    return bool(gpus()) or sys.platform == "darwin" or Path("/dev/kfd").exists()


def gpus() -> list[str]:
    """Numbers of the NVIDIA devices that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [one for one in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if one.strip() and one != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, _ in enumerate(line for line in found.splitlines() if line.startswith("GPU"))]


def engine_of(args: argparse.Namespace, host: HostSettings) -> Engine:
    if args.engine == "ray":
        try:
            from .ray_engine import RayEngine

            return RayEngine(host, args.workers, args.gpus_per_worker or 1 / args.workers_per_gpu, args.address)
        except ModuleNotFoundError as error:
            raise RunError(
                f"--engine ray needs {error.name}, which this Python lacks: run the command by "
                "python -m tools.scale_environment, or take --engine local."
            ) from None
    devices = [] if host.cpu else gpus()
    return LocalEngine(host, args.workers or max(len(devices), 1) * args.workers_per_gpu, devices)


def detach(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Starts the same command in a session of its own, which outlives this terminal."""
    log = work_folder(open_store(args.out)) / "run.log"
    command = [sys.executable, str(ROOT / "scale"), *(one for one in arguments if one != "--detach")]
    with open(log, "a", encoding="utf-8") as file:  # why an earlier run ended stays there
        options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(command, start_new_session=True, **options)
    say(f"Runs on as process {child.pid}, its log is {log}; to stop it: kill {child.pid}")
    return 0


def show_status(args: argparse.Namespace) -> int:
    """Counts what the manifest says; 1 where a picture is missing that it names, or there is no job."""
    store, summary, missing = open_store(args.out), Summary(), 0
    total = total_rows(store)
    if total is None and not part_firsts(store):
        raise RunError(f"{store.url} holds no job: give the --out of a run.")
    with open(args.records or os.devnull, "w", encoding="utf-8") as file:
        for record in all_records(store):
            summary.add(record)
            file.write(record.line() + "\n")
            if args.verify and record.status == DONE:
                lost = [name for name in record.files if not store.exists(name)]
                missing += bool(lost)
                for name in lost:
                    say(f"Missing: {name} of {record.place}: run --verify draws it again.")
    say(f"{sum(summary.statuses.values())} of {total} rows: {summary.line()}" if total else summary.line())
    for error, count in summary.errors.most_common(5):
        say(f"{count} times: {error}")
    return 1 if missing else 0


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when all rows of this run are done, 1 when one is not, 130 when it was stopped."""
    args = parser().parse_args(arguments)
    try:
        if args.command == "status":
            return show_status(args)
        if args.detach:
            return detach(args, arguments)
        host = find_host(args)
        settings = settings_of(args, Path(host.base) / "models")
        return run_job(settings, lambda: engine_of(args, host), check=args.command == "check")
    except (*ERRORS, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'A file or a server'} cannot be used ({error.strerror or error}).\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped at once: the same command goes on.\n")
        return 130
