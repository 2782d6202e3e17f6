"""The host's attention patches, control residuals and block replacements act in SANA's network, and leave no trace."""

from collections import Counter

import comfy.controlnet
import comfy.ops
import pytest
import torch
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from sana_native.models.runtime.attention_patches import find_replacement
from sana_native.models.sana.convert import to_network_layout
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from torch.utils._python_dispatch import TorchDispatchMode

NETWORKS = [Sana, CpuSana, CudaSana]


def build(network: type[Sana], **options) -> Sana:
    reference = tiny.transformer(**options)
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    built = network(config, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    built.load_state_dict(to_network_layout(reference.state_dict()))
    return built.requires_grad_(False)


def seed_9(batch: int = 2) -> dict:
    """The inputs of the golden values: a negative text of one token, and a prompt of four."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(1, 32, 3, 5, generator=generator)
    context = torch.randn(2, 6, 64, generator=generator)
    mask = torch.tensor([[1.0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    return {"x": x.expand(batch, -1, -1, -1), "timesteps": torch.full((batch,), 700.0), "context": context,
            "attention_mask": mask}  # fmt: skip


def first_of(velocity: torch.Tensor, row: int) -> torch.Tensor:
    return velocity[row].flatten()[:3]


def replaced(name: str, key: tuple, function) -> dict:
    return {"patches_replace": {name: {key: function}}}


def perturbed(q, k, v, extra_options, mask=None):  # noqa: ARG001 - the host's contract, as below
    return v


# Values of the reference's formula, to_out(to_v(x)) in the chosen block


@pytest.mark.parametrize("network", NETWORKS)
def test_perturbed_attention_gives_the_golden_values(network):
    sana, given = build(network, num_layers=3), seed_9()
    with torch.inference_mode():
        plain = sana(**given)
        changed = sana(**given, transformer_options=replaced("attn1", ("middle", 1), perturbed))
    assert torch.allclose(first_of(plain, 0), torch.tensor([0.011538, 0.110308, 0.211119]), atol=1e-5)
    assert torch.allclose(first_of(plain, 1), torch.tensor([-2.120964, -2.010565, -2.044276]), atol=1e-5)
    assert torch.allclose(first_of(changed, 1), torch.tensor([-2.287008, -2.063351, -2.178551]), atol=1e-5)
    guided = plain[0] + 4.5 * (plain[1] - plain[0]) + 2 * (plain[1] - changed[1])
    assert torch.allclose(guided.flatten()[:4], torch.tensor([-9.252633, -9.328046, -9.669613, -8.692149]), atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_qk_norm_stays_in_the_clean_rows(network):
    sana, given = build(network, num_layers=3, qk_norm="rms_norm_across_heads"), seed_9()
    with torch.inference_mode():
        plain = sana(**given)
        changed = sana(**given, transformer_options=replaced("attn1", ("double_block", 1), perturbed))
    guided = plain[0] + 4.5 * (plain[1] - plain[0]) + 2 * (plain[1] - changed[1])
    assert torch.allclose(guided.flatten()[:4], torch.tensor([-1.736175, -4.902419, -1.654582, -2.130357]), atol=1e-4)


@pytest.mark.parametrize("kind", ["double_block", "middle", "input"])
def test_a_block_is_named_by_each_of_the_hosts_kinds(kind):
    assert find_replacement({(kind, 3): "f"}, 3, 14) == find_replacement({(kind, 3, 0): "f"}, 3, 14) == "f"
    assert find_replacement({(kind, 3): "f"}, 4, 14) is None and find_replacement({("output", 3): "f"}, 3, 14) is None


def test_the_middle_means_the_block_that_guidance_perturbs():
    assert (
        find_replacement({("middle", 0): "f"}, 8, 8) == "f" and find_replacement({("middle", 0, 0): "f"}, 8, 8) == "f"
    )
    assert find_replacement({("middle", 0): "f"}, 0, 8) is None


@pytest.mark.parametrize(
    ("depth", "qk_norm", "block"), [(20, False, 8), (28, False, 14), (20, True, 14), (60, True, 14), (6, True, 3)]
)
def test_the_middle_block_of_each_release(depth, qk_norm, block):
    options = {"num_layers": depth, "qk_norm": "rms_norm_across_heads" if qk_norm else None}
    reference = tiny.transformer(**options)
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    assert Sana(config, device="meta", operations=torch.nn).middle_block == block


# What a patch is given, and what becomes of what it returns


@pytest.mark.parametrize("network", NETWORKS)
def test_every_patch_of_the_host_is_called_in_every_block_with_its_index(network):
    sana, given, calls = build(network), seed_9(), []

    def before(q, k, v, options):
        calls.append(("before", options["block_index"], options["n_heads"], options["dim_head"], tuple(k.shape)))
        return q, k, v

    def after(out, options):
        calls.append(("after", options["block"], options["original_shape"], tuple(out.shape)))
        return out

    patches = {"attn1_patch": [before], "attn1_output_patch": [after], "attn2_patch": [before],
               "attn2_output_patch": [after]}  # fmt: skip
    with torch.inference_mode():
        plain, patched = sana(**given), sana(**given, transformer_options={"patches": patches})
    expected = []
    for i in range(2):
        shape = [2, 32, 3, 5]
        expected += [("before", i, 2, 32, (2, 15, 64)), ("after", ("double_block", i), shape, (2, 15, 64))]
        expected += [("before", i, 4, 16, (2, 6, 64)), ("after", ("double_block", i), shape, (2, 15, 64))]
    assert calls == expected
    assert torch.allclose(plain, patched, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_what_a_patch_returns_is_used(network, name):
    sana, given = build(network), seed_9()

    def nothing(q, k, v, options):  # noqa: ARG001
        return torch.zeros_like(q)

    def double(out, options):  # noqa: ARG001
        return 2 * out

    def quiet(q, k, v, options):  # noqa: ARG001
        return q, k, torch.zeros_like(v)

    with torch.inference_mode():
        plain = sana(**given)
        outs = [
            sana(**given, transformer_options=options)
            for options in (
                replaced(name, ("double_block", 1), nothing),
                {"patches": {f"{name}_output_patch": [double]}},
                {"patches": {f"{name}_patch": [quiet]}},
            )
        ]
    assert all((out - plain).abs().max() > 1e-2 for out in outs)


def test_a_patch_for_another_kind_of_model_is_refused_by_name():
    class FluxPatch:
        def apply(self, q, k, v, options):  # noqa: ARG002
            return {}

    with pytest.raises(ValueError, match="attention patch of FluxPatch|attention patch of test_a_patch"):
        build(Sana)(**seed_9(), transformer_options={"patches": {"attn1_patch": [FluxPatch().apply]}})


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_is_bit_equal_before_and_after_a_patched_run(network):
    sana, given = build(network), seed_9()
    with torch.inference_mode():
        before = sana(**given)
        sana(**given, transformer_options=replaced("attn1", ("middle", 0), perturbed))
        assert torch.equal(before, sana(**given))


# The host's own nodes


def keep_every_token(model):
    return bench.call(TomePatchModel, model, 0.0)[0]


@pytest.mark.parametrize(
    "node",
    [
        lambda model: bench.call(PerturbedAttentionGuidance, model, 2.0)[0],
        lambda model: bench.call(NAGuidance, model, 5.0, 0.5, 2.5)[0],
        lambda model: bench.call(TomePatchModel, model, 0.5)[0],
    ],
    ids=["PAG", "NAG", "ToMe"],
)
def test_a_stock_node_that_patches_attention_changes_the_picture_and_no_other(node):
    model, conds = bench.model("sana"), bench.encoded()
    latent = bench.empty(256, 256)
    before = bench.draw(model, conds, latent)
    changed = bench.draw(node(model), conds, latent)
    assert torch.isfinite(changed).all() and bench.relative(changed, before) > 1e-2
    assert torch.equal(bench.draw(model, conds, latent), before)


def test_merging_no_tokens_changes_nothing():
    model, conds = bench.model("sana"), bench.encoded()
    assert bench.relative(bench.draw(keep_every_token(model), conds), bench.draw(model, conds)) < 1e-5


# Control


def residuals(count: int, tokens: int = 15) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(2, tokens, 64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("network", NETWORKS)
def test_control_residuals_give_what_diffusers_gives(network):
    """diffusers adds residual j to what block j + 1 gives, which is the input of block j + 2."""
    reference, given, added = tiny.transformer(num_layers=4), seed_9(), residuals(2)
    sana = build(network, num_layers=4)
    with torch.inference_mode():
        expected = reference(
            given["x"],
            given["context"],
            given["timesteps"],
            encoder_attention_mask=given["attention_mask"],
            controlnet_block_samples=tuple(added),
        ).sample
        out = sana(**given, control={"input": [None, None, *added]})
        plain = sana(**given)
    assert ((out - expected).norm() / expected.norm()).item() < 1e-5
    assert (out - plain).abs().max() > 1e-2


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("control", [None, {}, {"input": []}, {"input": [None, None]}], ids=str)
def test_control_without_residuals_is_bit_equal_to_none(network, control):
    sana, given = build(network), seed_9()
    with torch.inference_mode():
        assert torch.equal(sana(**given, control=control), sana(**given))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_residual_behind_the_last_block_enters_the_final_layer(network):
    sana, given, (added,) = build(network), seed_9(), residuals(1)
    with torch.inference_mode():
        changed = sana(**given, control={"input": [None, None, added]})
        assert (changed - sana(**given)).abs().max() > 1e-2


class Operations(TorchDispatchMode):
    """Names of torch's operations in the order in which they run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ARG002 - torch's contract
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def operations(sana: Sana, given: dict, **options) -> list[str]:
    with torch.inference_mode(), Operations() as seen:
        sana(**given, **options)
    return seen.names


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_not_used_adds_no_operation_and_a_residual_adds_one(network):
    """Plain steps cost what they did before there were hooks; what they cost at all is pinned for a CUDA device."""
    sana, given = build(network, num_layers=4), seed_9()
    plain = operations(sana, given)
    unused = {"patches": {}, "patches_replace": {"attn1": {}, "attn2": {}}, "cond_or_uncond": [1, 0]}
    elsewhere = {"patches_replace": {"attn1": {("double_block", 9): perturbed}}}
    for options in ({"control": {"input": []}}, {"transformer_options": unused}, {"transformer_options": elsewhere}):
        assert operations(sana, given, **options) == plain
    controlled = operations(sana, given, control={"input": [None, *residuals(2)]})
    extra = Counter(controlled) - Counter(plain)
    assert {name: count for name, count in extra.items() if "aten.to." not in name} == {"aten.add.Tensor": 2}


class Residuals(comfy.controlnet.ControlBase):
    """A control of the host's whose network gives the same residual every time."""

    def get_control(self, x, t, cond, batched_number, transformer_options):  # noqa: ARG002 - the host's signature
        return {"input": [None, torch.full((x.shape[0], x.shape[2] * x.shape[3], 64), 0.5 * self.strength)]}


def test_the_hosts_control_reaches_the_network():
    """Through the sampler, as a ControlNet's residuals come: on the conditioning."""
    model, (positive, negative) = bench.model("sana"), bench.encoded()
    control = Residuals()
    conditioned = bench.changed(positive, control=control, control_apply_to_uncond=False)
    plain = bench.draw(model, (positive, negative))
    assert bench.relative(bench.draw(model, (conditioned, negative)), plain) > 1e-2
    control.strength = 0.0
    assert bench.relative(bench.draw(model, (conditioned, negative)), plain) < 1e-5
