"""Embeddings of the host's CLIP equal transformers' on the same small random weights."""

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import numpy as np
import pytest
import torch
from sana_native.evaluation.embed import embed_images, embed_texts
from sana_native.evaluation.metrics import clip_scores
from sana_native.tests.support.clips import END, KIND, SIDE, VISION, WIDTH, host_text, host_vision, random_clip
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TEXTS = ["a red cat", "(two:1.5) dogs, on a table", "", "a very long text about nothing in particular " * 20]


@pytest.fixture(scope="module")
def reference() -> CLIPModel:
    return random_clip()


@pytest.fixture
def vision(reference):
    return host_vision(reference.state_dict())


@pytest.fixture
def clip(reference):
    return host_text(reference.state_dict())


def test_images_are_embedded_as_by_transformers(reference, vision):
    pixels = torch.rand(3, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor(vision.image_mean), torch.tensor(vision.image_std)
    rounded = (((255 * pixels).round() / 255 - mean) / std).movedim(-1, 1)
    with torch.inference_mode():
        expected = reference.visual_projection(reference.vision_model(rounded).pooler_output).numpy()
    assert np.abs(embed_images(vision, pixels) - expected).max() < 2e-6


def test_texts_are_embedded_as_by_transformers(reference, clip):
    folder = f"{comfy.sd1_clip.__file__.rpartition('/')[0]}/sd1_tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = reference.text_projection(reference.text_model(tokens["input_ids"]).pooler_output).numpy()
    assert np.abs(embed_texts(clip, TEXTS) - expected).max() < 5e-6


def test_pictures_of_any_shape_are_embedded_and_scored(vision, clip):
    pictures = embed_images(vision, torch.rand(2, 40, 64, 4))  # alpha is left out
    assert pictures.shape == (2, WIDTH) and np.isfinite(clip_scores(pictures, embed_texts(clip, TEXTS[:2]))).all()


def test_a_file_of_the_whole_model_holds_all_that_the_host_loads():
    """clip-vit-large-patch14 as it is released serves CLIP Vision and CLIP: keys and shapes, without its values."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = VISION | large | {"image_size": 224, "projection_dim": 768}
    with torch.device("meta"):
        whole = CLIPModel(CLIPConfig(projection_dim=768, text_config=text, vision_config=vision)).state_dict()
        ours = comfy.clip_model.CLIPVisionModelProjection(vision | KIND, None, "meta", torch.nn).state_dict()
        config = text | {"hidden_act": "quick_gelu", "max_position_embeddings": 77, "eos_token_id": END}
        ours |= comfy.clip_model.CLIPTextModel(config, None, "meta", torch.nn).state_dict()
    assert {name: value.shape for name, value in ours.items()}.items() <= {k: v.shape for k, v in whole.items()}.items()
    assert comfy.sd.detect_te_model(whole) == comfy.sd.TEModel.CLIP_L


def test_encoders_that_are_no_clip_are_refused(vision):
    vision.model_type = "siglip_vision_model"
    with pytest.raises(ValueError, match="is a siglip_vision_model, which has no text half; for a CLIP score save"):
        embed_images(vision, torch.rand(1, 32, 32, 3))


def test_a_text_encoder_of_another_kind_is_refused(clip):
    clip.cond_stage_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="This CLIP is a Linear, not one CLIP text encoder; load it with Load CLIP"):
        embed_texts(clip, ["a"])


@pytest.mark.parametrize("fill", [0.0, torch.nan])
def test_a_missing_projection_is_named(clip, vision, fill):
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(fill)
    with pytest.raises(ValueError, match="The file of CLIP lacks the projection .*openai/clip-vit-large-patch14"):
        embed_texts(clip, ["a"])
    with torch.no_grad():
        vision.model.visual_projection.weight.fill_(fill)
    with pytest.raises(ValueError, match="The file of CLIP Vision lacks the projection"):
        embed_images(vision, torch.rand(1, 32, 32, 3))
