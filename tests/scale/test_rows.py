"""Prompt files: every form gives the same rows, and one that cannot be read stops no other."""

import subprocess
import sys
from pathlib import Path

import pytest
from sana_native.scale import formats
from sana_native.scale.rows import BadRow, Row, read_rows, safe_name

LINES = ["a cat", "a dog --ar 16:9 --seed 7", "", "# a remark", "a\tfox\t--neg blurry, dark --steps 8 --cfg 3.5"]


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, name: str, text: str | bytes, **options) -> list[Row | BadRow]:
    return list(read_rows(write(folder, name, text), **options))


def settings(row: Row) -> dict:
    return {
        name: value
        for name in ("negative", "width", "height", "aspect", "seed", "steps", "cfg")
        if (value := getattr(row, name)) not in (None, "")
    }


@pytest.mark.parametrize(
    "text",
    ["\n".join(LINES), "\ufeff" + "\n".join(LINES), "\r\n".join(LINES), "\ufeff" + "\r\n".join(LINES) + "\r\n\r\n"],
    ids=["plain", "bom", "crlf", "bom and crlf, empty last line"],
)
def test_txt_is_the_same_with_bom_crlf_tabs_and_empty_lines(tmp_path, text):
    assert read(tmp_path, "p.txt", text) == [
        Row(0, "line 1", "000000000", "a cat"),
        Row(1, "line 2", "000000001", "a dog", aspect=(16, 9), seed=7),
        Row(2, "line 5", "000000002", "a\tfox", "blurry, dark", steps=8, cfg=3.5),
    ]


FORMS = {
    "a.jsonl": '{"id": "x", "prompt": "a cat", "seed": 5, "size": "640x480"}\n"a dog"\n',
    "b.json": '[{"id": "x", "prompt": "a cat", "seed": 5, "width": 640, "height": 480}, "a dog"]',
    "c.json": '{"x": {"prompt": "a cat", "seed": 5, "hw": "480:640"}, "000000001": {"prompt": "a dog"}}',
    "d.csv": 'id,prompt,seed,size\nx,"a cat",5,640x480\n,a dog,,\n',
    "e.csv": "\ufeffname;Prompt;Seed;Width;Height\r\nx;a cat;5;640;480\r\n;a dog;;;\r\n\r\n",
    "f.tsv": "prompt\tid\tseed\tsize\na cat --seed 9\tx\t5\t640x480\na dog\t\t\t\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, name):
    first, second = read(tmp_path, name, FORMS[name])
    assert (first.name, first.prompt, settings(first)) == ("x", "a cat", {"width": 640, "height": 480, "seed": 5})
    assert (second.index, second.name, second.prompt, settings(second)) == (1, "000000001", "a dog", {})


def test_text_of_a_csv_may_hold_commas_quotes_and_lines(tmp_path):
    (row,) = read(tmp_path, "p.csv", 'prompt,negative\n"a cat, ""big""\nand a dog","dark, blurry"\n')
    assert (row.prompt, row.negative, row.place) == ('a cat, "big"\nand a dog', "dark, blurry", "line 3")


@pytest.mark.parametrize(
    ("line", "prompt", "expected"),
    [
        ("a cat --ar 16:9", "a cat", {"aspect": (16, 9)}),
        ("a cat --aspect_ratio 2.39:1", "a cat", {"aspect": (2.39, 1)}),
        ("a cat --hw 512:768", "a cat", {"width": 768, "height": 512}),
        ("a cat --size 768X512 --SEED 18446744073709551615", "a cat", {"width": 768, "height": 512, "seed": 2**64 - 1}),
        ("a cat --neg bad hands, text --cfg 5", "a cat", {"negative": "bad hands, text", "cfg": 5.0}),
        ("a cat --seed 1 --seed 2", "a cat", {"seed": 2}),
        ("a cat --ar 16:9 on a mat", "a cat --ar 16:9 on a mat", {}),
        ("a cat --ar 16:9 on a mat --seed 3", "a cat --ar 16:9 on a mat", {"seed": 3}),
        ("a cat -- on a well--lit mat", "a cat -- on a well--lit mat", {}),
        ("a cat --fluffy", "a cat --fluffy", {}),
    ],
)
def test_tags_count_only_at_the_end(tmp_path, line, prompt, expected):
    (row,) = read(tmp_path, "p.txt", line)
    assert (row.prompt, settings(row)) == (prompt, expected)


def test_nvidias_order_of_a_ratio_is_height_first(tmp_path):
    (row,) = read(tmp_path, "p.txt", "a cat --ar 16:9", nvlabs_tags=True)
    assert row.aspect == (9, 16)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a --seed -1", 'needs an integer of 0 to 18446744073709551615 for seed, not "-1"'),
        ("a --steps 0", 'needs an integer of 1 to 10000 for steps, not "0"'),
        ("a --size 1024", 'needs size as in 1024x768, not "1024"'),
        ("a --size 8x1024", 'needs an integer of 32 to 16384 for size, not "8"'),
        ("a --ar 16x9", 'needs ar as in 16:9, not "16x9"'),
        ("a --ar 0:9", "needs a number of 0.001 to 1000 for ar"),
        ("a --cfg high", "needs a number of 0 to 100 for cfg"),
        ("a --seed", 'for seed, not ""'),
        ("a --ar 16:9 --v 6", "has the unknown tag --v: known are --ar, --aspect_ratio, --hw, --size"),
        ("--ar 16:9", "has no prompt"),
        (b"a caf\xe9", "holds bytes that are not UTF-8: save the file as UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_stops_no_other(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    before, bad, after = read(tmp_path, "p.txt", b"one\n" + line + b"\ntwo")
    assert isinstance(bad, BadRow) and str(bad).startswith("line 2: ") and reason in bad.reason
    assert (before.prompt, after.prompt, after.index) == ("one", "two", 2)


@pytest.mark.parametrize(
    ("name", "text", "place", "reason"),
    [
        ("p.jsonl", '"one"\n{"prompt": "a"\n"two"', "line 2", "is no JSON"),
        ("p.jsonl", '"one"\n7\n"two"', "line 2", "is neither a prompt nor an object"),
        ("p.jsonl", '"one"\n{"prompt": ["a"]}\n"two"', "line 2", "needs a text or a number for prompt"),
        ("p.jsonl", '"one"\n{"prompt": "a", "width": 64}\n"two"', "line 2", "a width or a height alone"),
        ("p.jsonl", '"one"\n{"prompt": "\\ud83d"}\n"two"', "line 2", "not UTF-8"),
        ("p.json", '["one", {"text": null}, "two"]', "entry 2", "has no prompt"),
        ("p.csv", "prompt,seed\none,\na, cat,5\ntwo,", "line 3", "has 3 values for 2 columns"),
    ],
)
def test_a_bad_entry_of_every_form_is_named(tmp_path, name, text, place, reason):
    before, bad, after = read(tmp_path, name, text)
    assert (bad.place, before.prompt, after.prompt) == (place, "one", "two") and reason in bad.reason


def test_a_broken_json_keeps_what_stands_before(tmp_path):
    first, bad = read(tmp_path, "p.json", '["one", {"prompt": "a" "b"}, "two"]')
    assert first.prompt == "one" and str(bad) == "entry 2: is no JSON, and nothing after it can be read"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.doc", "a", r"p\.doc is no prompt file: its name must end in one of \.txt, \.json"),
        ("p.txt", "a cat".encode("utf-16"), r"p\.txt is UTF-16: save it as UTF-8"),
        ("p.csv", "seed\n1\n", 'p.csv has no column "prompt"'),
        ("p.json", '"a"', r"p\.json holds no list and no object of prompts"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path, name, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, name, text)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_json_is_the_same_however_it_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(formats, "CHUNK", chunk)
    text = '{"a": {"prompt": "caf\u00e9 \\u00e9", "seed": 123456}, "b" : "two" ,\n"c": {"prompt": "[{", "cfg": 4.5}}\n'
    found = read(tmp_path, "p.json", text)
    assert [(row.name, row.prompt, settings(row)) for row in found] == [
        ("a", "caf\u00e9 \u00e9", {"seed": 123456}),
        ("b", "two", {}),
        ("c", "[{", {"cfg": 4.5}),
    ]


@pytest.mark.parametrize("text", ["", "[]", " {} "])
def test_an_empty_file_has_no_rows(tmp_path, text):
    assert read(tmp_path, "p.json" if text else "p.txt", text) == []


def test_a_row_stands_alone(tmp_path):
    """Seed and name of a row depend neither on those after it nor on remarks and unreadable lines before it."""
    lines = ["one", "two", "three --seed 5", "four"]
    whole = read(tmp_path, "p.txt", "\n".join(lines))
    half = read(tmp_path, "p.txt", "\n".join(lines[:2]))
    mended = read(tmp_path, "p.txt", "# remark\none --seed x\n\n" + "\n".join(lines[1:]))
    seeds = [row.seed_from(100) for row in whole]
    assert seeds == [100, 101, 5, 103] and [row.seed_from(2**64 - 1) for row in whole] == [2**64 - 1, 0, 5, 2]
    assert [row.seed_from(100) for row in half] == seeds[:2]
    assert [(row.name, row.seed_from(100)) for row in mended[1:]] == [
        (row.name, row.seed_from(100)) for row in whole[1:]
    ]


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b: c?", "a_b_ c_"),
        ("..\\..\\x", "_.._x"),
        ("../../x", "_.._x"),
        (" a\tb\nc. ", "a b c"),
        ("con", "_con"),
        ("Aux.txt", "_Aux.txt"),
        ("console", "console"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("\u4e00\u53ea\u732b \U0001f408", "\u4e00\u53ea\u732b \U0001f408"),
        ('<>:"|*\x00\x7f', "________"),
    ],
)
def test_a_name_is_safe_on_every_system(text, name):
    assert safe_name(text) == name == safe_name(name)


@pytest.mark.parametrize("text", ["a" * 300, "\u732b" * 300, "...", " ", "a" * 99 + "\U0001f408" * 9])
def test_a_name_that_is_cut_ends_in_a_hash(text):
    name = safe_name(text)
    assert len(name) <= 100 and len(name.encode()) <= 200 and name == safe_name(name)
    assert safe_name(text + "b") != name and name[-9] == "-"


def test_names_that_would_meet_get_a_hash_and_a_used_id_is_refused(tmp_path):
    ids = ["a/b", "a:b", "A_B", "a/b", "000000006", "x"]
    found = read(tmp_path, "p.jsonl", "\n".join(f'{{"id": "{one}", "prompt": "p"}}' for one in ids) + '\n"q"\n"r"')
    names = [row.name for row in found if isinstance(row, Row)]
    assert len({name.casefold() for name in names}) == len(names) == 7 and names[0] == "a_b"
    assert names[1].startswith("a_b-") and names[2].startswith("A_B-") and names[5].startswith("000000006-")
    assert str(found[3]) == 'line 4: an earlier row has the id "a/b" already'


# Size

MEASURE = """
import re, sys
sys.path.insert(0, sys.argv[1])
from scale.rows import read_rows
count = sum(row.index >= 0 for row in read_rows(sys.argv[2]))
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(count, int(peak[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux writes it")
def test_a_million_rows_are_streamed_in_300_megabytes(tmp_path):
    """In a process of its own, as the rows need nothing outside their folder; json with ids takes most."""
    path = tmp_path / "p.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        file.writelines(f'{{"id": "{number}", "prompt": "a cat in a city"}},\n' for number in range(1_000_000))
        file.write('"x"]')
    command = [sys.executable, "-I", "-c", MEASURE, str(Path(formats.__file__).parent.parent), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, peak = map(int, done.stdout.split())
    assert count == 1_000_001 and peak < 300e6, f"{peak / 1e6:.0f} MB"
