"""The two READMEs: they say the same, what they point at is there, and the messages they explain exist."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from sana_native.tools.workflow_files import DC_AE, GEMMA, SANA, SPRINT

ROOT = Path(__file__).resolve().parents[2]
PAGES = {language: (ROOT / name).read_text(encoding="utf-8") for language, name in
         {"en": "README.md", "zh": "README.zh.md"}.items()}  # fmt: skip
FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SWITCH = {"README.md", "README.zh.md"}
pages = pytest.mark.parametrize("language", PAGES)


def prose(text: str) -> str:
    return FENCE.sub("", text)


def sections(text: str) -> list[str]:
    """The text before the first second-level heading, then each such section."""
    return re.split(r"^## ", prose(text), flags=re.MULTILINE)


def tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells."""
    found = re.findall(r"(?:^\|.*\|$\n?)+", prose(text), re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in found]


def links(text: str) -> list[str]:
    return [target for target in LINK.findall(prose(text)) if not target.startswith("#") and target not in SWITCH]


def commands(text: str) -> list[str]:
    """What fenced blocks hold besides words: command lines without their remarks, folders and files."""
    lines = "".join(FENCE.findall(text)).splitlines()
    kept = [line.partition(" # ")[0].rstrip() if line.startswith("make") else line for line in lines]
    return [part for line in kept for part in re.findall(r"^make.*|^\w+/|\b[\w/]+\.py\b", line)]


def anchor(heading: str) -> str:
    """The anchor that hosts make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def numbers(text: str) -> Counter:
    return Counter(re.findall(r"\d+(?:\.\d+)?", text))


def test_both_have_the_same_headings_in_the_same_order():
    levels = {
        language: [len(mark) for mark in re.findall(r"^(#+) ", prose(text), re.M)] for language, text in PAGES.items()
    }
    assert levels["en"] == levels["zh"] and len(levels["en"]) > 10


def test_their_tables_have_the_same_rows_and_columns():
    shapes = {language: [[len(row) for row in table] for table in tables(text)] for language, text in PAGES.items()}
    assert shapes["en"] == shapes["zh"] and len(shapes["en"]) >= 6


def test_they_link_to_the_same_places():
    assert Counter(links(PAGES["en"])) == Counter(links(PAGES["zh"])) and len(links(PAGES["en"])) > 20


def test_they_name_the_same_commands_paths_and_messages():
    inline = {language: Counter(re.findall(r"`([^`]+)`", prose(text))) for language, text in PAGES.items()}
    assert inline["en"] == inline["zh"]
    assert commands(PAGES["en"]) == commands(PAGES["zh"]) and len(commands(PAGES["en"])) > 15


def test_every_section_gives_the_same_numbers():
    english, chinese = (sections(PAGES[language]) for language in ("en", "zh"))
    for ours, theirs in zip(english, chinese, strict=True):
        assert numbers(ours) == numbers(theirs), ours.splitlines()[0]


def test_each_leads_to_the_other():
    assert "](README.zh.md)" in PAGES["en"].split("## ")[0] and "](README.md)" in PAGES["zh"].split("## ")[0]


@pages
def test_what_they_link_to_is_there(language):
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", PAGES[language], re.MULTILINE)}
    for target in [*LINK.findall(prose(PAGES[language])), *re.findall(r'src="([^"]+)"', PAGES[language])]:
        path, _, place = target.partition("#")
        if not path:
            assert place in headings, target
        elif "://" not in path:
            assert (ROOT / path).exists(), target
            there = (ROOT / path).read_text(encoding="utf-8") if place else ""
            assert not place or place in {anchor(h) for h in re.findall(r"^#+ (.*)$", there, re.MULTILINE)}, target


def test_no_chinese_paragraph_is_broken_into_lines():
    """Two lines of Chinese are joined with a space that does not belong there."""
    mark = re.compile(r"[|#<!*-]|\d+\.|$")
    lines = prose(PAGES["zh"]).splitlines()
    pairs = [pair for pair in zip(lines, lines[1:], strict=False) if pair[0] and not pair[0].startswith("#")]
    assert len(pairs) > 50 and not [after for _, after in pairs if not mark.match(after)]


def test_files_to_download_are_those_of_the_workflows():
    table = next(table for table in tables(PAGES["en"]) if table[0][0] == "folder")
    offered = {(row[0], re.search(r"\[`(.+?)`\]\((.+?)\)", row[1]).groups()) for row in table[2:]}
    assert offered == {(f"`models/{f['directory']}`", (f["name"], f["url"])) for f in (SANA, SPRINT, GEMMA, DC_AE)}


def test_messages_that_are_explained_are_those_of_the_pack():
    table = next(table for table in tables(PAGES["en"]) if table[0][0] == "the message says")
    ours = [row[0] for row in table[2:] if "ComfyUI's own" not in row[0]]
    texts = [
        node.value
        for package in ("models", "nodes", "samplers")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    pieces = re.findall(r"`([^`]+)`", "\n".join(ours))
    assert len(pieces) > 8 and not [piece for piece in pieces if not any(piece in text for text in texts)]
