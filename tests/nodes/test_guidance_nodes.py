"""Every guidance and cache node of the host, run on SANA and SANA-Sprint: it acts as the table in the docs says, or a
sentence on the node says why not."""

import importlib
import re
from pathlib import Path

import comfy.samplers
import comfy_extras.nodes_post_processing  # noqa: F401 - before nodes_latent, which it imports and is imported by
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import workbench as bench

TABLE = Path(__file__).resolve().parents[2] / "docs" / "sampling.md"
ACTS, IDLE, REFUSED = "acts", "no effect", "refused"
NEGATIVE = object()  # stands for a negative conditioning
RANGE = {"start_percent": 0.0, "end_percent": 1.0}
ATTENTION = {"q": 1.0, "k": 1.0, "v": 1.2, "out": 1.0}
LAYERS = {"double_layers": "1", "single_layers": "", **RANGE}
FREE_U = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
CACHE = {"reuse_threshold": 3.0, "verbose": False, **RANGE}
TEMPORAL = dict.fromkeys(("self_structural", "self_temporal", "cross_structural", "cross_temporal"), 1.2)
DOWNSCALE = {"block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35,
             "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"}  # fmt: skip
# Node -> (module of the host, or ours; its inputs)
NODES = {
    "SanaNativePAG": (None, {"scale": 2.0}),
    "SanaNativeNAG": (None, {"negative": NEGATIVE}),
    "SanaNativeCFGZeroStar": (None, {"zero_init_steps": 1}),
    "PerturbedAttentionGuidance": ("pag", {"scale": 3.0}),
    "NAGuidance": ("nag", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    "SkipLayerGuidanceDiT": ("slg", {"scale": 3.0, **LAYERS}),
    "SkipLayerGuidanceSD3": ("sd3", {"layers": "1", "scale": 3.0, **RANGE}),
    "SkipLayerGuidanceDiTSimple": ("slg", LAYERS),
    "CFGZeroStar": ("cfg", {}),
    "CFGNorm": ("cfg", {"strength": 1.0}),
    "TCFG": ("tcfg", {}),
    "Mahiro": ("mahiro", {}),
    "RescaleCFG": ("model_advanced", {"multiplier": 0.7}),
    "RenormCFG": ("lumina2", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}),
    "VideoLinearCFGGuidance": ("video_model", {"min_cfg": 1.0}),
    "VideoTriangleCFGGuidance": ("video_model", {"min_cfg": 1.0}),
    "CFGOverride": ("custom_sampler", {"cfg": 1.0, "start_percent": 0.0, "end_percent": 0.5}),
    "APG": ("apg", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}),
    "FreSca": ("fresca", {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 2}),
    "PerpNeg": ("perpneg", {"empty_conditioning": NEGATIVE, "neg_scale": 1.0}),
    "EpsilonScaling": ("eps", {"scaling_factor": 1.05}),
    "TemporalScoreRescaling": ("eps", {"tsr_k": 0.95, "tsr_sigma": 1.0}),
    "LatentApplyOperationCFG": ("latent", {"operation": lambda latent, **_: latent * 1.1}),
    "DifferentialDiffusion": ("differential_diffusion", {}),
    "EasyCache": ("easycache", CACHE),
    "LazyCache": ("easycache", CACHE),
    "TomePatchModel": ("tomesd", {"ratio": 0.5}),
    "UNetSelfAttentionMultiply": ("attention_multiply", ATTENTION),
    "UNetCrossAttentionMultiply": ("attention_multiply", ATTENTION),
    "UNetTemporalAttentionMultiply": ("attention_multiply", TEMPORAL),
    "FreeU": ("freelunch", FREE_U),
    "FreeU_V2": ("freelunch", FREE_U),
    "HyperTile": ("hypertile", {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    "SelfAttentionGuidance": ("sag", {"scale": 0.5, "blur_sigma": 2.0}),
    "FluxKVCache": ("flux", {}),
    "PatchModelAddDownscale": ("model_downscale", DOWNSCALE),
    "ScaleROPE": ("rope", {"scale_x": 1.5, "shift_x": 0.0, "scale_y": 1.5, "shift_y": 0.0, "scale_t": 1.0,
                           "shift_t": 0.0}),
}  # fmt: skip
CLASSES = {"EasyCache": "EasyCacheNode", "LazyCache": "LazyCacheNode"}
IN_OTHER_TESTS = {"PerpNegGuider", "DualCFGGuider", "*_cfg_pp"}


def rows() -> dict[str, tuple[str, str]]:
    """Node -> what the table says of SANA and of SANA-Sprint."""
    section = TABLE.read_text(encoding="utf-8").partition("## Guidance, caches and patches of other nodes")[2]
    section = section.partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found |= dict.fromkeys(re.findall(r"`([\w*]+)`", cells[0]), tuple(cells[1:3]))
    return found


def watched(family: str):
    """The model as the loader node gives it."""
    model = bench.model(family).clone()
    warn_about_runs(model)
    return model


def patched(node: str, model, **changes):
    module, inputs = NODES[node]
    inputs = {name: bench.encode("a dark street")[0] if value is NEGATIVE else value for name, value in inputs.items()}
    if module is None:
        kind = bench.OURS[node.removeprefix("SanaNative")]
    else:
        kind = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), CLASSES.get(node, node))
    if node == "HyperTile":  # returns a plain tuple
        return kind.execute(model, **inputs)[0]
    return bench.call(kind, model, **inputs | changes)[0]


def sampled(model, node: str, batch_size: int, cfg: float | None = None) -> torch.Tensor:
    conds, steps = bench.encoded("a cat", "a dark street"), 4
    if node == "DifferentialDiffusion":
        latent = bench.clean_latent(256, 256) | {"noise_mask": torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)}
        return bench.draw(model, conds, latent, steps=steps, denoise=0.8)
    return bench.draw(model, conds, bench.empty(256, 256, batch_size=batch_size), steps=steps, cfg=cfg)


def advice(caplog) -> list[str]:
    """What is said of the node, not of the size of the test's images."""
    return [message for message in caplog.messages if re.match("SANA: (Bypass|Choose among|Set (freq|reuse))", message)]


def test_the_table_has_every_node_that_is_tested_and_no_other():
    assert rows().keys() == NODES.keys() | IN_OTHER_TESTS


def test_every_node_of_the_hosts_rooms_for_guidance_is_in_the_table():
    found = set()
    for module in sorted({module for module, _ in NODES.values() if module}):
        for name, kind in vars(importlib.import_module(f"comfy_extras.nodes_{module}")).items():
            if isinstance(kind, type) and hasattr(kind, "define_schema") and name != "ComfyExtension":
                try:
                    schema = kind.define_schema()
                except (NotImplementedError, TypeError):
                    continue
                if schema and schema.category in ("advanced/guidance", "model/patch/unet", "model/sampling/guiders"):
                    found.add(name)
    assert len(found) > 12
    assert found - rows().keys() == {"BasicGuider", "CFGGuider", "DualModelGuider"}  # they guide as SANA is sampled


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("node", NODES)
def test_a_node_acts_or_says_why_not(node, family, caplog):
    said, batch_size = rows()[node][bench.FAMILIES.index(family)], 2 if "Video" in node else 1
    plain = sampled(watched(family), node, batch_size)
    caplog.clear()
    if said.startswith(REFUSED):
        with pytest.raises(ValueError, match="bypass (that node|the node|SANA)|take SANA NAG instead"):
            sampled(patched(node, watched(family)), node, batch_size)
        return
    out = sampled(patched(node, watched(family)), node, batch_size)
    assert torch.isfinite(out).all()
    if said.startswith(IDLE):
        assert bench.relative(out, plain) < 1e-4 and advice(caplog)[0].startswith("SANA: Bypass")
    else:
        assert said.startswith(ACTS) and bench.relative(out, plain) > 1e-3
        assert bool(advice(caplog)) == ("sentence" in said)


@pytest.mark.parametrize("node", ["Mahiro", "RescaleCFG", "SkipLayerGuidanceDiTSimple", "FreSca"])
def test_what_changes_cfg_alone_is_named_at_cfg_1_and_not_above(node, caplog):
    model = patched(node, watched("sana"))
    sampled(model, node, 1, cfg=1.0)
    assert advice(caplog) == [f"SANA: Bypass {node}: it changes what cfg does, and this run has cfg 1."]
    caplog.clear()
    sampled(model, node, 1, cfg=4.5)
    assert advice(caplog) == []


@pytest.mark.parametrize("cutoff", [4, 20])
def test_frequencies_that_a_latent_does_not_have_are_named(cutoff, caplog):
    plain = sampled(watched("sana"), "FreSca", 1)
    caplog.clear()
    out = sampled(patched("FreSca", watched("sana"), freq_cutoff=cutoff), "FreSca", 1)
    assert bench.relative(out, plain) < 1e-4
    assert advice(caplog) == [
        f"SANA: Set freq_cutoff of FreSca to 1: {cutoff} takes every frequency of this latent for low."
    ]


@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_a_cache_that_skips_too_much_is_named(threshold, caplog):
    sampled(patched("EasyCache", watched("sana"), reuse_threshold=threshold), "EasyCache", 1)
    assert bool(advice(caplog)) == (threshold > 0.05)
    caplog.clear()
    sampled(patched("LazyCache", watched("sana"), reuse_threshold=threshold), "LazyCache", 1)
    assert advice(caplog) == []


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_the_last_step_is_never_skipped(node, monkeypatch):
    """Of a cache with the host's own range, however high its threshold."""
    model, timesteps = bench.model("sana"), []
    network = model.model.diffusion_model
    forward = network._forward

    def recorded(x, t, *args, **kwargs):
        timesteps.append(float(t.max()))
        return forward(x, t, *args, **kwargs)

    monkeypatch.setattr(network, "_forward", recorded)
    bench.draw(model, bench.encoded(), steps=20)
    last = timesteps[-1]
    timesteps.clear()
    cached = patched(node, model, start_percent=0.15, end_percent=0.95)
    bench.draw(cached, bench.encoded(), steps=20)
    assert timesteps[-1] == last and len(set(timesteps)) < 20


@pytest.mark.parametrize("node", ["RenormCFG", "TemporalScoreRescaling"])
def test_nodes_for_one_image_refuse_a_batch(node):
    with pytest.raises(ValueError, match=f"{node} computes with one image at a time: set batch_size to 1"):
        sampled(patched(node, watched("sana")), node, 2)


def test_an_override_of_cfg_is_named_where_sprint_is_asked_for_a_second_pass():
    with pytest.raises(ValueError, match="unconditional pass by CFGOverride, but its guidance is embedded: bypass"):
        sampled(patched("CFGOverride", watched("sprint"), cfg=4.5), "CFGOverride", 1)


@pytest.mark.parametrize("node", ["Mahiro", "CFGOverride"])
def test_guiders_of_their_own_are_not_taken_for_cfg_1(node, caplog):
    model = patched(node, watched("sana"))
    positive, negative = bench.encoded("a cat", "a dark street")
    (guider,) = bench.call(custom.DualCFGGuider, model, positive, positive, negative, 3.0, 4.0, "regular")
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sana_flow", 2)
    sampler, (noise,) = comfy.samplers.sampler_object("sana_flow_dpm"), bench.call(custom.RandomNoise, 7)
    bench.call(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, bench.empty())
    assert advice(caplog) == []
