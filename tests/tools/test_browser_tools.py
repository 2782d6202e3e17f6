"""What needs no browser of the tools that drive one: which browser is taken, and which nodes are drawn."""

import json
from pathlib import Path

import pytest
from sana_native.nodes import NODES
from sana_native.tools import browser, browser_screenshots
from sana_native.tools.browser_node_pictures import SCENES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A machine whose only programs are those that a test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)

    def put(name: str) -> str:
        program = tmp_path / name
        program.write_text("#!/bin/sh\n", encoding="utf-8")
        program.chmod(0o755)
        return str(program)

    return put


def test_the_named_browser_is_taken_before_those_on_the_path(programs, monkeypatch):
    chrome, own = programs("google-chrome"), programs("my-chromium")
    assert browser.find_chromium() == chrome
    monkeypatch.setenv("CHROMIUM", own)
    assert browser.find_chromium() == own


@pytest.mark.usefixtures("programs")
def test_a_machine_without_browser_is_told_what_to_install():
    with pytest.raises(browser.BrowserError, match="There is no Chromium on this machine; install the package chrom"):
        browser.find_chromium()


def test_a_named_browser_that_is_none_is_said(programs, monkeypatch):
    programs("chromium")
    monkeypatch.setenv("CHROMIUM", "/no/such/chrome")
    with pytest.raises(browser.BrowserError, match="CHROMIUM=/no/such/chrome is not a program; install"):
        browser.find_chromium()


def test_every_node_is_drawn_with_neighbours_and_inputs_that_exist():
    schemas = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}
    assert set(SCENES) == set(schemas)
    for kind, scene in SCENES.items():
        inputs = {item.id for item in schemas[kind].inputs}
        assert set(scene.before) | set(scene.widgets) <= inputs, kind
        assert all(output < len(schemas[kind].outputs) for output, *_ in scene.after), kind
        for node, name in [(node, name) for _, node, name in scene.after if node in schemas]:
            assert name in {item.id for item in schemas[node].inputs}, kind


def test_release_links_of_the_templates_lead_to_sites_the_page_trusts():
    """The page offers no download from anywhere else, nor of a file with another ending."""
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "workflows").glob("*.json")]
    models = [model for graph in graphs for node in graph["nodes"] for model in node["properties"].get("models", [])]
    assert models
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and model["name"].endswith((".safetensors", ".pth"))


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("nothing", 2)])
def test_screenshots_are_explained_and_a_wrong_name_is_told(word, code, capsys):
    with pytest.raises(SystemExit) as ended:
        browser_screenshots.main([word])
    told = capsys.readouterr()
    assert ended.value.code == code and "sprint_and_help" in told.out + told.err
