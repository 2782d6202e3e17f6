"""Writes the trained parts as diffusers folders: `python -m demo.train.export`. Seconds.

`demo/checkpoint` is a whole SANA. `demo/checkpoint_sprint` holds SANA-Sprint's transformer and scheduler; text encoder
and autoencoder are those of the former.
"""

import json
import logging
import shutil
from pathlib import Path
from types import ModuleType

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from . import autoencoder, sprint, text_encoder, tokenizer, transformer
from .loop import load_ema
from .pack import CHECKPOINT, SPRINT_CHECKPOINT
from .transformer import SanaConfig

from sana_native.models.sana.convert import to_file_layout  # noqa: I001 - importable only after the imports above

VERSION = "0.42.1"  # of diffusers, whose layout this is
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": VERSION, "algorithm_type": "dpmsolver++",
    "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001, "dynamic_thresholding_ratio": 0.995,
    "euler_at_final": False, "final_sigmas_type": "zero", "flow_shift": transformer.SHIFT,
    "lambda_min_clipped": float("-inf"),
    "lower_order_final": True, "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0, "thresholding": False,
    "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False, "use_exponential_sigmas": False,
    "use_flow_sigmas": True, "use_karras_sigmas": False, "use_lu_lambdas": False, "variance_type": None,
}  # fmt: skip
SPRINT_SCHEDULER = {
    "_class_name": "SCMScheduler", "_diffusers_version": VERSION, "num_train_timesteps": 1000,
    "prediction_type": "trigflow", "sigma_data": 0.5,
}  # fmt: skip


def index(pipeline: str, scheduler: str) -> dict:
    return {
        "_class_name": pipeline, "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler], "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizer"], "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }  # fmt: skip


def forget_where(path: Path) -> None:
    """Drops from a saved tokenizer's configuration what is true on this machine only."""
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("vocab_file", "is_local", "local_files_only")}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def transformer_config(config: SanaConfig) -> dict:
    return {
        "_class_name": "SanaTransformer2DModel", "_diffusers_version": VERSION, "attention_bias": False,
        "attention_head_dim": 32, "caption_channels": config.caption_channels,
        "cross_attention_dim": config.hidden_size,
        "cross_attention_head_dim": config.hidden_size // config.num_cross_attention_heads,
        "dropout": 0.0, "guidance_embeds": config.guidance_embeds,
        "guidance_embeds_scale": config.guidance_embeds_scale, "in_channels": 32,
        "interpolation_scale": config.interpolation_scale,
        "mlp_ratio": transformer.MLP_RATIO, "norm_elementwise_affine": False, "norm_eps": 1e-6,
        "num_attention_heads": config.hidden_size // 32, "num_cross_attention_heads": config.num_cross_attention_heads,
        "num_layers": config.depth, "out_channels": 32, "patch_size": 1,
        "qk_norm": "rms_norm_across_heads" if config.qk_norm else None,
        "sample_size": config.sample_size,
        "timestep_scale": 1.0,
    }  # fmt: skip


def autoencoder_config() -> dict:
    config = autoencoder.CONFIG
    halves = {}
    for name, half in (("encoder", config.encoder), ("decoder", config.decoder)):
        halves |= {
            f"{name}_block_out_channels": half.widths, f"{name}_block_types": half.block_types,
            f"{name}_layers_per_block": half.layers, f"{name}_qkv_multiscales": half.kernel_sizes,
        }  # fmt: skip
    return halves | {
        "_class_name": "AutoencoderDC", "_diffusers_version": VERSION, "attention_head_dim": config.attention_head_dim,
        "decoder_act_fns": "silu", "decoder_norm_types": "rms_norm", "downsample_block_type": "Conv", "in_channels": 3,
        "latent_channels": config.latent_channels, "scaling_factor": config.scaling_factor,
        "upsample_block_type": "interpolate",
    }  # fmt: skip


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_weights(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def export_transformer(out: Path, module: ModuleType, pipeline: str, scheduler: dict) -> None:
    """Writes index, scheduler and the transformer of a training module into a folder made anew."""
    shutil.rmtree(out, ignore_errors=True)
    write_json(out / "model_index.json", index(pipeline, scheduler["_class_name"]))
    write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    write_json(out / "transformer" / "config.json", transformer_config(module.CONFIG))
    network = load_ema(module.build(), module.FOLDER)
    weights = to_file_layout(network.state_dict())
    write_weights(out / "transformer" / "diffusion_pytorch_model.safetensors", weights, torch.bfloat16)


def export_sana(out: Path) -> None:
    export_transformer(out, transformer, "SanaPipeline", SCHEDULER)
    write_json(out / "vae" / "config.json", autoencoder_config())
    network = load_ema(autoencoder.build(), autoencoder.FOLDER)
    write_weights(out / "vae" / "diffusion_pytorch_model.safetensors", network.state_dict(), torch.float16)

    text = text_encoder.load_text_model()
    text.config.dtype = torch.bfloat16
    text.config.architectures = ["Gemma2Model"]
    text.config.save_pretrained(out / "text_encoder")
    write_weights(out / "text_encoder" / "model.safetensors", text.state_dict(), torch.bfloat16)
    (out / "tokenizer").mkdir()
    shutil.copy(tokenizer.PATH, out / "tokenizer" / "tokenizer.model")
    loaded = transformers.GemmaTokenizer.from_pretrained(out / "tokenizer", add_bos_token=True)
    loaded.save_pretrained(out / "tokenizer")
    forget_where(out / "tokenizer" / "tokenizer_config.json")
    shutil.copy(tokenizer.PATH, out / "tokenizer" / "tokenizer.model")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export_sana(CHECKPOINT)
    folders = [CHECKPOINT]
    if (sprint.FOLDER / "ema.pt").exists():
        export_transformer(SPRINT_CHECKPOINT, sprint, "SanaSprintPipeline", SPRINT_SCHEDULER)
        folders.append(SPRINT_CHECKPOINT)
    for folder in folders:
        logging.info("%s: %.2f MB", folder.name, size_of(folder) / 1e6)


if __name__ == "__main__":
    main()
