"""Trains the demo's narrow Gemma-2: `python -m demo.train.text_encoder [--minutes M]`. Resumes where it was stopped.

A causal language model of captions after SANA's instruction, without it, and of the instruction. So few channels would
keep little of the words already read, so heads that are dropped afterwards ask the states for them: each state for its
own token, the last one for all that the caption says.
"""

import argparse
import functools
import random

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from .captions import PLACE_WORDS, SIZE_WORDS, draw_caption
from .data import BACKGROUND_NAMES, PLACES, RUNS, SIZES, THING_NAMES, draw_scene
from .loop import Run, load_ema
from .tokenizer import INSTRUCTION, PATH, VOCABULARY_SIZE

FOLDER = RUNS / "text_encoder"
BOS = 2
ROWS = {True: 12, False: 64}  # a batch with the instruction, which is long, and one of captions alone
CONFIG = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": BOS,
    "tie_word_embeddings": True,
}


class TextModel(nn.Module):
    """The language model and the heads that are used in training only."""

    def __init__(self):
        super().__init__()
        self.language = Gemma2ForCausalLM(Gemma2Config(**CONFIG, attn_implementation="eager"))
        width = CONFIG["hidden_size"]
        self.token = nn.Linear(width, VOCABULARY_SIZE)
        # One more class for what a caption leaves unsaid.
        classes = (len(THING_NAMES), len(BACKGROUND_NAMES), len(SIZES) + 1, len(PLACES) + 1)
        self.facts = nn.ModuleList(nn.Linear(width, count) for count in classes)


@functools.cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(str(PATH))


def encode_text(text: str) -> list[int]:
    return [BOS, *processor().encode(text)]


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, L), padded on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def facts_of(caption: str, scene) -> list[int]:
    """Indices of thing, background, size and place; the last index of a list where the caption is silent."""
    words = f" {caption.lower().strip('.').replace(',', ' ')} "
    has_size = any(f" {word} " in words for word in SIZE_WORDS[scene.size])
    has_place = any(f" {word} " in words for word in PLACE_WORDS[scene.place])
    size = list(SIZES).index(scene.size) if has_size else len(SIZES)
    place = list(PLACES).index(scene.place) if has_place else len(PLACES)
    return [THING_NAMES.index(scene.thing), BACKGROUND_NAMES.index(scene.background), size, place]


def draw_rows(rng: random.Random, instruct: bool) -> tuple[list[list[int]], list[list[int]]]:
    rows, facts = [], []
    for _ in range(ROWS[instruct]):
        scene = draw_scene(rng, held_out=None)  # words only: the held-out pairs are of pictures
        caption = draw_caption(scene, rng)
        rows.append(encode_text(INSTRUCTION + caption if instruct else caption))
        facts.append(facts_of(caption, scene))
    return rows, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=14)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = TextModel()
    run = Run(FOLDER, model, args.minutes, peak=2e-3, decay=0.99)
    caption_start = len(encode_text(INSTRUCTION)) - 1

    def compute_loss(seed: int, instruct: bool, accuracy: list[float] | None = None) -> tuple[Tensor, str]:
        rows, facts = draw_rows(random.Random(seed), instruct)
        ids, mask = pad(rows)
        states = model.language.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model.language.lm_head(states)
        logits = torch.tanh(logits / 30) * 30
        language = F.cross_entropy(logits[:, :-1][mask[:, 1:] > 0], ids[:, 1:][mask[:, 1:] > 0])
        tail = mask.bool()
        tail[:, : caption_start if instruct else 1] = False
        own = F.cross_entropy(model.token(states[tail]), ids[tail])
        last = states[torch.arange(len(rows)), mask.sum(dim=1) - 1]
        targets = torch.tensor(facts)
        guesses = [head(last) for head in model.facts]
        told = sum(F.cross_entropy(guess, targets[:, i]) for i, guess in enumerate(guesses)) / len(guesses)
        if accuracy is not None:
            accuracy += [(guess.argmax(1) == targets[:, i]).float().mean().item() for i, guess in enumerate(guesses)]
        note = f"language {language.item():.3f} own {own.item():.3f} facts {told.item():.3f}"
        return language + 0.5 * own + told, note

    def losses(step: int) -> list:
        return [functools.partial(compute_loss, 2 * step + instruct, instruct) for instruct in (True, False)]

    @torch.no_grad()
    def evaluate() -> str:
        backup = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(run.ema)
        accuracy: list[float] = []
        _, note = compute_loss(-1, True, accuracy)
        model.load_state_dict(backup)
        return f"{note}; thing, background, size, place right {[round(a, 3) for a in accuracy]}"

    run.train(losses, evaluate, every=2)


def load_text_model() -> nn.Module:
    """The trained Gemma2Model in float32, frozen."""
    return load_ema(TextModel(), FOLDER).language.model


if __name__ == "__main__":
    main()
