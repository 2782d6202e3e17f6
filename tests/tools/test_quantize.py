"""The command that writes quantized files."""

import os
import signal
import subprocess
import sys
import time

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


# A file that takes its time, in a process of its own: one layer is written, then it waits.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
from demo.train.pack import prepare_imports
prepare_imports()
from sana_native.models.files import quantized_file
from sana_native.tools import quantize
tensors = quantized_file.quantized_tensors
def slow(*given):
    for part in tensors(*given):
        yield part
        time.sleep(60)
quantized_file.quantized_tensors = slow
quantize.stop_on_signals()
quantize.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-c", SLOW, str(ROOT / "demo" / "checkpoint_sprint"), str(tmp_path / "a.safetensors")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        process.send_signal(number)
        try:
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 128 + number and "Traceback" not in told
    assert not list(tmp_path.iterdir())
