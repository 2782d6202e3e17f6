"""Grids hold every picture at its place, and every line fits."""

import numpy as np
import pytest
from PIL import Image
from sana_native.evaluation.grid import GAP, PADDING, Cell, draw_grid, fitted, font_of, shortened, wrapped

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(color, size=(64, 64)) -> Image.Image:
    return Image.new("RGB", size, color)


def share(sheet: Image.Image, color) -> int:
    return int((np.asarray(sheet) == color).all(axis=-1).sum())


def test_every_picture_is_at_its_place():
    sheet = draw_grid([[Cell(picture(RED)), Cell(picture(GREEN))], [Cell(picture(BLUE)), Cell(None)]], side=64)
    step = 64 + GAP
    for (x, y), color in {(0, 0): RED, (1, 0): GREEN, (0, 1): BLUE}.items():
        assert sheet.getpixel((PADDING + x * step + 30, PADDING + y * step + 30)) == color
    assert [share(sheet, color) for color in (RED, GREEN, BLUE)] == [64 * 64] * 3


def test_pictures_of_other_shapes_keep_theirs():
    sheet = draw_grid([[Cell(picture(RED, (100, 50))), Cell(picture(GREEN, (50, 100)))]], side=200)
    assert share(sheet, RED) == share(sheet, GREEN) == 200 * 100


def test_small_pictures_grow_by_whole_pixels():
    grown = fitted(Image.effect_noise((8, 8), 90), 32)
    assert {color for _, color in grown.getcolors(4096)} == {color for _, color in fitted(grown, 32).getcolors(4096)}
    assert grown.getpixel((0, 0)) == grown.getpixel((3, 3))


def test_names_lines_and_notes_are_drawn():
    plain = draw_grid([[Cell(picture(RED))]], side=64)
    named = draw_grid([[Cell(picture(RED), ("1.2 s", "30 dB"))]], ["steps 4"], ["Euler"], 64, "Demo", ["one note"])
    assert named.width > plain.width and named.height > plain.height + 4 * 19
    assert share(named, RED) == 64 * 64


def test_a_long_line_is_shortened_in_its_middle_and_fits():
    font, long = font_of(14), "KSampler.sampler_name=sana_flow_dpm_of_a_very_long_name_2"
    short = shortened(long, 150, font)
    assert font.getlength(short) <= 150 and short.startswith("KSampler") and short.endswith("_2") and "..." in short
    assert shortened("Euler", 150, font) == "Euler"


def test_a_text_is_broken_between_words():
    lines = wrapped("a big strawberry top left on a yellow background", 120, font_of(14))
    assert len(lines) > 2 and " ".join(lines) == "a big strawberry top left on a yellow background"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "There is no picture to draw a grid of"),
        (([[Cell(None)]], ["a", "b"]), "2 names for 1 columns; give one for each, or none"),
        (([[Cell(None)]], ["a"], ["b", "c"]), "2 names for 1 rows"),
    ],
)
def test_a_grid_of_nothing_or_of_wrong_names_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_grid(*arguments)
