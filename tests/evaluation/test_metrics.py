"""The numbers equal pytorch-fid's, clean-fid's and torchmetrics', and are refused where they would mean nothing."""

import math

import numpy as np
import pytest
import torch
from sana_native.evaluation import metrics
from sana_native.evaluation.metrics import Moments, clip_scores, cmmd, fid, frechet_distance, kid, moments

WIDTH = 24


def samples(count: int, seed: int, shift: float = 0.0, width: int = WIDTH) -> np.ndarray:
    """Correlated, and of a scale of its own in each feature."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width))
    return rng.normal(size=(count, width)) @ mix + shift


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    return samples(2100, 1), samples(2200, 2, 0.3)


def test_frechet_distance_is_pytorch_fids_and_clean_fids(sets):
    from cleanfid.fid import frechet_distance as clean
    from pytorch_fid.fid_score import calculate_frechet_distance as pytorch

    a, b = map(moments, sets)
    found = frechet_distance(a, b)
    for reference in (pytorch, clean):
        assert found == pytest.approx(reference(a.mean, a.covariance, b.mean, b.covariance), rel=1e-6)


def test_frechet_distance_is_the_formula_for_covariances_without_full_rank():
    """30 pictures of 40 features: scipy's square root of the product of both, which has eigenvalues of 0."""
    from scipy.linalg import sqrtm

    a, b = moments(samples(30, 1, width=40)), moments(samples(35, 2, 0.2, width=40))
    root = np.real(sqrtm(a.covariance @ b.covariance))
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_fid_is_torchmetrics(sets):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = WIDTH

        def forward(self, images):
            return images.flatten(1)

    reference = FrechetInceptionDistance(feature=Features(), input_img_size=(1, 1, WIDTH)).set_dtype(torch.float64)
    for real, one in zip((False, True), sets, strict=True):
        reference.update(torch.from_numpy(one)[:, None, None], real=real)
    assert fid(*sets).value == pytest.approx(reference.compute().item(), rel=1e-6)


def test_fid_with_a_file_of_moments_is_fid_with_its_pictures(sets):
    found, whole = fid(sets[0], moments(sets[1])), fid(*sets)
    assert found.value == pytest.approx(whole.value, rel=1e-9) and found.reference == 2200
    assert found.high - found.low < whole.high - whole.low  # moments are taken as exact


@pytest.mark.parametrize("counts", [(2047, 2100), (2100, 2047)])
def test_fid_of_too_few_pictures_is_refused(counts):
    with pytest.raises(ValueError, match=r"FID of 2047 .*pictures means nothing: it needs 2,048"):
        fid(samples(counts[0], 1), samples(counts[1], 2))


def test_fid_of_2048_pictures_is_given():
    assert fid(samples(2048, 1, width=4), Moments(np.zeros(4), np.eye(4))).count == 2048


def test_kid_is_clean_fids():
    from cleanfid.fid import kernel_distance

    a, b = samples(300, 1), samples(300, 2, 0.3)
    expected = kernel_distance(a, b, num_subsets=1, max_subset_size=300)
    assert kid(a, b).value == pytest.approx(expected, rel=1e-6)


def test_kid_is_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = samples(250, 1), samples(250, 2, 0.3)
    assert kid(a, b).value == pytest.approx(poly_mmd(*map(torch.from_numpy, (a, b))).item(), rel=1e-6)


def test_cmmd_is_its_formula_pair_by_pair():
    """The authors' expression, written out: mean of the kernel over all pairs, those of a picture with itself too."""
    a, b = samples(40, 1), samples(30, 2, 0.3)
    a_, b_ = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))

    def mean(x, y):
        return np.mean([math.exp(-((p - q) ** 2).sum() / 200) for p in x for q in y])

    expected = 1000 * (mean(a_, a_) + mean(b_, b_) - 2 * mean(a_, b_))
    assert cmmd(a, b).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_values_without_a_picture_are_those_of_the_others(unbiased, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", 7)  # the sums of several parts
    a, b = samples(20, 1), samples(16, 2)

    def kernel(x, y):
        return (x @ y.T / WIDTH + 1) ** 3

    _, (without_a, without_b) = metrics.discrepancy(a, b, kernel, unbiased)
    for i in (0, 9, 15):
        assert without_a[i] == pytest.approx(metrics.discrepancy(np.delete(a, i, 0), b, kernel, unbiased)[0], rel=1e-9)
        assert without_b[i] == pytest.approx(metrics.discrepancy(a, np.delete(b, i, 0), kernel, unbiased)[0], rel=1e-9)


def test_clip_score_is_torchmetrics():
    from torchmetrics.functional.multimodal import clip_score

    texts = samples(50, 1, 0.5)
    images = texts + samples(50, 2)
    assert (clip_scores(images, texts) > 0).all()  # torchmetrics keeps those below 0, and cuts the mean off at 0

    class Embeddings(torch.nn.Module):
        """In place of a CLIP model."""

        config = None

        def get_image_features(self, _):
            return torch.from_numpy(images)

        def get_text_features(self, *_):
            return torch.from_numpy(texts)

    def processor(**_):
        return {name: torch.zeros(50, 1) for name in ("pixel_values", "input_ids", "attention_mask")}

    pictures = [torch.zeros(3, 4, 4)] * 50
    expected = clip_score(pictures, ["a cat"] * 50, lambda: (Embeddings(), processor))
    assert metrics.clip_score(images, texts).value == pytest.approx(expected.item(), rel=1e-6)


def test_an_image_that_contradicts_its_text_counts_as_0():
    assert clip_scores(np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[-1.0, 0.0], [1.0, 0.0]])) == pytest.approx(
        [0, 60]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_scores(np.ones((2, 8)), np.ones((2, 6))), "must be the two halves of one model"),
        (lambda: clip_scores(np.zeros((2, 8)), np.ones((2, 8))), "2 of 2 embeddings are zero"),
        (lambda: cmmd(np.ones((2, 8)), np.ones((2, 6))), "8 and 6 wide; both must come from the same network"),
        (lambda: kid(np.ones((2, 8)), np.ones((9, 8))), "2 pictures have no spread"),
        (lambda: kid(np.full((3, 8), np.nan), np.ones((9, 8))), "3 of 3 embeddings are not finite"),
        (lambda: cmmd(np.ones(8), np.ones(8)), r"shape \(8,\), expected \(pictures, features\)"),
    ],
)
def test_what_has_no_number_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
