"""The first minute: the page loads, typing "sana" finds the nodes, hovering says what a widget does."""

import json
import re

import pytest
from comfy.cli_args import args
from sana_native.tests.browser.places import ROOT
from sana_native.tools.browser import Tab
from sana_native.tools.comfy_server import ComfyServer

pytestmark = pytest.mark.browser


def without_address(errors: list[tuple[str, str]]) -> set[tuple[str, str]]:
    return {tuple(re.sub(r"http://[\w.]+:\d+", "", part) for part in error) for error in errors}


@pytest.fixture(scope="module")
def errors_without_us(chromium, tmp_path_factory):
    """What the page of a host without any pack puts on the console as errors."""
    with ComfyServer(tmp_path_factory.mktemp("plain"), ["--disable-all-custom-nodes"], cpu=args.cpu) as server:
        plain = Tab(chromium, server.url)
        plain.close_templates()
        plain.close()
        return without_address(plain.errors)


def names(language: str) -> dict[str, str]:
    """Node id -> the name it has in the browser."""
    path = ROOT / "locales" / language / "nodeDefs.json"
    return {node: texts["display_name"] for node, texts in json.loads(path.read_text(encoding="utf-8")).items()}


def test_the_pack_adds_no_error_to_the_console(tab, errors_without_us):
    assert errors_without_us and without_address(tab.errors) <= errors_without_us


@pytest.mark.parametrize("language", ["en", "zh"])
def test_typing_sana_finds_every_node(open_tab, language):
    tab = open_tab(language=language).close_templates()
    results = tab.search("sana")
    wanted = set(names(language).values())
    tab.wait_for("(least) => document.querySelectorAll('[data-testid=result-item]').length >= least", len(wanted))
    found = {text.splitlines()[0] for text in results.all_inner_texts()}
    assert len(wanted) > 10 and wanted <= found


def test_a_widget_tells_what_it_does_when_the_mouse_rests_on_it(tab):
    tab.drop("graph.json", (ROOT / "workflows" / "sana_txt2img.json").read_bytes(), "application/json")
    tab.hover_widget("SanaNativeModelLoader", "shift")
    tip = tab.page.locator(".node-tooltip")
    tip.wait_for()
    texts = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert tip.inner_text() == texts["SanaNativeModelLoader"]["inputs"]["shift"]["tooltip"]
