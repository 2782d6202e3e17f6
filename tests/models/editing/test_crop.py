"""A small masked part, enlarged to the model's size and put back."""

import pytest
import torch
from sana_native.models.editing.crop import crop_to_mask, stitch
from sana_native.models.editing.masks import feather_outwards


def smooth(height: int = 300, width: int = 400) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([rows, columns, (rows + columns) / 2], dim=-1)[None]


def spot(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, rows, columns] = 1
    return mask


def test_a_small_part_gets_the_models_size_in_whole_cells():
    crop, part, mask = crop_to_mask(smooth(), spot(300, 400, slice(140, 160), slice(200, 230)), 1024, 32)
    assert (crop.height, crop.width) == (84, 94) and crop.places == ((108, 168),)
    height, width = part.shape[1:3]
    assert height % 32 == width % 32 == 0 and abs(height * width / 2**20 - 1) < 0.05
    assert mask.shape == part.shape[:3] and 0.05 < float(mask.mean()) < 0.1


def test_a_part_at_the_edge_stays_within_the_picture():
    crop, _, _ = crop_to_mask(smooth(), spot(300, 400, slice(290, 300), slice(0, 10)), 512, 64)
    assert crop.places == ((300 - crop.height, 0),) and (crop.height, crop.width) == (138, 138)


def test_a_long_stroke_is_cut_no_longer_than_twice_its_width():
    crop, part, _ = crop_to_mask(smooth(), spot(300, 400, slice(100, 104), slice(50, 350)), 512, 10)
    assert (crop.height, crop.width) == (160, 320) and part.shape[2] / part.shape[1] == pytest.approx(2, rel=0.1)


def test_untouched_the_stitched_picture_is_the_original():
    image, mask = smooth(), spot(300, 400, slice(140, 160), slice(200, 230))
    crop, part, _ = crop_to_mask(image, mask, 1024)
    stitched = stitch(crop, part)
    assert (stitched - image).abs().max() < 2e-3
    beyond = feather_outwards(mask, 24) == 0
    assert torch.equal(stitched[beyond], image[beyond])


def test_only_mask_and_feather_change():
    image, mask = smooth(), spot(300, 400, slice(140, 160), slice(200, 230))
    crop, part, _ = crop_to_mask(image, mask, 512)
    stitched = stitch(crop, torch.zeros_like(part), 8)
    beyond = feather_outwards(mask, 8) == 0
    assert torch.equal(stitched[beyond], image[beyond]) and not stitched[mask > 0].any()


def test_the_feather_ends_within_the_context():
    image, mask = smooth(), spot(300, 400, slice(140, 160), slice(200, 230))
    crop, part, _ = crop_to_mask(image, mask, 512, context=4)
    stitched = stitch(crop, torch.zeros_like(part), 100)
    assert torch.equal(stitched == image, stitch(crop, torch.zeros_like(part), 4) == image)


def test_every_picture_of_a_batch_has_its_own_place():
    image = smooth().repeat(2, 1, 1, 1)
    mask = torch.cat([spot(300, 400, slice(10, 30), slice(20, 40)), spot(300, 400, slice(200, 220), slice(300, 330))])
    crop, part, _ = crop_to_mask(image, mask, 512, 32)
    assert crop.places[0] != crop.places[1] and len(part) == 2
    stitched = stitch(crop, torch.zeros_like(part), 0)
    assert torch.equal(stitched == 0, (mask > 0)[..., None] | (image == 0))


def test_several_results_of_one_part_give_as_many_pictures():
    crop, part, _ = crop_to_mask(smooth(), spot(300, 400, slice(140, 160), slice(200, 230)), 512)
    assert stitch(crop, part.repeat(3, 1, 1, 1)).shape == (3, 300, 400, 3)


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="The mask is empty, so there is no part to cut out: mask a part"):
        crop_to_mask(smooth(), torch.zeros(1, 64, 64), 512)


def test_an_empty_mask_of_a_batch_is_named():
    masks = torch.cat([torch.ones(2, 300, 400), torch.zeros(1, 300, 400)])
    with pytest.raises(ValueError, match="The mask is empty, so there is no part to cut out with mask 3 of 3: mask"):
        crop_to_mask(smooth(), masks, 512)


def test_a_gray_picture_of_one_channel_comes_back_in_three():
    gray = smooth()[..., :1]
    crop, part, _ = crop_to_mask(gray, spot(300, 400, slice(140, 160), slice(200, 230)), 512)
    done = stitch(crop, torch.zeros_like(part)[..., :1], 0)
    expected = gray.expand(-1, -1, -1, 3).clone()
    expected[:, 140:160, 200:230] = 0
    assert part.shape[-1] == 3 and torch.equal(done, expected)


def test_results_of_another_batch_are_refused():
    crop, part, _ = crop_to_mask(smooth().repeat(2, 1, 1, 1), torch.ones(1, 300, 400), 512)
    with pytest.raises(ValueError, match="2 of original, 3 of image: connect one for all"):
        stitch(crop, part[:1].repeat(3, 1, 1, 1))
