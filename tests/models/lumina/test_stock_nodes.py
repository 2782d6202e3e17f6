"""The host's own nodes on a Lumina-Next: LoRA loading and training, block patches, merging, caches, ControlNet."""

import comfy.controlnet
import folder_paths
import pytest
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_hooks import ConditioningSetProperties, CreateHookLoraModelOnly
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from safetensors.torch import save_file
from sana_native.models.lumina.loader import load_lumina
from sana_native.nodes.warnings import warn_about_runs
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.workbench import OURS, call


@pytest.fixture
def model():
    return bench.lumina()


@pytest.fixture(scope="module")
def conds():
    return call(OURS["GemmaEncode"], bench.lumina_clip(), "a red cat", "blurry")


def draw(model, conds, steps: int = 2) -> torch.Tensor:
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return call(OURS["Sampler"], model, *conds, latent, 7, steps, 4.0, 1.0)[0]["samples"]


def test_a_lora_with_the_authors_names_adds_its_product(model, conds, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 288, generator=generator), torch.randn(144, 4, generator=generator)
    name = "diffusion_model.layers.1.attention.wk"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    plain, before = draw(model, conds), model.model.diffusion_model.layers[1].attention.wk.weight.clone()
    (patched,) = call("LoraLoaderModelOnly", model, "style.safetensors", 0.5)
    assert bench.relative(draw(patched, conds), plain) > 1e-2
    weight = model.model.diffusion_model.layers[1].attention.wk.weight
    assert bench.relative(weight, before + 0.5 * up @ down) < 1e-5
    assert torch.equal(draw(model, conds), plain)


def test_a_hook_lora_acts_on_the_prompt_that_it_is_set_on(model, conds, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 288, generator=generator), torch.randn(144, 4, generator=generator)
    name = "diffusion_model.layers.1.attention.wk"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    hooks = call(CreateHookLoraModelOnly, "style.safetensors", 0.5)[0]
    hooked = [call(ConditioningSetProperties, cond, 1.0, "default", hooks=hooks)[0] for cond in conds]
    plain, everywhere = draw(model, conds), draw(model, hooked)
    (patched,) = call("LoraLoaderModelOnly", model, "style.safetensors", 0.5)
    assert bench.relative(everywhere, plain) > 1e-2 and bench.relative(everywhere, draw(patched, conds)) < 1e-5
    assert bench.relative(draw(model, (hooked[0], conds[1])), everywhere) > 1e-3
    assert torch.equal(draw(model, conds), plain)


def test_the_packs_lora_loader_sends_to_the_stock_one(model, tmp_path, monkeypatch):
    save_file({"a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    with pytest.raises(
        ValueError, match="SANA LoRA Loader reads no LoRA for Lumina-Next in this version: use the stock Load LoRA"
    ):
        call(OURS["LoraLoader"], model, "style.safetensors", 1.0)


def test_the_stock_training_node_trains_a_lora_that_acts(conds):
    """Two steps on every layer with gradient checkpointing, on a copy made by `cached_patcher_init`."""
    model = load_lumina(str(bench.lumina_folder()))
    options = {
        "batch_size": 1,
        "steps": 2,
        "grad_accumulation_steps": 1,
        "learning_rate": 0.05,
        "rank": 2,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": True,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) * 5}]
    lists = {name: [value] for name, value in options.items()}
    lora, losses, _ = call(TrainLoraNode, model=[model], latents=latents, positive=[conds[0]], **lists)
    assert len(losses["loss"]) == 2 and all(loss > 0 for loss in losses["loss"])
    ups = [tensor for name, tensor in lora.items() if "lora_up" in name]
    assert len(ups) > 20 and all(torch.isfinite(tensor).all() for tensor in lora.values())
    assert all(tensor.abs().sum() > 0 for tensor in ups)  # they begin at 0: every layer has been trained
    trained = call(LoraModelLoader, model, lora, 1.0)[0]
    assert bench.relative(draw(trained, conds), draw(model, conds)) > 1e-3


def test_a_merge_mixes_every_weight_the_gates_among_them(tmp_path):
    tiny.lumina(seed=9).save_pretrained(tmp_path / "transformer")
    other = load_lumina(str(tmp_path))
    (merged,) = call(ModelMergeSimple, bench.fresh_lumina(), other, 0.25)
    merged.patch_model()
    try:
        key = "layers.1.attention.gate.weight"
        a, b = (patcher.model.diffusion_model.state_dict()[key] for patcher in (bench.fresh_lumina(), other))
        assert torch.allclose(merged.model.diffusion_model.state_dict()[key], 0.25 * a + 0.75 * b, atol=1e-6)
    finally:
        merged.unpatch_model()


def test_skipping_a_block_changes_the_image(model, conds):
    (patched,) = call(SkipLayerGuidanceDiT, model, 3.0, 0.0, 1.0, "1")
    assert bench.relative(draw(patched, conds), draw(model, conds)) > 1e-3


def test_a_block_can_be_replaced(model, conds):
    patched = model.clone()
    seen = []

    def replaced(args, extra):
        seen.append(args["transformer_options"]["block_index"])
        return extra["original_block"](args)

    patched.set_model_patch_replace(replaced, "dit", "double_block", 1)
    assert torch.equal(draw(patched, conds), draw(model, conds)) and seen == [1, 1]


def test_easy_cache_spares_passes(model, conds, monkeypatch):
    (patched,) = call(EasyCacheNode, model, 10.0, 0.1, 0.95, False)
    seen = bench.count_calls(monkeypatch, model)
    assert torch.isfinite(draw(patched, conds, steps=10)).all()
    assert 0 < len(seen.batches) < 10


def test_a_patch_on_attention_that_has_no_effect_gets_a_warning(model, conds, caplog):
    (patched,) = call(PerturbedAttentionGuidance, model, 3.0)
    warn_about_runs(patched)
    draw(patched, conds, steps=1)
    assert "such as Perturbed-Attention Guidance: it has no effect on Lumina-Next." in caplog.text


def test_a_controlnet_is_refused(model, conds):
    class Nothing(comfy.controlnet.ControlBase):
        def get_control(self, *_):
            return {"input": [torch.zeros(1)]}

        def get_models(self):
            return []

        def copy(self):
            made = Nothing()
            self.copy_to(made)
            return made

    hinted = bench.changed(conds[0], control=Nothing(), control_apply_to_uncond=True)
    with pytest.raises(ValueError, match="There is no ControlNet for Lumina-Next: bypass the ControlNet node"):
        draw(model, (hinted, conds[1]))
