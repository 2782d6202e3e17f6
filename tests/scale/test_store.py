"""Stores: a file is there whole or not at all, in a folder and through pyarrow's file systems."""

import os
import subprocess
import sys

import pytest
from sana_native.scale import store as stores
from sana_native.scale.job import folder_name
from sana_native.scale.store import LocalStore, StoreError, open_store
from sana_native.tests.support import store_behaviour
from sana_native.tools.scale_environment import scale_python


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_keeps_files_and_a_job(tmp_path, scheme):
    store = open_store(scheme + str(tmp_path / "a folder"))
    store_behaviour.check(store)
    store_behaviour.check_job(store)
    assert isinstance(store, LocalStore) and not os.listdir(tmp_path / "a folder" / stores.PARTS)


@pytest.mark.heavy
def test_a_file_system_of_pyarrow_keeps_them_too():
    """In the command's own environment: pyarrow's mock of one, and fsspec's in memory."""
    program = (store_behaviour.__file__, str(stores.Path(stores.__file__).parents[1]))
    addresses = ("mock://bucket//job/", "memory://bucket/job/")
    done = subprocess.run([str(scale_python()), *program, *addresses], capture_output=True, text=True, check=False)
    assert done.stdout == "mock://bucket/job: as it should be\nmemory://bucket/job: as it should be\n", done.stderr


def test_a_file_that_cannot_be_renamed_leaves_the_old_one_and_no_rest(tmp_path, monkeypatch):
    store = LocalStore(tmp_path)
    store.put("a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.os, "replace", full)
    with pytest.raises(StoreError, match=r"a cannot be written \(No space left on device\): free some space"):
        store.put("a", b"new")
    assert store.get("a") == b"old" and not os.listdir(tmp_path / stores.PARTS)


@pytest.mark.skipif(os.name == "nt", reason="its folders are written in other ways")
def test_a_place_has_one_name_however_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    ways = ["a/job", "a/job/", "./a//job", "a/b/../job", f"{tmp_path}/a/job", f"/{tmp_path}/a/job/", "link/a/job",
            f"file://{tmp_path}/a/job/", f"FILE://localhost{tmp_path}//a/job"]  # fmt: skip
    assert {open_store(way).url for way in ways} == {str(tmp_path.resolve() / "a" / "job")}
    assert len({folder_name(open_store(way)) for way in ways}) == 1
    assert folder_name(open_store("a/job2")) != folder_name(open_store("a/job"))


@pytest.mark.parametrize(
    ("ways", "place"),
    [
        (["s3://b/job", "s3://b/job/", "s3://b//job//", "S3://b/job?region=eu", "s3://key:secret@b/job",
          "s3://key:sec/ret@b/job"], "s3://b/job"),
        (["s3://b/job?endpoint_override=x:9&region=eu", "s3://b/job/?region=eu&endpoint_override=x:9"],
         "s3://b/job?endpoint_override=x:9"),
        (["abfs://c:secret@a.net/job/", "abfs://c@a.net/job"], "abfs://c@a.net/job"),
        (["hdfs://host:8020/job", "hdfs://host:8020//job/"], "hdfs://host:8020/job"),
        (["memory:///job/", "memory:////job"], "memory:///job"),
        (["gs://b", "gs://b/"], "gs://b"),
        (["s3://b/a:1@x/Job"], "s3://b/a:1@x/Job"),
    ],
)  # fmt: skip
def test_an_address_has_one_name_without_its_secrets(ways, place):
    assert {stores.place_of(stores.normalize(way)) for way in ways} == {place}


def test_a_folder_that_cannot_be_is_named_with_a_cure_that_fits(tmp_path):
    (tmp_path / "file").touch()
    for work in (LocalStore(tmp_path / "file").prepare, lambda: LocalStore(tmp_path / "file").put("a", b"")):
        with pytest.raises(StoreError, match=r"file.* cannot be written \(.*\): choose another folder\.$"):
            work()
    with pytest.raises(StoreError, match="--out is empty: give a folder"):
        open_store(" ")


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    store = LocalStore(tmp_path)
    store.put("a", b"whole")
    (tmp_path / stores.PARTS / "b").write_bytes(b"ha")
    store.prepare()
    assert sorted(os.listdir(tmp_path)) == [stores.PARTS, "a"] and not os.listdir(tmp_path / stores.PARTS)


def test_an_address_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match=r"s3://bucket needs pyarrow: install it into this environment, or give a"):
        open_store("s3://bucket")
