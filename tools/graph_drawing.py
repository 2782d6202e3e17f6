"""A workflow as a small picture of its graph: frames, nodes and colored links, under two lines of text."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from .workflow import BYPASSED
from .workflow_build import NOTES
from .workflow_routes import TITLE_HEIGHT, drawn_paths

SIDE, OVERSAMPLING, MARGIN, TOP = 384, 3, 18, 112
CORNER, LINE = 2 * OVERSAMPLING, 4
BACKGROUND, NODE, TITLE_BAR, BYPASSED_NODE = "#1b1d22", "#353535", "#5c5c5c", "#5a2f68"
WORDS, FAINT_WORDS, OTHER_LINK = "#f2f2f2", "#b9bec9", "#9a9a9a"
# The canvas's own colors.
LINKS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "STRING": "#77ff77",
}


def draw_graph(workflow: dict, heading: str, words: str) -> Image.Image:
    """The picture, SIDE x SIDE; notes are left out."""
    picture = Image.new("RGB", (SIDE * OVERSAMPLING,) * 2, BACKGROUND)
    pen = ImageDraw.Draw(picture)
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    view = _View([group["bounding"] for group in workflow["groups"]])
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        faint = tuple((channel + 2 * 28) // 3 for channel in bytes.fromhex(group["color"][1:]))
        pen.rounded_rectangle(view.box(x, y, x + width, y + height), CORNER, faint, group["color"], OVERSAMPLING)
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        body = BYPASSED_NODE if node["mode"] == BYPASSED else NODE
        pen.rounded_rectangle(view.box(x + 6, y - TITLE_HEIGHT, x + width - 6, y + height), CORNER, body)
        pen.rounded_rectangle(view.box(x + 6, y - TITLE_HEIGHT, x + width - 6, y), CORNER, TITLE_BAR)
    paths = drawn_paths(workflow)
    for link in workflow["links"]:
        points = [view.point(*place) for place in paths[link[0]]]
        pen.line(points, LINKS.get(link[5], OTHER_LINK), LINE, joint="curve")
    left = MARGIN * OVERSAMPLING
    pen.text((left, left), heading, WORDS, _font(40))
    pen.text((left, left + 50 * OVERSAMPLING), words, FAINT_WORDS, _font(22))
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


class _View:
    """Canvas to picture: what the frames span, as large as fits below the words, and in the middle there."""

    def __init__(self, frames: list[list[float]]):
        left, top = min(frame[0] for frame in frames), min(frame[1] for frame in frames)
        width = max(frame[0] + frame[2] for frame in frames) - left
        height = max(frame[1] + frame[3] for frame in frames) - top
        across, down = SIDE - 2 * MARGIN, SIDE - TOP - MARGIN
        self.scale = min(across / width, down / height) * OVERSAMPLING
        self.x = MARGIN * OVERSAMPLING + (across * OVERSAMPLING - width * self.scale) / 2 - left * self.scale
        self.y = TOP * OVERSAMPLING + (down * OVERSAMPLING - height * self.scale) / 2 - top * self.scale

    def point(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.scale, self.y + y * self.scale

    def box(self, *corners: float) -> tuple[float, float, float, float]:
        return *self.point(*corners[:2]), *self.point(*corners[2:])


def _font(height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(height * OVERSAMPLING)
