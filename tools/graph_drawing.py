"""A workflow as a small picture of its graph: frames, nodes and colored links, under two lines of words."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from .workflow import BYPASSED
from .workflow_build import NOTES, TITLE_HEIGHT

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
SLOT, STEPS = 20, 24


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
    for link in workflow["links"]:
        curve = view.curve(nodes[link[1]], link[2], nodes[link[3]], link[4])
        pen.line(curve, LINKS.get(link[5], OTHER_LINK), LINE, joint="curve")
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

    def curve(self, source: dict, source_slot: int, target: dict, target_slot: int) -> list[tuple[float, float]]:
        """From the right edge of one node to the left edge of another."""
        start = (source["pos"][0] + source["size"][0], source["pos"][1] + SLOT * (source_slot + 0.5))
        end = (target["pos"][0], target["pos"][1] + SLOT * (target_slot + 0.5))
        reach = max(abs(end[0] - start[0]) / 3, 40)
        points = []
        for step in range(STEPS + 1):
            t = step / STEPS
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            xs = (start[0], start[0] + reach, end[0] - reach, end[0])
            ys = (start[1], start[1], end[1], end[1])
            points.append(self.point(*(sum(w * v for w, v in zip(weights, axis, strict=True)) for axis in (xs, ys))))
        return points


def _font(height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(height * OVERSAMPLING)
