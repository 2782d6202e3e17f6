"""The linear DiT against diffusers' SanaTransformer2DModel: same weights, same input, float32."""

import comfy.ops
import pytest
import torch
from sana_native.models.sana.convert import to_network_layout
from sana_native.models.sana.cpu import CpuSana
from sana_native.models.sana.cuda import CudaSana
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny

TOLERANCE = 1e-5
VARIANTS = {
    "sana": {},
    "sana-1.5": {"qk_norm": "rms_norm_across_heads"},
    "sprint": {"sprint": True},
    "2K": {"sample_size": 8, "interpolation_scale": 1.0},
    "4K": {"sample_size": 8, "interpolation_scale": 2.0},
}


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).norm() / reference.norm()).item()


def build(reference, network: type[Sana] = Sana) -> Sana:
    config = detect_sana(reference.state_dict(), source_config=dict(reference.config))
    model = network(config, dtype=torch.float32, operations=comfy.ops.manual_cast)
    model.load_state_dict(to_network_layout(reference.state_dict()))
    return model


@pytest.mark.parametrize("grid", [(8, 8), (5, 11), (11, 5), (1, 3)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [Sana, CudaSana])
@torch.inference_mode()
def test_velocity_of_a_batch_with_different_masks_equals_diffusers(network, variant, grid):
    reference = tiny.transformer(**VARIANTS[variant])
    generator = torch.Generator().manual_seed(3)
    # Neither zero mean nor unit variance, so that a norm too many or too few shows.
    x = torch.randn(3, 32, *grid, generator=generator) * 3 + 1
    context = torch.randn(3, 300, tiny.CAPTION_CHANNELS, generator=generator) * 2
    mask = (torch.arange(300) < torch.tensor([[1], [300], [40]])).float()
    is_sprint = reference.config.guidance_embeds
    timesteps = torch.tensor([1.0, 0.7827, 0.2]) if is_sprint else torch.tensor([999.0, 547.0, 3.0])
    guidance = torch.tensor([4.5, 1.0, 7.0]) if is_sprint else None

    expected = reference(
        x, context, timesteps, encoder_attention_mask=mask, guidance=guidance * 0.1 if is_sprint else None
    ).sample
    velocity = build(reference, network)(x, timesteps, context=context, attention_mask=mask, guidance=guidance)

    assert relative_error(velocity, expected) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("network", [Sana, CpuSana, CudaSana])
def test_gradients_of_every_parameter_equal_those_of_diffusers(network, variant):
    reference = tiny.transformer(**VARIANTS[variant]).requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 32, 5, 11, generator=generator)
    context = torch.randn(2, 20, tiny.CAPTION_CHANNELS, generator=generator)
    mask = (torch.arange(20) < torch.tensor([[3], [20]])).float()
    is_sprint = reference.config.guidance_embeds
    timesteps, guidance = torch.tensor([0.8, 0.3]) * (1 if is_sprint else 1000), torch.full((2,), 4.5)
    ours = build(reference, network).requires_grad_(True)

    asked = {"encoder_attention_mask": mask, "guidance": guidance * 0.1 if is_sprint else None}
    reference(x, context, timesteps, **asked).sample.square().mean().backward()
    given = {"context": context, "attention_mask": mask, "guidance": guidance if is_sprint else None}
    ours(x, timesteps, **given).square().mean().backward()

    expected = to_network_layout({name: each.grad for name, each in reference.named_parameters()})
    gradients = {name: each.grad for name, each in ours.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[name].view_as(gradient)).norm()
        # Without qk-norm the true gradient of a key's bias is zero: softmax ignores what all keys share.
        assert error <= 5e-5 * expected[name].norm() + 1e-7, name


@torch.inference_mode()
def test_attention_of_an_all_zero_query_is_the_projection_bias():
    model = build(tiny.transformer())
    layer = model.transformer_blocks[0].attn1
    layer.to_q.weight.zero_()

    out = layer(torch.randn(2, 6, 64), {})

    assert torch.equal(out, layer.to_out[0].bias.expand_as(out))
