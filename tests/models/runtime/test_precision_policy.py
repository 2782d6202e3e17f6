"""Which formats are chosen: the policy for every kind of file, the host's start flags, the log line, the help page."""

import itertools
import logging
import re
from pathlib import Path

import pytest
import torch
from comfy.cli_args import args
from sana_native.models.dc_ae import loader as dc_ae_loader
from sana_native.models.gemma import loader as gemma_loader
from sana_native.models.runtime import precision
from sana_native.models.runtime.device import describe_device, requested
from sana_native.models.runtime.precision import (
    Device,
    Request,
    dc_ae_precision,
    gemma_precision,
    lumina_precision,
    sana_precision,
)
from sana_native.models.sana import loader as sana_loader
from sana_native.tests.support import workbench as bench
from sana_native.tools import make_precision_table

CPU = Device("the CPU")
GPU = Device("cuda:0", float16=True, bfloat16=True)
OLD = Device("cuda:0", float16=True)
CPU_BFLOAT16 = Device("the CPU", bfloat16_on_request=True)
DEVICES = [CPU, CPU_BFLOAT16, GPU, OLD, Device("cuda:0"), Device("cuda:0", tight=True, float8=True)]
DTYPES = [
    None,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
]
FLAGS = [
    "force_fp16", "force_fp32", "fp64_unet", "fp32_unet", "bf16_unet", "fp16_unet", "fp8_e4m3fn_unet",
    "fp8_e5m2_unet", "fp8_e8m0fnu_unet", "fp16_vae", "fp32_vae", "bf16_vae", "fp16_text_enc", "fp32_text_enc",
    "bf16_text_enc", "fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc",
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_makes_a_model_overflow(device):
    """float16 computes only what was trained in it, and with the clamp."""
    asked = [Request(dtype, "someone") for dtype in DTYPES]
    for trained_in, request, stored, quantized in itertools.product(
        ("float16", "bfloat16", None), asked, DTYPES[1:], ("", "int8_tensorwise")
    ):
        decided = sana_precision(trained_in, stored, request, device, quantized)
        assert decided.compute != torch.float16 or (trained_in == "float16" and decided.clamp)
        assert decided.clamp is (trained_in != "bfloat16")
        assert decided.compute in (torch.float16, torch.bfloat16, torch.float32, torch.float64) and decided.reason
    for request, stored in itertools.product(asked, DTYPES[1:]):
        gemma = gemma_precision(stored, request, device)
        assert gemma.compute in (torch.bfloat16, torch.float32)
        assert gemma.compute == torch.float32 or gemma.weights not in (torch.float16, torch.float32, torch.float64)
        assert dc_ae_precision(request, device).compute in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("trained_in", "dtype", "device", "weights", "compute"),
    [
        ("float16", None, GPU, torch.float16, torch.float16),
        ("float16", None, OLD, torch.float16, torch.float16),
        ("float16", None, CPU, torch.float32, torch.float32),
        ("bfloat16", None, GPU, torch.bfloat16, torch.bfloat16),
        ("bfloat16", None, OLD, torch.float32, torch.float32),
        (None, None, GPU, torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16, CPU, torch.bfloat16, torch.float32),
        ("bfloat16", torch.bfloat16, CPU_BFLOAT16, torch.bfloat16, torch.bfloat16),
        ("bfloat16", None, CPU_BFLOAT16, torch.float32, torch.float32),
        ("bfloat16", torch.float16, GPU, torch.float16, torch.bfloat16),
        (None, torch.float16, OLD, torch.float16, torch.float32),
        ("float16", torch.bfloat16, GPU, torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.float8_e4m3fn, GPU, torch.float8_e4m3fn, torch.bfloat16),
        ("bfloat16", torch.float8_e4m3fn, CPU, torch.float8_e4m3fn, torch.float32),
        ("float16", torch.float32, GPU, torch.float32, torch.float32),
    ],
)
def test_formats_of_a_transformer(trained_in, dtype, device, weights, compute):
    decided = sana_precision(trained_in, torch.float32, Request(dtype, "someone"), device)
    assert (decided.weights, decided.compute) == (weights, compute)


@pytest.mark.parametrize(
    ("stored", "dtype", "device", "weights", "compute"),
    [
        (torch.bfloat16, None, GPU, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, None, OLD, torch.bfloat16, torch.float32),
        (torch.bfloat16, None, CPU, torch.bfloat16, torch.float32),
        (torch.bfloat16, None, CPU_BFLOAT16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, GPU, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, GPU, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float8_e4m3fn, GPU, torch.float8_e4m3fn, torch.bfloat16),
        (torch.float16, None, GPU, torch.float16, torch.float32),
        (torch.float16, torch.bfloat16, GPU, torch.bfloat16, torch.bfloat16),
        (torch.float32, None, GPU, torch.float32, torch.float32),
    ],
)
def test_formats_of_the_text_encoder(stored, dtype, device, weights, compute):
    decided = gemma_precision(stored, Request(dtype, "someone"), device)
    assert (decided.weights, decided.compute) == (weights, compute)


def test_float16_asked_for_where_it_would_overflow_is_warned_about_in_one_sentence():
    warning = sana_precision("bfloat16", None, Request(torch.float16, "--fp16-unet"), GPU).warning
    assert re.search("trained in bfloat16 and may overflow in the float16 asked for by --fp16-unet", warning)
    assert not sana_precision("float16", None, Request(torch.float16, "--fp16-unet"), GPU).warning
    assert not sana_precision("bfloat16", None, Request(torch.float16, "--fp16-unet"), CPU).warning


def test_memory_decides_where_the_format_would_not():
    tight, roomy = Device("cuda:0", tight=True), Device("cuda:0")
    assert sana_precision("float16", None, Request(), tight).weights == torch.float16
    assert sana_precision("bfloat16", None, Request(), tight).weights == torch.bfloat16
    assert sana_precision("bfloat16", None, Request(), roomy).weights == torch.float32
    stored = torch.float8_e5m2
    assert sana_precision("bfloat16", stored, Request(), Device("cuda:0", float8=True)).weights == stored
    assert sana_precision("bfloat16", stored, Request(), roomy).weights == torch.float32


# Flags of the host


@pytest.fixture
def flags(monkeypatch):
    """Sets start flags; all others are as if the host had been started without any."""
    for name in FLAGS:
        monkeypatch.setattr(args, name, False)
    return lambda *names: [monkeypatch.setattr(args, name, True) for name in names]


@pytest.mark.parametrize(
    ("names", "component", "dtype", "by"),
    [
        ([], "unet", None, ""),
        (["fp16_unet"], "unet", torch.float16, "--fp16-unet"),
        (["force_fp16", "fp16_unet"], "unet", torch.float16, "--force-fp16"),
        (["fp8_e4m3fn_unet"], "unet", torch.float8_e4m3fn, "--fp8_e4m3fn-unet"),
        (["fp16_vae"], "vae", torch.float16, "--fp16-vae"),
        (["fp16_unet"], "vae", None, ""),
        (["fp8_e5m2_text_enc"], "text_enc", torch.float8_e5m2, "--fp8_e5m2-text-enc"),
    ],
)
def test_a_flag_asks_as_a_widget_does(flags, names, component, dtype, by):
    flags(*names)
    assert requested(None, "the widget", component) == Request(dtype, by)
    assert requested(torch.float32, "the widget", component) == Request(torch.float32, "the widget")


def test_every_flag_that_the_host_has_is_known():
    known = {name for name in vars(args) if re.fullmatch(r"(fp|bf)\d\w*_(unet|vae|text_enc)", name)}
    assert known == {name for name in FLAGS if not name.startswith("force")}


def test_this_device_is_described_as_the_host_sees_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert describe_device(torch.device("cpu"), 1000) == CPU
    huge = describe_device(torch.device("cpu"), 10**14)
    assert huge.tight and huge.float8


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16"])
def test_a_processor_with_instructions_for_bfloat16_takes_it_when_asked(flags, instructions, monkeypatch):
    flags()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instructions: True}, raising=False)
    assert describe_device(torch.device("cpu"), 1000) == CPU_BFLOAT16
    flags("force_fp32")
    assert not describe_device(torch.device("cpu"), 1000).bfloat16_on_request


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The device computes on the CPU but is described as a GPU that is fast at both formats.

    The models that tests share are loaded before, in float32.
    """
    for family in bench.FAMILIES:
        bench.model(family)
    for loader in (sana_loader, dc_ae_loader, gemma_loader):
        monkeypatch.setattr(loader, "describe_device", lambda *_: GPU)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("names", [[name] for name in FLAGS] + [["force_fp16", "fp16_unet", "fp16_vae"], []])
def test_no_flag_spoils_the_picture(flags, names):
    """Sprint and its autoencoder, loaded under every flag, against the picture without."""
    expected = bench.draw(bench.model("sprint"), bench.encoded())
    flags(*names)
    model, vae = bench.fresh_model("sprint"), bench.load_dc_ae(str(bench.folder() / "sana"))
    assert model.model.get_dtype_inference() in (torch.bfloat16, torch.float32, torch.float64)
    assert vae.vae_dtype in (torch.bfloat16, torch.float32)
    if "fp8_e8m0fnu_unet" in names:
        assert model.model.get_dtype() == torch.bfloat16
    latent = bench.draw(model, bench.encoded())
    error = float((latent - expected).square().mean().sqrt() / expected.std())
    assert error < (0.3 if "fp8" in "".join(names) else 0.05)
    assert torch.isfinite(vae.decode(latent)).all()


@pytest.mark.usefixtures("on_a_gpu")
def test_a_model_trained_in_float16_is_computed_in_it():
    model = bench.fresh_model("sana", trained_in_float16=True)
    assert model.model.get_dtype() == model.model.get_dtype_inference() == torch.float16
    out, exact = (bench.draw(patcher, bench.encoded()) for patcher in (model, bench.model("sana")))
    assert 0 < bench.relative(out, exact) < 0.05


@pytest.mark.parametrize("name", [name for name in FLAGS if name.endswith("text_enc")])
def test_no_flag_spoils_the_text(flags, name):
    flags(name)
    encoder = bench.load_gemma(str(bench.folder() / "sana"))
    states, exact = (bench.call("CLIPTextEncode", clip, "a cat")[0][0][0] for clip in (encoder, bench.clip()))
    kept = encoder.cond_stage_model.gemma2_2b.transformer.model.layers[0].mlp.up_proj.weight.dtype
    expected = {"fp16": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}.get(name[:4])
    assert kept == (expected or getattr(torch, name.replace("fp8", "float8").removesuffix("_text_enc")))
    assert float((states - exact).square().mean().sqrt()) < (0.5 if "fp8" in name else 0.03)


# What is said


def log_of(caplog, load, *inputs) -> list[str]:
    with caplog.at_level(logging.INFO, logger="sana_native.models"):
        caplog.clear()
        load(*inputs)
    return [record.getMessage() for record in caplog.records if record.name.startswith("sana_native.models")]


def test_each_file_is_described_in_one_line(caplog):
    path = str(bench.folder() / "sana")
    (line,) = log_of(caplog, sana_loader.load_sana, path)
    assert re.search(
        r"sana/transformer/diffusion_pytorch_model.safetensors is SANA 64 wide, 2 deep \(0.\d\d M parameters, "
        r"diffusers layout\), training format unknown, native 1024 px, weights float32, computed in float32, "
        r"self-attention clamped \(bfloat16 is slow on the CPU\)$",
        line,
    )
    (line,) = log_of(caplog, gemma_loader.load_gemma, path)
    assert re.search(
        r"is Gemma-2, width 64 \(.+ parameters\), weights float32, computed in float32 \(as the file", line
    )
    (line,) = log_of(caplog, dc_ae_loader.load_dc_ae, path)
    assert re.search(r"is DC-AE f32c32 \(diffusers layout\), weights float32, computed in float32 \(bfloat16 is", line)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_format_that_is_not_taken_is_warned_about(caplog, flags):
    flags("fp16_unet", "fp16_vae", "fp16_text_enc")
    path = str(bench.folder() / "sana")
    for load, message in (
        (sana_loader.load_sana, "may overflow in the float16 asked for by --fp16-unet, so it is computed in bfloat16"),
        (
            dc_ae_loader.load_dc_ae,
            "the float16 asked for by --fp16-vae is not taken, because DC-AE gives black images in it",
        ),
        (
            gemma_loader.load_gemma,
            "the float16 asked for by --fp16-text-enc is not taken, because Gemma was trained in",
        ),
    ):
        warning, _ = log_of(caplog, load, path)
        assert message in warning


def test_the_page_is_what_the_code_prints():
    page = make_precision_table.PAGE.read_text(encoding="utf-8")
    assert page == make_precision_table.page(), "run python -m tools.make_precision_table"
    assert Path(precision.__file__).name in page


@pytest.mark.parametrize(
    "device, weights, compute",
    [
        (Device("a GPU", float16=True, bfloat16=True), torch.bfloat16, torch.bfloat16),
        (Device("an older GPU", float16=True), torch.float32, torch.float32),
        (Device("a small GPU", float16=True, tight=True), torch.bfloat16, torch.float32),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_lumina_next_is_never_computed_in_float16(device, weights, compute):
    decided = lumina_precision("x", torch.float32, Request(), device)
    assert (decided.weights, decided.compute, decided.clamp) == (weights, compute, False)
    for by in ("weight_dtype", "--fp16-unet"):
        with pytest.raises(ValueError, match=f"overflows in the float16 asked for by {by}: set weight_dtype to bfloat"):
            lumina_precision("x", torch.float16, Request(torch.float16, by), device)
