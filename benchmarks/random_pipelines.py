"""SANA and SANA-Sprint with random weights as diffusers' folders, the layout both sides of `picture.py` can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.networks import PROMPT_TOKENS, VOCABULARY, autoencoder, text_encoder, transformer
from benchmarks.random_files import size_of, write_bfloat16
from demo.train.pack import prepare_imports
from tools.host import link_folder

PIECES = 900  # of the tokenizer: the instruction then has the 207 tokens that it has with Gemma's own
PROMPTS = "prompts.json"
ROOM = 1.02  # of the files' size
# Names tell the loader what no tensor does: that the model was trained in bfloat16.
FOLDERS = {"sana": "Sana_{}_1024px_BF16_random", "sprint": "Sana_Sprint_{}_1024px_random"}


class DiskError(OSError):
    """The files do not fit; the message is one sentence with the cure."""


def folder_of(family: str, model: str) -> str:
    return FOLDERS[family].format(model)


def shared_parts() -> dict:
    """The networks that SANA and Sprint have in common, without weights."""
    import torch

    encoder = text_encoder("transformers", torch.bfloat16, "meta", vocab_size=VOCABULARY)
    return {"text_encoder": encoder, "vae": autoencoder("diffusers", "meta")}


def own_part(family: str, model: str):
    sprint = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if family == "sprint" else {}
    return transformer("diffusers", model, **sprint)


def require_room(folder: Path, needed: float) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"The random weights take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: set TMPDIR to a "
            "folder on a larger disk, or measure one size of one family."
        )


def write_part(folder: Path, network) -> None:
    """Config and weights of a network of diffusers or transformers."""
    if hasattr(network, "save_config"):
        network.save_config(folder)
        write_bfloat16(folder / "diffusion_pytorch_model.safetensors", network.state_dict())
    else:
        network.config.save_pretrained(folder)
        write_bfloat16(folder / "model.safetensors", network.state_dict())


def prompts(words: list[str], count) -> list[str]:
    """Two of them with PROMPT_TOKENS tokens each. count: tokens of a text."""
    found = []
    for first in range(2):
        chosen = words[first::2]
        length = next(n for n in range(1, len(chosen)) if count(" ".join(chosen[:n])) >= PROMPT_TOKENS)
        found.append(" ".join(chosen[:length]))
    return found


def write_released(folder: Path, families: list[str], model: str) -> None:
    """At the released sizes. Raises: DiskError before anything is written."""
    from sana_native.tests.support import tiny

    shared, own = shared_parts(), {family: own_part(family, model) for family in families}
    require_room(folder, ROOM * sum(size_of(part.state_dict()) for part in (*shared.values(), *own.values())))
    words = tiny.tokenizer(folder / "shared" / "tokenizer", PIECES)
    words.save_pretrained(folder / "shared" / "tokenizer")
    for name, part in shared.items():
        write_part(folder / "shared" / name, part)
    for family in families:
        place = folder / folder_of(family, model)
        parts = {"tokenizer": words, **shared, "transformer": own[family]}
        pipeline = tiny.pipeline(family == "sprint", **parts)
        pipeline.save_config(place)
        pipeline.scheduler.save_pretrained(place / "scheduler")
        write_part(place / "transformer", own[family])
        for name in ("tokenizer", *shared):
            link_folder(folder / "shared" / name, place / name)


def write_tiny(folder: Path, families: list[str], model: str) -> None:
    from sana_native.tests.support import tiny

    for family in families:
        tiny.save_pipeline(folder / folder_of(family, model), family == "sprint")


def write_pipelines(folder: Path, families: list[str], model: str, tiny: bool) -> None:
    """A folder for each family, and the prompts to measure with. Raises: DiskError before anything is written."""
    prepare_imports()
    import sentencepiece
    from sana_native.models.gemma.text_encoder import INSTRUCTION

    (write_tiny if tiny else write_released)(folder, families, model)
    path = folder / folder_of(families[0], model) / "tokenizer" / "tokenizer.model"
    tokens = sentencepiece.SentencePieceProcessor(model_file=str(path))
    texts = prompts(INSTRUCTION.replace("\n", " ").split(), lambda text: len(tokens.encode(text)))
    (folder / PROMPTS).write_text(json.dumps(texts), encoding="utf-8")
