"""The networks that are measured, at released sizes with random weights, and one pass of each.

A stage is one part of making a picture; the implementations of a stage get the same input.
"""

from __future__ import annotations

from collections.abc import Callable

IMPLEMENTATIONS = {
    "step": ("ours", "diffusers"),
    "decode": ("ours", "diffusers", "host"),
    "encode": ("ours", "diffusers", "host"),
}
# Width, depth, cross-attention heads and the depth-wise part of the released transformers.
TRANSFORMERS = {"0.6B": (1152, 28, 16, 2880), "1.6B": (2240, 20, 20, 5600)}
CAPTION_CHANNELS = 2304
PROMPT_TOKENS, POSITIONS = 30, 300
HALF = {"decode": "decoder", "encode": "encoder"}


def dc_ae_config():
    from sana_native.models.config import DCAEConfig, DCAEHalfConfig

    types_, kernels = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, ((), (), (), (5,), (5,), (5,))
    widths = (128, 256, 512, 512, 1024, 1024)
    encoder = DCAEHalfConfig(types_, widths, (2, 2, 2, 3, 3, 3), kernels)
    return DCAEConfig(3, 32, 32, 0.41407, encoder, DCAEHalfConfig(types_, widths, (3,) * 6, kernels))


def transformer(implementation: str, model: str, blocks: int | None = None):
    """blocks: fewer than the model has; all are alike."""
    width, depth, heads, hidden = TRANSFORMERS[model]
    depth = blocks or depth
    if implementation == "diffusers":
        from diffusers import SanaTransformer2DModel

        return SanaTransformer2DModel(
            num_attention_heads=width // 32,
            num_layers=depth,
            num_cross_attention_heads=heads,
            cross_attention_head_dim=width // heads,
            cross_attention_dim=width,
        )
    import comfy.ops
    from sana_native.models.config import SanaConfig
    from sana_native.models.sana import Sana

    config = SanaConfig(width, depth, heads, CAPTION_CHANNELS, hidden, 32, 32, False, False, 0.1, None, 32, 3.0, None)
    return Sana(config, operations=comfy.ops.disable_weight_init)


def autoencoder(implementation: str):
    config = dc_ae_config()
    if implementation == "ours":
        import comfy.ops
        from sana_native.models.dc_ae import AutoencoderDC

        return AutoencoderDC(config, operations=comfy.ops.disable_weight_init)
    if implementation == "host":
        from comfy.ldm.ace.vae.autoencoder_dc import AutoencoderDC
    else:
        from diffusers import AutoencoderDC
    halves = {"encoder": config.encoder, "decoder": config.decoder}
    names = {
        "block_types": "block_types",
        "block_out_channels": "widths",
        "layers_per_block": "layers",
        "qkv_multiscales": "kernel_sizes",
    }
    options = {
        f"{half}_{name}": getattr(values, field) for half, values in halves.items() for name, field in names.items()
    }
    return AutoencoderDC(
        in_channels=3,
        latent_channels=32,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        **options,
    )


def build(stage: str, implementation: str, dtype, device: str = "cpu", model: str = "0.6B", blocks: int | None = None):
    """A network with random weights in this format on this device, "meta" for one without weights."""
    import torch

    with torch.device("meta"):
        network = transformer(implementation, model, blocks) if stage == "step" else autoencoder(implementation)
    for unused in {*HALF.values()} - {HALF.get(stage)} if stage in HALF else ():
        setattr(network, unused, None)
    network = network.to(dtype).to_empty(device=device)
    if device != "meta":
        for parameter in network.parameters():
            bound = 0.5 if parameter.ndim == 1 else (3 / parameter[0].numel()) ** 0.5
            torch.nn.init.uniform_(parameter.data, -bound, bound)
    return network.eval().requires_grad_(False)


def batched_text(context, mask) -> tuple:
    """The rows as the host puts them together for our network: without their padding."""
    from sana_native.models.text_conds import TextCond, without_padding

    rows = [without_padding(context[i : i + 1], mask[i : i + 1]) for i in range(len(context))]
    contexts, masks = ([TextCond(part) for part in parts] for parts in zip(*rows))
    return contexts[0].concat(contexts[1:]), masks[0].concat(masks[1:]).to(context)


def call(
    stage: str, implementation: str, network, size: int, dtype, device: str = "cpu", tokens: int = PROMPT_TOKENS
) -> Callable:
    """A function of no arguments that runs the stage once for one picture, `step` with both passes of cfg."""
    import torch

    kw, side = {"dtype": dtype, "device": device}, size // 32
    if stage == "encode":
        image = torch.rand(1, 3, size, size, **kw) * 2 - 1
        return lambda: network.encode(image)
    if stage == "decode":
        latent = torch.randn(1, 32, side, side, **kw)
        return lambda: network.decode(latent)
    latent = torch.randn(2, 32, side, side, **kw)
    context = torch.randn(2, POSITIONS, CAPTION_CHANNELS, **kw)
    mask = torch.arange(POSITIONS) < torch.tensor([[1], [tokens]])
    timesteps = torch.full((2,), 547.0, device=device)
    if implementation == "diffusers":
        mask = mask.to(**kw)
        return lambda: network(latent, context, timesteps, encoder_attention_mask=mask)
    context, mask = batched_text(context, mask)
    return lambda: network(latent, timesteps, context=context, attention_mask=mask)
