"""What the loaders' lists offer: every place a file may lie in has a name of its own, and the name leads back to it."""

import io
import json
import shutil
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_extras.nodes_model_merging import CheckpointSave
from PIL import Image
from sana_native.models.sana.loader import load_sana
from sana_native.nodes import files
from sana_native.tests.support import layouts, tiny, workbench
from sana_native.tests.support.workbench import OURS, call, clip, vae

KINDS = ("diffusion_models", "text_encoders", "vae", "checkpoints", "diffusers")
LOADERS = {"transformer": "ModelLoader", "text_encoder": "GemmaLoader", "vae": "DCAELoader"}
FOLDERS = {"transformer": "diffusion_models", "text_encoder": "text_encoders", "vae": "vae"}
# The models that come with the pack, as each loader lists them.
DEMO = "sana-native-demo/"
DEMOS = {"transformer": [DEMO, "sana-native-demo-sprint/"], "text_encoder": [DEMO], "vae": [DEMO]}
SNAPSHOT = f"snapshots/{'0123abcd' * 5}"


@pytest.fixture
def models(monkeypatch, tmp_path) -> Path:
    """Empty model folders, the only ones the host knows."""
    known = folder_paths.folder_names_and_paths
    paths = {kind: ([str(tmp_path / kind)], known[kind][1]) for kind in KINDS}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", paths)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def offered(component: str) -> list[str]:
    return OURS[LOADERS[component]].define_schema().inputs[0].options


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("component", LOADERS)
def test_a_file_in_checkpoints_is_offered_by_every_loader(models, component):
    path = empty(models / "checkpoints" / "my models" / "all.safetensors")
    assert offered(component) == [*DEMOS[component], "checkpoints/my models/all.safetensors"]
    assert files.resolve("checkpoints/my models/all.safetensors", FOLDERS[component], component) == str(path)


def test_a_loaders_own_folder_goes_before_checkpoints(models):
    empty(models / "checkpoints" / "a.safetensors")
    path = empty(models / "diffusion_models" / "checkpoints" / "a.safetensors")
    assert offered("transformer") == [*DEMOS["transformer"], "checkpoints/a.safetensors"]
    assert files.resolve("checkpoints/a.safetensors", "diffusion_models", "transformer") == str(path)


def test_a_file_gone_from_checkpoints_is_named(models):  # noqa: ARG001 - empties the folders
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        files.resolve("checkpoints/gone.safetensors", "vae", "vae")


def test_one_file_saved_by_save_checkpoint_is_picked_in_all_three_loaders(models, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(models))
    model = load_sana(str(workbench.folder() / "sprint"))
    CheckpointSave().save(model, clip(), vae(), "checkpoints/all")
    (name,) = (name for name in offered("vae") if name.startswith("checkpoints/"))
    assert call(OURS["ModelLoader"], name, "auto")[0].model.is_sprint
    assert call(OURS["GemmaLoader"], name, "auto")[0].tokenize("a cat")
    assert call(OURS["DCAELoader"], name, "auto")[0].latent_channels == 32


def test_namesakes_in_subfolders_are_told_apart(models):
    """Every diffusers file has one name; the folder tells which, and config.json is read from there."""
    for name, config in {
        "wide": {"sample_size": 64, "interpolation_scale": 1.0},
        "Sana 図": {"sample_size": 16},
    }.items():
        tiny.transformer(**config).save_pretrained(models / "diffusion_models" / name)
    names = [f"{folder}/diffusion_pytorch_model.safetensors" for folder in ("Sana 図", "wide")]
    assert offered("transformer") == [*DEMOS["transformer"], *names]
    sizes = [call(OURS["ModelLoader"], name, "auto")[0].model.diffusion_model.config.sample_size for name in names]
    assert sizes == [16, 64]


def test_names_with_the_separators_of_windows_pass_to_the_host_as_it_gave_them(monkeypatch):
    name = "SANA\\Sana_1600M_2Kpx_BF16_diffusers\\transformer\\diffusion_pytorch_model.safetensors"
    lists = {"diffusion_models": [name], "checkpoints": ["SANA\\all.safetensors"]}
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda folder: lists[folder])
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [])
    paths = {(folder, name): f"C:\\{name}" for folder in lists for name in lists[folder]}
    monkeypatch.setattr(folder_paths, "get_full_path", lambda *names: paths.get(names))
    offers = files.list_names("diffusion_models", "transformer")
    assert offers == [*DEMOS["transformer"], name, "checkpoints/SANA\\all.safetensors"]
    found = [files.resolve(offer, "diffusion_models", "transformer") for offer in offers[2:]]
    assert found == [f"C:\\{name}", "C:\\SANA\\all.safetensors"]


def write_config(folder: Path, **config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def test_folders_of_diffusers_of_trainers_of_the_hub_and_of_one_component_are_offered(models):
    root = models / "diffusers"
    for name in ("Sana_1600M_2Kpx_BF16_diffusers", f"models--Efficient-Large-Model--Sana_Sprint/{SNAPSHOT}"):
        empty(root / name / "model_index.json")
        for component in LOADERS:
            (root / name / component).mkdir()
    for name in ("transformer", "transformer_ema"):  # SimpleTuner's, without model_index.json
        (root / "my run" / "checkpoint-500" / name).mkdir(parents=True)
    write_config(root / "only" / "the transformer", _class_name="SanaTransformer2DModel")
    write_config(root / "dc-ae-f32c32-sana-1.1-diffusers", _class_name="AutoencoderDC")
    write_config(root / "gemma-2-2b-it", architectures=["Gemma2ForCausalLM"])
    write_config(root / "another family", _class_name="FluxTransformer2DModel")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")

    whole = ["Sana_1600M_2Kpx_BF16_diffusers/", f"models--Efficient-Large-Model--Sana_Sprint/{SNAPSHOT}/"]
    trained = ["my run/checkpoint-500/", "my run/checkpoint-500/transformer_ema/", "only/the transformer/"]
    assert offered("transformer") == [*whole, *trained, *DEMOS["transformer"]]
    assert offered("vae") == [whole[0], "dc-ae-f32c32-sana-1.1-diffusers/", whole[1], DEMO]
    assert offered("text_encoder") == [whole[0], "gemma-2-2b-it/", whole[1], DEMO]
    assert files.resolve(trained[1], "diffusion_models", "transformer") == str(root / trained[1])


def test_the_averaged_weights_of_a_trainer_load_by_their_name(models):
    checkpoint = models / "diffusers" / "checkpoint-500"
    tiny.transformer(seed=0).save_pretrained(checkpoint / "transformer")
    tiny.transformer(seed=1).save_pretrained(checkpoint / "transformer_ema")
    trained, average = (
        call(OURS["ModelLoader"], f"checkpoint-500/{end}", "float32")[0].model.diffusion_model.state_dict()
        for end in ("", "transformer_ema/")
    )
    key = "patch_embed.proj.weight"
    assert torch.equal(trained[key], tiny.transformer(seed=0).state_dict()[key])
    assert torch.equal(average[key], tiny.transformer(seed=1).state_dict()[key])


# Inputs as workflows of version 0.1 hold them; those after them came later, and the host must not ask for them.
FIRST_INPUTS = {
    "ModelLoader": ["model_name", "weight_dtype", "shift", "clamp"],
    "GemmaLoader": ["text_encoder_name", "dtype"],
    "DCAELoader": ["vae_name", "dtype"],
}


@pytest.mark.parametrize("node", FIRST_INPUTS)
def test_workflows_of_the_first_version_stay_valid(node):
    first, inputs = FIRST_INPUTS[node], OURS[node].define_schema().inputs
    assert [item.id for item in inputs[: len(first)]] == first
    assert all(item.optional and item.default is not None for item in inputs[len(first) :])


@pytest.mark.parametrize(
    "resolution, side, scale", [("auto", 32, None), ("512", 16, None), ("2K", 64, 1.0), ("4K", 128, 2.0)]
)
@pytest.mark.parametrize("trained_in, clamp", [("auto", None), ("float16", True), ("bfloat16", False)])
def test_the_users_word_goes_before_what_the_loader_found(models, resolution, side, scale, trained_in, clamp):
    (models / "diffusers" / "tiny").symlink_to(workbench.folder() / "sana", target_is_directory=True)
    (loaded,) = call(OURS["ModelLoader"], "tiny/", "auto", 0.0, "auto", resolution, trained_in)
    config = loaded.model.diffusion_model.config
    assert (config.sample_size, config.interpolation_scale) == (side, scale)
    told = "bfloat16" if side > 32 else None  # all of 2K and 4K were
    assert config.trained_in == (told if trained_in == "auto" else trained_in)
    if clamp is not None:
        assert bool(config.clamp_attention) == clamp


MARK = "моделі 図 🎨"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Models outside the host's folders, under names of any script, in folders nobody may write to."""
    root = tmp_path_factory.mktemp("elsewhere") / MARK
    sana = workbench.folder() / "sana"
    shutil.copytree(sana / "transformer", root / "unet" / "Sana 図" / "transformer")
    spiece = torch.frombuffer(bytearray((sana / "tokenizer" / "tokenizer.model").read_bytes()), dtype=torch.uint8)
    weights = layouts.prefixed(tiny.gemma(600).state_dict(), "model.") | {"spiece_model": spiece}
    layouts.save(root / "encoders" / "gemma 🎨.safetensors", weights)
    layouts.save(root / "vaes" / "дс-ае.safetensors", layouts.original_dc_ae(tiny.dc_ae().state_dict()))
    layouts.save(root / "mixed" / "усе.safetensors", layouts.prefixed(tiny.dc_ae().state_dict(), "vae."))
    shutil.copytree(sana / "transformer", root / "hub" / "models--x--Sana" / SNAPSHOT / "transformer")
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    yield root
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


def prompt_of(model_name: str, text_encoder_name: str, vae_name: str) -> dict:
    """As a workflow of the first version would be queued: without the inputs that came later."""
    nodes = {
        "model": ("ModelLoader", {"model_name": model_name, "weight_dtype": "auto", "shift": 0.0, "clamp": "auto"}),
        "clip": ("GemmaLoader", {"text_encoder_name": text_encoder_name, "dtype": "auto"}),
        "vae": ("DCAELoader", {"vae_name": vae_name, "dtype": "auto"}),
        "text": ("GemmaEncode", workbench_defaults("GemmaEncode") | {"clip": ["clip", 0], "prompt": "a cat"}),
        "size": ("EmptyLatent", workbench_defaults("EmptyLatent") | {"size": "custom", "width": 64, "height": 64}),
        "sample": (
            "Sampler",
            workbench_defaults("Sampler")
            | {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": ["size", 0]}
            | {"steps": 1},
        ),
        "decode": ("DCAEDecode", workbench_defaults("DCAEDecode") | {"vae": ["vae", 0], "samples": ["sample", 0]}),
    }
    prompt = {key: {"class_type": f"SanaNative{node}", "inputs": inputs} for key, (node, inputs) in nodes.items()}
    save = {"images": ["decode", 0], "filename_prefix": "names"}
    return prompt | {"save": {"class_type": "SaveImage", "inputs": save}}


def workbench_defaults(node: str) -> dict:
    return {
        item.id: item.default for item in OURS[node].GET_SCHEMA().inputs if getattr(item, "default", None) is not None
    }


def test_models_of_extra_model_paths_are_listed_and_draw_through_the_real_server(elsewhere, comfy_server):
    yaml = elsewhere.parent / "extra_model_paths.yaml"
    folders = {"diffusion_models": "unet/", "text_encoders": "encoders", "vae": "vaes/", "checkpoints": "mixed"}
    lines = [f"    {kind}: {folder}" for kind, folder in (folders | {"diffusers": "hub"}).items()]
    yaml.write_text("\n".join(["other_program:", f"    base_path: {elsewhere}", *lines]) + "\n", encoding="utf-8")
    before = sorted(elsewhere.rglob("*"))

    server = comfy_server("--extra-model-paths-config", str(yaml))
    model = "Sana 図/transformer/diffusion_pytorch_model.safetensors"
    hub = f"models--x--Sana/{SNAPSHOT}/"
    info = server.object_info()
    names = [
        info[f"SanaNative{node}"]["input"]["required"][item][1]["options"]
        for node, item in (
            ("ModelLoader", "model_name"),
            ("GemmaLoader", "text_encoder_name"),
            ("DCAELoader", "vae_name"),
        )
    ]
    assert names == [
        [hub, *DEMOS["transformer"], model, "checkpoints/усе.safetensors"],
        [DEMO, "gemma 🎨.safetensors", "checkpoints/усе.safetensors"],
        [DEMO, "дс-ае.safetensors", "checkpoints/усе.safetensors"],
    ]

    for model_name, vae_name in ((model, "дс-ае.safetensors"), (hub, "checkpoints/усе.safetensors")):
        result = server.run(prompt_of(model_name, "gemma 🎨.safetensors", vae_name), timeout=60)
        (image,) = result.images()
        assert Image.open(io.BytesIO(server.fetch_image(image))).size == (64, 64)
    assert "Sana 図/transformer" in server.log()
    assert sorted(elsewhere.rglob("*")) == before


@pytest.fixture
def walks(monkeypatch) -> list[str]:
    """Where `os.walk` has begun, of the pack's own walks."""
    begun, walk = [], files.os.walk

    def counted(top, *args, **options):
        begun.append(top)
        return walk(top, *args, **options)

    monkeypatch.setattr(files.os, "walk", counted)
    return begun


def model_folder(models: Path, name: str) -> Path:
    """A diffusers folder with a transformer, empty."""
    empty(models / "diffusers" / name / "model_index.json")
    (models / "diffusers" / name / "transformer").mkdir()
    return models / "diffusers" / name


def test_all_loaders_together_walk_the_folders_once(models, walks):
    model_folder(models, "group/first")
    for _ in range(2):
        assert [offered(component)[0] for component in LOADERS] == ["group/first/", DEMO, DEMO]
    assert walks.count(str(models / "diffusers")) == 1


def test_resolving_a_name_walks_no_folder_again(models, walks):
    folder = model_folder(models, "first")
    offered("transformer")
    walks.clear()
    assert files.resolve("first/", "diffusion_models", "transformer") == str(folder)
    assert not walks


@pytest.mark.parametrize("where", ["second", "group/second"])
def test_a_new_folder_is_offered_after_a_refresh(models, where):
    model_folder(models, "group/first")
    assert "group/first/" in offered("transformer")
    model_folder(models, where)
    assert {"group/first/", f"{where}/"} <= set(offered("transformer"))


def test_a_removed_folder_is_offered_no_more(models):
    folder = model_folder(models, "first")
    assert "first/" in offered("transformer")
    shutil.rmtree(folder)
    assert "first/" not in offered("transformer")


def test_a_component_that_joins_a_folder_is_offered(models):
    folder = model_folder(models, "first")
    assert "first/" not in offered("vae")
    (folder / "vae").mkdir()
    assert "first/" in offered("vae")


def test_a_configuration_that_comes_later_makes_a_folder_a_model(models):
    config = empty(models / "diffusers" / "alone" / "config.json")
    assert "alone/" not in offered("vae")
    config.write_text('{"_class_name": "AutoencoderDC"}')
    assert "alone/" in offered("vae")
