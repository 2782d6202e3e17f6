"""The cache of latents and text states: what it holds, and when a file of it is used again."""

import os
from dataclasses import replace

import pytest
import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SIDE
from sana_native.training.captions import batch_captions
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import encode_set
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
