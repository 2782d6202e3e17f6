"""Adapters, the optimizer's schedule, the average, and the plot."""

import numpy as np
import pytest
import torch
from sana_native.tests.support import workbench as bench
from sana_native.training.adapters import PRESETS, AdapterSet, find_layers
from sana_native.training.optimizer import Average, learning_rate
from sana_native.training.plot import draw_losses, smoothed


@pytest.mark.parametrize(
    ("preset", "per_block", "outside"),
    [("attention qkv", 6, 0), ("attention", 8, 0), ("attention + mix-ffn", 10, 0), ("all linear", 10, 6)],
)
def test_a_preset_has_the_layers_that_its_name_says(preset, per_block, outside):
    layers = find_layers(bench.model("sana").model.diffusion_model, preset)
    blocks = [name for name in layers if name.startswith("transformer_blocks.")]
    assert len(blocks) == 2 * per_block and len(layers) - len(blocks) == outside


def test_an_unknown_preset_is_refused():
    with pytest.raises(
        ValueError, match=f"The layers none are unknown: choose one of {', '.join(PRESETS)}".replace("+", r"\+")
    ):
        find_layers(torch.nn.Linear(2, 2), "none")


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layers of the kind attention"):
        find_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), "attention")


def test_adapters_begin_without_effect_add_what_their_file_says_and_leave_the_network():
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    before = network(x)
    adapters = AdapterSet(network, "all linear", 2, 6.0, 0)
    with adapters.attached():
        assert torch.equal(network(x), before)
        with torch.no_grad():
            adapters.parameters()["0.up"].fill_(0.5)
        changed = network(x)
    assert torch.equal(network(x), before) and not torch.equal(changed, before)
    tensors = adapters.file_tensors(adapters.parameters())
    merged = network[0].weight + tensors["transformer.0.lora_B.weight"] @ tensors["transformer.0.lora_A.weight"]
    torch.testing.assert_close(changed, network[1](torch.nn.functional.linear(x, merged, network[0].bias)))


def test_the_rate_grows_stays_or_falls_to_zero():
    rates = [learning_rate(step, 1.0, "cosine", 4, 12) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0 and rates[8] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0) and rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert [learning_rate(step, 1.0, "constant", 0, 5) for step in (0, 4)] == [1.0, 1.0]
    with pytest.raises(ValueError, match="The schedule linear is unknown: choose one of constant, cosine"):
        learning_rate(0, 1.0, "linear", 0, 5)


def test_the_average_follows_the_values():
    value = torch.zeros(3)
    average = Average({"a": value}, 0.5)
    for step in range(1, 40):
        value.fill_(1.0)
        average.update({"a": value}, step)
    assert torch.allclose(average.values["a"], torch.ones(3), atol=1e-6)


@pytest.mark.parametrize("losses", [[], [1.0], [0.5, 0.5, 0.5], [float(n) for n in range(100, 0, -1)]])
def test_a_plot_of_any_run_shows_its_lines(losses):
    image = np.asarray(draw_losses(losses, [(0, [1.0, 2.0]), (len(losses), [0.5, 1.0])], ["a", "b"]))
    blue = (image == (0x1F, 0x4E, 0x8C)).all(axis=-1)[:, :800].any()
    green = (image == (0x2A, 0x9D, 0x55)).all(axis=-1)[:, :800].any()
    assert blue == (len(losses) > 0) and green


def test_smoothing_has_no_bias_at_its_start():
    assert smoothed([2.0] * 200) == pytest.approx([2.0] * 200)
