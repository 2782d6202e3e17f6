"""Templates in the browser: all in the dialog, all open whole, files that are missing listed with their links."""

import json
from pathlib import Path

import pytest
from sana_native.tests.browser.places import PACK, ROOT, SCREENSHOTS

pytestmark = pytest.mark.browser

TEMPLATES = {path.stem: path for path in sorted(ROOT.glob("*workflows/*.json"))}


def models_of(path: Path) -> dict[str, dict]:
    """Name -> link and folder of every file that a template says it needs."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = graph["nodes"] + [
        node for sub in graph.get("definitions", {}).get("subgraphs", []) for node in sub["nodes"]
    ]
    return {model["name"]: model for node in nodes for model in node.get("properties", {}).get("models", [])}


def show_errors(tab) -> None:
    tab.page.get_by_test_id("error-overlay-see-errors").click()
    tab.page.get_by_test_id("errors-summary-hero").wait_for()


def test_the_dialog_shows_every_template_with_its_thumbnail(open_tab):
    tab = open_tab()
    served = []
    tab.page.on("response", lambda answer: served.append(answer.url) if answer.ok else None)
    tab.open_templates(PACK)
    for name, path in TEMPLATES.items():
        card = tab.template_card(name)
        if path.with_suffix(".jpg").is_file():
            image = card.locator("img").first.element_handle()
            tab.wait_for("(image) => image.complete && image.naturalWidth > 0", image)
            # Without a picture of its own a card shows one of the host's.
            assert any(url.endswith(f"/workflow_templates/{PACK}/{name}.jpg") for url in served), name
    assert len(TEMPLATES) >= 4


def test_every_template_opens_with_all_its_nodes_known_and_its_missing_files_named(tab):
    wrong = {}
    for name, path in TEMPLATES.items():
        tab.open_template(PACK, name)
        if missing := tab.missing_types():
            wrong[name] = missing
        if models := models_of(path):
            show_errors(tab)
            listed = tab.panel.inner_text()
            wrong |= {f"{name}: {model}": listed for model in models if model not in listed}
            assert tab.panel.get_by_test_id("missing-node-card").count() == 0
        elif tab.page.get_by_test_id("error-overlay").is_visible():
            wrong[name] = tab.page.get_by_test_id("error-overlay").inner_text()
        tab.fit()
        tab.screenshot(SCREENSHOTS / f"template_{name}.png")
        if models:
            tab.page.get_by_role("button", name="Toggle properties panel").first.click()
    assert not wrong


def test_a_link_in_the_address_bar_opens_the_demo(open_tab):
    tab = open_tab(template=(PACK, "demo_txt2img"))
    graph = json.loads(TEMPLATES["demo_txt2img"].read_text(encoding="utf-8"))
    assert [node["type"] for node in tab.nodes()] == [node["type"] for node in graph["nodes"]]
    assert not tab.templates.is_visible()


def test_missing_files_have_buttons_that_lead_to_where_they_are(tab):
    asked = []
    # Nothing leaves this machine: the site answers with an empty page.
    tab.page.context.route(
        "https://huggingface.co/**", lambda route: (asked.append(route.request.url), route.fulfill(body=""))
    )
    tab.open_template(PACK, "sana_txt2img")
    show_errors(tab)
    models = models_of(TEMPLATES["sana_txt2img"])
    assert len(models) == 3
    for name, model in models.items():
        with tab.page.context.expect_page() as opened:
            tab.panel.get_by_role("button", name=f"Download {name}", exact=True).click()
        opened.value.close()
        assert asked[-1] == model["url"] and model["directory"] in tab.panel.inner_text()
