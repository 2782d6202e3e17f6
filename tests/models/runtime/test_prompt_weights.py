"""Weights are read out of a prompt as the host's nodes read them, and reach the tokens that they were written for."""

import time

import pytest
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from sana_native.models.runtime.prompt_weights import parse_weights, unescape, unread_weights, weights_of_pieces
from sana_native.tests.support import workbench as bench


def spans(text: str) -> list[tuple[str, float]]:
    """Runs of characters with the same weight."""
    plain, weights = unescape(*parse_weights(text))
    out: list[list] = []
    for character, weight in zip(plain, weights, strict=True):
        if out and out[-1][1] == weight:
            out[-1][0] += character
        else:
            out.append([character, weight])
    return [tuple(run) for run in out]


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.4) cat",
        "(red:1.4)(blue:0.5)",
        "(a (red:1.5) cat:1.2) here",
        "((red:1.5):1.2)",
        r"a \(red\) (cat \(big\):2)",
        r"\(a (b:3)",
        "(time 12\u200b:1.30)",
        "(word:1.)",
        "(word:.5)",
        "(一只猫:1.3)和狗 (\U0001f431:2)",
        "(a\nb:1.5)",
    ],
)
def test_numbers_in_brackets_are_the_hosts(text):
    host = [(unescape_important(part), weight) for part, weight in token_weights(escape_important(text), 1.0)]
    joined: list[list] = []
    for part, weight in host:
        if joined and joined[-1][1] == weight:
            joined[-1][0] += part
        else:
            joined.append([part, weight])
    assert spans(text) == [tuple(run) for run in joined if run[0]]


@pytest.mark.parametrize(
    "text",
    ["a cat", "a (red) cat", "((red))", "a photo (16:9)", "(at 12:30)", "cat:1.2", "(a:b)", "(:1.2)", ")a:2(", "",
     "(a:1.2", "(a: red)", "(b:1e1)"],
)  # fmt: skip
def test_other_brackets_stay_text(text):
    assert parse_weights(text) == (text, [1.0] * len(text))


def test_a_decimal_number_after_a_digit_is_a_weight():
    assert spans("(in 1999:1.3)") == [("in 1999", 1.3)]


def test_weights_have_limits():
    assert spans("(a:0) (b:1000)") == [("a", 1e-3), (" ", 1.0), ("b", 100.0)]


@pytest.mark.parametrize("text", ["a (red:-1)", "((red:-0.5) cat:2)"])
def test_a_negative_weight_is_refused(text):
    with pytest.raises(ValueError, match=r"gives 'red' the weight -.*, but a weight is how many .* negative prompt\."):
        parse_weights(text)


def test_a_negative_weight_in_the_negative_prompt_is_not_sent_there():
    with pytest.raises(ValueError, match=r"gives 'red' the weight -1, .* into the positive prompt\."):
        parse_weights("a (red:-1)", negative=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\uff08红\uff1a1.4\uff09的猫", "\uff08红\uff1a1.4\uff09"),
        ("(红\uff1a1.4) (a:2)", "(红\uff1a1.4)"),
        ("a (red:1,4) cat", "(red:1,4)"),
        ("(red:1.2, a cat", "(red:1.2"),
        ("a cat (red:1.2", "(red:1.2"),
    ],
)
def test_what_was_meant_as_a_weight_gets_a_notice(text, found):
    (sentence,) = unread_weights(parse_weights(text)[0])
    assert sentence.startswith(f'"{found}" is read as plain text: write a weight as in (red:1.4), with plain signs')


@pytest.mark.parametrize(
    "text",
    ["a cat", "(red:1.2)", "((red))", "(16:9)", "\uff0816\uff1a9\uff09", "(at 12:30)", "cat:1.2", r"\(a:1.2\)",
     "(:1.2)", "(scene: 3, cars)", "time: 3 :(", "(v:2x zoom", "(see 2:1 ratio"],
)  # fmt: skip
def test_other_text_gets_none(text):
    assert unread_weights(parse_weights(text)[0]) == []


@pytest.mark.parametrize("text", ["(a:1" * 20000, "(a" + ":1" * 20000, "(a:" + "1.," * 20000])
def test_very_long_texts_take_no_time(text):
    start = time.monotonic()
    unread_weights(text)
    assert time.monotonic() - start < 2


def test_spaces_at_the_ends_are_dropped_with_their_weights():
    assert parse_weights("  ( a cat :2) ") == ("a cat", [2.0] * 5)
    assert parse_weights("( a:2)b ") == ("ab", [2.0, 1.0])


@pytest.mark.parametrize("depth", [10, 3000])
def test_nested_brackets_of_any_depth_are_read(depth):
    assert parse_weights("(" * depth + "a" + ":2)" * depth) == ("a", [2.0])


# On tokens


def weighted_pieces(text: str) -> list[tuple[str, float]]:
    tokenizer = bench.clip().tokenizer.sentencepiece
    plain, weights = unescape(*parse_weights(text))
    ids = tokenizer.encode(plain, add_bos=False)
    return [
        (tokenizer.id_to_piece(i), w)
        for i, w in zip(ids, weights_of_pieces(tokenizer, ids, plain, weights), strict=True)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a (cat street:1.4) on",
        "(一只猫:1.3) 和狗",
        "a (\U0001f431\U0001f98a:2) é (é:3)",
        "x  (y :.5)  z",
        r"a \(b\) (\(c\):2)",
    ],
)
def test_every_token_has_the_weight_of_its_characters(text):
    """Each run of a weight, taken alone, has as many tokens of that weight as the whole; in bytes where they are."""
    pieces = weighted_pieces(text)
    for run, weight in spans(text):
        if weight != 1:
            own = "".join(piece for piece, w in pieces if w == weight)
            data = b"".join(
                bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode()
                for piece, w in pieces
                if w == weight
            )
            assert data.decode().strip() == run.strip() and own


def test_the_space_before_a_bracket_does_not_weaken_its_word():
    pieces = weighted_pieces("busy (street:1.4)")
    assert {w for piece, w in pieces if piece.startswith("▁s") or piece == "▁street"} == {1.4}


def test_a_token_across_a_border_has_the_mean():
    tokenizer = bench.clip().tokenizer.sentencepiece
    ids = tokenizer.encode("detail", add_bos=False)[:1]
    text = tokenizer.id_to_piece(ids[0])
    assert len(text) > 1
    assert weights_of_pieces(tokenizer, ids, text, [1.0] + [2.0] * (len(text) - 1)) == [2 - 1 / len(text)]


def test_tokens_that_do_not_spell_the_text_are_refused():
    tokenizer = bench.clip().tokenizer.sentencepiece
    with pytest.raises(ValueError, match="spells the prompt otherwise than it is written, .* set weights to off"):
        weights_of_pieces(tokenizer, tokenizer.encode("cat", add_bos=False), "a longer text", [1.0] * 13)
