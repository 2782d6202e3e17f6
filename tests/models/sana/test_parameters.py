"""Every parameter takes part in what the host does with a model's weights: merges, patches, saving."""

import comfy.lora
import comfy.model_base
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSave
from sana_native.models.sana.loader import load_sana
from sana_native.models.sana.model_base import SanaModel
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench

TABLES = ["transformer_blocks.0.scale_shift_table", "transformer_blocks.1.scale_shift_table", "scale_shift_table"]


@pytest.fixture
def second(tmp_path):
    """A model of the same family with other weights."""

    def load(family: str):
        tiny.transformer(sprint=family == "sprint", seed=77).save_pretrained(tmp_path / family / "transformer")
        return load_sana(str(tmp_path / family))

    return load


def saved(model, tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """What the host's save node writes for a model, under the names of files."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    with torch.inference_mode():
        ModelSave().save(model, "merged")
    (path,) = (tmp_path / "output").rglob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    path.unlink()
    return {key.removeprefix("model.diffusion_model."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize(("ratio", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_a_merge_reaches_every_tensor(family, ratio, share, second, tmp_path, monkeypatch):
    first, other = bench.fresh_model(family), second(family)
    expected = [saved(model, tmp_path, monkeypatch) for model in (first, other)]
    merged = saved(ModelMergeSimple().merge(first, other, ratio)[0], tmp_path, monkeypatch)
    assert set(TABLES) < merged.keys() == expected[0].keys()
    for key in merged.keys() - {"sana_config"}:
        mean = torch.lerp(expected[0][key].double(), expected[1][key].double(), share)
        assert (merged[key].double() - mean).abs().max() <= 1e-6 * mean.abs().max(), key


def test_a_merge_at_ratio_0_draws_the_second_models_picture(second):
    other = second("sana")
    merged, _ = ModelMergeSimple().merge(bench.fresh_model("sana"), other, 0.0), None
    assert bench.relative(bench.draw(merged[0], bench.encoded()), bench.draw(other, bench.encoded())) < 1e-5


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lycoris_", "transformer."])
@pytest.mark.parametrize("table", TABLES)
def test_a_full_change_of_a_table_acts(table, prefix):
    """As LyCORIS writes it: the difference itself."""
    model = bench.fresh_model("sana")
    name = prefix + (table.replace(".", "_") if prefix == "lycoris_" else table)
    rows = 2 if table == "scale_shift_table" else 6
    change = torch.randn(rows, 64, generator=torch.Generator().manual_seed(1))
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora({f"{name}.diff": change}, key_map)
    patched = model.clone()
    (key,) = patched.add_patches(patches, 0.5)
    before = model.model.diffusion_model.get_submodule(table).weight
    after = patched.patch_weight_to_device(key, device_to=torch.device("cpu"), return_weight=True)
    assert torch.allclose(after, before + 0.5 * change, atol=1e-6)
    assert bench.relative(bench.draw(patched, bench.encoded()), bench.draw(model, bench.encoded())) > 1e-3


def test_the_host_moves_every_parameter(family="sana"):
    """It walks the modules that hold parameters and have no children with any."""
    patcher = bench.model(family)
    walked = {f"{name}.{part}" for *_, name, _, parameters in patcher._load_list() for part in parameters}
    assert walked == set(dict(patcher.model.named_parameters()))


# The base classes, whose names decide what the host takes for a layer in a LoRA


def test_nothing_of_the_name_giving_base_classes_is_used():
    for base in (comfy.model_base.QwenImage, comfy.model_base.HunyuanDiT):
        # Python gives a class that has no annotations empty ones when something asks for them.
        for name in vars(base).keys() - {"__init__", "__module__", "__doc__", "__qualname__", "__annotations__"}:
            owner = next(owner for owner in SanaModel.__mro__ if name in vars(owner))
            assert owner is SanaModel, f"SanaModel takes {name} from {owner.__name__}"


def test_the_host_asks_for_those_classes_when_it_names_layers_and_nowhere_else():
    import pathlib
    import re

    host = pathlib.Path(comfy.model_base.__file__).parent.parent
    asks = re.compile(r"isinstance\([^\n]*\b(QwenImage|HunyuanDiT)\b")
    files = [*host.glob("*.py"), *host.glob("comfy/**/*.py"), *host.glob("comfy_extras/*.py")]
    assert {file.relative_to(host).as_posix() for file in files if asks.search(file.read_text(errors="replace"))} == {
        "comfy/lora.py"
    }
