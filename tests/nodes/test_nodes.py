"""The pack's nodes: schema and code agree, everything is explained, defaults are valid, inputs stay as they are."""

import copy
import inspect
from pathlib import Path

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from sana_native.models.sana.resolution import ASPECT_RATIOS, RESOLUTION_BINS
from sana_native.nodes import NODES, comfy_entrypoint, files
from sana_native.samplers.flow_dpm import sample_flow_dpm
from sana_native.samplers.schedules import get_sigmas_flow_dpm, get_sigmas_flow_euler, get_sigmas_scm
from sana_native.samplers.scm import sample_scm
from sana_native.tests.support.workbench import OURS, call, clip, draw, encoded, folder, model, picture, vae

IDS = {
    "SanaNativeModelLoader",
    "SanaNativeGemmaLoader",
    "SanaNativeDCAELoader",
    "SanaNativeGemmaEncode",
    "SanaNativeEmptyLatent",
    "SanaNativeFlowScheduler",
    "SanaNativeFlowDPMSampler",
    "SanaNativeSCMScheduler",
    "SanaNativeSCMSampler",
    "SanaNativeSampler",
    "SanaNativeDCAEEncode",
    "SanaNativeDCAEDecode",
    "SanaNativeLoraLoader",
    "SanaNativeLuminaOptions",
    "SanaNativeQuantizeSave",
    "SanaNativeControlNetLoader",
    "SanaNativeControlNetSave",
    "SanaNativeScribble",
    "SanaNativeBlendPrompts",
    "SanaNativePAG",
    "SanaNativeNAG",
    "SanaNativeCFGZeroStar",
    "SanaNativeInpaintLatent",
    "SanaNativeInpaintComposite",
    "SanaNativeInpaintCrop",
    "SanaNativeInpaintStitch",
    "SanaNativeUpscaleLatent",
    "SanaNativePromptsFromFile",
    "SanaNativePromptBatch",
    "SanaNativeSeeds",
    "SanaNativeSize",
    "SanaNativeFitBack",
    "SanaNativeSaveNamed",
    "SanaNativeClipScore",
    "SanaNativePictureDifference",
    "SanaNativeGrid",
    "SanaNativeTrainingSet",
    "SanaNativeEncodeTrainingSet",
    "SanaNativeTrainLora",
    "SanaNativeTrainModel",
}
SHELVES = {
    "image",
    "image/filters",
    "image/transform",
    "model/loaders",
    "model/merging",
    "model/conditioning/sana",
    "model/latent/sana",
    "image/mask",
    "model/patch",
    "model/sampling",
    "model/sampling/noise",
    "model/sampling/samplers",
    "model/sampling/schedulers",
    "model/training/sana",
}
every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)


def defaults(node) -> dict:
    return {item.id: item.default for item in node.GET_SCHEMA().inputs if getattr(item, "default", None) is not None}


def test_ids_are_permanent():
    assert len(NODES) == len(IDS) and {node.GET_SCHEMA().node_id for node in NODES} == IDS


def test_entry_point_hands_over_the_nodes():
    async def found():
        return await (await comfy_entrypoint()).get_node_list()

    coroutine = found()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value is NODES


@every_node
def test_schema_inputs_are_the_parameters_of_execute_in_order(node):
    parameters = list(inspect.signature(node.execute).parameters)
    assert [item.id for item in node.GET_SCHEMA().inputs] == parameters


@every_node
def test_node_is_described_and_lies_on_a_shelf_of_the_host(node):
    schema = node.GET_SCHEMA()
    assert schema.display_name.startswith("SANA ") and schema.search_aliases
    assert schema.description.endswith(".") and 20 < len(schema.description) < 160
    assert schema.category in SHELVES


@every_node
def test_every_input_and_output_has_a_tooltip(node):
    schema = node.GET_SCHEMA()
    assert schema.outputs and not [
        item.id for item in [*schema.inputs, *schema.outputs] if not (item.tooltip or "").endswith(".")
    ]


@every_node
def test_defaults_are_valid(node):
    for item in node.GET_SCHEMA().inputs:
        if isinstance(item, io.Combo.Input) and item.default is not None:
            assert item.default in item.options
        if isinstance(item, io.Int.Input | io.Float.Input):
            assert item.min <= item.default <= item.max
            steps = item.default / (item.step or 1)
            assert abs(steps - round(steps)) < 1e-6


@every_node
def test_every_number_and_choice_has_a_default(node):
    choosing_a_file = {"model_name", "text_encoder_name", "vae_name", "lora_name", "control_net_name", "file"}
    for item in node.GET_SCHEMA().inputs:
        if isinstance(item, io.Combo.Input | io.Int.Input | io.Float.Input | io.Boolean.Input):
            assert item.default is not None or item.id in choosing_a_file


@pytest.fixture
def models_folder(monkeypatch, tmp_path):
    """The host's folders, emptied but for one diffusers model in a subfolder and one file of each kind."""
    diffusers = tmp_path / "diffusers" / "group" / "tiny model"
    diffusers.parent.mkdir(parents=True)
    diffusers.symlink_to(folder() / "sana", target_is_directory=True)
    paths = {"diffusers": [str(tmp_path / "diffusers")], "checkpoints": [str(tmp_path / "checkpoints")]}
    for name in ("diffusion_models", "text_encoders", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").touch()
        paths[name] = [str(tmp_path / name)]
    known = folder_paths.folder_names_and_paths
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {name: (paths[name], known[name][1]) for name in paths})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


# These come with the pack; the second has a transformer alone.
DEMO, DEMO_SPRINT = "sana-native-demo/", "sana-native-demo-sprint/"
LOADERS = {
    "ModelLoader": ("diffusion_models", ("auto", 0.0, "auto")),
    "GemmaLoader": ("text_encoders", ("auto",)),
    "DCAELoader": ("vae", ("auto",)),
}


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("name", LOADERS)
def test_loader_lists_diffusers_folders_and_files(name):
    schema = OURS[name].define_schema()
    bundled = [DEMO, DEMO_SPRINT] if name == "ModelLoader" else [DEMO]
    assert schema.inputs[0].options == ["group/tiny model/", *bundled, f"{LOADERS[name][0]}.safetensors"]


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("name", LOADERS)
def test_loader_loads_a_listed_diffusers_folder(name):
    (loaded,) = call(OURS[name], "group/tiny model/", *LOADERS[name][1])
    assert loaded.patcher is not None if name != "ModelLoader" else loaded.model.diffusion_model is not None


def test_loader_lists_only_folders_that_hold_its_part(models_folder):
    part = models_folder / "diffusers" / "part"
    part.mkdir()
    (part / "model_index.json").touch()
    (part / "vae").mkdir()
    assert list(files.diffusers_folders("vae")) == ["group/tiny model/", "part/", DEMO]
    assert list(files.diffusers_folders("transformer")) == ["group/tiny model/", DEMO, DEMO_SPRINT]


@pytest.mark.parametrize(
    "name, component", [(DEMO, "transformer"), (DEMO, "text_encoder"), (DEMO, "vae"), (DEMO_SPRINT, "transformer")]
)
def test_bundled_demos_are_found_without_any_file_of_the_users(name, component):
    assert Path(files.resolve(name, "anything", component)).joinpath(component, "config.json").is_file()


@pytest.mark.usefixtures("models_folder")
def test_folder_and_file_that_are_gone_are_named():
    with pytest.raises(
        FileNotFoundError, match="The diffusers folder gone/ is not in models/diffusers any more: refresh the list"
    ):
        call(OURS["ModelLoader"], "gone/", "auto", 0.0, "auto")
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        call(OURS["ModelLoader"], "gone.safetensors", "auto", 0.0, "auto")


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "fp8_e4m3fn", "fp8_e5m2"])
def test_model_loader_gives_the_weights_the_chosen_format(dtype):
    (loaded,) = call(OURS["ModelLoader"], "group/tiny model/", dtype, 0.0, "auto")
    expected = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}.get(dtype) or getattr(torch, dtype)
    assert loaded.model.diffusion_model.transformer_blocks[0].attn1.to_q.weight.dtype == expected
    latent = draw(loaded, encoded())
    assert torch.isfinite(latent).all() and latent.std() > 0.1


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("clamp, expected", [("auto", True), ("on", True), ("off", False)])
def test_model_loader_passes_shift_and_clamp_on(clamp, expected):
    (loaded,) = call(OURS["ModelLoader"], "group/tiny model/", "auto", 2.5, clamp)
    config = loaded.model.diffusion_model.config
    assert (config.shift, config.clamp_attention) == (2.5, expected)
    assert loaded.get_model_object("model_sampling").shift == 2.5


@pytest.mark.usefixtures("models_folder")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["GemmaLoader", "DCAELoader"])
def test_text_encoder_and_autoencoder_take_the_chosen_format(name, dtype):
    (loaded,) = call(OURS[name], "group/tiny model/", dtype)
    module = (
        loaded.cond_stage_model.gemma2_2b.transformer.model.layers[0]
        if name == "GemmaLoader"
        else loaded.first_stage_model
    )
    assert next(module.parameters()).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("size", ["512", "1024", "2048", "4096"])
@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_empty_latent_is_of_a_trained_size_turned_as_asked(size, aspect_ratio):
    latent = call(OURS["EmptyLatent"], size, aspect_ratio, 32, 32, 2)[0]
    batch, channels, height, width = latent["samples"].shape
    assert (batch, channels) == (2, 32) and not latent["samples"].any()
    sizes = set(RESOLUTION_BINS[int(size)].values())
    assert (height * 32, width * 32) in sizes or (width * 32, height * 32) in sizes
    a, b = map(int, aspect_ratio.split(":"))
    assert (a > b) == (width > height) and (a < b) == (width < height)


def test_empty_latent_takes_custom_sizes_and_rounds_down_to_32():
    assert call(OURS["EmptyLatent"], "custom", "16:9", 96, 64, 1)[0]["samples"].shape == (1, 32, 2, 3)
    assert call(OURS["EmptyLatent"], "custom", "1:1", 127, 95, 1)[0]["samples"].shape == (1, 32, 2, 3)


def test_empty_latent_says_what_a_size_between_becomes(caplog):
    call(OURS["EmptyLatent"], "custom", "1:1", 1000, 777, 1)
    assert caplog.messages == ["SANA: 1000 x 777 px becomes 992 x 768 px: SANA's sides are multiples of 32."]
    caplog.clear()
    call(OURS["EmptyLatent"], "custom", "1:1", 992, 768, 1)
    call(OURS["EmptyLatent"], "1024", "16:9", 1000, 777, 1)
    assert caplog.messages == []


def test_empty_latent_tells_stock_nodes_its_ratio():
    assert call(OURS["EmptyLatent"], **defaults(OURS["EmptyLatent"]))[0]["downscale_ratio_spacial"] == 32


def test_flow_scheduler_uses_the_models_shift_unless_told_otherwise():
    node, sana = OURS["FlowScheduler"], model("sana")
    assert torch.equal(call(node, sana, 20, "flow_dpm", 0.0, 1.0)[0], get_sigmas_flow_dpm(20, 3.0))
    assert torch.equal(call(node, sana, 28, "flow_euler", 0.0, 1.0)[0], get_sigmas_flow_euler(28, 3.0))
    assert torch.equal(call(node, sana, 20, "flow_dpm", 6.0, 0.5)[0], get_sigmas_flow_dpm(20, 6.0, 0.5))


def test_scm_scheduler_passes_its_angles_on():
    assert torch.equal(call(OURS["SCMScheduler"], **defaults(OURS["SCMScheduler"]))[0], get_sigmas_scm(2))
    assert torch.equal(call(OURS["SCMScheduler"], 2, 1.5, 1.1, 1.0)[0], get_sigmas_scm(2, 1.5, 1.1, 1.0))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_flow_dpm_sampler_node_carries_its_order(order):
    sampler = call(OURS["FlowDPMSampler"], order)[0]
    assert isinstance(sampler, comfy.samplers.KSAMPLER)
    assert sampler.sampler_function is sample_flow_dpm and sampler.extra_options == {"order": order}


def test_scm_sampler_node_gives_our_loop():
    assert call(OURS["SCMSampler"])[0].sampler_function is sample_scm


def frozen(value):
    """Deep copy of a conditioning or latent, for comparing afterwards."""
    return copy.deepcopy(value)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("family", ["sana", "sprint"])
def test_sampler_block_leaves_model_conditioning_and_latent_as_they_are(family):
    patcher, conds = model(family), encoded()
    latent = {"samples": torch.randn(2, 32, 2, 2), "batch_index": [0, 1]}
    weights = {key: tensor.clone() for key, tensor in patcher.model.state_dict().items()}
    before = (
        frozen(conds),
        frozen(latent),
        frozen(patcher.model_options),
        dict(patcher.patches),
        dict(patcher.object_patches),
    )
    first = draw(patcher, conds, latent, denoise=0.6)
    assert same(before, (conds, latent, patcher.model_options, dict(patcher.patches), dict(patcher.object_patches)))
    assert same(weights, patcher.model.state_dict())
    assert torch.equal(first, draw(patcher, conds, latent, denoise=0.6))


def test_sampler_block_keeps_what_else_a_latent_carries():
    mask = torch.ones(1, 64, 64)
    latent = {"samples": torch.randn(1, 32, 2, 2), "noise_mask": mask}
    result = call(OURS["Sampler"], model("sana"), *encoded(), latent, 1, 2, 4.5, 1.0)[0]
    assert result["noise_mask"] is mask and result["samples"] is not latent["samples"]


@pytest.mark.parametrize("tiling", ["auto", "off", "on"])
def test_encode_and_decode_nodes_leave_image_and_latent_as_they_are(tiling):
    image = picture(160, 128)
    image_before = image.clone()
    latent = call(OURS["DCAEEncode"], vae(), image, tiling, 128, 32)[0]
    assert torch.equal(image, image_before) and latent["samples"].shape == (1, 32, 4, 5)
    latent_before = frozen(latent)
    decoded = call(OURS["DCAEDecode"], vae(), latent, tiling, 128, 32)[0]
    assert same(latent, latent_before) and decoded.shape == image.shape and 0 <= decoded.min() and decoded.max() <= 1


def test_text_encode_node_leaves_its_clip_as_it_is():
    before = (
        frozen(clip().tokenizer_options),
        {key: tensor.clone() for key, tensor in clip().cond_stage_model.state_dict().items()},
    )
    call(OURS["GemmaEncode"], clip(), "a cat", "blurry", "custom", "Say: ", True)
    assert same(before, (clip().tokenizer_options, dict(clip().cond_stage_model.state_dict())))
