"""Which layers lend their weights, and what they lend."""

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from sana_native.models.runtime.layer_weights import cast_weights, is_plain_layer


def layer() -> torch.nn.Linear:
    made = comfy.ops.manual_cast.Linear(64, 64, dtype=torch.float32, device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def test_a_layer_of_the_hosts_lends():
    assert is_plain_layer(layer())
    assert is_plain_layer(comfy.ops.disable_weight_init.Conv2d(4, 4, 3))


def with_a_hook(made):
    made.register_forward_hook(lambda *_: None)


def with_a_hook_before(made):
    made.register_forward_pre_hook(lambda *_: None)


def wrapped(made):
    forward = made.forward
    made.forward = lambda x: 2 * forward(x)


def quantised(made):
    kind = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    made.weight = torch.nn.Parameter(QuantizedTensor.from_float(made.weight, kind, scale="recalculate"), False)


@pytest.mark.parametrize("change", [with_a_hook, with_a_hook_before, wrapped, quantised])
def test_a_layer_that_is_more_than_its_weights_lends_nothing(change):
    made = layer()
    change(made)
    assert not is_plain_layer(made)


def test_a_layer_of_another_library_lends_nothing():
    assert not is_plain_layer(torch.nn.Linear(4, 4))


def test_what_is_lent_is_what_the_layer_multiplies_with():
    """In the format of its input, with the host's changes of weights that it does not merge."""
    made, x = layer(), torch.randn(3, 64).bfloat16()
    made.weight_function, made.bias_function = [lambda weight: weight + 1], [lambda bias: bias - 2]
    with cast_weights(made, x) as (weight, bias):
        assert weight.dtype == bias.dtype == torch.bfloat16
        assert torch.equal(torch.nn.functional.linear(x, weight, bias), made(x))


def test_weights_that_need_no_change_are_lent_as_they_lie():
    made = comfy.ops.disable_weight_init.Linear(64, 64, device="cpu").requires_grad_(False)
    with cast_weights(made, torch.randn(3, 64)) as (weight, bias):
        assert weight is made.weight and bias is made.bias


def test_a_bias_of_another_format_is_cast_beside_a_weight_that_is_not():
    made = layer()
    made.comfy_cast_weights = False
    made.weight.data = made.weight.bfloat16()
    with cast_weights(made, torch.randn(3, 64).bfloat16()) as (weight, bias):
        assert weight.dtype == bias.dtype == torch.bfloat16
