"""Training from a template: the curve and the samples appear on the node while it runs, and cancel keeps the LoRA."""

import pytest
from sana_native.tests.browser.places import PACK, SCREENSHOTS
from sana_native.tests.browser.test_runs import pixels

pytestmark = pytest.mark.browser

TEMPLATE, NODE = "demo_train_lora", "SanaNativeTrainLora"
CURVE = (0x1F, 0x4E, 0x8C)  # the smoothed line


def open_training(tab, **widgets) -> None:
    tab.open_template(PACK, TEMPLATE)
    for name, value in widgets.items():
        tab.set_widget(NODE, name, value)


def has_curve(file: bytes) -> bool:
    return bool((abs(pixels(file) - CURVE).max(axis=-1) < 60).sum() > 50)


def photograph(tab, moment: str) -> None:
    """In a small window and in a large one."""
    for size in ((1366, 768), (1920, 1080)):
        tab.page.set_viewport_size({"width": size[0], "height": size[1]})
        tab.fit()
        tab.screenshot(SCREENSHOTS / f"training_{size[0]}_{moment}.png")


def test_a_template_trains_with_its_curve_and_samples_on_the_node(tab, web_server):
    open_training(tab, steps=20, sample_every=10, name="browser")
    tab.press_run()
    node = str(tab.node_id(NODE))
    tab.wait_for("(node) => seen.previews.filter((one) => String(one.displayNodeId) === node).length >= 2", node, 600)
    photograph(tab, "during")
    assert tab.wait_for_end(600)["kind"] == "execution_success"
    previews = [file for kind, file in tab.previews() if kind == node]
    assert pixels(previews[0]).shape[0] > pixels(previews[0]).shape[1], "the sample stands over the curve"
    assert has_curve(previews[-1])
    photograph(tab, "after")
    texts = [text for text in tab.page.evaluate(TEXTS, int(node)) if "step 20 of 20" in text]
    assert texts and "loss" in texts[0]
    (shown,) = (event["output"]["images"] for event in tab.events("executed") if event["display_node"] == node)
    before, after, curve = (web_server.fetch_image(image) for image in shown)
    assert pixels(before).shape == pixels(after).shape == (256, 256, 3) and (pixels(before) != pixels(after)).any()
    assert has_curve(curve)
    assert (web_server.base_directory / "models" / "loras" / "browser_00001.safetensors").is_file()


TEXTS = "(id) => app.graph.getNodeById(id).widgets.map((widget) => String(widget.value))"


def test_cancel_keeps_the_lora_so_far(tab, web_server):
    """Loading the model's copy has a progress of its own, with another total."""
    open_training(tab, steps=1000, sample_every=0, name="cancelled")
    tab.press_run()
    tab.wait_for(
        "() => seen.events.filter((event) => event.kind === 'progress' && event.max === 1000).length > 2", None, 600
    )
    tab.page.get_by_role("button", name="Cancel current run").click()
    tab.wait_for_end(600)
    last = [event["value"] for event in tab.events("progress") if event["max"] == 1000][-1]
    assert 0 < last < 1000
    assert (web_server.base_directory / "models" / "loras" / "cancelled_00001.safetensors").is_file()
