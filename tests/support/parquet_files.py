"""What `scale` reads from Parquet, as asserts; run as a program with the Python of pyarrow's environment.

python parquet_files.py ROOT FOLDER, and then with "memory" behind it
"""

import re
import sys
import types
from pathlib import Path

LONG_ROWS, MOST_BYTES = 200_000, 200e6


def check_rows(folder: Path) -> None:
    """The same rows as from other forms, whatever the columns' types, and unreadable ones among them."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({
        "id": pyarrow.array(["x/y", None, "Bär", "x/y", "e"]).dictionary_encode(),
        "Prompt": [b"a cat", "a dog --ar 16:9".encode(), "ein B\u00e4r".encode(), b"again", b"caf\xe9"],
        "seed": pyarrow.array([5.0, float("nan"), None, 1.0, 1.0]),
        "width": pyarrow.array([640, None, None, None, None], pyarrow.int16()),
        "height": pyarrow.array([480, None, None, None, None], pyarrow.uint64()),
        "cfg": pyarrow.array([4.3, None, None, None, None], pyarrow.float32()),
        "embedding": [[0.0] * 8] * 5,
    })  # fmt: skip
    parquet.write_table(table, folder / "p.parquet", row_group_size=2)
    first, second, third, again, broken = read_parquet(folder / "p.parquet")
    assert (first.id, first.name, first.prompt, first.place) == ("x/y", "x_y", "a cat", "row 1"), first
    assert (first.seed, first.width, first.height, first.cfg) == (5, 640, 480, 4.3), first
    assert (second.name, second.prompt, second.aspect, second.seed) == ("000000001", "a dog", (16, 9), None), second
    assert (third.index, third.name, third.prompt) == (2, "Bär", "ein Bär"), third
    assert str(again) == 'row 4: an earlier row has the id "x/y" already', again
    assert str(broken).startswith("row 5: holds bytes that are not UTF-8"), broken
    (turned,) = [row for row in read_parquet(folder / "p.parquet", nvlabs_tags=True) if row.index == 1]
    assert turned.aspect == (9, 16)


def check_text_that_is_none(folder: Path) -> None:
    """A column that says it is text, and is not in one row."""
    import pyarrow
    from pyarrow import parquet

    bytes_ = pyarrow.array([b"one", b"caf\xe9", b"two"])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, bytes_.buffers())
    parquet.write_table(pyarrow.table({"text": texts}), folder / "t.parquet")
    before, bad, after = read_parquet(folder / "t.parquet")
    assert (before.prompt, str(bad), after.prompt) == ("one", "row 2: holds bytes that are not UTF-8", "two")


def check_refusals(folder: Path) -> None:
    """Files that are none, in a sentence each; one that breaks off gives what stands before."""
    import pyarrow
    from pyarrow import parquet

    whole = (folder / "p.parquet").read_bytes()
    parquet.write_table(pyarrow.table({"seed": [1]}), folder / "no_prompt.parquet")
    for name, data, sentence in (
        ("none.parquet", b"prompt\na cat\n", "none.parquet is no Parquet file: write it again."),
        ("empty.parquet", b"", "empty.parquet is no Parquet file: write it again."),
        ("cut.parquet", whole[: len(whole) // 2], "cut.parquet is no Parquet file: write it again."),
        ("no_prompt.parquet", None, 'no_prompt.parquet has no column "prompt": name a column so.'),
    ):
        if data is not None:
            (folder / name).write_bytes(data)
        try:
            list(read_parquet(folder / name))
        except ValueError as error:
            assert str(error) == sentence, error
        else:
            raise AssertionError(name)
    parquet.write_table(pyarrow.table({"prompt": []}, pyarrow.schema([("prompt", pyarrow.string())])),
                        folder / "no_rows.parquet")  # fmt: skip
    assert list(read_parquet(folder / "no_rows.parquet")) == []
    table = pyarrow.table({"prompt": [f"{number} {'x' * 100}" for number in range(5000)]})
    parquet.write_table(table, folder / "torn.parquet", row_group_size=2500, compression="zstd", use_dictionary=False)
    second = parquet.ParquetFile(folder / "torn.parquet").metadata.row_group(1).column(0).data_page_offset
    torn = bytearray((folder / "torn.parquet").read_bytes())
    torn[second : second + 400] = b"\xff" * 400
    (folder / "torn.parquet").write_bytes(torn)
    rows = list(read_parquet(folder / "torn.parquet"))
    assert 1024 <= len(rows) - 1 <= 2500 and rows[0].prompt.startswith("0 x"), len(rows)
    assert rows[-1].reason == "cannot be read, nor anything after it: write the file again", rows[-1]


def write_long_file(folder: Path) -> None:
    """One row group of 200 MB, which the other call must not hold at once."""
    import pyarrow
    from pyarrow import parquet

    texts = [f"{number} {'a cat ' * 170}" for number in range(LONG_ROWS)]
    table = pyarrow.table({"prompt": texts})
    options = {"use_dictionary": False, "compression": "none"}
    parquet.write_table(table, folder / "long.parquet", row_group_size=LONG_ROWS, **options)


def check_memory(folder: Path) -> None:
    count = sum(len(row.prompt) > 1000 for row in read_parquet(folder / "long.parquet"))
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    assert count == LONG_ROWS and peak < MOST_BYTES, f"{count} rows, {peak / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.modules["sana_native"] = types.ModuleType("sana_native")
    sys.modules["sana_native"].__path__ = [sys.argv[1]]
    from sana_native.scale.parquet import read_parquet

    place = Path(sys.argv[2])
    checks = (check_rows, check_text_that_is_none, check_refusals, write_long_file)
    for check in [check_memory] if sys.argv[3:] == ["memory"] else checks:
        check(place)
    sys.stdout.write("as it should be\n")
