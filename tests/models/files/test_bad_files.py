"""Whatever is wrong with a file: one sentence with its name and a cure, nothing runs, nothing half-loaded stays."""

import errno
import gc
import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.models.files.reader import Checkpoint, find_weights
from sana_native.models.gemma import loader as gemma_loader
from sana_native.models.gemma.text_encoder import Gemma2, SanaTextEncoder
from sana_native.models.registry import FAMILIES, load_model
from sana_native.models.sana import loader as sana_loader
from sana_native.models.sana.convert import to_file_layout
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.model import Sana
from sana_native.models.sana.model_base import SanaModel
from sana_native.nodes.files import resolve
from sana_native.tests.models.test_detection import meta_sana
from sana_native.tests.models.test_pictures import load_graph
from sana_native.tests.support import bad_models, controlnets, layouts, tiny
from sana_native.tests.support.bad_files import FILES, Harmful, Place
from sana_native.tools.comfy_server import ServerError
from sana_native.tools.workflow import set_inputs

KINDS = bad_models.KINDS  # with those of `bad_files.py`
LOADERS = {family.component: partial(load_model, family.component) for family in FAMILIES}
EXPECTED = {
    component: " or ".join(family.name for family in FAMILIES if family.component == component) for component in LOADERS
}
# What the files are that the bad ones are made of.
OWN = {
    "transformer": "a SANA transformer",
    "text_encoder": "a Gemma-2 text encoder",
    "vae": "a DC-AE autoencoder",
    "controlnet": "a SANA ControlNet",
}
# What a sentence may ask the user to do, at its end or in brackets.
CURE = re.compile(
    r"[:(] ?(allow|check|delete|download|keep|load|pick|put|rename|run|save|take|unpack|use|wait)\b[^:]*\.$"
)
LOADED = (Sana, SanaModel, AutoencoderDC, Gemma2, SanaTextEncoder, comfy.sd.VAE, comfy.sd.CLIP,
          comfy.model_patcher.ModelPatcher)  # fmt: skip
CASES = [(name, component) for name, kind in KINDS.items() for component in kind.components]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny.save_pipeline(folder)
    controlnets.reference().save_pretrained(folder / "controlnet")
    shutil.rmtree(folder / "scheduler")
    return folder


@pytest.fixture
def model(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """What is alive before these tests is left out of collections, and of what they count."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def refusal(load, path: Path | str) -> str:
    """What is said; the error itself is let go, with all that its frames hold."""
    with pytest.raises((ValueError, FileNotFoundError, PermissionError)) as error:
        load(str(path))
    return str(error.value)


def alive() -> list[str]:
    gc.collect()
    return [type(item).__name__ for item in gc.get_objects() if isinstance(item, LOADED)]


def one_sentence(message: str) -> bool:
    return message.isprintable() and message.endswith(".") and ". " not in message and len(message) < 400


def test_the_table_has_the_kinds_it_promises():
    assert len(KINDS) >= 100
    assert {component for _, component in CASES} == set(LOADERS)


@pytest.mark.parametrize(("name", "component"), CASES)
def test_every_bad_file_is_refused_in_one_sentence_and_leaves_nothing(name, component, model, tmp_path):  # noqa: ARG001 - `model` is what goes bad
    place = Place(tmp_path, component)
    picked = KINDS[name].make(place)
    before = {*tmp_path.rglob("*")}, [*comfy.model_management.current_loaded_models]
    message = refusal(LOADERS[component], picked)

    file = (place.file if picked.is_dir() else picked).name.encode("utf-8", "replace").decode()
    match = KINDS[name].match.replace("{file}", re.escape(file)).replace("{expected}", EXPECTED[component])
    match = match.replace("{own}", OWN[component])
    assert re.search(match.replace("{component}", component), message)
    assert one_sentence(message) and CURE.search(message), message
    assert not place.canary.exists()
    assert ({*tmp_path.rglob("*")}, comfy.model_management.current_loaded_models) == before
    assert alive() == []


def test_the_sound_model_is_not_refused(model):
    for component, load in LOADERS.items():
        load(str(model))
        load(str(model / component / FILES[component]))


# What the table cannot hold


def test_the_harmful_pickle_does_harm_where_nothing_stops_it(tmp_path):
    pickle.loads(pickle.dumps(Harmful(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@contextmanager
def another_user(path: Path, mode: int):
    """The path with other permissions, and this process as somebody to whom they apply."""
    before = path.stat().st_mode
    path.chmod(mode)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(before)


@pytest.mark.parametrize("component", LOADERS)
@pytest.mark.parametrize("forbidden", ["file", "part"])
def test_what_may_not_be_read_is_said_to_be_forbidden(sound, component, forbidden):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others altogether
        place = Place(Path(folder), component)
        shutil.copytree(sound, place.model)
        for opened in (place.folder, place.model):
            opened.chmod(0o755)
        with another_user(getattr(place, forbidden), 0):
            messages = [refusal(LOADERS[component], path) for path in (place.model, place.file)]
    for message in messages:
        assert re.search(
            r"may not be read by the user that ComfyUI runs as: allow it to, or move it to another folder\.$", message
        )
        assert component in message and one_sentence(message)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "does not exist: pick the file again after refreshing"),
        (
            OSError(errno.EIO, "Input/output error"),
            r"cannot be read from its disk \(Input/output error\): check the disk",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be read by the user that ComfyUI runs as: allow"),
    ],
    ids=["vanished", "broken disk", "forbidden"],
)
@pytest.mark.parametrize("component", LOADERS)
def test_a_disk_that_fails_while_the_file_is_read_is_named(model, component, error, match, monkeypatch):
    def read(*_args, **_options):
        raise error

    monkeypatch.setattr(comfy.utils, "load_torch_file", read)
    message = refusal(LOADERS[component], model)
    assert re.search(rf"{FILES[component]} {match}", message) and one_sentence(message)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_want_of_memory_is_not_taken_for_a_damaged_file(model, error, monkeypatch):
    def read(*_args, **_options):
        raise error

    monkeypatch.setattr(comfy.utils, "load_torch_file", read)
    with pytest.raises(type(error)):
        sana_loader.load_sana(str(model))


def load_tensors(monkeypatch, state_dict: dict, name: str = "weights.pth", config: dict | None = None):
    """Loads a transformer of these tensors; only the reading of the file is left out."""
    checkpoint = Checkpoint(f"/models/{name}", dict(state_dict), None, config or {})
    monkeypatch.setattr(Checkpoint, "read", lambda *_: checkpoint)
    return sana_loader.load_sana("")


@pytest.mark.parametrize("layout", [dict, layouts.nvidia_sana], ids=["diffusers", "NVIDIA"])
@pytest.mark.parametrize(
    ("family", "known"), [("SANA 0.6B", "28"), ("SANA 1.6B", "20 or 60"), ("SANA-1.5 4.8B", "20 or 60")]
)
def test_a_released_width_without_its_last_block_is_refused(family, known, layout, monkeypatch):
    state_dict = meta_sana(family)
    last = max(int(key.split(".")[1]) for key in state_dict if key.startswith("transformer_blocks."))
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith(f"transformer_blocks.{last}.")}
    with pytest.raises(
        ValueError,
        match=rf"weights.pth has {last} blocks, but SANA models of width \d+ have {known}: download it again, or put "
        r"its config.json beside it if it was pruned\.$",
    ):
        load_tensors(monkeypatch, layout(state_dict))


def test_a_model_of_another_depth_is_believed_when_its_configuration_says_so():
    state_dict = {key: value for key, value in meta_sana("SANA 0.6B").items() if "_blocks.27." not in key}
    assert detect_sana(state_dict, "pruned", {"num_layers": 27}).depth == 27


def test_a_saved_model_knows_its_depth_without_config_json(monkeypatch):
    model = tiny.transformer(num_layers=3).state_dict()
    config = {"num_cross_attention_heads": 4}
    loaded = load_tensors(monkeypatch, model, config=config)
    saved = loaded.model.state_dict_for_saving(loaded.model.diffusion_model.state_dict())
    cut = {key: value for key, value in saved.items() if "_blocks.2." not in key}
    with pytest.raises(ValueError, match="describes a transformer of width 64 and depth 3, but .* 64 wide and 2 deep"):
        load_tensors(monkeypatch, cut)


GEMMA_NAMES = {
    "gemma_2_2b_fp16.safetensors": True,
    "google--gemma-2-2b/model.safetensors": True,
    "Lumina-Image-2.0/text_encoder/model.safetensors": True,
    "gemma_2_2b_it_elm_bf16.safetensors": False,
    "gemma-2-2b-it/model.safetensors": False,
    "lumina/gemma_2_2b_it.safetensors": False,
    "Sana_1600M_1024px_diffusers/text_encoder/model.safetensors": False,
}


@pytest.mark.parametrize("name", GEMMA_NAMES)
def test_the_base_gemma_is_loaded_with_a_warning(name, model, tmp_path, caplog):
    path = tmp_path / "models" / name
    path.parent.mkdir(parents=True)
    shutil.copy(model / "text_encoder" / "model.safetensors", path)
    shutil.copy(model / "tokenizer" / "tokenizer.model", path.parent)
    with caplog.at_level(logging.WARNING):
        assert gemma_loader.load_gemma(str(path)) is not None
    warned = (
        "is the base Gemma-2 2B by its name, but SANA was trained with the instruction-tuned one: use gemma-2-2b-it"
    )
    assert (warned in caplog.text) is GEMMA_NAMES[name]


def test_the_config_beside_a_nameless_gemma_tells_the_base(model, caplog):
    path = model / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_name_or_path": "google/gemma-2-2b"}))
    gemma_loader.load_gemma(str(model))
    assert "is the base Gemma-2 2B by its name" in caplog.text


# Which file of a folder is read


CHOICES = {
    "diffusion_pytorch_model.safetensors": ["diffusion_pytorch_model.fp16.safetensors", "model.safetensors"],
    "diffusion_pytorch_model.bf16.safetensors": ["diffusion_pytorch_model.fp16.safetensors"],
    "diffusion_pytorch_model.safetensors.index.json": ["diffusion_pytorch_model-00001-of-00002.safetensors"],
    "diffusion_pytorch_model.non_ema.safetensors": ["diffusion_pytorch_model.bin"],
    "model.fp16-00001-of-00002.safetensors": ["model.fp16-00002-of-00002.safetensors", "pytorch_model.bin"],
    "model.safetensors.index.fp16.json": ["model.fp16-00001-of-00002.safetensors"],
    "pytorch_model.bin.index.json": ["pytorch_model-00001-of-00002.bin"],
    "Sana_1600M_1024px.pth": ["config.json", "README.md"],
}


@pytest.mark.parametrize("chosen", CHOICES)
def test_a_folder_with_several_files_has_one_that_is_read(chosen, tmp_path):
    for name in (chosen, *CHOICES[chosen]):
        (tmp_path / name).touch()
    assert find_weights(str(tmp_path)) == str(tmp_path / chosen)


def test_shards_without_their_index_load(model):
    state_dict = safetensors.torch.load_file(model / "transformer" / FILES["transformer"])
    (model / "transformer" / FILES["transformer"]).unlink()
    for number in range(2):
        part = {key: state_dict[key] for key in sorted(state_dict)[number::2]}
        name = f"diffusion_pytorch_model-{number + 1:05d}-of-00002.safetensors"
        safetensors.torch.save_file(part, model / "transformer" / name)
    loaded = to_file_layout(sana_loader.load_sana(str(model)).model.diffusion_model.state_dict())
    assert loaded.keys() == state_dict.keys()


# Through the nodes


@pytest.fixture
def diffusion_models(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *_: None)
    return tmp_path


@pytest.mark.usefixtures("diffusion_models")
def test_a_file_that_vanished_from_the_list_is_named():
    with pytest.raises(
        FileNotFoundError,
        match=r"^sub/x.pth is not in models/diffusion_models any more: refresh the list and pick again",
    ):
        resolve("sub/x.pth", "diffusion_models", "transformer")


def test_a_link_that_leads_nowhere_is_named_as_such(diffusion_models):
    (diffusion_models / "x.pth").symlink_to("/nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"x.pth is a link to .*nowhere, which is not there: put the file itself"
    ):
        sana_loader.load_sana(resolve("x.pth", "diffusion_models", "transformer"))


def test_a_name_cannot_leave_the_folder(diffusion_models):
    (diffusion_models.parent / "secret.pth").touch()
    with pytest.raises(FileNotFoundError, match="is not in models/diffusion_models any more"):
        resolve("../secret.pth", "diffusion_models", "transformer")


SERVED = {
    "a git-lfs pointer": ("vae", "is a git-lfs pointer, not the weights themselves: run git lfs pull"),
    "a pickle that calls a function": ("transformer", "holds Python objects besides tensors, .* could run code"),
    "a download cut off in its numbers": (
        "transformer",
        "is incomplete, it has .* bytes: wait for its download to end",
    ),
    "one nan in a vector": ("text_encoder", "holds NaN or infinity in .*: download it again"),
    "a T5 1.0 text encoder": (
        "text_encoder",
        r"is a T5 1.0 text encoder \(use t5-v1_1-xxl\), not a Gemma-2 text enc",
    ),
}
INPUTS = {
    "transformer": ("SanaNativeModelLoader", "model_name", "diffusion_models"),
    "text_encoder": ("SanaNativeGemmaLoader", "text_encoder_name", "text_encoders"),
    "vae": ("SanaNativeDCAELoader", "vae_name", "vae"),
}


@pytest.fixture
def server(comfy_server, sound):
    """The server that other tests use too, with the sound model in it for the time of a test."""
    running = comfy_server()
    models = running.base_directory / "models"
    shutil.copytree(sound, models / "diffusers" / "sound")
    yield running
    for folder in ("diffusers/sound", *(f"{folder}/bad" for _, _, folder in INPUTS.values())):
        shutil.rmtree(models / folder, ignore_errors=True)


@pytest.mark.parametrize("name", SERVED)
def test_the_user_of_the_real_server_reads_the_sentence_and_gets_no_image(name, server, sound, tmp_path):
    component, match = SERVED[name]
    shutil.copytree(sound, tmp_path / "model")
    picked = KINDS[name].make(Place(tmp_path, component))
    picked = picked / component / FILES[component] if picked.is_dir() else picked
    node, widget, folder = INPUTS[component]
    file = server.base_directory / "models" / folder / "bad" / picked.name
    file.parent.mkdir(parents=True)
    shutil.copy(picked, file)
    shutil.copy(sound / "tokenizer" / "tokenizer.model", file.parent)
    images = {*(server.base_directory / "output").rglob("*")}

    graph = load_graph(server, "sana_txt2img", "sound/")
    graph = set_inputs(graph, node, **{widget: f"bad/{file.name}"})
    graph = set_inputs(graph, "SanaNativeSampler", seed=len(name))
    with pytest.raises(ServerError) as error:
        server.run(graph, timeout=120)

    sentence = str(error.value).partition(" failed: ")[2]
    assert re.search(rf"{re.escape(file.name)} {match}", sentence) and one_sentence(sentence)
    assert {*(server.base_directory / "output").rglob("*")} == images
    assert not list(server.base_directory.rglob("canary")) and not (tmp_path / "canary").exists()
