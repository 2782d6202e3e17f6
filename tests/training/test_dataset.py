"""Folders of pictures: which are refused, all in one message, and what is done to the others."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sana_native.tests.training.conftest import write_picture
from sana_native.training.buckets import BatchPlan, epoch_batches, target_size
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.pictures import fit_picture, read_picture


def test_every_problem_is_told_in_one_message(tmp_path, monkeypatch):
    write_picture(tmp_path / "good.png", 1)
    (tmp_path / "twin.png").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "twin.txt").write_text("a cat")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    write_picture(tmp_path / "small.png", 2, (20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    write_picture(tmp_path / "vast.png", 6, (200, 200))
    write_picture(tmp_path / "bare.png", 3, caption=None)
    write_picture(tmp_path / "empty.png", 4, caption=" \n")
    write_picture(tmp_path / "latin.png", 5).with_suffix(".txt").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(ValueError, match="cannot be trained on until this is mended") as error:
        read_folder(str(tmp_path), SetOptions(size=64))
    message = str(error.value)
    for line in (
        "twin.png: the same picture as good.png", "torn.png: cannot be read", "small.png: too small, 20 x 20 px",
        "vast.png: cannot be read (Image size (40000 pixels) exceeds limit",
        "bare.png: no bare.txt", "empty.png: empty.txt is empty", "latin.png: latin.txt is not UTF-8",
    ):  # fmt: skip
        assert line in message
    assert "good.png: " not in message.replace("as good.png", "")


@pytest.mark.parametrize(("make", "message"), [(False, "is no folder"), (True, "has no pictures")])
def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path, make, message):
    folder = tmp_path / "set"
    if make:
        folder.mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_folder(str(folder), SetOptions())


def test_a_size_that_no_latent_has_is_refused(tmp_path):
    write_picture(tmp_path / "good.png", 1)
    with pytest.raises(ValueError, match="size 100 is no multiple of 32: enter the side of the square"):
        read_folder(str(tmp_path), SetOptions(size=100))


def test_captions_get_the_trigger_word_once_and_missing_ones_the_default(tmp_path):
    for index, caption in enumerate(["a sks cat", "a dog\non grass", None]):
        write_picture(tmp_path / f"{index}.png", index, caption=caption)
    options = SetOptions(size=64, trigger_word="sks", default_caption="a thing")
    found = read_folder(str(tmp_path), options)
    assert [one.caption for one in found.samples] == ["a sks cat", "sks, a dog on grass", "sks, a thing"]


def test_numbered_folders_repeat_their_pictures_and_flip_adds_mirrored_ones(tmp_path):
    write_picture(tmp_path / "3_cats" / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    write_picture(tmp_path / "other" / "c.png", 3)
    found = read_folder(str(tmp_path), SetOptions(size=64, flip=True))
    assert [(one.repeats, one.mirrored) for one in found.samples] == [(3, False), (1, False), (3, True), (1, True)]


@pytest.mark.parametrize("name", ["20240115_paris", "99999999999_x", "0_x"])
def test_a_number_that_is_none_of_repeats_is_refused(tmp_path, name):
    write_picture(tmp_path / name / "a.png", 1)
    number = name.split("_")[0]
    message = f"{name}: its pictures would come {number} times in an epoch, and 1 to 1000 is possible: put another"
    with pytest.raises(ValueError, match=message):
        read_folder(str(tmp_path), SetOptions(size=64))


def test_the_report_counts_repeats(tmp_path):
    write_picture(tmp_path / "100_cats" / "a.png", 1)
    write_picture(tmp_path / "b.png", 2)
    report = read_folder(str(tmp_path), SetOptions(size=64)).describe()
    assert report == "2 pictures, 101 in an epoch, at 64 x 64 px"


def test_two_pictures_with_one_caption_are_told(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    write_picture(tmp_path / "a.bmp", 2)
    notices = read_folder(str(tmp_path), SetOptions(size=64)).notices
    assert notices == ("a.png: has the same .txt as a.bmp, and so the same caption",)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are text there")
def test_names_that_are_not_utf_8_are_escaped_in_every_message(tmp_path):
    write_picture(tmp_path / "a.png", 1, (48, 48))
    for end in ("png", "txt"):
        os.rename(tmp_path / f"a.{end}", os.fsencode(str(tmp_path)) + b"/\xff\xfe." + end.encode())
    (notice,) = read_folder(str(tmp_path), SetOptions(size=64)).notices
    assert notice == "\\udcff\\udcfe.png: 48 x 48 px enlarged to 64 x 64 px"
    os.remove(os.fsencode(str(tmp_path)) + b"/\xff\xfe.txt")
    with pytest.raises(
        ValueError, match=r"\\udcff\\udcfe\.png: no \\udcff\\udcfe\.txt: write a caption there"
    ) as error:
        read_folder(str(tmp_path), SetOptions(size=64))
    assert str(error.value).encode()  # no half character is left
    with pytest.raises(FileNotFoundError, match=r"\\ud83d is no folder"):
        read_folder(str(tmp_path / "\ud83d"), SetOptions(size=64))


def test_the_report_tells_sizes_and_what_is_cropped_or_enlarged(tmp_path):
    write_picture(tmp_path / "a.png", 1, (64, 128))
    write_picture(tmp_path / "b.png", 2, (48, 48))
    report = read_folder(str(tmp_path), SetOptions(size=64, bins=False)).describe()
    assert report.split("\n") == [
        "2 pictures at 64 x 64 px", "a.png: 50% cropped, 64 x 128 px to 64 x 64 px",
        "b.png: 48 x 48 px enlarged to 64 x 64 px",
    ]  # fmt: skip


def test_a_caption_without_its_picture_is_told(tmp_path):
    write_picture(tmp_path / "3_cats" / "a.png", 1)
    (tmp_path / "3_cats" / "b.txt").write_text("a cat")
    found = read_folder(str(tmp_path), SetOptions(size=64))
    assert found.notices == (f"{os.path.join('3_cats', 'b.txt')}: no picture of this name, so nobody reads it",)


def test_colors_of_every_kind_become_upright_rgb(tmp_path):
    def read(image, name, **options):
        image.save(tmp_path / name, **options)
        picture = read_picture(str(tmp_path / name))
        assert picture.image.mode == "RGB"
        return picture

    cmyk = read(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.tif")
    assert cmyk.notes == ["CMYK converted to RGB"] and cmyk.image.getpixel((0, 0)) == (255, 0, 0)
    alpha = read(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "b.png")
    assert alpha.notes == ["alpha laid on white"] and alpha.image.getpixel((0, 0)) == (255, 255, 255)
    wide = read(Image.fromarray(np.full((8, 8), 32896, dtype=np.uint16)), "c.png")
    assert wide.notes == ["16 bits made 8"] and wide.image.getpixel((0, 0)) == (128, 128, 128)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(Image.new("RGB", (8, 4), "red"), "d.jpg", exif=exif)
    assert turned.notes == ["turned as its EXIF says"] and turned.image.size == (4, 8)


def test_values_of_floats_are_scaled_and_dark_pictures_of_16_bits_stay_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    found = read_picture(str(tmp_path / "a.tif"))
    assert found.notes == ["floats made 8 bits"] and found.image.getpixel((0, 0)) == (128, 128, 128)
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint16)).save(tmp_path / "b.png")
    assert read_picture((tmp_path / "b.png").read_bytes()).image.getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[0, 255]]), "floats from 0 to 255, where 0 to 1 was expected: save it with 8 or 16 bits"),
        (np.float32([[-0.5, 1]]), "floats from -0.5 to 1, where 0 to 1"),
        (np.float32([[np.nan, 1]]), "floats that are not finite, where 0 to 1"),
        (np.int32([[70000, -5]]), "integers of 32 bits, whose range is not known: save it with 8 or 16"),
    ],
)
def test_values_of_an_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=message):
        read_picture(str(tmp_path / "a.tif"))


def test_a_file_that_is_no_picture_is_refused():
    with pytest.raises(ValueError, match="it is no picture that Pillow knows"):
        read_picture(b"no picture")


def test_a_picture_covers_its_size_from_the_middle():
    image = Image.new("RGB", (96, 32), "black")
    image.paste((255, 0, 0), (32, 0, 48, 32))
    pixels = fit_picture(image, (32, 32))
    assert pixels.shape == (32, 32, 3) and pixels[:, :15, 0].min() > 0.95 and pixels[:, 17:].max() < 0.05
    assert torch.equal(fit_picture(image, (32, 32), mirrored=True), pixels.flip(1))


@pytest.mark.parametrize(
    ("picture", "size", "bins", "expected"),
    [
        ((1000, 1000), 1024, True, (1024, 1024)),
        ((900, 1600), 1024, True, (768, 1344)),
        ((900, 1600), 512, True, (384, 672)),
        ((900, 1600), 256, True, (192, 320)),
        ((900, 1600), 1024, False, (1024, 1024)),
    ],
)
def test_pictures_are_trained_at_the_nearest_trained_size(picture, size, bins, expected):
    assert target_size(*picture, size, bins) == expected


SIZES = [(64, 64)] * 5 + [(32, 128)] * 2 + [(128, 32)]


def test_an_epoch_has_every_picture_once_in_batches_of_one_size():
    for epoch in range(3):
        batches = epoch_batches(SIZES, 2, 7, epoch)
        assert sorted(index for batch in batches for index in batch) == list(range(len(SIZES)))
        assert all(len({SIZES[index] for index in batch}) == 1 for batch in batches)
        assert sorted(map(len, batches)) == [1, 1, 2, 2, 2]


def test_a_plan_gives_the_same_batch_wherever_it_is_entered():
    whole = BatchPlan(SIZES, 2, 7)
    row = [whole[index] for index in range(20)]
    assert BatchPlan(SIZES, 2, 7)[13] == row[13]
    assert row[:5] == epoch_batches(SIZES, 2, 7, 0) and row[5:10] == epoch_batches(SIZES, 2, 7, 1) != row[:5]
    assert [BatchPlan(SIZES, 2, 8)[index] for index in range(20)] != row
