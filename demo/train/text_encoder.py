"""Trains the demo's narrow Gemma-2: `python -m demo.train.text_encoder [--minutes M]`. Resumes where it was stopped.

A causal language model of captions after SANA's instruction, without it, and of the instruction. So few channels would
keep little of the words already read, so heads that are dropped afterwards ask the states for them: each state for its
own token, the last one for all that the caption says.
"""

import argparse
import functools
import random
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from .captions import draw_caption, draw_form_caption, fact_classes, fact_indices
from .data import RUNS, draw_facing_scene, draw_scene
from .loop import DEVICE, Run, load_ema
from .tokenizer import INSTRUCTION, PATH, VOCABULARY_SIZE
from .warm import move_embedding, read_part

FOLDER = RUNS / "text_encoder"
BOS = 2
JUDGED = 512  # captions of an evaluation
THREADS = 2  # a step's gradients are computed in so many threads, with as much to do for each
ROWS = 24  # captions that a thread sees at a step after the instruction, and as many without it
PEAK, WARM_PEAK = 2e-3, 1.2e-3  # rates from nothing and from an exported text encoder
FACING = 0.12  # share of scenes whose two things face each other
CUT, CUT_DROPOUT = 0.12, 0.1  # how often a caption is cut into random pieces, and how often a merge is left out then
CONFIG = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 160,
    "intermediate_size": 320,
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
        self.facts = nn.ModuleList(nn.Linear(width, count) for count in fact_classes())


@functools.cache
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(str(PATH))


def encode_text(text: str, cut: bool = False) -> list[int]:
    """Token ids; `cut` breaks words into random smaller pieces, as a misspelling does."""
    options = {"enable_sampling": True, "alpha": CUT_DROPOUT} if cut else {}
    return [BOS, *processor().encode(text, **options)]


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, L), padded on the right, where the training runs."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids.to(DEVICE), mask.to(DEVICE)


def instruction_ids() -> list[int]:
    """What every instructed prompt begins with: BOS and the instruction but for its last space, which merges."""
    return encode_text(INSTRUCTION)[:-1]


def read_rows(model: nn.Module, rows: list[list[int]], instructed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs a Gemma2Model over token rows; returns ids (B, L), mask (B, L), states (B, L, C) and BOS's state (1, C).

    Instructed rows hold what follows `instruction_ids`, whose keys and values are computed once for all of them.
    """
    ids, mask = pad(rows)
    if not instructed:
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return ids, mask, states, states[0, :1]
    prefix = torch.tensor([instruction_ids()], device=DEVICE)
    first = model(input_ids=prefix, use_cache=True)
    cache = first.past_key_values
    cache.batch_repeat_interleave(len(rows))
    whole = torch.cat([mask.new_ones(len(rows), prefix.shape[1]), mask], dim=1)
    states = model(input_ids=ids, attention_mask=whole, past_key_values=cache).last_hidden_state
    return ids, mask, states, first.last_hidden_state[0, :1]


def encode_rows(captions: list[str], instructed: bool, rng: random.Random | None = None) -> list[list[int]]:
    """Token rows of captions as `read_rows` takes them; with `rng` some are cut into random pieces."""
    cuts = [rng is not None and rng.random() < CUT for _ in captions]
    if not instructed:
        return [encode_text(caption, cut) for caption, cut in zip(captions, cuts, strict=True)]
    skip = len(instruction_ids())
    whole = [encode_text(INSTRUCTION + caption)[skip:] for caption in captions]
    return [encode_text(" " + c, True)[1:] if cut else row for c, cut, row in zip(captions, cuts, whole, strict=True)]


def draw_captions(rng: random.Random, count: int) -> tuple[list[str], list[list[int]]]:
    """Captions and their facts; words only, so the combinations that pictures hold out may be among them."""
    draws = [draw_facing_scene if rng.random() < FACING else draw_scene for _ in range(count)]
    captions = [draw_caption(draw(rng, held_out=None), rng) for draw in draws]
    return [caption.text for caption in captions], [fact_indices(caption) for caption in captions]


def start_from(model: TextModel, checkpoint: Path) -> None:
    """Takes over an exported text encoder, and of its embedding what stands for the same pieces."""
    old = sentencepiece.SentencePieceProcessor(str(checkpoint / "tokenizer" / "tokenizer.model"))
    state = read_part("text_encoder", checkpoint)
    state["embed_tokens.weight"] = move_embedding(state["embed_tokens.weight"], old, processor())
    model.language.model.load_state_dict(state)


def whole_captions_right(guesses: list[Tensor], targets: Tensor) -> float:
    """How often every fact of a caption is read right."""
    hits = torch.stack([guess.argmax(1) == targets[:, i] for i, guess in enumerate(guesses)])
    return hits.all(dim=0).float().mean().item()


@torch.no_grad()
def read_forms(model: TextModel) -> float:
    """How often every fact of a caption in a held-out sentence form is read right."""
    rng = random.Random(-3)
    captions = [draw_form_caption(draw_scene(rng, held_out=None), rng) for _ in range(JUDGED)]
    rows = encode_rows([caption.text for caption in captions], True)
    ids, mask, states, _ = read_rows(model.language.model, rows, True)
    last = states[torch.arange(len(ids), device=DEVICE), mask.sum(dim=1) - 1]
    targets = torch.tensor([fact_indices(caption) for caption in captions], device=DEVICE)
    return whole_captions_right([head(last) for head in model.facts], targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=44)
    parser.add_argument("--start", type=Path, help="an exported SANA whose text encoder to begin with")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = TextModel()
    if args.start:
        start_from(model, args.start)
    run = Run(FOLDER, model, args.minutes, peak=WARM_PEAK if args.start else PEAK, decay=0.99)

    def compute_loss(seed: int, instructed: bool, accuracy: list[float] | None = None) -> tuple[Tensor, str]:
        rng = random.Random(seed)
        captions, facts = draw_captions(rng, ROWS if accuracy is None else JUDGED)
        rows = encode_rows(captions, instructed, rng)
        ids, mask, states, _ = read_rows(model.language.model, rows, instructed)
        logits = model.language.lm_head(states)
        logits = torch.tanh(logits / 30) * 30
        language = F.cross_entropy(logits[:, :-1][mask[:, 1:] > 0], ids[:, 1:][mask[:, 1:] > 0])
        own = F.cross_entropy(model.token(states[mask > 0]), ids[mask > 0])
        last = states[torch.arange(len(ids), device=DEVICE), mask.sum(dim=1) - 1]
        targets = torch.tensor(facts, device=DEVICE)
        guesses = [head(last) for head in model.facts]
        told = sum(F.cross_entropy(guess, targets[:, i]) for i, guess in enumerate(guesses)) / len(guesses)
        if accuracy is not None:
            accuracy.append(whole_captions_right(guesses, targets))
            accuracy += [(guess.argmax(1) == targets[:, i]).float().mean().item() for i, guess in enumerate(guesses)]
        note = f"language {language.item():.3f} own {own.item():.3f} facts {told.item():.3f}"
        return 0.2 * language + 0.5 * own + told, note

    def compute_both(seed: int) -> tuple[Tensor, str]:
        (first, note), (second, _) = compute_loss(2 * seed, True), compute_loss(2 * seed + 1, False)
        return (first + second) / 2, note

    def losses(step: int) -> list:
        return [functools.partial(compute_both, THREADS * step + thread) for thread in range(THREADS)]

    @torch.no_grad()
    def evaluate() -> str:
        with run.with_ema():
            accuracy: list[float] = []
            _, note = compute_loss(-1, True, accuracy)
            forms = read_forms(model)
        shares = [round(a, 3) for a in accuracy]
        return f"{note}; whole caption, then background and thing, size, place of both {shares}; forms {forms:.1%}"

    run.train(losses, evaluate, every=2)


def load_text_model() -> nn.Module:
    """The trained Gemma2Model in float32, frozen."""
    return load_ema(TextModel(), FOLDER).language.model


if __name__ == "__main__":
    main()
