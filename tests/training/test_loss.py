"""The loss, its noise levels and captions left out, against the expressions of the reference."""

import pytest
import torch
from sana_native.training.captions import Caption, batch_captions, drop_captions, dropped
from sana_native.training.loss import flow_loss, sample_sigma
from sana_native.training.seeds import generator_of


def reference_loss(predict, x0, states, mask, sigma, noise) -> torch.Tensor:
    """diffusers' train_dreambooth_lora_sana.py with weighting_scheme none, word for word but for names."""
    sigmas = sigma.reshape(-1, 1, 1, 1)
    noisy_model_input = (1.0 - sigmas) * x0 + sigmas * noise
    model_pred = predict(noisy_model_input, sigma, states, mask)
    target = noise - x0
    weighting = torch.ones_like(sigmas)
    return torch.mean((weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(target.shape[0], -1), 1)


def test_the_loss_is_the_diffusers_scripts_per_sample():
    generator = torch.Generator().manual_seed(9)
    x0, noise, weight = (torch.randn(3, 32, 3, 5, generator=generator) for _ in range(3))
    inputs = (x0, torch.randn(3, 6, 8, generator=generator), torch.ones(3, 6), torch.tensor([0.1, 0.5, 0.9]), noise)

    def predict(x, sigma, states, mask):  # noqa: ARG001 - as a network takes them
        return x * weight + sigma.view(-1, 1, 1, 1) + states.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    torch.testing.assert_close(flow_loss(predict, *inputs), reference_loss(predict, *inputs), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mode", "below", "above"), [("logit-normal", 0.135, 0.136), ("uniform", 0.249, 0.249)])
def test_noise_levels_are_distributed_as_in_sanas_recipe(mode, below, above):
    # Of the flow times: below 1 / 4 is below sigma 1 / 2 at shift 3, above 3 / 4 is above sigma 0.9.
    sigma = sample_sigma(torch.Generator().manual_seed(0), 200_000, mode, 3.0)
    assert float((sigma < 0.5).float().mean()) == pytest.approx(below, abs=0.004)
    assert float((sigma > 0.9).float().mean()) == pytest.approx(above, abs=0.004)
    index = sigma.double() / (3 - 2 * sigma.double()) * 1000
    assert (index - index.round()).abs().max() < 1e-3 and sigma.min() > 0 and sigma.max() < 1


def test_an_unknown_time_sampling_is_refused():
    with pytest.raises(ValueError, match="time sampling mode is unknown: choose one of logit-normal, uniform"):
        sample_sigma(torch.Generator(), 1, "mode", 3.0)


def test_generators_depend_on_seed_and_place_alone():
    def draw(*place):
        return torch.randn(4, generator=generator_of(*place))

    first = draw(7, 1, 2)
    torch.randn(5)
    assert torch.equal(first, draw(7, 1, 2))
    others = [draw(*place) for place in ((8, 1, 2), (7, 2, 1), (7, 1), (7, 1, 3))]
    assert not any(torch.equal(first, other) for other in others)


CAPTION = Caption(torch.ones(5, 3), torch.tensor([1, 1, 1, 1, 0]))
NULL = Caption(torch.arange(24.0).reshape(8, 3), torch.tensor([1] + [0] * 7))


@pytest.mark.parametrize(("null_mask", "tokens"), [("bos", 1), ("caption", 4)])
def test_a_left_out_caption_has_the_empty_prompts_rows_and_the_mask_that_was_chosen(null_mask, tokens):
    states, mask = batch_captions([dropped(CAPTION, NULL, null_mask)])
    assert torch.equal(states[0], NULL.states[:tokens]) and int(mask.sum()) == tokens


def test_an_unknown_null_mask_is_refused():
    with pytest.raises(ValueError, match="null mask none is unknown"):
        dropped(CAPTION, NULL, "none")


def test_as_many_captions_are_left_out_as_asked():
    kept = drop_captions([CAPTION] * 2000, NULL, 0.1, "bos", torch.Generator().manual_seed(1))
    assert 150 < sum(one is NULL for one in kept) < 250
    assert all(one is CAPTION for one in drop_captions([CAPTION] * 50, NULL, 0.0, "bos", torch.Generator()))


def test_captions_of_two_lengths_make_a_batch_whose_padding_is_masked():
    longer = Caption(torch.ones(7, 3), torch.ones(7))
    states, mask = batch_captions([CAPTION, longer])
    assert states.shape == (2, 7, 3) and mask.sum(dim=1).tolist() == [4, 7] and not states[0, 5:].any()
