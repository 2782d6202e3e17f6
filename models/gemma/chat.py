"""Gemma-2's chat: the turns in which an instruction-tuned Gemma is asked and answers, and the tokens that frame them.

Source: chat template and special tokens of the model gemma-2-2b-it.
"""

import re

from sentencepiece import SentencePieceProcessor

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
_TURN_TOKENS = re.compile(f"({START_OF_TURN}|{END_OF_TURN})")


def as_question(text: str) -> str:
    """The text as a user's turn, up to where the model's answer begins."""
    return f"{START_OF_TURN}user\n{text.strip()}{END_OF_TURN}\n{START_OF_TURN}model\n"


def encode_turns(tokenizer: SentencePieceProcessor, text: str) -> list[int]:
    """BOS and the tokens of a text; start and end of a turn are one token each where the vocabulary has them."""
    turns = _turn_ids(tokenizer)
    ids = [tokenizer.bos_id()]
    for part in _TURN_TOKENS.split(text):
        ids += [turns[part]] if part in turns else tokenizer.encode(part, add_bos=False, add_eos=False)
    return ids


def decode_answer(tokenizer: SentencePieceProcessor, ids: list[int]) -> str:
    """The text of generated tokens, without those that frame it."""
    framing = {tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id(), *_turn_ids(tokenizer).values()}
    return tokenizer.decode([token for token in ids if token not in framing and token < tokenizer.get_piece_size()])


def stop_tokens(tokenizer: SentencePieceProcessor) -> list[int]:
    """Tokens that end an answer: the end of the text or of the turn."""
    turns = _turn_ids(tokenizer)
    return [tokenizer.eos_id()] + [turns[piece] for piece in (END_OF_TURN,) if piece in turns]


def _turn_ids(tokenizer: SentencePieceProcessor) -> dict[str, int]:
    ids = {piece: tokenizer.piece_to_id(piece) for piece in (START_OF_TURN, END_OF_TURN)}
    return {piece: token for piece, token in ids.items() if token != tokenizer.unk_id()}
