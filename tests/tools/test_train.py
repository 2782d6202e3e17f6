"""The training command: it goes on with the node's run, alone or in two processes, and survives being killed."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from sana_native.tests.training import conftest as training
from sana_native.tools.train import main, new_files
from sana_native.training.state import load_state

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(folder_paths.__file__).resolve().parent
pictures, encoded, files, run = training.pictures, training.encoded, training.files, training.run  # fixtures
ENVIRONMENT = os.environ | {"COMFYUI_PATH": str(HOST), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
       "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


def command(files, *arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, "-m", "tools.train", "--config", files.config, *arguments]


def finished(files, *arguments: str, launcher: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        command(files, *arguments, launcher=launcher),
        **{"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 600},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(files, *arguments: str, script: str = "") -> subprocess.Popen:
    whole = (
        [sys.executable, "-c", script, "--config", files.config, *arguments] if script else command(files, *arguments)
    )
    return subprocess.Popen(whole, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def lines_until(process: subprocess.Popen, beginning: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith(beginning):
            return lines
    raise AssertionError(f"no line {beginning!r}: {lines}")


def step_of(files) -> int:
    return load_state(files.state)[1]["step"]


def whole_files(files) -> list[str]:
    """Names of a run's files; every one under a final name must load to its end."""
    paths = [*Path(files.state).parent.iterdir(), *Path(files.result).parent.iterdir()]
    for path in paths:
        if path.suffix == ".safetensors":
            assert all(value.isfinite().all() for value in load_file(path).values())
    return sorted(path.name for path in paths)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("steps", ["-5", "0", "1.5", "x", "1000001"])
def test_a_number_of_steps_that_is_none_is_refused(capsys, steps):
    with pytest.raises(SystemExit) as ended:
        main(["--config", "run.json", "--steps", steps, "--new"])
    assert ended.value.code == 2
    assert f"'{steps}' is no number of steps: enter 1 to 1000000" in capsys.readouterr().err


def test_the_next_number_is_one_that_no_result_has(tmp_path):
    for path in ("runs/cat_00001/run.json", "loras/cat_00004_step000002.safetensors"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    files = training.RunFiles(str(tmp_path / "runs/cat_00001/state.safetensors"), str(tmp_path / "loras/x.safetensors"))
    assert new_files(files).result == str(tmp_path / "loras/cat_00005.safetensors")


def test_it_goes_on_with_the_nodes_run_and_the_node_with_its_own_to_the_bit(run, files):
    options = {"ema": 0.9, "warmup": 2}
    whole, _ = run(steps=6, **options)
    run(steps=2, **options)
    told = finished(files, "--steps", "4")
    assert told.startswith(f"Goes on with {files.state}, processes: 1\n") and "step 4 of 4, loss " in told
    assert told.endswith(f"4 of 4 steps are done: {files.result}\n") and step_of(files) == 4
    resumed, record = run(steps=6, resume=True, **options)
    assert equal(resumed, whole) and len(record.losses) == 6


@pytest.mark.heavy
def test_it_begins_a_run_of_its_own_with_the_next_number(run, files, tmp_path):
    run()
    folder = tmp_path / "mine_00001"
    Path(files.state).parent.rename(folder)
    new = type(files)(str(folder / "state.safetensors"), files.result.replace("mine.", "mine_00001."))
    text = Path(new.config).read_text(encoding="utf-8")
    Path(new.config).write_text(
        text.replace(files.state, new.state).replace(files.result, new.result), encoding="utf-8"
    )
    before = (folder / "state.safetensors").read_bytes()
    told = finished(new, "--new")
    assert f"Begins {tmp_path / 'mine_00002' / 'state.safetensors'}" in told
    assert (folder / "state.safetensors").read_bytes() == before
    assert equal(load_file(files.result), load_file(files.result.replace("mine.", "mine_00002.")))


@pytest.mark.heavy
def test_two_processes_equal_one_with_twice_the_batch(run, files):
    """Of a bucket with three pictures and of one with a single picture, which only one process has."""
    options = {"batch_size": 2, "caption_dropout": 0.5, "accumulation": 1, "learning_rate": 1e-3}
    whole, record = run(steps=6, **options)
    state, _ = load_state(files.state)
    run(steps=1, **options)
    told = finished(files, "--steps", "6", launcher=TWO)
    assert "processes: 2" in told and told.count("6 of 6 steps are done") == 1
    tensors, found = load_state(files.state)
    assert found["losses"] == pytest.approx(record.losses, rel=1e-5)
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-5)
    assert all(torch.allclose(value, whole[name], atol=1e-5) for name, value in load_file(files.result).items())


@pytest.mark.heavy
def test_sigterm_saves_and_the_same_command_goes_on(run, files):
    run(steps=1)
    process = started(files, "--steps", "100000")
    lines_until(process, "step ")
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    stopped = step_of(files)
    assert process.returncode == 130 and f"{stopped} of 100000 steps are done" in told and stopped > 1
    assert equal(load_file(files.result), run(steps=stopped)[0])


def test_sigkill_in_the_middle_of_training_loses_no_more_than_save_every_steps(run, files):
    run(steps=1, save_every=3)
    process = started(files, "--steps", "100000")
    lines_until(process, "step ")
    last = int(lines_until(process, "step ")[-1].split()[1])
    process.kill()
    process.communicate()
    assert step_of(files) > last - 3 and step_of(files) % 3 == 0
    assert not [name for name in whole_files(files) if name.endswith(".partial") and "state" not in name]
    going_on, record = run(steps=step_of(files) + 2, resume=True, save_every=3)
    assert record.step == len(record.losses) and all(value.isfinite().all() for value in going_on.values())


KILLED_WHILE_SAVING = """
import sys, time
from demo.train.pack import prepare_imports
from tools.train import main
prepare_imports()
from sana_native.training import state
real, calls = state.save_file, []

def save_file(tensors, path, metadata):
    calls.append(path)
    real(tensors, path, metadata)
    if len(calls) == CALL:
        with open(path, "rb+") as file:
            file.truncate(file.seek(0, 2) // 2)
        sys.stdout.write("half " + path + chr(10))
        sys.stdout.flush()
        time.sleep(600)

state.save_file = save_file
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("call", "saved"), [(4, 2), (5, 4)], ids=["state", "lora"])
def test_sigkill_in_the_middle_of_a_save_leaves_the_files_before(run, files, call, saved):
    """A save is a state, the LoRA, and the LoRA with the step in its name; the fourth file is the second state."""
    whole, _ = run(steps=6, save_every=2)
    run(steps=1, save_every=2)
    process = started(files, "--steps", "6", script=KILLED_WHILE_SAVING.replace("CALL", str(call)))
    half = lines_until(process, "half ")[-1]
    process.kill()
    process.communicate()
    assert half.endswith(".partial") and step_of(files) == saved
    whole_files(files)
    assert equal(run(steps=6, resume=True, save_every=2)[0], whole)


def test_a_fault_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # where the command is started
    for logger in (logging.root, logging.getLogger("sana_native")):
        monkeypatch.setattr(logger, "level", logger.level)  # which the command sets
    assert main(["--config", str(tmp_path / "gone.json")]) == 1
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1].endswith("give the run.json in a folder of output/sana_training.")
