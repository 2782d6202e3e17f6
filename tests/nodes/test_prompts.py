"""Prompts in number: each image of a batch as alone, styles, names, sizes and the way back to what was asked."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import comfy.sample
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
from PIL import Image
from sana_native.nodes import prompt_queue, prompts, save_named
from sana_native.scale.rows import BadRow, Row
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.workbench import OURS, call

PROMPTS = ["a cat", "a dog in a busy city street at night", "x"]


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def batch(texts, negatives="", **inputs) -> tuple[list, list, int]:
    return call(OURS["PromptBatch"], [bench.clip()], texts, negatives, **inputs)


# SANA Prompt Batch


@pytest.fixture
def model(monkeypatch):
    """SANA whose time embedding computes row by row.

    For another number of rows PyTorch may take another kernel, which rounds otherwise. With guidance and on this
    model's sizes the time embedding is the one layer where it does; without guidance, as in Sprint, there are more.
    """
    embed = bench.model("sana").model.diffusion_model.time_embed
    whole = embed.forward

    def row_by_row(timesteps, guidance, dtype):
        rows = [whole(timestep, guidance, dtype) for timestep in timesteps.split(1)]
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    monkeypatch.setattr(embed, "forward", row_by_row)
    return bench.model("sana")


NEGATIVES = ["", "blurry, dark", "noise"]


@pytest.mark.parametrize("instruction", ["on", "off"])
def test_each_image_of_a_batch_of_prompts_is_bit_equal_to_itself_alone(model, instruction):
    *conds, count = batch(PROMPTS, NEGATIVES, instruction=[instruction])
    together = bench.draw(model, conds, bench.empty(batch_size=3) | {"batch_index": [0, 1, 2]})
    assert count == 3 and len(set(map(lambda image: image.numpy().tobytes(), together))) == 3
    for index, pair in enumerate(zip(PROMPTS, NEGATIVES, strict=True)):
        latent = bench.empty() | {"batch_index": [index]}
        assert torch.equal(bench.draw(model, bench.encode(*pair, instruction), latent)[0], together[index]), index


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_the_size_of_the_batch_changes_an_image_by_rounding_alone(family):
    *conds, _ = batch(PROMPTS, NEGATIVES)
    together = bench.draw(bench.model(family), conds, bench.empty(batch_size=3) | {"batch_index": [0, 1, 2]})
    for index, pair in enumerate(zip(PROMPTS, NEGATIVES, strict=True)):
        alone = bench.draw(bench.model(family), bench.encode(*pair), bench.empty() | {"batch_index": [index]})
        assert bench.relative(together[index], alone[0]) < 1e-5


def test_rows_of_a_batch_are_those_of_each_prompt_alone():
    *conds, _ = batch(PROMPTS, NEGATIVES)
    for index, pair in enumerate(zip(PROMPTS, NEGATIVES, strict=True)):
        for ((states, extra),), ((own, own_extra),) in zip(conds, bench.encode(*pair), strict=True):
            assert torch.equal(states[index], own[0])
            assert torch.equal(extra["attention_mask"][index], own_extra["attention_mask"][0])


def test_lines_and_a_list_are_the_same_prompts():
    lines, listed = batch(["\n a cat\r\n\nx "]), batch(["a cat", "x"])
    assert lines[2] == listed[2] == 2
    assert all(torch.equal(a[0][0], b[0][0]) for a, b in zip(lines[:2], listed[:2], strict=True))


def test_the_weights_of_a_prompt_without_are_ones():
    first = [[torch.zeros(1, 4, 2), {"attention_mask": torch.ones(1, 4), "token_weights": torch.full((1, 4), 1.5)}]]
    second = [[torch.ones(1, 4, 2), {"attention_mask": torch.zeros(1, 4)}]]
    for conds in ([first, second], [second, first]):
        ((states, extra),) = prompts.stack_conds(conds)
        assert states.shape == (2, 4, 2) and extra["attention_mask"].shape == (2, 4)
        assert sorted(extra["token_weights"].mean(dim=1).tolist()) == [1.0, 1.5]


@pytest.mark.parametrize(
    ("texts", "negatives", "sentence"),
    [
        ([" \n"], "", "There is no prompt: write one a line."),
        (["a\nb\nc"], ["d\ne"], "There are 2 negative prompts for 3 prompts: write one for all, or one for each."),
    ],
)
def test_a_batch_that_does_not_add_up_is_refused(texts, negatives, sentence):
    with pytest.raises(ValueError, match=sentence):
        batch(texts, negatives)


def test_prompts_of_an_encoder_that_pads_none_are_filled_up():
    """Lumina-Next: each image is the one of its prompt alone but for rounding."""
    model, texts = bench.lumina(), ["a cat", "a dog in a busy city street at night"]
    *conds, _ = call(OURS["PromptBatch"], [bench.lumina_clip()], texts)
    alone = [call(OURS["GemmaEncode"], bench.lumina_clip(), text, "") for text in texts]
    lengths = [positive[0][0].shape[1] for positive, _ in alone]
    assert lengths[0] < lengths[1] and conds[0][0][1]["attention_mask"].sum(dim=1).tolist() == lengths
    latent = {"samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1]}
    together = call(OURS["Sampler"], model, *conds, latent, 7, 2, 4.0)[0]["samples"]
    for index, pair in enumerate(alone):
        latent = {"samples": torch.zeros(1, 4, 8, 8), "batch_index": [index]}
        one = call(OURS["Sampler"], model, *pair, latent, 7, 2, 4.0)[0]["samples"]
        assert bench.relative(together[index], one[0]) < 1e-5


def test_a_schedule_of_hooks_is_refused():
    one = [[torch.zeros(1, 3, 2), {}]]
    with pytest.raises(ValueError, match="A prompt with a schedule of hooks cannot be one of a batch"):
        prompts.stack_conds([one, one + one])


# SANA Seeds


def test_images_of_a_list_of_seeds_are_those_of_each_seed_alone():
    model, conds, seeds = bench.model("sana"), bench.encoded(), [5, 2**64 - 1, 5, 8]
    (noise,) = call(OURS["Seeds"], ["5, 18446744073709551615 5\n8"])
    (guider,) = call(CFGGuider, model, *conds, 4.5)
    (sampler,) = call(OURS["FlowDPMSampler"])
    (sigmas,) = call(OURS["FlowScheduler"], model, 2)
    latent = bench.empty(batch_size=4)
    together = call(SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent)[0]["samples"]
    for index, seed in enumerate(seeds):
        alone = comfy.sample.prepare_noise(latent["samples"][:1], seed)
        assert torch.equal(noise.generate_noise(latent)[index], alone[0])
        assert bench.relative(together[index], bench.draw(model, conds, seed=seed)[0]) < 1e-5
    assert torch.equal(together[0], together[2]) and bench.relative(together[0], together[1]) > 0.1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([" , "], "There is no seed: write one for each image of the batch."),
        (["1 -2"], '"-2" is no seed: write integers of 0 to 18446744073709551615'),
        (["18446744073709551616"], "is no seed"),
        (["\ud83d"], r'^"\\ud83d" is no seed'),
    ],
)
def test_what_is_no_seed_is_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(OURS["Seeds"], given)


def test_seeds_of_a_linked_list_must_be_as_many_as_the_batch():
    (noise,) = call(OURS["Seeds"], [4, 5])
    with pytest.raises(ValueError, match="There are 2 seeds for a batch of 3: set the latent's batch_size to 2."):
        noise.generate_noise(bench.empty(batch_size=3))


# SANA Prompts From File, without a server


def run(file: str, **inputs) -> tuple:
    return asyncio.run(OURS["PromptsFromFile"].execute(file, **inputs)).result


@pytest.fixture
def source(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    lines = ["a cat", "a dog --neg dark --seed 9 --steps 3 --cfg 0", "a fox --ar 3:2", "a bad --seed x"]
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    return "p.txt"


def test_what_a_line_leaves_open_is_the_nodes(source):
    found = run(source, mode="list", seed_base=100, size="512", negative_prompt="blurry", steps=7, cfg=2.0)
    assert found == (
        ["a cat", "a dog", "a fox"],
        ["blurry", "dark", "blurry"],
        [512, 512, 608],
        [512, 512, 416],
        [100, 9, 102],
        [7, 3, 7],
        [2.0, 0.0, 2.0],
        ["000000000", "000000001", "000000002"],
        3,
    )


def test_start_and_count_choose_lines_and_change_none(source):
    whole, part = run(source, mode="list"), run(source, mode="list", start=1, count=2)
    assert part == (*(column[1:] for column in whole[:8]), 2)


@pytest.mark.parametrize("style", list(prompts.styles()))
def test_a_style_goes_around_the_prompt_and_behind_the_negative(source, style):
    text, negative = (column[1] for column in run(source, mode="list", style=style)[:2])
    template = prompts.styles()[style]
    assert text == template["prompt"].replace("{prompt}", "a dog") and "a dog" in text and "{" not in text
    assert negative == f"dark, {template['negative']}"
    assert run(source, mode="list", style=style)[1][0] == template["negative"]


def test_the_styles_are_those_of_nvidias_demo():
    names = "Cinematic, Photographic, Anime, Manga, Digital Art, Pixel art, Fantasy art, Neonpunk, 3D Model"
    assert list(prompts.styles()) == names.split(", ")


@pytest.mark.parametrize("name", prompts.BUNDLED)
def test_every_line_of_the_packs_files_can_be_read(name, source):  # noqa: ARG001 - without files of these names
    found = run(name, mode="list", size="256")
    assert found[8] >= 4 and all(len(column) == found[8] for column in found[:8])
    assert [side % 32 for side in found[2] + found[3]] == [0] * 2 * found[8]


def test_a_file_that_is_gone_is_named(source):  # noqa: ARG001 - sets the folder
    with pytest.raises(FileNotFoundError, match=r"gone\.txt is not in ComfyUI's input folder any more: refresh"):
        run("gone.txt", mode="list")


def test_the_queue_needs_a_server(source):
    with pytest.raises(ValueError, match="The mode queue needs ComfyUI's server, which does not run here: choose list"):
        run(source)


def test_many_bad_lines_are_counted_and_some_named():
    bad = [BadRow(index, f"line {index}", "is bad") for index in range(50)]
    found = prompt_queue.survey([*bad, Row(50, "line 50", "a", "p")], 0, 100, lambda _: False, None)
    assert (found.total, found.bad_total, len(found.bad)) == (1, 50, 20)
    assert found.sentences()[-1] == "Skipped 30 more lines that cannot be read."


# SANA Save Named


def save(images, names, **inputs) -> tuple[list[str], list[dict]]:
    result = OURS["SaveNamed"].execute(images, names, **inputs)
    return result.result[0].split("\n"), result.ui["images"]


def test_unsafe_names_and_folders_stay_below_the_output_folder(output):
    images = [bench.picture(32, 32, seed) for seed in range(3)]
    paths, files = save(images, ["a/b: c?", "../../x", "con"], folder=["../..\\up/./de:ep"])
    assert [Path(path).relative_to(output).as_posix() for path in paths] == [
        "up/de_ep/a_b_ c_.png", "up/de_ep/_.._x.png", "up/de_ep/_con.png"
    ]  # fmt: skip
    assert all(Path(path).is_file() for path in paths) and {file["subfolder"] for file in files} == {"up/de_ep"}
    with Image.open(paths[0]) as picture:
        expected = (images[0][0] * 255).to(torch.uint8).flatten().tolist()
        assert list(picture.tobytes()) == expected


@pytest.mark.parametrize(
    ("sizes", "names", "expected"),
    [
        ([1, 1], ["a", "b"], ["a", "b"]),
        ([3], ["a", "b", "c"], ["a", "b", "c"]),
        ([2, 1], ["a", "b"], ["a_0", "a_1", "b"]),
        ([3], ["a"], ["a_0", "a_1", "a_2"]),
        ([1, 1], ["a"], ["a_0", "a_1"]),
    ],
)
def test_images_and_names_are_matched(output, sizes, names, expected):  # noqa: ARG001 - sets the folder
    paths, _ = save([torch.rand(size, 32, 32, 3) for size in sizes], names)
    assert [Path(path).stem for path in paths] == expected
    assert OURS["SaveNamed"].check_lazy_status(names) == []


def test_images_without_a_name_each_are_refused(output):
    with pytest.raises(ValueError, match="There are 3 images and 2 names: give one name for each image."):
        save([torch.rand(3, 32, 32, 3)], ["a", "b"])
    assert not list(output.rglob("*.png"))


def test_images_that_exist_are_neither_asked_for_nor_written(output):
    save([bench.picture(32, 32)], ["a"], folder=["x"])
    lazy = OURS["SaveNamed"].check_lazy_status
    assert lazy(["a"], ["x"]) == [] and lazy(["a", "b"], ["x"]) == ["images"] == lazy(["a"], ["y"])
    assert lazy(["a"], ["x"], ["jpg"]) == ["images"] == lazy(["a"], ["x"], ["png"], [False])
    before = (output / "x" / "a.png").stat().st_mtime_ns
    paths, files = save([None], ["a"], folder=["x"])
    assert files == [{"filename": "a.png", "subfolder": "x", "type": "output"}] and paths == [str(output / "x/a.png")]
    save([bench.picture(32, 32, 9)], ["a"], folder=["x"])
    assert (output / "x" / "a.png").stat().st_mtime_ns == before


def test_a_stopped_write_leaves_nothing_under_the_name(output, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_named.os, "replace", full)
    with pytest.raises(OSError, match=r"a\.png cannot be written \(No space left on device\): choose another folder"):
        save([bench.picture(32, 32)], ["a"])
    assert not [path for path in output.rglob("*") if path.is_file()]


def test_a_batch_that_was_stopped_in_the_middle_is_asked_for_again(output, monkeypatch):
    """Disk full at the second of three files: the batch must not count as saved by what was written."""
    replace, written = save_named.os.replace, []

    def full_at_second(part, path):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        replace(part, path)

    monkeypatch.setattr(save_named.os, "replace", full_at_second)
    batch = torch.rand(3, 32, 32, 3)
    with pytest.raises(OSError, match="No space left on device"):
        save([batch], ["a"])
    assert OURS["SaveNamed"].check_lazy_status(["a"]) == ["images"]
    paths, _ = save([batch], ["a"])
    assert [Path(path).stem for path in paths] == ["a_0", "a_1", "a_2"] == sorted(p.stem for p in output.rglob("*.png"))


def test_the_graph_is_in_the_file_as_the_hosts_save_nodes_write_it(output, monkeypatch):
    hidden = SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(OURS["SaveNamed"], "hidden", hidden)
    for format in ("png", "webp"):
        save([bench.picture(32, 32)], ["a"], format=[format], prompt=["a cat"], seed=[3])
    with Image.open(output / "prompts" / "a.png") as png, Image.open(output / "prompts" / "a.webp") as webp:
        assert png.text == {"prompt": '{"1": {}}', "workflow": '{"nodes": []}', "Description": "a cat", "Seed": "3"}
        exif = webp.getexif()
    assert exif[0x0110] == "prompt:" + json.dumps({"1": {}}) and exif[0x010F] == 'workflow:{"nodes": []}'


# SANA Size, SANA Fit Back


@pytest.mark.parametrize("method", ["lanczos", "bicubic"])
@pytest.mark.parametrize(
    ("wanted", "generated"),
    [((1280, 960), (1152, 832)), ((100, 150), (96, 160)), ((333, 77), (320, 96)), ((640, 640), (640, 640))],
)
def test_an_image_comes_back_at_the_size_that_was_asked_for(method, wanted, generated):
    image = bench.picture(*generated)
    (covered,) = call(OURS["FitBack"], image, *wanted, "cover", method)
    (contained,) = call(OURS["FitBack"], image, *wanted, "contain", method)
    assert covered.shape == (1, wanted[1], wanted[0], 3)
    assert contained.shape[2] == wanted[0] or contained.shape[1] == wanted[1]
    assert contained.shape[2] <= wanted[0] and contained.shape[1] <= wanted[1]
    assert 0 <= covered.min() and covered.max() <= 1
    if wanted == generated:
        assert torch.equal(covered, image) and torch.equal(contained, image)


def test_a_shape_that_would_need_a_huge_image_to_crop_from_is_refused():
    image = torch.zeros(1, 96, 64, 3)
    with pytest.raises(ValueError, match="16384 x 1 px is too far from the shape of the image, 64 x 96 px"):
        call(OURS["FitBack"], image, 16384, 1, "cover")
    assert call(OURS["FitBack"], image, 1, 3000, "contain")[0].shape == (1, 1, 1, 3)
    assert call(OURS["FitBack"], image, 1000, 1, "cover")[0].shape == (1, 1, 1000, 3)


def test_what_stands_out_is_cropped_on_both_sides():
    image = torch.linspace(0, 1, 96).expand(1, 32, 96)[..., None].expand(-1, -1, -1, 3)
    (cropped,) = call(OURS["FitBack"], image, 32, 32)
    assert torch.equal(cropped, image[:, :, 32:64])


@pytest.mark.parametrize(
    ("wanted", "size", "expected"),
    [
        ((1280, 960), "1024", (1152, 832)),
        ((960, 1280), "1024", (832, 1152)),
        ((1920, 1080), "2048", (2688, 1536)),
        ((1000, 1500), "exact", (1024, 1504)),
        ((33, 1), "exact", (64, 32)),
        ((500, 500), "256", (256, 256)),
    ],
)
def test_the_size_to_generate_at(wanted, size, expected):
    assert call(OURS["Size"], *wanted, size) == expected


def test_a_trained_size_stays_itself():
    for size in ("512", "1024", "2048", "4096"):
        for label in OURS["EmptyLatent"].GET_SCHEMA().inputs[1].options:
            width, height = call(OURS["EmptyLatent"], size, label)[0]["samples"].shape[:1:-1]
            assert call(OURS["Size"], width * 32, height * 32, size) == (width * 32, height * 32)
