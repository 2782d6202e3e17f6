"""Subgraph blueprints: found by name like a node, they put one whole node on the canvas, and it draws."""

import pytest
from sana_native.tests.browser.places import ROOT

pytestmark = pytest.mark.browser

BLUEPRINTS = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))
DEMO = "sana-native-demo/"
# The smallest that the block offers, and no more steps than show that it runs.
SMALL = {"model_name": DEMO, "text_encoder_name": DEMO, "vae_name": DEMO, "size": "512", "steps": 2}

_SHOW = """() => {
    const [block] = app.graph.nodes, preview = LiteGraph.createNode("PreviewImage");
    preview.pos = [block.pos[0] + block.size[0] + 60, block.pos[1]];
    app.graph.add(preview);
    block.connect(0, preview, 0);
    return preview.id;
}"""


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_by_its_name_and_draws(tab, name):
    results = tab.search(name)
    results.filter(has_text="Blueprint").filter(has_text=name).first.click()
    tab.wait_for("() => app.graph.nodes.length === 1")
    tab.settle()
    tab.page.mouse.move(500, 200)  # it hangs on the mouse until a click puts it down
    tab.page.mouse.click(500, 200)
    tab.settle()
    (block,) = tab.nodes()
    assert block["title"] == name and not tab.missing_types()
    for widget, value in SMALL.items():
        tab.set_widget(block["type"], widget, value)
    preview = tab.page.evaluate(_SHOW)
    (image,) = tab.run()
    shown = tab.node_image(preview)
    assert image["type"] == "temp" and (shown["width"], shown["height"]) == (512, 512)
    tab.fit()
