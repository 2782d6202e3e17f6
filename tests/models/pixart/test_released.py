"""The released sizes on the meta device: names, shapes and counts, without their weights."""

import diffusers
import pytest
import torch
from sana_native.models.pixart.convert import convert_pixart
from sana_native.models.pixart.detection import detect_pixart, is_pixart
from sana_native.models.pixart.model import PixArt
from sana_native.models.registry import describe_file
from sana_native.models.t5.detection import check_t5, describe_t5, detect_t5, is_t5
from sana_native.tests.support import pixart

COUNTS = {"Sigma 1024": 610_856_096, "alpha 1024-MS": 611_349_152}


def meta_layouts(kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """Layout -> state dict of a release in its true size."""
    sample_size, scale, micro, *_ = pixart.KINDS[kind]
    with torch.device("meta"):
        model = diffusers.PixArtTransformer2DModel(
            sample_size=sample_size,
            interpolation_scale=scale,
            use_additional_conditions=micro,
            caption_channels=4096,
        )
        state_dict = model.state_dict()
        return {"diffusers": state_dict, "authors": pixart.authors_layout(state_dict)}


@pytest.mark.parametrize("kind", COUNTS)
def test_both_layouts_of_a_release_are_the_network_to_the_last_tensor(kind):
    for layout, state_dict in meta_layouts(kind).items():
        converted = convert_pixart(state_dict)
        assert is_pixart(converted), layout
        config, _ = detect_pixart(converted, pixart.KINDS[kind][-1])
        expected = PixArt(config, device="meta", operations=torch.nn).state_dict()
        assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == {
            key: tuple(tensor.shape) for key, tensor in expected.items()
        }
        assert sum(tensor.numel() for tensor in converted.values()) == COUNTS[kind]
        assert describe_file(state_dict) == "a PixArt transformer (use SANA Model Loader)"


def test_t5_xxl_in_its_true_size_is_recognized():
    first = "encoder.block.0.layer."
    state_dict = {
        "shared.weight": torch.empty(32128, 4096, device="meta"),
        f"{first}0.SelfAttention.relative_attention_bias.weight": torch.empty(32, 64, device="meta"),
        f"{first}0.SelfAttention.q.weight": torch.empty(4096, 4096, device="meta"),
        f"{first}1.DenseReluDense.wi_0.weight": torch.empty(10240, 4096, device="meta"),
        "encoder.final_layer_norm.weight": torch.empty(4096, device="meta"),
    } | {f"encoder.block.{i}.layer.0.layer_norm.weight": torch.empty(4096, device="meta") for i in range(24)}
    assert is_t5(state_dict)
    found = detect_t5(state_dict)
    check_t5("t5", found)
    assert found == {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_ff": 10240,
        "num_heads": 64,
        "d_kv": 64,
        "num_layers": 24,
    }
    assert describe_t5(found, 4_762_310_656, "") == "T5 v1.1 XXL (4.76 B parameters)"
