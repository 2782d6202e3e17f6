"""Patches of other nodes: what SANA's network does not call is named, and what asks SANA-Sprint for a second pass."""

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_rope import ScaleROPE
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tomesd import TomePatchModel
from sana_native.models.sana.patch_checks import ATTENTION_PATCHES, check_patches, owner_of
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import workbench as bench


@pytest.fixture
def watched():
    """SANA and SANA-Sprint as the loader node gives them."""
    models = {family: bench.model(family).clone() for family in bench.FAMILIES}
    for model in models.values():
        warn_about_runs(model)
    return models


def about_patches(caplog) -> list[str]:
    heads = ("SANA: Bypass", "SANA: Choose among")
    return [message for message in caplog.messages if message.startswith(heads)]


UNUSED = {
    "downscale": (
        PatchModelAddDownscale,
        (3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"),
        [
            "SANA: Bypass PatchModelAddDownscale: its input_block_patch_after_skip has no effect on SANA.",
            "SANA: Bypass PatchModelAddDownscale: its output_block_patch has no effect on SANA.",
        ],
    ),
    "rope": (
        ScaleROPE,
        (1.0, 0.0, 1.0, 0.0, 1.0, 0.0),
        ["SANA: Bypass ScaleROPE: it has no effect on SANA, which has no rotary embedding."],
    ),
    # On the guidance pass alone, which is made during the run
    "single blocks": (
        SkipLayerGuidanceDiT,
        ("", "7, 8", 3.0, 0.0, 1.0),
        [
            "SANA: Choose among double_block 0 to 1: SkipLayerGuidanceDiT at single_block 7, 8 has no effect on SANA.",
        ],
    ),
    "blocks that SANA does not have": (
        SkipLayerGuidanceDiT,
        ("2", "", 3.0, 0.0, 1.0),
        ["SANA: Choose among double_block 0 to 1: SkipLayerGuidanceDiT at double_block 2 has no effect on SANA."],
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_a_node_whose_patch_the_network_does_not_call_is_named_once(watched, caplog, case):
    node, inputs, sentences = UNUSED[case]
    plain = bench.draw(watched["sana"], bench.encoded())
    caplog.clear()
    names = ("double_layers", "single_layers", "scale", "start_percent", "end_percent")
    inputs = dict(zip(names, inputs, strict=True)) if node is SkipLayerGuidanceDiT else inputs
    patched = (
        bench.call(node, watched["sana"], **inputs)
        if isinstance(inputs, dict)
        else bench.call(node, watched["sana"], *inputs)
    )
    assert bench.relative(bench.draw(patched[0], bench.encoded()), plain) < 1e-4
    assert about_patches(caplog) == sentences


def test_a_skipped_block_that_sana_has_is_not_commented(watched, caplog):
    options = {"double_layers": "1", "single_layers": "", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}
    (patched,) = bench.call(SkipLayerGuidanceDiT, watched["sana"], **options)
    bench.draw(patched, bench.encoded())
    assert about_patches(caplog) == []


@pytest.mark.parametrize(
    "node, inputs",
    [
        (TomePatchModel, {"ratio": 0.5}),
        (NAGuidance, {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
        (PerturbedAttentionGuidance, {"scale": 3.0}),
    ],
)
def test_patches_on_attention_act_and_are_not_commented(watched, caplog, node, inputs):
    plain, size = bench.draw(watched["sana"], bench.encoded(), bench.empty(256, 256)), bench.empty(256, 256)
    (patched,) = bench.call(node, watched["sana"], **inputs)
    assert bench.relative(bench.draw(patched, bench.encoded(), size), plain) > 1e-3
    assert about_patches(caplog) == []


def test_every_patch_of_the_host_is_either_called_or_named():
    """The names are those of the setters that every node uses."""
    patcher, used = bench.model("sana").clone(), []
    for name in (name for name in dir(patcher) if name.startswith("set_model_") and name.endswith("_patch")):
        other = patcher.clone()
        if name == "set_model_patch":
            continue
        getattr(other, name)(lambda *_: None)
        options = other.model_options["transformer_options"]
        ((key, _),) = options["patches"].items()
        if not check_patches(options, None, 2):
            used.append(key)
    assert sorted(used) == sorted(ATTENTION_PATCHES)


@pytest.mark.parametrize(
    "key, used",
    [
        (("double_block", 1), True),
        (("middle", 0), True),
        (("middle", 0, 0), True),
        (("input", 1), True),
        (("double_block", 2), False),
        (("output", 1), False),
    ],
)
@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_replaced_attention_is_named_where_sana_has_no_such_block(name, key, used):
    options = {"patches_replace": {name: {key: lambda *_: None}}}
    assert bool(check_patches(options, None, 2)) != used


def test_residuals_of_another_models_controlnet_are_named():
    residual = torch.zeros(1)
    assert check_patches({}, {"input": [residual], "middle": [None]}, 2) == []
    assert check_patches({}, {"input": [], "middle": [residual]}, 2) == [
        'Bypass the ControlNet: its "middle" residuals have no effect, made for another model.'
    ]


def test_a_patch_that_is_an_object_is_named_by_its_class():
    class Stylist:
        def __call__(self): ...

    assert owner_of(Stylist().__call__).startswith("test_a_patch") and owner_of(print) == "print"
    assert owner_of(torch.nn.Identity()) == "Identity"


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("side", [128, 256])
def test_self_attention_guidance_is_refused_at_every_size(watched, family, side):
    (patched,) = bench.call(SelfAttentionGuidance, watched[family], 0.5, 2.0)
    with pytest.raises(ValueError, match="reads the softmax map .* bypass that node, or take Perturbed-Attention"):
        bench.draw(patched, bench.encoded(), bench.empty(side, side))


def test_tiles_for_a_softmax_attention_are_refused(watched):
    (patched,) = HyperTile.execute(watched["sana"], 64, 2, 0, False)
    with pytest.raises(ValueError, match="HyperTile cuts the queries .* attention is linear .*: bypass that node"):
        bench.draw(patched, bench.encoded())


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize("node", [FreeU, FreeU_V2])
def test_freeu_is_refused_where_it_is_applied(family, node):
    with pytest.raises(ValueError, match="FreeU scales the skip connections of a UNet, .* bypass that node"):
        node.execute(bench.model(family), 1.1, 1.2, 0.9, 0.2)


def test_other_keys_that_a_transformer_lacks_are_missing_as_in_any_dict():
    config = bench.model("sana").model.model_config.unet_config
    with pytest.raises(KeyError, match="num_res_blocks"):
        config["num_res_blocks"]
    assert config.get("model_channels") is None and "model_channels" not in config


# SANA-Sprint


@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp", "euler_ancestral_cfg_pp"])
def test_the_sampler_that_asks_sprint_for_a_second_pass_is_named(watched, sampler):
    with pytest.raises(ValueError, match=f"pass by the sampler {sampler}, .* choose the sampler sana_scm instead"):
        bench.ksampler(watched["sprint"], bench.encoded(), sampler=sampler, cfg=1.0)


@pytest.mark.parametrize(
    "node, inputs, name, cure",
    [
        (
            NAGuidance,
            lambda _: (5.0, 0.5, 1.5),
            "Normalized Attention Guidance",
            "take SANA NAG instead, which needs no",
        ),
        (PerpNeg, lambda negative: (negative, 1.0), "Perp-Neg", "bypass that node"),
    ],
)
def test_the_patch_that_asks_sprint_for_a_second_pass_is_named(watched, node, inputs, name, cure):
    (patched,) = bench.call(node, watched["sprint"], *inputs(bench.encoded()[1]))
    with pytest.raises(ValueError, match=f"pass by {name}, but its guidance is embedded: {cure}"):
        bench.draw(patched, bench.encoded())


def test_the_guider_that_asks_sprint_for_a_second_pass_is_named(watched):
    model, (positive, negative) = watched["sprint"], bench.encoded()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sana_scm", 2)
    (noise,), sampler = bench.call(custom.RandomNoise, 7), comfy.samplers.sampler_object("sana_scm")
    guiders = {
        "PerpNeg": bench.call(PerpNegGuider, model, positive, negative, negative, 1.0, 1.0),
        "DualCFG": bench.call(custom.DualCFGGuider, model, positive, positive, negative, 1.0, 4.0, "regular"),
    }
    for name, (guider,) in guiders.items():
        with pytest.raises(ValueError, match=f"pass by the {name} guider, .* take BasicGuider or CFGGuider with cfg 1"):
            bench.call(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, bench.empty())


def test_cfg_is_named_where_it_is_cfg(watched):
    with pytest.raises(ValueError, match=r"unconditional pass, but its guidance is embedded: set cfg to 1\.0"):
        bench.draw(watched["sprint"], bench.encoded(), cfg=4.5)


def test_a_run_leaves_nothing_on_the_model(watched):
    model = watched["sprint"]
    before = sorted(model.model_options["transformer_options"].get("wrappers", {}))
    bench.draw(model, bench.encoded())
    assert sorted(model.model_options["transformer_options"].get("wrappers", {})) == before
    assert "sana_native_unconditional_by" not in model.model_options["transformer_options"]
