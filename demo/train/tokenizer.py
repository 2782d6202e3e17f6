"""Trains the demo's SentencePiece model, in Gemma's conventions: `python -m demo.train.tokenizer`. Seconds."""

import io
import logging
import random
import re

import sentencepiece

from .captions import chinese_words, draw_caption, vocabulary
from .data import RUNS, draw_scene
from .pack import prepare_imports

prepare_imports()

from sana_native.models.gemma.text_encoder import INSTRUCTION  # noqa: E402

FOLDER = RUNS / "tokenizer"
PATH = FOLDER / "tokenizer.model"
VOCABULARY_SIZE = 2560
WORD_END = "\t"


def with_word_ends(text: str, words: re.Pattern) -> str:
    """Marks where Chinese words and emoji end, which are written without spaces: no piece may reach across."""
    return words.sub(rf"{WORD_END}\g<0>{WORD_END}", text)


def sentences() -> list[str]:
    """The instruction, and captions in all their wordings; repeated so that each of their words becomes one piece."""
    rng = random.Random(0)
    chinese = re.compile("|".join(sorted(map(re.escape, chinese_words()), key=len, reverse=True)))
    captions = []
    for _ in range(6000):
        caption = draw_caption(draw_scene(rng, held_out=None), rng, held_out=rng.random() < 0.1).text
        captions.append(with_word_ends(caption, chinese))
    words = [with_word_ends(f" {word}", chinese) for word in vocabulary()]
    titles = [f" {word.title()}" for word in vocabulary() if word.isascii()]
    lines = [f" {line}" for line in INSTRUCTION.split("\n")] + INSTRUCTION.split("\n")
    captions += [f" {caption}" for caption in captions]
    return captions + 40 * (words + [word.strip() for word in words] + lines) + 8 * titles


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
        pretokenization_delimiter=WORD_END,
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
