"""Node Info: every node's help opens in both languages, with its picture."""

import json

import pytest
from sana_native.tests.browser.places import PACK, ROOT

pytestmark = pytest.mark.browser

_PLACE = """(kinds) => kinds.forEach((kind, index) => {
    const node = LiteGraph.createNode(kind);
    node.pos = [(index % 3) * 480, Math.floor(index / 3) * 560];  // narrow: the panel opens at the right
    app.graph.add(node);
})"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_nodes_help_opens_with_its_picture(open_tab, language):
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    tab = open_tab(language=language).close_templates()
    tab.page.evaluate(_PLACE, list(texts))
    tab.settle()
    tab.fit()
    nodes = tab.nodes()
    tab.open_help(nodes[0]["id"])
    for node in nodes:
        kind = node["type"]
        tab.select(node["id"])
        tab.panel.locator("h1", has_text=texts[kind]["display_name"]).wait_for()
        picture = tab.panel.locator("img").first
        picture.wait_for()
        assert f"/extensions/{PACK}/docs/{kind}/" in picture.get_attribute("src")
        tab.wait_for("(image) => image.complete && image.naturalWidth > 200", picture.element_handle())
    assert len(nodes) == len(texts) > 10
