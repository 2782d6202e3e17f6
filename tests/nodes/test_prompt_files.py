"""Prompt files through the real server: a run for each line, saved one by one, again only where an image is missing."""

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sana_native.tests.support.graphs import SAMPLER_LINKS
from sana_native.tools.comfy_server import ComfyServer, ServerError
from sana_native.tools.workflow import choices

DEMO, SIDE = "sana-native-demo/", 64


def graph(file: str, folder: str, **inputs) -> dict:
    """The demo's graph with a prompt file, one step. inputs: of SANA Prompts From File and SANA Save Named."""
    saving = {key: inputs.pop(key) for key in ("format", "skip_existing") if key in inputs}
    rows = {name: ["rows", slot] for slot, name in enumerate(
        ("prompt", "negative", "width", "height", "seed", "steps", "cfg", "name"))}  # fmt: skip
    sampling = {name: rows[name] for name in ("seed", "steps", "cfg")}
    nodes = {
        "rows": ("SanaNativePromptsFromFile", {"file": file, "size": "256", "steps": 1, **inputs}),
        "model": ("SanaNativeModelLoader", {"model_name": DEMO}),
        "clip": ("SanaNativeGemmaLoader", {"text_encoder_name": DEMO}),
        "vae": ("SanaNativeDCAELoader", {"vae_name": DEMO}),
        "text": (
            "SanaNativeGemmaEncode",
            {"clip": ["clip", 0], "prompt": rows["prompt"], "negative_prompt": rows["negative"], "instruction": "off"},
        ),
        "latent": ("SanaNativeEmptyLatent", {"size": "custom", "width": rows["width"], "height": rows["height"]}),
        "sampler": ("SanaNativeSampler", SAMPLER_LINKS | sampling),
        "image": ("SanaNativeDCAEDecode", {"vae": ["vae", 0], "samples": ["sampler", 0]}),
        "save": (
            "SanaNativeSaveNamed",
            {
                "images": ["image", 0],
                "name": rows["name"],
                "folder": folder,
                "prompt": rows["prompt"],
                "seed": rows["seed"],
                **saving,
            },
        ),
    }
    return {name: {"class_type": kind, "inputs": values} for name, (kind, values) in nodes.items()}


@pytest.fixture(scope="module")
def server(comfy_server) -> ComfyServer:
    return comfy_server()


@pytest.fixture
def place(server, request) -> Path:
    """A folder of a test's own below the output folder; the graph is given its name."""
    return server.base_directory / "output" / request.node.name[:40].replace("[", "-").replace("]", "")


def write(server: ComfyServer, name: str, text: str | bytes) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    (server.base_directory / "input" / name).write_bytes(data)
    return name


def finish(server: ComfyServer, prompt: dict, seconds: float = 120) -> list[dict]:
    """Runs a prompt and what it queues; the records of all these runs, in their order."""
    before = set(server._get_json("/history"))
    server.run(prompt, timeout=seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        queue = server._get_json("/queue")
        if not queue["queue_running"] and not queue["queue_pending"]:
            history = server._get_json("/history")
            found = [record for prompt_id, record in history.items() if prompt_id not in before]
            return sorted(found, key=lambda record: record["prompt"][0])
        time.sleep(0.1)
    raise AssertionError("the queue did not end")


def pictures(place: Path) -> dict[str, bytes]:
    """Name -> pixels of the images, without the graph that the file holds."""
    return {path.name: Image.open(path).tobytes() for path in sorted(place.iterdir())}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


THINGS = ["cat", "dog", "fox", "lemon", "heart", "moon", "star", "rocket", "tree", "pizza", "house", "cake"]
LINES = [f"a {thing} on a blue background --size {SIDE}x{SIDE}" for thing in THINGS]


def test_every_line_is_a_run_saved_by_itself_and_a_bad_one_stops_none(server, place):
    lines = [*LINES[:10], "a bad line --seed x", LINES[11]]
    records = finish(server, graph(write(server, "bad.txt", "\n".join(lines)), place.name))
    names = [f"{index:09}.png" for index in range(12) if index != 10]
    assert sorted(path.name for path in place.iterdir()) == names
    assert len(records) == 11 and all(record["status"]["completed"] for record in records)
    saved = [record["outputs"]["save"]["images"][0]["filename"] for record in records]
    assert saved == names, "in the order of the file"
    assert 'Skipped line 11: needs an integer of 0 to 18446744073709551615 for seed, not "x"' in server.log()


def test_a_run_again_makes_only_what_is_missing_and_the_same(server, place):
    prompt = graph(write(server, "again.txt", "\n".join(LINES[:10])), place.name)
    finish(server, prompt)
    before = pictures(place)
    times = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    (place / "000000004.png").unlink()
    records = finish(server, prompt)
    assert len(records) == 1 and pictures(place) == before
    changed = {path.name for path in place.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"000000004.png"}


def test_nothing_runs_when_all_are_there(server, place):
    prompt = graph(write(server, "done.txt", "\n".join(LINES[:2])), place.name)
    finish(server, prompt)
    (record,) = finish(server, prompt)
    assert record["status"]["completed"] and "save" not in record["outputs"]
    assert "All 2 images are there already: delete those to generate again." in server.log()


def test_images_depend_neither_on_the_file_around_them_nor_on_the_order(server, place):
    """Halves of a file, by cutting it and by start and count, and the mode list: the same images."""
    lines = LINES[:4]
    whole = write(server, "whole.txt", "\n".join(lines))
    half = write(server, "half.txt", "\n".join(lines[:2]))
    for name, prompt in {
        "a": graph(whole, f"{place.name}/a", seed_base=7),
        "b": graph(half, f"{place.name}/b", seed_base=7),
        "c": graph(whole, f"{place.name}/c", seed_base=7, start=2, count=2),
        "d": graph(whole, f"{place.name}/d", seed_base=7, mode="list"),
    }.items():
        finish(server, prompt)
        assert (place / name).is_dir()
    a, b, c, d = (pictures(place / name) for name in "abcd")
    assert len(a) == 4 and len(set(a.values())) == 4
    assert b == dict(list(a.items())[:2]) and c == dict(list(a.items())[2:]) and d == a


@pytest.mark.parametrize("mode", ["queue", "list"])
def test_sizes_may_differ_in_one_file(server, place, mode):
    lines = ["a cat --size 96x64", "a cat --hw 96:64", "a cat --size 64x64"]
    finish(server, graph(write(server, "sizes.txt", "\n".join(lines)), place.name, mode=mode))
    sizes = [Image.open(place / f"00000000{index}.png").size for index in range(3)]
    assert sizes == [(96, 64), (64, 96), (64, 64)]


def test_a_ratio_is_wide_unless_nvidias_order_is_asked_for(server, place):
    file = write(server, "ratio.txt", "a cat --ar 16:9")
    for folder, nvlabs in (("wide", False), ("tall", True)):
        finish(server, graph(file, f"{place.name}/{folder}", nvlabs_tags=nvlabs))
    wide, tall = (Image.open(place / folder / "000000000.png").size for folder in ("wide", "tall"))
    assert wide[0] > wide[1] and tall == wide[::-1]


def test_the_file_says_its_own_prompt_and_seed_beside_the_graph(server, place):
    text = f'{{"id": "a/b: c?", "prompt": "a cat, \u732b", "size": "{SIDE}x{SIDE}"}}\n"a dog --size {SIDE}x{SIDE}"'
    finish(server, graph(write(server, "text.jsonl", text), place.name, seed_base=40))
    with Image.open(place / "a_b_ c_.png") as first, Image.open(place / "000000001.png") as second:
        assert (first.text["Description"], first.text["Seed"]) == ("a cat, \u732b", "40")
        assert (second.text["Description"], second.text["Seed"]) == ("a dog", "41")
        made_by = json.loads(second.text["prompt"])
    assert made_by["rows"]["inputs"] | {"start": 1, "count": 1} == made_by["rows"]["inputs"]


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_other_formats_resume_too(server, place, format):
    prompt = graph(write(server, "formats.txt", LINES[0]), place.name, format=format)
    finish(server, prompt)
    (path,) = place.iterdir()
    written = path.stat().st_mtime_ns
    with Image.open(path) as picture:
        assert picture.format == {"jpg": "JPEG", "webp": "WEBP"}[format] and picture.size == (SIDE, SIDE)
        assert picture.getexif()[0x010E] == "Description: a cat on a blue background\nSeed: 0"
        assert picture.getexif().get(0x0110, "").startswith("prompt:{") == (format == "webp")
    finish(server, prompt)
    assert path.name == f"000000000.{format}" and path.stat().st_mtime_ns == written
    finish(server, graph("formats.txt", place.name, format=format, skip_existing=False))
    assert path.stat().st_mtime_ns > written


def test_an_error_of_one_line_ends_its_run_alone(server, place):
    prompt = graph(write(server, "error.txt", "\n".join(LINES[:3])), place.name)
    blocked = place / "000000001.png"
    blocked.mkdir(parents=True)  # in the way of the second image
    prompt["save"]["inputs"]["skip_existing"] = False
    records = finish(server, prompt)
    assert [record["status"]["completed"] for record in records] == [True, False, True]
    assert (place / "000000002.png").is_file()
    assert re.search(r"cannot be written \(.+?\): choose another folder", json.dumps(records[1]["status"]))


def test_clearing_the_queue_ends_the_file(server, place):
    """What runs is finished, and nothing more is queued behind it."""
    lines = [line + " --steps 40" for line in LINES]
    server.queue(graph(write(server, "long.txt", "\n".join(lines)), place.name))
    end = time.monotonic() + 60
    while len(server._get_json("/queue")["queue_pending"]) < 8 and time.monotonic() < end:
        time.sleep(0.02)
    server._request("/queue", {"clear": True})
    finish(server, {"one": {"class_type": "PreviewAny", "inputs": {"source": "x"}}})
    assert len(list(place.iterdir())) < 4


def test_two_nodes_do_not_queue_each_others_lines(server, place):
    prompt = graph(write(server, "two.txt", LINES[0]), place.name)
    prompt["again"] = prompt["rows"]
    prompt["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["again", 0]}}
    with pytest.raises(ServerError, match="set the mode of one to list"):
        server.run(prompt, timeout=60)


def test_a_file_without_prompts_is_one_sentence(server, place):
    with pytest.raises(ServerError, match="There is no prompt in this part of the file. Skipped line 1: has no prompt"):
        server.run(graph(write(server, "none.txt", "--ar 1:1\n# a remark\n"), place.name), timeout=60)


@pytest.mark.parametrize(("text", "start"), [("", 0), ("# a remark\n\n", 0), (LINES[0], 50)])
def test_a_part_without_a_line_names_the_cure(server, place, text, start):
    with pytest.raises(ServerError, match="file: write one a line, or set start and count to 0 for the whole file."):
        server.run(graph(write(server, "part.txt", text), place.name, start=start), timeout=60)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_image_without_a_name_is_refused_before_it_is_generated(server, place, name):
    """All graphs without one would share a file, and only the first image would be generated."""
    prompt = graph(write(server, "unnamed.txt", LINES[0]), place.name)
    prompt["save"]["inputs"]["name"] = name
    with pytest.raises(ServerError, match="An image has no name: write one in name, or link the name of SANA Prompts"):
        server.run(prompt, timeout=60)
    assert not place.exists()


def test_the_packs_own_files_are_in_the_list_after_the_users(server):
    write(server, "mine.CSV", "prompt\na")
    files = choices(server.object_info()["SanaNativePromptsFromFile"]["input"]["required"]["file"])
    assert "mine.CSV" in files and files[-2:] == ["sana-native-demo.txt", "sana-native-example.jsonl"]


def test_the_image_is_served_as_any_output(server, place):
    result = server.run(graph(write(server, "served.txt", LINES[0]), f"{place.name}/deep"), timeout=60)
    (image,) = result.images()
    assert image["subfolder"] == f"{place.name}/deep"
    assert Image.open(io.BytesIO(server.fetch_image(image))).size == (SIDE, SIDE)


def test_a_list_becomes_one_batch_of_named_images_fitted_to_what_was_asked(server, place):
    """In mode list through SANA Prompt Batch, Size and Fit Back; each image as in the queue, but for rounding."""
    file = write(server, "batch.txt", "a cat --neg dark\na dog\na fox\n")
    prompt = graph(file, f"{place.name}/batch", mode="list")
    prompt["text"] = {
        "class_type": "SanaNativePromptBatch",
        "inputs": {
            "clip": ["clip", 0],
            "prompts": ["rows", 0],
            "negative_prompts": ["rows", 1],
            "instruction": "off",
        },
    }
    prompt["size"] = {"class_type": "SanaNativeSize", "inputs": {"width": 100, "height": 60, "size": "exact"}}
    sides = {"width": ["size", 0], "height": ["size", 1]}
    prompt["latent"]["inputs"] |= {**sides, "batch_size": ["text", 2]}
    prompt["sampler"]["inputs"] |= {"seed": 3, "steps": 2, "cfg": 4.5}
    wanted = {"image": ["image", 0], "width": 100, "height": 60}
    prompt["back"] = {"class_type": "SanaNativeFitBack", "inputs": wanted}
    prompt["save"]["inputs"]["images"] = ["back", 0]
    (record,) = finish(server, prompt)
    saved = [image["filename"] for image in record["outputs"]["save"]["images"]]
    assert saved == ["000000000.png", "000000001.png", "000000002.png"]

    alone = graph(file, f"{place.name}/alone", start=1, count=1)
    alone |= {name: prompt[name] for name in ("size", "back")}
    alone["latent"]["inputs"] |= {**sides, "batch_size": 3}
    alone["one"] = {
        "class_type": "LatentFromBatch",
        "inputs": {"samples": ["latent", 0], "batch_index": 1, "length": 1},
    }
    alone["sampler"]["inputs"] |= {"latent_image": ["one", 0], "seed": 3, "steps": 2, "cfg": 4.5}
    alone["save"]["inputs"]["images"] = ["back", 0]
    finish(server, alone)
    together, single = (pixels_of(place / folder / "000000001.png") for folder in ("batch", "alone"))
    assert together.shape == (60, 100, 3) and np.abs(together - single).max() <= 1
    assert np.abs(together - pixels_of(place / "batch" / "000000000.png")).max() > 50
