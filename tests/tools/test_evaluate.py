"""make evaluate: numbers of a folder of pictures with intervals, as JSON and table; what is missing is named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sana_native.nodes.save_named import Target
from sana_native.tests.support.clips import host_text, host_vision, random_clip
from sana_native.tools import evaluate, evaluation_files, evaluation_pictures
from sana_native.tools.evaluate import EvaluationError, find_pictures, prompts_of, read_arguments


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of two sizes with a text beside each, and a CLIP file that is never read."""
    rng = np.random.default_rng(1)
    place = tmp_path / "pictures" / "deep"
    place.mkdir(parents=True)
    for i in range(12):
        size = (32, 48) if i % 2 else (32, 32)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(place / f"{i:02}.png")
        (place / f"{i:02}.txt").write_text(f"prompt {i}\n", encoding="utf-8")
    (tmp_path / "clip.safetensors").write_bytes(b"stands in for its name and size")
    return tmp_path


@pytest.fixture
def small_clip(monkeypatch) -> list[str]:
    """A small random CLIP in place of the file's; what was loaded."""
    state, loaded = random_clip().state_dict(), []

    def load(build, name):
        return lambda _clip: (loaded.append(name), build(state))[1]

    monkeypatch.setattr(evaluation_files, "load_clip", load(host_text, "text"))
    monkeypatch.setattr(evaluation_files, "load_clip_vision", load(host_vision, "vision"))
    return loaded


def run(folder, *arguments: str) -> dict:
    given = read_arguments(
        ["--pictures", str(folder / "pictures"), "--clip", str(folder / "clip.safetensors"),
         "--out", str(folder / "out" / "scores.json"), *arguments]
    )  # fmt: skip
    evaluate.evaluate(given)
    return json.loads((folder / "out" / "scores.json").read_text(encoding="utf-8"))["scores"]


def test_clip_score_and_cmmd_with_intervals_and_counts(folder, small_clip):
    scores = run(folder, "--metrics", "clip,cmmd", "--reference", str(folder / "pictures"))
    clip, cmmd = scores["CLIP score"], scores["CMMD"]
    assert clip["count"] == 12 and clip["low"] <= clip["value"] <= clip["high"] and clip["reference"] is None
    assert cmmd["value"] == pytest.approx(0, abs=1e-9) and cmmd["reference"] == 12
    assert "fewer than 500 pictures" in cmmd["note"]
    table = (folder / "out" / "scores.md").read_text(encoding="utf-8")
    assert (
        table.startswith("| metric | value | 95 % interval | N | reference N | note |") and "| CMMD | 0.000 |" in table
    )
    assert small_clip.count("vision") == 1  # for both metrics and both folders


def test_pictures_are_embedded_again_only_when_they_change(folder, small_clip):
    first = run(folder)
    assert small_clip.count("vision") == 1
    assert run(folder) == first and small_clip.count("vision") == 1
    picture = folder / "pictures" / "deep" / "03.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    run(folder)
    assert small_clip.count("vision") == 2 and len(list((folder / "out" / "scores_parts").iterdir())) == 2


def test_psnr_and_ssim_compare_pictures_of_one_name(folder):
    other = folder / "other"
    other.mkdir()
    for path in find_pictures(str(folder / "pictures"), "PICTURES"):
        changed = np.array(Image.open(path))
        if path.stem != "00":
            changed[0, 0] ^= 255
        Image.fromarray(changed).save(other / path.name)
    scores = run(folder, "--metrics", "psnr,ssim", "--reference", str(other))
    assert scores["PSNR, dB"]["count"] == 11 and scores["PSNR, dB"]["note"] == "without 1 pictures that are equal"
    assert scores["SSIM"]["count"] == 12 and 0.9 < scores["SSIM"]["value"] < 1
    (other / "05.png").unlink()
    with pytest.raises(EvaluationError, match="05.png has no picture of its name in REFERENCE"):
        run(folder, "--metrics", "psnr", "--reference", str(other))


def test_two_pictures_of_one_name_are_refused_on_either_side(folder):
    pictures, twice = folder / "pictures", folder / "twice"
    for kind in ("cat", "dog"):
        (twice / kind).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(twice / kind / "00.png")
    message = r"{} has .*cat.00\.png and .*dog.00\.png, where one picture of the name 00 was expected; rename one"
    with pytest.raises(EvaluationError, match=message.format("REFERENCE")):
        run(folder, "--metrics", "psnr", "--reference", str(twice))
    with pytest.raises(EvaluationError, match=message.format("PICTURES")):
        run(folder, "--metrics", "ssim", "--pictures", str(twice), "--reference", str(pictures))


@pytest.mark.usefixtures("small_clip")
def test_a_tilde_is_the_home_folder_in_every_path(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    rows = "".join(f"{json.dumps({'id': f'{i:02}', 'prompt': 'a cat'})}\n" for i in range(12))
    (folder / "p.jsonl").write_text(rows, encoding="utf-8")
    paths = ("--pictures", "~/pictures", "--prompts", "~/p.jsonl", "--reference", "~/pictures", "--out", "~/o/s.json")
    evaluate.evaluate(read_arguments([*paths, "--clip", "~/clip.safetensors", "--metrics", "clip,cmmd"]))
    assert sorted(path.name for path in (folder / "o").iterdir()) == ["s.json", "s.md", "s_parts"]
    np.savez(folder / "m.npz", mu=np.zeros(2048, np.float16), sigma=np.eye(2048, dtype=np.float16))
    moments = read_arguments(["--pictures", "~", "--metrics", "fid", "--reference", "~/m.npz"]).reference
    assert evaluate.read_moments(moments).mean.shape == (2048,)


def test_fid_of_a_small_folder_is_refused_before_anything_is_loaded(folder):
    (folder / "inception.pth").write_bytes(b"")
    arguments = ("--metrics", "fid", "--inception", str(folder / "inception.pth"))
    with pytest.raises(ValueError, match="FID of 12 pictures means nothing: it needs 2,048"):
        run(folder, *arguments, "--reference", str(folder / "pictures"))
    with pytest.raises(ValueError, match="FID of 12 pictures means nothing"):
        run(folder, *arguments, "--reference", "moments.npz")
    with pytest.raises(ValueError, match="FID of 12 pictures means nothing"):  # no hour of CLIP before
        run(folder, *arguments, "--metrics", "clip,fid", "--reference", str(folder / "pictures"))
    assert not (folder / "out").exists()


def test_prompts_come_from_a_file_by_name_or_from_the_picture_itself(folder, tmp_path):
    pictures = find_pictures(str(folder / "pictures"), "PICTURES")[:2]
    assert prompts_of(pictures, "") == ["prompt 0", "prompt 1"]
    (tmp_path / "p.jsonl").write_text('{"id": "00", "prompt": "a"}\n{"id": "01", "prompt": "b"}\n', encoding="utf-8")
    assert prompts_of(pictures, str(tmp_path / "p.jsonl")) == ["a", "b"]
    info = PngInfo()
    info.add_text("Description", "一只猫")
    named = tmp_path / "named.png"
    Image.new("RGB", (8, 8)).save(named, pnginfo=info)
    assert prompts_of([named], "") == ["一只猫"]


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
@pytest.mark.parametrize("seed", [{}, {"Seed": "3"}])
def test_the_prompt_that_save_named_writes_is_read_from_every_format(kind, seed, tmp_path):
    prompt, path = "a cat, 一只猫:\non a chaise longue, déjà vu. Seed: 4?", tmp_path / f"a.{kind}"
    Target("", kind, 92, False, {}).write(Image.new("RGB", (8, 8)), str(path), {"Description": prompt} | seed)
    assert prompts_of([path], "") == [prompt]


@pytest.mark.parametrize("exif", [b"garbage", "OLYMPUS DIGITAL CAMERA", "Seed: 3"])
def test_an_exif_without_a_prompt_counts_as_none(exif, tmp_path):
    picture = Image.new("RGB", (8, 8))
    known = picture.getexif()
    known[0x010E] = exif
    picture.save(tmp_path / "photo.webp", exif=exif if isinstance(exif, bytes) else known)
    with pytest.raises(EvaluationError, match="The prompt of .*photo.webp is not known: give PROMPTS="):
        prompts_of([tmp_path / "photo.webp"], "")


def test_a_picture_without_a_prompt_is_named(tmp_path):
    bare = tmp_path / "bare.png"
    Image.new("RGB", (8, 8)).save(bare)
    with pytest.raises(
        EvaluationError, match="The prompt of .*bare.png is not known: give PROMPTS=, put bare.txt beside"
    ):
        prompts_of([bare], "")
    (tmp_path / "p.txt").write_text("a cat\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match="no row of .*p.txt has the id bare"):
        prompts_of([bare], str(tmp_path / "p.txt"))


def test_a_text_beside_a_picture_that_is_not_utf_8_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(EvaluationError, match=r"a.txt is not UTF-8; save it as UTF-8."):
        prompts_of([tmp_path / "a.png"], "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--pictures", "."],
            "clip-vit-large-patch14.safetensors is not there: clip, cmmd and geneval's colors need .* download https",
        ),
        (
            ["--pictures", ".", "--metrics", "kid", "--reference", "."],
            "fid and kid need the Inception v3 of 2015; download",
        ),
        (["--pictures", ".", "--metrics", "cmmd"], "cmmd compares with pictures, and there are none; give REFERENCE="),
        (["--pictures", ".", "--metrics", "lpips"], "METRICS=lpips: lpips is none of clip, .*, ssim, geneval."),
        (["--pictures", "gone"], "PICTURES=gone is no folder with pictures"),
        (["--pictures", ".", "--metrics", "cmmd", "--reference", "gone"], "REFERENCE=gone is no folder with pictures"),
        (["--pictures", ".", "--metrics", ","], "METRICS=, names none; give some of clip, .*, joined by commas"),
        (["--pictures", ".", "--out", "a.md"], "OUT=a.md is no name of a JSON file; give one that ends in .json"),
        (["--pictures", ".", "--out", "."], r"OUT=. is no name of a JSON file"),
        ([], "There is nothing to evaluate; give PICTURES="),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat", encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        evaluate.evaluate(read_arguments(arguments))


def test_a_folder_without_pictures_and_a_broken_picture_are_named(tmp_path):
    with pytest.raises(EvaluationError, match="PICTURES=.* is no folder with pictures"):
        find_pictures(str(tmp_path), "PICTURES")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match="bad.png cannot be read as a picture"):
        evaluate.read_picture(tmp_path / "bad.png")


@pytest.mark.usefixtures("small_clip")
def test_a_broken_picture_in_the_middle_stops_and_the_rest_goes_on_where_it_was(folder, monkeypatch):
    monkeypatch.setattr(evaluation_pictures, "PART", 4)
    middle = folder / "pictures" / "deep" / "05.png"
    whole = middle.read_bytes()
    middle.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        EvaluationError, match=r"05.png cannot be read as a picture \(.*truncated.*\); mend it, or take"
    ):
        run(folder)
    parts = {path: path.stat().st_mtime_ns for path in (folder / "out" / "scores_parts").iterdir()}
    assert len(parts) == 1 and not (folder / "out" / "scores.json").exists()
    middle.write_bytes(whole)
    assert run(folder)["CLIP score"]["count"] == 12
    after = {path: path.stat().st_mtime_ns for path in (folder / "out" / "scores_parts").iterdir()}
    assert len(after) == 3 and parts.items() <= after.items()


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_grey_pictures_and_others_are_read_as_color(mode, tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (9, 8)).astype(np.uint8)
    picture = Image.fromarray(values).convert(mode)
    picture.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    found = evaluate.read_picture(next(tmp_path.iterdir()))
    assert found.shape == (9, 8, 3) and found.dtype == np.uint8 and len(np.unique(found)) > 1
    if mode == "L":
        assert np.array_equal(found, values[..., None].repeat(3, axis=2))


def test_pictures_are_read_as_the_training_reads_them(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "deep.png")
    assert (evaluate.read_picture(tmp_path / "deep.png") == 128).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert evaluate.read_picture(tmp_path / "turned.jpg").shape == (8, 4, 3)
    assert evaluate.read_picture(tmp_path / "turned.jpg", 0, 4, 2, 8).shape == (4, 2, 3)
    Image.fromarray(np.full((8, 8), 300, np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(EvaluationError, match=r"wide.tif cannot be read as a picture \(its values are floats from 300"):
        evaluate.read_picture(tmp_path / "wide.tif")


@pytest.mark.usefixtures("small_clip")
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_damaged_part_is_made_again(folder, left):
    first = run(folder)
    (part,) = (folder / "out" / "scores_parts").iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[: int(left * len(whole))])
    assert run(folder) == first and part.read_bytes() == whole


def test_a_pair_that_cannot_be_compared_is_named(folder):
    other = folder / "other"
    other.mkdir()
    for path in find_pictures(str(folder / "pictures"), "PICTURES"):
        Image.new("RGB", (32, 32)).save(other / path.name)
    with pytest.raises(EvaluationError, match=r"01.png and .*01.png: Pictures of 48 x 32 px .* have no difference"):
        run(folder, "--metrics", "psnr", "--reference", str(other))
    small = folder / "small"
    small.mkdir()
    Image.new("RGB", (4, 4)).save(small / "a.png")
    with pytest.raises(EvaluationError, match=r"a.png and .*a.png: SSIM needs sides of more than 5 px"):
        run(folder, "--metrics", "ssim", "--pictures", str(small), "--reference", str(small))


def test_inception_files_that_are_damaged_or_of_another_network_are_named(tmp_path):
    whole, half, other = tmp_path / "whole.pth", tmp_path / "half.pth", tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(100, 100)}, whole)
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    torch.save({"conv1.weight": torch.zeros(3, 3)}, other)
    with pytest.raises(ValueError, match=r"half.pth is incomplete, its end is missing: .* download it again"):
        evaluation_files.load_inception(str(half))
    message = r"other.pth cannot be used: it is not FID's Inception v3, as \S+ is missing; download https.*pt_inception"
    with pytest.raises(ValueError, match=message):
        evaluation_files.load_inception(str(other))


def test_moments_are_read_as_pytorch_fid_saves_them(tmp_path):
    np.savez(tmp_path / "m.npz", mu=np.zeros(2048, np.float16), sigma=np.eye(2048, dtype=np.float16))
    assert evaluate.read_moments(str(tmp_path / "m.npz")).covariance.shape == (2048, 2048)
    np.savez(tmp_path / "n.npz", other=np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("n", "empty", "half"):
        with pytest.raises(EvaluationError, match=f"{name}.npz is no file with mu and sigma"):
            evaluate.read_moments(str(tmp_path / f"{name}.npz"))
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(EvaluationError, match=r"narrow.npz has mu of shape \(3,\) .* 2048 features were expected"):
        evaluate.read_moments(str(tmp_path / "narrow.npz"))
