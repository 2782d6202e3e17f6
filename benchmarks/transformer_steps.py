"""Processor seconds of one pass of PixArt and Lumina-Next beside diffusers and, for PixArt, the host's own network.

    python -m benchmarks.transformer_steps [--cases pixart:512 pixart:1024 lumina:1024] [--blocks 2] [--rounds 1]

Released widths, few blocks, random weights in float32, one thread, batch 2 as with cfg, 20 tokens of text. All networks
of a case have the same weights and inputs, and must agree. Processor seconds, user and system, of the pass after a
warm-up, in turns, so that other work on the machine takes little part in them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.measuring import heading, in_turns, middle, ratio, row, write
from demo.train.pack import prepare_imports

TOKENS = 20
T5_WIDTH, GEMMA_WIDTH = 4096, 2048
COLUMNS = ("model", "px", "implementation", "processor s", "time / ours")
LUMINA = {"hidden_size": 2304, "num_attention_heads": 32, "num_kv_heads": 8, "multiple_of": 256, "sample_size": 128}


def pixart(size: int, blocks: int) -> dict[str, Callable]:
    """Implementation -> one pass of a PixArt-Sigma for images of this size, on the same numbers."""
    import comfy.ldm.pixart.pixartms
    import comfy.ops
    import diffusers
    import torch
    from sana_native.models.pixart.convert import convert_pixart
    from sana_native.models.pixart.detection import detect_pixart
    from sana_native.models.pixart.model import PixArt

    reference = diffusers.PixArtTransformer2DModel(
        sample_size=size // 8,
        interpolation_scale=size / 512,
        use_additional_conditions=False,
        caption_channels=T5_WIDTH,
        num_layers=blocks,
    ).eval()
    state_dict = convert_pixart(reference.state_dict())
    config, _ = detect_pixart(state_dict, "PixArt-Sigma", {"num_layers": blocks})
    ours = PixArt(config, operations=comfy.ops.disable_weight_init).eval()
    ours.load_state_dict(state_dict)
    host = comfy.ldm.pixart.pixartms.PixArtMS(
        depth=blocks, micro_condition=False, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    ).eval()
    host.load_state_dict(state_dict, strict=False)
    x, text = torch.randn(2, 4, size // 8, size // 8), torch.randn(2, TOKENS, T5_WIDTH)
    t = torch.full((2,), 500.0)
    passes = {
        "ours": lambda: ours(x, t, text),
        "diffusers": lambda: reference(x, text, t, {}, return_dict=False)[0][:, :4],
        "the host": lambda: host(x, t, text),
    }
    return agreeing(passes)


def lumina(size: int, blocks: int) -> dict[str, Callable]:
    """Implementation -> one pass of Lumina-Next on the same numbers."""
    import comfy.ops
    import diffusers
    import torch
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
    from sana_native.models.lumina.convert import to_network_layout
    from sana_native.models.lumina.detection import detect_lumina
    from sana_native.models.lumina.model import Lumina

    reference = diffusers.LuminaNextDiT2DModel(num_layers=blocks, cross_attention_dim=GEMMA_WIDTH, **LUMINA).eval()
    with torch.no_grad():
        for layer in reference.layers:  # as released, where image and text share their queries
            layer.attn2.to_q.load_state_dict(layer.attn1.to_q.state_dict())
            layer.attn2.norm_q.load_state_dict(layer.attn1.norm_q.state_dict())
    state_dict = to_network_layout(reference.state_dict())
    ours = Lumina(detect_lumina(state_dict), operations=comfy.ops.disable_weight_init).eval()
    ours.load_state_dict(state_dict)
    x, text = torch.randn(2, 4, size // 8, size // 8), torch.randn(2, TOKENS, GEMMA_WIDTH)
    mask, t = torch.ones(2, TOKENS), torch.full((2,), 0.5)
    angles = get_2d_rotary_pos_embed_lumina(72, 384, 384, linear_factor=size / 1024)
    cross = {"base_sequence_length": 4096}

    def of_diffusers():
        out = reference(x, t, text, mask, angles, cross_attention_kwargs=cross, return_dict=False)[0]
        return -out.chunk(2, dim=1)[0]

    return agreeing({"ours": lambda: ours(x, 1 - t, context=text, attention_mask=mask), "diffusers": of_diffusers})


def agreeing(passes: dict[str, Callable]) -> dict[str, Callable]:
    """The passes, which also warm up here. Raises RuntimeError where they do not give the same numbers."""
    expected = passes["ours"]()
    for name, run in passes.items():
        error = float((run() - expected).norm() / expected.norm())
        if error > 1e-4:
            raise RuntimeError(f"{name} differs by {error:.1e} relative: the passes cannot be compared.")
    return passes


def processor_seconds(run: Callable) -> dict[str, float]:
    run()
    started = time.process_time()
    run()
    return {"seconds": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["pixart:512", "pixart:1024", "lumina:1024"])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    prepare_imports()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    write(heading(COLUMNS))
    for case in given.cases:
        model, size = case.split(":")
        with torch.inference_mode():
            passes = {"pixart": pixart, "lumina": lumina}[model](int(size), given.blocks)
            rounds = in_turns(passes, given.rounds, lambda name, passes=passes: processor_seconds(passes[name]))
        for name in passes:
            write(row((model, size, name, f"{middle(rounds, name, 'seconds'):.2f}", f"{ratio(rounds, name):.2f}")))


if __name__ == "__main__":
    main()
