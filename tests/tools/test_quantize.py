"""The command that writes quantized files."""

import subprocess
import sys

import pytest
from safetensors.torch import load_file
from sana_native.models.files.quantize import PRESETS
from sana_native.tools import quantize
from sana_native.tools.host import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tools.quantize", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def test_the_command_writes_a_file_and_says_what_it_did(tmp_path):
    target = tmp_path / "sprint.safetensors"
    done = run(ROOT / "demo" / "checkpoint_sprint", target, "--preset", "w4a4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "sprint.safetensors is written: 0.00" in done.stdout
    assert "layers convrot_w4a4" in done.stdout and "Traceback" not in done.stderr
    assert "model.diffusion_model.transformer_blocks.0.attn1.to_q.comfy_quant" in load_file(target)


def test_a_mistake_is_one_sentence_and_a_status(tmp_path):
    done = run(tmp_path / "none.safetensors", tmp_path / "out.safetensors")
    assert done.returncode == 1 and "none.safetensors does not exist" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_knows_every_preset():
    assert list(quantize.HELP) == list(PRESETS)
    assert quantize.read_arguments(["in", "out"]).preset == "int8"


def test_an_unknown_preset_is_refused(capsys):
    with pytest.raises(SystemExit):
        quantize.read_arguments(["in", "out", "--preset", "int3"])
    assert "invalid choice: 'int3'" in capsys.readouterr().err
