"""What every store of `scale` does, as asserts; run as a program with the Python of pyarrow's environment.

python store_behaviour.py ROOT ADDRESS...
"""

import sys
import types


def check(store) -> None:
    """Puts, replaces, finds and lists files; raises AssertionError."""
    assert store.names("images") == [] and not store.exists("images/abc/é.png") and not store.has_files("images")
    store.put("images/abc/é.png", b"one")
    store.put("images/abc/é.png", b"two")
    store.put("images/abc/b.png", b"")
    assert store.exists("images/abc/é.png") and store.get("images/abc/é.png") == b"two"
    assert store.has_files("images") and not store.has_files("imag")
    assert store.names("images/abc") == ["b.png", "é.png"] and store.names("images") == []
    try:
        store.get("images/x")
    except RuntimeError as error:
        assert "x cannot be read" in str(error), error
    else:
        raise AssertionError("a file that is not there was read")


def check_job(store) -> None:
    """A part is written, goes on and is read back."""
    from sana_native.scale.manifest import Part, Record, Shard, all_records, compare_job, join_job, part_firsts
    from sana_native.scale.rows import Row

    own = join_job(store, {"rows": "a"}, 4)
    compare_job(store, {"rows": "a"})
    rows = [Row(i, f"line {i}", f"{i:09}", "a cat") for i in range(4)]
    for first in (0, 2):
        part = Part(store, Shard(first, rows[first : first + 2]), part_firsts(store))
        for row in part_rows(rows, first):
            part.add(Record(row.index, row.name, row.place, "done"))
        part.save()
    assert part_firsts(store) == [0, 2] and [one.index for one in all_records(store)] == [0, 1, 2, 3] and own


def part_rows(rows: list, first: int) -> list:
    return rows[first : first + 2]


def check_again(address: str) -> None:
    """The same files are there under the address without slashes that say nothing; not so in the mock of one."""
    from sana_native.scale.store import normalize, open_store

    if not address.startswith("mock"):
        assert open_store(normalize(address)).get("images/abc/é.png") == b"two"


if __name__ == "__main__":
    sys.modules["sana_native"] = types.ModuleType("sana_native")
    sys.modules["sana_native"].__path__ = [sys.argv[1]]
    from sana_native.scale.store import ArrowStore, open_store

    for address in sys.argv[2:]:
        store = open_store(address)
        assert isinstance(store, ArrowStore), address
        check(store)
        check_job(store)
        check_again(address)
        sys.stdout.write(f"{store.url}: as it should be\n")
