"""The host's nodes on a PixArt of our loader: LoRA of every trainer, patches, areas, training."""

import json
from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_hooks import ConditioningSetProperties, CreateHookLoraModelOnly
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from sana_native.models.lora.loader import load_lora
from sana_native.models.pixart.loader import load_pixart
from sana_native.tests.support import pixart
from sana_native.tests.support import workbench as bench

RANK, SEED = 4, 7
TRAINING = {
    "batch_size": 1, "steps": 2, "grad_accumulation_steps": 1, "learning_rate": 0.05, "rank": 2, "optimizer": "AdamW",
    "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32", "quantized_backward": False,
    "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1, "offloading": False,
    "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
}  # fmt: skip
# Layer in diffusers' layout -> where its rows lie in the network.
LAYERS = {
    "transformer_blocks.0.attn1.to_q": ("blocks.0.attn.qkv", 0),
    "transformer_blocks.0.attn1.to_v": ("blocks.0.attn.qkv", 288),
    "transformer_blocks.0.attn2.to_k": ("blocks.0.cross_attn.kv_linear", 0),
    "transformer_blocks.0.ff.net.0.proj": ("blocks.0.mlp.fc1", 0),
    "caption_projection.linear_1": ("y_embedder.y_proj.fc1", 0),
    "proj_out": ("final_layer.linear", 0),
}


@pytest.fixture
def model(tmp_path):
    return load_pixart(pixart.save(pixart.reference(layers=2), "Sigma 512", "authors", tmp_path))


def factors(model) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (down, up) in diffusers' shapes."""
    generator = torch.Generator().manual_seed(3)
    state_dict, found = model.model.diffusion_model.state_dict(), {}
    for layer, (own, _) in LAYERS.items():
        rows, columns = state_dict[f"{own}.weight"].shape
        rows = 144 if "attn" in layer else rows
        found[layer] = tuple(torch.randn(shape, generator=generator) * 0.1 for shape in ((RANK, columns), (rows, RANK)))
    return found


def file_of(trainer: str, pairs: dict, folder) -> str:
    names = {"diffusers": ("transformer.{}", ".lora_A.weight", ".lora_B.weight"),
             "bare": ("{}", ".lora_A.weight", ".lora_B.weight"),
             "PEFT": ("base_model.model.{}", ".lora_A.weight", ".lora_B.weight"),
             "OneTrainer": ("lora_transformer_{}", ".lora_down.weight", ".lora_up.weight"),
             "SimpleTuner": ("lycoris_{}", ".lora_down.weight", ".lora_up.weight")}  # fmt: skip
    before, down, up = names[trainer]
    out = {}
    for layer, (a, b) in pairs.items():
        stem = before.format(layer.replace(".", "_") if trainer in ("OneTrainer", "SimpleTuner") else layer)
        out |= {stem + down: a, stem + up: b}
    path = folder / ("adapter_model.safetensors" if trainer == "PEFT" else f"{trainer}.safetensors")
    safetensors.torch.save_file(out, path)
    return str(path)


def changed_weights(patcher) -> dict[str, torch.Tensor]:
    patcher.patch_model()
    weights = {key: tensor.clone() for key, tensor in patcher.model.diffusion_model.state_dict().items()}
    patcher.unpatch_model()
    return weights


def assert_applied(patcher, before: dict, pairs: dict, scale: float = 1.0) -> None:
    after = changed_weights(patcher)
    expected = {key: tensor.clone() for key, tensor in before.items()}
    for layer, (down, up) in pairs.items():
        own, start = LAYERS[layer]
        expected[f"{own}.weight"][start : start + up.shape[0]] += scale * (up @ down)
    assert all(torch.allclose(after[key], expected[key], atol=1e-6) for key in expected)


@pytest.mark.parametrize("trainer", ["diffusers", "bare", "PEFT", "OneTrainer", "SimpleTuner"])
def test_sana_lora_loader_reads_every_trainer_and_pefts_alpha(trainer, model, tmp_path):
    pairs, before = factors(model), changed_weights(model)
    if trainer == "PEFT":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": RANK}))
    loaded = load_lora(model, file_of(trainer, pairs, tmp_path), 0.5)
    assert_applied(loaded, before, pairs, 0.25 if trainer == "PEFT" else 0.5)
    assert_applied(model, before, {})


def test_half_of_a_lora_is_refused_by_the_key_that_is_left(model, tmp_path):
    path = file_of("diffusers", factors(model), tmp_path)
    halves = {key: value for key, value in safetensors.torch.load_file(path).items() if "lora_A" in key}
    safetensors.torch.save_file(halves, path)
    with pytest.raises(ValueError, match=r"has transformer\..*lora_A.weight without its counterpart: save it again"):
        load_lora(model, path, 1.0)


def test_the_stock_lora_node_finds_the_fused_layers(model, tmp_path):
    pairs, before = factors(model), changed_weights(model)
    lora = safetensors.torch.load_file(file_of("diffusers", pairs, tmp_path))
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0)
    assert_applied(loaded, before, pairs)


def test_a_dora_in_the_hosts_bypass_mode_is_refused_because_its_magnitudes_would_not_count(model):
    layer = next(name for name, one in model.model.named_modules() if name.endswith("mlp.fc1"))
    rows, columns = model.model.get_submodule(layer).weight.shape
    down, up = torch.ones(RANK, columns), torch.ones(rows, RANK)
    lora = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
    assert comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 1.0)[0].injections
    dora = lora | {f"{layer}.dora_scale": torch.ones(rows, 1)}
    with pytest.raises(ValueError, match="is a DoRA, whose magnitudes bypass mode leaves out: load it with SANA LoRA"):
        comfy.sd.load_bypass_lora_for_models(model, None, dora, 1.0, 1.0)


def test_loras_of_others_are_refused_in_one_sentence(model, tmp_path):
    of_sana = {"transformer_blocks.0.ff.conv_point": (torch.ones(RANK, 8), torch.ones(8, RANK))}
    with pytest.raises(ValueError, match=r"is a LoRA for SANA, not for PixArt \(it has transformer.*conv_point"):
        load_lora(model, file_of("diffusers", of_sana, tmp_path), 1.0)
    wrong = {"transformer_blocks.0.ff.unknown": (torch.ones(RANK, 8), torch.ones(8, RANK))}
    with pytest.raises(ValueError, match=r"None of the 2 keys of .* names a layer of this PixArt model: check that it"):
        load_lora(model, file_of("diffusers", wrong, tmp_path), 1.0)
    narrow = {"proj_out": (torch.ones(RANK, 8), torch.ones(8, RANK))}
    with pytest.raises(ValueError, match=r"is for another size of PixArt, as this model's layers have 32 x 144 values"):
        load_lora(model, file_of("diffusers", narrow, tmp_path), 1.0)
    broken = {"proj_out": (torch.full((RANK, 144), torch.nan), torch.ones(32, RANK))}
    with pytest.raises(ValueError, match="holds NaN or infinity in transformer.proj_out"):
        load_lora(model, file_of("diffusers", broken, tmp_path), 1.0)
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match="is no LoRA but something else .*: pick a LoRA, LoHa, LoKr or DoRA trained on Pix"
    ):
        load_lora(model, str(tmp_path / "x.safetensors"), 1.0)


@pytest.mark.parametrize("field", ["modelspec.architecture", "ss_base_model_version"])
def test_the_header_tells_a_lora_of_sana_with_the_same_layers(field, model, tmp_path):
    pairs = {"transformer_blocks.0.attn1.to_q": (torch.ones(RANK, 144), torch.ones(144, RANK))}
    path = file_of("diffusers", pairs, tmp_path)
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {field: "Sana_600M/lora"})
    with pytest.raises(ValueError, match="is a LoRA for SANA, not for PixArt, as its header says"):
        load_lora(model, path, 1.0)
    safetensors.torch.save_file(tensors, path, {field: "pixart-sigma/lora"})
    assert load_lora(model, path, 1.0).patches
    with pytest.raises(ValueError, match="is a LoRA for PixArt, not for SANA, as its header says"):
        load_lora(bench.fresh_model("sana"), path, 1.0)


@pytest.mark.parametrize("field", ["modelspec.architecture", "ss_base_model_version"])
def test_the_stock_node_refuses_a_lora_of_sana_with_the_same_layers_by_its_header(field, model, tmp_path, monkeypatch):
    pairs = {"transformer_blocks.0.attn1.to_q": (torch.ones(RANK, 144), torch.ones(144, RANK))}
    tensors = safetensors.torch.load_file(file_of("diffusers", pairs, tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    for name, told in (("sana", "Sana_600M"), ("pixart", "pixart-sigma"), ("none", "")):
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors", {field: told})
    with pytest.raises(ValueError, match="^This LoRA is for SANA, not for PixArt-Sigma, as its header says: use it wi"):
        bench.call("LoraLoaderModelOnly", model, "sana.safetensors", 1.0)
    for name in ("pixart", "none"):
        assert bench.call("LoraLoaderModelOnly", model, f"{name}.safetensors", 1.0)[0].patches


def hooked(positive: list, file: str, folder, monkeypatch) -> list:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    hooks = bench.call(CreateHookLoraModelOnly, file, 1.0)[0]
    return bench.call(ConditioningSetProperties, positive, 1.0, "default", hooks=hooks)[0]


def test_a_hook_lora_acts_as_the_stock_loader_s_where_it_is_set(model, tmp_path, monkeypatch):
    pairs = factors(model)
    name = Path(file_of("diffusers", pairs, tmp_path)).name
    plain = sampled(model)
    positive = hooked(conds()[0], name, tmp_path, monkeypatch)
    negative = hooked(conds()[1], name, tmp_path, monkeypatch)
    (loaded,) = bench.call("LoraLoaderModelOnly", model, name, 1.0)
    everywhere = sampled(model, positive, negative)
    assert bench.relative(everywhere, plain) > 1e-2
    assert bench.relative(everywhere, sampled(loaded)) < 1e-5
    assert bench.relative(sampled(model, positive), everywhere) > 1e-2  # the negative is without it here
    assert torch.equal(sampled(model), plain)


def test_the_stock_node_refuses_factors_of_two_ranks(model, tmp_path, monkeypatch):
    pairs = {"transformer_blocks.0.attn1.to_q": (torch.ones(RANK, 144), torch.ones(144, 2 * RANK))}
    name = Path(file_of("diffusers", pairs, tmp_path)).name
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with pytest.raises(ValueError, match="^The factors of this LoRA do not fit each other in what it adds to blocks.0"):
        bench.call("LoraLoaderModelOnly", model, name, 1.0)


def test_a_hook_lora_of_another_size_is_refused(model, tmp_path, monkeypatch):
    narrow = {"proj_out": (torch.ones(RANK, 8), torch.ones(8, RANK))}
    name = Path(file_of("diffusers", narrow, tmp_path)).name
    positive = hooked(conds()[0], name, tmp_path, monkeypatch)
    with pytest.raises(
        ValueError, match="^This LoRA is for another size of PixArt-Sigma: it changes final_layer.linea"
    ):
        sampled(model, positive)


def conds() -> tuple[list, list]:
    generator = torch.Generator().manual_seed(5)
    return tuple([[torch.randn(1, length, pixart.TEXT_WIDTH, generator=generator), {}]] for length in (5, 1))


def sampled(model, positive=None, negative=None) -> torch.Tensor:
    pair = conds()
    inputs = (model, positive or pair[0], negative or pair[1], bench.empty(64, 64), SEED, 2, 4.5)
    return bench.call(bench.OURS["Sampler"], *inputs)[0]["samples"]


def test_perturbed_attention_changes_the_image(model):
    guided = PerturbedAttentionGuidance.execute(model, 3.0).result[0]
    assert float((sampled(guided) - sampled(model)).abs().max()) > 1e-3


def test_a_block_replacement_and_an_attention_patch_act(model):
    replaced = model.clone()
    replaced.set_model_patch_replace(lambda args, _: {"img": args["img"], "txt": args["txt"]}, "dit", "double_block", 1)
    passed = model.clone()
    passed.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 1)
    doubled = model.clone()
    doubled.set_model_attn2_patch(lambda q, k, v, _: (q, k, 2 * v))
    plain = sampled(model)
    assert torch.equal(sampled(passed), plain)
    assert not torch.equal(sampled(replaced), plain) and not torch.equal(sampled(doubled), plain)


def test_an_area_keeps_the_size_of_the_whole_image(tmp_path, monkeypatch):
    model = load_pixart(pixart.save(pixart.reference("alpha 1024-MS"), "alpha 1024-MS", "authors", tmp_path))
    seen = []
    network = model.model.diffusion_model
    forward = network._forward

    def recorded(x, t, context, mask, image_size, *args, **kwargs):
        seen.append((tuple(x.shape[-2:]), image_size[0].tolist()))
        return forward(x, t, context, mask, image_size, *args, **kwargs)

    monkeypatch.setattr(network, "_forward", recorded)
    positive = bench.call("ConditioningSetAreaPercentage", conds()[0], 1.0, 0.5, 0.0, 0.0, 1.0)[0]
    latent = bench.call(bench.OURS["EmptyLatent"], "custom", "1:1", 64, 128, 1)[0]
    bench.call(bench.OURS["Sampler"], model, positive, conds()[1], latent, SEED, 1, 4.5)
    assert {tuple(size) for _, size in seen} == {(128, 64)}
    assert {shape for shape, _ in seen} == {(8, 8), (16, 8)}


def test_an_empty_conditioning_stays_finite(model):
    zeroed = bench.call("ConditioningZeroOut", conds()[0])[0]
    assert torch.isfinite(sampled(model, zeroed)).all()


def test_a_training_step_reaches_the_fused_layers(model):
    network = model.model.diffusion_model
    weight = network.blocks[0].attn.qkv.weight
    with torch.inference_mode(False), torch.enable_grad():
        weight.requires_grad_(True)
        x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 3, pixart.TEXT_WIDTH)
        network.train()
        network(x, torch.tensor([500.0]), text).square().mean().backward()
    assert float(weight.grad.abs().max()) > 0


def test_the_stock_training_node_trains_a_lora_that_acts(tmp_path):
    """Two steps on every layer with gradient checkpointing, on a copy made by `cached_patcher_init`."""
    model = load_pixart(pixart.save(pixart.reference(layers=2), "Sigma 512", "authors", tmp_path))
    lists = {name: [value] for name, value in TRAINING.items()}
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 5}]
    lora, losses, _ = bench.call(TrainLoraNode, model=[model], latents=latents, positive=[conds()[0]], **lists)
    assert len(losses["loss"]) == 2 and all(loss > 0 for loss in losses["loss"])
    ups = [tensor for name, tensor in lora.items() if "lora_up" in name]
    assert len(ups) > 10 and all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert all(tensor.abs().sum() > 0 for tensor in ups)  # they begin at 0: every layer has been trained
    trained = bench.call(LoraModelLoader, model, lora, 1.0)[0]
    assert float((sampled(trained) - sampled(model)).abs().max()) > 1e-2
