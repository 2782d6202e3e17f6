"""Little memory, start flags and compilation leave the picture: all of it through the host's own management."""

import json
import subprocess
import sys

import comfy.memory_management
import comfy.model_management
import comfy.ops
import comfy.utils
import numpy as np
import pytest
import safetensors.torch
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from sana_native.models.files.quantize import PRESETS
from sana_native.models.files.saving import quantize_file
from sana_native.models.registry import FAMILIES
from sana_native.tests.models import test_pictures as pictures
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import load_gemma, load_sana, quantized, weights, write_model
from sana_native.tools.workflow import set_inputs
from torch import Tensor

NO_MEMORY = 0.1  # bytes for weights: what the host hands down under --novram


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes of the device's memory that the host gives to weights, as it does on a GPU that is short of it.

    On a CPU the host never asks, and its flags --lowvram and --novram exclude --cpu; the loading itself is the same.
    """

    def set_room(size: float) -> list:
        loaded = []

        def load(self, _, force_patch_weights=False):
            used = self.model.partially_load(self.device, size, force_patch_weights=force_patch_weights)
            loaded.append(self.model.model)
            return used

        monkeypatch.setattr(comfy.model_management.LoadedModel, "model_use_more_vram", load)
        return loaded

    yield set_room
    monkeypatch.undo()
    comfy.model_management.unload_all_models()


def load_parts(family: str) -> tuple:
    path = str(bench.folder() / "sana")
    return bench.fresh_model(family), bench.load_gemma(path), bench.load_dc_ae(path)


def whole_graph(model, clip, vae) -> Tensor:
    """Prompt to picture and back to a latent, with the host's own nodes."""
    positive, negative = (bench.call("CLIPTextEncode", clip, text)[0] for text in ("a red bus", ""))
    latent = bench.ksampler(model, (positive, negative), bench.empty(96, 64), steps=2)
    image = bench.call("VAEDecode", vae, {"samples": latent})[0]
    return torch.cat([image.flatten(), bench.call("VAEEncode", vae, image)[0]["samples"].flatten()])


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("size", [NO_MEMORY, 400_000.0], ids=["no memory", "some memory"])
def test_little_memory_gives_the_same_bits(family, size, room):
    expected = whole_graph(*load_parts(family))
    loaded = room(size)
    assert torch.equal(whole_graph(*load_parts(family)), expected)
    partial = {type(model).__name__ for model in loaded if model.model_lowvram}
    assert partial == {"SanaModel", "SanaTextEncoder", "InplaceAutoencoderDC"}


def test_memory_that_comes_and_goes_gives_the_same_bits(room):
    parts = load_parts("sana")
    expected = whole_graph(*parts)
    for size in (NO_MEMORY, 1e9, 300_000.0, NO_MEMORY, 1e9):
        comfy.model_management.unload_all_models()
        room(size)
        assert torch.equal(whole_graph(*parts), expected)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int8_tensorwise", "nvfp4"])
def test_little_memory_gives_a_quantized_model_the_same_bits(kind, room, tmp_path):
    path = write_model(tmp_path, quantized(weights("sprint"), kind))
    expected = bench.draw(load_sana(path), bench.encoded())
    loaded = room(NO_MEMORY)
    assert torch.equal(bench.draw(load_sana(path), bench.encoded()), expected)
    assert loaded[-1].model_lowvram


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [NO_MEMORY, 60_000.0], ids=["no memory", "some memory"])
def test_little_memory_gives_a_written_model_the_same_bits(preset, size, room, tmp_path):
    paths = []
    for component, family in (("transformer", "sprint"), ("text_encoder", "sana")):
        paths.append(str(tmp_path / f"{component}.safetensors"))
        quantize_file(FAMILIES, str(bench.folder() / family), paths[-1], preset, component)

    def graph() -> Tensor:
        clip = load_gemma(paths[1])
        conds = tuple(bench.call("CLIPTextEncode", clip, text)[0] for text in ("a red bus", ""))
        return bench.draw(load_sana(paths[0]), conds)

    expected = graph()
    loaded = room(size)
    assert torch.equal(graph(), expected)
    assert {type(model).__name__ for model in loaded if model.model_lowvram} == {"SanaModel", "SanaTextEncoder"}


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_little_memory_applies_a_patch_as_enough_of_it_does(family, room):
    change = torch.randn(64, 64, generator=torch.Generator().manual_seed(4)) * 0.1
    patch = {"diffusion_model.transformer_blocks.0.attn1.to_q.weight": ("diff", (change,))}
    outs = []
    for size in (1e9, NO_MEMORY):
        room(size)
        patcher = bench.fresh_model(family).clone()
        patcher.add_patches(patch)
        outs.append(bench.draw(patcher, bench.encoded()))
    assert bench.relative(outs[0], bench.draw(bench.model(family), bench.encoded())) > 1e-3
    assert bench.relative(*outs) < 1e-5


def test_files_load_where_the_host_streams_weights(monkeypatch):
    """As on NVIDIA: layers have no weights before a file gives them theirs, and the host maps files itself."""
    parts = load_parts("sana")
    expected = whole_graph(*parts)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.utils, "load_safetensors", lambda path: (safetensors.torch.load_file(path), {}))
    assert comfy.ops.manual_cast.Linear(2, 2).weight is None
    # Not bit for bit: such layers need no gradient, and torch multiplies by those in another order.
    assert bench.relative(whole_graph(*load_parts("sana")), expected) < 1e-4


# The real server


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("flags", "exact"),
    [
        (("--disable-mmap",), True),
        (("--cpu-vae", "--disable-smart-memory", "--cache-none"), True),
        (("--force-fp16", "--fp16-vae", "--fp16-text-enc"), False),
        (("--bf16-unet", "--bf16-vae", "--bf16-text-enc"), False),
        (("--fp8_e4m3fn-unet", "--fp8_e4m3fn-text-enc"), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_start_flags_leave_the_picture(comfy_server, flags, exact):
    images = []
    for server in (comfy_server(prepare=pictures.save_models), comfy_server(*flags, prepare=pictures.save_models)):
        prompt = pictures.load_graph(server, "sana_txt2img", "tiny-sana/")
        prompt = set_inputs(prompt, "SanaNativeSampler", seed=pictures.SEED, steps=4)
        prompt = set_inputs(prompt, "SanaNativeEmptyLatent", size="custom", width=256, height=192)
        images.append(pictures.pictures(server, prompt).astype(float))
    assert images[0].std() > 20
    if exact:
        assert np.array_equal(*images)
    else:
        assert 0 < np.abs(images[0] - images[1]).mean() < (20 if "fp8" in flags[0] else 4)


# Measured in processes of their own


def benchmark(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=pictures.ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.heavy
def test_loading_needs_no_more_than_the_file(tmp_path):
    benchmark("loading", "--step", "write", str(tmp_path), "3")
    for cache in ("cold", "warm"):
        found = json.loads(benchmark("loading", "--step", "measure", "ours", cache, str(tmp_path)))
        assert 0.9 * found["size"] < found["peak"] < 1.1 * found["size"]


@pytest.mark.heavy
def test_the_host_is_told_of_enough_memory_but_not_of_thrice_as_much():
    rows = benchmark("memory", "--stages", "step", "decode", "encode", "--sizes", "256", "512").splitlines()[2:]
    shares = [float(row.split("|")[-2]) for row in rows]
    assert len(shares) == 6 and all(1 < share < 3 for share in shares)


# Compilation

VARIANTS = {
    "SANA": {},
    "SANA-1.5": {"qk_norm": "rms_norm_across_heads"},
    "SANA-Sprint": {"sprint": True},
    "SANA 4K": {"sample_size": 128, "interpolation_scale": 2},
}


@pytest.mark.heavy
@pytest.mark.parametrize("backend", ["inductor", "cudagraphs"])  # without a GPU the second replays nothing
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_hosts_compile_node_leaves_the_latent_and_breaks_no_graph(tmp_path, monkeypatch, variant, backend):
    # What the host uses on a GPU; its attention for the CPU asks for the free memory, which no compiler can follow.
    monkeypatch.setattr("sana_native.models.sana.model.optimized_attention", attention_pytorch)
    tiny.transformer(**VARIANTS[variant]).save_pretrained(tmp_path / "transformer")
    model = bench.load_sana(str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = bench.call(TorchCompileModel, model, backend)[0]
    out = bench.draw(compiled, bench.encoded())
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]
    assert bench.relative(out, bench.draw(model, bench.encoded())) < 1e-4
