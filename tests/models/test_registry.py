"""The table of the families: what each row promises, and what a file of each is called."""

import pytest
import safetensors.torch
import torch
from sana_native.models.registry import FAMILIES, describe_file, load_model
from sana_native.nodes.control import SanaNativeControlNetLoader
from sana_native.nodes.loaders import SanaNativeDCAELoader, SanaNativeGemmaLoader, SanaNativeModelLoader
from sana_native.tests.support import controlnets, pixart, pixart_controlnets, tiny
from sana_native.tests.support import workbench as bench

NODES = {
    "transformer": SanaNativeModelLoader,
    "text_encoder": SanaNativeGemmaLoader,
    "vae": SanaNativeDCAELoader,
    "controlnet": SanaNativeControlNetLoader,
}
LUMINA = {
    "the authors": ["layers.0.attention.wk_y.weight", "layers.0.attention_y_norm.weight", "cap_embedder.0.bias"],
    "the authors, in part": ["layers.0.attention_y_norm.weight", "layers.0.attention_norm1.weight"],
    "diffusers": [
        "time_caption_embed.caption_embedder.0.bias",
        "layers.0.attn2.to_k.weight",
        "norm_out.linear_2.weight",
    ],
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_row_names_its_node_as_the_list_of_nodes_does(family):
    assert NODES[family.component].define_schema().display_name == family.node


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_mark_is_described_as_its_family(family):
    for mark in family.marks:
        assert describe_file(dict.fromkeys(mark.split("+"), torch.zeros(1))).startswith(family.name), mark


def files_of_the_families() -> dict[str, dict[str, torch.Tensor]]:
    parts = {
        "a SANA transformer": "transformer",
        "a Gemma-2 text encoder": "text_encoder",
        "a DC-AE autoencoder": "vae",
    }
    found = {
        name: safetensors.torch.load_file(next((bench.folder() / "sana" / part).glob("*.safetensors")))
        for name, part in parts.items()
    }
    return found | {
        "a Lumina-Next transformer": tiny.lumina().state_dict(),
        "a Gemma-1 text encoder": tiny.gemma_1().state_dict(),
        "a PixArt transformer": pixart.reference().state_dict(),
        "a T5 text encoder": pixart.t5().state_dict(),
        "an AutoencoderKL": pixart.kl(widths=(32,) * 4).state_dict(),
        "a SANA ControlNet": controlnets.reference().state_dict(),
        "a PixArt ControlNet": pixart_controlnets.authors_branch(pixart_controlnets.reference()),
    }


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_recognizes_its_own_files_alone(family):
    files = files_of_the_families()
    found = {name: family.recognizes(family.convert(state_dict)) for name, state_dict in files.items()}
    assert found == {name: name == family.name for name in files}
    assert family.name in files


@pytest.mark.parametrize("layout", LUMINA)
def test_lumina_next_is_called_by_its_name(layout, tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors.torch.save_file({key: torch.zeros(1) for key in LUMINA[layout]}, path)
    with pytest.raises(ValueError, match="x.safetensors looks like a Lumina-Next transformer but .* is missing: down"):
        load_model("transformer", path)
    with pytest.raises(ValueError, match=r"x.safetensors is a Lumina-Next transformer \(use SANA Model Loader\), not"):
        load_model("vae", path)


def test_gemma_1_is_called_by_its_name(tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors.torch.save_file(tiny.gemma_1().state_dict(), path)
    with pytest.raises(ValueError, match=r"x.safetensors is a Gemma-1 text encoder \(use SANA Gemma Loader\), not"):
        load_model("transformer", path)
