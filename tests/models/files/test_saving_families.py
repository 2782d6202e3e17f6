"""PixArt, Lumina-Next, T5 and Gemma-1 with narrow weights: written, loaded by the same loaders, and with LoRAs."""

import json
import shutil
from pathlib import Path

import folder_paths
import pytest
import safetensors
import torch
import transformers
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_merging import CLIPSave, ModelSave
from safetensors.torch import load_file, save_file
from sana_native.models.files.quantize import PRESETS
from sana_native.models.files.saving import quantize_file, quantize_model
from sana_native.models.registry import FAMILIES, load_model
from sana_native.tests.support import pixart, tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.quantized import in_eight_bits, in_four_bits, is_linear, states_equal
from torch import Tensor

PROMPT = "a red apple on a blue background"
COMPONENTS = {"pixart": "transformer", "lumina": "transformer", "t5": "text_encoder", "gemma1": "text_encoder"}
LAYERS = {  # one that every preset makes narrow
    "pixart": "diffusion_model.blocks.0.attn.qkv",
    "lumina": "diffusion_model.layers.0.attention.wk_y",
    "t5": "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    "gemma1": "gemma_2b.transformer.model.layers.0.self_attn.q_proj",
}
each_model = pytest.mark.parametrize("model", COMPONENTS)
each_preset = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """Model -> a file or folder as its release has it."""
    folder = tmp_path_factory.mktemp("sources")
    pixart.t5().save_pretrained(folder / "t5" / "text_encoder")
    model = pixart.reference(layers=3, heads=8)  # 64 divides its width, as of the release
    return {
        "pixart": pixart.save(model, "Sigma 512", "authors", folder),
        "lumina": str(bench.lumina_folder()),
        "t5": str(folder / "t5"),
        "gemma1": str(bench.lumina_folder()),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory, sources):
    """The quantized file of a model and a preset, each written once."""
    folder = tmp_path_factory.mktemp("quantized")

    def write(model: str, preset: str) -> str:
        path = folder / f"{model}_{preset}.safetensors"
        if not path.exists():
            quantize_file(FAMILIES, sources[model], str(path), preset, COMPONENTS[model])
        return str(path)

    return write


@torch.inference_mode()
def load(model: str, path: str):
    """As the host's executor runs one of the three loader nodes."""
    return load_model(COMPONENTS[model], path)


def network_of(model: str, loaded) -> torch.nn.Module:
    return loaded.model if COMPONENTS[model] == "transformer" else loaded.cond_stage_model


def outputs(model: str, loaded) -> Tensor:
    """What a model computes from a fixed input."""
    if COMPONENTS[model] == "text_encoder":
        with torch.inference_mode():
            return loaded.encode_from_tokens(loaded.tokenize(PROMPT))
    generator = torch.Generator().manual_seed(2)
    width = {"pixart": pixart.TEXT_WIDTH, "lumina": tiny.LUMINA_CAPTION_CHANNELS}[model]
    context = torch.randn(1, 12, width, generator=generator)
    with torch.inference_mode():
        noise = torch.randn(1, 4, 16, 16, generator=generator)
        return loaded.model.apply_model(noise, torch.tensor([0.7]), c_crossattn=context)


# Root mean square error in units of the wide model's prediction or states, and at most.
BOUNDS = {
    "pixart": {"int8": 0.01, "fp8": 0.03, "nvfp4": 0.3, "w4a4": 0.3},
    "lumina": {"int8": 0.01, "fp8": 0.03, "nvfp4": 0.3, "w4a4": 0.3},
    "t5": {"int8": 0.08, "fp8": 0.4, "nvfp4": 1, "w4a4": 1},
    "gemma1": {"int8": 0.02, "fp8": 0.1, "nvfp4": 0.3, "w4a4": 0.3},
}
SMALL = 1e-3  # no format is so exact: a smaller error would mean that nothing was quantized


@each_model
@each_preset
def test_a_preset_costs_no_more_than_its_bits(sources, written, model, preset):
    exact = outputs(model, load(model, sources[model]))
    error = bench.rms_error(outputs(model, load(model, written(model, preset))), exact)
    assert SMALL < error < BOUNDS[model][preset]


def image(model: str, loaded) -> Tensor:
    """Of a whole run of 8 steps from a fixed noise, decoded by one autoencoder; values from 0 to 1."""
    width = {"pixart": pixart.TEXT_WIDTH, "lumina": tiny.LUMINA_CAPTION_CHANNELS}[model]
    generator = torch.Generator().manual_seed(5)
    conds = [[[torch.randn(1, length, width, generator=generator), {}]] for length in (12, 3)]
    sampler = {"pixart": ("dpmpp_2m", "sana_pixart"), "lumina": ("euler", "normal")}[model]
    latent = {"samples": torch.zeros(1, 4, 12, 16)}
    out = bench.call("KSampler", loaded, 3, 8, 4.5, *sampler, *conds, latent, 1.0)[0]["samples"]
    with torch.no_grad():
        return (tiny.kl_vae().decode(out).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("model", ["pixart", "lumina"])
def test_an_image_in_8_bits_is_within_40_db_of_the_wide_one(sources, written, model):
    exact, narrow = (image(model, load(model, path)) for path in (sources[model], written(model, "int8")))
    assert exact.std() > 0.05
    psnr = float(-10 * (narrow - exact).square().mean().log10())
    assert 40 < psnr < 80


def own_keys(path: str | Path) -> dict[str, Tensor]:
    return {key.removeprefix("model.diffusion_model."): tensor for key, tensor in load_file(path).items()}


def narrow_layers(tensors: dict[str, Tensor]) -> list[str]:
    return [key.removesuffix(".comfy_quant") for key in tensors if key.endswith(".comfy_quant")]


@pytest.mark.parametrize("preset", ["int8", "nvfp4"])
@each_model
def test_a_file_saved_again_by_the_host_is_the_same_model(written, tmp_path, monkeypatch, model, preset):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    first = load(model, written(model, preset))
    with torch.inference_mode():
        if COMPONENTS[model] == "text_encoder":
            CLIPSave().save(first, "clip/again")
        else:
            ModelSave().save(first, "diffusion_models/again")
    (again,) = (tmp_path / "output").rglob("*.safetensors")
    layers = narrow_layers(own_keys(written(model, preset)))
    assert len(layers) > 5 and isinstance(network_of(model, first).get_submodule(LAYERS[model]).weight, QuantizedTensor)
    assert states_equal(*(network_of(model, one).state_dict() for one in (load(model, str(again)), first)))


@each_model
def test_a_model_in_use_becomes_the_file_of_its_source(sources, written, tmp_path, model):
    path = str(tmp_path / "from_model.safetensors")
    with torch.inference_mode():
        quantize_model(FAMILIES, COMPONENTS[model], load(model, sources[model]), path, "int8")
    found, expected = load_file(path), load_file(written(model, "int8"))
    found.pop("logit_scale", None)  # of the host's class, which no released file has
    assert states_equal(found, expected)


@pytest.mark.parametrize("preset", ["int8", "fp8"])
@each_model
def test_a_lora_acts_on_a_written_model_as_on_the_wide_one(sources, written, model, preset):
    plain, outs = outputs(model, load(model, sources[model])), []
    for path in (sources[model], written(model, preset)):
        with torch.inference_mode():
            loaded = load(model, path)
            shape = tuple(network_of(model, loaded).get_submodule(LAYERS[model]).weight.shape)
            change = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 0.3
            clone = loaded.clone()
            assert clone.add_patches({f"{LAYERS[model]}.weight": ("diff", (change,))})
        outs.append(outputs(model, clone) if COMPONENTS[model] == "text_encoder" else with_patches(model, clone))
    assert bench.rms_error(outs[0], plain) > 2 * bench.rms_error(outs[1], outs[0])


def with_patches(model: str, patcher) -> Tensor:
    with torch.inference_mode():
        patcher.load(patcher.load_device, full_load=True)
    return outputs(model, patcher)


def test_the_header_names_family_and_authors(written):
    told = {}
    for model in COMPONENTS:
        with safetensors.safe_open(written(model, "int8"), "pt") as file:
            told[model] = [file.metadata()[f"modelspec.{key}"] for key in ("architecture", "implementation")]
    assert told == {
        "pixart": ["pixart-sigma", "https://github.com/PixArt-alpha/PixArt-sigma"],
        "lumina": ["lumina-next", "https://github.com/Alpha-VLLM/Lumina-T2X"],
        "t5": ["t5-v1.1-xxl", "diffusers"],
        "gemma1": ["gemma-1", "diffusers"],
    }


@pytest.mark.parametrize("kind", ["alpha 256", "alpha 1024-MS", "Sigma 2K"])
@pytest.mark.parametrize("layout", ["authors with pos_embed", "diffusers folder"])
def test_a_narrow_pixart_is_of_the_same_kind_under_any_name(kind, layout, tmp_path):
    source = pixart.save(pixart.reference(kind, layers=2), kind, layout, tmp_path)
    quantize_file(FAMILIES, source, str(tmp_path / "mine.safetensors"), "int8")
    wide, narrow = (load("pixart", path).model for path in (source, str(tmp_path / "mine.safetensors")))
    assert narrow.config == wide.config and type(narrow.latent_format) is type(wide.latent_format)


def test_the_report_says_what_stays_wide_and_why(sources, tmp_path):
    report = str(quantize_file(FAMILIES, sources["pixart"], str(tmp_path / "a.safetensors"), "nvfp4"))
    assert "Wide because every block depends on it: final_layer.linear, t_embedder.mlp.0, " in report
    assert "In int8_tensorwise because SANA's like it loses too much in 4 bits: " in report
    assert "blocks.{0-2}.cross_attn.kv_linear" in report
    report = str(quantize_file(FAMILIES, sources["lumina"], str(tmp_path / "b.safetensors"), "int8"))
    assert "Wide because it scales all tokens of a block: layers.{0-" in report


# Files of bitsandbytes


def diffusers_folder(model: str, convert, folder: Path) -> str:
    """A transformer's folder as diffusers saves it with all linear layers narrow."""
    network = pixart.reference(layers=2, heads=4) if model == "pixart" else tiny.lumina()
    network.save_pretrained(folder / "transformer")
    config = folder / "transformer" / "config.json"
    told = json.loads(config.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    config.write_text(json.dumps(told))
    out: dict[str, Tensor] = {}
    for key, tensor in network.state_dict().items():
        tensor = tensor.bfloat16()
        out |= convert(key, tensor) if is_linear(key, tensor) else {key: tensor}
    (file,) = (folder / "transformer").glob("*.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, file)
    return str(folder)


@pytest.mark.parametrize(("convert", "bound"), [(in_eight_bits, 0.05), (in_four_bits, 0.4)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("model", ["pixart", "lumina"])
def test_a_transformer_by_bitsandbytes_loads(model, convert, bound, tmp_path):
    network = pixart.reference(layers=2, heads=4) if model == "pixart" else tiny.lumina()
    network.save_pretrained(tmp_path / "wide" / "transformer")
    loaded = load(model, diffusers_folder(model, convert, tmp_path / "narrow"))
    weight = network_of(model, loaded).get_submodule(LAYERS[model]).weight
    assert isinstance(weight, QuantizedTensor) == (convert is in_eight_bits)
    error = bench.rms_error(outputs(model, loaded), outputs(model, load(model, str(tmp_path / "wide"))))
    assert SMALL < error < bound


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"load_in_8bit": True}, 0.2),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, 1),
    ],
    ids=["8 bits", "4 bits"],
)
@pytest.mark.parametrize("model", ["t5", "gemma1"])
def test_a_text_encoder_by_bitsandbytes_loads(model, options, bound, sources, tmp_path):
    """Written by transformers itself, which leaves T5's `wo` in 32 bits."""
    source = Path(sources[model])
    kind = {"t5": transformers.T5EncoderModel, "gemma1": transformers.AutoModel}[model]
    config = transformers.BitsAndBytesConfig(**options)
    kind.from_pretrained(source / "text_encoder", quantization_config=config).save_pretrained(tmp_path / "text_encoder")
    if (source / "tokenizer").is_dir():
        shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    narrow = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert any(key.endswith((".SCB", "__nf4")) for key in narrow)
    error = bench.rms_error(outputs(model, load(model, str(tmp_path))), outputs(model, load(model, sources[model])))
    assert SMALL < error < bound


def test_a_t5_in_8_bits_holds_what_is_wide_in_the_format_of_its_table(tmp_path):
    """transformers leaves `wo`, a fifth of T5, in 32 bits whatever the rest has."""
    state_dict = {}
    for key, tensor in pixart.t5().state_dict().items():
        if key.endswith(("wo.weight", "norm.weight")):
            state_dict[key] = tensor
        elif key.startswith("encoder.block") and "relative" not in key:
            state_dict |= in_eight_bits(key, tensor)
        elif not key.startswith("encoder.embed"):
            state_dict[key] = tensor.half()
    save_file(state_dict, tmp_path / "model.safetensors")
    encoder = load("t5", str(tmp_path / "model.safetensors")).cond_stage_model.t5xxl.transformer
    assert encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float16
    assert isinstance(encoder.encoder.block[0].layer[1].DenseReluDense.wi_0.weight, QuantizedTensor)


def test_a_pixart_whose_k_alone_is_wide_is_refused(tmp_path):
    def convert(key: str, tensor: Tensor) -> dict[str, Tensor]:
        return {key: tensor} if "to_k" in key else in_eight_bits(key, tensor)

    path = diffusers_folder("pixart", convert, tmp_path)
    told = r"quantizes q, k and v apart \(transformer_blocks.0.attn1.to_q.+ use a quantized file in the authors' layout"
    with pytest.raises(ValueError, match=told):
        load("pixart", path)
