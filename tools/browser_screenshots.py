"""Photograph the host's page with the pack in it, for the README: docs/screenshots/*.jpg, in English.

make screenshots    (needs Chromium; a minute or two)
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .browser import Tab, open_chromium, serve_fresh
from .host import PACK_NAME

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "screenshots"
SCALE = 1.25
QUALITY = 85
# As a user sees it, less what moves or covers the graph; names and values stay readable in a small graph.
TIDY = {
    "Comfy.Canvas.SelectionToolbox": True,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.LinkMarkers": 0,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}


# The frame in which the graph may lie, in CSS pixels from the page's edges: beside the page's own bars.
LEFT, TOP, RIGHT, BOTTOM = 90, 130, 30, 30
_FILL = """([left, top, right, bottom]) => {
    const nodes = app.graph.nodes.map((node) => node.getBounding());
    const boxes = [...nodes, ...app.graph.groups.map((group) => group.boundingRect)];
    const x = Math.min(...boxes.map((box) => box[0])), y = Math.min(...boxes.map((box) => box[1]));
    const width = Math.max(...boxes.map((box) => box[0] + box[2])) - x;
    const height = Math.max(...boxes.map((box) => box[1] + box[3])) - y;
    const canvas = app.canvas.canvas.getBoundingClientRect(), ds = app.canvas.ds;
    ds.scale = Math.min((innerWidth - left - right) / width, (innerHeight - top - bottom) / height);
    ds.offset = [(left - canvas.x) / ds.scale - x, (top - canvas.y) / ds.scale - y];
}"""


def fill(tab: Tab, right: float = RIGHT) -> None:
    """Show the graph as large as the page allows."""
    tab.page.evaluate(_FILL, [LEFT, TOP, right, BOTTOM])
    tab.settle()


@dataclass(frozen=True)
class Shot:
    """A page of `size` CSS pixels, and what is done in it before the photograph."""

    size: tuple[int, int]
    prepare: Callable[[Tab], None]


def finished_demo(tab: Tab) -> None:
    """The demo's graph after a run: picture in its node, last preview in the sampler's."""
    tab.open_template(PACK_NAME, "demo_txt2img")
    tab.close_first_workflow()
    tab.run()
    fill(tab)
    tab.wait_for_no_toast()


def finished_sprint(tab: Tab) -> None:
    """The same of the demo in two steps, with the help of its sampler open."""
    tab.open_template(PACK_NAME, "demo_sprint")
    tab.close_first_workflow()
    tab.run()
    tab.open_help(tab.node_id("SanaNativeSampler"))
    # The toolbox of the selected node would lie over the frames' titles; the help stays while the node is selected.
    tab.page.evaluate("() => app.extensionManager.setting.set('Comfy.Canvas.SelectionToolbox', false)")
    panel = tab.panel.bounding_box()
    fill(tab, right=panel["width"] + RIGHT)
    tab.wait_for_no_toast()


def our_templates(tab: Tab) -> None:
    """The templates' dialog at the pack's own."""
    tab.open_templates(PACK_NAME)
    tab.wait_for(
        """() => [...document.querySelectorAll("[data-testid^=template-workflow-] img")]
            .every((image) => image.complete && image.naturalWidth)"""
    )


SHOTS = {
    "demo": Shot((1600, 780), finished_demo),
    "sprint_and_help": Shot((1600, 780), finished_sprint),
    "templates": Shot((1600, 860), our_templates),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.browser_screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SHOTS)}; without one all")
    names = parser.parse_args(arguments).names
    if unknown := [name for name in names if name not in SHOTS]:
        parser.error(f"{unknown[0]} is no screenshot; give one of {', '.join(SHOTS)}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with serve_fresh() as server, open_chromium() as browser:
        for name in names or SHOTS:
            shot = SHOTS[name]
            tab = Tab(browser, server.url, size=shot.size, scale=SCALE, settings=TIDY)
            shot.prepare(tab)
            tab.page.mouse.move(0, 0)
            tab.page.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
            picture.save(FOLDER / f"{name}.jpg", quality=QUALITY, optimize=True, progressive=True)
            tab.close()


if __name__ == "__main__":
    main()
