"""Tiny SANA and SANA-Sprint, loaded once a process by the pack's own loaders, and any node as a plain call."""

import atexit
import copy
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.registry import load_model
from sana_native.models.sana.loader import load_sana
from sana_native.nodes import NODES
from sana_native.samplers.registration import register
from sana_native.tests.support import tiny
from torch import Tensor

import nodes as host_nodes

FAMILIES = ["sana", "sprint"]
OURS = {node.__name__.removeprefix("SanaNative"): node for node in NODES}
register()  # as the pack's entry point does; a second time changes nothing


def shared(load):
    """Loads once a process, to plain tensors whoever asks first: those of inference mode take no edit, no gradient."""
    return cache(torch.inference_mode(False)(load))


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="sana_native_tests_"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    tiny.save_pipeline(path / "sana")
    tiny.transformer(sprint=True).save_pretrained(path / "sprint" / "transformer")
    return path


def fresh_model(family: str, **options):
    """A model of its own, for tests that change weights. options: those of `load_sana`."""
    return load_sana(str(folder() / family), options)


@shared
def model(family: str):
    return fresh_model(family)


@shared
def clip():
    return load_gemma(str(folder() / "sana"))


@shared
def vae():
    return load_dc_ae(str(folder() / "sana"))


@cache
def lumina_folder() -> Path:
    """A tiny Lumina-Next in the released folder layout."""
    tiny.save_lumina_pipeline(folder() / "lumina")
    return folder() / "lumina"


def fresh_lumina():
    return load_model("transformer", str(lumina_folder()))


@shared
def lumina():
    return fresh_lumina()


@shared
def lumina_clip():
    return load_model("text_encoder", str(lumina_folder()))


@atexit.register
def forget() -> None:
    """Models are dropped while the host can still unload them."""
    for cached in (model, clip, vae, lumina, lumina_clip):
        cached.cache_clear()


def call(node: type | str, *args, **inputs) -> tuple:
    """Outputs of a node, run as the host's executor does. A string names a stock node of the host's core."""
    node = host_nodes.NODE_CLASS_MAPPINGS[node] if isinstance(node, str) else node
    with torch.inference_mode():
        if hasattr(node, "execute") and hasattr(node, "define_schema"):
            return node.execute(*args, **inputs).result
        return getattr(node(), node.FUNCTION)(*args, **inputs)


@cache
def encoded(prompt: str = "a cat in a busy city street", negative_prompt: str = "") -> tuple[list, list]:
    return encode(prompt, negative_prompt)


def encode(
    prompt: str, negative_prompt: str = "", instruction: str = "on", custom: str = "", lower_case: bool = False
) -> tuple:
    return call(OURS["GemmaEncode"], clip(), prompt, negative_prompt, instruction, custom, lower_case)


def empty(width: int = 128, height: int = 128, batch_size: int = 1) -> dict[str, Any]:
    return call(OURS["EmptyLatent"], "custom", "1:1", width, height, batch_size)[0]


def draw(
    model,
    conds: tuple[list, list],
    latent: dict | None = None,
    *,
    seed: int = 7,
    steps: int = 2,
    cfg: float | None = None,
    denoise: float = 1.0,
) -> Tensor:
    """Latent from our sampler block; cfg is 4.5, for Sprint 1, unless given."""
    cfg = (1.0 if model.model.is_sprint else 4.5) if cfg is None else cfg
    return call(OURS["Sampler"], model, *conds, latent or empty(), seed, steps, cfg, denoise)[0]["samples"]


def ksampler(
    model,
    conds: tuple[list, list],
    latent: dict | None = None,
    *,
    seed: int = 7,
    steps: int = 2,
    cfg: float | None = None,
    sampler: str | None = None,
    scheduler: str | None = None,
    denoise: float = 1.0,
) -> Tensor:
    """Latent from the stock KSampler, with our names in its dropdowns unless others are given."""
    sprint = model.model.is_sprint
    cfg = (1.0 if sprint else 4.5) if cfg is None else cfg
    sampler, scheduler = (
        sampler or ("sana_scm" if sprint else "sana_flow_dpm"),
        scheduler or ("sana_scm" if sprint else "sana_flow"),
    )
    return call("KSampler", model, seed, steps, cfg, sampler, scheduler, *conds, latent or empty(), denoise)[0][
        "samples"
    ]


def clean_latent(width: int = 128, height: int = 128, seed: int = 3, batch_size: int = 1) -> dict[str, Tensor]:
    """A latent as a VAE would give it: raw, not empty."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(batch_size, 32, height // 32, width // 32, generator=generator) / 0.41407}


def picture(width: int = 128, height: int = 128, seed: int = 5) -> Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference in units of b's standard deviation."""
    return float((a.double() - b.double()).abs().max() / b.double().std())


def count_calls(monkeypatch, model) -> SimpleNamespace:
    """Counts the network's calls and remembers the batch size of each."""
    seen = SimpleNamespace(batches=[])
    network = model.model.diffusion_model
    forward = network._forward  # inside the wrappers of other nodes, which may spare the call

    def counted(x, *args, **kwargs):
        seen.batches.append(x.shape[0])
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(network, "_forward", counted)
    return seen


def changed(cond: list, **values) -> list:
    """Copy of a conditioning with other values; `context` replaces the text states."""
    context = values.pop("context", cond[0][0])
    return [[context, copy.copy(cond[0][1]) | values]]


def velocity(patcher) -> torch.Tensor:
    """One prediction of x0 by the host's model, without its memory management."""
    if patcher.model.current_weight_patches_uuid not in (None, patcher.patches_uuid):
        patcher.unpatch_model()  # an earlier test left the LoRA of another patcher in weights that both share
    generator = torch.Generator().manual_seed(2)
    positive, _ = encoded()
    conds = {
        "c_crossattn": positive[0][0],
        "attention_mask": positive[0][1]["attention_mask"],
        "guidance": torch.tensor([4.5]),
    }
    with torch.inference_mode():
        return patcher.model.apply_model(torch.randn(1, 32, 4, 4, generator=generator), torch.tensor([0.7]), **conds)


def rms_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())
