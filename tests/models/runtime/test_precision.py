"""Number formats of the weights, the clamp of self-attention, partial loading: what changes the result, how much."""

import math

import comfy.model_management
import comfy.ops
import pytest
import torch
from sana_native.models.runtime.precision import all_finite
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.model import LiteLA
from sana_native.tests.support import workbench as bench

LIMIT = 65504.0
# Allowed root mean square error of a prediction in units of the float32 one's. Measured on these networks: bfloat16
# 0.002 to 0.003, float16 0.0003, float8_e4m3fn 0.04, float8_e5m2 0.08.
BOUNDS = {torch.bfloat16: 0.01, torch.float16: 0.001, torch.float8_e4m3fn: 0.1, torch.float8_e5m2: 0.2}


@pytest.fixture
def processor(monkeypatch):
    """Sets whether the processor is one that multiplies bfloat16."""
    return lambda able: monkeypatch.setattr("sana_native.models.runtime.device.cpu_multiplies_bfloat16", lambda: able)


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_bfloat16_is_computed_in_where_it_is_asked_for_and_the_processor_is_able(family, processor):
    processor(True)
    out = bench.velocity(patcher := bench.fresh_model(family, dtype=torch.bfloat16))
    assert patcher.model.get_dtype_inference() == torch.bfloat16 and torch.isfinite(out).all()
    assert 0.001 < bench.rms_error(out, bench.velocity(bench.model(family))) < 0.02
    assert bench.fresh_model(family).model.get_dtype_inference() == torch.float32


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_narrow_weights_stay_near_float32(family, dtype, processor):
    processor(False)
    patcher = bench.fresh_model(family, dtype=dtype)
    network = patcher.model.diffusion_model
    assert {parameter.dtype for parameter in network.parameters()} == {
        dtype
    } and patcher.model.get_dtype_inference() == torch.float32
    out = bench.velocity(patcher)
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    error = bench.rms_error(out, bench.velocity(bench.model(family)))
    assert BOUNDS[dtype] / 100 < error < BOUNDS[dtype]  # not 0 either: the weights really are narrow


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_weights_draw(dtype):
    patcher = bench.fresh_model("sana", dtype=dtype)
    out = bench.draw(patcher, bench.encoded(), steps=4)
    assert (
        torch.isfinite(out).all()
        and bench.rms_error(out, bench.draw(bench.model("sana"), bench.encoded(), steps=4)) < 0.2
    )


def test_the_loader_node_hands_its_choices_on(monkeypatch):
    folders = {"diffusers": ([str(bench.folder())], {""})}
    monkeypatch.setattr("folder_paths.folder_names_and_paths", folders)
    loader = bench.OURS["ModelLoader"]
    patcher = bench.call(loader, "sana/", "bfloat16", 5.0, "on")[0]
    assert patcher.model.get_dtype() == torch.bfloat16 and patcher.get_model_object("model_sampling").shift == 5.0
    assert patcher.model.diffusion_model.config.clamp_attention is True
    patcher = bench.call(loader, "sana/", "auto", 0.0, "auto")[0]
    assert patcher.model.get_dtype() == torch.float32 and patcher.get_model_object("model_sampling").shift == 3.0
    assert patcher.model.diffusion_model.config.clamp_attention is True  # nothing tells how it was trained


# The clamp


def attention_output(patcher) -> float:
    """Largest value leaving the first self-attention when its projection overshoots float16."""
    projection, seen = patcher.model.diffusion_model.transformer_blocks[0].attn1.to_out[0], []
    projection.weight.data.mul_(1e6)
    hook = patcher.model.diffusion_model.transformer_blocks[0].attn1.register_forward_hook(
        lambda _, __, out: seen.append(out.abs().max())
    )
    try:
        bench.velocity(patcher)
    finally:
        hook.remove()
    return float(seen[0])


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_the_clamp_saturates_when_on_and_not_when_off(family):
    assert attention_output(bench.fresh_model(family, clamp=True)) == LIMIT
    assert attention_output(bench.fresh_model(family, clamp=False)) > 1.5 * LIMIT


def test_auto_clamps_unless_the_model_was_trained_in_bfloat16():
    """As NVIDIA's own inference does, which clamps everywhere; all models with qk-norm were trained in bfloat16."""
    assert attention_output(bench.fresh_model("sana")) == LIMIT
    assert attention_output(bench.fresh_model("sana", trained_in_float16=True)) == LIMIT
    assert attention_output(bench.fresh_model("sana", trained_in_float16=False)) > 1.5 * LIMIT
    assert attention_output(bench.fresh_model("sprint")) > 1.5 * LIMIT


def test_the_clamp_option_does_not_change_the_format_to_compute_in():
    """A clamp says nothing of the training, also when it comes back from a saved file."""
    for clamp in (None, True, False):
        assert bench.fresh_model("sana", clamp=clamp).model.diffusion_model.config.trained_in is None


@pytest.mark.parametrize(
    ("name", "clamped"), [("Sana_1600M_1024px_diffusers", True), ("Sana_1600M_1024px_BF16_diffusers", False)]
)
def test_a_checkpoint_trained_in_float16_is_clamped_in_every_format(tmp_path, name, clamped):
    (tmp_path / name).symlink_to(bench.folder() / "sana")
    patcher = bench.load_sana(str(tmp_path / name))
    assert (attention_output(patcher) == LIMIT) is clamped


@pytest.mark.parametrize(
    ("clamp", "dtype", "largest"),
    [
        (None, torch.float16, LIMIT),
        (None, torch.bfloat16, None),
        (None, torch.float32, None),
        (True, torch.float16, LIMIT),
        (True, torch.bfloat16, 65536.0),
        (True, torch.float32, LIMIT),
        (False, torch.float16, float("inf")),
        (False, torch.bfloat16, None),
    ],
)
def test_auto_clamps_in_float16_only(clamp, dtype, largest):
    """In bfloat16 the limit itself rounds up to 65536, as in the reference."""
    values = {"hidden_size": 64, "qk_norm": False, "clamp_attention": clamp}
    layer = LiteLA(
        SanaConfig(**dict.fromkeys(SanaConfig.__dataclass_fields__) | values),
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    layer.to_out[0].weight.data.mul_(5e4)
    with torch.no_grad():
        out = layer(20 * torch.randn(1, 12, 64, generator=generator).to(dtype), {}).abs().max()
    assert out > 1.5 * LIMIT if largest is None else float(out) == largest


# Loading


def load_partially(patcher, share: float) -> None:
    patcher.load(patcher.load_device, lowvram_model_memory=int(patcher.model_size() * share))
    assert patcher.model.model_lowvram is True


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_partial_load_gives_the_same_bits(family, share, dtype):
    whole, part = bench.fresh_model(family, dtype=dtype), bench.fresh_model(family, dtype=dtype)
    whole.load(whole.load_device, full_load=True)
    load_partially(part, share)
    assert torch.equal(bench.velocity(part), bench.velocity(whole))


def test_a_partial_load_applies_patches_as_a_full_one():
    patch = {
        "diffusion_model.transformer_blocks.1.ff.conv_depth.weight": ("diff", (torch.full((320, 1, 3, 3), 0.1),)),
        "diffusion_model.transformer_blocks.0.attn1.to_q.weight": ("diff", (torch.full((64, 64), 0.1),)),
        "diffusion_model.transformer_blocks.0.scale_shift_table.weight": ("diff", (torch.full((6, 64), 0.1),)),
    }
    plain = bench.velocity(bench.model("sana"))
    outs = []
    for load in (
        lambda patcher: patcher.load(patcher.load_device, full_load=True),
        lambda patcher: load_partially(patcher, 0.5),
    ):
        patcher = bench.fresh_model("sana").clone()
        assert len(patcher.add_patches(patch)) == len(patch)
        load(patcher)
        outs.append(bench.velocity(patcher))
    assert bench.rms_error(outs[0], plain) > 1e-2
    assert bench.relative(*outs) < 1e-5


def test_the_autoencoder_gives_the_same_bits_when_loaded_partially():
    # Both read the same way: the shared one may lie in memory otherwise, which rounds otherwise.
    whole, part = (bench.load_dc_ae(str(bench.folder() / "sana")) for _ in range(2))
    latent, pixels = bench.clean_latent(64, 64)["samples"], bench.picture(64, 64).movedim(-1, 1)
    load_partially(part.patcher, 0.3)
    with torch.inference_mode():
        assert torch.equal(part.first_stage_model.decode(latent), whole.first_stage_model.decode(latent))
        assert torch.equal(part.first_stage_model.encode(pixels), whole.first_stage_model.encode(pixels))


def test_a_bfloat16_autoencoder_stays_near_float32():
    narrow = bench.load_dc_ae(str(bench.folder() / "sana"), {"dtype": torch.bfloat16})
    assert narrow.vae_dtype == torch.bfloat16
    latent = bench.clean_latent(64, 64)
    image, exact = (bench.call("VAEDecode", vae, latent)[0] for vae in (narrow, bench.vae()))
    assert image.dtype == torch.float32 and 0 < float((image - exact).abs().mean()) < 0.02


def test_a_float16_autoencoder_is_computed_in_float32():
    assert bench.load_dc_ae(str(bench.folder() / "sana"), {"dtype": torch.float16}).vae_dtype == torch.float32


def test_a_bfloat16_text_encoder_stays_near_float32():
    narrow = bench.load_gemma(str(bench.folder() / "sana"), {"dtype": torch.bfloat16})
    conds = [bench.call("CLIPTextEncode", clip, "a cat")[0] for clip in (narrow, bench.clip())]
    assert torch.equal(*(cond[0][1]["attention_mask"] for cond in conds))
    assert 0 < bench.rms_error(conds[0][0][0], conds[1][0][0]) < 0.03


# What is not finite is stopped where it comes in


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_one_value_that_is_not_finite_is_found_and_large_ones_are_none(dtype):
    tensor = torch.full((2, 32, 64, 64), 6e4).to(dtype)  # whose sum float16 cannot hold
    assert all_finite(tensor) and all_finite(-tensor)
    for value in (math.nan, math.inf, -math.inf):
        changed = tensor.clone()
        changed[1, 3, 5, 7] = value
        assert not all_finite(changed)
    changed[0, 3, 5, 7] = math.inf  # with the -inf, so that the sum is NaN
    assert not all_finite(changed)


def test_a_conditioning_that_is_not_finite_is_not_sampled_with(monkeypatch):
    positive, negative = bench.encoded()
    context = positive[0][0].clone()
    context[0, 3] = float("nan")
    seen = bench.count_calls(monkeypatch, bench.model("sana"))
    for sample in (bench.draw, bench.ksampler):
        with pytest.raises(
            ValueError, match=r"The conditioning holds NaN or infinity: encode the prompt again, without a LoRA"
        ):
            sample(bench.model("sana"), (bench.changed(positive, context=context), negative))
    assert not seen.batches


def test_a_latent_that_is_not_finite_is_not_sampled_from(monkeypatch):
    latent = bench.clean_latent()
    latent["samples"][0, 3, 1, 1] = float("inf")
    seen = bench.count_calls(monkeypatch, bench.model("sana"))
    for sample in (bench.draw, bench.ksampler):
        with pytest.raises(
            ValueError, match=r"The latent to denoise holds NaN or infinity: look for the node that made"
        ):
            sample(bench.model("sana"), bench.encoded(), latent, denoise=0.5)
    assert not seen.batches


# Neighbours


def test_other_models_in_the_process_are_unaffected():
    """Everything one model can be put through, and a second one before and after."""
    second, conds = bench.fresh_model("sana"), bench.encoded()
    latent = bench.draw(second, conds)
    weights = {key: tensor.clone() for key, tensor in second.model.state_dict().items()}
    first = bench.fresh_model("sana", dtype=torch.bfloat16, shift=6.0, clamp=True)
    first.add_patches({"diffusion_model.proj_out.weight": ("diff", (torch.ones(32, 64),))})
    load_partially(first, 0.5)
    assert bench.relative(bench.draw(first, conds), latent) > 1e-2
    bench.draw(bench.model("sprint"), conds)
    comfy.model_management.unload_all_models()
    assert torch.equal(bench.draw(second, conds), latent)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in second.model.state_dict().items())
