"""A fingerprint matches while a model's weights are the same and unchanged, and reading it never raises."""

import gc

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from sana_native.models.runtime.weight_fingerprint import WeightFingerprint, read_version, track_versions, with_version
from torch import nn


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).requires_grad_(False)


def fingerprint(model: nn.Module, patches: object = None) -> WeightFingerprint | None:
    return WeightFingerprint.of(model.parameters(), patches)


def test_it_matches_while_nothing_changes():
    model = network()
    first = fingerprint(model, "patches")
    with torch.inference_mode():
        model(torch.randn(2, 4))
    assert first.matches(fingerprint(model, "patches")) and not first.matches(fingerprint(model, "others"))


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.bias"])
@pytest.mark.parametrize("inference", [True, False])
def test_an_edit_of_one_value_is_noticed(name, inference):
    model = network()
    first = fingerprint(model)
    with torch.inference_mode(inference):
        model.get_parameter(name).view(-1)[-1] += 1
    assert not first.matches(fingerprint(model))


def test_other_memory_behind_the_same_parameter_is_noticed():
    """Values set through `.data` bump no counter, but another tensor put there lies elsewhere, whatever its address."""
    model = network()
    for _ in range(4):
        first = fingerprint(model)
        model[0].weight.data = model[0].weight.detach().double().float()
        gc.collect()
        assert not first.matches(fingerprint(model))


def test_a_replaced_parameter_is_noticed():
    model = network()
    first = fingerprint(model)
    model[0].weight = nn.Parameter(model[0].weight.clone(), requires_grad=False)
    assert not first.matches(fingerprint(model))


def test_weights_in_training_have_none():
    model = network()
    model[1].bias.requires_grad_(True)
    assert fingerprint(model) is None


def counterless(moved: bool) -> nn.Module:
    """Weights as a loader makes them in inference mode, and as they are once moved outside it."""
    with torch.inference_mode():
        model = network()
    return model.to(torch.float64) if moved else model


@pytest.mark.parametrize("moved", [True, False])
def test_weights_without_a_counter_have_none_and_get_counters(moved):
    model = counterless(moved)
    assert {read_version(parameter) for parameter in model.parameters()} == {None} and fingerprint(model) is None
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    track_versions(model)
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    first = fingerprint(model)
    track_versions(model)
    assert first.matches(fingerprint(model))
    with torch.inference_mode():
        model[1].weight.mul_(2)
    assert not first.matches(fingerprint(model))


def test_weights_that_layers_share_stay_shared():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
        model[1].weight = model[0].weight
    track_versions(model)
    assert model[1].weight is model[0].weight and read_version(model[0].weight) is not None


def test_a_view_keeps_its_place_in_memory():
    with torch.inference_mode():
        view = torch.arange(12.0).view(3, 4)[1:, 1:3].t()
    tracked = with_version(view)
    assert torch.equal(tracked, view) and tracked.data_ptr() == view.data_ptr() and tracked.stride() == view.stride()
    assert read_version(view) is None and read_version(tracked) is not None


@pytest.mark.parametrize("inference", [True, False])
def test_a_quantized_weight_is_known_by_the_tensors_it_is_made_of(inference):
    model = network()
    with torch.inference_mode(inference):
        quantized = QuantizedTensor.from_float(torch.randn(4, 4), "TensorCoreFP8Layout", scale="recalculate")
        model[0].weight = nn.Parameter(quantized, requires_grad=False)
    track_versions(model)
    first = fingerprint(model)
    if inference:
        assert first is None
        return
    assert first.matches(fingerprint(model))
    model[0].weight._qdata.view(torch.uint8).zero_()
    assert not first.matches(fingerprint(model))
