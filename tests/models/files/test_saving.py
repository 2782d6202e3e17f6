"""Quantized files of real models: what each preset costs, that they load as written, with LoRAs and in parts."""

from pathlib import Path

import folder_paths
import pytest
import safetensors
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_merging import CLIPSave, ModelSave
from safetensors.torch import load_file, save_file
from sana_native.models.files.quantize import PRESETS
from sana_native.models.files.saving import quantize_file, quantize_model
from sana_native.models.gemma.text_encoder import encode_prompts
from sana_native.models.registry import FAMILIES
from sana_native.tests.support import layouts
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import load_gemma, load_sana, states_equal, weights
from torch import Tensor

DEMO = Path(__file__).resolve().parents[3] / "demo"
SOURCES = {
    "sana": (DEMO / "checkpoint", "transformer"),
    "sprint": (DEMO / "checkpoint_sprint", "transformer"),
    "gemma": (DEMO / "checkpoint", "text_encoder"),
}
PROMPT = "a red apple on a blue background"
ENDS = ("weight", "weight_scale", "weight_scale_2", "comfy_quant")
each_preset = pytest.mark.parametrize("preset", PRESETS)
each_model = pytest.mark.parametrize("model", SOURCES)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The quantized file of a demo model and a preset, each written once."""
    folder = tmp_path_factory.mktemp("quantized")

    def write(model: str, preset: str) -> str:
        path = folder / f"{model}_{preset}.safetensors"
        if not path.exists():
            source, component = SOURCES[model]
            quantize_file(FAMILIES, str(source), str(path), preset, component)
        return str(path)

    return write


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def load(model: str, path: str | Path):
    return load_gemma(str(path)) if model == "gemma" else load_sana(str(path))


def outputs(model: str, loaded) -> Tensor:
    """What a model computes from a fixed input."""
    if model == "gemma":
        with torch.inference_mode():
            return encode_prompts(loaded, PROMPT, "")[0][0][0]
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, 12, loaded.model.diffusion_model.config.caption_channels, generator=generator)
    noise = torch.randn(1, 32, 4, 4, generator=generator)
    with torch.inference_mode():
        return loaded.model.apply_model(noise, torch.tensor([0.7]), c_crossattn=context, guidance=torch.tensor([4.5]))


def network_of(model: str, loaded) -> torch.nn.Module:
    return loaded.cond_stage_model if model == "gemma" else loaded.model.diffusion_model


# Root mean square error of a prediction in units of the wide one's, or of the text's states, and at most. Measured:
# int8 0.029, 0.033 and 0.007; fp8 0.078, 0.087 and 0.029; nvfp4 0.195, 0.199 and 0.067; w4a4 0.353, 0.342 and 0.075.
# Text computed in bfloat16, where the processor is fast at it, adds its own rounding: 0.013 with int8.
BOUNDS = {"int8": (0.05, 0.06, 0.02), "fp8": (0.13, 0.17, 0.05), "nvfp4": (0.3, 0.36, 0.11), "w4a4": (0.55, 0.6, 0.12)}
SMALL = 1e-3  # no format is so exact: a smaller error would mean that nothing was quantized


@each_model
@each_preset
def test_a_preset_costs_no_more_than_its_bits(written, model, preset):
    exact = outputs(model, load(model, SOURCES[model][0]))
    bound = BOUNDS[preset][list(SOURCES).index(model)]
    assert SMALL < bench.rms_error(outputs(model, load(model, written(model, preset))), exact) < bound


def own_keys(path: str) -> dict[str, Tensor]:
    return {key.removeprefix("model.diffusion_model."): tensor for key, tensor in load_file(path).items()}


def narrow_layers(tensors: dict[str, Tensor]) -> list[str]:
    return [key.removesuffix(".comfy_quant") for key in tensors if key.endswith(".comfy_quant")]


def without_config(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the settings that a name, a folder or a device decides, such as whether to clamp."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("sana_config")}


@each_model
@each_preset
def test_the_host_has_the_codes_and_scales_of_the_file(written, model, preset):
    path = written(model, preset)
    tensors, loaded = own_keys(path), load(model, path)
    prefix = "gemma2_2b.transformer." if model == "gemma" else ""
    state_dict = network_of(model, loaded).state_dict()
    layers = narrow_layers(tensors)
    assert len(layers) > 10
    for layer in layers:
        parts = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == layer}
        assert isinstance(network_of(model, loaded).get_submodule(prefix + layer).weight, QuantizedTensor)
        assert states_equal({key: state_dict[prefix + key].cpu() for key in parts if not key.endswith("bias")},
                            {key: tensor for key, tensor in parts.items() if not key.endswith("bias")})  # fmt: skip


@each_model
@each_preset
def test_a_file_saved_again_by_the_host_is_the_same_model(written, output, model, preset):
    path = written(model, preset)
    first = load(model, path)
    with torch.inference_mode():
        if model == "gemma":
            CLIPSave().save(first, "clip/again")
        else:
            ModelSave().save(first, "diffusion_models/again")
    (again,) = output.rglob("*.safetensors")
    before, after = own_keys(path), own_keys(str(again))
    narrow = {f"{layer}.{end}" for layer in narrow_layers(before) for end in ENDS}
    assert states_equal({key: tensor for key, tensor in before.items() if key in narrow},
                        {key: tensor for key, tensor in after.items() if key in narrow})  # fmt: skip
    assert states_equal(network_of(model, load(model, again)).state_dict(), network_of(model, first).state_dict())


@each_model
def test_what_is_wide_keeps_its_values(written, model):
    source, component = SOURCES[model]
    (file,) = (source / component).glob("*.safetensors")
    prefix = "model." if model == "gemma" else ""
    wide = {prefix + key: tensor for key, tensor in load_file(file).items()}
    for key, tensor in own_keys(written(model, "int8")).items():
        if key in wide and tensor.dtype == torch.bfloat16:
            assert torch.equal(tensor, wide[key]), key


def test_a_model_in_32_bits_becomes_the_same_file_as_its_16_bits(written, tmp_path):
    loaded = load("sana", SOURCES["sana"][0])
    assert loaded.model.get_dtype() == torch.float32
    path = str(tmp_path / "from_model.safetensors")
    with torch.inference_mode():
        quantize_model(FAMILIES, "transformer", loaded, path, "int8")
    assert states_equal(*map(without_config, (load_file(path), load_file(written("sana", "int8")))))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("preset", ["int8", "fp8"])
def test_a_text_encoder_moves_in_every_mode(written, preset, inference):
    """As to a GPU: the host moves it in inference mode, and does not have to have loaded it there."""
    clip = load("gemma", written("gemma", preset))
    table = clip.cond_stage_model.gemma2_2b.transformer.get_input_embeddings()
    before = table.weight.dequantize().clone()
    with torch.inference_mode(inference):
        clip.cond_stage_model.to(torch.device("cpu"))
        assert isinstance(table.weight, QuantizedTensor) and torch.equal(table.weight.dequantize(), before)


def test_a_quantized_text_encoder_that_has_read_a_prompt_moves_and_reads_on(written):
    """Its caches hold weak references, and torch moves no tensor that has one."""
    clip = load("gemma", written("gemma", "int8"))
    with torch.inference_mode():
        before = clip.encode_from_tokens(clip.tokenize("a fox"))
        clip.patcher.detach()
        clip.cond_stage_model.to(torch.device("cpu"))
        assert torch.equal(clip.encode_from_tokens(clip.tokenize("a fox")), before)


def test_a_lora_acts_on_a_quantized_text_encoder_that_has_read_a_prompt(written):
    def with_lora(clip):
        layer = "model.layers.0.self_attn.q_proj"
        weight = clip.cond_stage_model.gemma2_2b.transformer.get_submodule(layer).weight
        change = torch.randn(tuple(weight.shape), generator=torch.Generator().manual_seed(5)) * 0.3
        clone = clip.clone()
        assert clone.add_patches({f"gemma2_2b.transformer.{layer}.weight": ("diff", (change,))})
        return clone

    with torch.inference_mode():
        used, fresh = (load("gemma", written("gemma", "int8")) for _ in range(2))
        plain = used.encode_from_tokens(used.tokenize("a fox"))
        expected = with_lora(fresh).encode_from_tokens(fresh.tokenize("a fox"))
        assert torch.equal(with_lora(used).encode_from_tokens(used.tokenize("a fox")), expected)
        assert not torch.allclose(expected, plain, atol=1e-2)


def test_a_text_encoder_in_use_becomes_the_file_of_its_folder(written, tmp_path):
    path = str(tmp_path / "from_clip.safetensors")
    with torch.inference_mode():
        quantize_model(FAMILIES, "text_encoder", load("gemma", SOURCES["gemma"][0]), path, "int8")
    found, expected = load_file(path), load_file(written("gemma", "int8"))
    found.pop("logit_scale")  # of the host's class, which no released file has
    assert states_equal(found, expected)


# LoRAs


def patch(patcher) -> dict:
    """A change of a linear layer and of a 1x1 convolution, far larger than rounding."""
    generator = torch.Generator().manual_seed(4)
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.conv_point")
    found = {}
    for name in names:
        shape = patcher.model.diffusion_model.get_submodule(name).weight.shape
        found[f"diffusion_model.{name}.weight"] = ("diff", (torch.randn(shape, generator=generator) * 0.2,))
    return found


def patched(patcher):
    clone = patcher.clone()
    assert len(clone.add_patches(patch(patcher))) == 2
    return clone


@each_preset
def test_a_lora_on_a_written_model_acts_as_on_the_wide_one(written, preset):
    plain = outputs("sana", load("sana", SOURCES["sana"][0]))
    outs = []
    for path in (SOURCES["sana"][0], written("sana", preset)):
        with torch.inference_mode():
            clone = patched(load("sana", path))
            clone.load(clone.load_device, full_load=True)
        outs.append(outputs("sana", clone))
    assert bench.rms_error(outs[0], plain) > 2 * bench.rms_error(outs[1], outs[0])
    assert bench.rms_error(outs[1], outs[0]) < BOUNDS[preset][0]


def test_a_lora_is_merged_into_the_file(tmp_path):
    source = load("sana", SOURCES["sana"][0])
    changes = {key: change for key, (_, (change,)) in patch(source).items()}
    before = {key: source.model.get_parameter(key).clone() for key in changes}
    path = str(tmp_path / "merged.safetensors")
    with torch.inference_mode():
        quantize_model(FAMILIES, "transformer", patched(source), path, "int8")
    loaded = load("sana", path).model
    for key, change in changes.items():
        narrow, merged = loaded.get_parameter(key).dequantize(), before[key] + change
        assert bench.rms_error(narrow, merged) < 0.02 < bench.rms_error(before[key], merged)


# Where it comes from


def test_every_layout_becomes_the_same_file(tmp_path):
    state_dict = weights("sana")
    config = bench.folder() / "sana" / "transformer" / "config.json"
    for name, tensors in (("diffusers", state_dict), ("nvidia", layouts.nvidia_sana(state_dict))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.read_text())
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / name / "model.safetensors")
        quantize_file(FAMILIES, str(tmp_path / name), str(tmp_path / f"{name}.safetensors"), "int8")
    found, expected = (load_file(tmp_path / f"{name}.safetensors") for name in ("nvidia", "diffusers"))
    assert states_equal(without_config(found), without_config(expected))


def test_a_sharded_folder_becomes_the_same_file(tmp_path):
    import diffusers

    source = bench.folder() / "sprint" / "transformer"
    model = diffusers.SanaTransformer2DModel.from_pretrained(source)
    model.save_pretrained(tmp_path / "shards" / "transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "shards" / "transformer").glob("*-of-*.safetensors"))) > 1
    for name, folder in (("one", source.parent), ("many", tmp_path / "shards")):
        quantize_file(FAMILIES, str(folder), str(tmp_path / f"{name}.safetensors"), "nvfp4")
    assert states_equal(*(load_file(tmp_path / f"{name}.safetensors") for name in ("one", "many")))


def test_one_layer_at_a_time_is_in_memory(tmp_path):
    source = SOURCES["sana"][0] / "transformer" / "diffusion_pytorch_model.safetensors"
    largest = max(tensor.numel() for tensor in load_file(source).values()) * torch.float32.itemsize
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        quantize_file(FAMILIES, str(source), str(tmp_path / "out.safetensors"), "int8")
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    mapped = source.stat().st_size  # torch counts the file's mapping, which the system reads in and drops at will
    assert mapped > 10 * largest / 2 and mapped < peak < mapped + 4 * largest


def test_the_header_says_what_the_file_is(written):
    with safetensors.safe_open(written("sprint", "int8"), "pt") as file:
        told = file.metadata()
    assert told == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "sana-sprint",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "sprint_int8",
        "modelspec.description": "SANA transformer, quantized with the preset int8",
    }


# What is refused


def refused(tmp_path, source, error=ValueError, preset="int8", target="out.safetensors") -> str:
    with pytest.raises(error) as caught:
        quantize_file(FAMILIES, str(source), str(tmp_path / target), preset)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_quantized_file_is_not_quantized_again(written, tmp_path):
    text = refused(tmp_path, written("sana", "int8"))
    assert text.startswith("quantized0/sana_int8.safetensors is already quantized") or "is already quantized" in text
    assert not list(tmp_path.iterdir())


def test_a_quantized_model_is_not_quantized_again(written, tmp_path):
    for model, socket, component in (("sana", "MODEL", "transformer"), ("gemma", "CLIP", "text_encoder")):
        loaded = load(model, written(model, "int8"))
        with pytest.raises(ValueError, match=f"^The {socket} is already quantized.+quantize the bf16"):
            quantize_model(FAMILIES, component, loaded, str(tmp_path / "out.safetensors"), "int8")


def test_float8_weights_are_not_quantized_again(tmp_path):
    loaded = load_sana(str(SOURCES["sana"][0]), {"dtype": torch.float8_e4m3fn})
    with pytest.raises(ValueError, match="^The MODEL has float8 weights already.+loaded with weight_dtype auto"):
        quantize_model(FAMILIES, "transformer", loaded, str(tmp_path / "out.safetensors"), "int8")


def test_another_model_is_named(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    assert "is a LoRA (load it with a LoRA node), not a SANA transformer or " in refused(
        tmp_path, tmp_path / "lora.safetensors"
    )
    assert "is a DC-AE autoencoder (use SANA DC-AE Loader), not a SANA tra" in refused(
        tmp_path, DEMO / "checkpoint/vae"
    )


def test_a_target_that_exists_is_kept(tmp_path):
    (tmp_path / "out.safetensors").write_text("mine")
    assert "out.safetensors exists already: delete it" in refused(tmp_path, SOURCES["sana"][0], FileExistsError)
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_a_target_of_another_kind_is_refused(tmp_path):
    assert "does not end in .safetensors" in refused(tmp_path, SOURCES["sana"][0], target="out.gguf")


def test_a_target_in_no_folder_is_refused(tmp_path):
    text = refused(tmp_path, SOURCES["sana"][0], OSError, target="none/out.safetensors")
    assert "cannot be written (No such file or directory): choose a folder that exists" in text


def test_a_source_that_is_not_there_is_refused(tmp_path):
    assert "does not exist" in refused(tmp_path, tmp_path / "none.safetensors", FileNotFoundError)


def test_a_preset_that_does_not_exist_is_refused(tmp_path):
    assert refused(tmp_path, SOURCES["sana"][0], preset="int2").endswith("use int8, fp8, nvfp4, w4a4.")
