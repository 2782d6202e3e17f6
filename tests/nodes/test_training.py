"""The training nodes as the executor runs them: folder -> set -> encoded set -> LoRA, plot and pictures."""

import json
import os
from pathlib import Path

import folder_paths
import pytest
import safetensors
import torch
from comfy_execution.graph import ExecutionBlocker
from sana_native.nodes.training import listing, resolve_folder
from sana_native.nodes.training_run import run_files
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.workbench import OURS, call
from sana_native.tests.training.conftest import write_picture

SHORT = {"steps": 2, "rank": 2, "save_every": 0}


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """A folder of three pictures below the input folder, and empty ones for what is written."""
    for name in ("input", "output", "temp"):
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    for index in range(3):
        write_picture(tmp_path / "input" / "cats" / f"{index}.png", index)
    return tmp_path


def encoded() -> object:
    found, _ = call(OURS["TrainingSet"], folder="cats", size=64)
    return call(OURS["EncodeTrainingSet"], found, bench.vae(), bench.clip())[0]


@pytest.mark.usefixtures("folders")
def test_a_folder_becomes_a_lora_in_the_hosts_list():
    found, report = call(OURS["TrainingSet"], folder="cats", size=64)
    assert report == "3 pictures at 64 x 64 px" and len(found.samples) == 3
    positive, negative = bench.encoded()
    prompts = {"sample_positive": positive, "sample_negative": negative, "vae": bench.vae()}
    lora, loss, samples, plot, path = call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", **prompts, **SHORT)
    assert folder_paths.get_filename_list("loras") == ["cat_00001.safetensors"] and Path(path).is_file()
    assert len(loss["loss"]) == 2 and len(lora) == 24
    assert samples.shape == (2, 64, 64, 3) and samples.isfinite().all() and not torch.equal(*samples)
    assert plot.shape[0] == 1 and plot.shape[-1] == 3 and plot.std() > 0.01
    (changed,) = call(OURS["LoraLoader"], bench.model("sana"), "cat_00001.safetensors", 1.0)
    before, after = (bench.draw(model, bench.encoded()) for model in (bench.model("sana"), changed))
    assert not torch.equal(before, after)


def test_runs_count_up_and_the_last_is_gone_on_with(folders):
    data = encoded()
    for _ in range(2):
        call(OURS["TrainLora"], bench.model("sana"), data, "cat", **SHORT)
    assert sorted(path.name for path in (folders / "loras").iterdir()) == [
        "cat_00001.safetensors", "cat_00002.safetensors",
    ]  # fmt: skip
    _, loss, samples, _, path = call(
        OURS["TrainLora"], bench.model("sana"), data, "cat", resume="latest", **SHORT | {"steps": 3}
    )
    assert path.endswith("cat_00002.safetensors") and len(loss["loss"]) == 3
    assert isinstance(samples, ExecutionBlocker)


def test_a_result_without_its_run_is_not_written_over(folders):
    runs, loras = folders / "output" / "sana_training", folders / "loras"
    loras.mkdir()
    (loras / "cat_00003_step000250.safetensors").write_bytes(b"")
    assert run_files("cat", "new").result == str(loras / "cat_00004.safetensors")
    (runs / "cat_00001").mkdir(parents=True)
    (runs / "cat_00001" / "state.safetensors").write_bytes(b"")
    told = (
        r"The last run of the name, cat_00003, has no state in .+ to go on with: .+ or, to go on with cat_00001, move"
    )
    with pytest.raises(ValueError, match=told):
        run_files("cat", "latest")
    (loras / "cat_00003_step000250.safetensors").unlink()
    (runs / "cat_00002").mkdir()  # of a run that failed before its first save
    assert run_files("cat", "latest").result == str(loras / "cat_00001.safetensors")
    assert run_files("cat", "new").result == str(loras / "cat_00003.safetensors")


@pytest.mark.parametrize(("algorithm", "part"), [("DoRA", "dora_scale"), ("LoKr", "lokr_w1")])
def test_the_algorithm_of_the_node_is_trained_and_stands_in_its_run(folders, algorithm, part):
    lora, *_ = call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", algorithm=algorithm, **SHORT)
    assert sum(name.endswith(part) for name in lora) == 12
    run = folders / "output" / "sana_training" / "cat_00001" / "run.json"
    assert json.loads(run.read_text(encoding="utf-8"))["settings"]["algorithm"] == algorithm


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", ["learning_rate", "alpha"])
def test_settings_with_which_nothing_is_learned_are_refused(name):
    with pytest.raises(ValueError, match=f"Nothing is learned with {name} 0: enter .+, as usual."):
        call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", **SHORT | {name: 0.0})


def test_a_folder_is_found_with_quotes_and_the_bundled_one_without_its_slash(folders):
    cats = folders / "input" / "cats"
    for written in (f'"{cats}"', "cats/", " cats\n"):
        assert Path(resolve_folder(written)) == cats
    for written in ("sana-native-demo-pictures", "sana-native-demo-pictures/"):
        assert len(call(OURS["TrainingSet"], folder=written, size=256)[0].samples) == 10


def test_only_the_files_of_the_set_tell_of_a_change(folders):
    """A folder entered by mistake, such as the root, must not be walked through before it is refused."""
    cats = folders / "input" / "cats"
    before = listing("cats")
    assert [os.path.basename(path) for path, *_ in before] == [f"{i}.{end}" for i in range(3) for end in ("png", "txt")]
    (cats / "deep").mkdir()
    write_picture(cats / "deep" / "9.png", 9)
    assert listing("cats") == before and listing("no such folder") == []
    (cats / "1.txt").write_text("another caption", encoding="utf-8")
    write_picture(cats / "5_more" / "9.png", 9)
    after = listing("cats")
    assert after != before and len(after) == 8


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("name", "resume", "message"),
    [
        ("../cat", "new", "cannot be a file's"),
        ("", "new", "cannot be a file's"),
        ("\u732b" * 67, "new", "takes 201 bytes, and a file's 200: use a shorter one"),
        ("dog", "latest", "There is no run of the name dog to go on with"),
    ],
)
def test_names_without_a_file_or_a_run_are_refused(name, resume, message):
    with pytest.raises(ValueError, match=message):
        call(OURS["TrainLora"], bench.model("sana"), None, name, resume, **SHORT)


@pytest.mark.usefixtures("folders")
def test_sample_prompts_of_an_encoder_without_padding_count_as_a_whole():
    states, extra = bench.encoded()[0][0]
    states = states[:, : int(extra["attention_mask"].sum())]
    shown = []
    for own in ({}, {"attention_mask": torch.ones(1, states.shape[1])}):
        prompts = {"sample_positive": [[states, own]], "vae": bench.vae()}
        shown.append(call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", **prompts, **SHORT)[2])
    assert torch.equal(*shown)


@pytest.mark.usefixtures("folders")
def test_sample_prompts_of_another_encoder_are_refused():
    prompts = {"sample_positive": [[torch.zeros(1, 3, 32), {}]], "vae": bench.vae()}
    with pytest.raises(ValueError, match="The sample prompt was encoded to states of 32 where the captions have 64"):
        call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", **prompts, **SHORT)


@pytest.mark.usefixtures("folders")
def test_a_set_is_read_again_after_a_file_has_changed(folders):
    node = OURS["TrainingSet"]
    before = node.fingerprint_inputs(folder="cats", size=64)
    assert node.fingerprint_inputs(folder="cats", size=64) == before
    write_picture(folders / "input" / "cats" / "new.png", 9)
    assert node.fingerprint_inputs(folder="cats", size=64) != before
    with pytest.raises(ValueError, match="No folder was entered"):
        call(node, folder=" ")


def test_all_weights_become_a_model_in_the_hosts_list_that_goes_on_at_once(folders, monkeypatch):
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths,
        "diffusion_models",
        ([str(folders / "unet"), str(folders / "diffusion_models")], {".safetensors"}),
    )
    settings = {"steps": 2, "save_every": 0, "learning_rate": 1e-3}
    trained, loss, _, plot, path = call(OURS["TrainModel"], bench.model("sana"), encoded(), "cats", ema=0.9, **settings)
    assert folder_paths.get_filename_list("diffusion_models") == [
        "cats_00001.safetensors",
        "cats_00001_ema.safetensors",
    ]
    assert Path(path).parent.name == "diffusion_models" and len(loss["loss"]) == 2 and plot.std() > 0.01
    drawn = [bench.draw(model, bench.encoded()) for model in (bench.model("sana"), trained)]
    assert not torch.equal(*drawn)
    (listed,) = call(OURS["ModelLoader"], "cats_00001_ema.safetensors")
    assert torch.equal(bench.draw(listed, bench.encoded()), drawn[1])


@pytest.mark.usefixtures("folders")
def test_a_preset_takes_the_place_of_the_values_above_it():
    call(OURS["TrainLora"], bench.model("sana"), encoded(), "cat", preset="LoRA small", **SHORT)
    (path,) = map(Path, folder_paths.get_folder_paths("loras"))
    with safetensors.safe_open(path / "cat_00001.safetensors", "pt") as file:
        told = json.loads(file.metadata()["sana_training"])
    assert (told["rank"], told["alpha"], told["layers"], told["steps"]) == (4, 4.0, "attention qkv", 2)
