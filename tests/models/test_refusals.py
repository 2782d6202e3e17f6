"""What is refused, and how: one sentence that names what was found, what was expected, and the cure; and cancelling."""

from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import latent_preview
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from sana_native.models.runtime.zero_padding import ZERO_PADDED
from sana_native.tests.support import workbench as bench


@pytest.fixture(autouse=True)
def no_interrupt_left():
    yield
    comfy.model_management.interrupt_current_processing(False)


def one_sentence(error: pytest.ExceptionInfo) -> bool:
    text = str(error.value)
    return "\n" not in text and text.endswith((".", ")")) and ". " not in text


# Cancelling


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
def test_cancel_stops_before_another_step_is_done(monkeypatch, sample):
    done = []

    def prepare_callback(model, steps, x0_output_dict=None):  # noqa: ARG001 - the host's signature
        def callback(step, x0, x, total_steps):  # noqa: ARG001 - the host's signature
            done.append(step)
            if step == 2:
                comfy.model_management.interrupt_current_processing()

        return callback

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare_callback)
    model = bench.model("sana")
    seen = bench.count_calls(monkeypatch, model)
    with pytest.raises(InterruptProcessingException):
        sample(model, bench.encoded(), steps=20)
    assert done == [0, 1, 2] and len(seen.batches) <= 4


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_cancel_stops_inside_the_network(family):
    model = bench.model(family)
    blocks = model.model.diffusion_model.transformer_blocks
    reached = []
    hooks = [
        blocks[0].register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing()),
        blocks[1].attn1.to_k.register_forward_hook(lambda *_: reached.append(1)),
    ]
    try:
        with pytest.raises(InterruptProcessingException):
            bench.draw(model, bench.encoded())
    finally:
        for hook in hooks:
            hook.remove()
    assert not reached


@pytest.mark.parametrize(
    ("part", "node"), [("decoder", "VAEDecode"), ("decoder", "VAEDecodeTiled"), ("encoder", "VAEEncode")]
)
def test_cancel_stops_inside_the_autoencoder(part, node):
    network = getattr(bench.vae().first_stage_model, part)
    reached = []
    hooks = [
        network.conv_in.register_forward_hook(lambda *_: comfy.model_management.interrupt_current_processing()),
        network.conv_out.register_forward_hook(lambda *_: reached.append(1)),
    ]
    inputs = {"pixels": bench.picture()} if part == "encoder" else {"samples": bench.clean_latent()}
    inputs |= {"tile_size": 64} if node == "VAEDecodeTiled" else {}
    try:
        with pytest.raises(InterruptProcessingException):
            bench.call(node, vae=bench.vae(), **inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert not reached


def test_cancel_stops_inside_the_text_encoder():
    with pytest.raises(InterruptProcessingException):
        comfy.model_management.interrupt_current_processing()
        bench.encode("a cat")


# Sampling


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
def test_sprint_refuses_classifier_free_guidance(monkeypatch, sample):
    seen = bench.count_calls(monkeypatch, bench.model("sprint"))
    with pytest.raises(ValueError, match=r"SANA-Sprint was asked .* set cfg to 1\.0 .* FluxGuidance") as error:
        sample(bench.model("sprint"), bench.encoded(), cfg=4.5)
    assert one_sentence(error) and not seen.batches


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
@pytest.mark.parametrize("channels", [4, 16])
def test_a_latent_of_another_vae_is_refused_by_the_sampler(sample, channels):
    with pytest.raises(
        ValueError, match=f"has {channels} channels where SANA needs 32: encode the image with a DC-AE"
    ) as error:
        sample(bench.model("sana"), bench.encoded(), {"samples": torch.ones(1, channels, 16, 16)}, denoise=0.5)
    assert one_sentence(error)


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_conditioning_from_clip_is_refused(family):
    positive, negative = bench.encoded()
    foreign = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    for conds in ((foreign, negative), (positive, foreign)):
        with pytest.raises(
            ValueError, match="is 768 wide where SANA needs Gemma's states of 64: encode the prompt with SANA Gemma"
        ) as error:
            bench.draw(bench.model(family), conds)
        assert one_sentence(error)


def test_a_conditioning_without_text_is_refused():
    positive, negative = bench.encoded()
    with pytest.raises(ValueError, match="is without text states where SANA needs Gemma's states of 64") as error:
        bench.draw(bench.model("sana"), ([[None, dict(positive[0][1])]], negative))
    assert one_sentence(error)


def test_concatenated_conditionings_of_an_encoder_that_does_not_zero_its_padding_are_refused():
    positive, negative = bench.encoded()
    unmarked = [[context, {key: extra[key] for key in extra if key != ZERO_PADDED}] for context, extra in positive]
    joined = bench.call("ConditioningConcat", unmarked, unmarked)[0]
    with pytest.raises(
        ValueError, match="has 600 text positions but a mask for 300, .* use Conditioning .Combine."
    ) as error:
        bench.draw(bench.model("sana"), (joined, negative))
    assert one_sentence(error)


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_that_is_not_finite_ends_the_sampling_with_a_reason(sample, value):
    model = bench.fresh_model("sana")
    model.model.diffusion_model.proj_out.bias.data[3] = value
    with pytest.raises(
        ValueError, match="gave a latent with NaN or infinity in torch.float32: load the model with another weight_dty"
    ) as error:
        sample(model, bench.encoded())
    assert one_sentence(error)


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0, but at least 1"),
        ({"denoise": 0.0}, "denoise is 0.0, but a number"),
        ({"denoise": 1.5}, "denoise is 1.5, but a number above 0 and up to 1"),
    ],
)
def test_steps_and_denoise_out_of_range_are_refused(family, values, message):
    with pytest.raises(ValueError, match=message):
        bench.draw(bench.model(family), bench.encoded(), **values)


@pytest.mark.parametrize(
    ("node", "inputs", "message"),
    [
        ("FlowScheduler", (0, "flow_dpm", 0.0, 1.0), "steps is 0"),
        ("FlowScheduler", (20, "flow_dpm", -1.0, 1.0), "shift is -1.0"),
        ("FlowScheduler", (20, "flow_euler", 0.0, 2.0), "denoise is 2.0"),
    ],
)
def test_the_flow_scheduler_refuses_values_out_of_range(node, inputs, message):
    with pytest.raises(ValueError, match=message):
        bench.call(bench.OURS[node], bench.model("sana"), *inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((0, 1.5708, 1.3, 1.0), "steps is 0"),
        ((2, 2.0, 1.3, 1.0), "max_time is 2.0"),
        ((2, 1.5708, 1.3, 0.0), "denoise is 0.0"),
    ],
)
def test_the_scm_scheduler_refuses_values_out_of_range(inputs, message):
    with pytest.raises(ValueError, match=message):
        bench.call(bench.OURS["SCMScheduler"], *inputs)


@pytest.mark.parametrize(("node", "inputs"), [("FlowScheduler", (20, "flow_dpm", 0.0, 1.0)), ("Sampler", None)])
def test_a_model_without_a_flow_shift_is_refused(node, inputs):
    foreign = SimpleNamespace(get_model_object=lambda _: SimpleNamespace(), model=SimpleNamespace())
    inputs = inputs or (*bench.encoded(), bench.empty(), 0, 4, 4.5, 1.0)
    with pytest.raises(ValueError, match="This SimpleNamespace model has no flow shift, .* SANA Model Loader") as error:
        bench.call(bench.OURS[node], foreign, *inputs)
    assert one_sentence(error)


# Text


def test_a_clip_of_another_family_is_refused():
    foreign = comfy.sd.CLIP(no_init=True)
    foreign.tokenizer = comfy.sd1_clip.SD1Tokenizer()
    with pytest.raises(
        ValueError, match="This CLIP tokenizes with SD1Tokenizer, not as SANA needs: load it with SANA Gemma Loader"
    ) as error:
        bench.call(bench.OURS["GemmaEncode"], foreign, "a cat", "", "on", "", False)
    assert one_sentence(error)


# Autoencoder


def foreign_vae() -> comfy.sd.VAE:
    return comfy.sd.VAE(sd={})


@pytest.mark.parametrize(
    ("node", "inputs"), [("DCAEDecode", {"samples": bench.clean_latent()}), ("DCAEEncode", {"pixels": bench.picture()})]
)
@pytest.mark.parametrize("tiling", ["auto", "on", "off"])
def test_a_vae_of_another_family_is_refused_by_our_nodes(node, inputs, tiling):
    with pytest.raises(
        ValueError, match="This VAE is likely that of .*, not SANA's DC-AE: .*connect the VAE of SANA DC-AE Loader"
    ) as error:
        bench.call(bench.OURS[node], vae=foreign_vae(), tiling=tiling, tile_size=1024, overlap=128, **inputs)
    assert one_sentence(error)


DECODERS = [
    (bench.OURS["DCAEDecode"], {"tiling": tiling, "tile_size": 128, "overlap": 0}) for tiling in ("auto", "on", "off")
]
DECODERS += [("VAEDecode", {}), ("VAEDecodeTiled", {"tile_size": 512})]
ENCODERS = [
    (bench.OURS["DCAEEncode"], {"tiling": tiling, "tile_size": 128, "overlap": 0}) for tiling in ("auto", "on", "off")
]
ENCODERS += [("VAEEncode", {}), ("VAEEncodeTiled", {"tile_size": 512, "overlap": 64})]


@pytest.mark.parametrize(("node", "options"), DECODERS)
def test_a_latent_of_another_family_is_refused_by_every_decoder(node, options):
    with pytest.raises(
        ValueError, match="has 4 channels where DC-AE decodes 32: it comes from another model, so use that model's VAE"
    ) as error:
        bench.call(node, vae=bench.vae(), samples={"samples": torch.ones(1, 4, 16, 16)}, **options)
    assert one_sentence(error)


@pytest.mark.parametrize(("node", "options"), DECODERS)
def test_a_latent_that_is_not_finite_is_refused_by_every_decoder(node, options):
    samples = bench.clean_latent()["samples"]
    samples[0, 5, 1, 1] = float("nan")
    with pytest.raises(
        ValueError, match="The latent to decode holds NaN or infinity: look for the stage that made it"
    ) as error:
        bench.call(node, vae=bench.vae(), samples={"samples": samples}, **options)
    assert one_sentence(error)


@pytest.mark.parametrize(("node", "options"), DECODERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_decoder_that_overflows_says_so_instead_of_giving_a_black_image(node, options, value):
    bias = bench.vae().first_stage_model.decoder.conv_in.bias
    kept = bias.data.clone()
    bias.data[3] = value
    try:
        with pytest.raises(
            ValueError, match="The image decoded by DC-AE holds NaN or infinity: load the autoencoder in bfl"
        ) as error:
            bench.call(node, vae=bench.vae(), samples=bench.clean_latent(), **options)
    finally:
        bias.data.copy_(kept)
    assert one_sentence(error)


@pytest.mark.parametrize(("node", "options"), ENCODERS)
@pytest.mark.parametrize(("width", "height"), [(31, 64), (64, 20)])
def test_an_image_below_32_px_is_refused_by_every_encoder(node, options, width, height):
    message = f"This image is {width} x {height} px; DC-AE needs at least 32 px a side: scale it up"
    with pytest.raises(ValueError, match=message) as error:
        bench.call(node, vae=bench.vae(), pixels=bench.picture(width, height), **options)
    assert one_sentence(error)


@pytest.mark.parametrize(("node", "options"), ENCODERS)
def test_an_image_that_is_not_finite_is_refused_by_every_encoder(node, options):
    pixels = bench.picture()
    pixels[0, 5, 5, 0] = float("nan")
    with pytest.raises(
        ValueError, match="The latent encoded by DC-AE holds NaN or infinity: check the node that made the image"
    ) as error:
        bench.call(node, vae=bench.vae(), pixels=pixels, **options)
    assert one_sentence(error)
