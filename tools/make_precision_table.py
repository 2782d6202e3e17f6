"""Writes docs/precision.md: which formats every kind of file is kept and computed in, asked of the code that decides.

python -m tools.make_precision_table            needs a running environment (see tools/host.py)
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "precision.md"

TOP = """# Precision

Printed by `python -m tools.make_precision_table` from `models/runtime/precision.py`, the code that decides; a test
keeps them equal.

The first SANA releases (0.6B and 1.6B at 512 and 1024 px without BF16 in their name) were trained in float16 and have
learnt to saturate at its limit: in a wider format their self-attention is clamped to +-65504. All others were trained
in bfloat16 and overflow in float16, as Gemma-2 and DC-AE do: that is what black and grey pictures come from. No
tensor tells the two kinds apart, so the release's name decides, or `trained_in` of SANA Model Loader for a file that
has been renamed or fine-tuned. Where neither says anything the model is computed as bfloat16's and clamped, which is
right for both kinds.

What you ask for, by a loader's widget or by a start flag of ComfyUI, decides how the weights are kept; the widget
wins. It never makes a model overflow. The log says in one line what a file is, what was decided and why.

Read "float16 / float32 c" as: weights in float16, computed in float32, self-attention clamped. A `!` means that the
log warns.
"""
MIDDLE = """
"fast" is ComfyUI's own judgement of the GPU; `--force-fp32` makes both formats slow. "CPU with bfloat16" has
instructions for it (AVX512-BF16, AMX), about twice as fast as float32; they are used when bfloat16 is asked for. If
32 bits a weight do not fit in the device's memory and only float32 is fast, "auto" keeps 16 bits and computes in
float32. A file of plain float8 weights stays in float8 where the GPU multiplies it or 16 bits would not fit. Layers
that ComfyUI has quantized (`comfy_quant`: float8, int8, nvfp4, mxfp8, w4a4) stay as they are, whatever is asked for;
the rest of such a file is kept in the format it is computed in.
"""
GEMMA = """
## Gemma-2

"Computed in bfloat16" are its matrix products; the residual stream, norms, scores and softmax stay in float32, so that
states are nearer to float32's than transformers' own bfloat16 (0.8 % against 1.2 % off, with random weights of
Gemma-2-2b's widths and 4 layers). A CPU with bfloat16 takes it unasked, being four times as fast: the demo's images
then differ by 63 to 74 dB, less than their rounding to 8 bits. Weights in float16 or float32 are multiplied in
float32, because bfloat16 would round them and Gemma-2 overflows in float16. Text generation and layers that another
pack has put hooks on or replaced are computed by ComfyUI's own layers.

"""
END = """
On a CPU the residual blocks of 128 channels and more multiply less often than a sliding kernel does, by Winograd's
convolutions, which round a little more: in float32, the format of "auto" there, by a part in a million; in bfloat16,
only to decode with AVX512-BF16 and without AMX, four to five times as much, or ten times in blocks of 256
channels and more behind attention, which itself rounds more. What that leaves depends on the weights, and the released
ones have not been measured. In dB further from float32 than plain convolutions in bfloat16: 0.0 to 0.1 for the demo's
pictures, with these convolutions forced on its narrower layers (diffusers in bfloat16: 0.2 to 0.6); 0.4 for random
weights of DC-AE (diffusers: 0.7 to 0.8); 4 for random ones of DC-AE-Lite, which has no attention (diffusers: 1.2 to
1.5).
"""
FORMATS = {
    "auto": None,
    "bfloat16, --bf16-unet": "bfloat16",
    "float16, --fp16-unet, --force-fp16": "float16",
    "float32, --fp32-unet": "float32",
    "fp8_e4m3fn, --fp8_e4m3fn-unet": "float8_e4m3fn",
    "fp8_e5m2, --fp8_e5m2-unet": "float8_e5m2",
    "--fp64-unet": "float64",
    "--fp8_e8m0fnu-unet": "float8_e8m0fnu",
}
KINDS = {"trained in float16": "float16", "trained in bfloat16": "bfloat16", "unknown": None}


def devices() -> dict:
    from sana_native.models.runtime.precision import Device

    return {
        "CPU": Device("the CPU"),
        "CPU with bfloat16": Device("the CPU", bfloat16_on_request=True),
        "GPU, float16 and bfloat16 fast": Device("the GPU", float16=True, bfloat16=True),
        "GPU, only float16 fast": Device("the GPU", float16=True),
        "GPU, neither fast": Device("the GPU"),
    }


def request(name: str | None):
    import torch
    from sana_native.models.runtime.precision import Request

    return Request() if name is None else Request(getattr(torch, name), "the user")


def cell(precision) -> str:
    from sana_native.models.runtime.precision import name_of

    clamp, warning = " c" if precision.clamp else "", " !" if precision.warning else ""
    return f"{name_of(precision.weights)} / {name_of(precision.compute)}{clamp}{warning}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def page() -> str:
    import torch
    from sana_native.models.runtime.precision import dc_ae_precision, gemma_precision, sana_precision

    columns = devices()
    transformer = [
        [kind, asked, *(cell(sana_precision(trained_in, None, request(name), device)) for device in columns.values())]
        for kind, trained_in in KINDS.items()
        for asked, name in FORMATS.items()
    ]
    te = {asked.replace("-unet", "-text-enc"): name for asked, name in FORMATS.items() if "64" not in asked}
    te = {asked.replace(", --force-fp16", ""): name for asked, name in te.items() if "e8m0" not in asked}
    files = {"in bfloat16": torch.bfloat16, "in float16": torch.float16, "in float32": torch.float32}
    gemma = [
        [file, asked, *(cell(gemma_precision(stored, request(name), device)) for device in columns.values())]
        for file, stored in files.items()
        for asked, name in te.items()
    ]
    vae = {"auto": None, "bfloat16, --bf16-vae": "bfloat16", "--fp16-vae": "float16", "float32, --fp32-vae": "float32"}
    dc_ae = [
        [asked, *(cell(dc_ae_precision(request(name), device)) for device in columns.values())]
        for asked, name in vae.items()
    ]
    return "".join(
        [
            TOP,
            "\n## SANA, SANA-1.5, SANA-Sprint\n\n",
            table(["checkpoint", "asked for", *columns], transformer),
            MIDDLE,
            GEMMA,
            table(["file", "asked for", *columns], gemma),
            "\n## DC-AE\n\n",
            table(["asked for", *columns], dc_ae),
            END,
        ]
    )


def main() -> None:
    from demo.train.pack import prepare_imports

    prepare_imports()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
