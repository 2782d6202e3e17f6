"""Distils the demo's SANA-Sprint from its SANA: `python -m demo.train.sprint [--minutes M]`. Resumes where it stopped.

Consistency distillation with embedded guidance: from every point of a trajectory that the guided teacher draws from
noise to latent, the student predicts where that trajectory ends. The teacher is cheap here, so whole trajectories are
drawn once and are the target themselves; SANA-Sprint instead trains on the tangent of the student's own prediction
(continuous-time consistency, arXiv 2503.09641 section 3.2) and adds a discriminator. The interface is the same: time
and guidance scale are embedded, and denoised = x - sigma * velocity at every sigma = sin t / (sin t + cos t) of
TrigFlow's angle t.
"""

import argparse
import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import transformer
from .data import RUNS
from .guided import GuidedSana
from .loop import DEVICE, Run, autocast, load_ema, to_device
from .muon import Muon
from .transformer import Sana, compile_for_threads, load_once
from .warm import read_part

from comfy.ldm.modules.diffusionmodules.util import timestep_embedding  # noqa: E402, I001 - after the imports above
from sana_native.samplers.flow_dpm import sample_flow_dpm  # noqa: E402
from sana_native.samplers.schedules import get_sigmas_flow_dpm  # noqa: E402

FOLDER = RUNS / "sprint"
CONFIG = dataclasses.replace(transformer.CONFIG, guidance_embeds=True)
STEPS = 12  # of the teacher's solver
GUIDANCE = (1.5, 6.0)  # scales drawn for the trajectories
FILES, TRAJECTORIES = 6, 800  # files of trajectories, and how many are in each
HELD_OUT = 256  # trajectories of the last file that are not trained on
BATCH, THREADS = 64, 2
FIRST = 0.35  # how often the point is the trajectory's first, pure noise, where every picture begins
PEAK = 1e-3
HUBER = 0.3  # in units of the latent: above it an error counts linearly
TIME_STEPS = 1500  # of fitting the new time embedding to the teacher's


def build(operations=nn) -> Sana:
    return Sana(CONFIG, operations=operations)


def fit_time_embedding(student: Sana, teacher: Sana) -> None:
    """The student embeds sigma in [0, 1] where the teacher embeds 1000 sigma: fits the one to the other."""
    new, old = student.time_embed.timestep_embedder, teacher.time_embed.emb.timestep_embedder
    optimizer = torch.optim.AdamW(new.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(TIME_STEPS):
        sigma = torch.rand(512, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        sigma[:64] = 1.0
        target = old(timestep_embedding(1000 * sigma, 256)).detach()
        loss = F.mse_loss(new(timestep_embedding(sigma, 256)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def from_teacher(teacher: Sana) -> Sana:
    """A student with the teacher's weights; its time embedding fits the teacher's, its guidance embedding is silent."""
    student = build().to(DEVICE)
    missing = student.load_state_dict(teacher.state_dict(), strict=False).missing_keys
    assert all("time_embed" in key for key in missing)
    nn.init.zeros_(student.time_embed.guidance_embedder.linear_2.weight)
    nn.init.zeros_(student.time_embed.guidance_embedder.linear_2.bias)
    fit_time_embedding(student, teacher)
    return student


def from_sprint(teacher: Sana, old_teacher: Path, old_sprint: Path) -> Sana:
    """A student with the weights of an exported Sprint, moved as far as its teacher has moved since."""
    student, moved = build().to(DEVICE), read_part("transformer", old_sprint)
    old, new = read_part("transformer", old_teacher), teacher.state_dict()
    for name in old.keys() & moved.keys():  # all but the embedding of time, which the two have not in common
        moved[name] += new[name].cpu() - old[name]
    student.load_state_dict(moved)
    return student


def trajectory_sigmas() -> Tensor:
    """The STEPS + 1 noise levels of a trajectory; the first is the grid's 0.9997, which starts from pure noise."""
    sigmas = get_sigmas_flow_dpm(STEPS, transformer.SHIFT)
    sigmas[0] = 1.0
    return sigmas


@torch.no_grad()
def draw_trajectories(seed: int, count: int, teacher: Sana, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Points (B, STEPS + 1, 32, 8, 8) of trajectories from noise to latent, their caption's number and their scale."""
    generator = torch.Generator().manual_seed(seed)
    caption = torch.randint(len(texts["mask"]), (count,), generator=generator)
    scale = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(count, generator=generator)
    context, mask = texts["context"][caption].float(), texts["mask"][caption]
    model = GuidedSana(teacher, *to_device(context, mask, scale))
    noise, points = torch.randn(count, 32, 8, 8, generator=generator).to(DEVICE), []
    sigmas = get_sigmas_flow_dpm(STEPS, transformer.SHIFT)
    latent = sample_flow_dpm(model, noise, sigmas, callback=lambda state: points.append(state["x"]), disable=True)
    points.append(latent)
    return {"points": torch.stack(points, dim=1).bfloat16().cpu(), "caption": caption, "scale": scale}


def make_trajectories(number: int, teacher: Sana, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trajectories of one file."""
    part = 50

    def draw(index: int) -> dict[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            return draw_trajectories(1000 * number + index, part, teacher, texts)

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(draw, range(TRAJECTORIES // part)))
    return {name: torch.cat([own[name] for own in parts]) for name in parts[0]}


def load_trajectories(teacher: Sana, texts: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """All trajectories, drawn at the first call."""
    files = [
        load_once(f"trajectories_{number}", functools.partial(make_trajectories, number, teacher, texts), FOLDER)
        for number in range(count)
    ]
    return {name: torch.cat([file[name] for file in files]) for name in files[0]}


def draw_points(points: Tensor, sigmas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A point x (B, 32, 8, 8) of each trajectory (B, STEPS + 1, 32, 8, 8) and its sigma (B,).

    Between two points of a trajectory it runs almost straight, so that every sigma is seen.
    """
    count = len(points)
    level = torch.randint(STEPS, (count,), generator=generator)
    part = torch.rand(count, generator=generator)
    first = torch.rand(count, generator=generator) < FIRST
    level[first], part[first] = 0, 0.0
    rows = torch.arange(count)
    x = torch.lerp(points[rows, level].float(), points[rows, level + 1].float(), part[:, None, None, None])
    return x, torch.lerp(sigmas[level], sigmas[level + 1], part)


def pseudo_huber(difference: Tensor) -> Tensor:
    """Mean over the batch of sqrt(mean square + HUBER^2) - HUBER of each latent."""
    square = difference.square().mean(dim=(1, 2, 3))
    return ((square + HUBER**2).sqrt() - HUBER).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--start", type=Path, nargs=2, help="an exported SANA and the Sprint distilled from it")
    parser.add_argument("--files", type=int, default=FILES, help=f"of {TRAJECTORIES} trajectories each")
    parser.add_argument("--eager", action="store_true", help="do not compile: worth it for short runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    _, texts = transformer.load_data()
    teacher = load_ema(transformer.build(), transformer.FOLDER)
    trajectories, sigmas = load_trajectories(teacher, texts, args.files), trajectory_sigmas()
    trained = len(trajectories["scale"]) - HELD_OUT
    student = from_sprint(teacher, *args.start) if args.start else from_teacher(teacher)
    run = Run(FOLDER, student, args.minutes, PEAK, decay=0.998, optimizer=Muon(student, PEAK))
    compiled = student if args.eager else compile_for_threads(student)

    def compute_loss(seed: int, network: nn.Module = compiled, held_out: bool = False) -> tuple[Tensor, str]:
        generator = torch.Generator().manual_seed(seed)
        if held_out:
            chosen = torch.arange(trained, trained + HELD_OUT)
        else:
            chosen = torch.randint(trained, (BATCH,), generator=generator)
        points, scale = trajectories["points"][chosen], trajectories["scale"][chosen]
        context, mask = (texts[name][trajectories["caption"][chosen]] for name in ("context", "mask"))
        x, sigma = draw_points(points, sigmas, generator)
        end = points[:, -1].float()
        x, sigma, context, mask, scale, end = to_device(x, sigma, context.float(), mask, scale, end)
        with autocast():
            velocity = network(x, sigma, context, mask, guidance=scale)
        loss = pseudo_huber(x - sigma[:, None, None, None] * velocity.float() - end)
        return loss, f"loss {loss.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        average = build().to(DEVICE).eval()
        average.load_state_dict(run.ema)
        return compute_loss(-1, average, held_out=True)[1]

    with sdpa_kernel(SDPBackend.MATH):
        run.train(losses, evaluate, every=3)


if __name__ == "__main__":
    main()
