"""A small CLIP with random weights, and CLIP ViT-L/14 as a file of holes, which the host's loaders take."""

import json
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.ops
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


def save_large_clip(path: Path) -> None:
    """Both halves of CLIP ViT-L/14 in their released layout, 0.9 GB of which all but 0.1 GB are holes on the disk.

    All layers but the last add nothing; a shared direction makes the scores of all images and texts positive.
    """
    shapes, filled = large_clip_shapes(), {}
    torch.manual_seed(6)
    for name, shape in shapes.items():
        if "norm" in name and name.endswith("weight"):
            filled[name] = torch.ones(shape)
        elif "embed" in name or "projection" in name or (".23." in name or ".11." in name) and "attn" in name:
            filled[name] = torch.randn(shape) * 0.05
    filled["visual_projection.weight"][:, 0] = filled["text_projection.weight"][:, 0]
    for norm in ("vision_model.post_layernorm.bias", "text_model.final_layer_norm.bias"):
        filled[norm] = torch.zeros(shapes[norm]).index_fill(0, torch.tensor(0), 20.0)
    save_with_holes(path, shapes, filled)


def large_clip_shapes() -> dict[str, torch.Size]:
    """Names and shapes of the two halves, as the host builds them from its own configurations."""
    folder = Path(comfy.clip_vision.__file__).parent
    vision, text = (
        json.loads((folder / name).read_text()) for name in ("clip_vision_config_vitl.json", "sd1_clip_config.json")
    )
    halves = (
        comfy.clip_model.CLIPVisionModelProjection(vision, torch.float16, "meta", comfy.ops.disable_weight_init),
        comfy.clip_model.CLIPTextModel(text, torch.float16, "meta", comfy.ops.disable_weight_init),
    )
    return {name: value.shape for half in halves for name, value in half.state_dict().items()}


def save_with_holes(path: Path, shapes: dict[str, torch.Size], filled: dict[str, torch.Tensor]) -> None:
    """A safetensors file in float16 in which what is not filled is zero, and takes no room on the disk."""
    header, places, end = {}, {}, 0
    for name, shape in shapes.items():
        places[name], end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        for name, value in filled.items():
            file.seek(start + places[name])
            file.write(value.half().numpy().tobytes())
        file.truncate(start + end)
