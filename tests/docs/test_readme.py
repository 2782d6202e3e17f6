"""READMEs and guides: both languages say the same, what they point at is there, the messages they explain exist."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from sana_native.models.registry import FAMILIES, describe_file
from sana_native.tools.workflow_files import DC_AE, GEMMA, SANA, SPRINT

ROOT = Path(__file__).resolve().parents[2]
PATHS = {
    "README": {"en": "README.md", "zh": "README.zh.md"},
    "guide": {"en": "docs/guide.md", "zh": "docs/guide.zh.md"},
}
TEXTS = {
    page: {language: (ROOT / path).read_text(encoding="utf-8") for language, path in paths.items()}
    for page, paths in PATHS.items()
}
PAGES = TEXTS["README"]
# Every page in Markdown that this repository has of its own, without those written by a run.
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "docs", "benchmarks", "benchmarks/results", "demo")
    for path in (ROOT / folder).glob("*.md")
)
FENCE = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SWITCH = {"README.md", "README.zh.md", "guide.md", "guide.zh.md"}
every_page = pytest.mark.parametrize("page", TEXTS)


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
    """What a page points at, a translated page under its English name."""
    found = [target for target in LINK.findall(prose(text)) if not target.startswith("#") and target not in SWITCH]
    return [target.replace(".zh.md", ".md") for target in found]


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


@every_page
def test_both_languages_have_the_same_headings_in_the_same_order(page):
    levels = {
        language: [len(mark) for mark in re.findall(r"^(#+) ", prose(text), re.M)]
        for language, text in TEXTS[page].items()
    }
    assert levels["en"] == levels["zh"] and len(levels["en"]) >= 6


@every_page
def test_their_tables_have_the_same_rows_and_columns(page):
    found = {language: tables(text) for language, text in TEXTS[page].items()}
    shapes = {language: [[len(row) for row in table] for table in found[language]] for language in found}
    assert shapes["en"] == shapes["zh"] and len(shapes["en"]) >= 3


@pytest.mark.parametrize(("page", "least"), [("README", 20), ("guide", 2)])
def test_they_link_to_the_same_places(page, least):
    english, chinese = (links(TEXTS[page][language]) for language in ("en", "zh"))
    assert Counter(english) == Counter(chinese) and len(english) >= least


@every_page
def test_they_name_the_same_commands_paths_and_messages(page):
    inline = {language: Counter(re.findall(r"`([^`]+)`", prose(text))) for language, text in TEXTS[page].items()}
    assert inline["en"] == inline["zh"] and len(inline["en"]) > 10
    assert commands(TEXTS[page]["en"]) == commands(TEXTS[page]["zh"])


@every_page
def test_every_section_gives_the_same_numbers(page):
    english, chinese = (sections(TEXTS[page][language]) for language in ("en", "zh"))
    for ours, theirs in zip(english, chinese, strict=True):
        assert numbers(ours) == numbers(theirs), ours.splitlines()[0]


@every_page
def test_each_leads_to_the_other(page):
    for language, other in (("en", "zh"), ("zh", "en")):
        assert f"]({Path(PATHS[page][other]).name})" in TEXTS[page][language].split("## ")[0]


def test_the_readme_is_short_says_how_to_install_and_how_to_test():
    """One screen of words: about 900 of them, addresses and file names of links left out."""
    text = re.sub(r"\]\([^)]+\)", "]", PAGES["en"])
    assert len(PAGES["en"].splitlines()) <= 120 and sum(bool(re.search(r"\w", part)) for part in text.split()) <= 950
    assert re.search(r"^git clone https://\S+ sana-native$", PAGES["en"], re.MULTILINE)
    assert {"make test", "make test-browser", "make test-heavy"} <= set(commands(PAGES["en"]))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_page_links_to_is_there(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    folder = (ROOT / name).parent
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in [*LINK.findall(prose(text)), *re.findall(r'src="([^"]+)"', text)]:
        path, _, place = target.partition("#")
        if not path:
            assert place in headings, target
        elif "://" not in path:
            assert (folder / path).exists(), target
            there = (folder / path).read_text(encoding="utf-8") if place else ""
            assert not place or place in {anchor(h) for h in re.findall(r"^#+ (.*)$", there, re.MULTILINE)}, target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_that_a_page_names_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    named = re.findall(r"`((?:models|nodes|samplers|tools|benchmarks|demo|tests)/[\w/]+\.py)`", text)
    assert not [path for path in named if not (ROOT / path).is_file()]


@every_page
def test_no_chinese_paragraph_is_broken_into_lines(page):
    """Two lines of Chinese are joined with a space that does not belong there."""
    mark = re.compile(r"[|#<!*>-]|\d+\.|$")
    lines = prose(TEXTS[page]["zh"]).splitlines()
    pairs = [pair for pair in zip(lines, lines[1:], strict=False) if pair[0] and not pair[0].startswith("#")]
    assert len(pairs) > 40 and not [after for _, after in pairs if not mark.match(after)]


def test_files_to_download_are_those_of_the_workflows():
    table = next(table for table in tables(PAGES["en"]) if table[0][0] == "folder")
    offered = {(row[0], *found.groups()) for row in table[2:] if (found := re.search(r"\[`(.+?)`\]\((.+?)\)", row[1]))}
    assert offered == {(f"`models/{f['directory']}`", f["name"], f["url"]) for f in (SANA, SPRINT, GEMMA, DC_AE)}


def test_the_file_table_leads_with_the_small_diffusers_files():
    table = next(table for table in tables(PAGES["en"]) if table[0][0] == "folder")[2:]
    assert all("_diffusers](https://huggingface.co/" in row[1] and row[3] == "3.2 GB" for row in table[:2])
    assert [row[3] for row in table if ".pth" in row[1]] == ["6.4 GB", "6.5 GB"]


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
    texts += [describe_file(dict.fromkeys(family.marks)) for family in FAMILIES]
    pieces = re.findall(r"`([^`]+)`", "\n".join(ours))
    assert len(pieces) > 8 and not [piece for piece in pieces if not any(piece in text for text in texts)]
