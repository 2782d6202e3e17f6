"""The networks that are measured, at released sizes with random weights, and one pass of each.

A stage is one part of generating an image; the implementations of a stage get inputs of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

IMPLEMENTATIONS = {
    "text": ("ours", "transformers"),
    "step": ("ours", "diffusers"),
    "decode": ("ours", "diffusers", "host"),
    "encode": ("ours", "diffusers", "host"),
}
# Width, depth, cross-attention heads and the depth-wise part of the released transformers.
TINY = "tiny"  # of every stage: shows that it runs
TRANSFORMERS = {"0.6B": (1152, 28, 16, 2880), "1.6B": (2240, 20, 20, 5600), TINY: (64, 2, 2, 160)}
# Gemma-2-2b; the passes below need few of its words, and looking one up costs the same among fewer.
GEMMA = {
    "vocab_size": 4096,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
TINY_GEMMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
VOCABULARY = 256000  # all of its words
CAPTION_CHANNELS = GEMMA["hidden_size"]
PROMPT_TOKENS, POSITIONS = 30, 300
INSTRUCTION_POSITIONS = 207  # BOS and SANA's instruction; the text encoder then sees 299 positions of the prompt
WITH_TEXT = ("text", "step")  # stages whose cost depends on the prompt's length
WITH_PIXELS = ("step", "decode", "encode")
HALF = {"decode": "decoder", "encode": "encoder"}
DC_AE_WIDTHS, TINY_DC_AE_WIDTHS = (128, 256, 512, 512, 1024, 1024), (32, 32, 32, 32, 64, 64)


def dc_ae_config(widths: tuple[int, ...] = DC_AE_WIDTHS):
    from sana_native.models.dc_ae.config import DCAEConfig, DCAEHalfConfig

    types_, kernels = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, ((), (), (), (5,), (5,), (5,))
    encoder = DCAEHalfConfig(types_, widths, (2, 2, 2, 3, 3, 3), kernels)
    return DCAEConfig(3, 32, 32, 0.41407, encoder, DCAEHalfConfig(types_, widths, (3,) * 6, kernels))


def text_encoder(
    implementation: str,
    dtype,
    device: str,
    blocks: int | None = None,
    runs_on: str | None = None,
    compute=None,
    **sizes,
):
    """Gemma-2, whose weights are not set yet. blocks: fewer than the model has; all are alike. runs_on: as in `build`.

    compute: format of our matrix products; None for the one that the loader would choose.
    """
    sizes = GEMMA | {"num_hidden_layers": blocks or GEMMA["num_hidden_layers"]} | sizes
    if implementation == "ours":
        from sana_native.models.gemma.text_encoder import CLIP_NAME, COMPUTE, SanaTextEncoder
        from sana_native.models.runtime.cpu.features import cpu_multiplies_bfloat16
        from sana_native.models.runtime.precision import Device, Request, gemma_precision

        fast = cpu_multiplies_bfloat16() if (runs_on or device) == "cpu" else True
        compute = compute or gemma_precision(dtype, Request(), Device(str(runs_on), bfloat16=fast)).compute
        return SanaTextEncoder(device, dtype, {f"{CLIP_NAME}_model_config": sizes, COMPUTE: compute})
    import torch
    from accelerate import init_empty_weights
    from transformers import Gemma2Config, Gemma2Model

    with init_empty_weights():  # leaves buffers, which are computed
        network = Gemma2Model(Gemma2Config(**sizes, head_dim=256, attn_implementation="eager"))
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(weight, dtype=dtype, device=device)))
    return network.to(device)


def transformer(implementation: str, model: str, blocks: int | None = None, device: str = "cpu", **options):
    """On "meta", the network that ours would be on this device; "plain" is ours without anything for a device.

    blocks: as for the text encoder. options: of diffusers' class, `qk_norm` and `guidance_embeds` of ours too.
    """
    import torch

    width, depth, heads, hidden = TRANSFORMERS[model]
    depth = blocks or depth
    if implementation == "diffusers":
        from diffusers import SanaTransformer2DModel

        sizes = {"num_attention_heads": width // 32, "num_layers": depth, "num_cross_attention_heads": heads}
        sizes |= {"cross_attention_head_dim": width // heads, "cross_attention_dim": width}
        with torch.device("meta"):
            return SanaTransformer2DModel(**sizes, **options)
    import comfy.ops
    from sana_native.models.sana.config import SanaConfig
    from sana_native.models.sana.loader import choose_network
    from sana_native.models.sana.model import Sana

    config = SanaConfig(
        *(width, depth, heads, CAPTION_CHANNELS, hidden, 32, 32),
        *(bool(options.get("qk_norm")), bool(options.get("guidance_embeds"))),
        *(0.1, None, 32, 3.0, None),
    )
    network = Sana if implementation == "plain" else choose_network(torch.device(device))[0]
    with torch.device("meta"):
        return network(config, operations=comfy.ops.disable_weight_init)


def autoencoder(implementation: str, device: str, widths: tuple[int, ...] = DC_AE_WIDTHS):
    """On "meta", the network that ours would be on this device; "plain" is ours without anything for a device."""
    import torch

    config = dc_ae_config(widths)
    if implementation in ("ours", "plain"):
        import comfy.ops
        from sana_native.models.dc_ae.inplace import choose_network
        from sana_native.models.dc_ae.model import AutoencoderDC as PlainAutoencoderDC

        network = PlainAutoencoderDC if implementation == "plain" else choose_network(torch.device(device))
        with torch.device("meta"):
            return network(config, operations=comfy.ops.disable_weight_init)
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
    with torch.device("meta"):
        return AutoencoderDC(
            in_channels=3,
            latent_channels=32,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=config.scaling_factor,
            **options,
        )


def bound(shape) -> float:
    """Random weights up to it keep the size of what passes through a layer of this shape; vectors move it a little."""
    return 0.5 if len(shape) < 2 else (3 / shape[1:].numel()) ** 0.5


def randomize(network):
    import torch

    for parameter in network.parameters():
        limit = bound(parameter.shape)
        torch.nn.init.uniform_(parameter.data, -limit, limit)
    return network


def build(
    stage: str,
    implementation: str,
    dtype,
    device: str = "cpu",
    model: str = "0.6B",
    blocks: int | None = None,
    runs_on: str | None = None,
    **options,
):
    """A network with random weights in this format on this device, "meta" for one without weights.

    runs_on: the device that it is the network for, if it is another one. options: of the stage's function above.
    """
    runs_on, tiny = runs_on or device, model == TINY
    if stage == "text":
        network = text_encoder(
            implementation, dtype, device, blocks, runs_on, **options, **(TINY_GEMMA if tiny else {})
        )
    elif stage == "step":
        network = transformer(implementation, model, blocks, runs_on, **options)
    else:
        network = autoencoder(implementation, runs_on, TINY_DC_AE_WIDTHS if tiny else DC_AE_WIDTHS)
    if stage != "text":
        for unused in {*HALF.values()} - {HALF.get(stage)} if stage in HALF else ():
            setattr(network, unused, None)
        network = network.to(dtype).to_empty(device=device)
    return (network if device == "meta" else randomize(network)).eval().requires_grad_(False)


def batched_text(context, mask) -> tuple:
    """The rows as the host puts them together for our network: without their padding."""
    from sana_native.models.runtime.text_conds import TextCond, without_padding

    rows = [without_padding(context[i : i + 1], mask[i : i + 1]) for i in range(len(context))]
    contexts, masks = ([TextCond(part) for part in parts] for parts in zip(*rows))
    return contexts[0].concat(contexts[1:]), masks[0].concat(masks[1:]).to(context)


def encoding(implementation: str, network, device: str, tokens: int) -> Callable:
    """Ours for a prompt that differs from call to call, after the first of them; transformers' of all positions."""
    import torch

    positions = INSTRUCTION_POSITIONS + POSITIONS - 1
    words = min(tokens, POSITIONS - 1)
    if implementation == "transformers":
        row = torch.randint(1, GEMMA["vocab_size"], (1, positions), device=device)
        mask = (torch.arange(positions, device=device) < INSTRUCTION_POSITIONS + words).long()[None]
        return lambda: network(row, attention_mask=mask)
    import comfy.model_management
    import comfy.model_patcher
    from sana_native.models.gemma.text_encoder import CLIP_NAME, PAD

    own = torch.device(device)
    patcher = comfy.model_patcher.ModelPatcher(network, own, own)
    instruction = list(range(2, INSTRUCTION_POSITIONS + 2))

    def run():
        comfy.model_management.load_models_gpu([patcher])  # as the host does for every prompt
        prompt = torch.randint(INSTRUCTION_POSITIONS + 2, GEMMA["vocab_size"], (words,)).tolist()
        row = instruction + prompt + [PAD] * (positions - len(instruction) - words)
        return network.encode_token_weights({CLIP_NAME: [[(token, 1.0) for token in row]]})

    return run


def call(
    stage: str,
    implementation: str,
    network,
    size: int,
    dtype,
    device: str = "cpu",
    tokens: int = PROMPT_TOKENS,
    tile_size: int | None = None,
) -> Callable:
    """A function of no arguments that runs the stage once for one image, `step` with both passes of cfg.

    size: of the image in px, unused by `text`. tokens: of the prompt, unused by `decode` and `encode`. tile_size: of
    exact tiles in px, for our `decode` and `encode`; None for the whole.
    """
    import torch

    if stage == "text":
        return encoding(implementation, network, device, tokens)
    kw, columns = {"dtype": dtype, "device": device}, size // 32
    if tile_size is not None:
        network.tile_size = tile_size
    if stage == "encode":
        image = torch.rand(1, 3, size, size, **kw) * 2 - 1
        return lambda: network.encode(image)
    if stage == "decode":
        latent = torch.randn(1, 32, columns, columns, **kw)
        return lambda: network.decode(latent)
    latent = torch.randn(2, 32, columns, columns, **kw)
    context = torch.randn(2, POSITIONS, CAPTION_CHANNELS, **kw)
    mask = torch.arange(POSITIONS) < torch.tensor([[1], [tokens]])
    timesteps = torch.full((2,), 547.0, device=device)
    if implementation == "diffusers":
        mask = mask.to(**kw)
        return lambda: network(latent, context, timesteps, encoder_attention_mask=mask)
    context, mask = batched_text(context, mask)
    return lambda: network(latent, timesteps, context=context, attention_mask=mask)
