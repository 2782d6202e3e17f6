"""How a step is shared: every picture once, and sums that are those of one process."""

from dataclasses import replace

import pytest
import torch
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS
from sana_native.training.network import training_mode
from sana_native.training.processes import ALONE, Processes, this_process
from sana_native.training.seeds import generator_of
from sana_native.training.trainer import Trainer


@pytest.mark.parametrize("sizes", [[4], [3], [1], [2, 2, 1], [2, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_picture_of_a_step_is_in_exactly_one_share(sizes, count):
    taken = [
        (share.part, place)
        for rank in range(count)
        for share in Processes(rank, count).shares(sizes)
        for place in share.places
    ]
    assert sorted(taken) == [(part, place) for part, size in enumerate(sizes) for place in range(size)]


def test_whole_batches_are_shared_where_they_divide():
    shares = [Processes(rank, 2).shares([2, 2]) for rank in range(2)]
    assert [[(one.part, one.places) for one in share] for share in shares] == [[(0, (0, 1))], [(1, (0, 1))]]


def test_one_process_alone_asks_nobody():
    value = torch.ones(2)
    ALONE.add_up([value])
    assert torch.equal(value, torch.ones(2)) and this_process() == ALONE and ALONE.writes
    assert ALONE.any(True, value.device) and not ALONE.any(False, value.device)


def test_losses_of_the_shares_are_those_of_the_batch_and_so_are_their_gradients(encoded, files):
    with torch.inference_mode(), training_mode():
        settings = replace(SETTINGS, batch_size=3, caption_dropout=0.5)
        trainer = Trainer(bench.model("sana"), encoded, settings, files)
        values = list(trainer.parameters.values())
        with torch.no_grad():
            for value in values:
                value.add_(torch.randn(value.shape, generator=generator_of(1)) * 0.1)

        def part(places):
            losses = trainer.losses.of_batch([trainer.samples[i] for i in (0, 1, 3)], generator_of(9), places)
            return losses.detach(), torch.autograd.grad(losses.sum(), values)

        with trainer.trained.attached():
            (whole, gradient), (a, first), (b, second) = part(None), part((0, 2)), part((1,))
    torch.testing.assert_close(whole[[0, 2, 1]], torch.cat([a, b]), rtol=1e-5, atol=0)
    for total, one, two in zip(gradient, first, second, strict=True):
        torch.testing.assert_close(total, one + two, rtol=1e-4, atol=1e-6 * float(total.abs().max()))


def test_more_processes_than_pictures_of_a_step_are_refused(encoded, files):
    settings = replace(SETTINGS, batch_size=1, accumulation=3)
    with pytest.raises(ValueError, match="batch_size 1 and accumulation 3 cannot be shared among 2 processes: set one"):
        Trainer(bench.model("sana"), encoded, settings, files, processes=Processes(0, 2))
