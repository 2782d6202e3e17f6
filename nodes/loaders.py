"""Loader nodes: a name from a list -> MODEL, CLIP, VAE."""

import torch
from comfy_api.latest import io

from ..models.dc_ae.previews import MEMORY
from ..models.dc_ae.vae import SanaVAE
from ..models.registry import load_model
from .files import list_names, resolve
from .warnings import warn_about_runs

DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
WIDE_DTYPES = ["auto", "bfloat16", "float32"]  # what Gemma and DC-AE stand; both overflow in float16
CLAMP = {"auto": None, "on": True, "off": False}
NATIVE_RESOLUTIONS = {"auto": None, "512": 512, "1024": 1024, "2K": 2048, "4K": 4096}
TRAINED_IN_FLOAT16 = {"auto": None, "float16": True, "bfloat16": False}
FAMILIES = {"auto": None, "PixArt-alpha": "PixArt-alpha", "PixArt-Sigma": "PixArt-Sigma"}
CATEGORY = "model/loaders"


def load_transformer(name: str, options: dict):
    """MODEL of a name in the list, whose runs are checked."""
    model = load_model("transformer", resolve(name, "diffusion_models", "transformer"), options)
    warn_about_runs(model)
    return model


class SanaNativeModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeModelLoader",
            display_name="SANA Model Loader",
            category=CATEGORY,
            description="Loads a transformer of SANA, SANA-1.5, Sprint, PixArt or Lumina-Next from a file or folder.",
            search_aliases=["sana", "sana sprint", "pixart", "lumina next", "load diffusion model", "unet"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list_names("diffusion_models", "transformer"),
                    tooltip="File in models/diffusion_models (.safetensors or its authors' .pth; any shard of a set) "
                    "or models/checkpoints, or a folder in models/diffusers, shown with a slash at its end.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(DTYPES),
                    default="auto",
                    optional=True,
                    tooltip="Number format of the weights. auto: float16 for checkpoints trained in it, bfloat16 for "
                    "the others, float32 where the device is not fast at those. The fp8 formats halve the memory and "
                    "cost some quality. Lumina-Next takes no float16.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    advanced=True,
                    optional=True,
                    tooltip="Flow shift of the noise schedule; larger spends more steps on composition. 0.00 is "
                    "automatic: the checkpoint's own (3, or 6 at 4K; 1 for Lumina-Next). No effect on SANA-Sprint and "
                    "PixArt.",
                ),
                io.Combo.Input(
                    "clamp",
                    options=list(CLAMP),
                    default="auto",
                    advanced=True,
                    optional=True,
                    tooltip="Saturates self-attention at +-65504, as float16 does. auto: for checkpoints trained in "
                    "float16, which depend on it in every format, and where the training is not known. No effect on "
                    "PixArt.",
                ),
                io.Combo.Input(
                    "native_resolution",
                    options=list(NATIVE_RESOLUTIONS),
                    default="auto",
                    advanced=True,
                    optional=True,
                    tooltip="Image size the checkpoint was trained at; 2K and 4K models have positional "
                    "embeddings, others do not. auto: read from config.json, NVIDIA's position table or the file's "
                    "name. Set it for a renamed 2K or 4K file without config.json.",
                ),
                io.Combo.Input(
                    "trained_in",
                    options=list(TRAINED_IN_FLOAT16),
                    default="auto",
                    advanced=True,
                    optional=True,
                    tooltip="Number format the checkpoint was trained in, which no tensor tells. auto: read from the "
                    "release's name. Set it for a fine-tune: what its base has (float16 for the first 512 and 1024 px "
                    "models without BF16 in their name).",
                ),
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default="auto",
                    advanced=True,
                    optional=True,
                    tooltip="Which PixArt a file is; no effect on other models. auto: read from its tensors, its "
                    "folder or its name; the log says which and why. Set it for a renamed file: alpha needs the VAE "
                    "of Stable Diffusion 1, Sigma that of SDXL.",
                ),
                io.Boolean.Input(
                    "cuda_graphs",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Replays each step of SANA as one CUDA graph on an NVIDIA card, with the same result. "
                    "Shortens the steps where launching kernels takes the time: fast cards, small images. Needs about "
                    "twice the memory of a step, and the whole model on the card. Not measured yet.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, for any sampler node.")],
        )

    @classmethod
    def execute(
        cls,
        model_name: str,
        weight_dtype: str = "auto",
        shift: float = 0.0,
        clamp: str = "auto",
        native_resolution: str = "auto",
        trained_in: str = "auto",
        family: str = "auto",
        cuda_graphs: bool = False,
    ) -> io.NodeOutput:
        options = {
            "dtype": DTYPES[weight_dtype],
            "shift": shift or None,
            "clamp": CLAMP[clamp],
            "native_size": NATIVE_RESOLUTIONS[native_resolution],
            "trained_in_float16": TRAINED_IN_FLOAT16[trained_in],
            "family": FAMILIES[family],
            "cuda_graphs": cuda_graphs,
        }
        return io.NodeOutput(load_transformer(model_name, options))


class SanaNativeGemmaLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeGemmaLoader",
            display_name="SANA Gemma Loader",
            category=CATEGORY,
            description="Loads a text encoder: SANA's Gemma-2-2b-it, Lumina-Next's Gemma-1 2B or PixArt's T5-XXL.",
            search_aliases=["gemma", "gemma 2", "gemma 1", "t5", "t5xxl", "sana text encoder", "load clip"],
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=list_names("text_encoders", "text_encoder"),
                    tooltip="File in models/text_encoders or models/checkpoints, or a folder in models/diffusers, with "
                    "a slash at its end. Gemma's tokenizer is read from the file itself or from a tokenizer.model "
                    "beside it; T5's comes with ComfyUI.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=WIDE_DTYPES,
                    default="auto",
                    optional=True,
                    tooltip="Number format of the weights; auto uses the file's, 8 bits too. Gemma's bfloat16 weights "
                    "are computed in bfloat16 where the device is fast at it, all else in float32; Gemma overflows in "
                    "float16.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="The text encoder, for SANA Gemma Encode or any CLIP Text Encode node.")],
        )

    @classmethod
    def execute(cls, text_encoder_name: str, dtype: str = "auto") -> io.NodeOutput:
        path = resolve(text_encoder_name, "text_encoders", "text_encoder")
        return io.NodeOutput(load_model("text_encoder", path, {"dtype": DTYPES[dtype]}))


class SanaNativeDCAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeDCAELoader",
            display_name="SANA DC-AE Loader",
            category=CATEGORY,
            description="Loads SANA's autoencoder, DC-AE f32c32, or AutoencoderKL, PixArt's and Lumina-Next's.",
            search_aliases=["dc-ae", "dcae", "sana vae", "pixart vae", "load vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=list_names("vae", "vae"),
                    tooltip="File in models/vae (dc-ae-f32c32-sana-1.0, 1.1 or Lite, or the VAE of "
                    "Stable Diffusion 1 or SDXL) or models/checkpoints, or a folder in models/diffusers, shown with a "
                    "slash at its end.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=WIDE_DTYPES,
                    default="auto",
                    optional=True,
                    tooltip="Number format to compute in. auto: bfloat16 where the device is fast at it, else float32; "
                    "never float16, in which both give black images.",
                ),
                io.Boolean.Input(
                    "cuda_graphs",
                    default=False,
                    advanced=True,
                    optional=True,
                    tooltip="Replays a decode of DC-AE as one CUDA graph on an NVIDIA card, with the same image. Its "
                    "memory stays taken until the VAE is unloaded. Tiles and encoding run as usual. Not measured yet; "
                    "little to gain except for small images.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="The autoencoder, for any VAE Encode or VAE Decode node.")],
        )

    @classmethod
    def execute(cls, vae_name: str, dtype: str = "auto", cuda_graphs: bool = False) -> io.NodeOutput:
        options = {"dtype": DTYPES[dtype], "cuda_graphs": cuda_graphs}
        vae = load_model("vae", resolve(vae_name, "vae", "vae"), options)
        if isinstance(vae, SanaVAE):
            MEMORY.remember(vae)
        return io.NodeOutput(vae)
