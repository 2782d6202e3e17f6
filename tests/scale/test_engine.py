"""The hand-out of shards, the limit of failures, and which rows run."""

import json
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sana_native.scale import progress as progress_file
from sana_native.scale import ray_engine
from sana_native.scale.engine import HandOut, known_parts, server_environment, shard_rows
from sana_native.scale.graph import Options
from sana_native.scale.manifest import Part, Record, Shard, all_records, part_firsts, shards
from sana_native.scale.progress import Outcome, Progress, read_limit
from sana_native.scale.ray_engine import share_out
from sana_native.scale.rows import BadRow, Row
from sana_native.scale.store import LocalStore
from sana_native.scale.worker import HostSettings, Job, Worker, WorkerError, is_open


def rows(count: int) -> list[Row]:
    return [Row(i, f"line {i}", f"{i:09}", "a") for i in range(count)]


def outcome(status: str, error: str = "") -> Outcome:
    return Outcome(status, error, 0.5, int(status == "done"), 10)


def test_shards_that_come_back_go_out_first_and_know_their_parts():
    hand_out = HandOut(shards(rows(1200), 256), [0, 256, 320, 1024])
    shard, known = hand_out.take()
    assert (shard.first, known) == (0, [0])
    assert [hand_out.take()[1] for _ in range(2)] == [[256, 320], [320]]
    hand_out.give_back(shard.halves()[1])
    again, known = hand_out.take()
    assert (again.first, len(again), known) == (128, 128, [0, 128])
    assert [hand_out.take()[0].first for _ in range(2)] == [768, 1024] and hand_out.take() is None


@pytest.mark.parametrize(("total", "workers", "size"), [(10, 2, 8), (500, 2, 62), (10_000_000, 1000, 256)])
def test_small_jobs_have_small_shards(total, workers, size):
    assert shard_rows(total, workers) == size


def test_a_run_stops_when_more_than_the_limit_of_the_last_rows_failed():
    stop = threading.Event()
    progress = Progress(1000, read_limit("1%"), stop)
    for status in ["failed", "unreadable", "unreadable", "done", "timeout"] + ["done"] * 200:
        progress.add(outcome(status, "why" if status == "failed" else ""))
    assert not stop.is_set()
    for _ in range(3):
        progress.add(outcome("killed_worker", "why"))
    assert stop.is_set() and progress.too_many and progress.commonest_errors()[0] == "4 times: why"


@pytest.mark.parametrize("text", ["-1", "x", "5 %%", "101%", "201"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="neither a share such as 5% nor a number of 0 to 200"):
        read_limit(text)


def test_a_line_counts_the_rows_of_earlier_runs_too():
    def line(total: int, earlier: Counter | None, *statuses: str) -> str:
        progress = Progress(total, 10, threading.Event(), earlier=earlier)
        for status in statuses:
            progress.add(outcome(status))
        return progress.line()

    assert line(12, Counter(done=3)) == "3 of 12 rows: 3 done; this run: none yet"
    resumed = line(12, Counter(done=8, refused=1), *["done"] * 3)
    assert resumed.startswith("12 of 12 rows: 11 done, 1 refused; this run: 3 done, ") and resumed.endswith(
        "pictures/s"
    )
    assert line(1, Counter(), "failed") == "1 of 1 row: 1 failed"
    assert line(12, None, "failed") == "This run: 1 failed"  # run --verify


def test_the_seconds_of_the_first_row_count_in_the_rate(tmp_path, monkeypatch):
    clock = iter([100.0, 102.0, 102.0])  # at the start, for the line, for the metric
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: next(clock))
    progress = Progress(3, 10, threading.Event(), tmp_path / "metrics.jsonl")
    progress.add_first(replace(outcome("done"), seconds=8.0))
    progress.add(outcome("done"))
    assert progress.line().endswith("0.20 pictures/s")
    progress.close(1)
    metric = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (metric["seconds"], metric["rows_per_second"]) == (10.0, 0.2)


def test_metrics_are_lines_of_json(tmp_path):
    progress = Progress(3, 10, threading.Event(), tmp_path / "metrics.jsonl")
    progress.add(outcome("done"))
    progress.close(2)
    (metric,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (metric["rows"], metric["statuses"], metric["row_seconds_median"], metric["workers"]) == (
        1, {"done": 1}, 0.5, 2,
    )  # fmt: skip


def test_each_worker_sees_a_device_or_its_share_of_the_cores(monkeypatch):
    assert [server_environment(n, 3, ["0", "5"])["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "5", "0"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert int(server_environment(0, 1000, [])["OMP_NUM_THREADS"]) == 1


def test_a_cluster_shares_out_its_gpus_whatever_the_drivers_machine_has():
    host = HostSettings("comfyui", "python", "base", "work", cpu=False)
    assert share_out(host, 0, 0.5, 8.0) == (host, 16, 0.5) and share_out(host, 3, 1.0, 8.0) == (host, 3, 1.0)
    on_cpus = replace(host, cpu=True)
    assert share_out(host, 2, 1.0, 0) == share_out(on_cpus, 2, 1.0, 8.0) == (on_cpus, 2, 0.0)
    for one, each, gpus, sentence in (
        (host, 1.0, 0, "The cluster has no GPU: say with --workers"),
        (on_cpus, 1.0, 8.0, "--cpu leaves the GPUs alone: say with --workers"),
        (host, 2.0, 1.0, "has 1 GPUs, fewer than one worker takes: lower --gpus-per-worker"),
    ):
        with pytest.raises(WorkerError, match=sentence):
            share_out(one, 0, each, gpus)


def open_rows(job: Job, shard: Shard, part: Part) -> list[int]:
    return [row.index for row in shard.rows if is_open(row, part.records.get(row.index), job, part.store)]


@pytest.mark.parametrize(("retry_failed", "expected"), [(False, [5]), (True, [2, 3, 4, 5])])
def test_settled_rows_never_run_again_and_failed_ones_when_asked(tmp_path, retry_failed, expected):
    job = Job({}, (), Options(), str(tmp_path), retry_failed=retry_failed)
    (shard,) = shards(rows(6), 256)
    part = Part(LocalStore(tmp_path), shard, [])
    for index, status in enumerate(("done", "refused", "failed", "timeout", "killed_worker")):
        part.add(Record(index, f"{index}", f"line {index}", status))
    assert open_rows(job, shard, part) == expected


@pytest.mark.parametrize(("verify", "expected"), [(False, []), (True, [1])])
def test_a_row_whose_picture_is_gone_runs_again_when_asked(tmp_path, verify, expected):
    job, store = Job({}, (), Options(), str(tmp_path), verify=verify), LocalStore(tmp_path)
    (shard,) = shards(rows(2), 256)
    part = Part(store, shard, [])
    for index in range(2):
        part.add(Record(index, f"{index}", f"line {index}", "done", files=[f"{index}.png", "shared.png"]))
    for name in ("0.png", "shared.png"):
        store.put(name, b"picture")
    assert open_rows(job, shard, part) == expected


def worker_that_ends_rows_as(status: str, folder) -> Worker:
    """Without a server: what it would draw is given."""
    worker = object.__new__(Worker)
    worker.store, worker.server = LocalStore(folder), SimpleNamespace(forget=lambda: None)
    worker._run_rows = lambda rows: [Record(row.index, row.name, row.place, status) for row in rows]
    return worker


def test_a_failed_first_row_has_no_record_and_a_done_one_never_runs_again(tmp_path):
    first, firsts = rows(1)[0], lambda: part_firsts(LocalStore(tmp_path))
    for _ in range(2):
        assert worker_that_ends_rows_as("failed", tmp_path).run_first(first, firsts()).status == "failed"
        assert firsts() == []
    assert worker_that_ends_rows_as("done", tmp_path).run_first(first, firsts()).status == "done"
    assert firsts() == [0] and worker_that_ends_rows_as("failed", tmp_path).run_first(first, firsts()) is None


def test_the_first_row_is_looked_for_in_the_part_of_a_shard_that_begins_before_it(tmp_path):
    part = Part(LocalStore(tmp_path), Shard(0, rows(4)), [])
    for index, status in enumerate(("unreadable", "failed", "done")):
        part.add(Record(index, f"{index}", f"line {index}", status))
    part.save()
    worker, known = worker_that_ends_rows_as("done", tmp_path), known_parts(2, 2, [0, 256])
    assert known == [0] and worker.run_first(rows(4)[2], known) is None
    assert worker.run_first(rows(4)[1], known).status == "done"  # failed before
    assert [one.status for one in all_records(LocalStore(tmp_path))] == ["unreadable", "done", "done"]


def test_an_unreadable_row_is_recorded_once_and_runs_when_it_is_mended(tmp_path):
    job, store = Job({}, (), Options(), str(tmp_path)), LocalStore(tmp_path)
    bad, mended = BadRow(0, "line 1", "has no prompt"), rows(1)[0]
    assert is_open(bad, None, job, store)
    record = Record(0, "", "line 1", "unreadable")
    assert not is_open(bad, record, job, store) and is_open(mended, record, job, store)


def recorded(folder, **statuses: tuple[str, str]) -> None:
    """Records in the first part of a store: row_0=("done", "the run's name")."""
    part = Part(LocalStore(folder), Shard(0, []), [])
    for name, (status, run) in statuses.items():
        index = int(name.removeprefix("row_"))
        part.add(Record(index, f"{index}", f"line {index}", status, files=["gone.png"], job_run=run))
    part.save()


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}, {"verify": True}])
def test_a_shard_of_an_ended_worker_goes_on_after_the_rows_it_recorded_and_tells_of_them(tmp_path, options):
    recorded(tmp_path, row_0=("done", "earlier"), row_1=("done", "now"), row_2=("failed", "now"))
    worker, told = worker_that_ends_rows_as("done", tmp_path), []
    worker.name, worker.job = "ray-0", Job({}, (), Options(), str(tmp_path), run="now", **options)
    worker.template = SimpleNamespace(groups=lambda found: [[row] for row in found])
    before = worker.run_shard(Shard(0, rows(4)), [], told.append)
    assert [(one.index, one.status) for one in before] == [(1, "done"), (2, "failed")]
    assert [one.index for one in told] == ([0, 3] if options.get("verify") else [3])
    again = worker.run_shard(Shard(0, rows(4)), [0], told.append)
    assert {one.index for one in again} == {one.index for one in before} | {one.index for one in told}
    worker.job = replace(worker.job, run="")
    assert worker.run_shard(Shard(0, rows(4)), [0], told.append) == [], "a run without a name has none"


@pytest.mark.parametrize(
    ("status", "run", "options", "counted", "kept"),
    [
        ("done", "earlier", {}, {}, "done"),  # the actor ended for another reason
        ("done", "earlier", {"verify": True}, {"killed_worker": 1}, "killed_worker"),
        ("failed", "earlier", {}, {}, "failed"),
        ("failed", "earlier", {"retry_failed": True}, {"killed_worker": 1}, "killed_worker"),
        ("done", "now", {}, {"done": 1}, "done"),
        ("failed", "now", {"retry_failed": True}, {"failed": 1}, "failed"),
    ],
)
def test_a_row_that_ends_each_actor_is_recorded_and_counted_once(
    tmp_path, monkeypatch, status, run, options, counted, kept
):
    monkeypatch.setattr(ray_engine, "RowMetrics", lambda: SimpleNamespace(add=lambda _: None))  # Ray is not here
    recorded(tmp_path, row_0=(status, run))
    nodes = {"1": ("Text", {"prompt": ""}), "2": ("SaveImage", {"images": ["1", 0]})}
    prompt = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}
    job = Job(prompt, ("Text.prompt={prompt}",), Options(), str(tmp_path), retries=1, run="now", **options)
    progress, hand_out = Progress(1, 10, threading.Event()), HandOut(iter(()), [0])
    engine = SimpleNamespace(ray=SimpleNamespace(put=lambda one: one), actors={}, workers=1)
    flight = ray_engine._Run(engine, job, hand_out, progress, threading.Event())
    shard = Shard(0, rows(1))
    for _ in range(2):
        flight._lose(0, shard, True, "killed")
    assert progress.counts == counted
    assert [one.status for one in all_records(LocalStore(tmp_path))] == [kept]
