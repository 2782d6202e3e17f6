"""Whether the pack's own trainer betters the demo model by training all weights: `python -m demo.measure finetune`.

The pictures are new renderings in trained combinations and trained wordings, three in four of them of two things. The
loss is of held-out combinations in held-out wordings, which are never trained.
"""

import random
import sys
from pathlib import Path

import comfy.model_management
from sana_native.models.sana.loader import load_sana
from sana_native.training.dataset import SetOptions, read_folder
from sana_native.training.encode import EncodedSet, encode_set
from sana_native.training.network import training_mode
from sana_native.training.optimizer import COSINE
from sana_native.training.record import Report
from sana_native.training.settings import AVERAGED, MODEL, RunFiles, Settings, with_ending
from sana_native.training.trainer import Trainer, train
from torchvision.transforms.functional import to_pil_image

from .judge import shares
from .train.captions import draw_caption
from .train.data import SIDE, Scene, draw_facing_scene, draw_scene, load_sprites, render

SETTINGS = Settings(
    target=MODEL, steps=1000, batch_size=32, learning_rate=5e-5, schedule=COSINE, warmup=100, ema=0.998,
    weight_decay=0.0, checkpointing=False, save_every=250,
)  # fmt: skip
PICTURES, SEED = 6400, 2_000_003
TOLD_EVERY = 50  # steps
HELD_OUT_PICTURES, HELD_OUT_SEED = 100, 2_000_029  # of each number of things


def draw_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Different scenes of trained combinations: one in four has one thing, one in eight two that face each other."""
    scenes: dict[tuple, Scene] = {}
    while len(scenes) < count:
        kind = len(scenes) % 8
        scene = draw_facing_scene(rng) if kind == 7 else draw_scene(rng, count=1 if kind < 2 else 2)
        scenes.setdefault((scene.background, frozenset(scene.items)), scene)
    return list(scenes.values())


def write_pictures(folder: Path, scenes: list[Scene], rng: random.Random, held_out: bool = False) -> None:
    """Renderings and captions of scenes as a folder to train on; a picture that is there is not drawn again."""
    folder.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites()
    for number, scene in enumerate(scenes):
        caption, file = draw_caption(scene, rng, held_out=held_out), folder / f"{number:05}.png"
        if not file.exists():
            file.with_suffix(".txt").write_text(caption.text + "\n", encoding="utf-8")
            unfinished = file.with_suffix(".part")
            to_pil_image(render(scene, sprites)).save(unfinished, "PNG")
            unfinished.replace(file)


def encode(painter, pictures: Path, cache: Path) -> EncodedSet:
    """The pictures' latents and text states by the demo's own autoencoder and text encoder."""
    found = read_folder(str(pictures), SetOptions(size=SIDE, bins=False))
    return encode_set(found, painter.vae, painter.clip, True, str(cache), lambda *_: None)


def encode_training_set(painter, folder: Path) -> EncodedSet:
    rng = random.Random(SEED)
    write_pictures(folder / "pictures", draw_scenes(PICTURES, rng), rng)
    return encode(painter, folder / "pictures", folder / "cache")


def encode_held_out(painter, folder: Path, things: int) -> EncodedSet:
    rng, pictures = random.Random(HELD_OUT_SEED + things), folder / f"held_out_{things}"
    write_pictures(pictures, [draw_scene(rng, True, things) for _ in range(HELD_OUT_PICTURES)], rng, held_out=True)
    return encode(painter, pictures, folder / "cache")


def tell(_: Trainer, report: Report) -> None:
    """Says how far the training is; not where the table is printed."""
    if report.step % TOLD_EVERY == 0:
        sys.stderr.write(f"step {report.step} of {report.steps}, {report.seconds_left / 60:.0f} min left\n")


def finetune(painter, data: EncodedSet, folder: Path, settings: Settings) -> str:
    """Trains all weights, or goes on with a run that was stopped. Returns the file of their average."""
    files = RunFiles(str(folder / "run" / "state.safetensors"), str(folder / "model.safetensors"))
    train(painter.patcher, data, settings, files, tell, resume=Path(files.state).is_file(), base="demo")
    return with_ending(files.result, AVERAGED)


def apply(painter, model: str) -> None:
    """Gives a painter another model's weights."""
    painter.patcher = load_sana(model, {"dtype": next(painter.network.parameters()).dtype})
    comfy.model_management.load_models_gpu([painter.patcher], force_full_load=True)
    painter.network = painter.patcher.model.diffusion_model


def fixed_loss(painter, data: EncodedSet) -> float:
    """Mean loss of all pictures of a set at the trainer's fixed levels and noises."""
    with training_mode():
        row = Trainer(painter.patcher, data, SETTINGS, RunFiles("", "")).losses.at_fixed_noises(data.samples)
    return sum(row) / len(row)


def measure_tuning(bench, cases: dict[int, list], table, folder: Path, settings: Settings, **options) -> dict:
    """Rows of a table before and after the training, for prompts by their number of things.

    Returns, by the same number, whether each picture was right before and is after, of the same noise.
    """
    painter, right = bench.painter, {}
    held_out = {things: encode_held_out(painter, folder, things) for things in cases}
    for model in ("before", "after"):
        if model == "after":
            apply(painter, finetune(painter, encode_training_set(painter, folder), folder, settings))
        for things, own in cases.items():
            rows = bench.mark(own, bench.paint(own, **options))
            right[things, model] = [row["all"] for row in rows]
            table.add(things, model, f"{fixed_loss(painter, held_out[things]):.4f}", **shares(rows))
    return {n: list(zip(right[n, "before"], right[n, "after"], strict=True)) for n in cases}


def describe_change(cases: list, pairs: list[tuple[bool, bool]]) -> str:
    """How many pictures became right and wrong, and how many are right where the prompt tells no place."""
    free = [pair for case, pair in zip(cases, pairs, strict=True) if not any(place for *_, place in case.caption.items)]
    before, after = (sum(column) for column in zip(*free, strict=True)) if free else (0, 0)
    return (
        f"Of {len(pairs)} pictures {pairs.count((False, True))} became right and {pairs.count((True, False))} wrong; "
        f"of {len(free)} whose prompt tells no place {before} were right, and {after} are."
    )
