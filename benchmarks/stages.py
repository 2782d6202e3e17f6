"""Time and peak memory of single stages at released sizes: ours, diffusers and, where it has one, the host's class.

    make bench [STAGES="step decode encode"] [SIZES="512 1024"] [PAIRS=3] [DTYPE=bfloat16]

Weights are random; every measurement is a process of its own, the implementations take turns, and the ratio is the
median over the rounds, so that a machine whose speed drifts does not decide. Peak is resident memory above what the
loaded weights take.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from demo.train.pack import prepare_imports

ROOT = Path(__file__).resolve().parent.parent
IMPLEMENTATIONS = {
    "step": ("ours", "diffusers"),
    "decode": ("ours", "diffusers", "host"),
    "encode": ("ours", "diffusers", "host"),
}
PROMPT_TOKENS, POSITIONS = 30, 300


def dc_ae_config():
    from sana_native.models.config import DCAEConfig, DCAEHalfConfig

    types_, kernels = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3, ((), (), (), (5,), (5,), (5,))
    widths = (128, 256, 512, 512, 1024, 1024)
    encoder = DCAEHalfConfig(types_, widths, (2, 2, 2, 3, 3, 3), kernels)
    return DCAEConfig(3, 32, 32, 0.41407, encoder, DCAEHalfConfig(types_, widths, (3,) * 6, kernels))


def build(stage: str, implementation: str, dtype):
    """A network with random weights of the released 0.6B or DC-AE f32c32 size."""
    import torch

    if stage == "step":
        if implementation == "diffusers":
            from diffusers import SanaTransformer2DModel

            sizes = {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16}
            model = SanaTransformer2DModel(**sizes, cross_attention_head_dim=72, cross_attention_dim=1152)
        else:
            import comfy.ops
            from sana_native.models.config import SanaConfig
            from sana_native.models.sana import Sana

            config = SanaConfig(1152, 28, 16, 2304, 2880, 32, 32, False, False, 0.1, None, 32, 3.0, None)
            model = Sana(config, operations=comfy.ops.disable_weight_init)
    elif implementation == "ours":
        import comfy.ops
        from sana_native.models.dc_ae import AutoencoderDC

        model = AutoencoderDC(dc_ae_config(), operations=comfy.ops.disable_weight_init)
    else:
        if implementation == "host":
            from comfy.ldm.ace.vae.autoencoder_dc import AutoencoderDC
        else:
            from diffusers import AutoencoderDC
        config = dc_ae_config()
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
        model = AutoencoderDC(
            in_channels=3,
            latent_channels=32,
            upsample_block_type="interpolate",
            downsample_block_type="Conv",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            **options,
        )
    for parameter in model.parameters():
        bound = 0.5 if parameter.ndim == 1 else (3 / parameter[0].numel()) ** 0.5
        torch.nn.init.uniform_(parameter.data, -bound, bound)
    return model.to(dtype).eval()


def call(stage: str, implementation: str, model, size: int, dtype):
    """A function of no arguments that runs the stage once for one picture, `step` with both passes of cfg."""
    import torch

    side = size // 32
    if stage == "encode":
        image = torch.rand(1, 3, size, size, dtype=dtype) * 2 - 1
        return lambda: model.encode(image)
    if stage == "decode":
        latent = torch.randn(1, 32, side, side, dtype=dtype)
        return lambda: model.decode(latent)
    latent = torch.randn(2, 32, side, side, dtype=dtype)
    context = torch.randn(2, POSITIONS, 2304, dtype=dtype)
    mask = (torch.arange(POSITIONS) < torch.tensor([[1], [PROMPT_TOKENS]])).to(dtype)
    timesteps = torch.full((2,), 547.0)
    if implementation == "diffusers":
        return lambda: model(latent, context, timesteps, encoder_attention_mask=mask)
    return lambda: model(latent, timesteps, context=context, attention_mask=mask)


def measure(stage: str, implementation: str, size: int, dtype_name: str) -> dict:
    """Seconds of one pass after a warm-up, and the bytes it needs above the weights."""
    prepare_imports()
    import resource

    import psutil
    import torch

    dtype = getattr(torch, dtype_name)
    with torch.inference_mode():
        run = call(stage, implementation, build(stage, implementation, dtype), size, dtype)
        before = psutil.Process().memory_info().rss
        run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        started = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - started, "peak": peak}


def in_a_process(stage: str, implementation: str, size: int, dtype: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.stages", "--measure", stage, implementation, str(size), dtype]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def compare(stage: str, size: int, dtype: str, pairs: int) -> list[str]:
    """Table rows of one stage and size."""
    names = IMPLEMENTATIONS[stage]
    rounds = [{name: in_a_process(stage, name, size, dtype) for name in names} for _ in range(pairs)]
    rows = []
    for name in names:
        seconds = statistics.median(one[name]["seconds"] for one in rounds)
        peak = statistics.median(one[name]["peak"] for one in rounds) / 2**30
        ratio = statistics.median(one[name]["seconds"] / one["ours"]["seconds"] for one in rounds)
        rows.append(f"| {stage} | {size} | {dtype} | {name} | {seconds:.2f} | {peak:.2f} | {ratio:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["step", "decode", "encode"], choices=IMPLEMENTATIONS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        stage, implementation, size, dtype = given.measure
        sys.stdout.write(json.dumps(measure(stage, implementation, int(size), dtype)) + "\n")
        return
    sys.stdout.write(
        "| stage | px | dtype | implementation | seconds | peak GiB above weights | time / ours |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for stage in given.stages:
        for size in given.sizes:
            sys.stdout.write("\n".join(compare(stage, size, given.dtype, given.pairs)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
