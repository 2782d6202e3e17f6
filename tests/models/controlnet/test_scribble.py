"""Scribbles as NVIDIA's tools make them, against scipy's filters."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from sana_native.models.controlnet.scribble import EDGE_MAP, SKETCH, scribble
from sana_native.tests.support import workbench as bench


def soft_edges(height: int = 96, width: int = 120) -> torch.Tensor:
    """An ellipse and a bar as an edge detector would give them, (1, H, W, 3) in [0, 1].

    Nowhere level: among equal neighbours rounding decides which is a peak.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ring = torch.exp(-((torch.hypot(y - 47.3, 1.07 * (x - 40.2)) - 28) ** 2) / 30) * (1 - x / 1000)
    bar = torch.exp(-((x - 95.3 - y / 30) ** 2) / 20) * (abs(y - 48) < 36) * (1 - y / 900)
    return (0.95 * torch.maximum(ring, bar))[None, :, :, None].expand(-1, -1, -1, 3)


def by_scipy(edges: np.ndarray) -> np.ndarray:
    """The same steps on pixel values of 0 to 255 with another library's filters."""
    blurred = scipy.ndimage.gaussian_filter(edges * 255, 3.0, mode="mirror", radius=12)
    lines = np.eye(3, dtype=bool)
    middle = np.zeros((3, 3), dtype=bool)
    middle[1] = True
    footprints = (middle, middle.T, lines, lines[::-1])
    peaks = [scipy.ndimage.maximum_filter(blurred, footprint=one, mode="constant") == blurred for one in footprints]
    map_of_peaks = 255.0 * (np.any(peaks, axis=0) & (blurred > 127))
    again = scipy.ndimage.gaussian_filter(map_of_peaks, 3.0, mode="mirror", radius=9)
    return np.round(again) > 4


def test_an_edge_map_becomes_the_lines_of_the_reference_steps():
    edges = soft_edges()
    out = scribble(edges, EDGE_MAP)
    expected = by_scipy(edges[0, :, :, 0].double().numpy())
    assert out.shape == edges.shape and set(out.unique().tolist()) == {0.0, 1.0}
    assert (out[0, :, :, 0].bool().numpy() != expected).mean() < 1e-3
    assert 0.1 < expected.mean() < 0.6


@pytest.mark.parametrize("thickness", range(25))
def test_thickness_is_that_of_nvidias_tool(thickness):
    """0 erodes by 4 x 4, 1 to 3 change nothing, from 4 on a square of half of it dilates."""
    image = torch.zeros(1, 64, 64, 3)
    image[:, 30:36, 10:54] = 1
    lines = image[0, :, :, 0].numpy()
    # OpenCV's even kernels look one pixel further back than ahead, as scipy's do; its border never counts.
    if thickness == 0:
        expected = scipy.ndimage.minimum_filter(lines, 4, mode="constant", cval=1)
    elif thickness < 4:
        expected = lines
    else:
        expected = scipy.ndimage.maximum_filter(lines, thickness // 2, mode="constant", cval=0)
    assert np.array_equal(scribble(image, SKETCH, thickness)[0, :, :, 0].numpy(), expected)


def test_black_ink_on_white_and_its_negative_are_one_scribble():
    image = torch.zeros(1, 40, 50, 3)
    image[:, 10:14, 5:45] = 0.9
    out = scribble(image)
    assert torch.equal(out, scribble(1 - image))
    assert torch.equal(out[0, :, :, 0] > 0, image[0, :, :, 0] > 0.5)


@pytest.mark.parametrize("color", [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_a_drawing_in_one_color_is_found_on_either_ground(color, ground):
    image = torch.full((1, 32, 32, 3), ground)
    image[:, 8:12, 4:28] = torch.tensor(color)
    assert scribble(image).mean() == pytest.approx(4 * 24 / 32**2)


def test_images_of_a_batch_are_judged_each_for_itself():
    bright, dark = torch.ones(1, 32, 32, 3), torch.zeros(1, 32, 32, 3)
    bright[:, 8:12], dark[:, 8:12] = 0, 1
    both = scribble(torch.cat([bright, dark]))
    assert torch.equal(both[0], both[1])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_color_and_transparent_images_are_taken(channels):
    image = torch.zeros(1, 32, 32, channels)
    image[:, 8:12] = 1
    if channels == 4:
        image[..., 3] = 1
    for mode in (SKETCH, EDGE_MAP):
        assert scribble(image, mode).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 30), (7, 9)])
def test_images_smaller_than_the_blur_are_taken(size):
    out = scribble(torch.ones(1, *size, 3), EDGE_MAP)
    assert out.shape == (1, *size, 3) and torch.isfinite(out).all()


def test_the_node_gives_an_image_for_apply_controlnet():
    image = bench.picture()
    (out,) = bench.call(bench.OURS["Scribble"], image, EDGE_MAP, 8)
    assert torch.equal(out, scribble(image, EDGE_MAP, 8)) and out.shape == image.shape
    assert torch.equal(bench.call(bench.OURS["Scribble"], image)[0], scribble(image, SKETCH, 2))
