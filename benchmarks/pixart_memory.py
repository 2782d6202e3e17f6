"""One image of PixArt through a real server, T5 included, and what a device with little memory holds at each stage.

    python -m benchmarks.pixart_memory [--size 512] [--steps 4] [--blocks 4] [--layers 2] [--device-gb 1.6]

The graph is workflows/pixart_sigma_txt2img.json. The files have random weights and the released widths, but few blocks;
T5 is 4032 wide, because one of 4096 is refused unless it has all of its 24 layers. They lie in a temporary folder
(TMPDIR says where) that is deleted at the end. The CPU stands in for a device of --device-gb, which the host empties
for the next model as it does on a GPU; "held" are bytes of weights by the host's own account, "computing" is resident
memory above what the process had before the stage, and "peak" is their sum. The second image has another seed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks import stage_memory
from benchmarks.measuring import ALLOCATOR, heading, in_a_process, row, stop_politely, write
from benchmarks.random_files import write_bfloat16
from demo.train.pack import prepare_imports
from tools.comfy_server import ComfyServer
from tools.host import prepare_base
from tools.workflow import set_inputs, to_api
from tools.workflow_files import PIXART_SIGMA, SDXL_VAE, T5_FP8

GRAPH = Path(__file__).resolve().parent.parent / "workflows" / "pixart_sigma_txt2img.json"
T5_WIDTH, T5_FFN, VOCABULARY = 4032, 10240, 32128
PROMPT = "a red cat asleep on a stack of old books"
COLUMNS = ("image", "stage", "calls", "held MiB", "computing MiB", "peak MiB")


def networks(blocks: int, layers: int) -> dict[Path, object]:
    """File below `models` -> network on "meta", in a layout that the loaders read."""
    import diffusers
    import torch
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=T5_WIDTH,
        d_kv=64,
        d_ff=T5_FFN,
        num_heads=T5_WIDTH // 64,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        found = {
            PIXART_SIGMA["name"].replace(".pth", ".safetensors"): diffusers.PixArtTransformer2DModel(
                sample_size=128, interpolation_scale=2, caption_channels=T5_WIDTH, num_layers=blocks
            ),
            T5_FP8["name"]: transformers.T5EncoderModel(config),
            SDXL_VAE["name"]: diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
        }
    folders = {file["name"]: file["directory"] for file in (T5_FP8, SDXL_VAE)}
    return {Path(folders.get(name, "diffusion_models"), name): network for name, network in found.items()}


def write_files(models: Path, blocks: int, layers: int) -> None:
    for path, network in networks(blocks, layers).items():
        write_bfloat16(models / path, network.state_dict())
    (models / "diffusion_models" / "config.json").write_text(json.dumps({"num_layers": blocks}))


def graph(object_info: dict, size: int, steps: int) -> dict:
    """The shared graph at this size, with the name that the transformer has here."""
    prompt = to_api(json.loads(GRAPH.read_text(encoding="utf-8")), object_info)
    name = PIXART_SIGMA["name"].replace(".pth", ".safetensors")
    prompt = set_inputs(prompt, "SanaNativeModelLoader", model_name=name)
    prompt = set_inputs(prompt, "SanaNativeEmptyLatent", size="custom", width=size, height=size)
    prompt = set_inputs(prompt, "SanaNativeGemmaEncode", prompt=PROMPT)
    return set_inputs(prompt, "SanaNativeSampler", steps=steps, seed=1)


def rows(image: str, told: dict[str, dict]) -> list[str]:
    found = []
    for stage in stage_memory.WATCHED:
        if stage not in told:
            found.append(row((image, stage, 0, "", "", "")))
            continue
        one = told[stage]
        held = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in one["held"].items())
        peak = (sum(one["held"].values()) + one["above"]) / 2**20
        found.append(row((image, stage, one["calls"], held, f"{one['above'] / 2**20:.0f}", f"{peak:.0f}")))
    return found


def measure(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = prepare_base(Path(folder))
        in_a_process("pixart_memory", "--write", base, "--blocks", given.blocks, "--layers", given.layers)
        source = Path(stage_memory.__file__)
        (base / "custom_nodes" / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        with ComfyServer(base, cpu=True) as server:
            prompt = graph(server.object_info(), given.size, given.steps)
            stage_memory.ask(server.url, int(given.device_gb * 1e9))
            write(heading(COLUMNS))
            for image, seed in (("first", 1), ("another seed", 2)):
                result = server.run(set_inputs(prompt, "SanaNativeSampler", seed=seed))
                if len(result.images()) != 1:
                    raise RuntimeError(f"The server saved {len(result.images())} images, expected one.")
                write("\n".join(rows(image, stage_memory.ask(server.url))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device-gb", type=float, default=1.6)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop_politely()
    if given.write:
        prepare_imports()
        write_files(Path(given.write) / "models", given.blocks, given.layers)
    else:
        os.environ.update(ALLOCATOR)
        measure(given)


if __name__ == "__main__":
    main()
