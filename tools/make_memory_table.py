"""Writes docs/memory.md: sizes of quantized files and what fits on which card, computed by the code that writes them.

python -m tools.make_memory_table            needs a running environment (see tools/host.py)
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from .make_precision_table import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "memory.md"
RELEASED = ROOT / "tests" / "full_size" / "tensors.json"  # names and shapes of the released models' tensors
# Name on the page -> that of the tensor list, or the path that the released file has.
MODELS = {
    "SANA 0.6B": "SANA 0.6B",
    "SANA 1.6B": "SANA 1.6B",
    "SANA-1.5 1.6B": "SANA-1.5 1.6B",
    "SANA-1.5 4.8B": "SANA-1.5 4.8B",
    "SANA-Sprint 0.6B": "SANA-Sprint 0.6B",
    "SANA-Sprint 1.6B": "SANA-Sprint 1.6B",
    "Gemma-2-2b-it": "Gemma-2-2b",
    "PixArt-Sigma": "PixArt-Sigma-XL-2-1024-MS.pth",
    "T5-XXL": "t5xxl_fp16.safetensors",
    "Lumina-Next": "Lumina-Next-SFT/consolidated.00-of-01.safetensors",
    "Gemma-1 2B": "gemma-2b/model-00001-of-00002.safetensors",
}
NOT_WRITTEN = ("pos_embed", "y_embedder.y_embedding")  # of PixArt's files, which no network has
# GB of a card that its system leaves free, about; GB that a step at 1024 px needs beside the weights, with a margin.
CARDS = {"4 GB": 3.3, "6 GB": 5.2, "8 GB": 7.0}
WORKING = 0.5
FITTING = ("16 bits", "int8", "nvfp4")  # in the order of choice


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape of a released model; `{0-27}` in a name stands for every number of the range."""
    packed = next(models[name] for models in json.loads(RELEASED.read_text()).values() if name in models)
    found = {}
    for key, shape in packed.items():
        numbers = re.search(r"\{(\d+)-(\d+)\}", key)
        if numbers is None:
            found[key] = tuple(shape)
        else:
            first, last = map(int, numbers.groups())
            found |= {key.replace(numbers[0], str(number)): tuple(shape) for number in range(first, last + 1)}
    return found


def family_and_tensors(name: str):
    """The family of a released model, and its file in 16 bits without values."""
    import torch
    from sana_native.models.registry import FAMILIES
    from sana_native.tests.support.known_files import released

    files = released()
    found = {key: tensor.shape for key, tensor in files[name]().items()} if name in files else shapes(name)
    wide = {key: torch.empty(shape, dtype=torch.bfloat16, device="meta") for key, shape in found.items()}
    family = next(each for each in FAMILIES if each.saving and each.recognizes(each.convert(wide)))
    if family.component == "text_encoder":
        return family, family.convert(wide)
    return family, {key: tensor for key, tensor in wide.items() if key not in NOT_WRITTEN}


def sizes(name: str) -> dict[str, float]:
    """GB of a released model's file: in 16 bits, and with every preset."""
    from sana_native.models.files.quantize import PRESETS, layout_of_file, plan
    from sana_native.models.files.quantized_file import file_size

    family, wide = family_and_tensors(name)
    found = {"16 bits": file_size({key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in wide.items()})}
    rules = family.saving.rules(wide)
    found |= {preset: file_size(layout_of_file(wide, plan(wide, preset, rules))) for preset in PRESETS}
    return {column: size / 1e9 for column, size in found.items()}


def fitting(found: dict[str, float], room: float) -> str:
    """The format nearest to 16 bits with which a part stays whole on a card."""
    return next((column for column in FITTING if found[column] + WORKING <= room), "in parts")


TOP = """# Memory

Printed by `python -m tools.make_memory_table`; a test keeps it equal to the code. Sizes of quantized files are computed
from the released models' tensor lists (`tests/full_size/tensors.json`, `tests/support/known_files.py`) by the code that
writes the files; on the demo's models they equal the files to the byte, on released weights they have not been
measured. What fits on a card is computed from these sizes, not measured on one.

Only one of text encoder, transformer and autoencoder must be on the card at once; ComfyUI takes the others off. The
largest of them decides.

## Narrow weights

**SANA Quantize & Save** writes the model and the text encoder that are connected to it to files, LoRAs merged. The
command does the same for files, with one layer in memory at a time:

    python3 -m tools.host -- -m tools.quantize IN OUT.safetensors --preset int8 [--part text_encoder]

IN is a file, a shard or a folder, in any layout that the loaders read. The files load in the pack's own loaders, and a
LoRA applies to them as to any other. Half of a SANA transformer are 1x1 convolutions, which are linear layers here and
so become narrow as well.

| preset | what it is | native on NVIDIA's |
| --- | --- | --- |
| int8 | 8 bits, a scale for each row, ConvRot (rotates 256, 64 or 16 inputs); the choice for most | Turing and later |
| fp8 | float8 e4m3, a scale for each layer; `ff.conv_point` and `attn2.to_q` are multiplied wide | Ada and later |
| nvfp4 | 4 bits, a scale for 16 numbers; int8 for the last block, `attn2.to_v` and `attn2.to_out` | Blackwell |
| w4a4 | 4 bits with ConvRot, inputs in 4 bits too; int8 as in nvfp4, and for `ff.conv_point` | Turing and later |

Elsewhere the weights are narrow in memory and widened to be multiplied. The projections of text and output, the time
embedding, depthwise convolutions, norms and tables always stay in 16 bits: one to two percent of the weights, with the
highest loss per byte (`benchmarks/sensitivity.py`). Gemma's table of 256,000 tokens, a fifth of its weights, is int8 or
float8; so is T5's of 32,128.

## Sizes of the files, GB (computed)

"""
CARD_TOP = """
DC-AE has {dc_ae:.2f} GB and stays as it is: it is made of convolutions.

## What stays whole on a card (computed)

The format nearest to 16 bits with which the part and {working} GB to compute in fit into what a card has free: about
{cards}. "in parts": ComfyUI streams the weights, which works and is slower.
w4a4 and fp8 fit where nvfp4 and int8 do.

"""
END = """
T5-XXL decides for PixArt: in 8 bits, also as `t5xxl_fp8_e4m3fn_scaled.safetensors` of 5.2 GB, it stays whole on 8 GB.
`benchmarks/results/pixart_memory.md` shows it gone before the transformer comes. For Lumina-Next Gemma-1 decides.

At 2048 px and above the autoencoder decides: its nodes decode in tiles, with the result of the whole.

`cuda_graphs` of the loaders (off by default) wants the part whole on the card, and holds the memory of one more step
or decode until it is unloaded.

## What a preset costs (measured)

On the demo that ships, on CPU cores; `benchmarks/results/quantization.md` has the commands. The demo is small (3.9 M
parameters) and loses more than the released models should: take the order from here.

{measured}

## The same seed in another batch (measured)

Wide weights give the same image for a seed in every batch. Formats that round the inputs of a layer too do not quite:
the last bit of a sum depends on the number of rows, and near the edge between two codes it decides which one an input
gets. The demo's model on a CPU, one prompt and seed, 256 px, 10 steps, cfg 4.5, the first latent of a batch of four
against the same seed alone, error relative to its root mean square: 2e-6 with wide weights and with fp8 (which a CPU
multiplies wide), 0.03 with nvfp4 (its int8 layers), 0.04 with int8, 0.37 with w4a4. That is no more than the preset's
own error in the table above. The same batch gives the same image again. On a GPU it has not been measured; there fp8
and nvfp4 round inputs where they are native.

## Files of bitsandbytes

Folders that diffusers and transformers have quantized with bitsandbytes load as they are, without bitsandbytes: 8 bits
as the host's int8 with the same codes (its float16 path for outliers is not there), 4 bits (nf4, fp4) widened to 16,
so that they save disk and not memory. **SANA Quantize & Save** makes those narrow again.
"""


def page() -> str:
    from math import prod

    found = {shown: sizes(name) for shown, name in MODELS.items()}
    columns = list(next(iter(found.values())))
    rows = [[shown, *(f"{size:.2f}" for size in one.values())] for shown, one in found.items()]
    cards = [[shown, *(fitting(one, room) for room in CARDS.values())] for shown, one in found.items()]
    dc_ae = sum(2 * prod(shape) for shape in shapes("dc-ae-f32c32-sana-1.0 and 1.1").values()) / 1e9
    room = ", ".join(f"{room} of {card}" for card, room in CARDS.items())
    measured = (ROOT / "benchmarks" / "results" / "quantization.md").read_text(encoding="utf-8")
    presets = measured.partition("<!-- presets -->\n")[2].partition("\n<!-- end -->")[0]
    return "".join(
        [
            TOP,
            table(["model", *columns], rows),
            CARD_TOP.format(dc_ae=dc_ae, working=WORKING, cards=room),
            table(["model", *CARDS], cards),
            END.format(measured=presets),
        ]
    )


def main() -> None:
    from demo.train.pack import prepare_imports

    prepare_imports()
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
