"""Training through the real server: the demo model learns a folder of pictures, is stopped, and goes on."""

import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file
from sana_native.tools.comfy_server import ComfyServer, Result, ServerError

DEMO = "sana-native-demo/"


def graph(name: str, node: str = "SanaNativeTrainLora", **inputs) -> dict:
    """A training of the demo model on its bundled pictures. node: which trains. inputs: its."""
    nodes = {
        "model": ("SanaNativeModelLoader", {"model_name": DEMO}),
        "clip": ("SanaNativeGemmaLoader", {"text_encoder_name": DEMO}),
        "vae": ("SanaNativeDCAELoader", {"vae_name": DEMO}),
        "set": ("SanaNativeTrainingSet", {"folder": "sana-native-demo-pictures/", "size": 256, "bins": False}),
        "report": ("PreviewAny", {"source": ["set", 1]}),
        "encode": ("SanaNativeEncodeTrainingSet", {"training_set": ["set", 0], "vae": ["vae", 0], "clip": ["clip", 0]}),
        "train": (
            node,
            {
                "model": ["model", 0],
                "encoded_set": ["encode", 0],
                "name": name,
                "steps": 20,
                "batch_size": 5,
                "learning_rate": 0.001,
                **inputs,
            },
        ),
        "plot": ("SaveImage", {"images": ["train", 3], "filename_prefix": "plot"}),
    }
    return {key: {"class_type": kind, "inputs": values} for key, (kind, values) in nodes.items()}


def generating(prompt: dict) -> dict:
    """The training with the pictures of the model before and after, and sample pictures."""
    text = {"clip": ["clip", 0], "prompt": "a big traffic light in the center on a pink background"}
    prompt["train"]["inputs"] |= {"sample_positive": ["text", 0], "sample_negative": ["text", 1], "vae": ["vae", 0]}
    lora = {"model": ["model", 0], "lora": ["train", 0], "strength_model": 1.0, "bypass": False}
    nodes = {
        "text": ("SanaNativeGemmaEncode", text),
        "samples": ("SaveImage", {"images": ["train", 2], "filename_prefix": "samples"}),
        "lora": ("LoraModelLoader", lora),
        "latent": ("SanaNativeEmptyLatent", {"size": "256"}),
    }
    for key, model in (("before", "model"), ("after", "lora")):
        sampling = {"positive": ["text", 0], "negative": ["text", 1], "latent_image": ["latent", 0], "steps": 8}
        nodes |= {
            f"{key} latent": ("SanaNativeSampler", {"model": [model, 0], "seed": 1, "cfg": 4.5, **sampling}),
            f"{key} image": ("SanaNativeDCAEDecode", {"vae": ["vae", 0], "samples": [f"{key} latent", 0]}),
            key: ("SaveImage", {"images": [f"{key} image", 0], "filename_prefix": key}),
        }
    return prompt | {key: {"class_type": kind, "inputs": values} for key, (kind, values) in nodes.items()}


@pytest.fixture(scope="module")
def server(comfy_server) -> ComfyServer:
    return comfy_server()


def picture(server: ComfyServer, result: Result, node: str) -> np.ndarray:
    (image,) = result.outputs[node]["images"]
    return np.asarray(Image.open(io.BytesIO(server.fetch_image(image)))).astype(int)


def lora_of(server: ComfyServer, name: str, folder: str = "loras") -> Path:
    return server.base_directory / "models" / folder / f"{name}.safetensors"


def step_of(path: Path) -> int:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["sana_training"])["step"]


def stop_at(server: ComfyServer, prompt: dict, step: int) -> Result:
    """Runs the prompt, and cancels it after a step of the training; the host tells of a few steps only.

    Loading the model's copy has a progress of its own on the same node, with another total.
    """
    asked = []

    def stop_once(node: str, done: int, total: int) -> None:
        if node == "train" and total == prompt["train"]["inputs"]["steps"] and done >= step and not asked:
            asked.append(done)
            server.interrupt()

    return server.run(prompt, stop_once, 300)


def test_a_folder_becomes_a_lora_that_changes_the_picture(server):
    result = server.run(generating(graph("whole", sample_every=10)), timeout=300)
    assert result.outputs["report"]["text"] == ["10 pictures at 256 x 256 px"]
    assert step_of(lora_of(server, "whole_00001")) == 20
    assert len(result.outputs["samples"]["images"]) == 2, "before and after"
    assert len(result.outputs["train"]["images"]) == 3, "and the curve"
    plot = picture(server, result, "plot")
    assert plot.shape == (540, 960, 3) and plot.std() > 10
    change = picture(server, result, "before") - picture(server, result, "after")
    assert np.abs(change).mean() > 2
    listed = server.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    assert "whole_00001.safetensors" in listed


def test_a_stopped_run_keeps_what_it_has_and_run_goes_on_again_and_again(server):
    """Run on an unchanged graph must not give the stopped result once more, as the host's cache would."""
    long = {"steps": 12, "accumulation": 4}  # the request to stop must come before the last step on a fast machine too
    result = stop_at(server, graph("stopped", **long), 2)
    path = lora_of(server, "stopped_00001")
    assert 2 <= step_of(path) < 12 and "plot" in result.outputs
    prompt = graph("stopped", resume="latest", **long)
    first = step_of(path)
    stop_at(server, prompt, 6)
    assert first < step_of(path) < 12
    server.run(prompt, timeout=300)
    assert step_of(path) == 12
    assert not lora_of(server, "stopped_00002").exists()
    server.run(graph("unstopped", **long), timeout=300)
    stopped, whole = load_file(path), load_file(lora_of(server, "unstopped_00001"))
    assert all(torch.equal(value, stopped[key]) for key, value in whole.items())


def test_a_stopped_training_of_all_weights_keeps_what_it_has_and_goes_on_to_the_bit(server):
    long = {"node": "SanaNativeTrainModel", "steps": 12, "accumulation": 4, "learning_rate": 1e-4, "ema": 0.9}
    path, average, whole = (
        lora_of(server, name, "diffusion_models") for name in ("all_00001", "all_00001_ema", "unstopped_all_00001")
    )
    stop_at(server, graph("all", **long), 2)
    first = step_of(path)
    assert 2 <= first < 12 and step_of(average) == first
    assert "all_00001.safetensors" in str(server.object_info()["SanaNativeModelLoader"])
    server.run(graph("all", resume="latest", **long), timeout=300)
    server.run(graph("unstopped_all", **long), timeout=300)
    assert step_of(path) == 12 and not lora_of(server, "all_00002", "diffusion_models").exists()
    for stopped, unstopped in ((path, whole), (average, whole.with_stem(f"{whole.stem}_ema"))):
        stopped, unstopped = load_file(stopped), load_file(unstopped)
        assert all(torch.equal(value, stopped[key]) for key, value in unstopped.items())


def test_run_after_a_stop_begins_a_new_run_where_that_is_chosen(server):
    stop_at(server, graph("anew", steps=1000), 4)
    before = lora_of(server, "anew_00001").read_bytes()
    stop_at(server, graph("anew", steps=1000), 1)
    assert step_of(lora_of(server, "anew_00001")) < 1000 and step_of(lora_of(server, "anew_00002")) < 1000
    assert lora_of(server, "anew_00001").read_bytes() == before


def test_run_encodes_again_what_was_removed_from_the_cache_or_damaged_there(server):
    server.run(graph("cache", steps=1), timeout=300)
    latents = sorted((server.base_directory / "output" / "sana_training" / "cache").glob("latent*"))
    latents[0].write_bytes(latents[0].read_bytes()[:100])
    prompt = graph("cache", steps=2)
    with pytest.raises(ServerError, match="latent.+ was damaged, and is not in the cache any more: run SANA Encode"):
        server.run(prompt, timeout=300)
    server.run(prompt, timeout=300)
    for path in latents:
        path.unlink()
    prompt = graph("cache", steps=3)
    with suppress(ServerError):  # not where the host, short of memory, dropped the encoded set from its own cache
        server.run(prompt, timeout=300)
    server.run(prompt, timeout=300)
    # A run that failed keeps its number, under which its run.json lies.
    assert step_of(max((server.base_directory / "models" / "loras").glob("cache_*.safetensors"))) == 3


def test_a_run_without_a_step_left_says_so(server):
    server.run(graph("done", steps=2), timeout=300)
    server.run(graph("done", steps=1, resume="latest"), timeout=300)
    assert "The run has 2 steps already: enter more than that in steps to go on with it." in server.log()
    assert step_of(lora_of(server, "done_00001")) == 2


def test_faults_name_the_node_and_the_cure(server):
    prompt = graph("bad")
    prompt["set"]["inputs"]["folder"] = "no such folder"
    with pytest.raises(ServerError, match=r"Node set .+no such folder is no folder: enter the folder with the picture"):
        server.run(prompt, timeout=300)
    prompt = graph("bad")
    prompt["model"]["inputs"]["model_name"] = "sana-native-demo-sprint/"
    with pytest.raises(ServerError, match=r"Node train .+SANA-Sprint cannot be trained as a plain flow"):
        server.run(prompt, timeout=300)
    assert not list((server.base_directory / "models" / "loras").glob("bad*"))
