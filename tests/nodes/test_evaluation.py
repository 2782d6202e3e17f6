"""CLIP score, picture difference and grid as nodes: what they hand on, and what they refuse."""

import pytest
import torch
from sana_native.evaluation.embed import embed_images, embed_texts
from sana_native.evaluation.metrics import clip_scores
from sana_native.nodes.evaluation import SanaNativeClipScore, SanaNativeGrid, SanaNativePictureDifference, texts_for
from sana_native.tests.support.clips import host_text, host_vision, random_clip


@pytest.fixture(scope="module")
def halves():
    state = random_clip().state_dict()
    return host_vision(state), host_text(state)


def pictures(count: int, height: int = 40, width: int = 32) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(5))


def test_clip_score_is_the_mean_and_the_report_names_each_image(halves):
    score, report = SanaNativeClipScore.execute(pictures(2), *halves, "a cat\na dog").args
    expected = clip_scores(embed_images(halves[0], pictures(2)), embed_texts(halves[1], ["a cat", "a dog"]))
    assert score == pytest.approx(expected.mean()) and len(report.splitlines()) == 3
    assert report.splitlines()[1] == f"{expected[1]:.2f}  a dog" and report.endswith("N = 2")


def test_clip_score_of_many_images_has_an_interval(halves):
    _, report = SanaNativeClipScore.execute(pictures(12), *halves, "a cat").args
    assert "95 % interval" in report and report.endswith("N = 12")


def test_a_score_of_no_text_is_refused(halves):
    with pytest.raises(ValueError, match="There is no text: write the prompt that the images are compared with"):
        SanaNativeClipScore.execute(pictures(1), *halves, " \n")


def test_each_image_gets_its_line_only_when_there_are_as_many():
    assert texts_for("a\n\nb\n", 2) == ["a", "b"] and texts_for("a\nb", 3) == ["a\nb"] * 3


def test_difference_of_a_batch_to_one_image():
    image = pictures(2)
    psnr, ssim, where, report = SanaNativePictureDifference.execute(image, image[:1]).args
    assert report.splitlines()[0] == "equal, bit for bit" and report.splitlines()[1].startswith("PSNR ")
    assert 50 < psnr < 60 and 0.4 < ssim < 0.6  # of 100 dB and about 8; of 1 and about 0
    assert where.shape == (2, 40, 32, 3) and where[0].max() == 0 and where[1].max() > 0.9


def test_more_gain_shows_smaller_differences():
    image = pictures(1)
    low, high = (
        SanaNativePictureDifference.execute(image, image + 0.001, gain).args[2].mean() for gain in (1.0, 200.0)
    )
    assert high > 10 * low


def test_batches_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="3 images cannot be compared with 2: give as many, or one for all"):
        SanaNativePictureDifference.execute(pictures(3), pictures(2))


def test_a_grid_holds_lists_and_batches_of_any_size_in_their_order():
    red, green = torch.zeros(2, 64, 64, 3), torch.zeros(1, 32, 64, 3)
    red[..., 0], green[..., 1] = 1, 1
    sheet = SanaNativeGrid.execute([red, green], [2], ["one\ntwo\nthree"], ["title"], [64]).args[0]
    pixels = (255 * sheet[0]).round().int()
    counts = [int((pixels == torch.tensor(color)).all(dim=-1).sum()) for color in ((255, 0, 0), (0, 255, 0))]
    assert counts == [2 * 64 * 64, 64 * 32]
    assert sheet.shape[1] > 2 * 64 and sheet.shape[2] < 3 * 64  # two rows, two columns


def test_a_grid_is_about_square_and_its_labels_may_be_a_list():
    plain = SanaNativeGrid.execute([pictures(9)], side=[64]).args[0]
    assert abs(plain.shape[1] - plain.shape[2]) < 100
    labelled = SanaNativeGrid.execute([pictures(9)], labels=["a"] * 9, side=[64]).args[0]
    assert labelled.shape[1] > plain.shape[1] and labelled.shape[2] == plain.shape[2]


def test_a_grid_of_one_channel_is_gray():
    sheet = SanaNativeGrid.execute([torch.full((1, 32, 32, 1), 0.5)], side=[32]).args[0]
    assert int(((255 * sheet).round() == 128).all(dim=-1).sum()) == 32 * 32


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="There is no picture to draw a grid of"):
        SanaNativeGrid.execute([])
