"""Stores: a file is there whole or not at all, in a folder and through pyarrow's file systems."""

import os
import sys

import pytest
from sana_native.scale import store as stores
from sana_native.scale.store import LocalStore, StoreError, open_store


@pytest.fixture(params=["folder", "arrow", "fsspec"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_store(str(tmp_path / "a folder"))
    fs = pytest.importorskip("pyarrow.fs")
    if request.param == "arrow":
        return stores.ArrowStore(fs._MockFileSystem(), "bucket/job", "mock://bucket/job")
    pytest.importorskip("fsspec")
    return open_store(f"memory://bucket-{os.getpid()}-{tmp_path.name}/job")


def test_what_is_put_is_there_under_its_name_and_over_an_older_one(store):
    assert store.names("images") == [] and not store.exists("images/abc/é.png")
    store.put("images/abc/é.png", b"one")
    store.put("images/abc/é.png", b"two")
    store.put("images/abc/b.png", b"")
    assert store.exists("images/abc/é.png") and store.get("images/abc/é.png") == b"two"
    assert store.names("images/abc") == ["b.png", "é.png"] and store.names("images") == []
    with pytest.raises(StoreError, match="x cannot be read"):
        store.get("images/x")


def test_a_file_that_cannot_be_renamed_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.os, "replace", full)
    with pytest.raises(StoreError, match=r"a cannot be written \(No space left on device\): free some space"):
        store.put("a", b"new")
    assert store.get("a") == b"old" and not os.listdir(tmp_path / stores.PARTS)


def test_an_address_that_nothing_knows_is_refused_in_a_sentence(monkeypatch):
    pytest.importorskip("pyarrow")
    with pytest.raises(StoreError, match=r"nonsense://x cannot be opened \("):
        open_store("nonsense://x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match="needs pyarrow: install it"):
        open_store("s3://bucket")
