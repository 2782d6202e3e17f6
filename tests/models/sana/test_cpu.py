"""What makes a step cheap on a CPU leaves its result: strips, overwriting, absorbed attention, no padding."""

from pathlib import Path

import comfy.ops
import comfy.sd
import pytest
import torch
from sana_native.models.layers import linear_attention, linear_attention_of_tokens
from sana_native.models.lora.depthwise import Branches, DepthwiseLoRA
from sana_native.models.runtime.cpu.absorbed_attention import TextKV
from sana_native.models.runtime.text_conds import LENGTH_STEP, TextCond, without_padding
from sana_native.models.sana.convert import to_network_layout
from sana_native.models.sana.cpu import STRIP_TOKENS, CpuGLUMBConv, CpuSana, linear_attention_in_strips
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench

ROOT = Path(__file__).resolve().parents[3]
VARIANTS = {"sana": {}, "sana-1.5": {"qk_norm": "rms_norm_across_heads"}, "sprint": {"sprint": True}}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).norm() / b.norm()).item()


def build(variant: str, network: type[Sana] = CpuSana) -> Sana:
    reference = tiny.transformer(**VARIANTS[variant])
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    network = network(config, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    network.load_state_dict(to_network_layout(reference.state_dict()))
    return network.requires_grad_(False)


def inputs(channels: int, lengths: list[int], grid=(11, 13), sprint: bool = False) -> dict:
    generator = torch.Generator().manual_seed(4)
    batch = len(lengths)
    return {
        "x": torch.randn(batch, 32, *grid, generator=generator) * 2 + 0.5,
        "timesteps": torch.rand(batch, generator=generator) * (1 if sprint else 1000),
        "context": torch.randn(batch, 300, channels, generator=generator),
        "attention_mask": (torch.arange(300) < torch.tensor(lengths)[:, None]).float(),
        "guidance": torch.full((batch,), 4.5) if sprint else None,
    }


# Linear attention in strips of tokens


@pytest.mark.parametrize("tokens", [1, STRIP_TOKENS - 1, STRIP_TOKENS, 3 * STRIP_TOKENS + 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_strips_give_the_attention_of_all_tokens_at_once(tokens, dtype):
    q, k, v = (torch.randn(2, tokens, 96).to(dtype) for _ in range(3))
    per_head = (x.transpose(1, 2).unflatten(1, (3, 32)) for x in (q, k, v))
    expected = linear_attention(*per_head).flatten(1, 2).transpose(1, 2)
    for attend in (linear_attention_in_strips, linear_attention_of_tokens):
        out = attend(q, k, v, 32)
        assert out.dtype == dtype
        assert difference(out.float(), expected.to(dtype).float()) < (1e-6 if dtype == torch.float32 else 1e-3)


def test_sums_over_many_tokens_do_not_overflow_float16():
    q, k, v = (torch.full((1, 5000, 32), 40.0, dtype=torch.float16) for _ in range(3))
    assert torch.allclose(linear_attention_of_tokens(q, k, v, 32), v)
    assert torch.allclose(linear_attention_in_strips(q, k, v, 32), v)


def test_a_query_without_positive_values_gives_zero():
    q, k, v = -torch.rand(1, 200, 32), torch.rand(1, 200, 32), torch.rand(1, 200, 32)
    assert not linear_attention_of_tokens(q, k, v, 32).any()
    assert not linear_attention_in_strips(q, k, v, 32).any()


def test_the_gradient_passes_through_the_strips():
    grads = []
    for attend in (
        lambda q, k, v: linear_attention_in_strips(q, k, v, 32),
        lambda q, k, v: linear_attention_of_tokens(q, k, v, 32),
        lambda *qkv: linear_attention(*(x.transpose(1, 2).unflatten(1, (2, 32)) for x in qkv)).flatten(1, 2).mT,
    ):
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(1, 300, 64, generator=generator, requires_grad=True) for _ in range(3)]
        attend(*leaves).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    *ours, plain = grads
    assert all(difference(*pair) < 1e-5 for grad in ours for pair in zip(grad, plain, strict=True))


# Memory used again where no gradient is asked for


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_velocity_is_the_same_with_and_without_gradients(variant):
    network, given = build(variant), inputs(tiny.CAPTION_CHANNELS, [1, 300, 40], sprint=variant == "sprint")
    with torch.inference_mode():
        fast = network(**given)
    assert difference(fast, network(**given)) < 1e-6


def test_the_demos_velocity_is_the_same_with_and_without_gradients():
    options = {"dtype": torch.float32}
    demo = bench.load_sana(str(ROOT / "demo" / "checkpoint"), options).model.diffusion_model.requires_grad_(False)
    given = inputs(demo.config.caption_channels, [1, 30], grid=(8, 8))
    with torch.inference_mode():
        fast = demo(**given)
    assert difference(fast, demo(**given)) < 1e-5


def test_inputs_are_left_as_they_were():
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40])
    before = {name: value.clone() for name, value in given.items() if value is not None}
    with torch.inference_mode():
        network(**given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


def test_a_patch_that_replaces_a_block_finds_its_input_as_it_was():
    """It may run the block twice, or mix its result with what came in."""
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40])
    pairs = []

    def twice(args, extra):
        before = args["img"].clone()
        first = extra["original_block"](args)["img"].clone()
        pairs.append((args["img"], before))
        pairs.append((extra["original_block"](args)["img"], first))
        return {"img": first, "txt": args["txt"]}

    options = {"patches_replace": {"dit": {("double_block", 0): twice}}}
    with torch.inference_mode():
        out = network(**given, transformer_options=options)
        assert len(pairs) == 2 and all(torch.equal(*pair) for pair in pairs)
        assert torch.equal(out, network(**given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_velocity_is_that_of_the_plain_network(variant):
    given = inputs(tiny.CAPTION_CHANNELS, [1, 300, 40], sprint=variant == "sprint")
    with torch.inference_mode():
        assert difference(build(variant)(**given), build(variant, Sana)(**given)) < 1e-6


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "with a LoRA beside the depthwise convolution"])
def test_mix_ffn_is_the_same_with_and_without_gradients(with_lora):
    ffn = tiny.randomize(CpuGLUMBConv(16, 24, operations=comfy.ops.disable_weight_init), seed=3)
    if with_lora:
        ffn.depthwise_lora = Branches([DepthwiseLoRA(0.5, torch.randn(4, 48, 3, 3), torch.randn(48, 4, 1, 1))])
    x = torch.randn(2, 63, 16)
    plain = ffn(x, (7, 9))
    with torch.inference_mode():
        assert difference(ffn(x.clone(), (7, 9)), plain.detach()) < 1e-6


# Projections absorbed into the tokens of a short text


PLAIN = {"optimized_attention_override": lambda function, *args, **kwargs: function(*args, **kwargs)}


@pytest.fixture(params=[True, False], ids=["both layers", "output layer"])
def absorbed(request, monkeypatch):
    """For texts of any length, also those that take longer with it: in both layers, or in the output layer."""
    monkeypatch.setattr(TextKV, "is_cheaper", lambda *_: True)
    monkeypatch.setattr(TextKV, "is_cheaper_for_queries", lambda *_: request.param)


@pytest.fixture
def counted(monkeypatch):
    """How many tokens each absorbed attention had."""
    calls = []
    for name in ("attend", "attend_to_one"):
        attend = getattr(TextKV, name)
        monkeypatch.setattr(TextKV, name, lambda self, *args, run=attend: calls.append(len(self)) or run(self, *args))
    return calls


@pytest.mark.usefixtures("absorbed")
@pytest.mark.parametrize("lengths", [[1], [300], [1, 30], [17, 300]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_absorbed_tokens_give_the_same_velocity(variant, lengths, counted):
    network, given = build(variant), inputs(tiny.CAPTION_CHANNELS, lengths, sprint=variant == "sprint")
    with torch.inference_mode():
        fast = network(**given)
        assert counted == lengths * len(network.transformer_blocks)
        plain = network(**given, transformer_options=PLAIN)
        assert counted == lengths * len(network.transformer_blocks)
    assert difference(fast, plain) < 1e-6


def masked(kind: str) -> tuple[torch.Tensor | None, torch.Tensor]:
    """A mask (2, 300), and one that means the same to the plain attention."""
    mask = inputs(tiny.CAPTION_CHANNELS, [5, 40])["attention_mask"]
    if kind == "none":
        return None, torch.ones_like(mask)
    if kind == "nothing used":  # all positions have the same weight then
        mask[0] = 0
        return mask, torch.cat([torch.ones(1, 300), mask[1:]])
    mask[:, [0, 3]] = 0 if kind == "with holes" else 0.9999
    return mask, mask


@pytest.mark.usefixtures("absorbed")
@pytest.mark.parametrize("kind", ["none", "nothing used", "with holes", "between used and unused"])
def test_absorbed_tokens_are_masked_as_others(kind, counted):
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40])
    mask, plain_mask = masked(kind)
    with torch.inference_mode():
        fast = network(**given | {"attention_mask": mask})
        assert counted
        plain = network(**given | {"attention_mask": plain_mask}, transformer_options=PLAIN)
    assert difference(fast, plain) < 1e-6


@pytest.mark.usefixtures("absorbed")
def test_absorbed_tokens_round_no_more_than_the_plain_attention_in_bfloat16(counted):
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [1, 30])
    narrow = {name: value if value is None else value.bfloat16() for name, value in given.items()}
    for parameter in network.parameters():
        parameter.copy_(parameter.bfloat16())
    with torch.inference_mode():
        exact = network(**{name: value if value is None else value.float() for name, value in narrow.items()})
        network = network.to(torch.bfloat16)
        counted.clear()
        fast, plain = network(**narrow), network(**narrow, transformer_options=PLAIN)
    assert counted
    assert difference(fast.float(), exact) < 1.1 * difference(plain.float(), exact)


def test_the_demo_attends_to_absorbed_tokens(counted):
    """As it is, with its own texts: a prompt and an empty one."""
    demo = bench.load_sana(str(ROOT / "demo" / "checkpoint"), {"dtype": torch.float32}).model.diffusion_model
    given = inputs(demo.config.caption_channels, [1, 12], grid=(8, 8))
    with torch.inference_mode():
        fast = demo(**given)
        assert counted == [1, 12] * len(demo.transformer_blocks)
        assert difference(fast, demo(**given, transformer_options=PLAIN)) < 1e-6


def test_the_longer_the_text_the_more_an_absorbed_token_costs():
    def cheaper(length, method="is_cheaper", dtype=torch.float32):
        k = torch.empty(length, 1152, dtype=dtype)
        return getattr(TextKV(k, k, None, 16), method)(1024)

    assert [cheaper(tokens) for tokens in (1, 30, 59, 60, 300)] == [True, True, True, False, False]
    assert [cheaper(tokens, "is_cheaper_for_queries") for tokens in (59, 60)] == [True, False]
    assert [cheaper(tokens, "is_cheaper_for_queries", torch.bfloat16) for tokens in (30, 40)] == [True, False]


@pytest.mark.usefixtures("absorbed")
@pytest.mark.parametrize("load", ["load_lora_for_models", "load_bypass_lora_for_models"])
def test_a_lora_reaches_absorbed_tokens(load, counted):
    """One that the host adds to the weights, and one that it puts around the layers."""
    model = bench.model("sana")
    network = model.model.diffusion_model
    size, rank = network.config.hidden_size, 4
    generator, lora = torch.Generator().manual_seed(2), {}
    for layer in ("to_q", "to_k", "to_v", "to_out.0"):
        for block in range(len(network.transformer_blocks)):
            key = f"diffusion_model.transformer_blocks.{block}.attn2.{layer}"
            lora[f"{key}.lora_A.weight"] = torch.randn(rank, size, generator=generator) * 0.2
            lora[f"{key}.lora_B.weight"] = torch.randn(size, rank, generator=generator) * 0.2
    patched, _ = getattr(comfy.sd, load)(model, None, lora, 1.0, 1.0)
    drawn = bench.draw(patched, bench.encoded())
    assert bool(counted) == (load == "load_lora_for_models")  # layers with something around them are left alone
    assert difference(drawn, bench.draw(model, bench.encoded())) > 0.01
    plain = patched.clone()
    plain.model_options["transformer_options"] = PLAIN
    assert difference(drawn, bench.draw(plain, bench.encoded())) < 1e-5


# Layers that are not the host's plain ones


@pytest.mark.parametrize("name", ["conv_inverted", "conv_depth", "conv_point"])
def test_what_hangs_around_a_convolution_of_a_mix_ffn_acts(name):
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 40])
    with torch.inference_mode():
        before = network(**given)
        for block in network.transformer_blocks:
            getattr(block.ff, name).register_forward_hook(lambda _, __, out: 1.1 * out)
        after = network(**given)
    assert difference(after, before) > 1e-3
    assert difference(after, network(**given)) < 2e-6  # with gradients, where nothing is changed


# Texts without their padding


def trimmed(given: dict) -> dict:
    """As the host batches the conditionings of single texts."""
    rows = [without_padding(*pair) for pair in zip(given["context"].split(1), given["attention_mask"].split(1))]
    contexts, masks = ([TextCond(row) for row in rows] for rows in zip(*rows))
    return given | {
        "context": contexts[0].concat(contexts[1:]),
        "attention_mask": masks[0].concat(masks[1:]),
    }


@pytest.mark.parametrize("lengths", [[1], [300], [1, 30], [16, 17, 300], [299, 2]], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_texts_without_padding_give_the_same_velocity(variant, lengths):
    network = build(variant)
    given = inputs(tiny.CAPTION_CHANNELS, lengths, sprint=variant == "sprint")
    short = trimmed(given)
    assert short["context"].shape[1] == min(-(-max(lengths) // LENGTH_STEP) * LENGTH_STEP, 300)
    assert short["attention_mask"].shape == short["context"].shape[:2]
    with torch.inference_mode():
        assert difference(network(**short), network(**given)) < 2e-6


def test_the_gradient_of_texts_without_padding_is_the_same():
    grads = []
    for prepare in (trimmed, dict):
        network, given = build("sana").requires_grad_(True), inputs(tiny.CAPTION_CHANNELS, [3, 30])
        network(**prepare(given)).square().mean().backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert difference(*grads) < 1e-5


def test_a_mask_with_holes_keeps_them():
    context, mask = torch.randn(1, 300, 4), torch.zeros(1, 300)
    mask[0, [0, 3, 20]] = 1
    short, its_mask = without_padding(context, mask)
    assert short.shape[1] == its_mask.shape[1] == 2 * LENGTH_STEP
    assert torch.equal(its_mask, mask[:, : 2 * LENGTH_STEP]) and torch.equal(short, context[:, : 2 * LENGTH_STEP])


def test_a_text_that_uses_no_position_stays():
    """All positions have the same weight then, as the reference's finite bias has it."""
    context, mask = torch.randn(2, 300, 4), torch.zeros(2, 300)
    mask[0, :3] = 1
    short, its_mask = without_padding(context, mask)
    assert short is context and its_mask is mask


def test_a_text_without_a_mask_counts_whole():
    context, mask = without_padding(torch.randn(1, 77, 4), None)
    assert context.shape[1] == 77 and mask.shape == (1, 77) and mask.all()


def test_texts_batch_where_only_their_lengths_differ():
    cond = TextCond(torch.ones(1, 16, 8))
    assert cond.can_concat(TextCond(torch.ones(1, 48, 8)))
    assert not cond.can_concat(TextCond(torch.ones(1, 16, 9)))
    assert not cond.can_concat(TextCond(torch.ones(2, 16, 8)))
    assert not cond.can_concat(TextCond(torch.ones(1, 16, 8, device="meta")))
    together = cond.concat([TextCond(torch.ones(1, 48, 8))])
    assert together.shape == (2, 48, 8) and together.sum() == (16 + 48) * 8 and not together[0, 16:].any()


def test_the_network_is_given_no_more_text_than_there_is(monkeypatch):
    model, seen = bench.model("sana"), []
    network = model.model.diffusion_model
    forward = network._forward

    def noted(x, timesteps, context, *args, **kwargs):
        seen.append(tuple(context.shape[:2]))
        return forward(x, timesteps, context, *args, **kwargs)

    monkeypatch.setattr(network, "_forward", noted)
    bench.draw(model, bench.encode("a cat", ""))
    assert set(seen) == {(2, LENGTH_STEP)}


@pytest.mark.usefixtures("absorbed")
@pytest.mark.parametrize(
    "layer",
    ["attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.conv_inverted",
     "ff.conv_depth", "ff.conv_point"],
)  # fmt: skip
def test_a_replaced_layer_with_a_forward_of_its_own_acts(layer):
    """As other packs put their adapters: an object patch of a subclass with the same weights."""
    model, key = bench.model("sana"), f"transformer_blocks.0.{layer}"
    own = model.model.diffusion_model.get_submodule(key)

    class Negated(type(own)):
        def forward(self, x):
            return -super().forward(x)

    replaced = Negated.__new__(Negated)
    replaced.__dict__.update({name: value for name, value in vars(own).items() if name != "forward"})
    patched = model.clone()
    patched.add_object_patch(f"diffusion_model.{key}", replaced)
    negated = bench.draw(patched, bench.encoded())
    handle = own.register_forward_hook(lambda _module, _inputs, out: -out)
    try:
        expected = bench.draw(model, bench.encoded())
    finally:
        handle.remove()
    assert bench.relative(negated, bench.draw(model, bench.encoded())) > 1e-3
    assert bench.relative(negated, expected) < 1e-5


def test_a_text_with_nan_spoils_its_image_alone():
    """A row with NaN equals none, not even itself: it is not looked for forever."""
    network, given = build("sana"), inputs(tiny.CAPTION_CHANNELS, [5, 5, 40])
    given["context"][1, 2] = torch.nan
    with torch.inference_mode():
        out = network(**given)
    assert torch.isfinite(out).flatten(1).all(dim=1).tolist() == [True, False, True]
