"""Every released model's key list, in both layouts, is recognised, mapped with nothing left over, and built."""

import re
from functools import cache
from math import prod
from pathlib import Path

import comfy.ops
import pytest
import torch
from sana_native.models.dc_ae import convert as dc_ae_convert
from sana_native.models.dc_ae.config import DCAEConfig, DCAEHalfConfig
from sana_native.models.dc_ae.detection import detect_dc_ae, is_dc_ae
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.models.files import layout
from sana_native.models.gemma.detection import detect_gemma2, is_gemma2
from sana_native.models.registry import describe_file
from sana_native.models.sana import convert as sana_convert
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.detection import chosen_config, detect_sana, is_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.full_size import generate

RELEASED = generate.load()
ARCHITECTURES = list(generate.SANA)
# Parameters, tensors in diffusers' layout, tensors of a block in NVIDIA's.
COUNTS = {
    "SANA 0.6B": (591_747_872, 548, 15),
    "SANA 1.6B": (1_604_462_752, 396, 15),
    "SANA-1.5 1.6B": (1_604_641_952, 476, 19),
    "SANA-1.5 4.8B": (4_721_825_952, 1396, 19),
    "SANA-Sprint 0.6B": (593_501_216, 664, 19),
    "SANA-Sprint 1.6B": (1_610_237_472, 480, 19),
}
# Repository -> architecture, native side of the latent, shift of NVIDIA's .pth, training format. Its file has the same
# name, but for the two of 0.6B.
REPOSITORIES = {
    "Sana_600M_512px": ("SANA 0.6B", 16, 3.0, "float16"),
    "Sana_600M_1024px": ("SANA 0.6B", 32, 4.0, "float16"),
    "Sana_1600M_512px": ("SANA 1.6B", 16, 3.0, "float16"),
    "Sana_1600M_512px_MultiLing": ("SANA 1.6B", 16, 3.0, "float16"),
    "Sana_1600M_1024px": ("SANA 1.6B", 32, 3.0, "float16"),
    "Sana_1600M_1024px_MultiLing": ("SANA 1.6B", 32, 3.0, "float16"),
    "Sana_1600M_1024px_BF16": ("SANA 1.6B", 32, 3.0, "bfloat16"),
    "Sana_1600M_2Kpx_BF16": ("SANA 1.6B", 64, 3.0, "bfloat16"),
    "Sana_1600M_4Kpx_BF16": ("SANA 1.6B", 128, 6.0, "bfloat16"),
    "SANA1.5_1.6B_1024px": ("SANA-1.5 1.6B", 32, 3.0, "bfloat16"),
    "Sana1-5_1600M_1024px": ("SANA-1.5 1.6B", 32, 3.0, "bfloat16"),
    "SANA1.5_4.8B_1024px": ("SANA-1.5 4.8B", 32, 3.0, "bfloat16"),
    "Sana_Sprint_0.6B_1024px": ("SANA-Sprint 0.6B", 32, 3.0, "bfloat16"),
    "Sana_Sprint_1.6B_1024px": ("SANA-Sprint 1.6B", 32, 3.0, "bfloat16"),
    "SANA_Sprint_1.6B_1024px_teacher": ("SANA-1.5 1.6B", 32, 3.0, "bfloat16"),
}
FILES = {
    "Sana_600M_512px": "Sana_600M_512px_MultiLing.pth",
    "Sana_600M_1024px": "Sana_600M_1024px_MultiLing.pth",
}


def meta(layout: str, name: str) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in RELEASED[layout][name].items()}


@cache
def converted(name: str) -> dict[str, torch.Tensor]:
    return sana_convert.convert_nvidia_sana(meta("NVIDIA", name))


def shapes(state_dict) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}


def config_of(repository: str) -> SanaConfig:
    """As the release is documented, for NVIDIA's file."""
    name, sample_size, shift, trained_in = REPOSITORIES[repository]
    width, depth, heads, qk_norm, guidance = generate.SANA[name]
    return SanaConfig(
        hidden_size=width,
        depth=depth,
        num_cross_attention_heads=heads,
        caption_channels=2304,
        mlp_hidden_size=width * 5 // 2,
        in_channels=32,
        out_channels=32,
        qk_norm=qk_norm,
        guidance_embeds=guidance,
        guidance_embeds_scale=0.1,
        interpolation_scale={64: 1.0, 128: 2.0}.get(sample_size),
        sample_size=sample_size,
        shift=shift,
        clamp_attention=True if trained_in == "float16" else None,
        trained_in=trained_in,
    )


def told(config: SanaConfig) -> tuple:
    """What no tensor tells."""
    return config.sample_size, config.interpolation_scale, config.shift, config.clamp_attention, config.trained_in


def test_the_data_are_what_the_reference_classes_and_the_written_lists_give():
    assert generate.tensors() == RELEASED


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nvidias_keys_are_all_mapped_to_exactly_diffusers(name):
    parameters, tensors, of_a_block = COUNTS[name]
    native = meta("NVIDIA", name)
    assert len([key for key in native if key.startswith("blocks.0.")]) == of_a_block
    assert layout.is_nvidia_sana(native) and layout.layout_of(native) == "NVIDIA"
    assert shapes(converted(name)) == RELEASED["diffusers"][name]
    assert (sum(map(prod, shapes(converted(name)).values())), len(converted(name))) == (parameters, tensors)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_nvidias_file_gives_the_documented_configuration_by_its_tensors_and_name(repository):
    config = config_of(repository)
    state_dict = converted(REPOSITORIES[repository][0])
    path = f"/models/diffusion_models/{FILES.get(repository, repository + '.pth')}"
    assert is_sana(state_dict)
    assert detect_sana(state_dict, path=path, positions=config.sample_size**2) == config


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_diffusers_folder_gives_the_documented_configuration(repository):
    """config.json as released, the scheduler's shift beside it."""
    config = config_of(repository)
    state_dict = meta("diffusers", REPOSITORIES[repository][0])
    assert layout.layout_of(state_dict) == "diffusers"
    source = {
        "num_attention_heads": config.hidden_size // 32,
        "attention_head_dim": 32,
        "num_layers": config.depth,
        "num_cross_attention_heads": config.num_cross_attention_heads,
        "sample_size": config.sample_size,
        "interpolation_scale": config.interpolation_scale,
        "flow_shift": config.shift,
    }
    for folder in (
        f"{repository}_diffusers",
        f"models--Efficient-Large-Model--{repository}_diffusers/snapshots/{'0a' * 20}",
    ):
        for variant in ("", ".fp16", ".bf16", "-00001-of-00002", ".bf16-00001-of-00002"):
            path = f"/models/diffusers/{folder}/transformer/diffusion_pytorch_model{variant}.safetensors"
            assert detect_sana(state_dict, source_config=source, path=path) == config, path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_our_transformer_has_exactly_the_released_tensors(name):
    config = detect_sana(meta("diffusers", name))
    model = Sana(config, device="meta", operations=comfy.ops.disable_weight_init)
    assert shapes(sana_convert.to_file_layout(model.state_dict())) == RELEASED["diffusers"][name]


def spellings(repository: str) -> list[str]:
    """Names people give a release's single file, and places they put it."""
    file = FILES.get(repository, repository + ".pth")
    stem = file.removesuffix(".pth")
    return [
        file,
        f"{stem}.safetensors",
        f"{stem.lower()}.safetensors",
        f"{stem.upper()}.SAFETENSORS",
        f"{stem.replace('_', '-')}.safetensors",
        f"{stem.replace('_', ' ')} (1).safetensors",
        f"{stem}.fp16.safetensors",
        f"{stem}_fp8_e4m3fn.safetensors",
        f"models--Efficient-Large-Model--{repository}/snapshots/{'0b' * 20}/checkpoints/{file}",
        f"{repository}/checkpoints/{file}",
        f"{repository}_diffusers/transformer/diffusion_pytorch_model.safetensors",
        f"{repository}_diffusers/diffusion_pytorch_model.safetensors",
        f"SANA\\{repository}_diffusers\\transformer\\diffusion_pytorch_model.fp16.safetensors",
        f"我的模型 🎨/{stem}.safetensors",
    ]


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_the_name_alone_tells_what_no_tensor_does_however_it_is_spelt(repository):
    state_dict = meta("diffusers", REPOSITORIES[repository][0])
    for name in spellings(repository):
        assert told(detect_sana(state_dict, path=f"/models/{name}")) == told(config_of(repository)), name


# Path -> sample_size, interpolation_scale, shift, clamp_attention, trained_in of a 1.6B without qk-norm.
UNKNOWN = (32, None, 3.0, None, None)
FLOAT16, BFLOAT16 = (32, None, 3.0, True, "float16"), (32, None, 3.0, None, "bfloat16")
OTHER_NAMES = {
    "my_own_model.safetensors": UNKNOWN,
    "diffusion_pytorch_model.bf16.safetensors": UNKNOWN,
    "my_style_2k_steps.safetensors": UNKNOWN,
    "step_2048.safetensors": UNKNOWN,
    "epoch_4_step_4096.pth": UNKNOWN,
    "sana-1.6b-1024.safetensors": FLOAT16,
    "sana_1600m_1024.sft": FLOAT16,
    "Sana 1.6B 1024px bf16.safetensors": BFLOAT16,
    "Sana_1600M_1024px_BF16_my_style_v2.safetensors": BFLOAT16,
    "sana_1.6b_512.safetensors": (16, None, 3.0, True, "float16"),
    "sana-1.6b-2k.safetensors": (64, 1.0, 3.0, None, "bfloat16"),
    "sana_1600m_4096.safetensors": (128, 2.0, 6.0, None, "bfloat16"),
    "Sana_1600M_4Kpx_BF16/my fine-tune.safetensors": (128, 2.0, 6.0, None, "bfloat16"),
    "Sana_1600M_1024px_MultiLing/checkpoint-500/transformer/diffusion_pytorch_model.safetensors": FLOAT16,
    "Sana_1600M_1024px_MultiLing/checkpoint-500/transformer_ema/diffusion_pytorch_model.safetensors": FLOAT16,
    # The folder around a model's own does not speak for it.
    "Sana_1600M_512px experiments/models/diffusion_models/mine.safetensors": UNKNOWN,
}


@pytest.mark.parametrize("path", OTHER_NAMES)
def test_other_names_say_no_more_than_they_mean(path):
    assert told(detect_sana(meta("diffusers", "SANA 1.6B"), path=f"/data/{path}")) == OTHER_NAMES[path]


@pytest.mark.parametrize(
    "base, expected",
    [
        ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", BFLOAT16),
        ("Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", FLOAT16),
        ("/workspace/models/Sana_1600M_1024px_diffusers/transformer", FLOAT16),
        ("/workspace/run 7", UNKNOWN),
    ],
)
def test_a_fine_tunes_config_json_names_its_base(base, expected):
    """diffusers writes where the weights came from."""
    source = {"_name_or_path": base, "sample_size": 32, "interpolation_scale": None}
    path = "/models/diffusers/my style/transformer/diffusion_pytorch_model.safetensors"
    assert told(detect_sana(meta("diffusers", "SANA 1.6B"), source_config=source, path=path)) == expected


@pytest.mark.parametrize(
    "size, side, scale, shift",
    [(512, 16, None, 3.0), (1024, 32, None, 3.0), (2048, 64, 1.0, 3.0), (4096, 128, 2.0, 6.0)],
)
def test_the_users_word_on_the_native_size_goes_before_all_else(size, side, scale, shift):
    source = {"sample_size": 8, "interpolation_scale": 7.0} | chosen_config(size, None)
    config = detect_sana(
        meta("diffusers", "SANA 1.6B"), source_config=source, positions=1024, path="Sana_1600M_2Kpx.pth"
    )
    assert (config.sample_size, config.interpolation_scale, config.shift) == (side, scale, shift)


@pytest.mark.parametrize("float16, expected", [(True, (True, "float16")), (False, (None, "bfloat16"))])
def test_the_users_word_on_the_training_format_goes_before_all_else(float16, expected):
    for path in ("Sana_1600M_1024px_BF16.pth", "Sana_1600M_1024px.pth", "mine.pth"):
        config = detect_sana(meta("diffusers", "SANA 1.6B"), source_config=chosen_config(None, float16), path=path)
        assert (config.clamp_attention, config.trained_in) == expected


def test_choosing_nothing_leaves_all_to_detection():
    assert chosen_config(None, None) == {}


def test_the_help_page_tells_native_size_and_training_format_of_every_release():
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    rows = [row.split(" | ") for row in page.splitlines() if row.endswith(("float16 |", "bfloat16 |"))]
    models = [row for row in rows if len(row) == 6]  # a ControlNet's row has no size of its own
    told = {name: (int(row[4]), row[5].rstrip(" |")) for row in models for name in re.findall(r"`(\w[^`]*)`", row[0])}
    unlisted = {"Sana1-5_1600M_1024px", "SANA_Sprint_1.6B_1024px_teacher"}  # an alias, and weights nobody can download
    assert told == {
        name: (32 * side, trained_in) for name, (_, side, _, trained_in) in REPOSITORIES.items() if name not in unlisted
    }


def dc_ae_config(name: str) -> DCAEConfig:
    layers, attention, pixel_shuffle = generate.DC_AE[name]
    scales = ((),) * 3 + ((5,),) * 3
    mixed = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    widths = (128, 256, 512, 512, 1024, 1024)
    decoder = DCAEHalfConfig(
        mixed if attention else ("ResBlock",) * 6,
        # A stage without layers has no width of its own; it is given that of the stage before it.
        widths if layers[0] else (256, *widths[1:]),
        layers,
        scales if attention else ((),) * 6,
        pixel_shuffle,
    )
    encoder = DCAEHalfConfig(mixed, widths, (2, 2, 2, 3, 3, 3), scales)
    return DCAEConfig(3, 32, 32, 0.41407, encoder, decoder, "relu" if attention else "silu")


@pytest.mark.parametrize("name", generate.DC_AE)
def test_dc_ae_is_recognised_in_both_layouts_mapped_and_built(name):
    native = meta("DC-AE authors", name)
    assert layout.is_original_dc_ae(native) and layout.layout_of(native) == "DC-AE authors"
    converted = dc_ae_convert.convert_original_dc_ae(native)
    assert shapes(converted) == RELEASED["diffusers"][name]
    for state_dict in (meta("diffusers", name), converted):
        assert is_dc_ae(state_dict) and detect_dc_ae(state_dict) == dc_ae_config(name)
    model = AutoencoderDC(dc_ae_config(name), device="meta", operations=comfy.ops.disable_weight_init)
    assert shapes(model.state_dict()) == RELEASED["diffusers"][name]


def test_dc_ae_has_its_exact_parameters():
    tensors = RELEASED["diffusers"]["dc-ae-f32c32-sana-1.0 and 1.1"]
    assert (sum(map(prod, tensors.values())), len(tensors)) == (312_250_275, 375)


def test_gemma_2_2b_is_recognised_with_its_real_widths():
    state_dict = {f"model.{key}": tensor for key, tensor in meta("transformers", "Gemma-2-2b").items()}
    assert len(state_dict) == 288 and is_gemma2(state_dict)
    assert detect_gemma2(state_dict) == {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }


@pytest.mark.parametrize("layout, name", [(layout, name) for layout in RELEASED for name in RELEASED[layout]])
def test_every_release_is_described_as_what_it_is(layout, name):
    family = "a DC-AE" if name in generate.DC_AE else "a Gemma-2" if name == "Gemma-2-2b" else "a SANA transformer"
    assert describe_file(RELEASED[layout][name]).startswith(family)
