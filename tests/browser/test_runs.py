"""Pressing Run: the picture is on the canvas, previews form in its colors, cancel works, a shared file says it all."""

import io

import numpy as np
import pytest
from PIL import Image
from sana_native.tests.browser.places import PACK, ROOT
from sana_native.tools.browser import post_json

pytestmark = pytest.mark.browser

DEMO = ROOT / "workflows" / "demo_txt2img.json"
# A training and a drawing have tests of their own: `test_training.py`, `test_scribble.py`.
DEMOS = sorted(
    path.stem
    for path in ROOT.glob("*workflows/demo_*.json")
    if "train" not in path.stem and path.stem != "demo_scribble"
)
LIKE_THE_PICTURE = 0.8  # correlation of the last preview with the picture, both at 16x16; 0.96 was measured


def pixels(file: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """A picture's file as (H, W, 3) in [0, 255], shrunk to `size` when given."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    return np.asarray(image.resize(size, Image.Resampling.BOX) if size else image, dtype=np.float32)


def colorful(file: bytes) -> float:
    """The share of a picture's pixels that are far from grey."""
    image = pixels(file)
    return float((image.max(axis=-1) - image.min(axis=-1) > 60).mean())


def correlation(one: bytes, other: bytes) -> float:
    return float(np.corrcoef(pixels(one, (16, 16)).ravel(), pixels(other, (16, 16)).ravel())[0, 1])


def open_demo(tab, **sampler) -> None:
    tab.drop("demo.json", DEMO.read_bytes(), "application/json")
    for name, value in sampler.items():
        tab.set_widget("SanaNativeSampler", name, value)


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_template_runs_to_a_picture_on_the_canvas(tab, web_server, tmp_path, name):
    tab.open_template(PACK, name)
    tab.fit()
    images = tab.run(seconds=300)
    shown = [event["display_node"] for event in tab.events("executed") if (event["output"] or {}).get("images")]
    assert images and shown
    for node_id in shown:
        in_node = tab.node_image(node_id)
        file = web_server.fetch_image(images[shown.index(node_id)])
        assert (in_node["height"], in_node["width"]) == pixels(file).shape[:2]
        assert colorful(file) > 0.05
        tab.settle()
        assert colorful(tab.screenshot(tmp_path / "node.png", clip=tab.box(node_id))) > 0.01


def test_the_pages_new_nodes_show_preview_and_picture_too(open_tab):
    """The setting "Nodes 2.0": nodes are elements of the page, not drawings."""
    tab = open_tab(settings={"Comfy.VueNodes.Enabled": True}).close_templates()
    open_demo(tab, steps=3)
    (image,) = tab.run()
    shown = {}
    for kind in ("SanaNativeSampler", "SaveImage"):
        picture = tab.page.locator(f'[data-node-id="{tab.node_id(kind)}"] img').first
        tab.wait_for("(image) => image.complete && image.naturalWidth > 100", picture.element_handle())
        shown[kind] = picture.get_attribute("src")
    assert shown["SanaNativeSampler"].startswith("blob:") and image["filename"] in shown["SaveImage"]


def test_a_node_without_a_picture_has_no_color(tab, tmp_path):
    """What the test above sees on the canvas is not the node itself."""
    open_demo(tab)
    tab.fit()
    assert colorful(tab.screenshot(tmp_path / "node.png", clip=tab.box(tab.node_id("SaveImage")))) < 0.005


def test_json_and_png_dropped_elsewhere_give_the_same_prompt_and_the_same_picture(open_tab, web_server):
    tab = open_tab().close_templates()
    open_demo(tab, seed=20260131, steps=4, cfg=2.5)
    tab.set_widget("SanaNativeGemmaEncode", "prompt", "a yellow star on a green background")
    wanted, exported = tab.prompt(), tab.export()
    (image,) = tab.run()
    picture = web_server.fetch_image(image)
    post_json(f"{web_server.url}/free", {"unload_models": True, "free_memory": True})

    friend = open_tab().close_templates()
    friend.drop("shared.json", exported, "application/json")
    assert friend.prompt() == wanted
    friend.drop("shared.png", picture, "image/png")
    assert friend.prompt() == wanted
    (again,) = friend.run()
    assert again != image and not friend.events("execution_cached")[0]["nodes"]
    assert (pixels(web_server.fetch_image(again)) == pixels(picture)).all()


def test_a_preview_comes_at_every_step_and_ends_in_the_colors_of_the_picture(tab, web_server):
    open_demo(tab, seed=3, steps=8)
    sampler = tab.node_id("SanaNativeSampler")
    (image,) = tab.run()
    previews = tab.previews()
    assert [node for node, _ in previews] == [str(sampler)] * 8
    assert tab.node_image(sampler)["src"].startswith("blob:")
    picture = web_server.fetch_image(image)
    assert correlation(previews[-1][1], picture) > LIKE_THE_PICTURE


def test_cancel_stops_sampling_and_the_next_run_draws(tab):
    open_demo(tab, steps=1000)
    tab.press_run()
    tab.wait_for("() => seen.events.filter((event) => event.kind === 'progress' && event.max === 1000).length > 2")
    tab.page.get_by_role("button", name="Cancel current run").click()
    end = tab.wait_for_end()
    assert (end["kind"], end["node_type"]) == ("execution_interrupted", "SanaNativeSampler")
    assert tab.events("progress")[-1]["value"] < 1000
    tab.set_widget("SanaNativeSampler", "steps", 3)
    assert len(tab.run()) == 1
