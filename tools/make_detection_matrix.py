"""Writes the matrix of docs/files.md: every released file of the families and files of other models, and the answers.

python -m tools.make_detection_matrix        needs a running environment (see tools/host.py)
"""

from __future__ import annotations

import re
from pathlib import Path

from .make_precision_table import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "files.md"
BEGIN, END = "<!-- detection: python -m tools.make_detection_matrix -->\n", "<!-- end of detection -->\n"


def matrix() -> str:
    """Two tables: what the loaders take, and what they refuse."""
    from sana_native.tests.support.known_files import COMPONENTS, FOREIGN_PATH, answers, foreign, refusal, released

    taken, refused = [], []
    for path, tensors in released().items():
        told = answers(path, tensors())
        taken += [[f"`{path}`", COMPONENTS[component], says] for component, (takes, says) in told.items() if takes]
    for name, tensors in foreign().items():
        shown = re.sub(r", which this version does not load", "", name)
        refused.append([shown, f"It {refusal(answers(FOREIGN_PATH, tensors()))}."])
    headings = (
        ["file", "loader", "what the log says it is"],
        ["file", "what the loader for its kind says, or all of them"],
    )
    return f"{table(headings[0], taken)}\n{table(headings[1], refused)}"


def page() -> str:
    """The whole page with the matrix as it is now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{matrix()}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    from demo.train.pack import prepare_imports

    prepare_imports()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
