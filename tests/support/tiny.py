"""Small real models with random weights, saved by the reference libraries themselves."""

import io
from pathlib import Path

import diffusers
import sentencepiece
import torch
import transformers
from sana_native.models.gemma.text_encoder import INSTRUCTION

CAPTION_CHANNELS = 64
LUMINA_CAPTION_CHANNELS = 32
LATENT_CHANNELS = 32
DC_AE_WIDTHS = (32, 32, 64, 64, 128, 128)
DC_AE_TYPES = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
DC_AE_KERNELS = ((), (), (), (5,), (5,), (5,))


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int, gain: float = 1.0) -> torch.nn.Module:
    """Weights of about unit gain and vectors around their usual value, so that errors show in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
        else:
            parameter.copy_(noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def transformer(sprint: bool = False, seed: int = 0, **overrides) -> diffusers.SanaTransformer2DModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "num_layers": 2,
        "num_cross_attention_heads": 4,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 64,
        "caption_channels": CAPTION_CHANNELS,
        "sample_size": 32,
        "guidance_embeds": sprint,
        "qk_norm": "rms_norm_across_heads" if sprint else None,
    }
    return randomize(diffusers.SanaTransformer2DModel(**config | overrides), seed)


def lumina(seed: int = 3, **overrides) -> diffusers.LuminaNextDiT2DModel:
    """Heads of 72 channels as released; gates so large that the text counts; queries of the text as in the release."""
    config = {
        "hidden_size": 288,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "multiple_of": 32,
        "cross_attention_dim": LUMINA_CAPTION_CHANNELS,
        "sample_size": 128,
    }
    model = randomize(diffusers.LuminaNextDiT2DModel(**config | overrides), seed)
    with torch.no_grad():
        for layer in model.layers:
            layer.gate.mul_(5)  # from the 0.2 of other vectors
            layer.attn2.to_q.weight.copy_(layer.attn1.to_q.weight)
            layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
    return model


def dc_ae(seed: int = 1, **overrides) -> diffusers.AutoencoderDC:
    config = dict(
        in_channels=3,
        latent_channels=LATENT_CHANNELS,
        attention_head_dim=32,
        encoder_block_types=DC_AE_TYPES,
        decoder_block_types=DC_AE_TYPES,
        encoder_block_out_channels=DC_AE_WIDTHS,
        decoder_block_out_channels=DC_AE_WIDTHS,
        encoder_layers_per_block=(1, 1, 1, 2, 2, 2),
        decoder_layers_per_block=(2, 1, 1, 1, 1, 1),
        encoder_qkv_multiscales=DC_AE_KERNELS,
        decoder_qkv_multiscales=DC_AE_KERNELS,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return randomize(diffusers.AutoencoderDC(**config | overrides), seed, gain=0.7)


def dc_ae_lite(**overrides) -> diffusers.AutoencoderDC:
    """The decoder of DC-AE-Lite: residual blocks, none at full size, pixel shuffle and a SiLU at the end."""
    return dc_ae(
        decoder_block_types="ResBlock",
        decoder_layers_per_block=(0, 2, 1, 1, 1, 1),
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="pixel_shuffle",
        decoder_conv_act_fn="silu",
        **overrides,
    )


def train_tokenizer(vocab_size: int = 600, symbols: tuple[str, ...] = (), **options) -> bytes:
    """A SentencePiece model in Gemma's conventions that knows the instruction, and `symbols` as pieces of their own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(INSTRUCTION.replace("\n", " ").split(". ") * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", "\n", *symbols],
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def gemma(vocab_size: int, seed: int = 2, gain: float = 1.0) -> transformers.Gemma2Model:
    config = transformers.Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=CAPTION_CHANNELS,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=256,
        query_pre_attn_scalar=256,
        attn_implementation="eager",
    )
    model = randomize(transformers.Gemma2Model(config), seed, gain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.sub_(1.0)  # Gemma's norms add one to their weight
    return model


def gemma_1(seed: int = 4, vocab_size: int = 256000, **overrides) -> transformers.GemmaModel:
    """A Gemma-1 with its vocabulary, by which alone it is known, and one head for keys and values."""
    config = {
        "hidden_size": LUMINA_CAPTION_CHANNELS,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "attn_implementation": "eager",
    }
    model = randomize(
        transformers.GemmaModel(transformers.GemmaConfig(vocab_size=vocab_size, **config | overrides)), seed
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.sub_(1.0)  # as above
    return model


def tokenizer(folder: Path, vocab_size: int = 600) -> transformers.PreTrainedTokenizerBase:
    """The same tokenizer as a transformers object; leaves tokenizer.model in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_tokenizer(vocab_size))
    return transformers.GemmaTokenizer.from_pretrained(folder, add_bos_token=True)


def pipeline(sprint: bool, **parts) -> diffusers.DiffusionPipeline:
    """Parts of any size as the released pipeline, with its scheduler."""
    if sprint:
        scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
        return diffusers.SanaSprintPipeline(scheduler=scheduler, **parts)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(scheduler=scheduler, **parts)


def save_pipeline(folder: Path, sprint: bool = False, **transformer_config) -> diffusers.DiffusionPipeline:
    """A tiny SANA or SANA-Sprint in the released folder layout, written by diffusers; returns the pipeline."""
    words = tokenizer(folder / "tokenizer")
    parts = {
        "tokenizer": words,
        "text_encoder": gemma(len(words)),
        "vae": dc_ae(),
        "transformer": transformer(sprint, **transformer_config),
    }
    whole = pipeline(sprint, **parts)
    whole.save_pretrained(folder)
    return whole


def kl_vae(seed: int = 6) -> diffusers.AutoencoderKL:
    """An autoencoder with SDXL's latents, at an eighth of the image's side."""
    config = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return randomize(diffusers.AutoencoderKL(**config, **blocks, scaling_factor=0.13025), seed)


def save_lumina_pipeline(folder: Path, **transformer_config) -> diffusers.DiffusionPipeline:
    """A tiny Lumina-Next in the released folder layout, written by diffusers; returns the pipeline."""
    whole = diffusers.LuminaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        tokenizer=tokenizer(folder / "tokenizer"),
        text_encoder=gemma_1(),
        vae=kl_vae(),
        transformer=lumina(**transformer_config),
    )
    whole.save_pretrained(folder)
    return whole
