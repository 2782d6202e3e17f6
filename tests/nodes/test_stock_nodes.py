"""The host's own nodes on our MODEL and CLIP: samplers, conditioning, patches, LoRA, caches; training and compiling."""

import importlib
import math

import comfy.ops
import comfy.samplers
import folder_paths
import latent_preview
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_flux import FluxDisableGuidance, FluxGuidance
from comfy_extras.nodes_model_advanced import (
    ModelSamplingAuraFlow,
    ModelSamplingContinuousEDM,
    ModelSamplingContinuousV,
    ModelSamplingDiscrete,
    ModelSamplingFlux,
    ModelSamplingSD3,
    ModelSamplingStableCascade,
)
from comfy_extras.nodes_rebatch import LatentRebatch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from safetensors.torch import save_file
from sana_native.nodes.warnings import warn_about_runs
from sana_native.samplers.schedules import flow_shift, get_sigmas_flow_dpm
from sana_native.tests.support import workbench as bench


@pytest.fixture(params=bench.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return bench.model(family)


@pytest.fixture
def cfg(family):
    return 1.0 if family == "sprint" else 4.5


# Samplers


def test_our_names_are_in_the_dropdowns_of_the_stock_sampler():
    assert {"sana_flow_dpm", "sana_scm"} <= set(comfy.samplers.KSampler.SAMPLERS)
    assert {"sana_flow", "sana_flow_euler", "sana_scm"} <= set(comfy.samplers.KSampler.SCHEDULERS)


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_our_block_equals_the_stock_sampler_with_our_names(model, denoise):
    latent = bench.empty() if denoise == 1.0 else bench.clean_latent()
    ours = bench.draw(model, bench.encoded(), latent, steps=4, denoise=denoise)
    stock = bench.ksampler(model, bench.encoded(), latent, steps=4, denoise=denoise)
    assert torch.equal(ours, stock)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler", "normal"), ("dpmpp_2m_sde", "simple"), ("lcm", "sana_scm"), ("euler", "sana_flow_euler")],
)
def test_the_stock_sampler_runs_stock_samplers(model, sampler, scheduler):
    out = bench.ksampler(model, bench.encoded(), sampler=sampler, scheduler=scheduler, steps=4)
    assert out.shape == (1, 32, 4, 4) and torch.isfinite(out).all()
    assert (
        bench.relative(
            out, bench.ksampler(model, bench.encoded(), seed=8, sampler=sampler, scheduler=scheduler, steps=4)
        )
        > 0.1
    )


def test_a_run_in_two_halves_equals_the_whole(model, cfg):
    """KSamplerAdvanced hands leftover noise on: our own noise scaling must not touch it."""
    scheduler = "sana_scm" if model.model.is_sprint else "sana_flow"
    whole = bench.ksampler(model, bench.encoded(), sampler="euler", scheduler=scheduler, steps=4)

    def part(latent, add_noise, start, end, leftover):
        return bench.call(
            "KSamplerAdvanced",
            model,
            add_noise,
            7,
            4,
            cfg,
            "euler",
            scheduler,
            *bench.encoded(),
            latent,
            start,
            end,
            leftover,
        )[0]

    half = part(bench.empty(), "enable", 0, 2, "enable")
    assert bench.relative(part(half, "disable", 2, 10000, "disable")["samples"], whole) < 1e-5


def custom_parts(model):
    if model.model.is_sprint:
        return bench.call(bench.OURS["SCMSampler"])[0], bench.call(bench.OURS["SCMScheduler"], 4, 1.5708, 1.3, 1.0)[0]
    return bench.call(bench.OURS["FlowDPMSampler"], 2)[0], bench.call(
        bench.OURS["FlowScheduler"], model, 4, "flow_dpm", 0.0, 1.0
    )[0]


def test_custom_sampler_nodes_give_what_our_block_gives(model, cfg):
    sampler, sigmas = custom_parts(model)
    positive, negative = bench.encoded()
    expected = bench.draw(model, (positive, negative), steps=4)
    simple = bench.call(custom.SamplerCustom, model, True, 7, cfg, positive, negative, sampler, sigmas, bench.empty())[
        0
    ]
    guider = bench.call(custom.CFGGuider, model, positive, negative, cfg)[0]
    noise = bench.call(custom.RandomNoise, 7)[0]
    advanced, denoised = bench.call(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, bench.empty())
    assert torch.equal(simple["samples"], expected) and torch.equal(advanced["samples"], expected)
    assert bench.relative(denoised["samples"], expected) < 1e-4  # the last step ends at the prediction


def test_sprint_draws_with_the_basic_guider():
    model = bench.model("sprint")
    positive, negative = bench.encoded()
    guider = bench.call(custom.BasicGuider, model, positive)[0]
    out = bench.call(
        custom.SamplerCustomAdvanced, bench.call(custom.RandomNoise, 7)[0], guider, *custom_parts(model), bench.empty()
    )[0]
    assert torch.equal(out["samples"], bench.draw(model, (positive, negative), steps=4))


def test_the_basic_scheduler_gives_our_sigmas():
    sigmas = bench.call(custom.BasicScheduler, bench.model("sana"), "sana_flow", 10, 0.5)[0]
    assert torch.equal(sigmas, get_sigmas_flow_dpm(10, 3.0, 0.5))


def test_every_step_is_shown_once(monkeypatch, model):
    seen = []

    def prepare_callback(model, steps, x0_output_dict=None):  # noqa: ARG001 - the host's signature
        def callback(step, x0, x, total_steps):
            seen.append((step, steps, total_steps, x0.shape == x.shape == (1, 32, 4, 4)))

        return callback

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare_callback)
    for sample in (bench.draw, bench.ksampler):
        seen.clear()
        sample(model, bench.encoded(), steps=4)
        assert seen == [(step, 4, 4, True) for step in range(4)]


@pytest.mark.parametrize("change", ["LatentFromBatch", "RebatchLatents"])
def test_one_image_of_a_batch_is_made_again_alone(model, change):
    """By our block, which hands the number of the image on to the noise of Sprint's steps."""
    batch = bench.draw(model, bench.encoded(), bench.empty(batch_size=3), steps=3)
    if change == "LatentFromBatch":
        (alone,) = bench.call(change, bench.empty(batch_size=3), 2, 1)
    else:
        (split,) = bench.call(LatentRebatch, [bench.empty(batch_size=3)], [1])
        alone = split[2]
    assert alone["batch_index"] == [2]
    assert bench.relative(bench.draw(model, bench.encoded(), alone, steps=3), batch[2:]) < 1e-4


def test_a_fixed_seed_for_a_batch_makes_all_images_the_same(model):
    importlib.import_module("comfy_extras.nodes_post_processing")  # before nodes_latent: they import each other
    node = importlib.import_module("comfy_extras.nodes_latent").LatentBatchSeedBehavior
    (latent,) = bench.call(node, bench.empty(batch_size=3), "fixed")
    batch = bench.draw(model, bench.encoded(), latent, steps=3)
    assert max(bench.relative(batch[i], batch[0]) for i in (1, 2)) < 1e-4


def test_without_numbers_our_block_still_equals_the_stock_sampler(model):
    latent = bench.empty(batch_size=2)
    ours, stock = (sample(model, bench.encoded(), latent, steps=3) for sample in (bench.draw, bench.ksampler))
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
def test_image_to_image_depends_on_the_image_and_the_noise(model, sample):
    a = sample(model, bench.encoded(), bench.clean_latent(seed=1), denoise=0.5)
    b = sample(model, bench.encoded(), bench.clean_latent(seed=2), denoise=0.5)
    c = sample(model, bench.encoded(), bench.clean_latent(seed=1), denoise=0.5, seed=8)
    assert bench.relative(a, b) > 0.1 and bench.relative(a, c) > 0.1
    whole = [sample(model, bench.encoded(), bench.clean_latent(seed=seed)) for seed in (1, 2)]
    assert torch.equal(*whole)  # at denoise 1 nothing is left of the image


def test_the_stock_empty_latent_is_brought_to_our_shape(model):
    stock = bench.call("EmptyLatentImage", 160, 96, 2)[0]
    assert stock["samples"].shape == (2, 4, 12, 20)
    for sample in (bench.draw, bench.ksampler):
        out = sample(model, bench.encoded(), stock)
        assert out.shape == (2, 32, 3, 5)
        assert torch.equal(out, sample(model, bench.encoded(), bench.empty(160, 96, batch_size=2)))


# Conditioning


def test_flux_guidance_sets_the_guidance_of_sprint():
    model, (positive, negative) = bench.model("sprint"), bench.encoded()
    out = {
        value: bench.draw(model, (bench.call(FluxGuidance, positive, value)[0], negative)) for value in (1.0, 4.5, 8.0)
    }
    assert torch.equal(bench.draw(model, (positive, negative)), out[4.5])
    assert bench.relative(out[1.0], out[4.5]) > 1e-3 and bench.relative(out[8.0], out[4.5]) > 1e-3
    disabled = bench.call(FluxDisableGuidance, positive)[0]
    assert torch.equal(bench.draw(model, (disabled, negative)), out[4.5])


def test_flux_guidance_does_nothing_to_sana():
    model, (positive, negative) = bench.model("sana"), bench.encoded()
    guided = bench.call(FluxGuidance, positive, 8.0)[0]
    assert torch.equal(bench.draw(model, (guided, negative)), bench.draw(model, (positive, negative)))


def test_combined_and_zeroed_conditionings_run():
    model, (positive, negative) = bench.model("sana"), bench.encoded()
    combined = bench.call("ConditioningCombine", positive, bench.encode("a red bus")[0])[0]
    zeroed = bench.call("ConditioningZeroOut", positive)[0]
    plain = bench.draw(model, (positive, negative))
    for conds in ((combined, negative), (positive, zeroed)):
        out = bench.draw(model, conds)
        assert torch.isfinite(out).all() and bench.relative(out, plain) > 1e-3


# Model patches


def test_the_shift_node_changes_the_schedule_of_our_block():
    model, conds = bench.model("sana"), bench.encoded()
    patched = bench.call(ModelSamplingSD3, model, 6.0)[0]
    sigmas = bench.call(bench.OURS["FlowScheduler"], patched, 4, "flow_dpm", 0.0, 1.0)[0]
    assert torch.equal(sigmas, get_sigmas_flow_dpm(4, 6.0)) and float(sigmas[0]) == pytest.approx(
        flow_shift(0.999, 6.0)
    )
    plain, shifted = bench.draw(model, conds, steps=4), bench.draw(patched, conds, steps=4)
    assert bench.relative(shifted, plain) > 1e-2
    assert torch.equal(bench.draw(model, conds, steps=4), plain)
    assert torch.equal(shifted, bench.ksampler(patched, conds, steps=4))


@pytest.mark.parametrize("node", [ModelSamplingSD3, ModelSamplingAuraFlow])
def test_a_shift_node_at_the_own_shift_leaves_the_image(model, node):
    """The stock class scales the first noise by 0.9997 or so where ours does not, and may count time from 0 to 1."""
    conds, shift = bench.encoded(), model.get_model_object("model_sampling").shift
    plain = bench.draw(model, conds, steps=4)
    assert bench.relative(bench.draw(bench.call(node, model, shift)[0], conds, steps=4), plain) < 0.05


def test_the_shift_node_of_flux_is_a_shift_too(model):
    """It holds the shift's logarithm, and counts time from 0 to 1."""
    conds = bench.encoded()
    # 256 x 256 px are base_shift, at 8 px a latent and 2 a patch.
    flux = bench.call(ModelSamplingFlux, model, 1.15, math.log(3.0), 256, 256)[0]
    sd3 = bench.call(ModelSamplingSD3, model, 3.0)[0]
    for sample in (bench.draw, bench.ksampler):
        assert bench.relative(sample(flux, conds, steps=4), sample(sd3, conds, steps=4)) < 1e-3


OTHER_SAMPLINGS = [
    (ModelSamplingDiscrete, ("eps", False), "ModelSamplingDiscrete with EPS"),
    (ModelSamplingDiscrete, ("v_prediction", True), "ModelSamplingDiscrete with V_PREDICTION"),
    (ModelSamplingDiscrete, ("lcm", False), "ModelSamplingDiscreteDistilled with LCM"),
    (ModelSamplingDiscrete, ("img_to_img_flow", False), "ModelSamplingDiscrete with IMG_TO_IMG_FLOW"),
    (ModelSamplingContinuousEDM, ("cosmos_rflow", 120.0, 0.002), "ModelSamplingCosmosRFlow with COSMOS_RFLOW"),
    (ModelSamplingContinuousV, ("v_prediction", 500.0, 0.03), "ModelSamplingContinuousV with V_PREDICTION"),
    (ModelSamplingStableCascade, (2.0,), "StableCascadeSampling with EPS"),
]


@pytest.mark.parametrize("node, inputs, kind", OTHER_SAMPLINGS)
@pytest.mark.parametrize("watched", [False, True])
def test_model_sampling_nodes_for_other_kinds_of_models_are_refused(model, node, inputs, kind, watched):
    patched = bench.call(node, model, *inputs)[0]
    if watched:  # as the loader node gives it
        warn_about_runs(patched)
    sentence = f"set to sample as {kind}, but it was trained on a rectified flow: bypass the ModelSampling node"
    with pytest.raises(ValueError, match=sentence):
        bench.draw(patched, bench.encoded())
    with pytest.raises(ValueError, match=sentence):
        bench.ksampler(patched, bench.encoded(), sampler="euler", scheduler="normal")
    with pytest.raises(ValueError, match="on a SANA model bypass the node that set it, such as ModelSamplingDiscrete"):
        bench.ksampler(patched, bench.encoded())


@pytest.mark.parametrize("sample", [bench.draw, bench.ksampler])
@pytest.mark.parametrize("shape", [(1, 16, 2, 4, 4), (1, 32, 2, 4, 4), (1, 64, 20)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_latent_of_a_video_or_a_sound_is_refused(model, sample, shape, value):
    latent = {"samples": torch.full(shape, value)}
    with pytest.raises(
        ValueError, match=f"has {len(shape)} dimensions, .* SANA needs the 4 of an image: take SANA Empty"
    ):
        sample(model, bench.encoded(), latent)


def test_skip_layer_guidance_acts():
    model, conds = bench.model("sana"), bench.encoded()
    patched = bench.call(
        SkipLayerGuidanceDiT, model, scale=3.0, start_percent=0.0, end_percent=1.0, double_layers="1", single_layers=""
    )[0]
    assert bench.relative(bench.draw(patched, conds), bench.draw(model, conds)) > 1e-2


def test_a_block_patch_sees_every_block_and_may_replace_it(model):
    conds, seen = bench.encoded(), []

    def passed(args, extra):
        seen.append(
            (
                args["transformer_options"]["block_index"],
                args["transformer_options"]["total_blocks"],
                args["img"].shape[1:],
            )
        )
        return extra["original_block"](args)

    transparent, skipping = model.clone(), model.clone()
    for block in (0, 1):
        transparent.set_model_patch_replace(passed, "dit", "double_block", block)
    skipping.set_model_patch_replace(lambda args, _: args, "dit", "double_block", 1)
    plain = bench.draw(model, conds, steps=1)
    assert torch.equal(bench.draw(transparent, conds, steps=1), plain)
    assert seen == [(0, 2, (16, 64)), (1, 2, (16, 64))]
    assert bench.relative(bench.draw(skipping, conds, steps=1), plain) > 1e-2


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_step_caches_skip_steps_of_the_network(monkeypatch, node):
    model, conds = bench.model("sana"), bench.encoded()
    plain = bench.draw(model, conds, steps=10)
    cached = bench.call(node, model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)[0]
    seen = bench.count_calls(monkeypatch, model)
    out = bench.draw(cached, conds, steps=10)
    assert torch.isfinite(out).all() and bench.relative(out, plain) > 0
    assert 0 < len(seen.batches) < 10


def test_a_lora_named_as_trainers_name_it_adds_its_product(tmp_path, monkeypatch, model):
    """Names of PEFT for diffusers' SanaTransformer2DModel, with and without an alpha."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "transformer_blocks.0.attn1.to_q": (64, 64),
        "transformer_blocks.1.attn2.to_out.0": (64, 64),
        "caption_projection.linear_1": (64, 64),
    }
    down, up, lora = {}, {}, {}
    for name, (out, inner) in shapes.items():
        down[name], up[name] = torch.randn(4, inner, generator=generator), torch.randn(out, 4, generator=generator)
        lora |= {f"transformer.{name}.lora_A.weight": down[name], f"transformer.{name}.lora_B.weight": up[name]}
    lora["transformer.transformer_blocks.1.attn2.to_out.0.alpha"] = torch.tensor(2.0)
    save_file(lora, tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))

    conds, plain = bench.encoded(), bench.draw(model, bench.encoded())
    network = model.model.diffusion_model
    before = {name: network.get_submodule(name).weight.clone() for name in shapes}
    patched = bench.call("LoraLoaderModelOnly", model, "style.safetensors", 0.7)[0]
    assert len(patched.patches) == len(shapes)
    assert bench.relative(bench.draw(patched, conds), plain) > 1e-2
    for name in shapes:
        scale = 0.7 * (2.0 / 4 if f"transformer.{name}.alpha" in lora else 1.0)
        expected = before[name] + scale * up[name] @ down[name]
        assert bench.relative(network.get_submodule(name).weight, expected) < 1e-5
    assert torch.equal(bench.draw(model, conds), plain)


# Training and compilation


def trainable_network(family: str) -> torch.nn.Module:
    source = bench.model(family).model.diffusion_model
    network = type(source)(source.config, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    network.load_state_dict({key: tensor.clone() for key, tensor in source.state_dict().items()})
    return network


def network_inputs(family: str) -> dict:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, 20)
    mask[1, 9:] = 0
    return {
        "x": torch.randn(2, 32, 3, 4, generator=generator),
        "timesteps": torch.tensor([0.9, 0.4]) if family == "sprint" else torch.tensor([900.0, 400.0]),
        "context": torch.randn(2, 20, 64, generator=generator),
        "attention_mask": mask,
        "guidance": torch.tensor([4.5, 4.0]) if family == "sprint" else None,
    }


def test_a_loss_reaches_every_parameter(family):
    network, inputs = trainable_network(family), network_inputs(family)
    network.requires_grad_(True)
    inputs["x"].requires_grad_(True)
    inputs["context"].requires_grad_(True)
    network(**inputs).square().mean().backward()
    unreached = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert unreached == []
    assert inputs["x"].grad.abs().sum() > 0 and inputs["context"].grad.abs().sum() > 0


def test_the_network_compiles_without_a_graph_break(monkeypatch, family):
    # What the host uses on a GPU; its attention for the CPU asks for the free memory, which no compiler can follow.
    monkeypatch.setattr("sana_native.models.sana.model.optimized_attention", attention_pytorch)
    network, inputs = trainable_network(family).eval(), network_inputs(family)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")(**inputs)
        assert bench.relative(compiled, network(**inputs)) < 1e-6


def test_the_stock_training_node_trains_a_lora_that_acts(family):
    """Two steps on every layer with gradient checkpointing, on a copy made by `cached_patcher_init`."""
    model, (positive, negative) = bench.fresh_model(family), bench.encoded()
    options = {
        "batch_size": 1,
        "steps": 2,
        "grad_accumulation_steps": 1,
        "learning_rate": 0.05,
        "rank": 2,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    latents = [bench.clean_latent()]
    lists = {name: [value] for name, value in options.items()}
    lora, losses, _ = bench.call(TrainLoraNode, model=[model], latents=latents, positive=[positive], **lists)
    assert len(losses["loss"]) == 2 and all(loss > 0 for loss in losses["loss"])
    ups = [tensor for name, tensor in lora.items() if "lora_up" in name]
    assert len(ups) > 20 and all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert all(tensor.abs().sum() > 0 for tensor in ups)  # they begin at 0: every layer has been trained
    trained = bench.call(LoraModelLoader, model, lora, 1.0)[0]
    out, plain = (bench.draw(patcher, (positive, negative)) for patcher in (trained, model))
    assert torch.isfinite(out).all() and bench.relative(out, plain) > 1e-3
