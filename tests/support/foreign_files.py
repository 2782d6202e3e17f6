"""Tensors of models that the pack does not load, from their real classes with few layers, by what they are called."""

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.pixart.pixartms
import comfy.ops
import diffusers
import torch
import transformers


def on_meta(build) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return build().state_dict()


def of_host(build, **config) -> dict[str, torch.Tensor]:
    return build(**config, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init).state_dict()


SD_UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
           "channel_mult": [1, 2], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": [1, 1],
           "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 64}  # fmt: skip
FLUX = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 64,
        "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000,
        "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []}  # fmt: skip
EMBEDDER = {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 64}}
# What it is called in the message (and whose layout) -> keys of the real class with few layers.
FOREIGN = {
    "a Flux-like model (host)": lambda: of_host(comfy.ldm.flux.model.Flux, **FLUX),
    "a Flux-like model (diffusers)": lambda: on_meta(
        lambda: diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    ),
    "a Stable Diffusion 3 model (host)": lambda: of_host(
        comfy.ldm.modules.diffusionmodules.mmdit.MMDiT, depth=1, adm_in_channels=64, context_embedder_config=EMBEDDER
    ),
    "a Stable Diffusion 3 model (diffusers)": lambda: on_meta(lambda: diffusers.SD3Transformer2DModel(num_layers=1)),
    "a Stable Diffusion model (host)": lambda: of_host(
        comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel, **SD_UNET
    ),
    "a Stable Diffusion model (diffusers)": lambda: on_meta(diffusers.UNet2DConditionModel),
    "a Stable Diffusion ControlNet": lambda: on_meta(diffusers.ControlNetModel),
    "a CLIP text encoder": lambda: on_meta(
        lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=1))
    ),
    "a T5 1.0 text encoder": lambda: on_meta(lambda: transformers.T5EncoderModel(transformers.T5Config(num_layers=1))),
    "a UMT5 text encoder": lambda: on_meta(
        lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(num_layers=2, d_model=8, d_ff=8, num_heads=1))
    ),
    "a Gemma-3 text encoder": lambda: on_meta(
        lambda: transformers.Gemma3TextModel(transformers.Gemma3TextConfig(num_hidden_layers=1))
    ),
    "another language model": lambda: on_meta(
        lambda: transformers.LlamaModel(transformers.LlamaConfig(num_hidden_layers=1))
    ),
    "a SANA-Video transformer, which this version does not load": lambda: on_meta(
        lambda: diffusers.SanaVideoTransformer3DModel(num_layers=1)
    ),
}
