"""Trains the demo's SentencePiece model, in Gemma's conventions: `python -m demo.train.tokenizer`. Seconds."""

import io
import logging
import random

import sentencepiece

from .captions import draw_caption, vocabulary
from .data import RUNS, draw_scene
from .pack import prepare_imports

prepare_imports()

from sana_native.models.gemma import INSTRUCTION  # noqa: E402

FOLDER = RUNS / "tokenizer"
PATH = FOLDER / "tokenizer.model"
VOCABULARY_SIZE = 1200


def sentences() -> list[str]:
    """The instruction, and captions in all their wordings; repeated so that each of their words becomes one piece."""
    rng = random.Random(0)
    captions = [draw_caption(draw_scene(rng, held_out=None), rng) for _ in range(4000)]
    words = " ".join(vocabulary())
    lines = [f" {line}" for line in INSTRUCTION.split("\n")] + INSTRUCTION.split("\n")
    return captions + [f" {caption}" for caption in captions] + 40 * [f" {words}", f" {words.title()}"] + 40 * lines


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()  # a file's name would be written into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["\n"],
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    PATH.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(str(PATH))
    count = len(processor.encode(INSTRUCTION))
    logging.info("%d pieces, the instruction takes %d of them", processor.get_piece_size(), count)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
