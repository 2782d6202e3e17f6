"""Tiny models in the released layouts, under the very file names that the shared workflows ask for."""

import json
from pathlib import Path

import torch
from comfy.taesd.taesd import TAESD
from PIL import Image
from sana_native.tests.support import controlnets, layouts, pixart, tiny
from sana_native.tests.support.lora_layouts import LAYOUTS, make_lora
from sana_native.tools.workflow_files import (
    DC_AE,
    GEMMA,
    GEMMA_1,
    GEMMA_1_REST,
    GEMMA_1_TOKENIZER,
    LORA,
    LUMINA,
    PIXART_LCM,
    PIXART_SIGMA,
    SANA,
    SANA_2K,
    SANA_4K,
    SANA_CONTROLNET,
    SD1_VAE,
    SDXL_VAE,
    SPRINT,
    T5_FP8,
)

VOCABULARY = 600
LORA_LAYERS = [f"transformer_blocks.{block}.attn{number}.{name}" for block in (0, 1) for number in (1, 2)
               for name in ("to_q", "to_k", "to_v")]  # fmt: skip


def save_released(base: Path) -> None:
    """Puts every file that the workflows name into a base directory, and the picture that one of them starts from."""
    network, sprint = tiny.transformer(), tiny.transformer(sprint=True)
    # The third is the side of the latent it was trained at, which is that of its table of positions.
    for file, model, side in (
        (SANA, network, 32),
        (SANA_2K, network, 64),
        (SANA_4K, network, 128),
        (SPRINT, sprint, 32),
    ):
        layouts.save(place(base, file), {"state_dict": layouts.nvidia_sana(model.state_dict(), side)})
    deeper, control = tiny.transformer(num_layers=3), controlnets.reference()
    layouts.save(place(base, SANA_CONTROLNET), controlnets.merged(deeper.state_dict(), control.state_dict()))
    # The released widths tell the number of heads, the tiny one does not.
    heads = {"_class_name": "SanaTransformer2DModel", "num_cross_attention_heads": 4, "cross_attention_head_dim": 16}
    (base / "models" / "diffusion_models" / "config.json").write_text(json.dumps(heads))
    words = torch.frombuffer(bytearray(tiny.train_tokenizer()), dtype=torch.uint8)
    gemma = layouts.prefixed(tiny.gemma(VOCABULARY).state_dict(), "model.")
    layouts.save(place(base, GEMMA), gemma | {"spiece_model": words})
    layouts.save(place(base, DC_AE), layouts.original_dc_ae(tiny.dc_ae().state_dict()))
    save_lumina(base)
    save_pixart(base)
    weights = {name.removesuffix(".weight"): tensor for name, tensor in network.state_dict().items()}
    layouts.save(place(base, LORA), LAYOUTS["diffusers"](make_lora(weights, LORA_LAYERS)))
    shades = torch.linspace(0, 255, 96 * 128 * 3).view(96, 128, 3).to(torch.uint8)
    painted = torch.full((96, 128, 1), 255, dtype=torch.uint8)
    painted[40:70, 60:100] = 0  # a mask, as the mask editor leaves it
    Image.fromarray(torch.cat([shades, painted], dim=-1).numpy()).save(base / "input" / "example.png")


def place(base: Path, file: dict[str, str]) -> Path:
    return base / "models" / file["directory"] / file["name"]


def save_lumina(base: Path) -> None:
    """Lumina-Next's files; for the VAE of SDXL, whose width the host fixes, stands its tiny one with random weights."""
    layouts.save(place(base, LUMINA), layouts.original_lumina(tiny.lumina().state_dict()))
    gemma = sorted(tiny.gemma_1().state_dict().items())
    for file, part in ((GEMMA_1, gemma[:8]), (GEMMA_1_REST, gemma[8:])):
        layouts.save(place(base, file), dict(part))
    place(base, GEMMA_1_TOKENIZER).write_bytes(tiny.train_tokenizer())
    vae = tiny.randomize(TAESD(latent_channels=4), seed=8, gain=1.2)
    layouts.save(place(base, SDXL_VAE), vae.state_dict())


def save_pixart(base: Path) -> None:
    """PixArt's files, as deep as released and one head wide; its VAEs have the host's tiny one in their place."""
    for file, kind in ((PIXART_SIGMA, "Sigma 1024"), (PIXART_LCM, "alpha 1024-MS")):
        state_dict = pixart.reference(kind, layers=28, heads=1).state_dict()
        if file is PIXART_SIGMA:
            empty_text = torch.randn(300, pixart.TEXT_WIDTH, generator=torch.Generator().manual_seed(4))
            layout = pixart.authors_layout(state_dict) | {"y_embedder.y_embedding": empty_text}
            state_dict = {"state_dict": layout}
        layouts.save(place(base, file), state_dict)
    layouts.save(place(base, T5_FP8), dict(pixart.t5().state_dict()))
    vae = tiny.randomize(TAESD(latent_channels=4), seed=9, gain=1.2)
    layouts.save(place(base, SD1_VAE), vae.state_dict())
