"""PSNR and SSIM equal torchmetrics'; the map shows where two pictures differ; latents have a relative distance."""

import math

import pytest
import torch
from sana_native.evaluation.pictures import difference_map, difference_of, latent_distance, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A picture (48, 40, 3) in float64 and the same with noise."""
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(48, 40, 3, generator=generator, dtype=torch.float64)
    return a, (a + 0.1 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def batched(picture: torch.Tensor) -> torch.Tensor:
    return picture.movedim(-1, 0)[None]


def test_psnr_is_torchmetrics(pair):
    from torchmetrics.functional.image import peak_signal_noise_ratio

    expected = peak_signal_noise_ratio(*map(batched, pair), data_range=1.0)
    assert psnr(*pair) == pytest.approx(expected.item(), rel=1e-6)


def test_ssim_is_torchmetrics(pair):
    from torchmetrics.functional.image import structural_similarity_index_measure

    expected = structural_similarity_index_measure(*map(batched, pair), data_range=1.0)
    assert ssim(*pair) == pytest.approx(expected.item(), rel=1e-6)


def test_equal_pictures_say_so(pair):
    found = difference_of(pair[0], pair[0].clone())
    assert (found.psnr, found.ssim, found.largest) == (math.inf, pytest.approx(1.0), 0.0)
    assert str(found) == "equal, bit for bit"


def test_a_difference_is_told_in_its_units(pair):
    assert str(difference_of(*pair)).startswith("PSNR 20.") and "SSIM 0." in str(difference_of(*pair))


def test_the_map_is_black_where_pictures_are_equal_and_bright_where_not():
    a = torch.full((16, 16, 3), 0.5)
    b = a.clone()
    b[4, 5, 1] = 1.0  # one channel of one pixel
    b[9, 9] += 0.05
    found = difference_map(a, b)
    assert found.shape == (16, 16, 3) and found[4, 5].tolist() == pytest.approx([1.0, 1.0, 0.85])
    assert 0 < found[9, 9].sum() < found[4, 5].sum()
    assert int((found.sum(dim=-1) > 0).sum()) == 2


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(
        ValueError, match="Pictures of 40 x 48 px in 3 channels and of 48 x 40 px in 3 channels have no"
    ):
        difference_of(torch.zeros(48, 40, 3), torch.zeros(40, 48, 3))


def test_pictures_with_and_without_alpha_and_values_that_are_not_finite_are_refused():
    picture = torch.zeros(16, 16, 3)
    with pytest.raises(ValueError, match="Pictures of 3 and of 4 channels have no difference; give both or neither"):
        difference_of(picture, torch.zeros(16, 16, 4))
    with pytest.raises(ValueError, match="A picture has values that are not finite, so there is no difference"):
        difference_of(picture, picture * math.nan)


def test_pictures_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="SSIM needs sides of more than 5 px, and this picture is 20 x 5 px"):
        ssim(torch.zeros(5, 20, 3), torch.zeros(5, 20, 3))


def test_the_distance_of_latents_is_relative_to_the_reference():
    reference = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(4))
    assert latent_distance(reference, reference) == 0
    for scale in (1.0, 100.0):
        assert latent_distance(1.25 * scale * reference, scale * reference) == pytest.approx(0.25, rel=1e-6)
    half = reference.bfloat16()
    expected = (half.double() - reference.double()).norm() / reference.double().norm()
    assert latent_distance(half, reference) == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("latent", "reference", "message"),
    [
        (torch.ones(4, 8, 8), torch.ones(32, 8, 8), r"shapes \(4, 8, 8\) and \(32, 8, 8\) have no distance"),
        (torch.ones(4, 8, 8), torch.zeros(4, 8, 8), "zero everywhere"),
    ],
)
def test_latents_without_a_distance_are_refused(latent, reference, message):
    with pytest.raises(ValueError, match=message):
        latent_distance(latent, reference)
