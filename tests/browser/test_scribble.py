"""Drawing in the host's Painter: a stroke reaches the server, and the image of the demo's ControlNet follows it."""

import io
import json
import math
import time

import numpy as np
import pytest
from PIL import Image
from sana_native.tests.browser.places import PACK, SCREENSHOTS
from sana_native.tools.workflow_files import DEMO_SPRINT_CONTROLNET_FOLDER

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not DEMO_SPRINT_CONTROLNET_FOLDER.is_dir(),
        reason="The demo's ControlNet for SANA-Sprint is not trained: python -m demo.train.controlnet.",
    ),
]

CIRCLE = [(0.5 + 0.3 * math.cos(0.2 * i), 0.5 + 0.3 * math.sin(0.2 * i)) for i in range(33)]
DOTS = [(0.5, 0.5), (0.4, 0.5), (0.6, 0.5), (0.5, 0.4), (0.5, 0.6)]
# Whether the node shows another file than at the last call: where nothing has changed, a run gives the same again.
_OTHER_IMAGE = """(id) => {
    const image = document.querySelector(`[data-node-id="${id}"] img`);
    if (!image?.complete || !image.naturalWidth) return false;
    const file = new URL(image.src).searchParams.get("filename");
    if (!file || file === window.lastShown) return false;
    window.lastShown = file;
    return true;
}"""


@pytest.fixture
def tab(open_tab):
    """The template on the screen of a small notebook, in Nodes 2.0: elsewhere the Painter does not draw."""
    tab = open_tab(size=(1366, 768), settings={"Comfy.VueNodes.Enabled": True}).close_templates()
    tab.open_template(PACK, "demo_scribble")
    tab.page.get_by_test_id("painter-canvas").wait_for()
    return tab


def saved(tab, server, kind: str) -> np.ndarray:
    """The last picture (H, W, 3) in [0, 255] that a node of that type gave."""
    node = str(tab.node_id(kind))
    image = [event for event in tab.events("executed") if event["node"] == node][-1]["output"]["images"][0]
    return np.asarray(Image.open(io.BytesIO(server.fetch_image(image))).convert("RGB")).astype(int)


def overlaps(one: dict, other: dict) -> bool:
    return (
        one["x"] < other["x"] + other["width"]
        and other["x"] < one["x"] + one["width"]
        and one["y"] < other["y"] + other["height"]
        and other["y"] < one["y"] + one["height"]
    )


@pytest.mark.parametrize("size", [(1366, 768), (1920, 1080)])
def test_the_nodes_lie_beside_each_other_with_the_painter_open(open_tab, size):
    tab = open_tab(size=size, settings={"Comfy.VueNodes.Enabled": True}).close_templates()
    tab.open_template(PACK, "demo_scribble")
    canvas = tab.page.get_by_test_id("painter-canvas").bounding_box()
    assert min(canvas["width"], canvas["height"]) > 0.1 * size[0] and abs(canvas["width"] - canvas["height"]) < 2
    boxes = [element_box(tab, node["id"]) for node in tab.nodes()]
    assert not [(a, b) for number, a in enumerate(boxes) for b in boxes[number + 1 :] if overlaps(a, b)]
    assert all(0 <= box["x"] and box["x"] + box["width"] <= size[0] and box["y"] >= 0 for box in boxes)
    assert all(box["y"] + box["height"] <= size[1] for box in boxes)


def element_box(tab, node_id: int | str) -> dict:
    return tab.page.locator(f'[data-node-id="{node_id}"]').first.bounding_box()


def test_a_drawing_reaches_the_server_and_another_gives_another_image(tab, web_server):
    tab.paint(CIRCLE)
    tab.run(seconds=600)
    drawing, first = saved(tab, web_server, "Painter"), saved(tab, web_server, "PreviewImage")
    assert drawing.shape == (256, 256, 3) and (drawing[128, 200:210] > 250).any(), "the circle's right side"
    assert 0.02 < (drawing > 250).mean() < 0.2 and not drawing[100:156, 100:156].any(), "nothing but the line"
    assert first.shape == (256, 256, 3) and first.std() > 20
    tab.paint([(0.1, 0.1), (0.9, 0.1)])
    tab.run(seconds=600)
    assert (saved(tab, web_server, "Painter") > 250).sum() > (drawing > 250).sum()
    assert np.abs(saved(tab, web_server, "PreviewImage") - first).mean() > 0.5
    tab.page.get_by_test_id("painter-clear-button").click()
    tab.run(seconds=600)
    assert not saved(tab, web_server, "Painter").any()


def test_with_run_instant_the_image_follows_the_drawing(tab, web_server):
    """What it takes from a stroke to the shown image is written down, not asserted: it is the machine's."""
    preview = tab.node_id("PreviewImage")
    tab.paint(CIRCLE)
    tab.run(seconds=600)
    tab.wait_for(_OTHER_IMAGE, preview)
    tab.choose_run("Run (Instant)")
    tab.press_run()
    seconds = []
    for dot in DOTS:
        begun = time.monotonic()
        tab.paint([dot])
        tab.wait_for(_OTHER_IMAGE, preview, 600)
        seconds.append(time.monotonic() - begun)
    tab.page.get_by_role("button", name="Stop Run (Instant)").click()
    drawing = saved(tab, web_server, "Painter")
    assert all(drawing[int(256 * y), int(256 * x)].min() > 250 for x, y in DOTS)
    figures = {
        "seconds from a stroke to its image": [round(value, 3) for value in seconds],
        "images per second": round(len(seconds) / sum(seconds), 2),
    }
    (SCREENSHOTS / "demo_scribble_speed.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
