"""Weights in a prompt, as in (red:1.4): read out of the text, and laid on its tokens.

The syntax is that of the host's prompts with a number: brackets without one, or with a ratio as in (16:9), stay text,
as they do without weights. A weight counts how many times a token occurs, which a network's attention to the text takes
exactly: its logarithm is added to the token's scores (`text_conds.py`).
"""

import re
from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from .text_conds import TOKEN_WEIGHTS

LEAST, MOST = 1e-3, 100.0  # weights beyond are taken for these
NUMBER = re.compile(r"(?P<before>.) ?: ?(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)) ?$", re.DOTALL)
EXCERPT = 60  # characters of a text in a notice
LONGEST_NUMBER = 32  # characters before a closing bracket that are read
# What looks like a weight and is none: with full-width signs or a decimal comma, or without its closing bracket.
UNREAD = re.compile(
    r"""
    (?<!\\) [(\uff08] [^()\uff08\uff09]*?
    [^\d\s\\(\uff08] [ ]? [:\uff1a] [ ]? [+-]? \d* [.,]? \d+
    (?: [ ]? [)\uff09] | (?! [\w.,]* [\w.] ) (?= [^()\uff08\uff09]* $ ) )
    """,
    re.VERBOSE,
)


def parse_weights(text: str, negative: bool = False) -> tuple[str, list[float]]:
    """The text without its weights and without spaces around it, and the weight of each of its characters.

    A backslash before a bracket stays, for `unescape`. The inner of two weights counts. negative: whether it is the
    negative prompt. Raises ValueError for a negative weight.
    """
    weights, removed = [1.0] * len(text), set()
    for start, end in matching_brackets(text):
        first = max(start + 1, end - LONGEST_NUMBER)
        found = NUMBER.search(text[first:end])
        if found is None or is_ratio(found):
            continue
        stop, weight = first + found.end("before"), float(found["number"])
        if weight < 0:
            raise ValueError(
                f"The prompt gives {text[start + 1 : stop]!r} the weight {weight:g}, but a weight is how many times it "
                f"counts: write a number from 0 to 100, or move it into the {'positive' if negative else 'negative'} "
                "prompt."
            )
        weights[start + 1 : stop] = [min(max(weight, LEAST), MOST)] * (stop - start - 1)
        removed |= {start, *range(stop, end + 1)}
    kept = [i for i in range(len(text)) if i not in removed]
    plain = "".join(text[i] for i in kept)
    spaces = len(plain) - len(plain.lstrip())
    return plain.strip(), [weights[i] for i in kept][spaces : spaces + len(plain.strip())]


def matching_brackets(text: str) -> list[tuple[int, int]]:
    """Places of opening and closing brackets that belong together, outer ones first; escaped ones are text."""
    opened, pairs = [], []
    for found in re.finditer(r"\\[()]|[()]", text):
        if found[0] == "(":
            opened.append(found.start())
        elif found[0] == ")" and opened:
            pairs.append((opened.pop(), found.start()))
    return sorted(pairs)


def is_ratio(found: re.Match) -> bool:
    """Whether a number after a colon ends a ratio or a time, as in 16:9, and no weight."""
    return found["before"].isspace() or (found["before"].isdigit() and found["number"].isdigit())


def unread_weights(text: str) -> list[str]:
    """A sentence on the first thing in a text without its weights that was meant as one."""
    found = UNREAD.search(text)
    if found is None:
        return []
    excerpt = found[0] if len(found[0]) <= EXCERPT else f"{found[0][:EXCERPT]}..."
    return [
        f'"{excerpt}" is read as plain text: write a weight as in (red:1.4), with plain signs, a decimal point and its '
        "closing bracket."
    ]


def unescape(text: str, weights: Sequence[float]) -> tuple[str, list[float]]:
    """The text whose backslashes before brackets are left out, and the weights of the characters that remain."""
    removed = {found.start() for found in re.finditer(r"\\(?=[()])", text)}
    kept = [i for i in range(len(text)) if i not in removed]
    return "".join(text[i] for i in kept), [weights[i] for i in kept]


def weights_of_pieces(
    tokenizer: SentencePieceProcessor, ids: Sequence[int], text: str, weights: Sequence[float]
) -> list[float]:
    """The weight of each token of a text, given those of its characters: their mean without spaces.

    ids: of the text as it stands, without BOS. A character that is several tokens, as of its bytes, weighs them all.
    Raises ValueError for a tokenizer whose tokens do not spell the text.
    """
    out, place, missing = [], 0, 0  # missing: bytes of the character at this place that are still to come
    for token in ids:
        if place >= len(text):
            break
        if tokenizer.is_byte(token):
            out.append(weights[place])
            missing = (missing or len(text[place].encode())) - 1
            place += missing == 0
        else:
            end = place + len(tokenizer.id_to_piece(token))
            own = [weights[i] for i in range(place, min(end, len(text))) if not text[i].isspace()]
            own = own or weights[place:end]
            out.append(own[0] if len(set(own)) == 1 else sum(own) / len(own))
            place = end
    if len(out) != len(ids) or place != len(text):
        raise ValueError(
            "The tokenizer of this text encoder spells the prompt otherwise than it is written, so that weights find "
            "no token: set weights to off."
        )
    return out


def read_weights(
    clip, text: str, lower_case: bool, weights: bool, negative: bool = False
) -> tuple[str, list[float] | None]:
    """The text to tokenize, and the weights of its characters; None where they are not read here, as T5 reads its own.

    negative: whether it is the negative prompt. Raises ValueError for a negative weight.
    """
    if not weights or not hasattr(clip.tokenizer, "token_weights"):
        return text, None
    return parse_weights(clip.tokenizer.clean(text, lower_case), negative)


def encode_weighted(clip, text: str, instruction: str, lower_case: bool, weights: bool) -> list:
    """Host conditioning of a text, with TOKEN_WEIGHTS where it has any and they are asked for."""
    text, of_characters = read_weights(clip, text, lower_case, weights)
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(text, instruction=instruction, lower_case=lower_case))
    if set(of_characters or ()) <= {1.0}:
        return cond
    own = clip.tokenizer.token_weights(text, of_characters, instruction)
    return [[states, extra | {TOKEN_WEIGHTS: own}] for states, extra in cond]
