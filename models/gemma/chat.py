"""Gemma-2's chat: the turns in which an instruction-tuned Gemma is asked and answers, and the tokens that frame them.

Source: chat template and special tokens of the model gemma-2-2b-it. `words` is a SentencePieceProcessor throughout.
"""

import re

from sentencepiece import SentencePieceProcessor

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
_MARKS = re.compile(f"({START_OF_TURN}|{END_OF_TURN})")


def as_question(text: str) -> str:
    """The text as a user's turn, up to where the model's answer begins."""
    return f"{START_OF_TURN}user\n{text.strip()}{END_OF_TURN}\n{START_OF_TURN}model\n"


def encode_turns(words: SentencePieceProcessor, text: str) -> list[int]:
    """BOS and the tokens of a text; a turn's mark is one token where the vocabulary has it."""
    marks = _marks(words)
    ids = [words.bos_id()]
    for part in _MARKS.split(text):
        ids += [marks[part]] if part in marks else words.encode(part, add_bos=False, add_eos=False)
    return ids


def decode_answer(words: SentencePieceProcessor, ids: list[int]) -> str:
    """The text of generated tokens, without those that frame it."""
    framing = {words.bos_id(), words.eos_id(), words.pad_id(), *_marks(words).values()}
    return words.decode([token for token in ids if token not in framing and token < words.get_piece_size()])


def stop_tokens(words: SentencePieceProcessor) -> list[int]:
    """Tokens that end an answer: the end of the text or of the turn."""
    marks = _marks(words)
    return [words.eos_id()] + [marks[mark] for mark in (END_OF_TURN,) if mark in marks]


def _marks(words: SentencePieceProcessor) -> dict[str, int]:
    ids = {mark: words.piece_to_id(mark) for mark in (START_OF_TURN, END_OF_TURN)}
    return {mark: token for mark, token in ids.items() if token != words.unk_id()}
