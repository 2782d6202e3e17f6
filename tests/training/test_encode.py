"""The cache of latents and text states: what it holds, and when a file of it is used again."""

import os
import shutil
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SIDE, write_picture
from sana_native.training import encode as encode_file
from sana_native.training.captions import batch_captions
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import encode_set, load_part, save_part, tensors_digest
from sana_native.training.pictures import fit_picture, read_picture


def test_latents_and_states_are_those_of_the_encode_nodes(pictures, encoded):
    found = read_folder(str(pictures), SetOptions(size=SIDE))
    assert [one.size for one in encoded.samples] == [(64, 64), (64, 64), (32, 128), (64, 64)]
    for sample, done in zip(found.samples, encoded.samples, strict=True):
        pixels = fit_picture(read_picture(sample.path).image, sample.size)
        with torch.inference_mode():
            assert torch.equal(done.latent(), bench.vae().encode(pixels[None])[0])
        (states, extra), *_ = bench.encode(sample.caption)[0]
        own, mask = batch_captions([done.caption()])
        assert torch.equal(own, states[:, : mask.shape[1]]) and int(mask.sum()) == int(extra["attention_mask"].sum())
    (states, extra), *_ = bench.encode("")[1]
    assert torch.equal(encoded.null().states, states[0]) and torch.equal(
        encoded.null().mask, extra["attention_mask"][0]
    )


def test_files_are_used_again_until_content_size_or_instruction_changes(pictures, tmp_path):
    def encode(instruction=True, **options):
        found = read_folder(str(pictures), SetOptions(**{"size": SIDE} | options))
        encode_set(found, bench.vae(), bench.clip(), instruction, str(tmp_path), lambda *_: None)
        return {name: os.stat(tmp_path / name).st_mtime_ns for name in os.listdir(tmp_path)}

    first = encode()
    assert encode() == first and len(first) == 9
    smaller = encode(size=32)
    assert len(smaller) == 13 and first.items() <= smaller.items()
    assert len(encode(instruction=False)) == 17 and len(encode(trigger_word="sks")) == 21


def test_other_weights_are_another_cache(pictures, tmp_path):
    found = read_folder(str(pictures), SetOptions(size=SIDE))
    encode_set(found, bench.vae(), bench.clip(), True, str(tmp_path), lambda *_: None)
    before = set(os.listdir(tmp_path))
    vae = load_dc_ae(str(bench.folder() / "sana"))
    with torch.no_grad():
        next(vae.first_stage_model.parameters()).flatten()[0] += 1e-3
    encode_set(found, vae, bench.clip(), True, str(tmp_path), lambda *_: None)
    new = set(os.listdir(tmp_path)) - before
    assert len(new) == 4 and all(name.startswith("latent_") for name in new)


def test_a_file_that_is_gone_is_named(encoded):
    gone = replace(encoded.samples[0], latent_path="nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="is not in the cache any more: run SANA Encode Training Set again"):
        gone.latent()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x40
    path.write_bytes(content)


def change(path, part):
    """Changes the tensors of a file, not its header."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(dict(part(name, value) for name, value in load_file(path).items()), path, metadata)


DAMAGE = {
    "flipped bit": flip_a_bit,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "not finite": lambda path: change(path, lambda name, value: (name, value * nan)),
    "renamed": lambda path: change(path, lambda name, value: (f"{name}_", value)),
    "other shape": lambda path: change(path, lambda name, value: (name, value[1:].clone())),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_as_it_was_written_is_removed_and_encoded_again(pictures, tmp_path, damage):
    def encode():
        found = read_folder(str(pictures), SetOptions(size=SIDE))
        return encode_set(found, bench.vae(), bench.clip(), True, str(tmp_path), lambda *_: None).samples[0]

    sample = encode()
    latent, states = sample.latent().clone(), sample.caption().states.clone()  # they are maps of the files
    for path in (sample.latent_path, sample.caption_path):
        damage(Path(path))
    for read in (sample.latent, sample.caption):
        with pytest.raises(FileNotFoundError, match="was damaged, and is not in the cache any more: run SANA Encode"):
            read()
        with pytest.raises(FileNotFoundError, match="safetensors is not in the cache any more: run SANA Encode"):
            read()
    again = encode()
    assert torch.equal(again.latent(), latent) and torch.equal(again.caption().states, states)


def test_a_file_without_a_digest_is_no_damage_and_is_encoded_again(pictures, tmp_path):
    def encode():
        found = read_folder(str(pictures), SetOptions(size=SIDE))
        return encode_set(found, bench.vae(), bench.clip(), True, str(tmp_path), lambda *_: None).samples[0]

    sample = encode()
    latent = sample.latent().clone()
    save_file(load_file(sample.latent_path), sample.latent_path)
    with pytest.raises(FileNotFoundError, match="is of an older version, which wrote no digest: run SANA Encode Tra"):
        sample.latent()
    assert os.path.isfile(sample.latent_path) and torch.equal(encode().latent(), latent)


def test_a_file_is_verified_once_until_it_changes(encoded, tmp_path, monkeypatch):
    path = tmp_path / "latent.safetensors"
    shutil.copy(encoded.samples[0].latent_path, path)
    digests = []
    monkeypatch.setattr(encode_file, "tensors_digest", lambda one: digests.append(tensors_digest(one)) or digests[-1])
    for _ in range(3):
        load_part(str(path))
    assert len(digests) == 1
    flip_a_bit(path)
    with pytest.raises(FileNotFoundError, match="was damaged"):
        load_part(str(path))


def test_a_picture_that_changes_while_its_set_is_encoded_is_named(tmp_path):
    write_picture(tmp_path / "a.png", 1)
    found = read_folder(str(tmp_path), SetOptions(size=SIDE))
    cache = tmp_path / "cache"
    write_picture(tmp_path / "a.png", 2)
    with pytest.raises(ValueError, match="a.png was changed while its set was encoded: let it be, and run SANA Tr"):
        encode_set(found, bench.vae(), bench.clip(), True, str(cache), lambda *_: None)
    os.remove(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png cannot be read any more \(No such file or directory\): let it be"):
        encode_set(found, bench.vae(), bench.clip(), True, str(cache), lambda *_: None)
    assert not [name for name in os.listdir(cache) if name.startswith("latent_")]


def test_values_that_are_not_finite_never_enter_the_cache(tmp_path):
    with pytest.raises(ValueError, match="a.png is encoded to values that are not finite: load the encoder in float32"):
        save_part({"latent": torch.tensor([1.0, nan])}, str(tmp_path / "a.safetensors"), "a.png")
    assert not list(tmp_path.iterdir())
