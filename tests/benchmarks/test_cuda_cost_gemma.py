"""What a text costs on a CUDA device, counted on fake tensors at Gemma-2-2b's size: kernels, bytes, and no waits."""

import pytest
import torch
from sana_native.benchmarks import fake_cuda, networks
from sana_native.models.gemma.bfloat16 import Bfloat16Gemma2
from sana_native.models.gemma.model import Gemma2
from sana_native.models.gemma.prefix_cache import compact

PROMPT, PREFIX = networks.PROMPT_TOKENS, networks.INSTRUCTION_POSITIONS


@pytest.fixture(scope="module")
def encoder():
    return networks.build("text", "ours", torch.bfloat16, "meta", runs_on="cuda")


@pytest.fixture
def counted(encoder):
    """A function that counts a text of so many tokens after the cached instruction, or after nothing."""
    with fake_cuda.device():
        fake_cuda.move(encoder)
        _, prefix = encoder.continue_from([], tokens(PREFIX), "cuda")
        prefix = [tuple(map(compact, pair)) for pair in prefix]
        yield lambda length, known: fake_cuda.count(
            lambda: encoder.continue_from(prefix if known else [], tokens(length), "cuda")
        )


def tokens(length: int) -> list[int]:
    return list(range(2, length + 2))


def test_the_network_is_the_one_of_a_gpu(encoder):
    assert type(encoder.gemma2_2b.transformer) is Bfloat16Gemma2


@pytest.mark.parametrize(
    ("length", "known", "kernels", "gigabytes", "peak_mib"),
    [
        pytest.param(PROMPT, True, 805, 4.6, 40, id="prompt"),
        pytest.param(1, False, 753, 4.1, 2, id="empty negative"),
        pytest.param(PREFIX, False, 753, 6.7, 94, id="instruction"),
        pytest.param(networks.POSITIONS - 1, True, 805, 8.7, 106, id="longest prompt"),
    ],
)
def test_cost_of_a_text(counted, length, known, kernels, gigabytes, peak_mib):
    """The weights alone are 4.06 GB. Counting raises where the host would wait for a value."""
    cost = counted(length, known)
    assert cost.kernels <= kernels and cost.gigabytes <= gigabytes and cost.peak_mib <= peak_mib
    assert sum(cost.uploads) <= 2 * 8 * length, "more than the tokens and their mask"


def test_a_quarter_of_the_bytes_and_two_thirds_of_the_kernels_of_float32(encoder, counted):
    """Of the host's layers, as they compute a text where the device is slow at bfloat16."""
    ours, network = counted(PROMPT, False), encoder.gemma2_2b.transformer
    embeds = torch.empty(1, PROMPT, networks.GEMMA["hidden_size"], device="cuda")
    theirs = fake_cuda.count(lambda: Gemma2.continue_from(network, [], embeds))
    assert ours.gigabytes < theirs.gigabytes / 4 and ours.kernels < theirs.kernels * 0.67
