"""Which PixArt a file is and what tells it, what is saved with it, and what is refused."""

import json
import logging
import shutil
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_merging import ModelSave
from sana_native.models.pixart.config import ALPHA, DMD, LCM, SIGMA
from sana_native.models.pixart.detection import detect_pixart
from sana_native.models.pixart.loader import load_pixart
from sana_native.models.registry import load_model
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

# Layout, kind of the weights, file name, what a user chose -> family, span, reason.
PLAIN = "my model"
SIGNS = {
    "size embedders, authors": ("authors", "alpha 1024-MS", PLAIN, None, ALPHA, 32, "it embeds the image's size"),
    "size embedders, diffusers": ("diffusers file", "alpha 1024-MS", PLAIN, None, ALPHA, 32, "it embeds the image's"),
    "300 rows": ("authors", "Sigma 256", PLAIN, None, SIGMA, 32, "its empty text has 300 tokens"),
    "120 rows and positions": ("authors with pos_embed", "alpha 512", PLAIN, None, ALPHA, 32, "its empty text has 120"),
    "120 rows, positions of 256 px": ("authors with pos_embed", "alpha 256", PLAIN, None, ALPHA, 16, "its empty text"),
    "120 rows and a name": ("authors", "alpha 256", "PixArt-XL-2-SAM-256x256", None, ALPHA, 16, "its empty text has"),
    "a folder": (
        "diffusers folder",
        "alpha 512",
        PLAIN,
        None,
        ALPHA,
        32,
        "the autoencoder beside it scales by 0.18215",
    ),
    "a name of alpha": ("diffusers file", "alpha 256", "PixArt-XL-2-256x256", None, ALPHA, 16, "as its name says"),
    "a name of Sigma": ("diffusers file", "Sigma 2K", "pixart_sigma_2k", None, SIGMA, 32, "as its name says"),
    "the user": ("diffusers file", "Sigma 512", PLAIN, ALPHA, ALPHA, 32, "as chosen in the loader"),
    "the user before the tensors": ("authors", "alpha 1024-MS", PLAIN, SIGMA, SIGMA, 32, "as chosen in the loader"),
}


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.mark.parametrize("sign", SIGNS)
def test_family_span_and_latents_by_the_first_sign_and_again_after_saving(sign, tmp_path, output, caplog):
    layout, kind, name, chosen, family, span, reason = SIGNS[sign]
    caplog.set_level(logging.INFO)
    model = load_pixart(pixart.save(pixart.reference(kind), kind, layout, tmp_path, name), {"family": chosen})
    assert reason in caplog.text
    ModelSave().save(model, "diffusion_models/saved")
    (file,) = output.rglob("*.safetensors")
    again = load_pixart(str(shutil.move(file, tmp_path / "x.safetensors")))
    for loaded in (model.model, again.model):
        assert (loaded.config.family, loaded.config.span) == (family, span)
        assert type(loaded.latent_format).__name__ == ("SD15" if family == ALPHA else "SDXL")
    assert again.model.config == model.model.config
    a, b = model.model.state_dict(), again.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_where_nothing_tells_it_is_sigma_with_a_warning(tmp_path, caplog):
    model = load_pixart(pixart.save(pixart.reference(), "Sigma 512", "diffusers file", tmp_path, PLAIN))
    assert model.model.config.family == SIGMA
    assert "nothing tells whether" in caplog.text and "set family in SANA Model Loader" in caplog.text


def test_the_hosts_random_120_rows_do_not_make_an_alpha():
    """As the host's own loader and Save Model leave a Sigma, whose diffusers file has no such rows."""
    state_dict = pixart.authors_layout(pixart.reference().state_dict())
    state_dict["y_embedder.y_embedding"] = torch.randn(120, pixart.TEXT_WIDTH)
    config, reason = detect_pixart(state_dict, "saved.safetensors", {"num_layers": 1}, rows=120)
    assert (config.family, reason) == (SIGMA, "")


@pytest.mark.parametrize(
    ("name", "family", "sample_size", "distilled"),
    [
        ("PixArt-LCM-XL-2-1024-MS/transformer/diffusion_pytorch_model.safetensors", ALPHA, 128, LCM),
        (
            "models--PixArt-alpha--PixArt-Alpha-DMD-XL-2-512x512/snapshots/" + 40 * "0" + "/x.safetensors",
            ALPHA,
            64,
            DMD,
        ),
        ("lcm/PixArt-XL-2-1024-MS.pth", ALPHA, 128, None),
        ("dmd and lcm/PixArt-XL-2-512x512/transformer/diffusion_pytorch_model.safetensors", ALPHA, 64, None),
        ("PixArt-LCM-XL-2-1024-MS/diffusion_pytorch_model.fp16.safetensors", ALPHA, 128, LCM),
        ("other/PixArt_LCM.safetensors", ALPHA, None, LCM),
        ("PixArt-alpha/PixArt-Sigma-XL-2-2K-MS.pth", SIGMA, 256, None),
        ("PixArt-alpha/PixArt-Sigma-XL-2-512-MS.pth", SIGMA, 64, None),
        ("PixArt-XL-2-256x256.pth", ALPHA, 32, None),
        ("welcome.safetensors", SIGMA, None, None),
    ],
)
def test_names_of_releases_tell_family_size_and_distillation(name, family, sample_size, distilled):
    state_dict = pixart.authors_layout(pixart.reference().state_dict())
    config, _ = detect_pixart(state_dict, name, {"num_layers": 1})
    assert (config.family, config.sample_size, config.distilled) == (family, sample_size, distilled)


def test_an_lcm_scheduler_beside_it_makes_an_lcm(tmp_path):
    path = Path(pixart.save(pixart.reference("alpha 1024-MS"), "alpha 1024-MS", "diffusers folder", tmp_path, PLAIN))
    pixart.scheduler("LCM").save_pretrained(path / "scheduler")
    assert load_pixart(str(path)).model.config.distilled == LCM


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_narrow_weights_are_computed_in_float32_on_a_cpu(dtype, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = pixart.save(pixart.reference(), "Sigma 512", "authors", tmp_path)
    model = load_pixart(path, {"dtype": dtype})
    assert model.model.diffusion_model.t_block[1].weight.dtype == dtype
    name = str(dtype).removeprefix("torch.")
    assert f"weights {name}, computed in " in caplog.text and "clamped" not in caplog.text


# What is refused


def without(key: str, **added) -> dict:
    state_dict = pixart.authors_layout(pixart.reference().state_dict())
    return {name: tensor for name, tensor in state_dict.items() if name != key} | added


def quantized_apart() -> dict:
    """fp8 in diffusers' layout, each of q, k and v with a scale of its own, as the host marks it."""
    state_dict = dict(pixart.reference().state_dict())
    mark = torch.frombuffer(bytearray(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for number, part in enumerate("qkv"):
        layer = f"transformer_blocks.0.attn1.to_{part}"
        state_dict[f"{layer}.weight"] = state_dict[f"{layer}.weight"].to(torch.float8_e4m3fn)
        state_dict |= {f"{layer}.weight_scale": torch.tensor(1.0 + number), f"{layer}.comfy_quant": mark.clone()}
    return state_dict


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: without("t_block.1.weight"), "looks like a PixArt transformer but t_block.1.weight is missing: downl"),
        (lambda: without("blocks.0.mlp.fc2.bias"), r"does not fit its architecture \(1 missing, such as blocks.0.mlp"),
        (lambda: without("", extra=torch.ones(1)), r"does not fit its architecture \(1 unexpected, such as extra"),
        (
            lambda: without("", **{"blocks.1.attn.qkv.weight": torch.ones(432, 144)}),
            "has 2 blocks where 1 are expected",
        ),
        (
            quantized_apart,
            r"quantizes q, k and v apart \(transformer_blocks.0.attn1.to_q.*: use a quantized file in the",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(make, sentence, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_layers": 1}))
    safetensors.torch.save_file(
        {key: tensor.contiguous() for key, tensor in make().items()}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ValueError, match=sentence):
        load_model("transformer", str(tmp_path / "x.safetensors"))


def test_a_pruned_model_needs_its_config_json(tmp_path):
    path = Path(pixart.save(pixart.reference(), "Sigma 512", "authors", tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has 1 blocks where 28 or 42 are expected: download it again, or put its own"):
        load_pixart(str(path))


def test_texts_latents_and_controlnets_of_others_are_refused(tmp_path):
    model = load_pixart(pixart.save(pixart.reference(), "Sigma 512", "authors", tmp_path))
    text = [[torch.zeros(1, 3, pixart.TEXT_WIDTH), {}]]
    latent = bench.empty()
    with pytest.raises(ValueError, match="is 32 wide where PixArt needs T5-XXL's states of 64: load a T5-XXL encoder"):
        bench.call(bench.OURS["Sampler"], model, [[torch.zeros(1, 3, 32), {}]], text, latent, 0, 1)
    with pytest.raises(
        ValueError, match="This latent has 32 channels where PixArt-Sigma needs 4: encode the image with"
    ):
        bench.call(bench.OURS["Sampler"], model, text, text, bench.clean_latent(), 0, 1)
    network_input = torch.zeros(1, 4, 8, 8), torch.ones(1)
    for control in ({"input": [torch.ones(1, 320, 8, 8)]}, {"output": [torch.ones(1, 16, 144)]}):
        with pytest.raises(ValueError, match="This ControlNet is of another family and has no effect on PixArt: bypas"):
            model.model.apply_model(*network_input, c_crossattn=text[0][0], control=control)


def test_t5_for_sana_is_refused_by_its_sampler():
    t5_states = [[torch.zeros(1, 3, 4096), {}]]
    with pytest.raises(ValueError, match="is 4096 wide where SANA needs Gemma's states of 64: encode the prompt with"):
        bench.call(bench.OURS["Sampler"], bench.model("sana"), t5_states, t5_states, bench.empty(), 0, 1)


def test_a_bfloat16_model_that_overflows_says_what_to_do(tmp_path):
    model = load_pixart(pixart.save(pixart.reference(), "Sigma 512", "authors", tmp_path))
    with torch.no_grad():
        model.model.diffusion_model.final_layer.linear.bias.fill_(torch.inf)
    text = [[torch.zeros(1, 3, pixart.TEXT_WIDTH), {}]]
    with pytest.raises(
        ValueError, match="gave a latent with NaN or infinity in torch.float32: load the model with wei"
    ):
        bench.call(bench.OURS["Sampler"], model, text, text, bench.empty(64, 64), 0, 1)
