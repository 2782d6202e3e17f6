"""SANA's ControlNets through the host's own nodes: Apply ControlNet, KSampler, stacking, ranges, LoRA, masks, batch."""

import comfy.sample
import comfy.samplers
import diffusers
import pytest
import torch
from comfy_extras.nodes_controlnet import SetUnionControlNetType
from sana_native.models.controlnet.config import SPRINT
from sana_native.models.controlnet.control import SanaControlNet
from sana_native.models.controlnet.saving import save_controlnet
from sana_native.models.lora.loader import load_lora
from sana_native.models.registry import describe_file, load_model
from sana_native.models.runtime.base_control import controlnets_of
from sana_native.models.sana.loader import load_sana
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import controlnets, lora_layouts, tiny
from sana_native.tests.support import workbench as bench

SIZE = 128  # pixels
WIRINGS = ["NVlabs", "diffusers"]


@pytest.fixture(scope="module")
def base() -> diffusers.SanaTransformer2DModel:
    return tiny.transformer(num_layers=4)


@pytest.fixture(scope="module")
def files(base, tmp_path_factory) -> dict[str, str]:
    return dict(zip(("diffusers", "NVlabs"), controlnets.save_layouts(tmp_path_factory.mktemp("controlnets"), base)))


@pytest.fixture(scope="module")
def model(files):
    return load_sana(files["NVlabs"])


@pytest.fixture(scope="module")
def controls(files) -> dict[str, SanaControlNet]:
    return {wiring: load_model("controlnet", path) for wiring, path in files.items()}


def drawing(size: int = SIZE) -> torch.Tensor:
    """White lines on black."""
    image = torch.zeros(1, size, size, 3)
    image[:, size // 4 : size // 4 + 6, size // 8 : -size // 8] = 1
    image[:, size // 4 : -size // 8, size // 3 : size // 3 + 6] = 1
    return image


def apply(control, image=None, strength=1.0, start=0.0, end=1.0, conds=None, vae=None):
    conds = bench.encoded() if conds is None else conds
    image = drawing() if image is None else image
    vae = bench.vae() if vae is None else vae
    return bench.call("ControlNetApplyAdvanced", *conds, control, image, strength, start, end, vae=vae)


def euler(model, conds, latent=None, *, steps: int = 3, cfg: float = 4.5, **options):
    return bench.ksampler(model, conds, latent, steps=steps, cfg=cfg, sampler="euler", scheduler="simple", **options)


def reference(base, wiring: str, model, cfg: float = 4.5, steps: int = 3, strength: float = 1.0) -> torch.Tensor:
    """The same run by diffusers' networks: Euler steps of the guided velocity on whole timesteps."""
    control = controlnets.reference()
    with torch.inference_mode():
        hint = bench.vae().encode(drawing()) * 0.41407
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        x = comfy.sample.prepare_noise(bench.empty()["samples"], 7)
        for sigma, after in zip(sigmas, sigmas[1:]):
            velocity = [
                one_prediction(base, control, wiring, x, hint, sigma, cond[0], strength) for cond in bench.encoded()
            ]
            x = x + (after - sigma) * (velocity[1] + cfg * (velocity[0] - velocity[1]))
    return x / 0.41407


def one_prediction(base, control, wiring, x, hint, sigma, cond, strength) -> torch.Tensor:
    states, mask = cond[0], cond[1]["attention_mask"]
    timestep = torch.trunc(sigma * 1000 + 3e-5).reshape(1)
    if wiring == "NVlabs":
        return controlnets.nvlabs_forward(base, control, x, hint, timestep, states, mask, strength)
    residuals = control(x, states, timestep, hint, strength, encoder_attention_mask=mask, return_dict=False)[0]
    return base(x, states, timestep, encoder_attention_mask=mask, controlnet_block_samples=tuple(residuals)).sample


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_apply_controlnet_and_ksampler_give_what_the_reference_gives(base, model, controls, wiring, strength):
    out = euler(model, apply(controls[wiring], strength=strength))
    expected = reference(base, wiring, model, strength=strength)
    assert ((out - expected).norm() / expected.norm()).item() < 2e-6
    assert bench.relative(out, euler(model, bench.encoded())) > 1e-2


@pytest.mark.parametrize("wiring", WIRINGS)
def test_strength_0_is_no_control_bit_for_bit(model, controls, wiring):
    """The host's apply node leaves such a ControlNet out; a scheduled strength does not."""
    conds = apply(controls[wiring])
    for cond in conds:
        cond[0][1]["control"].strength = 0.0
    plain = euler(model, bench.encoded())
    assert torch.equal(euler(model, conds), plain)
    assert torch.equal(euler(model, apply(controls[wiring], strength=0.0)), plain)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_two_equal_runs_are_bit_equal(model, controls, wiring):
    conds = apply(controls[wiring])
    assert torch.equal(euler(model, conds), euler(model, conds))


def test_another_control_image_is_another_result(model, controls):
    runs = [euler(model, apply(controls["NVlabs"], image)) for image in (drawing(), drawing().flip(2))]
    assert bench.relative(*runs) > 1e-2


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_batch_with_cfg_equals_single_passes(model, controls, wiring, monkeypatch):
    conds = apply(controls[wiring])
    latent = bench.empty(batch_size=2)
    together = euler(model, conds, latent)
    seen = bench.count_calls(monkeypatch, model)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e18)  # no room for a batch
    apart = euler(model, conds, latent)
    assert set(seen.batches) == {2}  # images of one prompt; together it is four
    assert bench.relative(together, apart) < 1e-5


def test_a_batch_of_control_images_is_one_for_each_image(model, controls):
    images = torch.cat([drawing(), drawing().flip(2)])
    latent = bench.clean_latent(batch_size=1)["samples"].repeat(2, 1, 1, 1)
    noise = {"samples": latent, "batch_index": [0, 0]}  # equal noise
    both = euler(model, apply(controls["NVlabs"], images), noise, denoise=0.9)
    first = euler(model, apply(controls["NVlabs"], images[:1]), {"samples": latent[:1]}, denoise=0.9)
    second = euler(model, apply(controls["NVlabs"], images[1:]), {"samples": latent[:1]}, denoise=0.9)
    assert bench.relative(both, torch.cat([first, second])) < 1e-5


def test_stacked_controlnets_add_their_residuals(model, controls):
    once = euler(model, apply(controls["NVlabs"], strength=1.0))
    halves = apply(controls["NVlabs"], strength=0.5)
    twice = euler(model, apply(controls["NVlabs"], strength=0.5, conds=halves))
    assert bench.relative(twice, once) < 1e-5
    mixed = euler(model, apply(controls["diffusers"], conds=apply(controls["NVlabs"])))
    assert bench.relative(mixed, once) > 1e-2


def test_the_range_of_steps_is_obeyed(model, controls):
    plain, whole = euler(model, bench.encoded()), euler(model, apply(controls["NVlabs"]))
    assert torch.equal(euler(model, apply(controls["NVlabs"], start=0.999, end=1.0)), plain)
    late = euler(model, apply(controls["NVlabs"], start=0.5))
    early = euler(model, apply(controls["NVlabs"], end=0.5))
    assert min(bench.relative(a, b) for a in (late, early) for b in (plain, whole)) > 1e-3


def test_any_size_of_image_and_latent_works(model, controls):
    out = euler(model, apply(controls["NVlabs"], drawing(200)[:, :150]), bench.empty(96, 160))
    assert out.shape == (1, 32, 5, 3) and torch.isfinite(out).all()


def test_the_control_image_is_resized_smoothly_and_stays_an_image(model, controls, monkeypatch):
    given = []
    vae = bench.vae()
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda image: (given.append(image), encode(image))[1])
    euler(model, apply(controls["NVlabs"], drawing(64)), steps=1)
    assert given[0].shape == (1, SIZE, SIZE, 3)
    assert 0 <= given[0].min() and given[0].max() <= 1
    assert ((given[0] > 0.05) & (given[0] < 0.95)).any()  # nearest-exact would have ends of the range only


def with_lora(model, path, layers=lora_layouts.LAYERS):
    """The model with a LoRA on these layers."""
    state_dict = tiny.transformer(num_layers=4).state_dict()
    weights = {key.removesuffix(".weight"): tensor for key, tensor in state_dict.items()}
    lora_layouts.save_with_header(path, lora_layouts.make_lora(weights, layers))
    return load_lora(model, str(path), 1.0, describe_file)


def test_lora_img2img_inpaint_and_control_work_together(model, controls, tmp_path):
    changed = with_lora(model, tmp_path / "lora.safetensors")
    latent = bench.clean_latent()
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, SIZE // 2 :] = 1
    masked = latent | {"noise_mask": mask[:, None]}
    conds = apply(controls["NVlabs"])
    out = euler(changed, conds, masked, denoise=0.7)
    assert torch.allclose(out[..., :2], latent["samples"][..., :2], atol=1e-5)
    others = [
        euler(model, conds, masked, denoise=0.7),
        euler(changed, bench.encoded(), masked, denoise=0.7),
        euler(changed, conds, masked, denoise=0.8),
        euler(changed, conds, latent, denoise=0.7),
    ]
    assert min(bench.relative(out, other) for other in others) > 1e-3


def test_a_lora_on_the_base_reaches_what_the_branch_takes_from_it(model, controls, tmp_path):
    """In NVIDIA's wiring the branch reads the base's first block; in diffusers' it has embeddings of its own."""
    given = {}
    layers = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_v"]
    changed = with_lora(model, tmp_path / "lora.safetensors", layers)
    for wiring in WIRINGS:
        for name, patcher in (("plain", model), ("lora", changed)):
            record = []
            network = controls[wiring].control_model
            hook = network.controlnet_blocks[0].register_forward_hook(lambda *_, record=record: record.append(_[2]))
            euler(patcher, apply(controls[wiring]), steps=1, cfg=1.0)
            hook.remove()
            given[wiring, name] = record[0]
    assert bench.relative(given["NVlabs", "lora"], given["NVlabs", "plain"]) > 1e-3
    assert torch.equal(given["diffusers", "lora"], given["diffusers", "plain"])


def test_the_union_type_of_another_node_is_swallowed(model, controls):
    typed = bench.call(SetUnionControlNetType, controls["NVlabs"], "hed/pidi/scribble/ted")[0]
    assert typed is not controls["NVlabs"] and typed.extra_args["control_type"]
    assert torch.equal(euler(model, apply(typed)), euler(model, apply(controls["NVlabs"])))


def test_the_time_is_exact_in_16_bits(model, controls, monkeypatch):
    """982 and 984 are the same number in bfloat16, in which the host hands the time over."""
    given = []
    network = controls["NVlabs"].control_model
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda **inputs: (given.append(inputs), forward(**inputs))[1])
    euler(model, apply(controls["NVlabs"]), steps=3, cfg=1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)[:-1]
    assert [one["exact_timesteps"].tolist() for one in given] == [[int(sigma * 1000 + 3e-5)] for sigma in sigmas]
    assert all(one["exact_timesteps"].dtype == torch.float32 for one in given)


def test_after_a_run_nothing_of_the_base_stays(model, controls):
    conds = apply(controls["NVlabs"])
    euler(model, conds, steps=1)
    control = conds[0][0][1]["control"]
    assert control.base_model is None and not {"base", "exact_timesteps"} & set(control.extra_args)
    assert controls["NVlabs"].base_model is None


def test_a_copy_is_of_the_same_network_and_settings(controls):
    control = controls["diffusers"]
    control.set_extra_arg("base", "of a run")
    other = control.copy()
    control.extra_args.pop("base")
    assert type(other) is SanaControlNet and other.control_model is control.control_model
    assert "base" not in other.extra_args
    assert (other.upscale_algorithm, other.compression_ratio, other.extra_conds) == (
        "bicubic",
        1,
        ["attention_mask", "guidance"],
    )
    image = drawing()
    assert other.set_cond_hint(image, 0.5, (0.0, 1.0), vae=bench.vae()).copy().strength == 0.5


def test_the_host_counts_its_weights_and_its_activations(controls):
    control, other = (controls[wiring].copy() for wiring in WIRINGS)
    assert control.get_models() == [control.control_model_wrapped]
    assert control.control_model_wrapped.model_size() >= sum(each.nbytes for each in control.control_model.parameters())
    alone = control.inference_memory_requirements(torch.float32)
    assert alone == 2 * 32**2 * 64 * (2 + 12) * 4
    other.set_previous_controlnet(control)
    assert other.inference_memory_requirements(torch.float32) == 2 * alone


# What cannot work, and what is doubtful


def test_without_a_vae_the_host_says_so(model, controls):
    conds = bench.call("ControlNetApplyAdvanced", *bench.encoded(), controls["NVlabs"], drawing(), 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="This Controlnet needs a VAE but none was provided"):
        euler(model, conds)


def test_another_vae_is_refused(model, controls):
    conds = apply(controls["NVlabs"])
    for cond in conds:
        cond[0][1]["control"].vae = type("VAE", (), {"latent_channels": 4, "spacial_compression_encode": lambda _: 8})()
    with pytest.raises(
        ValueError, match=r"VAE of Apply ControlNet is another model's: connect the DC-AE of SANA DC-AE"
    ):
        euler(model, conds)


def test_another_width_is_refused(controls):
    wide = bench.fresh_model("sana")
    control = controls["NVlabs"].copy()
    config = type(wide.model.diffusion_model.config)(**vars(wide.model.diffusion_model.config) | {"hidden_size": 96})
    with pytest.raises(ValueError, match="is for models of width 64, and the model is 96 wide: load the ControlNet"):
        control.require_base(config)


def test_a_base_without_a_block_behind_the_last_residual_is_refused(controls):
    with pytest.raises(ValueError, match="has 2 blocks and needs a model of at least 3, but the model has 2: load"):
        euler(bench.model("sana"), apply(controls["NVlabs"]))


@pytest.fixture(scope="module")
def sprint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sprint")
    tiny.transformer(sprint=True, num_layers=4).save_pretrained(folder / "transformer")
    return load_sana(str(folder))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_sprint_is_refused_unless_the_file_says_so(sprint, controls, wiring):
    with pytest.raises(ValueError, match="was not trained for SANA-Sprint, whose time and guidance it does not know"):
        bench.ksampler(sprint, apply(controls[wiring]))


def test_sprint_runs_with_a_controlnet_that_was_trained_for_it(sprint, files, tmp_path):
    control = load_model("controlnet", files["NVlabs"])
    network = control.control_model
    network.config = type(network.config)(**vars(network.config) | {"trained_for": (SPRINT,)})
    path = str(tmp_path / "sprint.safetensors")
    save_controlnet(control, path)
    out = bench.ksampler(sprint, apply(load_model("controlnet", path)))
    plain = bench.ksampler(sprint, bench.encoded())
    assert torch.isfinite(out).all() and bench.relative(out, plain) > 1e-2


def watched(model):
    clone = model.clone()
    warn_about_runs(clone)
    return clone


def test_another_family_of_base_and_a_bright_control_image_are_warned_of(controls, tmp_path, caplog):
    tiny.transformer(num_layers=4, qk_norm="rms_norm_across_heads").save_pretrained(tmp_path / "transformer")
    newer = load_sana(str(tmp_path))
    euler(watched(newer), apply(controls["diffusers"], 1 - drawing()))
    assert "Load a SANA model: this ControlNet was not trained for SANA-1.5, which has other features" in caplog.text
    assert "Invert the control image: SANA's ControlNet expects white lines on black" in caplog.text


def test_a_fitting_base_and_drawing_are_not_warned_of(model, controls, caplog):
    euler(watched(model), apply(controls["diffusers"]))
    assert "ControlNet" not in caplog.text


def test_control_images_of_another_shape_or_number_are_told(model, controls, caplog):
    control = apply(controls["diffusers"])[0][0][1]["control"]
    control.cond_hint_original = torch.zeros(1, 3, 30, 1000)
    (sentence,) = control.check_images(8, 8, 8)
    assert sentence.startswith("The control image is 1000 x 30 px, another shape than the image: 97% of it is cropped.")
    control.cond_hint_original = torch.zeros(3, 3, 250, 256)
    assert control.check_images(3, 8, 8) == []
    (sentence,) = control.check_images(8, 8, 8)
    assert sentence == "There are 3 control images for 8 images: they are taken in turn. Give one, or as many."
    euler(watched(model), apply(controls["diffusers"], drawing().repeat(3, 1, 1, 1)))
    assert "There are 3 control images for 1 images" in caplog.text


def test_both_polarities_give_different_latents(model, controls):
    assert bench.relative(*(euler(model, apply(controls["NVlabs"], one)) for one in (drawing(), 1 - drawing()))) > 1e-2


def test_every_controlnet_of_a_stack_is_found(controls):
    conds = apply(controls["diffusers"], conds=apply(controls["NVlabs"]))
    found = controlnets_of([cond[0][1] for cond in conds])
    wirings = sorted(one.control_model.config.wiring for one in found)
    assert wirings == ["NVlabs", "diffusers"]


def test_another_familys_model_is_refused(controls):
    control = apply(controls["NVlabs"])[0][0][1]["control"]
    model = type("SDXL", (), {"diffusion_model": torch.nn.Linear(1, 1)})()
    with pytest.raises(ValueError, match=r"was applied to a model of another family \(SDXL\): bypass its Apply node"):
        control.pre_run(model, float)
