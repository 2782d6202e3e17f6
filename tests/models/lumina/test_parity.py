"""Next-DiT against diffusers' LuminaNextDiT2DModel: same weights, same input, float32."""

import math

import comfy.ops
import pytest
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from sana_native.models.lumina.config import OPTIONS_KEY, LuminaOptions
from sana_native.models.lumina.convert import to_network_layout
from sana_native.models.lumina.detection import detect_lumina
from sana_native.models.lumina.model import Lumina
from sana_native.models.lumina.rotary import both_rotations, rotary_table
from sana_native.tests.support import layouts, tiny

TOLERANCE = 2e-5  # largest difference
SIZES = [(8, 8), (6, 20), (72, 8)]  # of the latent; smaller and longer than the trained square


def build(state_dict) -> Lumina:
    state_dict = to_network_layout(state_dict)
    model = Lumina(detect_lumina(state_dict), dtype=torch.float32, operations=comfy.ops.manual_cast)
    model.load_state_dict(state_dict)
    return model


@pytest.fixture(scope="module")
def reference():
    return tiny.lumina()


@pytest.fixture(scope="module")
def model(reference):
    return build(reference.state_dict())


def inputs(size=(8, 8), batch: int = 2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 4, *size, generator=generator)
    context = torch.randn(batch, 11, tiny.LUMINA_CAPTION_CHANNELS, generator=generator) * 2 + 0.5
    mask = (torch.arange(11) < torch.tensor([[11], [4], [1]])[:batch]).long()
    return x, context, mask


def expected_velocity(reference, x, t, context, mask, watershed=1.0, proportional=True, scale=None):
    """As diffusers' LuminaPipeline calls its transformer and treats what it gives."""
    height, width = x.shape[-2] * 8, x.shape[-1] * 8
    scale = math.sqrt(width * height / 1024**2) if scale is None else scale
    factors = {"linear_factor": scale} if t < watershed else {"ntk_factor": scale}
    rope = get_2d_rotary_pos_embed_lumina(reference.head_dim, 384, 384, **factors)
    options = {"base_sequence_length": 4096} if proportional else {}
    times = torch.full((x.shape[0],), t)
    out = reference(x, times, context, mask, rope, cross_attention_kwargs=options, return_dict=False)[0]
    return -out.chunk(2, dim=1)[0]


def velocity(model, x, t, context, mask, **options):
    chosen = {OPTIONS_KEY: LuminaOptions(**options)} if options else {}
    times = t if isinstance(t, torch.Tensor) else torch.full((x.shape[0],), t)
    return model(x, 1 - times, context=context, attention_mask=mask, transformer_options=chosen)


@pytest.mark.parametrize("proportional", [True, False], ids=["proportional", "plain"])
@pytest.mark.parametrize("watershed", [0.3, 1.0])
@pytest.mark.parametrize("t", [0.1, 0.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_velocity_equals_diffusers(reference, model, size, t, watershed, proportional):
    x, context, mask = inputs(size)
    expected = expected_velocity(reference, x, t, context, mask, watershed, proportional)
    out = velocity(model, x, t, context, mask, watershed=watershed, proportional_attention=proportional)
    assert expected.std() > 0.3
    assert (out - expected).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_without_options_it_does_what_diffusers_does(reference, model):
    x, context, mask = inputs((6, 20))
    out = velocity(model, x, 0.5, context, mask)
    assert (out - expected_velocity(reference, x, 0.5, context, mask)).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_both_layouts_give_the_same_bits(reference, model):
    other = build(layouts.original_lumina(reference.state_dict()))
    assert torch.equal(
        velocity(model, 0.5 + inputs()[0], 0.3, *inputs()[1:]), velocity(other, 0.5 + inputs()[0], 0.3, *inputs()[1:])
    )


@torch.inference_mode()
def test_padding_and_its_absence_are_the_same(model):
    x, context, _ = inputs(batch=1)
    padded = torch.cat([context, torch.full_like(context, 7.0)], dim=1)
    mask = (torch.arange(padded.shape[1]) < context.shape[1])[None].long()
    assert (velocity(model, x, 0.5, padded, mask) - velocity(model, x, 0.5, context, None)).abs().max() <= 5e-6


@torch.inference_mode()
def test_each_row_of_a_batch_is_on_its_own_side_of_the_watershed(reference, model):
    x, context, mask = inputs((6, 20))
    out = velocity(model, x, torch.tensor([0.1, 0.5]), context, mask, watershed=0.3)
    for row, t in enumerate((0.1, 0.5)):
        expected = expected_velocity(reference, x, t, context, mask, 0.3)[row]
        assert (out[row] - expected).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_at_the_watershed_itself_the_base_is_raised(reference, model):
    x, context, mask = inputs((6, 20))
    sigma = torch.full((2,), 0.7)
    out = model(x, sigma, context, mask, {OPTIONS_KEY: LuminaOptions(watershed=0.3)})
    assert (out - expected_velocity(reference, x, 0.3, context, mask, 0.3)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("scaling, factor", [("above 1024 px", 1.0), ("off", 1.0)])
@torch.inference_mode()
def test_small_images_are_not_scaled_unless_always(reference, model, scaling, factor):
    x, context, mask = inputs((6, 20))
    out = velocity(model, x, 0.5, context, mask, size_scaling=scaling)
    assert (out - expected_velocity(reference, x, 0.5, context, mask, scale=factor)).abs().max() <= TOLERANCE
    assert (out - expected_velocity(reference, x, 0.5, context, mask)).abs().max() > 1e-2


@torch.inference_mode()
def test_large_images_are_scaled_above_1024_px_and_not_when_off(reference, model):
    x, context, mask = inputs((160, 112), batch=1)  # 1280 x 896 px
    for scaling, scale in (("above 1024 px", None), ("off", 1.0)):
        out = velocity(model, x, 0.5, context, mask, size_scaling=scaling)
        assert (out - expected_velocity(reference, x, 0.5, context, mask, scale=scale)).abs().max() <= TOLERANCE


@torch.inference_mode()
def test_odd_sides_are_padded_and_cut(model):
    x, context, mask = inputs((7, 9))
    out = velocity(model, x, 0.5, context, mask)
    assert out.shape == x.shape and torch.isfinite(out).all()


@torch.inference_mode()
def test_a_text_of_zeros_and_a_mask_of_zeros_stay_finite(model):
    x, context, mask = inputs()
    assert torch.isfinite(velocity(model, x, 0.5, context * 0, mask * 0)).all()


@torch.inference_mode()
def test_without_gates_the_text_acts_through_its_mean_alone(reference):
    model = build(reference.state_dict())
    for layer in model.layers:
        layer.attention.gate.weight.zero_()
    x, context, _ = inputs()
    shuffled = context.mean(dim=1, keepdim=True).expand_as(context)
    assert (velocity(model, x, 0.5, context, None) - velocity(model, x, 0.5, shuffled, None)).abs().max() <= 5e-6


def angles(t: float, scale: float, watershed: float, token: int, grid=(8, 8)):
    both = both_rotations(grid, 72, scale, torch.device("cpu"))
    matrices = rotary_table(torch.tensor([t]), both, watershed)[0, 0, token]
    return torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])


@pytest.mark.parametrize("t, expected", [(0.1, [0, 0.5, 0, 0.299742]), (0.5, [0, 1.0, 0, 0.576838])])
def test_golden_angles_of_the_second_token_in_the_first_row(t, expected):
    assert angles(t, 2.0, 0.3, token=1)[:4].tolist() == pytest.approx(expected, abs=1e-6)


def test_pairs_alternate_between_row_and_column():
    below, right = angles(1.0, 1.0, 0.5, token=8), angles(1.0, 1.0, 0.5, token=1)
    assert not right[0::2].any() and not below[1::2].any()
    assert torch.equal(below[0::2], right[1::2]) and right[3] / right[1] == pytest.approx(10000 ** (-1 / 18))
