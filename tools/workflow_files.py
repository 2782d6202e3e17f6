"""The files that shared workflows name: what the frontend offers to download when one is missing, and where it goes."""

from __future__ import annotations

from pathlib import Path

HUB = "https://huggingface.co"
# Names of the models that come with the pack, as its loaders list them.
DEMO = "sana-native-demo/"
DEMO_SPRINT = "sana-native-demo-sprint/"
DEMO_SPRINT_CONTROLNET = "sana-native-demo-controlnet-sprint/"
# Without its weights, which are trained after the demo's models, there is no graph with it.
DEMO_SPRINT_CONTROLNET_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "checkpoint_controlnet_sprint"


def file(name: str, path: str, directory: str) -> dict[str, str]:
    return {"name": name, "url": f"{HUB}/{path}", "directory": directory}


def nvidia(name: str) -> dict[str, str]:
    """A transformer in NVIDIA's own layout, whose repository and file have one name."""
    return file(f"{name}.pth", f"Efficient-Large-Model/{name}/resolve/main/checkpoints/{name}.pth", "diffusion_models")


SANA = nvidia("Sana_1600M_1024px_BF16")
SPRINT = nvidia("Sana_Sprint_1.6B_1024px")
SANA_2K = nvidia("Sana_1600M_2Kpx_BF16")
SANA_4K = nvidia("Sana_1600M_4Kpx_BF16")
# A base and its ControlNet in one file, which both loaders read.
SANA_CONTROLNET = nvidia("Sana_1600M_1024px_BF16_ControlNet_HED")
GEMMA = file(
    "gemma_2_2b_it_elm_bf16.safetensors",
    "Comfy-Org/PixelDiT/resolve/main/text_encoders/gemma_2_2b_it_elm_bf16.safetensors",
    "text_encoders",
)
DC_AE = file(
    "dc-ae-f32c32-sana-1.1.safetensors", "mit-han-lab/dc-ae-f32c32-sana-1.1/resolve/main/model.safetensors", "vae"
)
LORA = file(
    "trained-sana-lora.safetensors",
    "ariG23498/trained-sana-lora/resolve/main/pytorch_lora_weights.safetensors",
    "loras",
)
# Both halves of CLIP, which two loaders read from their own folders.
CLIP_VISION, CLIP_TEXT = (
    file("clip-vit-large-patch14.safetensors", "openai/clip-vit-large-patch14/resolve/main/model.safetensors", folder)
    for folder in ("clip_vision", "text_encoders")
)
LUMINA_HUB = "Alpha-VLLM/Lumina-Next-SFT-diffusers/resolve/main"
LUMINA = file(
    "Lumina-Next-SFT.safetensors",
    "Alpha-VLLM/Lumina-Next-SFT/resolve/main/consolidated.00-of-01.safetensors",
    "diffusion_models",
)
# Two shards and the tokenizer, all three in one folder; the loader is given the first.
GEMMA_1, GEMMA_1_REST, GEMMA_1_TOKENIZER = (
    file(name, f"{LUMINA_HUB}/{folder}/{name}", "text_encoders")
    for folder, name in (
        ("text_encoder", "model-00001-of-00002.safetensors"),
        ("text_encoder", "model-00002-of-00002.safetensors"),
        ("tokenizer", "tokenizer.model"),
    )
)
SDXL_VAE = file("sdxl_vae.safetensors", "stabilityai/sdxl-vae/resolve/main/sdxl_vae.safetensors", "vae")
# Both come with the VAE of their own family: Sigma's is SDXL's, alpha's that of Stable Diffusion 1.
PIXART_SIGMA = file(
    "PixArt-Sigma-XL-2-1024-MS.pth",
    "PixArt-alpha/PixArt-Sigma/resolve/main/PixArt-Sigma-XL-2-1024-MS.pth",
    "diffusion_models",
)
PIXART_LCM = file(
    "PixArt-LCM-XL-2-1024-MS.safetensors",
    "PixArt-alpha/PixArt-LCM-XL-2-1024-MS/resolve/main/transformer/diffusion_pytorch_model.safetensors",
    "diffusion_models",
)
T5_HUB = "comfyanonymous/flux_text_encoders/resolve/main"
T5_FP8, T5_FP16 = (
    file(name, f"{T5_HUB}/{name}", "text_encoders")
    for name in ("t5xxl_fp8_e4m3fn_scaled.safetensors", "t5xxl_fp16.safetensors")
)
SD1_VAE = file(
    "vae-ft-ema-560000-ema-pruned.safetensors",
    "stabilityai/sd-vae-ft-ema-original/resolve/main/vae-ft-ema-560000-ema-pruned.safetensors",
    "vae",
)
SDXL_REFINER = file(
    "sd_xl_refiner_1.0.safetensors",
    "stabilityai/stable-diffusion-xl-refiner-1.0/resolve/main/sd_xl_refiner_1.0.safetensors",
    "checkpoints",
)
