"""Progress and cancelling outside the sampler: loading, text encoding, tiles; a cancel leaves nothing behind."""

import gc
import weakref

import comfy.model_management
import comfy.utils
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from sana_native.models.dc_ae import loader as dc_ae_loader
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.models.gemma import loader as gemma_loader
from sana_native.models.gemma.text_encoder import Gemma2
from sana_native.models.runtime.progress import tracked
from sana_native.models.sana import loader as sana_loader
from sana_native.models.sana.model import Sana
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench


@pytest.fixture(autouse=True)
def no_interrupt_left():
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def progress(monkeypatch) -> list[tuple[int, int]]:
    """(done, total) as the host is told, where nothing is held back for being too frequent."""
    seen = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_PERCENT", 0)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, *_, **__: seen.append((done, total)))
    return seen


@pytest.fixture
def cancel_at(monkeypatch):
    """Presses cancel when the host hears of this many of this total."""

    def set_moment(done: int, total: int) -> None:
        def hook(now, of, *_, **__):
            if (now, of) == (done, total):
                comfy.model_management.interrupt_current_processing()

        monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0)
        monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_PERCENT", 0)
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)

    return set_moment


@pytest.fixture
def built(monkeypatch) -> list[weakref.ref]:
    """Every network of ours that is built from now on with real weights or without."""
    made = []
    for kind in (Sana, AutoencoderDC, Gemma2):
        create = kind.__init__

        def remember(self, *args, _create=create, **kwargs):
            made.append(weakref.ref(self))
            _create(self, *args, **kwargs)

        monkeypatch.setattr(kind, "__init__", remember)
    return made


def alive(references: list[weakref.ref]) -> int:
    gc.collect()
    return sum(reference() is not None for reference in references)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A tiny SANA in at least three files with an index."""
    path = tmp_path_factory.mktemp("sharded")
    tiny.transformer().save_pretrained(path / "transformer", max_shard_size="150KB")
    assert len(list((path / "transformer").glob("*.safetensors"))) >= 3
    return path


LOADERS = {
    "transformer": sana_loader.load_sana,
    "text_encoder": gemma_loader.load_gemma,
    "vae": dc_ae_loader.load_dc_ae,
}


def test_items_are_counted_when_they_are_done_with(progress):
    for item in tracked("abc"):
        assert len(progress) == "abc".index(item)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert list(tracked(["alone"])) == ["alone"] and len(progress) == 3


def test_a_set_of_files_is_counted_file_by_file_and_then_tensor_by_tensor(sharded, progress):
    files = len(list((sharded / "transformer").glob("*.safetensors")))
    model = sana_loader.load_sana(str(sharded))
    tensors = len(list(model.model.diffusion_model.parameters()))
    assert progress == [(n + 1, files) for n in range(files)] + [(n + 1, tensors) for n in range(tensors)]


@pytest.mark.parametrize("part", ["files", "tensors"])
def test_cancel_while_loading_leaves_nothing_and_the_next_load_is_whole(sharded, cancel_at, built, monkeypatch, part):
    total = len(list((sharded / "transformer").glob("*.safetensors")))
    if part == "tensors":
        total = len(list(bench.model("sana").model.diffusion_model.parameters()))
    gc.collect()  # what earlier tests left in cycles goes now, not in between
    before = list(comfy.model_management.current_loaded_models)
    built.clear()
    cancel_at(2, total)
    with pytest.raises(InterruptProcessingException) as stopped:
        sana_loader.load_sana(str(sharded))
    del stopped
    assert (len(built) > 0) == (part == "tensors") and alive(built) == 0
    assert comfy.model_management.current_loaded_models == before
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    latent = bench.draw(sana_loader.load_sana(str(sharded)), bench.encoded())
    assert torch.equal(latent, bench.draw(bench.model("sana"), bench.encoded()))


@pytest.mark.parametrize("name", LOADERS)
def test_a_cancel_before_a_loader_stops_it_before_it_reads(name, progress, built):
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(InterruptProcessingException):
        LOADERS[name](str(bench.folder() / "sana"))
    assert not progress and not built


def test_prompts_are_counted_and_cancelled_between(progress, cancel_at, monkeypatch):
    clip, encoded = bench.clip(), []
    encode = clip.encode_from_tokens_scheduled
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: encoded.append(tokens) or encode(tokens))
    expected = bench.encode("a cat", "blurry")
    assert progress == [(1, 2), (2, 2)] and len(encoded) == 2
    cancel_at(1, 2)
    with pytest.raises(InterruptProcessingException):
        bench.encode("a cat", "blurry")
    assert len(encoded) == 3
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    for cond, before in zip(bench.encode("a cat", "blurry"), expected, strict=True):
        assert torch.equal(cond[0][0], before[0][0])


def tiled(name: str):
    sample = bench.clean_latent(256, 192) if name == "DCAEDecode" else bench.picture(256, 192)
    return bench.call(bench.OURS[name], bench.vae(), sample, "on", 128, 32)[0]


@pytest.mark.parametrize("name", ["DCAEDecode", "DCAEEncode"])
def test_tiles_are_counted_by_the_host_and_cancelled_between(name, progress, cancel_at, monkeypatch):
    expected = tiled(name)
    total = progress[-1][1]
    assert total >= 12 and progress == [(n + 1, total) for n in range(total)]
    cancel_at(3, total)
    with pytest.raises(InterruptProcessingException):
        tiled(name)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    again = tiled(name)
    if name == "DCAEEncode":
        again, expected = again["samples"], expected["samples"]
    assert torch.equal(again, expected)
