"""A file is there whole or not at all, is what the format says, and its size is known before."""

import errno
import os
import shutil
from pathlib import Path

import comfy.model_management
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sana_native.models.files import quantized_file
from sana_native.models.files.file_errors import check_content
from sana_native.models.files.quantize import PRESETS, Narrow, Plan, Rules
from sana_native.models.files.quantized_file import describe, file_size, numbered, write_quantized, write_safetensors
from torch import Tensor

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
    "half": torch.randn(3, 5).bfloat16(),
    "narrow": torch.randn(3, 3).to(torch.float8_e4m3fn),
    "empty": torch.zeros(0, 4),
    "wide": torch.randn(2, 2, 1, 1),
    "part": torch.randn(4, 6)[:, ::2],
}
LAYOUT = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()}
STATE_DICT = {f"layers.{number}.weight": torch.randn(64, 64) for number in range(4)}
RULES = Rules(narrow=r"^layers\.")


def one_by_one(tensors: dict[str, Tensor] = TENSORS):
    return ({key: tensor} for key, tensor in tensors.items())


def test_what_is_written_is_read_by_safetensors(tmp_path):
    path = str(tmp_path / "a.safetensors")
    size = write_safetensors(path, LAYOUT, one_by_one(), {"format": "pt", "é": "ü"})
    assert size == os.path.getsize(path) == file_size(LAYOUT, {"format": "pt", "é": "ü"})
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key].float(), tensor.float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "é": "ü"}
    check_content(path)  # by the reader's own eyes


def write(folder: Path) -> None:
    write_quantized(str(folder / "a.safetensors"), "a", STATE_DICT, "int8", RULES, {})


def test_a_cancelled_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        write(tmp_path)
    assert len(calls) == 3 and not list(tmp_path.iterdir())


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_text("older")
    monkeypatch.setattr(quantized_file.os, "fsync", lambda _: fail(errno.EIO))
    with pytest.raises(OSError, match=r"a.safetensors cannot be written \(Input/output error\): choose a folder"):
        write(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.safetensors", "older")]


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_part_file_of_somebody_else_stays(tmp_path, monkeypatch, cancelled):
    (tmp_path / "a.safetensors.part").write_text("theirs")
    if cancelled:
        monkeypatch.setattr(quantized_file.os, "fsync", lambda _: fail(errno.EIO))
        with pytest.raises(OSError, match="a.safetensors cannot be written"):
            write(tmp_path)
    else:
        write(tmp_path)
    assert (tmp_path / "a.safetensors.part").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1 + (not cancelled)


def fail(code: int):
    raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, when):
    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    else:
        monkeypatch.setattr(quantized_file.os, "fsync", lambda _: fail(errno.ENOSPC))
    with pytest.raises(OSError, match=r"needs .+ GB, and the disk of .+ is full: free some space, or write to another"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_progress_counts_every_tensor(tmp_path, monkeypatch):
    steps = []

    class Bar:
        def __init__(self, total):
            steps.append(total)

        def update(self, value):
            steps.append(value)

    monkeypatch.setattr("comfy.utils.ProgressBar", Bar)
    write(tmp_path)
    assert steps == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("tensors", [{"odd": torch.zeros(8, dtype=torch.uint8)}, {"other": torch.ones(1)}, {}])
def test_a_plan_that_does_not_hold_is_found_out(tmp_path, tensors):
    with pytest.raises(RuntimeError, match="became|planned"):
        write_safetensors(str(tmp_path / "a.safetensors"), LAYOUT, one_by_one(tensors), {})
    assert not list(tmp_path.iterdir())


def test_names_of_layers_are_brought_together():
    layers = [f"blocks.{number}.a" for number in (0, 1, 2, 5)] + ["blocks.3.b", "c"]
    assert numbered(layers) == ["blocks.{0-2,5}.a", "blocks.3.b", "c"]


def test_the_report_says_why():
    planned = Plan({"a": Narrow("nvfp4"), "b": Narrow("int8_tensorwise", why="so")}, {"c": "it is"}, torch.bfloat16)
    assert describe(planned) == [
        "Narrow: 1 layers nvfp4, 1 layers int8_tensorwise.",
        "In int8_tensorwise because so: b.",
        "Wide because it is: c.",
        "Norms, tables and biases stay wide.",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layer", ["layers.2", "other"])
def test_nan_or_infinity_is_refused_and_leaves_nothing(tmp_path, preset, value, layer):
    state_dict = {key: tensor.clone() for key, tensor in STATE_DICT.items()} | {"other.weight": torch.ones(64, 64)}
    state_dict[f"{layer}.weight"][30, 31] = value
    with pytest.raises(ValueError, match=f"^The MODEL holds NaN or infinity in {layer}.weight: lower the strength of"):
        write_quantized(str(tmp_path / "a.safetensors"), "The MODEL", state_dict, preset, RULES, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layer", "preset", "half"), [("other", "int8", torch.float16), ("layers.2", "int8", None)])
def test_numbers_that_the_format_cannot_hold_are_refused(tmp_path, layer, preset, half):
    """Finite ones: beyond float16 where it stays wide, or beyond float32 once rotated."""
    state_dict = {"layers.2.weight": torch.ones(64, 64), "other.weight": torch.ones(64, 64)}
    state_dict[f"{layer}.weight"] *= 1e5 if half else 3e38
    rules = Rules(narrow=RULES.narrow, half=half or torch.bfloat16)
    with pytest.raises(ValueError, match=f"^a has numbers of up to .+ in {layer}.weight, more than the file's format "):
        write_quantized(str(tmp_path / "a.safetensors"), "a", state_dict, preset, rules, {})
    assert not list(tmp_path.iterdir())
