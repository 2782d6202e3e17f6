"""The table of the families: what each row promises, and which words a foreign file gets."""

import pytest
import safetensors.torch
import torch
from sana_native.models.registry import FAMILIES, describe_file, load_model
from sana_native.nodes.loaders import SanaNativeDCAELoader, SanaNativeGemmaLoader, SanaNativeModelLoader
from sana_native.tests.support import workbench as bench

NODES = {"transformer": SanaNativeModelLoader, "text_encoder": SanaNativeGemmaLoader, "vae": SanaNativeDCAELoader}
LUMINA = {
    "the authors": ["layers.0.attention.wk_y.weight", "layers.0.attention_y_norm.weight", "cap_embedder.0.bias"],
    "the authors, in part": ["layers.0.attention_y_norm.weight", "layers.0.attention_norm1.weight"],
    "diffusers": [
        "time_caption_embed.caption_embedder.0.bias",
        "layers.0.attn2.to_k.weight",
        "norm_out.linear_2.weight",
    ],
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.component)
def test_a_row_names_its_node_as_the_list_of_nodes_does(family):
    assert NODES[family.component].define_schema().display_name == family.node


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.component)
def test_each_mark_is_described_as_its_family(family):
    for mark in family.marks:
        assert describe_file(dict.fromkeys(mark.split("+"), torch.zeros(1))).startswith(family.name), mark


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.component)
def test_a_family_recognizes_its_own_files_alone(family):
    found = {}
    for other in FAMILIES:
        folder = bench.folder() / "sana" / other.component
        state_dict = safetensors.torch.load_file(next(folder.glob("*.safetensors")))
        found[other.name] = family.recognizes(family.convert(state_dict))
    assert found == {other.name: other is family for other in FAMILIES}


@pytest.mark.parametrize("layout", LUMINA)
def test_lumina_next_is_called_by_its_name(layout, tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors.torch.save_file({key: torch.zeros(1) for key in LUMINA[layout]}, path)
    with pytest.raises(ValueError, match="x.safetensors is a Lumina-Next transformer, which this version does"):
        load_model("transformer", path)
