"""Help pages and translations: every node has them in English and Chinese, and they say what the code does."""

import ast
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from sana_native.models.dc_ae.memory_estimate import Workload
from sana_native.models.registry import FAMILIES, describe_file
from sana_native.models.runtime.precision import Request, sana_precision
from sana_native.models.sana.resolution import bin_size
from sana_native.nodes import NODES
from sana_native.nodes.files import BUNDLED_NAME
from sana_native.nodes.loaders import DTYPES
from sana_native.samplers.registration import SAMPLERS, SCHEDULERS
from sana_native.samplers.schedules import get_sigmas_flow_dpm
from sana_native.tools import make_precision_table
from sana_native.tools.make_locales import LANGUAGES, SEED_WIDGET, english_text, help_page, locale_file

ROOT = Path(__file__).resolve().parents[2]
HOST = Path(folder_paths.__file__).parent
SCHEMAS = {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in NODES)}


@dataclass(frozen=True)
class Words:
    """What the pages of a language have in common."""

    sections: tuple[str, ...]  # all that every page has, in this order
    empty: str
    file: str
    range: str

    @property
    def inputs(self) -> str:
        return self.sections[0]

    @property
    def outputs(self) -> str:
        return self.sections[1]

    @property
    def errors(self) -> str:
        return self.sections[3]


WORDS = {
    "en": Words(
        ("Inputs", "Outputs", "Example", "Errors", "See also"),
        "empty",
        "a file of the list",
        "`{}` ({} to {}",
    ),
    "zh": Words(("输入", "输出", "示例", "报错", "相关节点"), "空", "列表中的文件", "`{}`（{} 到 {}"),
}
# In backticks like our own names, but the host's: sockets of SamplerCustom, samplers, values, parts of file names.
OTHER_NAMES = {"sampler", "sigmas", "dpmpp_2m", "dpmpp_2m_sde", "euler", "lcm", "simple", "elm", "it", "false", "true"}
CJK = re.compile(r"[\u4e00-\u9fff]")

every_node = pytest.mark.parametrize("node_id", SCHEMAS)
every_language = pytest.mark.parametrize("language", LANGUAGES)


@cache
def page(node_id: str, language: str) -> str:
    return help_page(node_id, language).read_text(encoding="utf-8")


@cache
def locale(language: str) -> dict:
    return json.loads(locale_file(language).read_text(encoding="utf-8"))


def sections(node_id: str, language: str) -> dict[str, str]:
    head, *rest = re.split(r"^## (.+)\n", page(node_id, language), flags=re.MULTILINE)
    return {"": head} | dict(zip(rest[::2], rest[1::2], strict=True))


def table_rows(text: str) -> list[list[str]]:
    """Cells of the rows below a table's head, and of a list whose items are an input or output and its text.

    Inputs and outputs are lists: the panel is 235 px wide in a small window, too narrow for columns.
    """
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    items = [line[2:] for line in text.splitlines() if line.startswith("- ") and "<br>" in line]
    return table + [item.rsplit("<br>", 1) for item in items]


def first_code(cell: str) -> str:
    return re.match(r"`([^`]+)`", cell)[1]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


def shown(value: float) -> str:
    if value == 2**64 - 1:
        return "2^64-1"
    return str(value) if isinstance(value, int) else f"{value:g}"


def expected_default(item, words: Words) -> str:
    """What stands below an input's name; ranges are followed by their unit."""
    if isinstance(item, io.Int.Input | io.Float.Input):
        return words.range.format(shown(item.default), shown(item.min), shown(item.max))
    if isinstance(item, io.Boolean.Input):
        return f"`{str(item.default).lower()}`"
    if isinstance(item, io.String.Input):
        return words.empty if not item.default else f"`{item.default}`"
    if isinstance(item, io.Combo.Input):
        return words.file if item.default is None else f"`{item.default}`"
    return f"`{item.get_io_type()}`"


@every_node
@every_language
def test_page_has_its_title_and_all_sections_in_order(node_id, language):
    found = sections(node_id, language)
    title, text = found[""].split("\n", 1)
    assert title == f"# {locale(language)[node_id]['display_name']}" and len(text.strip()) > 40
    assert [name for name in found if name in WORDS[language].sections] == list(WORDS[language].sections)
    assert all(text.strip() for text in found.values())


@every_node
@every_language
def test_inputs_and_outputs_are_lists_which_fit_a_narrow_panel(node_id, language):
    for name in WORDS[language].sections[:2]:
        assert "\n|" not in sections(node_id, language)[name]


@every_node
@every_language
def test_input_table_has_every_input_in_order_and_no_other(node_id, language):
    rows = table_rows(sections(node_id, language)[WORDS[language].inputs])
    assert [first_code(row[0]) for row in rows] == [item.id for item in SCHEMAS[node_id].inputs]
    assert all(len(row) == 2 and len(row[1]) > 5 for row in rows)


@every_node
def test_chinese_input_table_shows_the_labels_of_the_chinese_widgets(node_id):
    names = locale("zh")[node_id]["inputs"]
    for row in table_rows(sections(node_id, "zh")["输入"]):
        input_id = first_code(row[0])
        assert row[0].startswith(f"`{input_id}` {names[input_id]['name']}<br>")


@every_node
@every_language
def test_defaults_ranges_and_choices_are_those_of_the_schema(node_id, language):
    rows = table_rows(sections(node_id, language)[WORDS[language].inputs])
    for item, (name, effect) in zip(SCHEMAS[node_id].inputs, rows, strict=True):
        default = name.split("<br>")[1]
        expected = expected_default(item, WORDS[language])
        ranged = isinstance(item, io.Int.Input | io.Float.Input)
        assert default.startswith(expected) if ranged else default == expected
        if isinstance(item, io.Combo.Input) and item.default is not None:
            assert set(item.options) <= set(codes(effect)), item.id


@every_node
@every_language
def test_output_table_is_that_of_the_schema(node_id, language):
    rows = table_rows(sections(node_id, language)[WORDS[language].outputs])
    names = [output["name"] for output in locale(language)[node_id]["outputs"].values()]
    assert [row[0].split("<br>")[0].strip("`") for row in rows] == names
    assert [row[0].split("<br>")[-1] for row in rows] == [
        f"`{item.get_io_type()}`" for item in SCHEMAS[node_id].outputs
    ]
    assert all(len(row) == 2 and len(row[1]) > 5 for row in rows)


def known_names() -> set[str]:
    inputs = [item for schema in SCHEMAS.values() for item in schema.inputs]
    options = {option for item in inputs if isinstance(item, io.Combo.Input) for option in item.options}
    outputs = {item.display_name for schema in SCHEMAS.values() for item in schema.outputs}
    texts = {item.default for item in inputs if isinstance(item, io.String.Input)}
    return {item.id for item in inputs} | options | outputs | texts | {*SAMPLERS, *SCHEDULERS} | OTHER_NAMES


@every_node
@every_language
def test_no_page_names_an_input_or_choice_that_does_not_exist(node_id, language):
    named = {code for code in codes(page(node_id, language)) if re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", code)}
    assert not named - known_names()


@every_node
@every_language
def test_nodes_in_bold_are_ours_under_their_present_name(node_id, language):
    names = {node["display_name"] for node in locale(language).values()}
    bold = set(re.findall(r"\*\*([^*]+)\*\*", page(node_id, language)))
    assert bold <= names and len(bold) >= 2


@every_node
def test_both_languages_say_the_same_numbers_and_quote_the_same_messages(node_id):
    english, chinese = sections(node_id, "en"), sections(node_id, "zh")
    for ours, theirs in zip(english.values(), chinese.values(), strict=True):
        rows, other_rows = table_rows(ours), table_rows(theirs)
        for row, other in zip(rows, other_rows, strict=True):
            assert numbers(" ".join(row)) == numbers(" ".join(other))
    assert messages(english["Errors"]) == messages(chinese["报错"])
    assert re.findall(r"\(https?://[^)]+\)", page(node_id, "en")) == re.findall(
        r"\(https?://[^)]+\)", page(node_id, "zh").replace("（[", "[")
    )


# --- messages ---------------------------------------------------------------------------------------------------------


def messages(text: str) -> list[str]:
    """Messages quoted at the start of a list's items; "..." stands for what differs from case to case."""
    heads = re.findall(r"^- (`[^`]+`(?:(?:, |、)`[^`]+`)*)[:：]", text, re.MULTILINE)
    assert len(heads) == text.count("\n- ")
    return [code for head in heads for code in codes(head)]


@cache
def literals() -> list[str]:
    """Every text in the pack's code, a NUL for each value put into it; and those of the host's check of a prompt."""
    # What a family in another loader is called, as the pack puts it together.
    found = [describe_file(dict.fromkeys(family.marks)) for family in FAMILIES]
    rooms = ("nodes", "models", "samplers", "scale", "training", "evaluation")
    files = [file for name in rooms for file in (ROOT / name).rglob("*.py")]
    for file in [*files, HOST / "execution.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            if isinstance(node, ast.JoinedStr):
                found.append("".join(getattr(part, "value", "") if is_text(part) else "\0" for part in node.values))
    return found


def is_text(part: ast.expr) -> bool:
    return isinstance(part, ast.Constant)


def is_in_code(message: str) -> bool:
    """Whether the parts of a message between colons, which may come from different places, are all in the code."""
    parts = [part for part in re.split(r": |:$", message) if part]
    patterns = [re.compile(r".+?".join(re.escape(text) for text in part.split("...")), re.DOTALL) for part in parts]
    return max(map(len, parts)) >= 12 and all(any(p.search(text) for text in literals()) for p in patterns)


@every_node
@every_language
def test_every_quoted_message_is_in_the_code(node_id, language):
    quoted = messages(sections(node_id, language)[WORDS[language].errors])
    assert not [message for message in quoted if not is_in_code(message)]


def test_a_message_that_the_code_does_not_have_is_found_out():
    assert is_in_code("is incomplete, it has ... of at least ... bytes")
    assert not is_in_code("is incomplete, it lacks ... of at least ... bytes")
    assert not is_in_code("is incomplete, it has ... of at least ... bytes: buy a larger disk")


# --- facts in the text ------------------------------------------------------------------------------------------------


@every_language
def test_precision_table_of_the_model_loader_is_what_the_code_decides(language):
    kinds = {"trained in float16": "float16", "以 float16 训练": "float16", "trained in bfloat16": "bfloat16",
             "以 bfloat16 训练": "bfloat16", "unknown": None, "未知": None}  # fmt: skip
    devices = make_precision_table.devices()
    columns = [devices[name] for name in ("CPU", "GPU, float16 and bfloat16 fast", "GPU, only float16 fast")]
    section = next(text for name, text in sections("SanaNativeModelLoader", language).items() if "\n|" in text and
                   name not in WORDS[language].sections)  # fmt: skip
    rows = table_rows(section)
    assert len(rows) == 5
    for kind, asked, *cells in rows:
        request = Request(DTYPES[asked.strip("`")], "weight_dtype")
        decided = [sana_precision(kinds[kind], None, request, device) for device in columns]
        assert cells == [make_precision_table.cell(precision) for precision in decided]


@every_language
def test_bundled_model_has_the_name_that_the_loader_lists(language):
    assert f"`{BUNDLED_NAME}`" in page("SanaNativeModelLoader", language)


@every_language
def test_sizes_on_the_page_are_the_trained_ones(language):
    tables = [text for name, text in sections("SanaNativeEmptyLatent", language).items() if "512x512" in text]
    rows = table_rows(tables[0])
    assert len(rows) == 9
    for ratio, *cells in rows:
        sizes = [bin_size(size, ratio) for size in (512, 1024, 2048, 4096)]
        assert cells == [f"{width}x{height}" for width, height in sizes]


@every_language
@pytest.mark.parametrize("node_id", ["SanaNativeDCAEDecode", "SanaNativeDCAEEncode"])
def test_memory_on_the_page_is_what_the_host_is_told(node_id, language):
    told = re.findall(r"([\d.]+) GB", page(node_id, language))
    whole = [Workload(side, side, torch.bfloat16, "cpu").memory() for side in (1024, 2048, 4096)]
    tiles = Workload(4096, 4096, torch.bfloat16, "cpu").memory(1024)
    more = Workload(4096, 4096, torch.bfloat16, "cuda").memory(1024) - tiles
    assert told == [f"{memory / 1e9:.1f}" for memory in (*whole, tiles, more)]


@every_language
def test_noise_that_denoise_begins_with_is_as_the_page_says(language):
    told = re.findall(r"(\d+) %", page("SanaNativeSampler", language))
    assert told == [f"{100 * float(get_sigmas_flow_dpm(20, 3.0, denoise)[0]):.0f}" for denoise in (0.3, 0.7)]


# --- translations -----------------------------------------------------------------------------------------------------


def leaves(node: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    found = {}
    for key, value in node.items():
        found |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return found


def test_english_file_is_what_the_schemas_say():
    assert locale_file("en").read_text(encoding="utf-8") == english_text(), "run python -m tools.make_locales"


def test_pages_for_other_languages_are_the_english_ones():
    for node_id in SCHEMAS:
        text = help_page(node_id).read_text(encoding="utf-8")
        assert text == page(node_id, "en"), "run python -m tools.make_locales"


def test_chinese_file_has_exactly_the_keys_of_the_english_one():
    english = leaves(locale("en"))
    assert list(leaves(locale("zh"))) == list(english) and len(english) > 150


def test_every_chinese_sentence_is_chinese_with_the_numbers_of_the_english_one():
    english = leaves(locale("en"))
    for path, text in leaves(locale("zh")).items():
        if path[-1] in ("tooltip", "description"):
            assert CJK.search(text) and text.endswith("。"), path
            assert numbers(text) == numbers(english[path]), path


@every_language
def test_translations_hold_no_sign_that_the_browser_takes_for_syntax(language):
    for path, text in leaves(locale(language)).items():
        assert text and not re.search(r"[@{}|%]", text) and "." not in path[2:], path


def test_every_chinese_title_is_found_by_typing_sana():
    assert all(node["display_name"].startswith("SANA ") for node in locale("zh").values())


@every_node
@every_language
def test_page_shows_a_picture_of_the_node_in_its_language(node_id, language):
    name = {"en": "graph.png", "zh": "graph_zh.png"}[language]
    alt, path = re.search(r"^!\[(.+)\]\((.+)\)$", page(node_id, language), re.MULTILINE).groups()
    file = help_page("any").parent / path  # the browser looks from the folder above, for every page
    assert path == f"{node_id}/{name}" and alt.startswith(locale(language)[node_id]["display_name"])
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size < 50_000


def test_no_folder_of_help_is_left_over():
    folders = {path.name for path in help_page("any").parent.iterdir() if path.is_dir()}
    files = {path.stem for path in help_page("any").parent.glob("*.md")}
    assert folders == files == set(SCHEMAS) == set(locale("en"))


# --- through the real server ------------------------------------------------------------------------------------------


def fetch(server, path: str) -> tuple[str, str]:
    """Text and content type. Raises urllib.error.HTTPError."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.url + urllib.parse.quote(path), timeout=60) as answer:
        return answer.read().decode("utf-8"), answer.headers.get_content_type()


def ours(server) -> dict:
    return {name: info for name, info in server.object_info().items() if name.startswith("SanaNative")}


def pack_folder(info: dict) -> str:
    """The folder's name as the browser finds it: the second part of the module's name, without a version."""
    package, name, *_ = info["python_module"].split(".")
    assert package == "custom_nodes"
    return name.split("@")[0]


@every_language
def test_server_gives_the_browser_every_page(web_server, language):
    for node_id, info in ours(web_server).items():
        text, content_type = fetch(web_server, f"/extensions/{pack_folder(info)}/docs/{node_id}/{language}.md")
        assert text == page(node_id, language) and content_type != "text/html"


def test_a_language_without_pages_falls_back_to_english(web_server):
    for node_id, info in ours(web_server).items():
        docs = f"/extensions/{pack_folder(info)}/docs"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(web_server, f"{docs}/{node_id}/ja.md")
        assert fetch(web_server, f"{docs}/{node_id}.md")[0] == page(node_id, "en")


def test_server_merges_the_translations(comfy_server):
    served = json.loads(fetch(comfy_server(), "/i18n")[0])
    for language in LANGUAGES:
        nodes = served[language]["nodeDefs"]
        assert {node_id: nodes[node_id] for node_id in SCHEMAS} == locale(language)


def test_server_runs_no_script_of_ours_in_the_browser(web_server):
    assert not [path for path in json.loads(fetch(web_server, "/extensions")[0]) if "sana" in path]


def test_no_widget_is_without_tooltip_and_no_node_without_page(comfy_server):
    nodes = ours(comfy_server())
    untold = [
        (name, input_id)
        for name, info in nodes.items()
        for group in ("required", "optional")
        for input_id, (_, options) in info["input"].get(group, {}).items()
        if not options.get("tooltip")
    ]
    untranslated = [
        (language, *path)
        for language in LANGUAGES
        for path in leaves(locale("en"))
        if not leaves(locale(language)).get(path)
    ]
    missing = [(name, language) for name in nodes for language in LANGUAGES if not help_page(name, language).is_file()]
    assert (len(untold), len(untranslated), len(missing)) == (0, 0, 0)
    assert len(nodes) == len(SCHEMAS) and SEED_WIDGET in locale("zh")["SanaNativeSampler"]["inputs"]
