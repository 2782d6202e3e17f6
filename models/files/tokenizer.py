"""Gemma's tokenizer: found inside the weight file or beside it, and checked before the host is given it."""

import os

import sentencepiece
import torch
from torch import Tensor

from .reader import Checkpoint

GEMMA_SPECIAL_IDS = (0, 2)  # padding, start
SPIECE_KEY = "spiece_model"  # the host's name for the tokenizer in a weight file


def beside(path: str, name: str) -> tuple[str, str]:
    """Where a tokenizer file may lie: beside the weights, or in a diffusers model's tokenizer folder."""
    folder = os.path.dirname(path)
    return os.path.join(folder, name), os.path.join(os.path.dirname(folder), "tokenizer", name)


def no_tokenizer(checkpoint: Checkpoint) -> FileNotFoundError:
    other = " (a tokenizer.json is, but the host does not read it)"
    found = other if any(map(os.path.isfile, beside(checkpoint.path, "tokenizer.json"))) else ""
    return FileNotFoundError(
        f"{checkpoint.name} has no tokenizer inside, and there is no tokenizer.model beside it{found}: put Gemma's "
        "tokenizer.model in its folder."
    )


def find_tokenizer(path: str) -> Tensor | None:
    """Bytes of the tokenizer.model that belongs to the weights, as a uint8 tensor."""
    for candidate in beside(path, "tokenizer.model"):
        if os.path.isfile(candidate) and os.path.getsize(candidate):
            with open(candidate, "rb") as file:
                return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    return None


def check_tokenizer(name: str, spiece: Tensor, vocab_size: int) -> None:
    """Raises ValueError for a tokenizer that is unreadable, not Gemma's, or has more pieces than the model embeds."""
    cure = "put the tokenizer.model of this very model beside it, or in a tokenizer folder beside its own."
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=spiece.numpy().tobytes())
    except RuntimeError as error:
        raise ValueError(f"The tokenizer of {name} is no SentencePiece model: {cure}") from error
    if (tokenizer.pad_id(), tokenizer.bos_id()) != GEMMA_SPECIAL_IDS:
        found = f"padding {tokenizer.pad_id()} and start {tokenizer.bos_id()}"
        raise ValueError(
            f"The tokenizer of {name} is not Gemma's (its special tokens are {found}, not 0 and 2): {cure}"
        )
    if tokenizer.get_piece_size() > vocab_size:
        raise ValueError(
            f"The tokenizer of {name} has {tokenizer.get_piece_size()} pieces but the model embeds {vocab_size}: {cure}"
        )


def find_spiece(state_dict: dict[str, Tensor]) -> Tensor | None:
    found = next((tensor for key, tensor in state_dict.items() if key.endswith(SPIECE_KEY)), None)
    return None if found is None else found.to(torch.uint8)  # bytes survive a cast to 16 bits with the weights


def read_spiece(checkpoint: Checkpoint) -> Tensor:
    """Bytes of the tokenizer (N,), from the file or from beside it. Raises FileNotFoundError without one."""
    spiece = find_spiece(checkpoint.whole)
    spiece = find_tokenizer(checkpoint.path) if spiece is None else spiece
    if spiece is None:
        raise no_tokenizer(checkpoint)
    return spiece
