"""Bad files of every kind a user can have, one table: how each is made from small real models, and what is said of it.

Here those that cannot be read; `bad_models.py` adds those that can, and are not what they should be. The tests over the
table are in `test_bad_files.py`. LoRA files have tests of their own.
"""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors",
}
ALL = tuple(FILES)
CANARY = "canary"  # a hostile file tries to make it


@dataclass(frozen=True)
class Place:
    """Where a bad file is made: a folder with a sound model in `model`, and the component whose file goes bad."""

    folder: Path
    component: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def part(self) -> Path:
        return self.model / self.component

    @property
    def file(self) -> Path:
        return self.part / FILES[self.component]

    @property
    def canary(self) -> Path:
        return self.folder / CANARY

    def named(self, name: str) -> Path:
        """A single file with a tokenizer beside it."""
        shutil.copy(self.model / "tokenizer" / "tokenizer.model", self.folder)
        return self.folder / name

    def read(self) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.file)

    def write(self, state_dict: dict[str, torch.Tensor]) -> Path:
        safetensors.torch.save_file(state_dict, self.file)
        return self.model


@dataclass(frozen=True)
class Kind:
    match: str
    make: Callable[[Place], Path]
    components: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def in_turn() -> tuple[str, ...]:
    return (ALL[len(KINDS) % len(ALL)],)


def kind(match: str, *components: str):
    """Adds a maker to the table. It returns the path that is picked; `match` must be found in what is said.

    components: all of which the sentence depends on; without any, the reading before it is the same for all, so that
    the kinds take turns. In `match` stand `{component}`, `{expected}` for what its loader wants, and `{file}` for the
    name of the path when it is a file, else of the component's file.
    """

    def add(make):
        name = make.__name__.replace("_", " ")
        assert name not in KINDS
        told = any(word in match for word in ("{expected}", "{component}"))
        KINDS[name] = Kind(match, make, components or (ALL if told else in_turn()))
        return make

    return add


def content(name: str, match: str, data: bytes, ending: str = ".safetensors") -> None:
    """Adds a kind that is a file of these bytes."""

    def make(place: Place) -> Path:
        path = place.folder / f"weights{ending}"
        path.write_bytes(data)
        return path

    KINDS[name] = Kind(match, make, in_turn())


# Places


@kind("{file} does not exist: pick the file again after refreshing the list")
def a_file_that_is_gone(place):
    place.file.unlink()
    return place.file


@kind(r"{file} is a link to .*blobs/0123, which is not there: put the file itself in its place")
def a_link_into_a_cache_that_was_cleared(place):
    place.file.unlink()
    place.file.symlink_to("../../blobs/0123")
    return place.file


@kind("{file} is a link to .*, which is not there: put the file itself")
def a_link_to_itself(place):
    place.file.unlink()
    place.file.symlink_to(place.file.name)
    return place.file


@kind("{file} is neither a file nor a folder: pick a weight file")
def a_pipe(place):
    place.file.unlink()
    os.mkfifo(place.file)
    return place.file


@kind("{file} has a name that is not valid UTF-8: rename it")
def a_name_in_another_encoding(place):
    path = os.fsdecode(os.fsencode(place.folder) + b"/m\xfcll.safetensors")
    os.replace(place.file, path)
    return Path(path)


@kind(r"line\?break.safetensors is empty")
def a_name_with_a_line_break(place):
    (place.folder / "line\nbreak.safetensors").touch()
    return place.folder / "line\nbreak.safetensors"


@kind(r"^.{0,200}is empty")
def a_name_of_250_bytes(place):
    (place.folder / ("é🐈x" * 34 + ".safetensors")).touch()
    return place.folder / ("é🐈x" * 34 + ".safetensors")


@kind("The folder .*/{component} holds no diffusion_pytorch_model or model.safetensors .*: download the weights into")
def a_folder_with_its_config_only(place):
    place.file.unlink()
    return place.model


@kind("The folder .*/empty holds no diffusion_pytorch_model or model.safetensors")
def an_empty_folder(place):
    (place.folder / "empty").mkdir()
    return place.folder / "empty"


@kind("{file} is still being downloaded, as {file}.incomplete beside it shows: wait for its end")
def a_folder_whose_download_runs(place):
    os.replace(place.file, f"{place.file}.incomplete")
    return place.model


@kind("{file} is still being downloaded, as {file}.aria2 beside it shows: wait for its end")
def a_file_whose_download_runs(place):
    Path(f"{place.file}.aria2").touch()
    return place.file


@kind(r"/{component} holds 2 weight files, such as a\.pth and b\.safetensors: keep the one that is meant")
def a_folder_with_two_weight_files_of_its_owners_naming(place):
    os.replace(place.file, place.part / "b.safetensors")
    (place.part / "a.pth").touch()
    return place.model


@kind("/model is a StableDiffusionXLPipeline without a {component} folder: download that part of it, or pick a SANA")
def a_pipeline_of_another_family(place):
    shutil.rmtree(place.part)
    (place.model / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return place.model


# What is no weight file


content("an empty file", "{file} is empty: download it again", b"")
content("a git-lfs pointer", "{file} is a git-lfs pointer, not the weights themselves: run git lfs pull, or download",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 6420000000\n")  # fmt: skip
content("a web page", "{file} is a web page saved under this name, not weights: download it with the page's own button",
        b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>" + "<p>Zażółć</p>".encode() * 900)  # fmt: skip
content("a server's refusal", r'{file} is a text \("Entry not found"\), not weights: check its address, and download',
        b"Entry not found")  # fmt: skip
content("a server's JSON", "{file} is a JSON text, not weights: download it again",
        json.dumps({"error": "Access to model google/gemma-2-2b-it is restricted"}).encode())  # fmt: skip
content("a GGUF file", "{file} is a GGUF file, which this pack does not load: use the safetensors or .pth file",
        b"GGUF\x03\0\0\0\x7b\1\0\0\0\0\0\0" + bytes(64))  # fmt: skip
content("a 7z archive", "{file} is a 7z archive, not weights: unpack it", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(64))
content("a RAR archive", "{file} is a RAR archive, not weights: unpack it", b"Rar!\x1a\x07\x01\0" + bytes(64))
content("a gzip archive", "{file} is a gzip archive, not weights: unpack it", b"\x1f\x8b\x08\0" + bytes(64), ".pth")
content("a PNG image", "{file} is a PNG image, not weights: pick the model", b"\x89PNG\r\n\x1a\n" + bytes(64))
content("a Keras file", "{file} is an HDF5 file of Keras or TensorFlow", b"\x89HDF\r\n\x1a\n" + bytes(64), ".bin")
content("a Windows program", "{file} is a Windows program, not weights: delete it", b"MZ\x90\0" + bytes(range(64)))
content("noise", "{file} is no weight file, whatever its name says: download it again", bytes(range(160, 256)) * 100)
content("a place reserved by a download", "{file} holds only zeros at its start: wait for its download", bytes(1 << 16))


@kind("{file} is a zip archive that holds .*{component}.*, not weights: unpack it")
def a_zip_with_the_weights_inside(place):
    path = place.folder / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(place.file, f"{place.component}/{place.file.name}")
    return path


@kind("{file} is a zip archive that holds .*npy, not weights: unpack it")
def a_numpy_archive(place):
    np.savez(place.folder / "weights.npz", weight=np.ones(3))
    return (place.folder / "weights.npz").rename(place.folder / "weights.ckpt")


# Damaged safetensors


def damage(place: Place, change: Callable[[bytes], bytes]) -> Path:
    place.file.write_bytes(change(place.file.read_bytes()))
    return place.model


def with_header(place: Place, change: Callable[[dict], dict | bytes]) -> Path:
    """The component's file with another header before the same numbers."""

    def rewrite(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = change(json.loads(data[8 : 8 + length]))
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    return damage(place, rewrite)


@kind("{file} is incomplete, it has [0-9,]+ of at least [0-9,]+ bytes: wait for its download to end, or download it")
def a_download_cut_off_in_its_numbers(place):
    return damage(place, lambda data: data[:-1000])


@kind("{file} is incomplete, it has 500 of at least [0-9,]+ bytes: wait for its download to end")
def a_download_cut_off_in_its_header(place):
    return damage(place, lambda data: data[:500])


@kind("{file} is damaged, it has 7 bytes more than its header lists: download it again")
def two_downloads_in_one_file(place):
    return damage(place, lambda data: data + b"garbage")


@kind("{file} ends in zeros, as a file does whose download has reserved its place: wait for its end, or download")
def a_download_whose_end_is_still_zeros(place):
    place.write(place.read() | {"zzz": torch.ones(1 << 19)})
    return damage(place, lambda data: data[: -(1 << 20)] + bytes(1 << 20))


@kind("{file} is damaged, its header cannot be read: download it again")
def a_header_with_flipped_bits(place):
    return damage(place, lambda data: data[:8] + b"{\xff" + data[10:])


@kind("{file} is damaged, its header cannot be read: download it again")
def a_header_with_other_content(place):
    return with_header(place, lambda _: b'{"weight": [1, 2]}')


@kind("{file} is damaged, its header cannot be read: download it again")
def a_header_whose_shapes_are_larger_than_their_bytes(place):
    def grow(header):
        next(entry for entry in header.values() if "shape" in entry)["shape"] = [1 << 40, 1 << 20]
        return header

    return with_header(place, grow)


@kind("{file} is damaged, its header cannot be read: download it again")
def a_header_with_bytes_before_the_start(place):
    def move(header):
        for entry in header.values():
            if "data_offsets" in entry:
                entry["data_offsets"] = [offset - 4096 for offset in entry["data_offsets"]]
        return header

    return with_header(place, move)


@kind("{file} is damaged, its tensors overlap or leave gaps: download it again")
def tensors_over_the_same_bytes(place):
    def overlap(header):
        vectors = [entry for entry in header.values() if entry.get("shape") == [64]]
        vectors[1]["data_offsets"] = vectors[0]["data_offsets"]
        return header

    return with_header(place, overlap)


@kind("{file} is a file without tensors, not {expected}: pick another file")
def a_header_without_tensors(place):
    return damage(place, lambda _: (8).to_bytes(8, "little") + b"{}      ")


@kind("{file} is damaged, it holds tensors with impossible names: download it again")
def a_name_of_a_tensor_with_a_line_break(place):
    return place.write(place.read() | {"a\nb": torch.ones(1)})


# PyTorch files


def save(place: Place, content, name: str = "weights.pth", **options) -> Path:
    path = place.named(name)
    torch.save(content, path, **options)
    return path


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


class HarmfulText(Harmful):
    def __reduce__(self):
        return eval, (f"open({str(self.target)!r}, 'w').close()",)  # noqa: S307 - what an attacker writes


class HarmfulState(Harmful):
    def __reduce__(self):
        return HarmfulState.restore, (), {"target": self.target}

    @classmethod
    def restore(cls):
        return cls.__new__(cls)

    def __setstate__(self, state):
        state["target"].touch()


OBJECTS = (
    "{file} holds Python objects besides tensors, which are not loaded because they could run code: use the safetensors"
)


@kind(OBJECTS)
def a_pickle_that_calls_a_function(place):
    return save(place, {"state_dict": place.read(), "config": Harmful(place.canary)})


@kind(OBJECTS)
def an_old_pickle_that_calls_a_function(place):
    path = place.named("weights.pth")
    path.write_bytes(pickle.dumps({"config": Harmful(place.canary)}, protocol=2))
    return path


@kind(OBJECTS)
def a_pickle_that_evaluates_a_text(place):
    return save(place, place.read() | {"x": HarmfulText(place.canary)})


@kind(OBJECTS)
def a_pickle_that_restores_a_harmful_state(place):
    return save(place, place.read() | {"x": HarmfulState(place.canary)}, "weights.bin")


@kind(OBJECTS)
def a_whole_network_pickled(place):
    return save(place, torch.nn.Linear(2, 2), "weights.pt")


@kind("{file} is a TorchScript program, which is not loaded because it could run code: use the safetensors or .pth")
def a_torchscript_program(place):
    path = place.folder / "weights.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    return path


@kind(r"{file} is a PyTorch file under another name: rename it to end in \.pth")
def a_pytorch_file_called_safetensors(place):
    return save(place, place.read(), "weights.safetensors")


@kind(r"{file} is a safetensors file under another name: rename it to end in \.safetensors")
def a_safetensors_file_called_pth(place):
    os.replace(place.file, place.named("weights.pth"))
    return place.folder / "weights.pth"


@kind("{file} is incomplete, its end is missing: wait for its download to end, or download it again")
def a_pytorch_file_cut_off(place):
    path = save(place, place.read())
    path.write_bytes(path.read_bytes()[:-1000])
    return path


@kind("{file} is damaged .*: download it again")
def an_old_pytorch_file_cut_off(place):
    path = save(place, place.read(), _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def rezip(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with other members; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)
    return path


@kind("{file} is damaged .*: download it again")
def a_pytorch_file_with_a_damaged_index(place):
    return rezip(save(place, place.read()), lambda name, data: data[:-80] if name.endswith("data.pkl") else data)


@kind("{file} is damaged .*: download it again")
def a_pytorch_file_that_lacks_a_tensors_numbers(place):
    return rezip(save(place, place.read()), lambda name, data: None if name.endswith("data/1") else data)


@kind("{file} holds no tensors by name: use the safetensors or .pth file of the same model")
def a_list_of_tensors(place):
    return save(place, [torch.ones(2), torch.ones(2)])


@kind("{file} holds no tensors by name: use the safetensors or .pth file of the same model")
def a_single_tensor(place):
    return save(place, torch.ones(3))


@kind("{file} holds no tensors by name: use the safetensors or .pth file of the same model")
def a_pickled_nothing(place):
    return save(place, None)


@kind("{file} names its tensors by int, not by text")
def tensors_by_number(place):
    return save(place, dict(enumerate(place.read().values())))


@kind("{file} is a file without tensors, not {expected}: pick another file")
def the_counters_of_a_training(place):
    return save(place, {"epoch": 3, "step": 7000, "optimizer": {"state": {}}})


@kind("{file} holds tensors without values, such as .*: save it anew from a loaded model")
def tensors_without_values(place):
    return save(place, {key: tensor.to("meta") for key, tensor in place.read().items()})


@kind("{file} holds sparse or packed tensors, such as .*: use the safetensors or .pth")
def sparse_tensors(place):
    return save(
        place, {key: tensor.to_sparse() if tensor.ndim == 2 else tensor for key, tensor in place.read().items()}
    )


@kind("{file} holds fewer numbers than the shape of .* says: download it again")
def tensors_blown_up_from_one_number(place):
    return save(place, place.read() | {"bomb": torch.zeros(1).expand(1 << 20, 1 << 20)})


# Sets of files


def shards(place: Place) -> list[Path]:
    """The component in three files with an index."""
    state_dict = place.read()
    place.file.unlink()
    stem, keys = place.file.stem, sorted(state_dict)
    weight_map, files = {}, []
    for number in range(3):
        part = {key: state_dict[key] for key in keys[number::3]}
        files.append(place.part / f"{stem}-{number + 1:05d}-of-00003.safetensors")
        safetensors.torch.save_file(part, files[-1])
        weight_map |= dict.fromkeys(part, files[-1].name)
    index_of(place).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


def index_of(place: Place) -> Path:
    return place.part / f"{place.file.stem}.safetensors.index.json"


def change_index(place: Place, change: Callable[[dict], object]) -> Path:
    index = json.loads(index_of(place).read_text())
    index_of(place).write_text(json.dumps(change(index)))
    return place.model


@kind(r"00001-of-00003.safetensors belongs to a set of 3 files, and \S+-00002-of-00003.safetensors is not beside it")
def a_set_without_its_second_file(place):
    files = shards(place)
    files[1].unlink()
    return files[0]


@kind(r"index.json belongs to a set of 3 files, and \S+-00003-of-00003.safetensors is not beside it: download the mis")
def an_index_without_its_third_file(place):
    shards(place)[2].unlink()
    return place.model


@kind("00002-of-00003.safetensors is incomplete, it has [0-9,]+ of at least")
def a_set_with_one_file_cut_off(place):
    second = shards(place)[1]
    second.write_bytes(second.read_bytes()[:-10])
    return place.model


@kind("index.json lists no files of weights: download it again")
def an_index_without_its_list(place):
    shards(place)
    return change_index(place, lambda index: {"metadata": index["metadata"]})


@kind("index.json is not valid JSON .*: download it again")
def an_index_that_is_a_web_page(place):
    shards(place)
    index_of(place).write_text("<!doctype html><html></html>")
    return place.model


@kind("index.json lists .*shadow, which is not a file beside it: download it again")
def an_index_that_points_elsewhere(place):
    shards(place)
    return change_index(place, lambda index: {"weight_map": dict.fromkeys(index["weight_map"], "../../etc/shadow")})


@kind(
    "index.json lists 1 tensors that its files do not hold, such as later.weight: download the index and all files an"
)
def an_index_of_another_version(place):
    first = shards(place)[0]
    return change_index(place, lambda index: {"weight_map": index["weight_map"] | {"later.weight": first.name}})


@kind(r"00003-of-00003.safetensors holds .* a second time: download all files of the set anew, from one version")
def a_set_mixed_from_two_versions(place):
    files = shards(place)
    shutil.copy(files[0], files[2])
    return place.model
