"""Bad files that can be read: configurations, tensors and numbers that do not fit, other models, tokenizers.

They join the table of `bad_files.py`.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import safetensors.torch
import sentencepiece
import torch
import transformers
from sana_native.tests.support import controlnets, tiny
from sana_native.tests.support.bad_files import ALL, KINDS, Kind, Place, in_turn, kind

# Configuration files


def config(place: Place, **values) -> Path:
    path = place.part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return place.model


@kind("/config.json is not valid JSON .*: download it again")
def a_config_cut_off(place):
    (place.part / "config.json").write_text('{"num_layers": 2')
    return place.model


@kind("/config.json holds a JSON list where an object is expected: download it again")
def a_config_that_is_a_list(place):
    (place.part / "config.json").write_text("[]")
    return place.model


@kind("/config.json is not valid JSON .*: download it again")
def a_config_in_another_encoding(place):
    (place.part / "config.json").write_text('{"a": "ü"}', encoding="utf-16")
    return place.model


@kind("/config.json is not valid JSON .*: download it again")
def a_config_nested_without_end(place):
    (place.part / "config.json").write_text("[" * 100_000)
    return place.model


@kind(
    "config.json beside .*{file} describes a transformer of width 64 and depth 20, .* put this model's", "transformer"
)
def a_config_of_another_size(place):
    return config(place, num_layers=20)


@kind("{file} says num_layers = 'twenty' where a number above 0 is expected: download its json files", "transformer")
def a_config_with_words_for_numbers(place):
    return config(place, num_layers="twenty")


@kind("{file} says sample_size = '-32' where a number above 0 is expected: download its json", "transformer")
def a_config_with_a_negative_number(place):
    return config(place, sample_size=-32)


@kind("{file} says flow_shift = 'nan' where a number above 0 is expected: download its json", "transformer")
def a_scheduler_with_a_shift_that_is_no_number(place):
    (place.model / "scheduler").mkdir()
    (place.model / "scheduler" / "scheduler_config.json").write_text('{"flow_shift": NaN}')
    return place.model


@kind(
    "{file} says num_cross_attention_heads = .*, which do not divide its width of 64: put this model's", "transformer"
)
def a_config_whose_heads_do_not_divide_the_width(place):
    return config(place, num_cross_attention_heads=5)


@kind("The configuration saved in .*{file} is damaged: save it again", "transformer")
def a_damaged_saved_configuration(place):
    return place.write(place.read() | {"sana_config": torch.zeros(8, dtype=torch.uint8)})


@kind("The configuration saved in .*{file} is damaged: save it again", "transformer")
def a_saved_configuration_that_is_a_list(place):
    return place.write(place.read() | {"sana_config": torch.tensor(list(b"[1]"), dtype=torch.uint8)})


@kind("The configuration saved in .*{file} is damaged: save it again", "transformer")
def a_saved_configuration_of_noise(place):
    return place.write(place.read() | {"sana_config": torch.full((9,), 255.0)})


@kind(
    "{file} is a DC-AE with 32 latent channels and scaling factor 0.3189; .*: use dc-ae-f32c32-sana-1.0 or 1.1", "vae"
)
def the_scaling_factor_of_another_autoencoder(place):
    return config(place, scaling_factor=0.3189)


@kind("{file} says scaling_factor = 'x' where a number above 0 is expected", "vae")
def an_autoencoders_config_with_words_for_numbers(place):
    return config(place, scaling_factor="x")


@kind("{file} says num_hidden_layers = '0' where a number above 0 is expected", "text_encoder")
def a_text_encoders_config_without_layers(place):
    return config(place, num_hidden_layers=0)


# Tensors that do not fit


@kind(r"(does not fit its architecture \(1 missing, such as \S+ of \d+ tensors\)|is missing): download it again", *ALL)
def one_missing_tensor(place):
    state_dict = place.read()
    del state_dict[max(state_dict)]
    return place.write(state_dict)


@kind(
    r"{file} does not fit its architecture \(1 unexpected, such as \S*surplus of \d+ tensors\): download it again", *ALL
)
def one_tensor_too_many(place):
    return place.write(place.read() | {"surplus": torch.ones(3)})


BLOCKS = {
    "transformer": "transformer_blocks.",
    "controlnet": "transformer_blocks.",
    "text_encoder": "layers.",
    "vae": "decoder.up_blocks.2.",
}


@kind("{file} (looks like {own} but .*0.* is missing: download|is something else .*: pick another)", *ALL)
def no_first_block(place):
    first = f"{BLOCKS[place.component]}0."
    return place.write({key: tensor for key, tensor in place.read().items() if not key.startswith(first)})


@kind("{file} looks like a SANA transformer but transformer_blocks.1 is missing: download it again", "transformer")
def a_block_missing_between_others(place):
    deep = tiny.transformer(num_layers=3).state_dict()
    return place.write({key: tensor for key, tensor in deep.items() if ".1." not in key[:21]})


@kind("describes a transformer of width 64 and depth 2, but .* 1 deep: put this model's own config.json", "transformer")
def the_last_block_missing(place):
    return place.write(
        {key: value for key, value in place.read().items() if not key.startswith("transformer_blocks.1")}
    )


@kind("{file} has 1 layers where 2 are expected: download it again", "text_encoder")
def the_last_layer_missing(place):
    return place.write({key: tensor for key, tensor in place.read().items() if not key.startswith("layers.1.")})


@kind("{file} looks like {own} but .* is missing: download it again")
def a_block_with_an_absurd_number(place):
    state_dict = place.read()
    return place.write(state_dict | {f"{BLOCKS[place.component]}999999.x.weight": torch.ones(1)})


@kind(r"{file} does not fit its architecture: \S+ has shape \((\d+), (\d+)\), expected \(\2, \1\): download it again",
      "text_encoder", "transformer")  # fmt: skip
def a_matrix_on_its_side(place):
    key = {"transformer": "time_embed.linear.weight", "text_encoder": "layers.1.mlp.down_proj.weight"}[place.component]
    state_dict = place.read()
    return place.write(state_dict | {key: state_dict[key].T.contiguous()})


@kind("{file} looks like a SANA transformer but has tensors of other shapes: download it again", "transformer")
def a_five_dimensional_patch_convolution(place):
    state_dict = place.read()
    weight = state_dict["patch_embed.proj.weight"]
    return place.write(state_dict | {"patch_embed.proj.weight": weight[..., None].contiguous()})


# Numbers that do not fit


def with_values(place: Place, key: str, tensor: torch.Tensor) -> Path:
    return place.write(place.read() | {key: tensor})


def vector(place: Place) -> str:
    return next(key for key, tensor in sorted(place.read().items()) if tensor.ndim == 1)


@kind(r"{file} holds NaN or infinity in \S+: download it again, or take an earlier save if you trained it", *ALL)
def one_nan_in_a_vector(place):
    key = vector(place)
    values = place.read()[key]
    values[3] = float("nan")
    return with_values(place, key, values)


@kind(r"{file} holds NaN or infinity in \S+: download it again, or take an earlier save if you trained it")
def an_infinity_after_a_cast_to_float16(place):
    key = vector(place)
    return with_values(place, key, torch.full_like(place.read()[key], 1e6).half())


@kind(r"{file} holds NaN or infinity in \S+: download it again, or take an earlier save if you trained it")
def a_training_that_diverged(place):
    return place.write({key: torch.full_like(tensor, float("nan")) for key, tensor in place.read().items()})


@kind(r"{file} holds NaN or infinity in \S+: download it again")
def nan_in_float8(place):
    nan = torch.full((1,), float("nan"))
    return place.write({key: nan.expand_as(value).to(torch.float8_e4m3fn) for key, value in place.read().items()})


@kind("{file} has int64 numbers in .* where floating-point ones belong: use the bf16, fp16 or fp32 file of this model")
def whole_numbers_for_one_tensor(place):
    key = vector(place)
    return with_values(place, key, place.read()[key].long())


@kind(
    "{file} has int8 numbers in .* where floating-point ones belong: use the bf16, fp16 or fp32 file of this model",
    *ALL,
)
def int8_without_its_scales(place):
    return place.write({key: (tensor * 100).to(torch.int8) for key, tensor in place.read().items()})


@kind("{file} has complex64 numbers in .* where floating-point ones belong: use")
def complex_numbers(place):
    return place.write({key: tensor.to(torch.complex64) for key, tensor in place.read().items()})


@kind("{file} has bool numbers in .* where floating-point ones belong: use")
def a_mask_for_weights(place):
    return place.write({key: tensor > 0 for key, tensor in place.read().items()})


# Formats of other engines


@kind(
    "{file} is a 4-bit model for Nunchaku or another engine, which this version does not load .take the bf16 file.",
    "transformer",
    "text_encoder",
)
def a_model_of_svdquant(place):
    state_dict: dict[str, torch.Tensor] = {}
    for key, tensor in place.read().items():
        if tensor.ndim == 2:
            stem = key.removesuffix(".weight")
            state_dict |= {f"{stem}.qweight": tensor.to(torch.int8), f"{stem}.wscales": torch.ones(4)}
            state_dict |= {f"{stem}.lora_down": torch.ones(4, 4), f"{stem}.lora_up": torch.ones(4, 4)}
        else:
            state_dict[key] = tensor
    return place.write(state_dict)


@kind("{file} is quantized by bitsandbytes, and what belongs to [\\w.]+ is damaged or missing .+: download it again",
      "transformer", "text_encoder")  # fmt: skip
def a_model_of_bitsandbytes_without_its_state(place):
    state_dict = place.read()
    for key in [key for key, tensor in state_dict.items() if tensor.ndim == 2 and key.endswith("weight")]:
        state_dict[key] = torch.zeros(state_dict[key].numel() // 2, 1, dtype=torch.uint8)
        state_dict[f"{key}.absmax"] = torch.ones(8)
    return place.write(state_dict)


@kind("{file} is a model quantized by quanto, which this version does not load .take the bf16 file.", *ALL)
def a_model_of_quanto(place):
    state_dict = place.read()
    for key in [key for key, tensor in state_dict.items() if tensor.ndim == 2 and key.endswith("weight")]:
        weight = state_dict.pop(key)
        state_dict |= {
            f"{key}._data": torch.ones_like(weight, dtype=torch.int8),
            f"{key}._scale": torch.ones(len(weight), 1),
        }
    return place.write(state_dict)


@kind("{file} is a model quantized by SDNQ, which this version does not load .take the bf16 file.", *ALL)
def a_model_of_sdnq(place):
    state_dict = place.read()
    for key in [key for key, tensor in state_dict.items() if tensor.ndim == 2 and key.endswith("weight")]:
        state_dict[f"{key.removesuffix('weight')}scale"] = torch.ones(len(state_dict[key]), 1)
        state_dict[key] = torch.ones_like(state_dict[key], dtype=torch.int8)
    return place.write(state_dict)


@kind("{file} .*damaged: save it again|{file} is quantized as", "transformer", "text_encoder")
def a_damaged_mark_of_a_quantized_layer(place):
    layer = {"transformer": "time_embed.linear", "text_encoder": "layers.1.mlp.down_proj"}[place.component]
    return place.write(place.read() | {f"{layer}.comfy_quant": torch.tensor(list(b"{"), dtype=torch.uint8)})


# Other models


def other(name: str, found: str, build: Callable[[], dict[str, torch.Tensor]], *components: str) -> None:
    """Adds a kind that is another model's file, with one number for each of its tensors."""

    def make(place: Place) -> Path:
        path = place.named("weights.safetensors")
        safetensors.torch.save_file({key: torch.ones(1) for key in build()}, path)
        return path

    KINDS[name] = Kind(f"{{file}} is {found}, not {{expected}}", make, components or in_turn())


def on_meta(build: Callable[[], torch.nn.Module]) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build().state_dict()


def autoencoder(stages: int, latent_channels: int, encoder_layers: tuple[int, ...]) -> diffusers.AutoencoderDC:
    half = {"block_types": "ResBlock", "block_out_channels": 32}
    return diffusers.AutoencoderDC(
        latent_channels=latent_channels,
        encoder_layers_per_block=encoder_layers,
        decoder_layers_per_block=(1,) * stages,
        **{f"{side}_{key}": (value,) * stages for side in ("encoder", "decoder") for key, value in half.items()},
        encoder_qkv_multiscales=((),) * stages,
        decoder_qkv_multiscales=((),) * stages,
    )


# fmt: off
USE_HOST = r"\(use the host's own loader\)"
NOT_YET = "which this version does not load"
other("a LoRA", r"a LoRA \(load it with a LoRA node\)", lambda: dict.fromkeys(
    f"transformer.transformer_blocks.0.attn1.to_{part}.lora_{half}.weight" for part in "qkv" for half in "AB"))
other("a PixArt transformer", r"a PixArt transformer \(use SANA Model Loader\)", lambda: on_meta(
    lambda: diffusers.PixArtTransformer2DModel(num_layers=1)), "text_encoder", "vae")
other("a Flux model", f"a Flux-like model {USE_HOST}", lambda: on_meta(
    lambda: diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1)))
other("a Stable Diffusion 3 model", f"a Stable Diffusion 3 model {USE_HOST}", lambda: on_meta(
    lambda: diffusers.SD3Transformer2DModel(num_layers=1)))
other("a Stable Diffusion model", f"a Stable Diffusion model {USE_HOST}", lambda: on_meta(
    lambda: diffusers.UNet2DConditionModel(block_out_channels=(32, 64, 64, 64))))
other("a Stable Diffusion ControlNet", f"a Stable Diffusion ControlNet {USE_HOST}", lambda: on_meta(
    lambda: diffusers.ControlNetModel(block_out_channels=(32, 64, 64, 64))))
other("a SANA ControlNet", r"a SANA ControlNet \(use SANA ControlNet Loader\)", lambda: on_meta(
    lambda: diffusers.SanaControlNetModel(num_layers=1)), "transformer", "text_encoder", "vae")
other("a SANA ControlNet with its base", r"a SANA ControlNet \(use SANA ControlNet Loader\)", lambda: (
    controlnets.merged(tiny.transformer().state_dict(), controlnets.reference().state_dict())), "vae", "text_encoder")
other("a SANA-Video transformer", f"a SANA-Video transformer, {NOT_YET}", lambda: on_meta(
    lambda: diffusers.SanaVideoTransformer3DModel(num_layers=1)))
other("a Stable Diffusion VAE", r"an AutoencoderKL \(use SANA DC-AE Loader\)", lambda: on_meta(diffusers.AutoencoderKL),
      "transformer", "text_encoder")
other("DC-AE f32c32-in-1.0", "a DC-AE for other models .*", lambda: on_meta(
    lambda: autoencoder(6, 32, (0, 1, 1, 1, 1, 1))))
other("DC-AE f64c128", "a DC-AE for other models .*", lambda: on_meta(
    lambda: autoencoder(7, 128, (0, 1, 1, 1, 1, 1, 1))))
other("DC-AE f128c512", "a DC-AE for other models .*", lambda: on_meta(
    lambda: autoencoder(8, 512, (0, 1, 1, 1, 1, 1, 1, 1))))
other("a CLIP text encoder", f"a CLIP text encoder {USE_HOST}", lambda: on_meta(
    lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=1))))
other("a T5 1.0 text encoder", r"a T5 1.0 text encoder \(use t5-v1_1-xxl\)", lambda: on_meta(
    lambda: transformers.T5EncoderModel(transformers.T5Config(num_layers=1))))
other("a Gemma-3 text encoder", f"a Gemma-3 text encoder {USE_HOST}", lambda: on_meta(
    lambda: transformers.Gemma3TextModel(transformers.Gemma3TextConfig(num_hidden_layers=1))))
other("a Llama", f"another language model {USE_HOST}", lambda: on_meta(
    lambda: transformers.LlamaModel(transformers.LlamaConfig(num_hidden_layers=1))))
other("an unknown model", r"something else \(3 tensors, such as a, b\)", lambda: dict.fromkeys("cab"))
other("SANA's transformer", r"a SANA transformer \(use SANA Model Loader\)",
      lambda: tiny.transformer().state_dict(), "text_encoder", "vae", "controlnet")
other("SANA's text encoder", r"a Gemma-2 text encoder \(use SANA Gemma Loader\)",
      lambda: tiny.gemma(600).state_dict(), "transformer", "vae")
other("Lumina-Next's transformer", r"a Lumina-Next transformer \(use SANA Model Loader\)",
      lambda: on_meta(tiny.lumina), "text_encoder", "vae")
other("SANA's autoencoder", r"a DC-AE autoencoder \(use SANA DC-AE Loader\)",
      lambda: tiny.dc_ae().state_dict(), "transformer", "text_encoder")
# fmt: on


def larger_gemma(place: Place, width: int) -> Path:
    """A Gemma-2 of a released width with small matrices; the width decides before they are looked at."""
    state_dict = place.read()
    return place.write(state_dict | {"embed_tokens.weight": torch.ones(600, width, dtype=torch.bfloat16)})


@kind("{file} is Gemma-2 9B, but SANA reads the states of Gemma-2 2B: use gemma-2-2b-it", "text_encoder")
def gemma_2_9b(place):
    return larger_gemma(place, 3584)


@kind("{file} is Gemma-2 27B, but SANA reads the states of Gemma-2 2B: use gemma-2-2b-it", "text_encoder")
def gemma_2_27b(place):
    return larger_gemma(place, 4608)


# Tokenizers


def tokenizer(place: Place) -> Path:
    return place.model / "tokenizer" / "tokenizer.model"


def train(place: Place, **options) -> Path:
    """Another SentencePiece model in the place of the sound one."""
    model = io.BytesIO()
    text = iter(["a cat sleeps on the mat", "a dog runs in the park"] * 20)
    common = {"vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=text, model_writer=model, **common | options)
    tokenizer(place).write_bytes(model.getvalue())
    return place.model


NO_TOKENIZER = "{file} has no tokenizer inside, and there is no tokenizer.model beside it"


@kind(f"{NO_TOKENIZER}: put Gemma's tokenizer.model in its folder", "text_encoder")
def no_tokenizer(place):
    shutil.rmtree(place.model / "tokenizer")
    return place.model


@kind(rf"{NO_TOKENIZER} \(a tokenizer.json is, but the host does not read it\): put Gemma's", "text_encoder")
def only_a_tokenizer_json(place):
    tokenizer(place).rename(tokenizer(place).with_suffix(".json"))
    return place.model


@kind(f"{NO_TOKENIZER}.*: put Gemma's tokenizer.model in its folder", "text_encoder")
def an_empty_tokenizer(place):
    tokenizer(place).write_bytes(b"")
    return place.model


NO_SENTENCEPIECE = "The tokenizer of .*{file} is no SentencePiece model: put the tokenizer.model of this very model"


@kind(NO_SENTENCEPIECE, "text_encoder")
def a_tokenizer_that_is_a_git_lfs_pointer(place):
    tokenizer(place).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:61a7b147\nsize 4241003\n")
    return place.model


@kind(NO_SENTENCEPIECE, "text_encoder")
def a_tokenizer_cut_off(place):
    tokenizer(place).write_bytes(tokenizer(place).read_bytes()[:-100])
    return place.model


@kind(NO_SENTENCEPIECE, "text_encoder")
def a_tokenizer_inside_that_was_cast_to_float8(place):
    data = torch.frombuffer(bytearray(tokenizer(place).read_bytes()), dtype=torch.uint8)
    shutil.rmtree(place.model / "tokenizer")
    return place.write(place.read() | {"spiece_model": data.half().to(torch.float8_e4m3fn)})


@kind(r"The tokenizer of .*{file} is not Gemma's \(.* padding 0 and start -1, not 0 and 2\): put", "text_encoder")
def the_tokenizer_of_t5(place):
    return train(place, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)


@kind(r"The tokenizer of .*{file} is not Gemma's \(.* padding -1 and start 1, not 0 and 2\): put", "text_encoder")
def the_tokenizer_of_llama(place):
    return train(place)


@kind("The tokenizer of .*{file} has 600 pieces but the model embeds 500: put the tokenizer.model of", "text_encoder")
def the_larger_tokenizer_of_gemma_3(place):
    state_dict = place.read()
    return place.write(state_dict | {"embed_tokens.weight": state_dict["embed_tokens.weight"][:500].clone()})
