"""Trained image sizes: the tables, the nearest one, the labels of a user's combo, errors."""

import importlib
import math
from fractions import Fraction

import pytest
from sana_native.models.sana import resolution
from sana_native.models.sana.resolution import (
    ASPECT_RATIOS,
    RESOLUTION_BINS,
    bin_sides,
    bin_size,
    exact_sides,
    nearest_bin,
    scaled_sides,
)


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (720, 1280, (768, 1344)),
        (1080, 1920, (768, 1344)),
        (768, 1024, (832, 1152)),
        (1000, 1500, (832, 1216)),
        (64, 64, (1024, 1024)),
        (100, 9000, (512, 2048)),
        (9000, 100, (2048, 512)),
    ],
)
def test_nearest_bin_golden_values(height, width, expected):
    assert nearest_bin(height, width, 1024) == expected


@pytest.mark.parametrize(
    "size, module, name",
    [
        (512, "pixart_alpha.pipeline_pixart_alpha", "ASPECT_RATIO_512_BIN"),
        (1024, "pixart_alpha.pipeline_pixart_alpha", "ASPECT_RATIO_1024_BIN"),
        (2048, "pixart_alpha.pipeline_pixart_sigma", "ASPECT_RATIO_2048_BIN"),
        (4096, "sana.pipeline_sana", "ASPECT_RATIO_4096_BIN"),
    ],
)
def test_tables_and_choice_equal_diffusers(size, module, name):
    bins = getattr(importlib.import_module(f"diffusers.pipelines.{module}"), name)
    assert RESOLUTION_BINS[size] == {float(key): tuple(map(int, value)) for key, value in bins.items()}
    processor = importlib.import_module("diffusers.image_processor").PixArtImageProcessor
    for height, width in [(300, 700), (768, 1024), (1024, 768), (1000, 999), (1, 5), (811, 640), (4, 5)]:
        assert nearest_bin(height, width, size) == processor.classify_height_width_bin(height, width, bins)


@pytest.mark.parametrize("size", RESOLUTION_BINS)
def test_sizes_are_whole_latents_of_about_the_square_area_under_the_right_key(size):
    for ratio, (height, width) in RESOLUTION_BINS[size].items():
        assert height % 32 == width % 32 == 0
        assert 0.9 < height * width / size**2 <= 1
        assert height / width == pytest.approx(ratio, abs=0.006)


def test_tables_belong_together():
    for small, large in ((512, 1024), (2048, 4096)):
        assert RESOLUTION_BINS[large] == {key: (2 * h, 2 * w) for key, (h, w) in RESOLUTION_BINS[small].items()}
    assert all(RESOLUTION_BINS[2048][key] == (2 * h, 2 * w) for key, (h, w) in RESOLUTION_BINS[1024].items())
    sizes = set(RESOLUTION_BINS[2048].values())
    # Every size can be turned, except one that the reference has only in its wide form.
    assert {(height, width) for height, width in sizes if (width, height) not in sizes} == {(1408, 2688)}


def test_labels_say_width_to_height():
    assert list(ASPECT_RATIOS)[:5] == ["1:1", "5:4", "4:5", "4:3", "3:4"]
    assert ASPECT_RATIOS["16:9"] == 9 / 16 and ASPECT_RATIOS["9:16"] == 16 / 9
    assert {"3:2", "2:3", "21:9", "9:21", "2:1", "1:2", "3:1", "1:3", "4:1", "1:4"} <= set(ASPECT_RATIOS)


@pytest.mark.parametrize(
    "label, expected",
    [
        ("1:1", (1024, 1024)),
        ("16:9", (1344, 768)),
        ("9:16", (768, 1344)),
        ("4:3", (1152, 832)),
        ("3:4", (832, 1152)),
        ("3:2", (1216, 832)),
        ("21:9", (1536, 640)),
        ("2:1", (1408, 704)),
        ("4:1", (2048, 512)),
        ("1:4", (512, 2048)),
    ],
)
def test_bin_size_gives_width_then_height(label, expected):
    assert bin_size(1024, label) == expected
    assert bin_size(512, label) == tuple(side // 2 for side in expected)
    assert bin_size(4096, label) == tuple(side * 4 for side in expected)


@pytest.mark.parametrize("size", RESOLUTION_BINS)
@pytest.mark.parametrize("label", ASPECT_RATIOS)
def test_every_label_gives_a_trained_size(size, label):
    width, height = bin_size(size, label)
    assert (height, width) in RESOLUTION_BINS[size].values()
    assert height / width == pytest.approx(ASPECT_RATIOS[label], rel=0.04)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nearest_bin(512, 512, 768), "Size 768 has no trained resolutions, only 512, 1024, 2048, 4096 have"),
        (lambda: bin_size(768, "1:1"), "Size 768 has no trained resolutions"),
        (lambda: nearest_bin(0, 512, 1024), "The image is 512x0, but both sides must be above 0"),
        (lambda: bin_size(1024, "7:5"), "The aspect ratio 7:5 is unknown; choose one of 1:1, "),
    ],
)
def test_unknown_sizes_are_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_module_needs_no_host():
    assert not {"comfy", "torch"} & set(vars(resolution))


SIDES = range(512, 2049, 8)


def test_the_way_back_is_exact_for_every_size():
    """All 37,249 of them, of which the references' rounding fails for 1018: (960, 1280) came back with one column."""
    failing = 0
    for height in SIDES:
        for width in SIDES:
            binned_height, binned_width = nearest_bin(height, width, 1024)
            cover = scaled_sides(binned_width, binned_height, (width, height), True)
            contain = scaled_sides(binned_width, binned_height, (width, height), False)
            scale = max(Fraction(width, binned_width), Fraction(height, binned_height))
            assert cover == (math.ceil(binned_width * scale), math.ceil(binned_height * scale))
            assert cover[0] >= width and cover[1] >= height and (cover[0] == width or cover[1] == height)
            assert contain[0] <= width and contain[1] <= height and (contain[0] == width or contain[1] == height)
            ratio = max(height / binned_height, width / binned_width)
            failing += int(binned_height * ratio) < height or int(binned_width * ratio) < width
    assert (len(SIDES) ** 2, failing) == (37_249, 1018)


@pytest.mark.parametrize("cover", [True, False])
def test_an_image_of_the_wanted_size_or_shape_is_only_scaled(cover):
    assert scaled_sides(640, 480, (640, 480), cover) == (640, 480)
    assert scaled_sides(640, 480, (1920, 1440), cover) == (1920, 1440)
    assert scaled_sides(2048, 32, (16, 16), cover) == ((1024, 16) if cover else (16, 1))


def test_tall_sizes_are_wide_ones_turned():
    for size in RESOLUTION_BINS:
        for width, height in [(1280, 960), (1500, 1000), (1920, 1080), (800, 799)]:
            assert bin_sides(size, height, width) == bin_sides(size, width, height)[::-1]
    assert bin_sides(1024, 16, 9) == bin_size(1024, "16:9")


def test_exact_sides_are_the_next_multiples_of_32():
    assert [exact_sides(*size) for size in ((1024, 1025), (1, 33))] == [(1024, 1056), (32, 64)]
