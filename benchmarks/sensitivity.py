"""What narrow weights cost on the demo's SANA: group by group of its layers, and preset by preset.

    python -m benchmarks.sensitivity [--measure groups presets] [--prompts 6] [--steps 8] [--judged 24]

groups: the weights of one group of layers rounded to 4 bits, a scale for every 32 numbers, the rest exact; PSNR of the
images against those of the exact weights. Groups that lose most per byte stay wide (`models/sana/quantization.py`).
presets: files as `tools/quantize.py` writes them, loaded by the pack; PSNR, distance of the final latents, size, and
the share of images in which the demo's judge finds all that the prompt says, of --judged held-out prompts with one
thing and as many with two.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import heading, row, write
from demo.train.pack import CHECKPOINT, prepare_imports

GROUPS = {
    "caption_projection": r"^caption_projection\.",
    "proj_out": r"^proj_out$",
    "patch_embed": r"^patch_embed\.",
    "time_embed": r"^time_embed\.",
    "attn1.to_q, to_k": r"\.attn1\.to_[qk]$",
    "attn1.to_v": r"\.attn1\.to_v$",
    "attn1.to_out": r"\.attn1\.to_out",
    "attn2.to_q, to_k": r"\.attn2\.to_[qk]$",
    "attn2.to_v, to_out": r"\.attn2\.(to_v|to_out\.0)$",
    "ff.conv_inverted": r"\.ff\.conv_inverted$",
    "ff.conv_depth": r"\.ff\.conv_depth$",
    "ff.conv_point": r"\.ff\.conv_point$",
    "first block": r"^transformer_blocks\.0\.",
    "last block": r"^transformer_blocks\.{last}\.",
    "all blocks": r"^transformer_blocks\.",
}
LARGEST, NUMBERS = 7, 32  # of a 4-bit code, and that share a scale
STEPS_JUDGED = 20
COMPARED = ("mean dB", "median dB", "least dB", "latents")


def rounded(weight):
    """A weight with 4 bits a number, in its own format."""
    import torch

    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % NUMBERS)).unflatten(0, (-1, NUMBERS))
    scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
    return ((flat / scale).round() * scale).flatten()[: weight.numel()].view_as(weight)


class Studio:
    """The demo's painter with the cases that every row is measured on, and what exact weights make of them."""

    def __init__(self, prompts: int, steps: int):
        from demo.measure import Bench, draw_mixed_cases

        self.bench, self.steps = Bench(CHECKPOINT), steps
        self.cases = draw_mixed_cases(prompts)
        self.latents = self.paint()
        self.images = self.bench.painter.decode(self.latents)

    def paint(self):
        return self.bench.paint_latents(self.cases, steps=self.steps)

    def compare(self) -> list[str]:
        """Cells: PSNR in dB, mean, median and least over images; relative distance of the latents."""
        from demo.train.data import psnr

        latents = self.paint()
        found = psnr(self.bench.painter.decode(latents), self.images)
        distance = (latents - self.latents).norm() / self.latents.norm()
        return [f"{float(value):.1f}" for value in (found.mean(), found.median(), found.min())] + [f"{distance:.3f}"]

    def judge(self, count: int) -> float:
        """Share of images in which everything is right."""
        from demo.measure import draw_mixed_cases

        return self.bench.score(draw_mixed_cases(count), steps=STEPS_JUDGED)["all"]

    def use(self, path: str) -> None:
        """Paints with another file's transformer from here on."""
        import comfy.model_management
        import torch
        from sana_native.models.sana.loader import load_sana

        with torch.inference_mode():
            patcher = load_sana(path)
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        painter = self.bench.painter
        painter.patcher, painter.network = patcher, patcher.model.diffusion_model


def with_rounded(network, pattern: str, measure: Callable[[], list[str]]) -> tuple[int, list[str]]:
    """Numbers in the weights of the layers that the pattern finds, and what is measured while they are rounded."""
    import torch

    found = {
        name: parameter
        for name, parameter in network.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1 and re.search(pattern, name.removesuffix(".weight"))
    }
    kept = {name: parameter.detach().clone() for name, parameter in found.items()}
    with torch.no_grad():
        for parameter in found.values():
            parameter.copy_(rounded(parameter))
        measured = measure()
        for name, parameter in found.items():
            parameter.copy_(kept[name])
    return sum(weight.numel() for weight in kept.values()), measured


def measure_groups(studio: Studio) -> None:
    network = studio.bench.painter.network
    write(heading(("group, in 4 bits", "thousand weights", *COMPARED)))
    for group, pattern in GROUPS.items():
        last = str(len(network.transformer_blocks) - 1)
        numbers, cells = with_rounded(network, pattern.replace("{last}", last), studio.compare)
        write(row((group, f"{numbers / 1000:.0f}", *cells)))


def measure_presets(studio: Studio, judged: int) -> None:
    from sana_native.models.files.quantize import PRESETS
    from sana_native.models.files.saving import quantize_file
    from sana_native.models.registry import FAMILIES

    write(heading(("preset", "file, MB", *COMPARED, "judge: all right")))
    source = CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors"
    write(row(("16 bits", f"{source.stat().st_size / 1e6:.2f}", *[""] * len(COMPARED), f"{studio.judge(judged):.1%}")))
    with tempfile.TemporaryDirectory() as folder:
        for preset in PRESETS:
            path = str(Path(folder) / f"{preset}.safetensors")
            report = quantize_file(FAMILIES, str(source), path, preset)
            studio.use(path)
            write(row((preset, f"{report.size / 1e6:.2f}", *studio.compare(), f"{studio.judge(judged):.1%}")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", nargs="+", choices=("groups", "presets"), default=("groups", "presets"))
    parser.add_argument("--prompts", type=int, default=6, help="with one thing, and as many with two")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--judged", type=int, default=24)
    given = parser.parse_args()
    prepare_imports()
    studio = Studio(given.prompts, given.steps)
    if "groups" in given.measure:
        measure_groups(studio)
    if "presets" in given.measure:
        write("")
        measure_presets(studio, given.judged)


if __name__ == "__main__":
    main()
