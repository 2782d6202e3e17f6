"""Prints the tables of demo/README.md, one command each: `python -m demo.measure autoencoder|prompts|solvers|...`.

Prompts are drawn from seeds, combinations and wordings that training never saw; what a picture shows is decided by
`judge.py`. Every command takes --count pictures a row; what it prints is Markdown. --plot draws `solvers`, `cfg` and
the pictures of `wordings` and `control`.
"""

import argparse
import io
import json
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .generate import CHUNK, Painter
from .judge import Judge, marks, overlap, shares
from .train.captions import LANGUAGES, Caption, draw_caption, draw_form_caption, with_article
from .train.data import draw_scene, load_sprites, psnr, render
from .train.pack import CHECKPOINT, CONTROLNET_CHECKPOINT, ROOT, SPRINT_CHECKPOINT, SPRINT_CONTROLNET_CHECKPOINT

PROMPT_SEED = 1_000_003  # prompts and noise of the measurements; training draws from other numbers
BEST_CFG, STEPS = 4.5, 20
EXACT_STEPS = 200  # of the solution that others are measured against
CONTROL_STEPS = {"SANA": STEPS, "SANA-Sprint": 2}
CONTROL_STRENGTHS = {"SANA": (0.0, 0.7, 1.0), "SANA-Sprint": (0.0, 0.5, 1.0)}  # 0: no control
MARKS = ("thing", "place", "size", "background", "all")
WORDINGS = ROOT / "demo" / "wordings.json"  # prompts as people write them, and what they tell
NOISES = 3  # pictures of each of them


@dataclass(frozen=True)
class Case:
    """A caption and the seed of its noise."""

    caption: Caption
    seed: int


def draw_cases(
    count: int, things: int, language: str | None = None, held_out: bool = True, seed: int = 0
) -> list[Case]:
    """Cases of held-out combinations in held-out wordings, or of trained ones in trained wordings."""
    rng = random.Random(PROMPT_SEED + seed)
    scenes = [draw_scene(rng, held_out, things) for _ in range(count)]
    captions = [draw_caption(scene, rng, language, held_out) for scene in scenes]
    return [Case(caption, PROMPT_SEED + i) for i, caption in enumerate(captions)]


def draw_mixed_cases(count: int) -> list[Case]:
    """`count` cases of one thing and as many of two."""
    return draw_cases(count, 1) + draw_cases(count, 2)


def load_wordings() -> list[Case]:
    """The free wordings of `wordings.json`."""
    rows = json.loads(WORDINGS.read_text(encoding="utf-8"))
    captions = [Caption(row["text"], row["background"], tuple(map(tuple, row["items"]))) for row in rows]
    return [Case(caption, PROMPT_SEED + 5000 + i) for i, caption in enumerate(captions)]


def draw_form_cases(count: int, things: int) -> list[Case]:
    """Cases of held-out combinations in sentence forms that training never saw."""
    rng = random.Random(PROMPT_SEED + 1)
    captions = [draw_form_caption(draw_scene(rng, True, things), rng) for _ in range(count)]
    return [Case(caption, PROMPT_SEED + 6000 + i) for i, caption in enumerate(captions)]


class Bench:
    """A painter and a judge, and the share of right pictures that they give together."""

    def __init__(self, checkpoint: Path, controlnet: Path | None = None):
        self.painter, self.judge = Painter(checkpoint, controlnet), Judge()

    def paint(self, cases: list[Case], **options) -> Tensor:
        return self.painter.paint([case.caption.text for case in cases], [case.seed for case in cases], **options)

    def paint_latents(self, cases: list[Case], hints: Tensor | None = None, **options) -> Tensor:
        prompts, seeds = [case.caption.text for case in cases], [case.seed for case in cases]
        parts = [slice(start, start + CHUNK) for start in range(0, len(cases), CHUNK)]
        own = (None if hints is None else hints[part] for part in parts)
        return torch.cat(
            [
                self.painter.paint_latents(prompts[part], seeds[part], hints=hint, **options)
                for part, hint in zip(parts, own, strict=True)
            ]
        )

    def mark(self, cases: list[Case], pictures: Tensor) -> list[dict[str, bool]]:
        return [marks(case.caption, self.judge.look(p)) for case, p in zip(cases, pictures, strict=True)]

    def rate(self, cases: list[Case], pictures: Tensor) -> dict[str, float]:
        return shares(self.mark(cases, pictures))

    def score(self, cases: list[Case], **options) -> dict[str, float]:
        return self.rate(cases, self.paint(cases, **options))


@dataclass
class Table:
    """A Markdown table, printed row by row; numbers and shares are kept for a plot."""

    names: tuple[str, ...]
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        say("| " + " | ".join(self.names) + " |\n|" + "---|" * len(self.names))

    def add(self, *cells: object, **marked: float) -> None:
        """A row: the first columns' cells, then the shares of the columns that are named as the marks are."""
        row = dict(zip(self.names, cells, strict=False)) | marked
        self.rows.append(row)
        say("| " + " | ".join(self.show(name, row.get(name, "")) for name in self.names) + " |")

    @staticmethod
    def show(name: str, value: object) -> str:
        if isinstance(value, float):
            return f"{value:.1%}" if name in MARKS else f"{value:.3g}"
        return str(value)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure_autoencoder(args: argparse.Namespace) -> None:
    """Peak signal-to-noise ratio of held-out pictures through the autoencoder and back."""
    vae, sprites, rng = Painter(args.checkpoint).vae, load_sprites(), random.Random(PROMPT_SEED)
    table = Table(("pictures", "mean dB", "worst dB"))
    for things in (1, 2):
        scenes = [draw_scene(rng, True, things) for _ in range(args.count)]
        pictures = torch.stack([render(scene, sprites) for scene in scenes])
        rebuilt = vae.decode(vae.encode(pictures.movedim(1, -1))).movedim(-1, 1)
        decibels = psnr(rebuilt, pictures)
        table.add(f"{things} thing{'s' * (things > 1)}", f"{decibels.mean():.2f}", f"{decibels.min():.2f}")


def measure_prompts(args: argparse.Namespace) -> None:
    """What is right by number of things and language, on held-out prompts; and on trained ones."""
    bench = Bench(args.checkpoint)
    table = Table(("things", "prompts", "language", *MARKS))
    for things in args.things:
        for language in LANGUAGES:
            cases = draw_cases(args.count, things, language)
            table.add(things, "held out", language, **bench.score(cases, steps=args.steps, cfg=args.cfg))
        cases = draw_cases(args.count, things, held_out=False)
        table.add(things, "trained", "all three", **bench.score(cases, steps=args.steps, cfg=args.cfg))


def measure_wordings(args: argparse.Namespace) -> None:
    """Free wordings, each from several noises, and sentence forms that were held out from training."""
    bench, cases = Bench(args.checkpoint), load_wordings()
    options = {"steps": args.steps, "cfg": args.cfg}
    pictures = [
        bench.paint([Case(case.caption, case.seed + 100 * noise) for case in cases], **options)
        for noise in range(NOISES)
    ]
    rows = [[marks(c.caption, bench.judge.look(p)) for c, p in zip(cases, own, strict=True)] for own in pictures]
    table = Table(("prompts", "things", "pictures", *MARKS))
    for things in (1, 2):
        chosen = [row[i] for row in rows for i, case in enumerate(cases) if len(case.caption.items) == things]
        table.add("free wordings", things, len(chosen), **shares(chosen))
    table.add("free wordings", "1 and 2", NOISES * len(cases), **shares(mark for row in rows for mark in row))
    for things in args.things:
        forms = draw_form_cases(args.count, things)
        table.add("held-out sentence forms", things, len(forms), **bench.score(forms, **options))
    wrong = [(i + 1, sum(not row[i]["all"] for row in rows), case) for i, case in enumerate(cases)]
    say(f"\nFree wordings not all right, and of {NOISES} pictures how many:\n")
    for number, times, case in wrong:
        if times:
            say(f"{number}. {case.caption.text}: {times}")
    if args.plot:
        from .gallery import draw_sheet

        draw_sheet(pictures[0]).save(args.plot)


def measure_solvers(args: argparse.Namespace) -> Table:
    """Flow-DPM-Solver beside Euler by steps: what is right, and the distance to a solution of many steps."""
    bench, cases = Bench(args.checkpoint), draw_mixed_cases(args.count)
    exact = bench.paint_latents(cases, steps=EXACT_STEPS, cfg=args.cfg)
    table = Table(("solver", "steps", "distance", *MARKS))
    for solver, counts in (("Flow-DPM", (4, 6, 8, 10, 14, 20, 28)), ("Euler", (8, 14, 20, 28, 50))):
        for steps in counts:
            latents = bench.paint_latents(cases, steps=steps, cfg=args.cfg, solver=solver)
            distance = (latents - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            rates = bench.rate(cases, bench.painter.decode(latents))
            table.add(solver, steps, distance.mean().item(), **rates)
    return table


def measure_cfg(args: argparse.Namespace) -> Table:
    """What is right by guidance scale."""
    bench, cases = Bench(args.checkpoint), draw_mixed_cases(args.count)
    table = Table(("cfg", *MARKS))
    for cfg in (1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0):
        table.add(cfg, **bench.score(cases, steps=args.steps, cfg=cfg))
    return table


def measure_negative(args: argparse.Namespace) -> None:
    """How often a colour is painted when the prompt leaves the background open and the negative prompt names it."""
    bench = Bench(args.checkpoint)
    cases = [Case(Caption(f"a {c.caption.items[0][0]}", None, ()), c.seed) for c in draw_cases(args.count, 1)]
    colours = ("yellow", "blue", "pink")
    table = Table(("negative prompt", *colours))
    for negative in ("", *(f"{colour} background" for colour in colours)):
        pictures = bench.paint(cases, steps=args.steps, cfg=args.cfg, negative_prompt=negative)
        seen = [bench.judge.look(picture).background for picture in pictures]
        table.add(negative or "(none)", *(f"{seen.count(colour) / len(seen):.1%}" for colour in colours))


def measure_sprint(args: argparse.Namespace) -> None:
    """SANA-Sprint by steps, by its second angle and by guidance, beside the teacher."""
    cases = draw_mixed_cases(args.count)
    table = Table(("model", "steps", "second angle", "guidance", *MARKS))
    table.add("SANA", STEPS, "", args.cfg, **Bench(args.checkpoint).score(cases, steps=STEPS, cfg=args.cfg))
    bench = Bench(SPRINT_CHECKPOINT)
    from sana_native.samplers.schedules import get_sigmas_scm

    for steps, angle, guidance in (
        *((steps, 1.3, 4.5) for steps in (1, 2, 4)),
        *((2, angle, 4.5) for angle in (1.0, 1.1, 1.2, 1.4, None)),
        *((2, 1.3, guidance) for guidance in (1.5, 3.0, 6.0)),
    ):
        sigmas = get_sigmas_scm(steps, intermediate_time=angle)
        told = "" if steps != 2 else "even" if angle is None else f"{angle:g}"
        table.add("Sprint", steps, told, guidance, **bench.score(cases, sigmas=sigmas, cfg=guidance))


def draw_control_cases(count: int) -> tuple[list[Case], list[Tensor]]:
    """Held-out combinations of one thing, whose prompts tell neither size nor place, and their renderings."""
    rng, sprites = random.Random(PROMPT_SEED + 2), load_sprites()
    scenes = [draw_scene(rng, True, 1) for _ in range(count)]
    texts = [f"{with_article(s.items[0].thing, s.items[0].thing)} on a {s.background} background" for s in scenes]
    cases = [
        Case(Caption(text, scene.background, ((scene.items[0].thing, None, None),)), PROMPT_SEED + 7000 + i)
        for i, (text, scene) in enumerate(zip(texts, scenes, strict=True))
    ]
    return cases, [render(scene, sprites) for scene in scenes]


def measure_control(args: argparse.Namespace) -> None:
    """What is right with the scribble of a rendering, at several strengths, and how much the silhouettes overlap."""
    from .train.controlnet import SANA_LATENT_SCALE, draw_scribble

    cases, renderings = draw_control_cases(args.count)
    scribbles = torch.stack([draw_scribble(picture) for picture in renderings])
    table = Table(("model", "steps", "strength", "thing", "background", "median IoU", "mean IoU"))
    for name, checkpoint, controlnet in (
        ("SANA", args.checkpoint, CONTROLNET_CHECKPOINT),
        ("SANA-Sprint", SPRINT_CHECKPOINT, SPRINT_CONTROLNET_CHECKPOINT),
    ):
        if not controlnet.is_dir():
            say(f"\n{controlnet.name} is not there: train it with demo.train.controlnet.\n")
            continue
        bench = Bench(checkpoint, controlnet)
        hints = torch.cat([bench.painter.vae.encode(one[None]) for one in scribbles]) * SANA_LATENT_SCALE
        for strength in CONTROL_STRENGTHS[name]:
            options = {"steps": CONTROL_STEPS[name], "cfg": args.cfg, "strength": strength}
            latents = bench.paint_latents(cases, hints=hints if strength else None, **options)
            pictures = bench.painter.decode(latents)
            found = torch.tensor([overlap(a, b) for a, b in zip(pictures, renderings, strict=True)])
            iou = {"median IoU": found.median().item(), "mean IoU": found.mean().item()}
            table.add(name, options["steps"], strength, **bench.rate(cases, pictures), **iou)
            if args.plot:
                from .gallery import draw_sheet

                file = f"{args.plot.stem}_{name}_{strength:g}{args.plot.suffix}"
                draw_sheet(pictures).save(args.plot.with_name(file))


def measure_server(args: argparse.Namespace) -> None:
    """The demo's graphs through the real server: what users get, for as many prompts of both kinds."""
    from sana_native.tools.comfy_server import ComfyServer
    from sana_native.tools.host import PRIVATE, prepare_base
    from sana_native.tools.workflow import set_inputs, to_api

    cases, judge = draw_mixed_cases(args.count // 2), Judge()
    table = Table(("graph", *MARKS))
    with ComfyServer(prepare_base(PRIVATE / "base")) as server:
        for name in ("demo_txt2img", "demo_sprint"):
            graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
            api, rows = to_api(graph, server.object_info()), []
            for case in cases:
                prompt = set_inputs(api, "SanaNativeGemmaEncode", prompt=case.caption.text)
                prompt = set_inputs(prompt, "SanaNativeSampler", seed=case.seed)
                content = server.fetch_image(server.run(prompt, timeout=300).images()[-1])
                pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
                picture = torch.from_numpy(pixels).movedim(-1, 0).float() / 255
                rows.append(marks(case.caption, judge.look(picture)))
            table.add(name, **shares(rows))


def measure_training(args: argparse.Namespace) -> None:
    """A thing that the pack's trainer teaches the demo model by ten pictures, and what it forgets of the others."""
    from .measure_training import draw_new_captions, measure_learning

    captions = draw_new_captions(args.count, PROMPT_SEED + 3)
    new = [Case(caption, PROMPT_SEED + 8000 + i) for i, caption in enumerate(captions)]
    table = Table(("prompts", "training", *MARKS))
    options = {"steps": args.steps, "cfg": args.cfg, "algorithm": args.algorithm}
    pictures = measure_learning(Bench(args.checkpoint), new, draw_cases(args.count, 1), table, **options)
    if args.plot:
        from .gallery import draw_sheet

        draw_sheet(pictures).save(args.plot)


def measure_finetune(args: argparse.Namespace) -> None:
    """Held-out loss and what is right before and after the pack's trainer trains all weights on new renderings."""
    from .measure_finetune import SETTINGS, describe_change, measure_tuning

    given = {"learning_rate": args.learning_rate, "steps": args.training_steps}
    settings = replace(SETTINGS, **{name: value for name, value in given.items() if value is not None})
    cases = {n: [case for one in LANGUAGES for case in draw_cases(args.count, n, one)] for n in args.things}
    table = Table(("things", "training", "held-out loss", *MARKS))
    with tempfile.TemporaryDirectory() as temporary:
        folder, options = args.folder or Path(temporary), {"steps": args.steps, "cfg": args.cfg}
        changes = measure_tuning(Bench(args.checkpoint), cases, table, folder, settings, **options)
    for things, pairs in changes.items():
        say(f"\nThings {things}: {describe_change(cases[things], pairs)}")


COMMANDS: dict[str, Callable] = {
    "autoencoder": measure_autoencoder,
    "prompts": measure_prompts,
    "wordings": measure_wordings,
    "solvers": measure_solvers,
    "cfg": measure_cfg,
    "negative": measure_negative,
    "sprint": measure_sprint,
    "control": measure_control,
    "server": measure_server,
    "training": measure_training,
    "finetune": measure_finetune,
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="a demo SANA in diffusers layout")
    parser.add_argument("--count", type=int, default=100, help="pictures a row, of each number of things")
    parser.add_argument("--things", type=int, nargs="+", default=[1, 2], help="of the prompts, for `prompts`")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=BEST_CFG)
    parser.add_argument("--algorithm", default="LoRA", help="LoRA, DoRA or LoKr, for `training`")
    parser.add_argument("--learning-rate", type=float, help="of `finetune`")
    parser.add_argument("--training-steps", type=int, help="of `finetune`")
    parser.add_argument(
        "--folder", type=Path, help="where `finetune` keeps its run, to go on with at the same settings"
    )
    parser.add_argument("--plot", type=Path, help="where to draw solvers, cfg or the pictures of wordings or control")
    args = parser.parse_args()
    if args.plot and args.what not in ("wordings", "control", "training", "solvers", "cfg"):
        parser.error("--plot draws wordings, control, training, and the tables of solvers and cfg, only")
    table = COMMANDS[args.what](args)
    if args.plot and table:
        from .plots import draw_plot

        draw_plot(args.what, table.rows, args.plot)


if __name__ == "__main__":
    main()
