"""Writes workflows/*.json, the graphs that users open and share, and subgraphs/*.json, the blueprints.

python -m tools.make_workflows            needs a running environment (see tools/host.py)
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .comfy_server import ComfyServer
from .host import prepare_base
from .workflow_blueprint import build_blueprint
from .workflow_build import build
from .workflow_graphs import blueprints, graphs

ROOT = Path(__file__).resolve().parent.parent


def workflows(object_info: dict) -> dict[str, dict]:
    """Path below the root -> what the file holds."""
    shared = {
        f"workflows/{name}.json": build(graph.nodes, object_info, name=name, groups=graph.groups)
        for name, graph in graphs().items()
    }
    blocks = {
        f"subgraphs/{name}.json": build_blueprint(name, blueprint, object_info)
        for name, blueprint in blueprints().items()
    }
    return shared | blocks


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(prepare_base(Path(folder)), cpu=True) as server:
        written = workflows(server.object_info())
    for path, workflow in written.items():
        text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
