"""Pictures in rows and columns with names and lines of text, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, MUTED, MARK = "white", "#1b1b1b", "#666666", "#1f4e8c"
GAP, PADDING, LINE, TITLE = 10, 14, 19, 26  # px
SIZE_OF_TEXT, SIZE_OF_TITLE = 14, 18
ELLIPSIS = "..."


@dataclass(frozen=True)
class Cell:
    """A picture with lines below it. marked: it has a frame, as what the others are compared with."""

    picture: Image.Image | None
    lines: tuple[str, ...] = ()
    marked: bool = False


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which holds ASCII alone: other signs are drawn as boxes."""
    return ImageFont.load_default(size)


def shortened(text: str, width: int, font: ImageFont.ImageFont) -> str:
    """As much of a line as fits into a width; it is cut in its middle, as both ends tell names apart."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1:
        kept -= 1
        head = -(-kept // 2)
        cut = f"{text[:head].rstrip()}{ELLIPSIS}{text[len(text) - kept // 2 :].lstrip()}"
        if font.getlength(cut) <= width:
            return cut
    return text[:1]


def wrapped(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    """Lines of a text that fit into a width, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [shortened(line, width, font) for line in lines]


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Scaled so that the longer side is `side`; small pictures grow by whole pixels, so that they stay as they are."""
    longest = max(picture.size)
    size = [max(1, round(value * side / longest)) for value in picture.size]
    method = Image.Resampling.LANCZOS if side < longest or side % longest else Image.Resampling.NEAREST
    return picture.convert("RGB").resize(size, method)


def draw_grid(
    rows: Sequence[Sequence[Cell]],
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    side: int = 256,
    title: str = "",
    notes: Sequence[str] = (),
) -> Image.Image:
    """Rows of cells in one picture. columns, names: heads of columns and rows, or none. side: of a picture, in px.

    Raises: ValueError for no cell, or heads of another number than the rows and columns.
    """
    width = max(map(len, rows), default=0)
    if not width:
        raise ValueError("There is no picture to draw a grid of.")
    for what, given, wanted in (("columns", columns, width), ("rows", names, len(rows))):
        if given and len(given) != wanted:
            raise ValueError(f"{len(given)} names for {wanted} {what}; give one for each, or none.")
    font, head = font_of(SIZE_OF_TEXT), font_of(SIZE_OF_TITLE)
    below = max(len(cell.lines) for row in rows for cell in row)
    left = PADDING + (min(220, int(max(font.getlength(name) for name in names)) + GAP) if names else 0)
    total = left + width * (side + GAP) - GAP + PADDING
    titles = wrapped(title, total - 2 * PADDING, head) if title else []
    ends = [line for note in notes for line in wrapped(note, total - 2 * PADDING, font)]
    top = PADDING + len(titles) * TITLE + (LINE + GAP // 2 if columns else 0)
    heights = [max(_height(cell, side) for cell in row) for row in rows]
    step = below * LINE + GAP
    height = top + sum(heights) + len(rows) * step + len(ends) * LINE + PADDING
    sheet = Image.new("RGB", (total, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(titles):
        draw.text((PADDING, PADDING + i * TITLE), line, INK, head)
    for i, name in enumerate(columns):
        draw.text((left + i * (side + GAP), top - LINE - 2), shortened(name, side, font), MARK, font)
    y = top
    for row, (cells, tall) in enumerate(zip(rows, heights, strict=True)):
        if names:
            for i, line in enumerate(wrapped(names[row], left - PADDING - GAP, font)):
                draw.text((PADDING, y + tall // 2 - LINE // 2 + i * LINE), line, MARK, font)
        for column, cell in enumerate(cells):
            _draw_cell(sheet, draw, cell, (left + column * (side + GAP), y), side, tall)
        y += tall + step
    for i, line in enumerate(ends):
        draw.text((PADDING, y + i * LINE), line, MUTED, font)
    return sheet


def _height(cell: Cell, side: int) -> int:
    return fitted(cell.picture, side).height if cell.picture else side


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, corner, side: int, tall: int) -> None:
    font = font_of(SIZE_OF_TEXT)
    x, y = corner
    if cell.picture is None:
        draw.rectangle((x, y, x + side - 1, y + tall - 1), outline=MUTED)
    else:
        picture = fitted(cell.picture, side)
        sheet.paste(picture, (x + (side - picture.width) // 2, y + (tall - picture.height) // 2))
    if cell.marked:
        draw.rectangle((x - 3, y - 3, x + side + 2, y + tall + 2), outline=MARK, width=2)
    for i, line in enumerate(cell.lines):
        draw.text((x, y + tall + 2 + i * LINE), shortened(line, side, font), INK, font)
