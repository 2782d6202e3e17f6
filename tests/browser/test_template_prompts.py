"""What the browser would run for each template is what our own reader of workflow files makes of it."""

import json

import pytest
from sana_native.tests.browser.places import ROOT
from sana_native.tools.workflow import to_api

pytestmark = pytest.mark.browser

TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
# The classic page unfolds their many advanced inputs: no node may lie below them. A frame with all that room would make
# the page draw the whole graph so small that it leaves out the text.
UNFOLDED = {"SanaNativeTrainLora", "SanaNativeTrainModel"}


def bare(prompt: dict) -> dict:
    """Without titles, which differ in language."""
    return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()}


def test_browser_queues_what_our_reader_makes_of_a_file_and_no_node_grows(tab, web_server):
    object_info = web_server.object_info()
    for path in TEMPLATES:
        graph = json.loads(path.read_text(encoding="utf-8"))
        tab.drop(path.name, path.read_bytes(), "application/json")
        assert bare(tab.prompt()) == bare(to_api(graph, object_info)), path.name
        shown = tab.page.evaluate("() => app.graph.nodes.map(({id, pos, size}) => [id, [...pos], [...size]])")
        saved = {node["id"]: (node["pos"], node["size"]) for node in graph["nodes"]}
        kinds = {node["id"]: node["type"] for node in graph["nodes"]}
        for number, place, size in shown:
            assert place == pytest.approx(saved[int(number)][0]), (path.name, number)
            width, height = saved[int(number)][1]
            assert size[0] <= width + 1, f"{path.name}: node {number} has grown"
            if kinds[int(number)] in UNFOLDED:
                left, right = place[0], place[0] + width
                below = [x < right and left < x + across and y > place[1] for (x, y), (across, _) in saved.values()]
                assert not any(below), f"{path.name}: a node lies below node {number}"
            else:
                assert size[1] <= height + 1, f"{path.name}: node {number} has grown"
