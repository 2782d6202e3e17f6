"""Prompts: what cannot be tokenized is refused in one sentence, and what does not act gets a notice."""

import re

EXCERPT = 120  # characters of a text in a notice
SURROGATE = re.compile("[\ud800-\udfff]")
TEXT_NOTICES = (
    (  # not (16:9)
        re.compile(r"\(.*[^\d\s] ?: ?\d*\.?\d+ ?\)", re.DOTALL),
        "weights as in (word:1.2) are read as plain text; set weights to on in SANA Gemma Encode, or say it in words.",
    ),
    (
        re.compile(r"(^|\s)embedding:\S"),
        "embedding:name is read as plain text; SANA's text encoder takes no textual inversions.",
    ),
    (re.compile("<end_of_turn>"), "<end_of_turn> is left out: it would end Gemma's turn inside the prompt."),
)


def check_surrogates(*texts: str) -> None:
    """Raises ValueError for half a surrogate pair, which is no character and has no tokens."""
    for text in texts:
        found = SURROGATE.search(text)
        if found:
            raise ValueError(
                f"The prompt has half a character (U+{ord(found[0]):04X}, one of a surrogate pair) at place "
                f"{found.start() + 1}, as a cut emoji leaves it: delete it or type the character again."
            )


def describe_cut(text: str, tokens: int) -> str:
    """The notice for a prompt whose last tokens, those of this text, are past the end."""
    text = " ".join(text.split())
    excerpt = text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."
    return f'the first 299 tokens count, so the last {tokens} are cut off: "{excerpt}"'
