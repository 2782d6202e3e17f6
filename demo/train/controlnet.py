"""Trains the demo's scribble ControlNet: `python -m demo.train.controlnet [--minutes M]`. Resumes where it was stopped.

NVIDIA's wiring: the first blocks of the frozen base are copied and read the scribble's latent; layers that begin as
zero lead into the base's blocks. The pictures are renderings whose things are moved, scaled, turned and stretched at
will and whose captions tell neither size nor place, so that the scribble alone says where and how large. Scribbles are
made by the function of SANA Scribble from the edges of the rendering, in every thickness. Making the pictures takes a
quarter of an hour on two cores, once, and the training an hour.

`--sprint` goes on from the trained one with the demo's SANA-Sprint as the base: from every noise level it predicts the
rendering itself, which text and scribble determine all but wholly. `--export` writes the trained ones and ends.
"""

import argparse
import dataclasses
import functools
import logging
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .captions import with_article
from .data import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    PLACES,
    REACH,
    RUNS,
    SIDE,
    THING_NAMES,
    fill,
    is_held_out,
    load_sprites,
    paste,
    to_model,
)
from .english import english_name
from .loop import DEVICE, Run, autocast, load_ema, save_atomically, to_device
from .muon import Muon
from .pack import CHECKPOINT, CONTROLNET_CHECKPOINT, SPRINT_CHECKPOINT, SPRINT_CONTROLNET_CHECKPOINT, prepare_imports

prepare_imports()

from sana_native.models.controlnet.config import NVLABS, ControlNetConfig, kind_of  # noqa: E402
from sana_native.models.controlnet.convert import to_nvidia_layout  # noqa: E402
from sana_native.models.controlnet.detection import HEADS, TRAINED_FOR, WIRING  # noqa: E402
from sana_native.models.controlnet.model import SanaControl  # noqa: E402
from sana_native.models.controlnet.scribble import EDGE_MAP, MAX_THICKNESS, scribble  # noqa: E402
from sana_native.models.dc_ae.config import SANA_LATENT_SCALE  # noqa: E402
from sana_native.models.dc_ae.loader import load_dc_ae  # noqa: E402
from sana_native.models.files.family import open_as  # noqa: E402
from sana_native.models.gemma.loader import load_gemma  # noqa: E402
from sana_native.models.gemma.text_encoder import encode_prompts  # noqa: E402
from sana_native.models.sana import loader as sana_loader  # noqa: E402
from sana_native.models.sana.model import Sana  # noqa: E402

FOLDER, SPRINT_FOLDER = RUNS / "controlnet", RUNS / "controlnet_sprint"
BLOCKS = 3  # copied
SCENES, HELD_OUT = 12_000, 256  # renderings, of which the last are not trained on
SPRITE = 160  # px; the largest thing
SCALES, STRETCH, TURN = (0.3, 1.0), 1.3, 20  # shares of SPRITE, ratio of the sides, degrees
BATCH, THREADS = 32, 2
PEAK = 1e-3
CORNERS = (-SPRITE // 4, SIDE - 3 * SPRITE // 4)  # px; where a thing's square may begin
DROPOUT = 0.1  # how often the caption is replaced by the empty one
GUIDANCE = (1.5, 6.0)  # scales of SANA-Sprint
HUBER = 0.3  # in units of the latent: above it an error counts linearly
EDGE_GAIN = 4.0  # a step of a quarter of the range is a full edge
LARGEST = 8e6  # bytes of the exported weights
CAPTIONS = (
    "{things} on a {background} background",
    "{things}, {background} background",
    "a picture of {things} on {background}",
    "draw {things}, {background} background",
)


# Pictures and scribbles


def draw_shape(sprite: Tensor, rng: random.Random) -> Tensor:
    """A thing (4, SPRITE, SPRITE) scaled, stretched, turned and perhaps mirrored, in the same square."""
    scale = rng.uniform(*SCALES)
    stretch = STRETCH ** rng.uniform(-0.5, 0.5)
    angle = math.radians(rng.uniform(-TURN, TURN))
    mirror = rng.choice((-1, 1))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ torch.diag(torch.tensor([mirror / (scale * stretch), stretch / scale]))
    theta = torch.cat([matrix, torch.zeros(2, 1)], dim=1)[None]
    grid = F.affine_grid(theta, [1, 4, SPRITE, SPRITE], align_corners=False)
    premultiplied = torch.cat([sprite[:3] * sprite[3:], sprite[3:]])[None]
    out = F.grid_sample(premultiplied, grid, mode="bilinear", align_corners=False)[0]
    return torch.cat([out[:3] / out[3:].clamp_min(1e-4), out[3:]])


def nearest_place(x: int, y: int) -> str:
    """The place whose centre is the nearest to that of a thing at this corner."""
    ways = tuple(max(-1, min(1, round((corner + (SPRITE - SIDE) // 2) / REACH))) for corner in (x, y))
    return next(place for place, own in PLACES.items() if own == ways)


def draw_picture(rng: random.Random, sprites: dict) -> tuple[Tensor, str]:
    """A rendering (3, SIDE, SIDE) of one or two things wherever they fall, and a caption that does not tell where.

    No combination that is held out from the training of the base.
    """
    while True:
        background, things = rng.choice(BACKGROUND_NAMES), rng.sample(THING_NAMES, rng.choice((1, 1, 2)))
        corners = [(rng.randint(*CORNERS), rng.randint(*CORNERS)) for _ in things]
        placed = zip(things, corners, strict=True)
        if not any(is_held_out(thing, nearest_place(*corner), background) for thing, corner in placed):
            break
    picture = fill(BACKGROUNDS[background])
    for thing, corner in zip(things, corners, strict=True):
        paste(picture, draw_shape(sprites[thing, SPRITE], rng), *corner)
    named = " and ".join(with_article(english_name(thing, rng), thing) for thing in things)
    return picture, rng.choice(CAPTIONS).format(things=named, background=background)


def soft_edges(picture: Tensor) -> Tensor:
    """What an edge detector gives: the largest step of any channel, pictures (B, 3, H, W) -> (B, H, W, 1) in [0, 1]."""
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    edges = torch.maximum(across, down).amax(dim=1, keepdim=True)
    return (EDGE_GAIN * F.max_pool2d(edges, 5, 1, 2)).clamp(0, 1).movedim(1, -1)


def draw_scribble(picture: Tensor, thickness: int = 2) -> Tensor:
    """The scribble (H, W, 3) of a picture (3, H, W), white on black."""
    return scribble(soft_edges(picture[None]), EDGE_MAP, thickness)[0]


def make_pairs(base: Path, count: int) -> dict[str, Tensor]:
    """Scaled latents of pictures and of their scribbles (S, 32, h, w), and context (S, L, C) and mask (S, L)."""
    vae, clip = (load(str(base), {"dtype": torch.float32}) for load in (load_dc_ae, load_gemma))
    autoencoder, sprites = vae.first_stage_model.to(DEVICE), load_sprites((SPRITE,))

    def make(start: int) -> tuple[list[Tensor], list[str]]:
        rng = random.Random(f"controlnet {start}")
        drawn = [draw_picture(rng, sprites) for _ in range(start, min(start + 16, count))]
        pictures = torch.stack([picture for picture, _ in drawn])
        hints = torch.stack([draw_scribble(picture, rng.randint(0, MAX_THICKNESS)) for picture in pictures])
        both = torch.cat([pictures, hints.movedim(-1, 1)]).to(DEVICE)
        with torch.inference_mode(), autocast():  # a thread's own
            latents = (autoencoder.encode(to_model(both)) * SANA_LATENT_SCALE).bfloat16().cpu()
        return list(latents.chunk(2)), [caption for _, caption in drawn]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(make, range(0, count, 16)))
    captions = [caption for _, own in parts for caption in own]
    context, mask = encode(clip, captions)
    return {
        "latents": torch.cat([latents[0] for latents, _ in parts]).clone(),
        "hints": torch.cat([latents[1] for latents, _ in parts]).clone(),
        "context": context,
        "mask": mask,
    }


@torch.inference_mode()
def encode(clip, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Context (P, L, C) in bfloat16 and mask (P, L); L is the longest of them."""
    rows = [encode_prompts(clip, caption, "")[0][0] for caption in captions]
    masks = torch.cat([row[1]["attention_mask"] for row in rows])
    length = int(masks.sum(dim=1).max())
    return torch.cat([row[0][:, :length].bfloat16() for row in rows]).clone(), masks[:, :length].clone()


def load_pairs(base: Path, count: int) -> dict[str, Tensor]:
    """The pairs, made at the first call and kept in the runs folder."""
    path = FOLDER / f"pairs_{count}.pt"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        save_atomically(make_pairs(base, count), path)
    return torch.load(path, weights_only=True)


# The networks


def load_base(checkpoint: Path) -> Sana:
    """The frozen transformer of an exported checkpoint, plain and in float32."""
    opened = open_as(sana_loader.SANA, str(checkpoint))
    config, _, _ = sana_loader.configure(opened, {})
    network = Sana(config, operations=nn)
    network.load_state_dict({name: tensor.float() for name, tensor in opened.state_dict.items()})
    return network.eval().requires_grad_(False).to(DEVICE)


def build(base: Sana) -> SanaControl:
    """A ControlNet for the base that changes nothing yet: its output layers are zero.

    The scribble enters whole at once. NVIDIA's input layer begins at zero as well, and for the short run here is the
    slowest to learn then: after 85 steps the scribble of another picture did as well.
    """
    config = ControlNetConfig(
        dataclasses.replace(base.config, depth=BLOCKS),
        NVLABS,
        own_embeddings=False,
        trained_for=(kind_of(base.config),),
    )
    control = SanaControl(config, operations=nn)
    for own, copied in zip(control.transformer_blocks, base.transformer_blocks):  # the base has more
        own.load_state_dict(copied.state_dict())
    nn.init.eye_(control.input_block.weight)
    for parameter in (control.input_block.bias, *control.controlnet_blocks.parameters()):
        nn.init.zeros_(parameter)
    return control.to(DEVICE)


def predict(base: Sana, control: SanaControl | None, hint: Tensor, *given: Tensor | None) -> Tensor:
    """The velocity (B, 32, h, w), without a ControlNet where there is none.

    given: noisy latent, time, context, mask and guidance, as `Sana` takes them.
    """
    x, *rest = given
    with autocast():
        residuals = None if control is None else control(x, hint, *rest, base=base)
        return base(x, *rest, control=residuals).float()


def draw_sigmas(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels (B,) in (0, 1): logit-normal bent by the shift, one in ten uniform."""
    u = torch.where(
        torch.rand(count, generator=generator) < 0.1,
        torch.rand(count, generator=generator).clamp(0.001, 0.999),
        torch.randn(count, generator=generator).sigmoid(),
    )
    return shift * u / (1 + (shift - 1) * u)


def compute_loss(base: Sana, control: SanaControl | None, pairs: dict[str, Tensor], rows: Tensor, seed: int) -> Tensor:
    """SANA: the velocity's mean square error. SANA-Sprint: pseudo-Huber distance of what it denoises to."""
    generator, count = torch.Generator().manual_seed(seed), len(rows)
    latent, hint, context = (pairs[name][rows].float() for name in ("latents", "hints", "context"))
    mask = pairs["mask"][rows].clone()
    mask[torch.rand(count, generator=generator) < DROPOUT, 1:] = 0  # of the empty prompt only BOS is seen
    is_sprint = base.config.guidance_embeds
    sigma = draw_sigmas(count, 3.0 if is_sprint else base.config.shift, generator)
    if is_sprint:
        sigma[: count // 3] = 1.0  # where every picture of few steps begins
    noise = torch.randn(latent.shape, generator=generator)
    scale = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * torch.rand(count, generator=generator)
    latent, hint, context, mask, sigma, noise, scale = to_device(latent, hint, context, mask, sigma, noise, scale)
    x = torch.lerp(latent, noise, sigma[:, None, None, None])
    if not is_sprint:
        velocity = predict(base, control, hint, x, (1000 * sigma).floor(), context, mask, None)
        return (velocity - (noise - latent)).square().mean()
    velocity = predict(base, control, hint, x, sigma, context, mask, scale)
    denoised = x - sigma[:, None, None, None] * velocity
    square = (denoised - latent).square().mean(dim=(1, 2, 3))
    return ((square + HUBER**2).sqrt() - HUBER).mean()


# The run and what is left of it


def export(folder: Path, base: Path, out: Path) -> int:
    """Writes a trained ControlNet in NVIDIA's names, in bfloat16; returns its bytes, which are at most LARGEST."""
    control = load_ema(build(load_base(base)), folder)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in to_nvidia_layout(control.state_dict()).items()}
    size = sum(tensor.nbytes for tensor in weights.values())
    if size > LARGEST:
        raise ValueError(f"The ControlNet has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:g}: copy fewer blocks.")
    config = control.config
    metadata = {
        "format": "pt",
        TRAINED_FOR: ",".join(config.trained_for),
        WIRING: config.wiring,
        HEADS: str(config.blocks.num_cross_attention_heads),
    }
    path = out / "controlnet" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata)
    return size


def export_all(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for folder, base, out in (
        (FOLDER, args.base, CONTROLNET_CHECKPOINT),
        (SPRINT_FOLDER, args.sprint_base, SPRINT_CONTROLNET_CHECKPOINT),
    ):
        if (folder / "ema.pt").exists():
            logging.info("%s: %.2f MB", out.name, export(folder, base, out) / 1e6)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    pairs = load_pairs(args.base, args.scenes)
    trained = len(pairs["mask"]) - min(HELD_OUT, len(pairs["mask"]) // 4)
    base = load_base(args.sprint_base if args.sprint else args.base)
    control = build(base)
    if args.sprint:
        control.load_state_dict(load_ema(build(base), FOLDER).state_dict())
    peak = PEAK / 2 if args.sprint else PEAK
    folder = SPRINT_FOLDER if args.sprint else FOLDER
    run = Run(folder, control, args.minutes, peak, decay=0.998, optimizer=Muon(control, peak))

    def loss(seed: int) -> tuple[Tensor, str]:
        rows = torch.randint(trained, (BATCH,), generator=torch.Generator().manual_seed(-1 - seed))
        value = compute_loss(base, control, pairs, rows, seed)
        return value, f"loss {value.item():.4f}"

    def losses(step: int) -> list:
        return [functools.partial(loss, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        rows = torch.arange(trained, len(pairs["mask"]))
        others = pairs | {"hints": pairs["hints"].roll(1, dims=0)}
        with run.with_ema():
            found = [
                compute_loss(base, one, given, rows, -1).item()
                for one, given in ((control, pairs), (control, others), (None, pairs))
            ]
        return "held-out loss {:.4f}, with another's scribble {:.4f}, without control {:.4f}".format(*found)

    run.log(f"before: {evaluate()}")
    with sdpa_kernel(SDPBackend.MATH):
        run.train(losses, evaluate, every=args.every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=4, help="minutes between evaluations")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--base", type=Path, default=CHECKPOINT, help="an exported SANA with its other parts")
    parser.add_argument("--sprint-base", type=Path, default=SPRINT_CHECKPOINT, help="an exported SANA-Sprint")
    parser.add_argument("--sprint", action="store_true", help="fine-tune the trained one for SANA-Sprint")
    parser.add_argument("--export", action="store_true", help="write what is trained and end")
    args = parser.parse_args()
    (export_all if args.export else train)(args)


if __name__ == "__main__":
    main()
