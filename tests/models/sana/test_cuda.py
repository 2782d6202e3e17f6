"""What makes a step cheap on a CUDA device leaves its result: shared kernels, rows of all blocks, a fused adaLN."""

from types import SimpleNamespace

import comfy.ops
import comfy.quant_ops
import pytest
import torch
from sana_native.models.layers import linear_attention
from sana_native.models.sana import cuda
from sana_native.models.sana.convert import to_network_layout
from sana_native.models.sana.cuda import CudaSana, Prepared, has_fused_adaln, linear_attention_in_casts
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny

VARIANTS = {"sana": {}, "sana-1.5": {"qk_norm": "rms_norm_across_heads"}, "sprint": {"sprint": True}}
OPERATIONS = {"at hand": comfy.ops.disable_weight_init, "brought by the host": comfy.ops.manual_cast}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def build(variant: str, network: type[Sana] = CudaSana, operations=comfy.ops.disable_weight_init) -> Sana:
    reference = tiny.transformer(**VARIANTS[variant])
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    built = network(config, dtype=torch.float32, operations=operations)
    built.load_state_dict(to_network_layout(reference.state_dict()))
    for table in (module for module in built.modules() if type(module).__name__ == "ScaleShiftTable"):
        table.comfy_cast_weights = operations is comfy.ops.manual_cast  # as the host sets it for weights it brings
    return built.requires_grad_(False)


def inputs(sprint: bool = False) -> dict:
    generator = torch.Generator().manual_seed(4)
    return {
        "x": torch.randn(2, 32, 7, 9, generator=generator) * 2 + 0.5,
        "timesteps": torch.rand(2, generator=generator) * (1 if sprint else 1000),
        "context": torch.randn(2, 48, tiny.CAPTION_CHANNELS, generator=generator),
        "attention_mask": (torch.arange(48) < torch.tensor([[1], [48]])).float(),
        "guidance": torch.full((2,), 4.5) if sprint else None,
    }


# Linear attention


@pytest.mark.parametrize("tokens", [1, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_casts_inside_the_kernels_give_the_same_attention(tokens, dtype):
    q, k, v = (torch.randn(2, tokens, 96).to(dtype) for _ in range(3))
    per_head = (x.transpose(1, 2).unflatten(1, (3, 32)) for x in (q, k, v))
    expected = linear_attention(*per_head).flatten(1, 2).transpose(1, 2)
    with torch.inference_mode():
        out = linear_attention_in_casts(q, k, v, 32)
    assert out.dtype == dtype and out.is_contiguous()
    assert difference(out.float(), expected.to(dtype).float()) < (1e-6 if dtype == torch.float32 else 1e-3)


@torch.inference_mode()
def test_sums_over_many_tokens_do_not_overflow_float16_and_a_query_without_positive_values_gives_zero():
    q, k, v = (torch.full((1, 5000, 32), 40.0, dtype=torch.float16) for _ in range(3))
    assert torch.allclose(linear_attention_in_casts(q, k, v, 32), v)
    assert not linear_attention_in_casts(-q, k, v, 32).any()


# The network


@pytest.mark.parametrize("operations", OPERATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_velocity_is_that_of_the_plain_network(variant, operations):
    given = inputs(variant == "sprint")
    with torch.inference_mode():
        fast = build(variant, operations=OPERATIONS[operations])(**given)
        assert difference(fast, build(variant, Sana)(**given)) < 1e-6


def test_inputs_are_left_as_they_were():
    network, given = build("sana"), inputs()
    before = {name: value.clone() for name, value in given.items() if value is not None}
    with torch.inference_mode():
        network(**given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_the_gradient_is_that_of_the_plain_network():
    grads = []
    for network in (build("sana-1.5"), build("sana-1.5", Sana)):
        given = inputs()
        x = given.pop("x").requires_grad_()
        network.requires_grad_()(x, **given).square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in network.parameters())])
    assert all(difference(ours, plain) < 1e-5 for ours, plain in zip(*grads, strict=True))


def test_rows_are_added_for_all_blocks_at_once_where_the_weights_are_at_hand():
    modulation = torch.randn(2, 6, 64)
    with torch.inference_mode():
        rows = build("sana").block_modulations(modulation)
        assert all(isinstance(row, Prepared) and row.shared is modulation for row in rows)
        brought = build("sana", operations=comfy.ops.manual_cast).block_modulations(modulation)
    assert all(row is modulation for row in brought)
    assert all(row is modulation for row in build("sana").block_modulations(modulation))  # a gradient may be wanted


def test_a_block_that_a_patch_replaces_gets_the_modulation_that_all_share():
    network, given, found = build("sana"), inputs(), []

    def without_it(args, extra):
        found.append(args["vec"].shape)
        return extra["original_block"](args | {"vec": torch.zeros_like(args["vec"])})

    options = {"patches_replace": {"dit": {("double_block", 1): without_it}}}
    with torch.inference_mode():
        out = network(**given, transformer_options=options)
        expected = build("sana", Sana)(**given, transformer_options=options)
        assert difference(out, expected) < 1e-6 and difference(out, network(**given)) > 0.01
    assert found == [(2, 6, 64)] * 2


def test_a_block_that_is_compiled_alone_adds_its_own_rows():
    network, given = build("sana"), inputs()
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = network(**given)
        network.transformer_blocks[1].compile(backend="eager")
        assert difference(network(**given), expected) < 1e-6


# The host's fused adaLN


@pytest.mark.parametrize("operations", OPERATIONS)
def test_the_hosts_adaln_takes_the_place_of_the_modulation_except_for_gradients(monkeypatch, operations):
    calls, adaln = [], comfy.quant_ops.ck.adaln
    monkeypatch.setattr(comfy.quant_ops.ck, "adaln", lambda *args: calls.append(args) or adaln(*args))
    monkeypatch.setattr(cuda, "has_fused_adaln", lambda: True)
    network, given = build("sana", operations=OPERATIONS[operations]), inputs()
    expected = network(**given)
    assert not calls
    with torch.inference_mode():
        assert difference(network(**given), expected) < 1e-6
    assert len(calls) == 2 * len(network.transformer_blocks)
    # Rows that the kernel would have to copy first cost a kernel each.
    assert all(row.flatten(0, 1).is_contiguous() for _, scale, shift, _ in calls for row in (scale, shift))


def backend(**changed) -> dict:
    return {"available": True, "disabled": False, "unavailable_reason": None, "capabilities": ["adaln"]} | changed


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ({"eager": backend()}, False),
        ({"eager": backend(), "cuda": backend()}, True),
        ({"eager": backend(), "triton": backend()}, True),
        ({"eager": backend(), "cuda": backend(available=False)}, False),
        ({"eager": backend(), "cuda": backend(disabled=True)}, False),
        ({"eager": backend(), "cuda": backend(capabilities=["apply_rope"])}, False),
    ],
    ids=["torch's operations", "CUDA", "Triton", "not built", "switched off", "an older package"],
)
def test_adaln_is_fused_where_a_backend_has_a_kernel_for_it(monkeypatch, backends, expected):
    package = SimpleNamespace(adaln=None, list_backends=lambda: backends)
    monkeypatch.setattr(comfy.quant_ops, "ck", package)
    assert has_fused_adaln() == expected


def test_adaln_is_not_fused_on_a_host_without_the_package(monkeypatch):
    monkeypatch.delattr(comfy.quant_ops, "ck")
    assert not has_fused_adaln()
    monkeypatch.setattr(comfy.quant_ops, "ck", SimpleNamespace(), raising=False)
    assert not has_fused_adaln()
