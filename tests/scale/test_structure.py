"""The command's own gates: it runs where neither torch nor the host is installed, and its files stay readable."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sana_native.scale import command
from sana_native.scale.job import RunError
from sana_native.tools.structure import ROOT, imports_of, lines_of, longest_functions

FILES = sorted((ROOT / "scale").glob("*.py"))
LIBRARIES = {"aiohttp", "ray", "pyarrow", "fsspec", "sana_native"}
OTHER_ROOMS = {
    "models.sana.resolution",
    "tools.comfy_server",
    "tools.host",
    "tools.workflow",
    "tools.workflow_blueprint",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_imports_no_torch_and_nothing_of_the_host(file):
    for one in imports_of(file):
        if one.inside:
            assert one.module.startswith("scale.") or one.module in OTHER_ROOMS, one.line
        else:
            assert one.module.partition(".")[0] in set(sys.stdlib_module_names) | LIBRARIES, one.line
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), f"line {node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_and_functions_stay_short(file):
    assert lines_of(file) <= 360 and not [one for one in longest_functions([file]) if one[0] > 54]


def test_its_help_and_its_refusals_need_no_host(tmp_path):
    """From another directory, as a user calls it by its path."""
    command = [sys.executable, "-I", str(ROOT / "scale")]

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert run("--help")[0] == 0 and "the same command again goes on" in run("--help")[1]
    assert run("status", "--out", "none") == (1, f"{tmp_path / 'none'} holds no job: give the --out of a run.\n")
    (tmp_path / "p.txt").write_text("a cat")
    (tmp_path / "w.json").write_text("[]")
    job = ("run", "--out", "out", "--workflow", "w.json", "--comfyui", str(tmp_path))
    assert "holds no ComfyUI: give --comfyui" in run(*job, "--prompts", "p.txt")[1]
    (tmp_path / "main.py").touch()
    assert "none.txt is no file" in run(*job, "--prompts", "none.txt", "--base", ".")[1]
    assert "none is no folder: give --base" in run(*job, "--prompts", "p.txt", "--base", "none")[1]
    assert '--max-failed "x" is neither' in run(*job, "--prompts", "p.txt", "--base", ".", "--max-failed", "x")[1]
    assert run(*job, "--prompts", "p.txt", "--base", ".") == (
        1,
        "w.json holds no workflow: save one in ComfyUI, or export it for the API.\n",
    )
    graph = {"1": {"class_type": "Text", "inputs": {"text": ""}}, "2": {"class_type": "SaveImage", "inputs": {}}}
    (tmp_path / "w.json").write_text(json.dumps(graph))
    wrong = run(*job, "--prompts", "p.txt", "--base", ".", "--set", "Prompt.text={prompt}")
    assert wrong == (1, "0 nodes are called Prompt, expected one; give a title or class of one: Text, SaveImage.\n")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--batch", "0", "--batch 0 is out of range: give 1 or more"),
        ("--timeout", "nan", "--timeout nan is out of range: give 1 or more"),
        ("--quality", "101", "--quality 101 is out of range: give 1 to 100"),
        ("--seed-base", "-1", "--seed-base -1 is out of range: give 0 to 18446744073709551615"),
        ("--gpus-per-worker", "-1", "--gpus-per-worker -1.0 is out of range"),
        ("--size", "777", "--size: .*777"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_runs(tmp_path, option, value, sentence):
    (tmp_path / "p.txt").write_text("a cat")
    job = ["run", "--out", "o", "--workflow", "w.json", "--prompts", str(tmp_path / "p.txt"), option, value]
    with pytest.raises(RunError, match=sentence):
        command.settings_of(command.parser().parse_args(job), tmp_path)


def test_a_detached_run_outlives_its_command_and_writes_a_log(tmp_path):
    (tmp_path / "p.txt").write_text("a cat")
    (tmp_path / "w.json").write_text("[]")
    job = [sys.executable, "-I", str(ROOT / "scale"), "run", "--out", str(tmp_path / "out"), "--workflow", "w.json"]
    job += ["--prompts", "p.txt", "--comfyui", str(ROOT / "none"), "--detach"]
    told = subprocess.run(job, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    pid, log = re.match(r"Runs on as process (\d+), its log is (.+); to stop it: kill \1\n", told).groups()
    deadline = time.monotonic() + 60
    while not Path(log).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "holds no ComfyUI" in Path(log).read_text() and int(pid)
    before = Path(log).read_text()
    subprocess.run(job, cwd=tmp_path, capture_output=True, check=True)
    assert Path(log).read_text().startswith(before)  # why the first run ended can still be read


def test_a_shortened_option_is_refused():
    """`--det` would start commands that detach one another for ever."""
    job = ["run", "--out", "o", "--workflow", "w.json", "--prompts", "p.txt"]
    assert command.parser().parse_args([*job, "--detach"]).detach
    with pytest.raises(SystemExit):
        command.parser().parse_args([*job, "--det"])


@pytest.mark.skipif(os.name == "nt", reason="there a program's name has an ending")
def test_workers_are_in_a_folder_of_their_job_and_their_python_has_a_whole_path(tmp_path, monkeypatch):
    (tmp_path / "main.py").touch()
    for name in ("python", "on-path/own-python"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "on-path"))
    monkeypatch.setattr(command, "has_gpu", lambda: False)

    def host(*more: str):
        job = ["run", "--workflow", "w.json", "--prompts", "p.txt", "--comfyui", ".", "--base", ".", "--work", "work"]
        return command.find_host(command.parser().parse_args([*job, *more]))

    one = host("--out", "a", "--python", "./python")
    other = host("--out", "b", "--python", "own-python", "--engine", "ray")
    assert Path(one.work).parent == Path(other.work).parent == tmp_path / "work" and one.work != other.work
    assert one.python == str(tmp_path / "python") and other.python == str(tmp_path / "on-path" / "own-python")
    assert one.cpu and not other.cpu  # whether a cluster has GPUs is Ray's to say
    with pytest.raises(RunError, match="no-python is no Python that can be run: give --python"):
        host("--out", "a", "--python", "no-python")
