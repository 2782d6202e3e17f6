"""Small PixArt models with random weights, built by diffusers, in each layout that the releases come in."""

import json
from pathlib import Path

import comfy.text_encoders.pixart_t5
import diffusers
import safetensors.torch
import torch
import transformers
from sana_native.tests.support import tiny
from torch import Tensor

TEXT_WIDTH = 64
# Kind -> diffusers' sample_size, interpolation_scale, micro-conditions; rows of the authors' empty text; folder name.
KINDS = {
    "alpha 256": (32, 1, False, 120, "PixArt-XL-2-256x256"),
    "alpha 512": (64, 1, False, 120, "PixArt-XL-2-512x512"),
    "alpha 1024-MS": (128, 2, True, 120, "PixArt-XL-2-1024-MS"),
    "Sigma 256": (32, 0.5, False, 300, "PixArt-Sigma-XL-2-256x256"),
    "Sigma 512": (64, 1, False, 300, "PixArt-Sigma-XL-2-512-MS"),
    "Sigma 1024": (128, 2, False, 300, "PixArt-Sigma-XL-2-1024-MS"),
    "Sigma 2K": (256, 4, False, 300, "PixArt-Sigma-XL-2-2K-MS"),
}
LAYOUTS = ("authors", "authors with pos_embed", "diffusers file", "diffusers folder")
AUTHORS = {
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "proj_out": "final_layer.linear",
}
AUTHORS_BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def reference(
    kind: str = "Sigma 512", layers: int = 1, heads: int = 2, seed: int = 0
) -> diffusers.PixArtTransformer2DModel:
    """diffusers' network of a release with few blocks; the width is 72 times the heads."""
    sample_size, scale, micro, *_ = KINDS[kind]
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=72,
        cross_attention_dim=72 * heads,
        caption_channels=TEXT_WIDTH,
        num_layers=layers,
        sample_size=sample_size,
        interpolation_scale=scale,
        use_additional_conditions=micro,
    )
    tiny.randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                parameter.mul_(0.3)
    return model


def authors_layout(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' names -> the authors', written out apart from the pack's own table."""
    out = {}
    for key, tensor in state_dict.items():
        stem, _, suffix = key.rpartition(".")
        if key == "scale_shift_table":
            out["final_layer.scale_shift_table"] = tensor
        elif not key.startswith("transformer_blocks."):
            out[f"{AUTHORS[stem]}.{suffix}"] = tensor
        elif key.endswith("scale_shift_table"):
            out[key.removeprefix("transformer_")] = tensor
        else:
            block, name = stem.removeprefix("transformer_blocks.").split(".", 1)
            if name in AUTHORS_BLOCK:
                out[f"blocks.{block}.{AUTHORS_BLOCK[name]}.{suffix}"] = tensor
    for block in range(sum(key.endswith("attn1.to_q.weight") for key in state_dict)):
        for suffix in ("weight", "bias"):
            below = f"transformer_blocks.{block}."
            qkv = [state_dict[f"{below}attn1.to_{part}.{suffix}"] for part in "qkv"]
            kv = [state_dict[f"{below}attn2.to_{part}.{suffix}"] for part in "kv"]
            out[f"blocks.{block}.attn.qkv.{suffix}"] = torch.cat(qkv)
            out[f"blocks.{block}.cross_attn.kv_linear.{suffix}"] = torch.cat(kv)
    return out


def save(model: diffusers.PixArtTransformer2DModel, kind: str, layout: str, root: Path, name: str = "") -> str:
    """The model in a layout, with the depth beside it, which no release has; the path to load.

    name: of the file; "" for one as released, which tells what no tensor does.
    """
    sample_size, _, _, rows, release = KINDS[kind]
    name = name or release
    if layout == "diffusers folder":
        model.save_pretrained(root / name / "transformer")
        scale = 0.18215 if kind.startswith("alpha") else 0.13025
        (root / name / "vae").mkdir()
        (root / name / "vae" / "config.json").write_text(json.dumps({"scaling_factor": scale}))
        return str(root / name)
    (root / "config.json").write_text(json.dumps({"num_layers": len(model.transformer_blocks)}))
    state_dict = dict(model.state_dict())
    if layout == "diffusers file":
        safetensors.torch.save_file(state_dict, root / f"{name}.safetensors")
        return str(root / f"{name}.safetensors")
    state_dict = authors_layout(state_dict) | {"y_embedder.y_embedding": torch.randn(rows, TEXT_WIDTH)}
    if layout == "authors with pos_embed":
        state_dict["pos_embed"] = torch.zeros(1, (sample_size // 2) ** 2, model.inner_dim)
    torch.save({"state_dict": state_dict, "epoch": 1}, root / f"{name}.pth")
    return str(root / f"{name}.pth")


def t5(layers: int = 2, seed: int = 6) -> transformers.T5EncoderModel:
    """A narrow T5 v1.1 encoder with the vocabulary of the host's tokenizer."""
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=96,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return tiny.randomize(transformers.T5EncoderModel(config), seed)


def t5_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of the released pipelines, from the host's copy of its files."""
    folder = Path(comfy.text_encoders.pixart_t5.__file__).with_name("t5_tokenizer")
    return transformers.T5TokenizerFast.from_pretrained(folder)


def kl(scaling_factor: float = 0.13025, widths: tuple[int, ...] = (128, 256, 512, 512)) -> diffusers.AutoencoderKL:
    """The autoencoder of Stable Diffusion 1 and SDXL in its true shape, which the host builds whatever the file."""
    torch.manual_seed(5)
    kind = "DownEncoderBlock2D", "UpDecoderBlock2D"
    return diffusers.AutoencoderKL(
        down_block_types=kind[:1] * 4,
        up_block_types=kind[1:] * 4,
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=scaling_factor,
    ).eval()


def scheduler(kind: str = "") -> diffusers.SchedulerMixin:
    """The scheduler of the released folders: DPM-Solver++, LCM or DMD's."""
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if kind == "LCM":
        return diffusers.LCMScheduler(**betas)
    if kind == "DMD":
        return diffusers.DDPMScheduler(**betas, clip_sample=False)
    return diffusers.DPMSolverMultistepScheduler(**betas)


def pipeline(kind: str, distilled: str = "", true_vae: bool = False) -> diffusers.DiffusionPipeline:
    """A small PixArt as the released pipeline of its family. The host loads an autoencoder of the true shape alone."""
    is_alpha = kind.startswith("alpha")
    build = diffusers.PixArtAlphaPipeline if is_alpha else diffusers.PixArtSigmaPipeline
    whole = build(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=kl(0.18215 if is_alpha else 0.13025, **({} if true_vae else {"widths": (32,) * 4})),
        transformer=reference(kind, layers=2),
        scheduler=scheduler(distilled),
    )
    whole.set_progress_bar_config(disable=True)
    return whole
