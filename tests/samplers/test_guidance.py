"""Guidance besides cfg, on the host's own sampling: perturbed attention as in diffusers, CFG-Zero* on the velocity."""

import comfy.controlnet
import comfy.model_patcher
import pytest
import torch
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from diffusers import SanaPAGPipeline
from sana_native.samplers.guidance import PerturbedAttention, ZeroStarGuidance, cfg_zero_star, parse_blocks
from sana_native.tests.support import workbench as bench


def guided(model, scale: float = 2.0, blocks: str = "auto", **settings):
    return bench.call(bench.OURS["PAG"], model, scale, blocks, **settings)[0]


def sampled_by_diffusers(steps: int, cfg: float, layer: str, scale: float, adaptive: float) -> torch.Tensor:
    """The pipeline's latent, from our text states and our first noise."""
    pipeline = SanaPAGPipeline.from_pretrained(bench.folder() / "sana", pag_applied_layers=layer)
    pipeline.set_progress_bar_config(disable=True)
    (positive, negative), names = bench.encoded(), ("prompt", "negative_prompt")
    given = {}
    for name, ((states, extra),) in zip(names, (positive, negative)):
        given |= {f"{name}_embeds": states, f"{name}_attention_mask": extra["attention_mask"]}
    return pipeline(
        **given,
        negative_prompt=None,
        num_inference_steps=steps,
        guidance_scale=cfg,
        height=128,
        width=128,
        use_resolution_binning=False,
        latents=torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(7)),
        output_type="latent",
        pag_scale=scale,
        pag_adaptive_scale=adaptive,
    ).images


# Perturbed attention


@pytest.mark.parametrize("adaptive", [0.0, 0.002])
@pytest.mark.parametrize("cfg", [4.5, 1.0])
def test_a_run_equals_the_pipeline_of_diffusers(cfg, adaptive):
    expected = sampled_by_diffusers(4, cfg, "transformer_blocks.1", 2.0, adaptive)
    model = guided(bench.model("sana"), 2.0, "1", adaptive=adaptive)
    ours = bench.draw(model, bench.encoded(), steps=4, cfg=cfg) * 0.41407
    assert bench.relative(ours, expected) < 2e-5
    assert bench.relative(bench.draw(bench.model("sana"), bench.encoded(), steps=4, cfg=cfg), ours / 0.41407) > 1e-2


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_auto_is_the_block_of_the_stock_node(family):
    stock = bench.call(PerturbedAttentionGuidance, bench.model(family), 2.0)[0]
    ours = bench.draw(guided(bench.model(family)), bench.encoded())
    assert torch.equal(ours, bench.draw(stock, bench.encoded()))
    assert bench.relative(bench.draw(guided(bench.model(family), blocks="0"), bench.encoded()), ours) > 1e-2


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_a_scale_of_one_acts_and_of_zero_leaves_the_model_as_it_is(family):
    model = bench.model(family)
    plain = bench.draw(model, bench.encoded())
    assert bench.relative(bench.draw(guided(model, 1.0), bench.encoded()), plain) > 1e-3
    assert guided(model, 0.0) is model
    assert torch.equal(bench.draw(model, bench.encoded()), plain)  # nothing of the guided run is left


def test_the_range_decides_in_which_steps_the_extra_pass_runs(monkeypatch):
    model, calls = bench.model("sana"), bench.count_calls(monkeypatch, bench.model("sana"))
    bench.draw(guided(model, sigma_start=0.9, sigma_end=0.6), bench.encoded(), steps=4)
    assert calls.batches == [2, 2, 1, 2, 1, 2]  # at 1.0, 0.9, 0.75 and 0.5


def test_a_scale_that_has_fallen_to_zero_costs_no_pass(monkeypatch):
    calls = bench.count_calls(monkeypatch, bench.model("sana"))
    bench.draw(guided(bench.model("sana"), 2.0, adaptive=0.006), bench.encoded(), steps=4)
    assert calls.batches == [2, 1, 2, 1, 2, 1, 2]


def test_the_perturbed_pass_has_the_control_of_the_clean_one():
    class Counted(comfy.controlnet.ControlBase):
        rows = []

        def get_control(self, x, t, cond, batched_number, transformer_options):  # noqa: ARG002 - the host's signature
            self.rows.append(x.shape[0])
            return {"input": [torch.full((x.shape[0], 16, 64), 0.5)]}

    positive, negative = bench.encoded()
    controlled = [
        bench.changed(cond, control=Counted(), control_apply_to_uncond=False) for cond in (positive, negative)
    ]
    controlled[1][0][1]["control"] = controlled[0][0][1]["control"]
    bench.draw(guided(bench.model("sana")), tuple(controlled), steps=2)
    assert Counted.rows == [2, 1, 2, 1]


@pytest.mark.parametrize(
    ("text", "blocks"), [("auto", ()), (" Auto ", ()), ("8", (8,)), ("8, 9 9", (8, 9)), ("0", (0,))]
)
def test_blocks_are_numbers_or_auto(text, blocks):
    assert parse_blocks(text, 20) == blocks


@pytest.mark.parametrize("text", ["", "20", "-1", "1.5", "middle", "transformer_blocks.8"])
def test_other_blocks_are_refused(text):
    with pytest.raises(ValueError, match="but this network has blocks 0 to 19: write auto, or numbers of them"):
        parse_blocks(text, 20)


def test_a_range_that_no_step_falls_in_is_refused():
    with pytest.raises(ValueError, match=r"begins at sigma_start 0.3 and ends at sigma_end 0.7, .* the larger one"):
        guided(bench.model("sana"), sigma_start=0.3, sigma_end=0.7)


def test_a_network_whose_attention_is_not_patched_is_refused_by_name():
    with pytest.raises(
        ValueError, match="SANA PAG changes the attention of SANA and PixArt, but this model is a Lumina"
    ):
        guided(bench.lumina())


def test_the_noise_level_of_other_models_is_their_timestep():
    class Discrete:
        def timestep(self, sigma):
            return sigma * 100

    guidance = PerturbedAttention(2.0, end=0.5)
    assert guidance.level_of(Discrete(), torch.tensor([6.0])) == pytest.approx(0.6)
    assert guidance.scale_at(0.6) == 2.0 and guidance.scale_at(0.4) == 0.0


# CFG-Zero*


def velocities() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(2, 32, 4, 4, generator=generator) for _ in range(2))


def test_the_unconditional_velocity_is_rescaled_for_each_image():
    cond, uncond = velocities()
    for row in range(2):
        c, u = cond[row], uncond[row]
        factor = (c * u).sum() / (u * u).sum()
        expected = factor * u + 4.5 * (c - factor * u)
        assert torch.allclose(cfg_zero_star(cond, uncond, 4.5)[row], expected, atol=1e-5)


def test_equal_velocities_and_a_scale_of_one_change_nothing():
    cond, uncond = velocities()
    assert torch.allclose(cfg_zero_star(cond, cond, 4.5), cond, atol=1e-5)
    assert torch.allclose(cfg_zero_star(cond, uncond, 1.0), cond, atol=1e-6)


def test_a_step_lacks_none_of_what_the_stock_node_leaves_out():
    """The stock node measures a on the velocity but applies it to x0: (1 - a)(1 - g) x is missing."""
    generator = torch.Generator().manual_seed(4)
    x, sigma, g = torch.randn(1, 32, 4, 4, generator=generator), 0.7, 4.5
    c, u = (torch.randn(1, 32, 4, 4, generator=generator) + x for _ in range(2))
    args = {"input": x, "cond_scale": g, "sigma": torch.tensor([sigma]), "model_options": {}}
    args |= {"cond_denoised": x - sigma * c, "uncond_denoised": x - sigma * u, "cond": sigma * c, "uncond": sigma * u}
    ours = x - ZeroStarGuidance(0)(args)
    patched = bench.call(CFGZeroStar, bench.model("sana"))[0]
    (stock,) = patched.model_options["sampler_post_cfg_function"]
    theirs = stock(args | {"denoised": args["uncond_denoised"] + g * (args["cond_denoised"] - args["uncond_denoised"])})
    a = (c * u).sum() / (u * u).sum()
    assert torch.allclose(ours - theirs, (1 - a) * (1 - g) * x, atol=1e-4) and (ours - theirs).abs().max() > 0.1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_first_steps_do_not_move(count):
    trace = []
    model = bench.call(bench.OURS["CFGZeroStar"], bench.model("sana"), count)[0]

    def keep(args):
        trace.append(bool(torch.equal(args["denoised"], args["input"])))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(keep)
    out = bench.draw(model, bench.encoded(), steps=4)
    assert trace == [step < count for step in range(4)] and torch.isfinite(out).all()


def test_the_last_step_always_moves():
    with_start, without = (bench.call(bench.OURS["CFGZeroStar"], bench.model("sana"), count)[0] for count in (2, 0))
    one_step = [bench.draw(model, bench.encoded(), steps=1) for model in (with_start, without)]
    assert torch.equal(*one_step)


def test_at_cfg_one_the_prompt_alone_counts():
    model = bench.call(bench.OURS["CFGZeroStar"], bench.model("sana"), 0)[0]
    assert (
        bench.relative(
            bench.draw(model, bench.encoded(), cfg=1.0), bench.draw(bench.model("sana"), bench.encoded(), cfg=1.0)
        )
        < 1e-5
    )


def test_models_that_it_cannot_guide_are_refused():
    with pytest.raises(ValueError, match="no effect on SANA-Sprint, .* runs at cfg 1: bypass SANA CFG-Zero Star"):
        bench.call(bench.OURS["CFGZeroStar"], bench.model("sprint"), 1)
