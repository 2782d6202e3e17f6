"""A step of PixArt or Lumina-Next never waits for a GPU, and sends nothing there after the first."""

import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.benchmarks import fake_cuda
from sana_native.models.lumina.config import LuminaConfig
from sana_native.models.lumina.model import Lumina
from sana_native.models.lumina.supported_models import LuminaSupported
from sana_native.models.pixart.config import ALPHA, SIGMA, PixArtConfig
from sana_native.models.pixart.supported_models import PixArtSupported
from sana_native.models.runtime.precision import Precision
from sana_native.models.runtime.table_cache import TableCache

WIDTH = 64
PRECISION = Precision(torch.bfloat16, torch.bfloat16, False, "as it was trained")


def pixart(family: str, micro: bool) -> PixArtSupported:
    return PixArtSupported(PixArtConfig(family, 144, 2, WIDTH, 4, True, micro, False, (1, 1), 64), PRECISION)


MODELS = {
    "PixArt-Sigma": lambda: pixart(SIGMA, False),
    "PixArt-alpha 1024-MS": lambda: pixart(ALPHA, True),
    "Lumina-Next": lambda: LuminaSupported(LuminaConfig(144, 2, 2, 1, WIDTH, 64, 32, 4), PRECISION),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(16, 24), (15, 21)], ids=["even", "odd"])
def test_a_step_as_the_host_calls_it_waits_for_nothing_and_the_second_sends_nothing(name, size, monkeypatch):
    for family in ("pixart", "lumina"):
        monkeypatch.setattr(f"sana_native.models.{family}.model.optimized_attention", attention_pytorch)
    model = MODELS[name]().get_model({}, device=torch.device("meta"))
    with fake_cuda.device():
        fake_cuda.move(model)
        text, mask = torch.empty(2, 16, WIDTH, device="cuda"), torch.ones(2, 16, dtype=torch.long, device="cuda")
        given = {"c_crossattn": text, "attention_mask": mask}
        if "MS" in name:
            given["image_size"] = torch.empty(2, 2, dtype=torch.long, device="cuda")
        x, sigma = torch.empty(2, 4, *size, device="cuda"), torch.empty(2, device="cuda")
        first, second = (
            fake_cuda.count(lambda: model.apply_model(x, sigma, **given, transformer_options={})) for _ in range(2)
        )
    assert len(first.uploads) == (1 if name == "Lumina-Next" else 2)  # rotations, or one row of each axis
    assert second.uploads == [] and second.kernels > 60


# The cache of tables


def test_a_table_is_made_once_per_key_and_serves_a_training_after_inference():
    cache, made = TableCache(2), []

    def make(value: float) -> torch.Tensor:
        made.append(value)
        return torch.full((2,), value)

    with torch.inference_mode():
        first = cache.get("a", lambda: make(1.0))
    assert cache.get("a", lambda: make(2.0)) is first and made == [1.0]
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()
    assert torch.equal(weight.grad, first)


def test_no_more_tables_are_stored_than_allowed():
    cache = TableCache(2)
    for key in range(5):
        cache.get(key, lambda key=key: torch.tensor(key))
        assert len(cache) <= 2
    assert int(cache.get(4, lambda: torch.tensor(9))) == 4


def test_a_compiler_meets_no_cache(monkeypatch):
    cache = TableCache(2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cache.get("a", lambda: torch.ones(1))
    assert len(cache) == 0


def test_luminas_rotations_follow_size_scale_and_device():
    network = Lumina(LuminaConfig(144, 1, 2, 1, WIDTH, 64, 32, 4), device="meta", operations=torch.nn)
    cpu = torch.device("cpu")
    one = network.rotations((4, 6), 1.0, cpu)
    assert network.rotations((4, 6), 1.0, cpu) is one and one.shape == (2, 24, 36, 2, 2)
    assert not torch.equal(network.rotations((4, 6), 2.0, cpu), one)
    assert network.rotations((6, 4), 1.0, cpu).shape == one.shape
