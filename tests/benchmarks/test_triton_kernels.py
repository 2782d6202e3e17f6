"""The fused kernels against float64, in Triton's interpreter, and compiled for NVIDIA cards; no card is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: it is for Linux and Windows alone")

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("depthwise_gate", "kv_state", "linear_attention", "norm_add", "bias_silu")
# The interpreter cuts a result to bfloat16 instead of rounding it: up to a unit in the last of eight places.
LIMITS = {"float32": 1e-6, "bfloat16": 2**-8}
CARDS = (80, 90)  # compute capabilities, in tens: A100, H100
COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from benchmarks import triton_kernels as kernels

HALF, WIDE = "*bf16", "*fp32"
SOURCES = {
    "depthwise_gate_kernel": (dict(x=HALF, weight=HALF, bias=HALF, out=HALF),
                              dict(H=32, W=32, D=5600, COLUMNS=16, WIDTH=64)),
    "kv_state_kernel": (dict(k=HALF, v=HALF, out=WIDE), dict(N=1024, C=2240, d=32, SPLIT=1024, TOKENS=64, WIDE=False)),
    "apply_state_kernel": (dict(q=HALF, state=WIDE, out=HALF), dict(N=1024, C=2240, d=32, EPS=1e-15, TOKENS=64)),
    "norm_add_kernel": (dict(x=HALF, y=HALF, weight=HALF, bias=HALF, rows="i32"),
                        dict(C=128, EPS=1e-5, ROWS=32, WIDTH=128)),
    "bias_silu_kernel": (dict(x=HALF, bias=HALF, rows="i32"), dict(C=128, ROWS=32, WIDTH=128)),
}
sizes = {}
for name, (types, constants) in SOURCES.items():
    kernel = getattr(kernels, name)
    places = {(kernel.arg_names.index(constant),): value for constant, value in constants.items()}
    signature = types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, places, {})
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    sizes[name] = len(compiled.asm["cubin"])
print(json.dumps(sizes))
"""


def run(arguments: list[str], **variables: str) -> dict:
    """JSON that a process of its own prints: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def errors() -> dict:
    """Relative errors by kernel and format."""
    return run(["-m", "benchmarks.triton_kernels"], TRITON_INTERPRET="1")


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_computes_what_its_plain_form_does_in_float64(errors, kernel, dtype):
    assert errors.keys() == set(KERNELS)
    # A sum over tokens stays in float32, of inputs in any format.
    assert 0 < errors[kernel][dtype] < (LIMITS["float32"] if kernel == "kv_state" else LIMITS[dtype])


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="the assembler for NVIDIA cards comes with Triton for Linux")
@pytest.mark.parametrize("card", CARDS)
def test_every_kernel_compiles_for_a_card(card, tmp_path):
    sizes = run(["-c", COMPILE, str(card)], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(sizes) == 5 and all(size > 0 for size in sizes.values())
