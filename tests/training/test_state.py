"""A run's files: whole or not there, one writer at a time, and every fault told in a sentence with the file."""

import errno
import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
from sana_native.training import state as state_file
from sana_native.training.record import Record
from sana_native.training.run_lock import locked_run
from sana_native.training.settings import numbers_of
from sana_native.training.state import load_state, require_writable, save_state, save_whole
from safetensors.torch import load_file, save_file

TENSORS = {"x": torch.ones(3)}


OF_SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    "raised", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), safetensors.SafetensorError(OF_SAFETENSORS)]
)
def test_a_full_disk_is_told_with_the_file_and_leaves_the_one_before(tmp_path, monkeypatch, raised):
    path = tmp_path / "state.safetensors"
    save_whole(TENSORS, str(path))
    before = path.read_bytes()

    def fill_the_disk(tensors, partial, metadata):
        save_file(tensors, partial, metadata)
        raise raised

    monkeypatch.setattr(state_file, "save_file", fill_the_disk)
    told = r"state.safetensors cannot be written \(.*No space left on device.*\): free some space\.$"
    with pytest.raises(OSError, match=told):
        save_whole({"x": torch.zeros(3)}, str(path))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["state.safetensors"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", r"folder cannot be written \(Is a directory\): move that folder away, or choose another name"),
        ("n" * 250, r"cannot be written \(File name too long\): choose a shorter name"),
        ("file/x", r"file/x cannot be written \(.+\): free some space, or choose a folder that may be written to"),
    ],
)
def test_a_place_that_takes_no_file_is_told_before_and_while_one_is_written(tmp_path, name, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for write in (require_writable, lambda path: save_whole(TENSORS, path)):
        with pytest.raises(OSError, match=told):
            write(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_file_has_the_access_that_the_users_other_new_files_have(tmp_path):
    (tmp_path / "other").write_bytes(b"")
    require_writable(str(tmp_path / "mine"))
    assert os.listdir(tmp_path) == ["other"]
    save_whole(TENSORS, str(tmp_path / "mine"))
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_mount_without_access_rights_takes_files_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    save_whole(TENSORS, str(tmp_path / "mine"))
    assert torch.equal(load_file(tmp_path / "mine")["x"], TENSORS["x"])


def test_a_run_has_one_writer_at_a_time(tmp_path):
    folder = str(tmp_path / "run")
    told = "run is being trained already, here or by tools.train: .+ where nothing trains, delete run.lock in it"
    with locked_run(folder), pytest.raises(ValueError, match=told):
        with locked_run(folder):
            pass
    with locked_run(folder):
        pass


def damaged(folder: Path, kind: str) -> str:
    path, record = folder / "state.safetensors", {"step": 1, "losses": [0.5]}
    if kind == "folder":
        path.mkdir()
    elif kind == "bytes":
        path.write_bytes(b"nothing")
    elif kind == "list":
        save_state(TENSORS, [record], str(path))
    elif kind == "NaN":
        save_state({"x": torch.tensor([1.0, float("nan")])}, record, str(path))
    elif kind == "deep":
        save_whole(TENSORS, str(path), {"sana_training": "[" * 100_000})
    else:
        save_whole(TENSORS, str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["folder", "bytes", "list", "NaN", "deep", "no record"])
def test_what_is_no_state_is_refused_with_its_name(tmp_path, kind):
    with pytest.raises(ValueError, match="state.safetensors is no state of a training: choose resume new, or put the"):
        load_state(damaged(tmp_path, kind))


@pytest.mark.parametrize(
    "changes",
    [{"step": 7}, {"step": None}, {"losses": None}, {"losses": ["a"]}, {"fixed": [[1]]}, {"fixed": [[1, [0.5]]]},
     {"held_out": 3}],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(changes):
    row = [0.1, 0.2, 0.3, 0.4, 0.5]
    record = {"step": 2, "losses": [0.5, float("nan")], "fixed": [[0, row]], "held_out": [[2, row]]}
    found = Record.of(json.loads(json.dumps(record)))
    assert (found.step, found.fixed, found.held_out) == (2, [(0, row)], [(2, row)])
    with pytest.raises(ValueError, match="no record of a run"):
        Record.of(record | changes)


def test_the_numbers_of_runs_are_read_from_folders_and_results_of_the_name_alone(tmp_path):
    names = ("cat_00001", "cat_00002.safetensors", "cat_00003_step000250.safetensors", "cat_00004_ema.safetensors",
             "cat_00005_step1000000_ema.safetensors", "cat_100000", "cat_x", "cat_00008_00009", "a cat_00007",
             "cat_00009.txt")  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert sorted(numbers_of("cat", str(tmp_path))) == [1, 2, 3, 4, 5, 100000]
    assert numbers_of("cat", str(tmp_path / "gone")) == []
