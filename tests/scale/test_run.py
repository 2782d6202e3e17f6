"""Runs of the command with real servers: failures are recorded and passed over, and the same command goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sana_native.tests.support.scale_bench import (
    ROOT,
    Bench,
    is_alive,
    kill,
    parent_of,
    pictures,
    statuses,
    wait_until,
)
from sana_native.tools.host import prepare_base
from sana_native.tools.scale_environment import scale_python

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up where Linux lists them"),
]
HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("scale bench"), HOST)


def slow_rows(count: int) -> list[dict]:
    """Each prompt is another, else the host would take its picture from the cache."""
    return [{"id": f"Bär {number}", "prompt": f"sleep 0.3 {number}"} for number in range(count)]


def test_every_failure_is_recorded_and_stops_no_other_row(bench, tmp_path):
    rows = [
        {"id": "bär/1", "prompt": "a"},
        {"id": "refused", "prompt": "b", "seed": 2**40},
        {"id": "raises", "prompt": "raise"},
        {"id": "dies", "prompt": "die"},
        {"id": "dies once", "prompt": f"die-once {tmp_path / 'died'}"},
        {"id": "no memory at first", "prompt": f"memory {tmp_path / 'short'}"},
        {"id": "bär/1", "prompt": "the id again"},
        {"id": "slow", "prompt": "sleep 120"},
        {"id": "bär:1", "prompt": "a name that would be the first one's"},
    ]
    prompts, out = bench.write("bad.jsonl", rows), tmp_path / "out"
    options = ("--retries", "1", "--timeout", "12", "--max-failed", "50%")
    code, text = bench.run(prompts, out, *options)
    assert code == 1, text
    expected = ["done", "refused", "failed", "killed_worker", "done", "done", "unreadable", "timeout", "done"]
    assert list(statuses(out).values()) == expected, text
    names = sorted(Path(name).name for name in pictures(out))
    assert names[0].startswith("bär_1-") and names[1:] == ["bär_1.png", "dies once.png", "no memory at first.png"]
    records = {one["index"]: one for part in out.glob("manifest/*") for one in map(json.loads, part.open("rb"))}
    assert records[2]["error"] == "Text (ScaleTestNode) failed: as the text says" and records[2]["attempts"] == 1
    assert [(records[n]["id"], records[n]["node"], records[n]["width"], records[n]["height"]) for n in (0, 2)] == [
        ("bär/1", "", [64], [64]),
        ("raises", "Text (ScaleTestNode)", [], []),
    ]
    assert (records[3]["attempts"], records[4]["attempts"], records[5]["attempts"]) == (2, 2, 2)
    assert "larger than max" in records[1]["error"] or "max" in records[1]["error"], records[1]["error"]
    assert "did not end in 12 s" in records[7]["error"] and 'an earlier row has the id "bär/1"' in records[6]["error"]
    # The same command again finds nothing to do; with --retry-failed the rest, but what the host refuses.
    before = {name: (out / name).stat().st_mtime_ns for name in pictures(out) if name != records[4]["files"][0]}
    code, text = bench.run(prompts, out, *options)
    assert code == 0 and "Nothing is left to run, 4 done" in text and "Job " not in text, text
    gone, data = out / records[4]["files"][0], (out / records[4]["files"][0]).read_bytes()
    gone.unlink()
    code, text = bench.run(prompts, out, *options, "--verify")
    assert code == 0 and "This run: 1 done" in text and gone.read_bytes() == data, text
    bench.write("bad.jsonl", [*rows, {"prompt": "one more"}])
    code, text = bench.run(prompts, out, *options)
    assert code == 1 and "rows changed since. Choose another folder" in text
    assert (
        before == {name: (out / name).stat().st_mtime_ns for name in before} and len(pictures(out)) == len(before) + 1
    )


def test_killed_servers_and_drivers_lose_and_double_nothing(bench, tmp_path):
    prompts, out = bench.write("slow.jsonl", slow_rows(24)), tmp_path / "out"
    process = bench.start(prompts, out, "--workers", "2")
    wait_until(lambda: len(pictures(out)) >= 4, 240, process)
    first = bench.server_of("worker-0")
    kill(first)
    wait_until(lambda: bench.server_of("worker-0") != first and len(pictures(out)) >= 12, 240, process)
    servers = [bench.server_of(f"worker-{number}") for number in range(2)]
    assert all(map(is_alive, servers)) and parent_of(servers[0]) == process.pid
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_alive, servers)), 10)
    recorded = {index for index, status in statuses(out).items() if status == "done"}
    before = {name: (out / name).stat().st_mtime_ns for name in pictures(out)}
    code, text = bench.run(prompts, out)
    assert code == 0 and f"24 of 24 rows: 24 done; this run: {24 - len(recorded)} done" in text, text
    assert list(statuses(out).values()) == ["done"] * 24 and len(pictures(out)) == 24
    untouched = [name for name, when in before.items() if (out / name).stat().st_mtime_ns == when]
    assert len(untouched) >= len(recorded) > 0
    assert len(list((out / "manifest").iterdir())) < 24 and not is_alive(bench.server_of("worker-0"))


def test_a_signal_ends_a_run_in_order_and_too_many_failures_end_it_too(bench, tmp_path):
    prompts, out = bench.write("slow.jsonl", slow_rows(24)), tmp_path / "out"
    process = bench.start(prompts, out)
    wait_until(lambda: len(pictures(out)) >= 2, 240, process)
    process.terminate()
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Stopped: the same command goes on." in text, text
    done = {index for index, status in statuses(out).items() if status == "done"}
    assert len(pictures(out)) == len(done) < 24  # the running row was finished and recorded
    longer = bench.write("longer.jsonl", [{"prompt": "fine"}, {"prompt": "sleep 120"}])
    process = bench.start(longer, tmp_path / "longer")
    wait_until(lambda: len(pictures(tmp_path / "longer")) == 1, 240, process)
    wait_until(lambda: (tmp_path / "longer" / "manifest").is_dir(), 10, process)
    for _ in range(2):
        time.sleep(1)
        process.terminate()
    text, _ = process.communicate(timeout=25)  # the first one alone waits 30 s for the row
    assert process.returncode == 130 and "Stopped at once: the same command goes on." in text, text
    assert not is_alive(bench.server_of("worker-0")) and list(statuses(tmp_path / "longer").values()) == ["done"]
    rows = [{"prompt": "fine"}] + [{"prompt": "raise"}] * 20
    code, text = bench.run(bench.write("raise.jsonl", rows), tmp_path / "failing", "--max-failed", "2")
    assert code == 1 and "More than 2 of the last rows failed; the commonest errors: (3 times: Text" in text, text
    code, text = bench.run(bench.write("raise.jsonl", rows[1:]), tmp_path / "canary")
    assert code == 1 and "The first row (line 1) is failed, and nothing else was started: Text (Scale" in text, text
    # Mended, the same place takes it: nothing of it was done.
    code, text = bench.run(bench.write("raise.jsonl", rows[:1]), tmp_path / "canary")
    assert code == 0 and len(pictures(tmp_path / "canary")) == 1, text


def test_ray_draws_the_same_bytes_and_replaces_killed_actors(bench, tmp_path):
    """With a killed actor, a row that kills its worker each time, the driver's death, and the same command again."""
    rows = [*slow_rows(16), {"id": "kills", "prompt": "kill-parent"}, {"prompt": "one more"}]
    prompts, out, python = bench.write("ray.jsonl", rows), tmp_path / "ray", str(scale_python())
    options = ("--engine", "ray", "--address", "local", "--workers", "2", "--retries", "1", "--max-failed", "50%")
    process = bench.start(prompts, out, *options, python=python)
    wait_until(lambda: len(pictures(out)) >= 4, 240, process)
    servers = [bench.server_of("ray-0")]
    kill(parent_of(servers[0]))
    wait_until(lambda: not is_alive(servers[0]), 10)
    wait_until(lambda: bench.server_of("ray-0") != servers[0] and len(pictures(out)) >= 12, 240, process)
    servers = [bench.server_of(f"ray-{number}") for number in range(2)]
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(is_alive, servers)), 60)
    code, text = bench.run(prompts, out, *options, python=python)
    assert code == 1, text
    assert statuses(out) == {index: "killed_worker" if index == 16 else "done" for index in range(18)}, text
    assert "18 of 18 rows: 17 done, 1 killed_worker" in text
    assert not any(is_alive(bench.server_of(f"ray-{number}")) for number in range(2))
    local = tmp_path / "local"
    calm = bench.write("calm.jsonl", [row for row in rows if row.get("id") != "kills"])
    bench.run(calm, local)
    drawn, alone = pictures(out), pictures(local)
    equal = [name for name in alone if drawn.get(name) == alone[name]]
    assert len(equal) >= 16 and "images/" in equal[0]


def test_a_signal_ends_a_ray_run_in_order(bench, tmp_path):
    """Ray has a handler of its own for it, which would end the command at once."""
    prompts, out = bench.write("long.jsonl", [{"prompt": f"sleep 1 {n}"} for n in range(40)]), tmp_path / "out"
    options = ("--engine", "ray", "--address", "local", "--workers", "1")
    process = bench.start(prompts, out, *options, python=str(scale_python()))
    wait_until(lambda: len(pictures(out)) >= 3, 300, process)
    process.terminate()
    text, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "Stopped: the same command goes on." in text, text
    assert len(pictures(out)) == len(statuses(out)) < 40 and not is_alive(bench.server_of("ray-0"))


def test_a_batch_is_its_rows_alone_but_for_rounding(tmp_path):
    """Of the demo model, with the pack's own nodes and the graph that comes with the command; in webp for its node."""
    base = prepare_base(tmp_path / "base", pack_name="sana-native")
    prompts = tmp_path / "p.txt"
    prompts.write_text("a red apple on a blue background\na banana --seed 7\na rocket\n", encoding="utf-8")
    command = [
        sys.executable, str(ROOT / "scale"), "run", "--workflow", str(ROOT / "scale" / "demo_batch.json"),
        "--prompts", str(prompts), "--set", "Prompts.prompts={prompts}", "--set", "Seeds.seeds={seeds}",
        "--set", "Latent.batch_size={count}", "--set", "Schedule.steps=2", "--cpu", "--base", str(base),
        "--comfyui", str(HOST), "--python", sys.executable, "--format", "webp", "--quality", "100",
    ]  # fmt: skip
    found = {}
    for batch, expected in (("3", [1, 2, 2]), ("1", [1, 1, 1])):  # the first row runs alone before all others
        out = tmp_path / batch
        own = [*command, "--out", str(out), "--batch", batch]
        done = subprocess.run(own, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        records = [json.loads(line) for line in (out / "manifest" / "000000000000.jsonl").open("rb")]
        assert [(record["seed"], record["batch"]) for record in records] == list(zip([0, 7, 2], expected))
        found[batch] = [np.array(Image.open(out / record["files"][0])).astype(int) for record in records]
    for together, alone in zip(found["3"], found["1"], strict=True):
        assert together.shape == (256, 256, 3) and np.abs(together - alone).mean() < 1
    assert np.abs(found["1"][0] - found["1"][1]).max() > 50
