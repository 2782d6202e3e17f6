"""A small CLIP with random weights: transformers' whole model, and the host's two halves of the same file."""

import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

WIDTH, SIDE, END = 32, 28, 49407
VISION = {"hidden_size": WIDTH, "image_size": SIDE, "intermediate_size": 64, "num_attention_heads": 4,
          "num_hidden_layers": 2, "patch_size": 14, "projection_dim": WIDTH, "hidden_act": "quick_gelu"}  # fmt: skip
KIND = {"num_channels": 3, "model_type": "clip_vision_model"}
TEXT = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def random_clip() -> CLIPModel:
    torch.manual_seed(3)
    text = CLIPTextConfig(**TEXT, projection_dim=WIDTH, eos_token_id=END, bos_token_id=END - 1, pad_token_id=END)
    config = CLIPConfig(projection_dim=WIDTH, text_config=text.to_dict(), vision_config=VISION)
    model = CLIPModel(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return model


def host_vision(state: dict) -> comfy.clip_vision.ClipVisionModel:
    model = comfy.clip_vision.ClipVisionModel(VISION | KIND)
    model.model.float()  # the host would compute in float16
    missing, _ = model.load_sd(dict(state))
    assert not missing
    return model


def host_text(state: dict) -> comfy.sd.CLIP:
    class Target:
        params = {}
        clip, tokenizer = comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer

    options = {"clip_l_model_config": TEXT, "dtype": torch.float32}
    return comfy.sd.CLIP(Target, state_dict=[dict(state)], model_options=options)
