"""Names of pictures, and their sizes as read from the first bytes of each format."""

import io

import pytest
from PIL import Image
from sana_native.scale.pictures import picture_name, picture_size


def test_pictures_of_two_rows_never_meet():
    names = {picture_name(name, number, ".png") for name in ("a", "a_1", "a_1_1", "ä") for number in range(3)}
    assert len(names) == 12 and picture_name("a", 0, ".png") == "images/86f/a.png"


FORMS = {
    "png": ("RGB", {"format": "png"}),
    "jpg": ("RGB", {"format": "jpeg"}),
    "progressive jpg": ("L", {"format": "jpeg", "progressive": True, "exif": b"Exif\0\0" + b"x" * 5000}),
    "webp": ("RGB", {"format": "webp"}),
    "lossless webp": ("RGB", {"format": "webp", "lossless": True}),
    "webp with transparency": ("RGBA", {"format": "webp"}),
    "webp with exif": ("RGB", {"format": "webp", "exif": b"Exif\0\0" + b"x" * 500}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (640, 480), (1000, 33), (257, 1025)])
def test_the_size_of_every_format_is_read_and_none_of_a_part(form, size):
    mode, options = FORMS[form]
    file = io.BytesIO()
    Image.new(mode, size, 7).save(file, **options)
    assert picture_size(file.getvalue()) == size
    assert {picture_size(file.getvalue()[:length]) for length in range(24)} == {(0, 0)}


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"\xff\xd8" + bytes(50), b"RIFFxxxxWEBPnone" + bytes(50)])
def test_what_is_no_picture_has_no_size(data):
    assert picture_size(data) == (0, 0)
