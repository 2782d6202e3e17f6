"""Writes locales/en/nodeDefs.json from the schemas, and each help page's copy for languages that have none.

python -m tools.make_locales            needs a running environment (see tools/host.py)

Not here: locales/zh/nodeDefs.json and web/docs/*/*.md, which are written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCALES = ROOT / "locales"
HELP = ROOT / "web" / "docs"
LANGUAGES = ("en", "zh")
SEED_WIDGET = "control_after_generate"  # the browser adds it below a seed and looks its name up like an input's


def english() -> dict[str, dict]:
    """Names and tooltips of all nodes as the browser looks them up: inputs by id, outputs by number."""
    from sana_native.nodes import NODES

    return {schema.node_id: describe_node(schema) for schema in (node.GET_SCHEMA() for node in NODES)}


def describe_node(schema) -> dict:
    inputs = {}
    for item in schema.inputs:
        inputs[item.id] = {"name": item.display_name or item.id, "tooltip": item.tooltip}
        if getattr(item, SEED_WIDGET, None):
            inputs[SEED_WIDGET] = {"name": SEED_WIDGET.replace("_", " ")}
    outputs = {
        str(i): {"name": item.display_name or item.get_io_type(), "tooltip": item.tooltip}
        for i, item in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": inputs,
        "outputs": outputs,
    }


def locale_file(language: str) -> Path:
    return LOCALES / language / "nodeDefs.json"


def help_page(node_id: str, language: str | None = None) -> Path:
    """The page of a node in a language; without one, what the browser shows where it finds no page in its own."""
    return HELP / node_id / f"{language}.md" if language else HELP / f"{node_id}.md"


def english_text() -> str:
    return json.dumps(english(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    from demo.train.pack import prepare_imports

    prepare_imports()
    locale_file("en").write_text(english_text(), encoding="utf-8")
    for node_id in english():
        page = help_page(node_id, "en").read_text(encoding="utf-8")
        help_page(node_id).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
