"""A run as a JSON file: what is written is read back, and each fault is one sentence."""

import json
import math
from pathlib import Path

import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS
from sana_native.training.run_config import config_of, read_config, write_config


@pytest.fixture
def written(encoded, files) -> Path:
    write_config(config_of(bench.model("sana"), encoded, SETTINGS, files, "tiny"))
    return Path(files.config)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def test_a_training_writes_what_a_command_needs_to_go_on(run, encoded, files):
    run()
    config = read_config(files.config)
    assert (config.settings, config.files, config.data, config.base) == (SETTINGS, files, encoded, "tiny")
    assert config.model == str(bench.folder() / "sana") and not config.changed


def test_options_of_the_loader_come_back_with_their_types(encoded, files):
    model = bench.fresh_model("sana", dtype=torch.bfloat16, shift=4.0, clamp=None)
    write_config(config_of(model, encoded, SETTINGS, files, "tiny"))
    assert read_config(files.config).options == {"dtype": torch.bfloat16, "shift": 4.0}


def test_a_lora_in_bypass_mode_is_a_change_that_no_file_holds(encoded, files):
    model = bench.fresh_model("sana")
    assert not config_of(model, encoded, SETTINGS, files, "tiny").changed
    model.set_injections("bypass_lora", [PatcherInjection(lambda _: None, lambda _: None)])
    assert config_of(model, encoded, SETTINGS, files, "tiny").changed


def test_names_may_be_relative_to_the_files_folder_and_settings_left_out(written):
    change(written, files={"state": "s.safetensors", "lora": "../l.safetensors"}, settings={"steps": 7})
    config = read_config(str(written))
    assert Path(config.files.state) == written.parent / "s.safetensors"
    assert Path(config.files.result).resolve() == written.parent.parent / "l.safetensors"
    assert config.settings.steps == 7 and config.settings.rank == 16


def test_a_file_that_cannot_be_written_leaves_the_one_before(written, encoded, files, monkeypatch):
    before = written.read_bytes()

    def fill_the_disk(_, file, **__):
        file.write("{")
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", fill_the_disk)
    with pytest.raises(OSError, match="run.json cannot be written"):
        write_config(config_of(bench.model("sana"), encoded, SETTINGS, files, "other"))
    assert written.read_bytes() == before and not list(written.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "is of version 2 where this one reads 1"),
        ({"changed": True}, "a model that nodes had changed"),
        ({"changed": None}, "has changed null where true or false must stand"),
        ({"model": 3}, "has model 3 where a text must stand"),
        ({"model": "gone.safetensors"}, "names gone.safetensors as the model, which is not there"),
        ({"model": ""}, "names no file as the model"),
        ({"options": {"dtype": "float17"}}, "has the dtype float17, which PyTorch does not know"),
        ({"files": {"state": "a"}}, "has lora null where a text must stand"),
        ({"encoded": []}, r"has encoded \[\] where an object must stand"),
        ({"settings": {"step": 3}}, "has the unknown setting step"),
        ({"settings": {"steps": 0}}, "has the setting steps 0 where a whole number from 1 up to 1000000 must stand"),
        ({"settings": {"steps": True}}, "has the setting steps true where a whole number"),
        ({"settings": {"ema": 1.5}}, "has the setting ema 1.5 where a number from 0 up to 1 must stand"),
        ({"settings": {"algorithm": "LoHa"}}, "has the setting algorithm \"LoHa\" where one of LoRA, DoRA, LoKr"),
        ({"settings": {"schedule": "linear"}}, "has the setting schedule \"linear\" where one of constant, cosine"),
        ({"settings": {"alpha": 10**400}}, r"has the setting alpha 10{59} where a number from 0 up to 1000000"),
        ({"settings": {"alpha": math.inf}}, "has the setting alpha Infinity where a number from 0 up to 1000000"),
        ({"settings": {"clip_norm": math.nan}}, "has the setting clip_norm NaN where a number"),
        ({"settings": {"rank": 10**400}}, r"has the setting rank 10{59} where a whole number from 1 up to 1024"),
        ({"settings": {"layers": ["attention"]}}, "has the setting layers .+ where one of attention qkv"),
        ({"settings": {"schedule": ["constant"]}}, "has the setting schedule .+ where one of constant, cosine"),
        ({"options": {"shfit": 3.0}}, "has the unknown option of the loader shfit"),
        ({"options": {"shift": "3"}}, 'has the option of the loader shift "3" where a number must stand'),
        ({"settings": {"checkpointing": 1}}, "has the setting checkpointing 1 where true or false must stand"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_with_the_file_and_the_cure(written, values, message):
    change(written, **values)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_config(str(written))
    assert str(error.value).startswith(str(written)) and "\n" not in str(error.value)


def test_a_missing_entry_of_the_cache_is_named(written):
    content = json.loads(written.read_text(encoding="utf-8"))
    content["encoded"]["samples"][1]["latent_path"] = "gone"
    change(written, encoded=content["encoded"])
    with pytest.raises(FileNotFoundError, match="names gone as an entry of the cache, which is not there"):
        read_config(str(written))


@pytest.mark.parametrize("size", [[64, [64]], [64], [64, 0], [64, 64.0], ["a", "b"]])
def test_a_size_that_is_none_is_refused(written, size):
    content = json.loads(written.read_text(encoding="utf-8"))
    content["encoded"]["samples"][1]["size"] = size
    change(written, encoded=content["encoded"])
    with pytest.raises(ValueError, match=r"has the size \[.+\] where height and width must stand"):
        read_config(str(written))


def test_options_of_the_set_have_their_types(written):
    encoded = json.loads(written.read_text(encoding="utf-8"))["encoded"]
    for options, told in (({"size": "1024"}, 'size "1024" where a whole number must stand'),
                          ({"bins": 1}, "bins 1 where true or false must stand"),
                          ({"trigger_word": {}}, "trigger_word {} where a text must stand")):  # fmt: skip
        change(written, encoded=encoded | {"options": options})
        with pytest.raises(ValueError, match=f"has the option of the set {told}"):
            read_config(str(written))
    change(written, encoded=encoded | {"options": {"bin": True}})
    with pytest.raises(ValueError, match="has the unknown option of the set bin"):
        read_config(str(written))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"1" * 5000, "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"\xff\xff", "is no JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_config(str(path))
    with pytest.raises(FileNotFoundError, match="cannot be read .+: give the run.json in a folder of output/sana_tr"):
        read_config(str(tmp_path / "gone.json"))
