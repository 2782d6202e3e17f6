"""A graph of ComfyUI_ExtraModels dropped on the canvas: its nodes are offered ours, and then it runs."""

import json

import pytest

pytestmark = pytest.mark.browser

DEMO = "sana-native-demo/"
# Type, what its inputs are wired to, its one output, its widgets, in the order of the old pack's saved graphs.
OLD = [
    ("SanaCheckpointLoader", {}, "model", "MODEL", [DEMO, "SanaMS_1600M_P1_D20"]),
    ("GemmaLoader", {}, "GEMMA", "GEMMA", [DEMO, "cpu", "default"]),
    ("ExtraVAELoader", {}, "VAE", "VAE", [DEMO, "dcae-f32c32-sana-1.0", "BF16"]),
    ("SanaTextEncode", {"GEMMA": 2}, "CONDITIONING", "CONDITIONING", ["a red apple on a blue background"]),
    ("GemmaTextEncode", {"GEMMA": 2}, "CONDITIONING", "CONDITIONING", ["blurry"]),
    ("EmptySanaLatentImage", {}, "LATENT", "LATENT", [128, 96, 1]),
    (
        "KSampler",
        {"model": 1, "positive": 4, "negative": 5, "latent_image": 6},
        "LATENT",
        "LATENT",
        [7, "fixed", 4, 4.5, "euler", "normal", 1.0],
    ),
    ("VAEDecode", {"samples": 7, "vae": 3}, "IMAGE", "IMAGE", []),
    ("SaveImage", {"images": 8}, None, None, ["old"]),
]
NEW = {
    "SanaCheckpointLoader": "SanaNativeModelLoader",
    "GemmaLoader": "SanaNativeGemmaLoader",
    "ExtraVAELoader": "SanaNativeDCAELoader",
    "SanaTextEncode": "SanaNativeGemmaEncode",
    "GemmaTextEncode": "SanaNativeGemmaEncode",
    "EmptySanaLatentImage": "SanaNativeEmptyLatent",
}


def old_graph() -> dict:
    nodes, links = [], []
    for number, (kind, wires, name, output, widgets) in enumerate(OLD, 1):
        inputs = []
        for slot, (wire, source) in enumerate(wires.items()):
            links.append([len(links) + 1, source, 0, number, slot, OLD[source - 1][3]])
            inputs.append({"name": wire, "type": links[-1][5], "link": len(links)})
        outputs = [{"name": name, "type": output, "links": []}] if name else []
        place = [(number - 1) % 3 * 420, (number - 1) // 3 * 320]
        nodes.append({"id": number, "type": kind, "pos": place, "size": [320, 200], "inputs": inputs,
                      "outputs": outputs, "widgets_values": widgets, "properties": {}})  # fmt: skip
    for number, source, *_ in links:
        nodes[source - 1]["outputs"][0]["links"].append(number)
    return {"version": 0.4, "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links,
            "groups": [], "config": {}, "extra": {}}  # fmt: skip


def test_nodes_of_extramodels_are_offered_ours_and_the_graph_then_runs(tab):
    tab.drop("old.json", json.dumps(old_graph()).encode(), "application/json")
    tab.page.get_by_test_id("error-overlay-see-errors").click()
    tab.panel.get_by_role("button", name="Replace All").wait_for()
    offered = tab.panel.inner_text()
    assert all(old in offered and f"will be replaced by: {new}" in offered for old, new in NEW.items())
    tab.panel.get_by_role("button", name="Replace All").click()
    tab.wait_for("(old) => !app.graph.nodes.some((node) => old.includes(node.type))", list(NEW))
    assert [node["type"] for node in tab.nodes()] == [NEW.get(kind, kind) for kind, *_ in OLD]
    prompt = tab.prompt()
    assert prompt["4"]["inputs"]["prompt"] == "a red apple on a blue background"
    assert (prompt["6"]["inputs"]["width"], prompt["6"]["inputs"]["height"]) == (128, 96)
    if not tab.can_draw():  # comfyui-frontend-package 1.58.1: docs/guide.md says to load the page again
        tab.reload()
        assert [node["type"] for node in tab.nodes()] == [NEW.get(kind, kind) for kind, *_ in OLD]
    (image,) = tab.run()
    shown = tab.node_image(9)
    assert image["filename"].startswith("old") and (shown["width"], shown["height"]) == (128, 96)
