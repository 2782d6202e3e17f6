"""Masks on the cells of a latent, reflection at the sides, and results over the original."""

import pytest
import torch
from comfy.utils import reshape_mask
from sana_native.models.editing.masks import (
    Sides,
    cell_mask,
    composite,
    enlarge,
    feather_outwards,
    fit_mask,
    pad_by_reflection,
    pad_mask,
    rgb,
)


def stroke(height: int, width: int, rows: slice, columns: slice, value: float = 1.0) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, rows, columns] = value
    return mask


def picture(height: int, width: int, seed: int = 0, count: int = 1) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


EVERYTHING = slice(None)


def test_a_thin_stroke_over_the_picture_masks_every_cell_that_it_touches():
    """The host's own sampling of masks finds nothing of it."""
    mask = stroke(1024, 1024, EVERYTHING, slice(17, 47))
    cells = cell_mask(mask, 32)
    assert not reshape_mask(mask, (1, 32, 32, 32)).any()
    assert cells.sum() == 64 and bool(cells[0, :, :2].all())


def test_half_masks_cells_that_are_covered_by_half_and_soft_gives_their_mean():
    mask = stroke(64, 128, EVERYTHING, slice(17, 48))  # 15 columns of the first cell, 16 of the second
    assert cell_mask(mask, 32, "half").tolist() == [[[0, 1, 0, 0]] * 2]
    assert cell_mask(mask, 32, "soft")[0, 0].tolist() == pytest.approx([15 / 32, 16 / 32, 0, 0])


def test_a_soft_brush_touches_from_its_first_shade_on():
    assert cell_mask(stroke(64, 64, slice(0, 1), slice(0, 1), 1 / 255), 32).tolist() == [[[1, 0], [0, 0]]]


def test_grow_adds_cells_around():
    mask = stroke(160, 160, slice(70, 80), slice(70, 80))
    assert [int(cell_mask(mask, 32, grow=grow).sum()) for grow in (0, 1, 2)] == [1, 9, 25]


def test_cells_at_an_odd_edge_count_the_pixels_that_they_have():
    mask = stroke(1000, 1000, EVERYTHING, slice(992, 1000))
    assert cell_mask(mask, 32, "half").shape == (1, 32, 32)
    assert cell_mask(mask, 32, "half")[0, 3].nonzero().tolist() == [[31]]
    assert cell_mask(mask, 32, "soft")[0, 31, 31] == 1


def test_on_an_odd_size_one_cells_pixels_mask_that_cell_and_no_other():
    cells = cell_mask(stroke(1000, 1000, slice(96, 128), slice(960, 992)), 32)
    assert cells.nonzero().tolist() == [[0, 3, 30]]


@pytest.mark.parametrize("cell", [8, 32])
def test_enlarged_cells_survive_the_hosts_sampling(cell):
    cells = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(reshape_mask(enlarge(cells, cell), (2, 1, 5, 7))[:, 0], cells)


def test_reflection_equals_torchs_and_goes_on_beyond_the_picture():
    images = picture(20, 30)
    ours = pad_by_reflection(images, Sides(3, 5, 7, 19))
    theirs = torch.nn.functional.pad(images.movedim(-1, 1), (3, 7, 5, 19), mode="reflect").movedim(1, -1)
    assert torch.equal(ours, theirs)
    far = pad_by_reflection(images, Sides(left=200))
    assert far.shape == (1, 20, 230, 3) and torch.equal(far[:, :, 200 - 58 : 230 - 58], images)
    assert torch.equal(pad_by_reflection(images[:, :1], Sides(top=2)), images[:, :1].expand(-1, 3, -1, -1))


def test_added_sides_are_masked():
    mask = pad_mask(torch.zeros(1, 4, 4), Sides(1, 2, 0, 0))
    assert mask.shape == (1, 6, 5) and mask.sum() == 2 * 5 + 4


def test_a_mask_of_another_size_is_scaled_and_a_thin_stroke_stays():
    larger = stroke(512, 512, EVERYTHING, slice(100, 101))
    fitted = fit_mask(larger, picture(128, 96))
    assert fitted.shape == (1, 128, 96) and int(cell_mask(fitted, 32).sum()) >= 4
    assert fit_mask(larger[0, :8, :8], picture(8, 8)).shape == (1, 8, 8)
    assert not fit_mask(None, picture(8, 8)).any()


def test_the_feather_falls_evenly_and_ends_where_it_is_said_to():
    weights = feather_outwards(stroke(200, 200, slice(90, 110), slice(90, 110)), 24)[0]
    assert bool((weights[90:110, 90:110] == 1).all())
    assert weights[100, 110:134].tolist() == pytest.approx([1 - k / 25 for k in range(1, 25)])
    assert weights[100, 134:].abs().max() == 0 and weights[:66].abs().max() == 0
    assert weights[109 + 3, 109 + 4] == pytest.approx(1 - 5 / 25)  # Euclidean: 3, 4, 5


def test_the_feather_is_the_distance_from_the_nearest_pixel_of_any_mask():
    mask = (torch.rand(2, 40, 50, generator=torch.Generator().manual_seed(3)) > 0.995).float()
    mask[1] = 0
    mask[1, 0, 0] = 1
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    for one, weights in zip(mask, feather_outwards(mask, 12), strict=True):
        places = one.nonzero()
        distance = ((rows[..., None] - places[:, 0]) ** 2 + (columns[..., None] - places[:, 1]) ** 2).amin(-1).sqrt()
        assert torch.allclose(weights, (1 - distance / 13).clamp(0), atol=1e-6)


def test_without_a_feather_the_result_ends_with_the_mask():
    mask = stroke(32, 32, slice(8, 9), slice(3, 30))
    assert torch.equal(feather_outwards(mask, 0), mask)


def test_outside_mask_and_feather_the_original_stays_bit_for_bit():
    original, result = picture(100, 90, 1), picture(100, 90, 2)
    mask = stroke(100, 90, slice(40, 50), slice(30, 60))
    done = composite(original, result, mask, 16)
    beyond = feather_outwards(mask, 16) == 0
    assert torch.equal(done[beyond], original[beyond]) and torch.equal(done[mask > 0], result[mask > 0])
    assert int(beyond.sum()) > 4000 and not torch.equal(done[:, 50:56], original[:, 50:56])


def test_padding_of_the_result_is_undone():
    original, result = picture(100, 90, 1), picture(128, 96, 2)
    done = composite(original, result, torch.ones(1, 100, 90))
    assert torch.equal(done, result[:, :100, :90])


def test_a_cropped_result_lies_where_it_was_cut_and_the_border_stays():
    original, result = picture(100, 90, 1), picture(96, 64, 2)
    done = composite(original, result, torch.ones(1, 100, 90))
    assert torch.equal(done[:, 2:98, 13:77], result)
    assert torch.equal(done[:, :2], original[:, :2]) and torch.equal(done[:, :, 77:], original[:, :, 77:])


@pytest.mark.parametrize("counts", [(1, 2, 1), (2, 2, 1), (2, 2, 2), (1, 2, 2), (1, 1, 2)])
def test_one_mask_for_a_batch_or_one_each(counts):
    original, result = picture(40, 40, 1, counts[0]), picture(40, 40, 2, counts[1])
    mask = torch.zeros(counts[2], 40, 40)
    for number, one in enumerate(mask):
        one[:, : 10 * (number + 1)] = 1
    done = composite(original, result, mask, 0)
    for number in range(2):
        pick = (parts[min(number, len(parts) - 1)] for parts in (original, result, mask))
        assert torch.equal(done[number], composite(*(part[None] for part in pick), 0)[0])


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="2 of original, 3 of result, 1 of mask: connect one for all, or equally many"):
        composite(picture(8, 8, count=2), picture(8, 8, count=3), torch.ones(1, 8, 8))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="The original is 90 x 100 px, but the mask is 290 x 100 px: connect image"):
        composite(picture(100, 90), picture(128, 96), torch.ones(1, 100, 290))
    with pytest.raises(ValueError, match="The result is 512 x 512 px, but the original is 256 x 256 px: connect"):
        composite(picture(256, 256), picture(512, 512), torch.ones(1, 256, 256))


def test_alpha_is_left_out():
    original = torch.cat([picture(32, 32, 1), torch.ones(1, 32, 32, 1)], dim=-1)
    assert composite(original, original, torch.ones(1, 32, 32)).shape == (1, 32, 32, 3)


def test_a_mask_without_batch_is_one_mask():
    """Not as many as it has rows."""
    original, result, mask = picture(64, 96), picture(64, 96, 1), stroke(64, 96, slice(8, 16), slice(8, 16))
    done = composite(original, result, mask, 0)
    assert torch.equal(composite(original, result, mask[0], 0), done) and len(done) == 1
    assert torch.equal(composite(original, result, mask[None], 0), done)


@pytest.mark.parametrize(("shape", "channels"), [((2, 8, 8, 1), 1), ((2, 8, 8, 4), 3), ((2, 8, 8, 3), 3)])
def test_images_of_one_or_four_channels_become_rgb(shape, channels):
    images = torch.rand(shape)
    assert torch.equal(rgb(images), images[..., :channels].expand(2, 8, 8, 3))


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (1, 8, 8, 2), (1, 3, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"The result is of shape .*, but \(images, height, width, 3\) is expected:"):
        rgb(torch.rand(shape), "result")


def test_a_batch_without_images_is_refused():
    with pytest.raises(ValueError, match="The image holds nothing, its shape is .*: check the node that made it"):
        rgb(torch.rand(0, 8, 8, 3))
