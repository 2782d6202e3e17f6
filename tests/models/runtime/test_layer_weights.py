"""Which layers are their weights and nothing else, and what their weights are as the layer would use them."""

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


def test_a_layer_of_the_host_is_plain():
    assert is_plain_layer(layer())
    assert is_plain_layer(comfy.ops.disable_weight_init.Conv2d(4, 4, 3))


def with_a_hook(made):
    made.register_forward_hook(lambda *_: None)


def with_a_hook_before(made):
    made.register_forward_pre_hook(lambda *_: None)


def wrapped(made):
    forward = made.forward
    made.forward = lambda x: 2 * forward(x)


def quantized(made):
    kind = QUANT_ALGOS["float8_e4m3fn"]["comfy_tensor_layout"]
    made.weight = torch.nn.Parameter(QuantizedTensor.from_float(made.weight, kind, scale="recalculate"), False)


def subclassed(made):
    class Doubled(type(made)):
        def forward(self, x):
            return 2 * super().forward(x)

    made.__class__ = Doubled


@pytest.mark.parametrize("change", [with_a_hook, with_a_hook_before, wrapped, quantized, subclassed])
def test_a_layer_that_is_more_than_its_weights_is_not_plain(change):
    made = layer()
    change(made)
    assert not is_plain_layer(made)


def test_a_layer_of_another_library_is_not_plain():
    assert not is_plain_layer(torch.nn.Linear(4, 4))


def test_cast_weights_are_what_the_layer_multiplies_with():
    """In the format of its input, with the host's changes of weights that it does not merge."""
    made, x = layer(), torch.randn(3, 64).bfloat16()
    made.weight_function, made.bias_function = [lambda weight: weight + 1], [lambda bias: bias - 2]
    with cast_weights(made, x) as (weight, bias):
        assert weight.dtype == bias.dtype == torch.bfloat16
        assert torch.equal(torch.nn.functional.linear(x, weight, bias), made(x))


def test_weights_that_need_no_change_are_used_where_they_lie():
    made = comfy.ops.disable_weight_init.Linear(64, 64, device="cpu").requires_grad_(False)
    with cast_weights(made, torch.randn(3, 64)) as (weight, bias):
        assert weight is made.weight and bias is made.bias


def test_a_bias_of_another_format_is_cast_beside_a_weight_that_is_not():
    made = layer()
    made.comfy_cast_weights = False
    made.weight.data = made.weight.bfloat16()
    with cast_weights(made, torch.randn(3, 64).bfloat16()) as (weight, bias):
        assert weight.dtype == bias.dtype == torch.bfloat16
