"""Manifests: rows are committed one by one, parts of other sizes overlap, and another job is refused."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sana_native.scale import manifest
from sana_native.scale.manifest import (
    DONE,
    FAILED,
    JobError,
    Part,
    Record,
    Shard,
    Summary,
    all_records,
    join_job,
    model_files,
    part_firsts,
    require_job,
    shards,
    total_rows,
)
from sana_native.scale.rows import BadRow, Row
from sana_native.scale.store import LocalStore, StoreError


def row(index: int) -> Row:
    return Row(index, f"line {index + 1}", f"{index:09}", "a cat")


def record(index: int, status: str = DONE, **more) -> Record:
    return Record(index, f"{index:09}", f"line {index + 1}", status, **more)


def test_rows_make_shards_and_a_shard_halves():
    parts = list(shards(map(row, range(7)), 3))
    assert [(shard.first, len(shard)) for shard in parts] == [(0, 3), (3, 3), (6, 1)]
    assert [(half.first, [one.index for one in half.rows]) for half in parts[1].halves()] == [(3, [3]), (4, [4, 5])]


def test_a_part_goes_on_where_an_earlier_run_of_another_shard_size_stopped(tmp_path):
    store = LocalStore(tmp_path)
    for first in (0, 2):
        part = Part(store, Shard(first, [row(first), row(first + 1)]), [])
        part.add(record(first, prompt="ein Bär\u2028"))
        part.add(record(first + 1, FAILED, error="no"))
        part.save()
    whole = Part(store, Shard(0, [row(i) for i in range(4)]), part_firsts(store))
    assert {index: one.status for index, one in whole.records.items()} == {0: DONE, 1: FAILED, 2: DONE, 3: FAILED}
    whole.add(record(1, started=1.0))
    whole.save()
    assert [(one.index, one.status) for one in all_records(store)] == [(0, DONE), (1, DONE), (2, DONE), (3, FAILED)]


@pytest.mark.parametrize("size", [1, 2])
def test_a_smaller_shard_of_the_same_name_keeps_the_records_of_the_larger(tmp_path, size):
    """Of `check` on a finished job (one row, no part named), and of a run with smaller shards."""
    store = LocalStore(tmp_path)
    whole = Part(store, Shard(0, [row(i) for i in range(4)]), [])
    for index in range(4):
        whole.add(record(index))
    whole.save()
    part = Part(store, Shard(0, [row(i) for i in range(size)]), [])
    part.add(record(0, started=1.0))
    part.save()
    assert [(one.index, one.started) for one in all_records(store)] == [(0, 1.0), (1, 0.0), (2, 0.0), (3, 0.0)]


def test_done_counts_more_than_a_later_failure_elsewhere(tmp_path):
    store = LocalStore(tmp_path)
    for first, one in ((0, record(1, started=1.0)), (1, record(1, FAILED, started=2.0))):
        part = Part(store, Shard(first, [row(1)]), [])
        part.add(one)
        part.save()
    assert [one.status for one in all_records(store)] == [DONE]


def test_a_part_that_is_none_is_named(tmp_path):
    store = LocalStore(tmp_path)
    store.put(manifest.part_name(0), b"[1]\n")
    with pytest.raises(StoreError, match="is no part of a manifest: remove it"):
        list(all_records(store))


def test_a_summary_counts_rows_files_and_errors():
    summary = Summary()
    for one in (record(0, files=["a"], bytes=[10]), record(1, FAILED, error="no"), record(2, FAILED, error="no")):
        summary.add(one)
    assert summary.line() == "2 failed, 1 done; 1 files, 0.0 MB" and summary.errors.most_common() == [("no", 2)]


def begin(store: LocalStore) -> None:
    part = Part(store, Shard(0, [row(0)]), [])
    part.add(record(0))
    part.save()


def test_another_job_is_refused_with_what_changed(tmp_path):
    store = LocalStore(tmp_path)
    own = join_job(store, {"workflow": "a", "rows": "b"}, 3)
    begin(store)
    assert join_job(store, {"rows": "b", "workflow": "a"}, 3) == own
    with pytest.raises(JobError, match=rf"holds the job {own}, and rows changed since\. Choose another"):
        join_job(store, {"workflow": "a", "rows": "c"}, 5)
    other = join_job(store, {"workflow": "a", "rows": "c"}, 5, force=True)
    assert other != own and json.loads(store.get("job.json"))["fingerprint"] == other
    assert total_rows(store) == 5 and total_rows(LocalStore(tmp_path / "none")) is None


def test_a_job_without_a_record_and_a_picture_becomes_another(tmp_path):
    """As its first row failed, and the workflow was mended."""
    store = LocalStore(tmp_path)
    old = join_job(store, {"workflow": "a"}, 3)
    new = join_job(store, {"workflow": "b"}, 4)
    assert old != new and total_rows(store) == 4
    store.put("images/abc/x.png", b"of a run that was killed before its record")
    with pytest.raises(JobError, match=f"holds the job {new}, and workflow or --set changed since"):
        join_job(store, {"workflow": "a"}, 3)


def test_a_job_that_another_machine_replaced_is_noticed(tmp_path):
    store = LocalStore(tmp_path)
    own = join_job(store, {"workflow": "a"}, 3)
    require_job(store, own)
    other = join_job(store, {"workflow": "b"}, 3)
    with pytest.raises(JobError, match=f"holds the job {other}, as another run wrote into it too: choose another"):
        require_job(store, own)
    (tmp_path / "job.json").unlink()
    with pytest.raises(JobError, match="holds no job any more"):
        require_job(store, own)


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"fingerprint": "a"}', '{"fingerprint": "a", "parts": 1}'])
def test_a_file_that_describes_no_job_is_named(tmp_path, text):
    LocalStore(tmp_path).put("job.json", text.encode())
    for ask in (total_rows, lambda store: join_job(store, {"workflow": "a"}, 3)):
        with pytest.raises(JobError, match=r"job\.json is no description of a job: choose another folder"):
            ask(LocalStore(tmp_path))


def test_records_of_an_earlier_version_are_read(tmp_path):
    line = '{"index": 0, "name": "a", "place": "line 1", "status": "done", "files": ["a.png"], "bytes": [3], "new": 1}'
    LocalStore(tmp_path).put(manifest.part_name(0), line.encode() + b"\n")
    (old,) = all_records(LocalStore(tmp_path))
    assert (old.files, old.width, old.height, old.id, old.node) == (["a.png"], [], [], "", "")


def test_model_files_are_found_by_their_names(tmp_path):
    (tmp_path / "diffusion_models" / "folder").mkdir(parents=True)
    (tmp_path / "diffusion_models" / "folder" / "a").write_bytes(b"123")
    (tmp_path / "diffusion_models" / "x.safetensors").write_bytes(b"12345")
    prompt = {"1": {"inputs": {"model": "x.safetensors", "other": "folder/", "text": "no file", "empty": "", "n": 1}}}
    assert model_files(prompt, tmp_path) == {"diffusion_models/x.safetensors": 5, "diffusion_models/folder/": 3}
    assert model_files(prompt, tmp_path / "none") == {}
    assert model_files({"1": {"inputs": {"text": "一只猫坐在" * 20}}}, tmp_path) == {}  # too long a name, by its bytes


# Size

MEASURE = """
import re, sys, types
root = types.ModuleType("sana_native")
root.__path__ = [sys.argv[1]]
sys.modules["sana_native"] = root
from sana_native.scale.manifest import Part, Record, all_records, shards
from sana_native.scale.rows import read_rows
from sana_native.scale.store import LocalStore
store = LocalStore(sys.argv[3])
for shard in shards(read_rows(sys.argv[2]), 256):
    part = Part(store, shard, [])
    for row in shard.rows:
        part.add(Record(row.index, row.name, row.place, "done", row.prompt))
    part.save()
count = sum(record.status == "done" for record in all_records(store))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(count, int(peak[1]) * 1024)
"""


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux writes it")
def test_a_million_rows_become_shards_and_records_in_300_megabytes(tmp_path):
    path = tmp_path / "p.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f'{{"id": "{number}", "prompt": "a cat in a city"}}\n' for number in range(1_000_000))
    root = Path(manifest.__file__).parent.parent
    command = [sys.executable, "-I", "-c", MEASURE, str(root), str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, peak = map(int, re.findall(r"\d+", done.stdout))
    assert count == 1_000_000 and peak < 300e6, f"{peak / 1e6:.0f} MB"


def test_unreadable_rows_are_part_of_a_shard():
    (shard,) = shards([row(0), BadRow(1, "line 2", "has no prompt")], 256)
    assert len(shard) == 2
