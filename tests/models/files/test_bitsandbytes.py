"""Files that bitsandbytes has quantized: 4 bits to its own numbers, 8 bits to its codes, loaded as people have them."""

import json
import logging
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file, save_file
from sana_native.models.files.bitsandbytes import unify_bitsandbytes
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import (
    in_eight_bits,
    in_four_bits,
    is_linear,
    load_gemma,
    load_sana,
    weights,
)
from torch import Tensor

KINDS = pytest.mark.parametrize("kind", ["nf4", "fp4"])
KEY = "transformer_blocks.1.attn1.to_q"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@KINDS
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 128), (96, 100), (5, 28)])
def test_four_bits_are_widened_to_the_very_numbers_of_bitsandbytes(kind, nested, dtype, shape):
    for storage in (torch.uint8, torch.bfloat16):
        parts = in_four_bits(
            "a.weight", noise(*shape).to(dtype), kind, compress_statistics=nested, quant_storage=storage
        )
        packed, state = bnb.quantize_4bit(
            noise(*shape).to(dtype), quant_type=kind, blocksize=64, compress_statistics=nested, quant_storage=storage
        )
        expected = bnb.dequantize_4bit(packed, state)
        out, layers = unify_bitsandbytes("model", parts)
        assert not layers
        assert list(out) == ["a.weight"] and out["a.weight"].shape == shape
        assert torch.equal(out["a.weight"], expected.bfloat16() if dtype == torch.float32 else expected)


def test_eight_bits_keep_their_codes():
    parts = in_eight_bits("a.weight", noise(48, 64))
    out, layers = unify_bitsandbytes("model", dict(parts))
    assert out.keys() == {"a.weight", "a.weight_scale"} and layers == {"a": {"format": "int8_tensorwise"}}
    assert torch.equal(out["a.weight"], parts["a.weight"]) and out["a.weight_scale"].shape == (48, 1)
    restored = out["a.weight"].float() * out["a.weight_scale"]
    expected = bnb.int8_vectorwise_dequant(parts["a.weight"], parts["a.SCB"])
    torch.testing.assert_close(restored, expected.float(), rtol=1e-6, atol=0)


def test_other_files_are_not_touched():
    state_dict = {"a.weight": noise(2, 2)}
    found, layers = unify_bitsandbytes("model", state_dict)
    assert found is state_dict and not layers


def write_sana(folder: Path, family: str, convert, dtype=torch.bfloat16) -> str:
    """A diffusers folder as bitsandbytes leaves it: linear layers narrow, config.json telling so."""
    path = folder / "transformer"
    path.mkdir()
    config = json.loads((bench.folder() / family / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (path / "config.json").write_text(json.dumps(config))
    out: dict[str, Tensor] = {}
    for key, tensor in weights(family).items():
        out |= convert(key, tensor.to(dtype)) if is_linear(key, tensor) else {key: tensor.to(dtype)}
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, path / "diffusion_pytorch_model.safetensors")
    return str(folder)


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_folder_in_8_bits_loads_as_the_hosts_int8(tmp_path, family):
    patcher = load_sana(write_sana(tmp_path, family, in_eight_bits))
    weight = patcher.model.diffusion_model.get_submodule(KEY).weight
    assert isinstance(weight, QuantizedTensor) and weight._layout_cls == "TensorWiseINT8Layout"
    assert 1e-3 < bench.rms_error(bench.velocity(patcher), bench.velocity(bench.model(family))) < 0.025


@KINDS
def test_a_folder_in_4_bits_loads_wide_and_says_so_once(tmp_path, kind, caplog):
    with caplog.at_level(logging.INFO, "sana_native"):
        patcher = load_sana(write_sana(tmp_path, "sana", lambda key, tensor: in_four_bits(key, tensor, kind)))
    said = [record.getMessage() for record in caplog.records if "bitsandbytes" in record.getMessage()]
    assert len(said) == 1 and "layers in 4 bits by bitsandbytes, widened to 16: they save disk, not memory" in said[0]
    weight = patcher.model.diffusion_model.get_submodule(KEY).weight
    packed, state = bnb.quantize_4bit(weights("sana")[f"{KEY}.weight"].bfloat16(), quant_type=kind, blocksize=64)
    assert torch.equal(weight, bnb.dequantize_4bit(packed, state).float())
    assert 1e-2 < bench.rms_error(bench.velocity(patcher), bench.velocity(bench.model("sana"))) < 0.35


@pytest.mark.parametrize(
    "options",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
    ids=["8 bits", "4 bits"],
)
def test_a_text_encoder_that_transformers_has_quantized(tmp_path, options):
    """Written by transformers itself, which does that on a CPU too; diffusers asks for a GPU."""
    source = bench.folder() / "sana"
    config = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModel.from_pretrained(source / "text_encoder", quantization_config=config)
    model.save_pretrained(tmp_path / "text_encoder")
    shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    written = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert any(key.endswith((".SCB", "__nf4")) for key in written)
    states, exact = (
        bench.call("CLIPTextEncode", clip, "a cat")[0][0][0] for clip in (load_gemma(str(tmp_path)), bench.clip())
    )
    assert 1e-3 < bench.rms_error(states, exact) < (0.05 if "load_in_8bit" in options else 0.4)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sd: sd.pop(f"{KEY}.weight.absmax"),
        lambda sd: sd.pop(f"{KEY}.weight.quant_map"),
        lambda sd: sd.pop(f"{KEY}.weight.quant_state.bitsandbytes__nf4"),
        lambda sd: sd.pop(f"{KEY}.weight"),
        lambda sd: sd.update({f"{KEY}.weight.quant_state.bitsandbytes__nf4": torch.tensor([123], dtype=torch.uint8)}),
        lambda sd: sd.update({f"{KEY}.weight": sd[f"{KEY}.weight"][:-8]}),
    ],
)
def test_damaged_4_bits_are_refused_in_one_sentence(spoil):
    state_dict = in_four_bits(f"{KEY}.weight", noise(64, 64)) | in_four_bits("other.weight", noise(64, 64))
    spoil(state_dict)
    with pytest.raises(
        ValueError, match=f"^my file is quantized by bitsandbytes, and what belongs to {KEY}.weight is d"
    ):
        unify_bitsandbytes("my file", state_dict)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda sd: sd.pop("a.weight"),
        lambda sd: sd.update({"a.SCB": sd["a.SCB"][:-1]}),
        lambda sd: sd.update({"a.weight": sd["a.weight"].float()}),
        lambda sd: sd.update({"a.weight_format": torch.ones((), dtype=torch.uint8)}),
    ],
)
def test_damaged_8_bits_are_refused_in_one_sentence(spoil):
    state_dict = in_eight_bits("a.weight", noise(64, 64))
    spoil(state_dict)
    with pytest.raises(
        ValueError, match="what belongs to a.weight is damaged or missing .+: download it again, or use th"
    ):
        unify_bitsandbytes("my file", state_dict)


def told(**changes):
    """A change of the JSON beside a weight; None takes an entry out."""

    def change(state_dict: dict[str, Tensor]) -> None:
        key = f"{KEY}.weight.quant_state.bitsandbytes__nf4"
        entries = json.loads(bytes(state_dict[key].tolist())) | changes
        text = json.dumps({name: value for name, value in entries.items() if value is not None})
        state_dict[key] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    return change


def part(name: str, change):
    return lambda sd: sd.update({f"{KEY}.weight.{name}": change(sd[f"{KEY}.weight.{name}"])})


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda sd: sd.pop(f"{KEY}.weight.nested_absmax"), "nested_absmax is missing"),
        (lambda sd: sd.pop(f"{KEY}.weight.nested_quant_map"), "nested_quant_map is missing"),
        (told(nested_offset=None), "nested_offset is missing"),
        (told(nested_blocksize=None), "nested_blocksize is missing"),
        (told(nested_blocksize=None, nested_offset=None, nested_dtype=None), "nested_blocksize is missing"),
        (told(nested_blocksize=32), "nested_absmax has 1 numbers, expected 2"),
        (told(blocksize=128), "absmax has 64 numbers, expected 32"),
        (told(blocksize=0), "blocksize is 0"),
        (told(blocksize=-64), "blocksize is -64"),
        (told(blocksize="64"), "blocksize is 64"),
        (told(shape=[64, -1]), r"shape is \[64, -1\]"),
        (told(shape=[4096]), r"shape is \[4096\]"),
        (told(shape=[64, 128]), "weight has 2048 bytes, expected 4096"),
        (told(dtype="int8"), "dtype is int8, expected bfloat16, float16, float32"),
        (told(dtype="float64"), "dtype is float64, expected bfloat16"),
        (told(quant_type="fp4"), "quant_type is fp4"),
        (told(quant_type=None), "quant_type is missing"),
        (part("absmax", lambda tensor: tensor[:-1]), "absmax has 63 numbers, expected 64"),
        (part("absmax", lambda tensor: torch.cat([tensor, tensor])), "absmax has 128 numbers, expected 64"),
        (part("quant_map", lambda tensor: tensor[:8]), "quant_map has 8 numbers, expected 16"),
        (part("nested_absmax", lambda tensor: tensor * float("nan")), "it holds NaN or infinity"),
        (lambda sd: sd.update({f"{KEY}.weight": sd[f"{KEY}.weight"].float()}), "weight has 8192 bytes, expected 2048"),
        (part("quant_state.bitsandbytes__nf4", lambda tensor: tensor.float()), "quant_state is no text"),
        (
            part("quant_state.bitsandbytes__nf4", lambda _: torch.tensor(list(b"[1]"), dtype=torch.uint8)),
            "quant_state is no JSON object",
        ),
    ],
)
def test_what_is_wrong_with_4_bits_is_said(spoil, what):
    state_dict = in_four_bits(f"{KEY}.weight", noise(64, 64).bfloat16(), compress_statistics=True)
    spoil(state_dict)
    with pytest.raises(ValueError, match=rf"^my file .+ belongs to {KEY}.weight is damaged or missing \({what}\)?"):
        unify_bitsandbytes("my file", state_dict)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda sd: sd.pop("a.SCB"), "SCB is missing"),
        (lambda sd: sd.update({"a.SCB": sd["a.SCB"] * float("nan")}), "SCB holds other than finite, positive numbers"),
        (lambda sd: sd["a.SCB"].zero_(), "SCB is 0 for rows that are not"),
        (lambda sd: sd["a.SCB"][3:4].zero_(), "SCB is 0 for rows that are not"),
        (lambda sd: sd.update({"a.SCB": sd["a.SCB"][:, None]}), r"SCB has shape \(64, 1\), expected \(64,\)"),
    ],
)
def test_what_is_wrong_with_8_bits_is_said(spoil, what):
    state_dict = in_eight_bits("a.weight", noise(64, 64))
    spoil(state_dict)
    with pytest.raises(ValueError, match=rf"^my file .+ belongs to a.weight is damaged or missing \({what}\): down"):
        unify_bitsandbytes("my file", state_dict)


def test_a_row_of_zeros_in_8_bits_is_none_that_is_damaged():
    weight = noise(64, 64)
    weight[5] = 0
    parts = in_eight_bits("a.weight", weight)
    parts["a.weight"][5], parts["a.SCB"][5] = 0, 0
    out, _ = unify_bitsandbytes("my file", parts)
    assert not (out["a.weight"].float() * out["a.weight_scale"])[5].any()
