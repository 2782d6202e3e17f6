"""Processor seconds and memory of a step of LoRA training: ours, diffusers' expression of it, and the host's node.

    python -m benchmarks.training [--model 0.6B] [--blocks 2] [--size 1024] [--steps 2] [--rounds 1]

Released width, few blocks, random weights in float32, one thread, one picture a step, 300 tokens, rank 16. Ours and
diffusers' script (PEFT's LoRA, its loss, AdamW) train q, k and v of both attentions; the host's Train LoRA has no such
choice and trains every layer. Each figure comes from a process of its own, the implementations take turns: processor
seconds, so that other work on the machine takes little part in them, of the steps after the first. Peak is resident
memory above what the process held with the model loaded.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

from benchmarks.measuring import (
    ALLOCATOR,
    give_back,
    heading,
    in_a_process,
    in_turns,
    memory,
    middle,
    ratio,
    row,
    start_peak,
    stop_politely,
    write,
)
from benchmarks.networks import CAPTION_CHANNELS, POSITIONS, TRANSFORMERS
from demo.train.pack import prepare_imports

RANK, RATE, SEED = 16, 1e-4, 0
PLAIN, AGAIN = "", ", checkpointing"
IMPLEMENTATIONS = tuple(name + again for again in (PLAIN, AGAIN) for name in ("ours", "diffusers", "the host"))
COLUMNS = ("implementation", "blocks computed again", "processor s a step", "time / ours", "peak MiB", "trained")


def write_model(folder: str, model: str, blocks: int) -> None:
    """Random weights in diffusers' layout."""
    import diffusers
    import torch

    width, _, heads, _ = TRANSFORMERS[model]
    torch.manual_seed(SEED)
    diffusers.SanaTransformer2DModel(
        num_layers=blocks,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=width // heads,
        cross_attention_dim=width,
        caption_channels=CAPTION_CHANNELS,
    ).save_pretrained(f"{folder}/transformer")


def inputs(size: int) -> tuple:
    """A raw latent, states and mask of one picture."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, 32, size // 32, size // 32, generator=generator) / 0.41407
    return latent, torch.randn(1, POSITIONS, CAPTION_CHANNELS, generator=generator), torch.ones(1, POSITIONS)


def of_ours(folder: str, size: int, again: bool) -> tuple[Callable[[], object], int]:
    """A step, and how many numbers it trains."""
    from sana_native.models.sana.loader import load_sana
    from sana_native.training.dataset import SetOptions
    from sana_native.training.encode import LATENT, MASK, STATES, EncodedSample, EncodedSet, save_part
    from sana_native.training.trainer import RunFiles, Settings, Trainer

    latent, states, mask = inputs(size)
    save_part({LATENT: latent[0]}, f"{folder}/latent", "the latent")
    save_part({STATES: states[0], MASK: mask[0]}, f"{folder}/text", "the text")
    sample = EncodedSample(f"{folder}/latent", f"{folder}/text", (size, size))
    data = EncodedSet((sample,), f"{folder}/text", True, SetOptions(size))
    settings = Settings(steps=10_000, rank=RANK, alpha=RANK, learning_rate=RATE, checkpointing=again)
    files = RunFiles(f"{folder}/run/state.safetensors", f"{folder}/run/lora.safetensors")
    trainer = Trainer(load_sana(folder), data, settings, files)

    def step() -> None:
        with trainer.trained.attached():
            trainer.train_step()

    return step, sum(value.numel() for value in trainer.parameters.values())


def of_diffusers(folder: str, size: int, again: bool) -> tuple[Callable[[], object], int]:
    """A step as diffusers' script for LoRA on SANA writes it, with everything in memory."""
    import diffusers
    import peft
    import torch

    network = diffusers.SanaTransformer2DModel.from_pretrained(f"{folder}/transformer").requires_grad_(False)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v"]
    )
    network.add_adapter(config)
    network.train()
    if again:
        network.enable_gradient_checkpointing()
    values = [value for value in network.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(values, lr=RATE, weight_decay=1e-4)
    latent, states, mask = inputs(size)
    x0 = latent * 0.41407

    def step() -> None:
        noise, sigma = torch.randn_like(x0), torch.rand(1).view(1, 1, 1, 1)
        noisy = (1 - sigma) * x0 + sigma * noise
        output = network(noisy, states, 1000 * sigma.flatten(), encoder_attention_mask=mask, return_dict=False)[0]
        loss = ((output.float() - (noise - x0)) ** 2).reshape(1, -1).mean(dim=1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(value.numel() for value in values)


def of_host(folder: str, size: int, again: bool, steps: int) -> dict[str, float]:
    """The host's node, timed between two of the steps that it tells of."""
    import comfy.utils
    import torch
    from comfy_extras.nodes_train import TrainLoraNode
    from sana_native.models.sana.loader import load_sana

    latent, states, mask = inputs(size)
    options = {
        "batch_size": 1, "steps": 1 + steps, "grad_accumulation_steps": 1, "learning_rate": RATE, "rank": RANK,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": SEED, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": again, "checkpoint_depth": 2,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": False,
    }  # fmt: skip
    times = []

    def tell(value: int, total: int, *_, **__) -> None:
        """Called after the first and the last step; loading a model has a progress of its own, with another total."""
        if total == options["steps"] and value in (1, total):
            if not times:
                start_peak()
            times.append(time.process_time())

    comfy.utils.set_progress_bar_global_hook(tell)
    model = load_sana(folder)
    before = memory("VmRSS")
    lists = {name: [value] for name, value in options.items()}
    conditioning = [[states, {"attention_mask": mask}]]
    lora, *_ = TrainLoraNode.execute(
        model=[model], latents=[{"samples": latent}], positive=[conditioning], **lists
    ).result
    trained = sum(value.numel() for value in lora.values() if isinstance(value, torch.Tensor))
    seconds = (times[-1] - times[0]) / steps
    return {"seconds": seconds, "peak": memory("VmHWM") - before, "trained": trained}


def measure(name: str, folder: str, size: int, steps: int) -> dict[str, float]:
    """One implementation in this process."""
    again = name.endswith(AGAIN)
    name = name.removesuffix(AGAIN)
    if name == "the host":
        return of_host(folder, size, again, steps)
    step, trained = (of_ours if name == "ours" else of_diffusers)(folder, size, again)
    before = memory("VmRSS")
    step()
    start_peak()
    started = time.process_time()
    for _ in range(steps):
        step()
    seconds = (time.process_time() - started) / steps
    return {"seconds": seconds, "peak": memory("VmHWM") - before, "trained": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TRANSFORMERS, default="0.6B")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--size", type=int, default=1024, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=2, help="that are timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    stop_politely()
    prepare_imports()
    import torch

    torch.set_num_threads(1)
    if given.only:
        give_back(measure(*given.only, given.size, given.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, given.model, given.blocks)

        def one(name: str) -> dict[str, float]:
            options = "--size", given.size, "--steps", given.steps, "--only", name, folder
            return in_a_process("training", *options, environment=ALLOCATOR | {"OMP_NUM_THREADS": "1"})

        rounds = in_turns(IMPLEMENTATIONS, given.rounds, one)
    write(heading(COLUMNS))
    for name in IMPLEMENTATIONS:
        again = name.endswith(AGAIN)
        cells = f"{middle(rounds, name, 'seconds'):.2f}", f"{ratio(rounds, name, to='ours' + AGAIN * again):.2f}"
        peak, trained = middle(rounds, name, "peak") / 2**20, middle(rounds, name, "trained")
        write(row((name.removesuffix(AGAIN), "yes" if again else "no", *cells, f"{peak:.0f}", f"{trained:,.0f}")))


if __name__ == "__main__":
    main()
