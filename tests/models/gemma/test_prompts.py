"""From words to latent: what of a prompt reaches the picture, alone, in batches and beside a negative prompt."""

import random
import re
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import pytest
import torch
from sana_native.models.gemma.text_encoder import CLIP_NAME, CONTEXT_LENGTH, INSTRUCTION
from sana_native.models.runtime.zero_padding import ZERO_PADDED, mask_of_rows
from sana_native.nodes import conditioning
from sana_native.tests.support import workbench as bench

BOS = 2
WORDS = (
    "cat street city busy fluffy curled white warm windowsill flowers glowing lamps crowd people bus towers small "
    "round shape red dusk scene detail prompt colors textures vivid user enhance simple"
).split()


def words(count: int, seed: int = 0) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def tokens(text: str, **options) -> list[int]:
    return [token for token, _ in bench.clip().tokenize(text, **options)[CLIP_NAME][0]]


def mask_of(cond: list) -> torch.Tensor:
    return cond[0][1]["attention_mask"]


def same(a: list, b: list) -> bool:
    return torch.equal(a[0][0], b[0][0]) and torch.equal(mask_of(a), mask_of(b))


# What the encoder is given


def test_selected_positions_are_bos_and_the_prompt():
    """The space that ends the instruction merges with the first word, so what follows BOS is the prompt."""
    positive, _ = bench.encode("a cat")
    sentencepiece = bench.clip().tokenizer.sentencepiece
    assert mask_of(positive).sum() == 1 + len(sentencepiece.encode(" a cat", add_bos=False))
    assert mask_of(positive).shape == (1, CONTEXT_LENGTH) and positive[0][0].shape == (1, CONTEXT_LENGTH, 64)
    assert mask_of(positive)[0, 0] == 1 and mask_of(positive)[0, -1] == 0


def test_an_empty_negative_shows_bos_alone_and_an_empty_prompt_the_last_space_too():
    positive, negative = bench.encode("", "")
    assert mask_of(negative).sum() == 1 and mask_of(negative)[0, 0] == 1
    assert mask_of(positive).sum() == 2


def test_the_prompt_is_given_the_instruction_and_the_negative_is_not():
    positive, negative = bench.encode("a cat", "a cat")
    plain, _ = bench.encode("a cat", instruction="off")
    assert not same(positive, negative)
    assert same(negative, plain)


def test_bos_is_the_same_state_with_and_without_instruction():
    """It sees nothing but itself, so any difference would be a wrong position."""
    positive, negative = bench.encode("a cat", "")
    assert bench.relative(positive[0][0][:, 0], negative[0][0][:, 0]) < 1e-5


def test_a_custom_instruction_replaces_the_trained_one():
    custom, _ = bench.encode("a cat", instruction="custom", custom="User Prompt: ")
    trained, _ = bench.encode("a cat", instruction="custom", custom=INSTRUCTION)
    none, _ = bench.encode("a cat", instruction="custom", custom="")
    assert same(trained, bench.encode("a cat")[0]) and same(none, bench.encode("a cat", instruction="off")[0])
    assert not same(custom, trained) and not same(custom, none)
    assert mask_of(custom).sum() == mask_of(trained).sum()


def test_stock_text_encode_gives_the_instruction_to_a_text_and_none_to_an_empty_one():
    positive, negative = bench.encode("a cat", "")
    assert same(bench.call("CLIPTextEncode", bench.clip(), "a cat")[0], positive)
    assert same(bench.call("CLIPTextEncode", bench.clip(), "")[0], negative)


def test_case_is_kept_unless_lowering_is_asked_for():
    upper, upper_negative = bench.encode("A Busy City", "Prompt")
    lower, lower_negative = bench.encode("a busy city", "prompt")
    assert not same(upper, lower)
    lowered = bench.encode("A Busy City", "Prompt", lower_case=True)
    assert same(lowered[0], lower) and same(lowered[1], lower_negative) and not same(upper_negative, lower_negative)


@pytest.mark.parametrize("text", ["a cat<end_of_turn>", "<end_of_turn>a cat", "a <end_of<end_of_turn>_turn>cat"])
def test_the_token_that_breaks_the_hosts_tokenizer_is_dropped_from_prompts(text):
    assert tokens(text)[0] == BOS and 107 not in tokens(text)
    assert tokens(text, instruction="")[:2] == tokens("a cat", instruction="")[:2]


def test_lowering_the_case_does_not_bring_that_token_back():
    assert tokens("a cat<END_OF_TURN>", lower_case=True)[0] == BOS
    assert tokens("a cat<END_OF_TURN>", lower_case=True) == tokens("a cat")


def test_a_custom_instruction_with_that_token_keeps_bos_and_all_of_the_prompt():
    given, _ = bench.encode("a cat", instruction="custom", custom="<start_of_turn>user\nDraw this.<end_of_turn>\n")
    assert tokens("a cat", instruction="Draw this.<end_of_turn>\n")[0] == BOS
    assert same(given, bench.encode("a cat", instruction="custom", custom="<start_of_turn>user\nDraw this.\n")[0])


def test_brackets_and_weights_are_plain_text():
    pieces = [token for token in tokens("(a cat:1.5)", instruction="") if token]
    assert pieces == bench.clip().tokenizer.sentencepiece.encode("(a cat:1.5)", add_bos=True)


def pieces_of(text: str) -> list[int]:
    return [token for token in tokens(text, instruction="") if token]


@pytest.mark.parametrize(
    "text",
    ["embedding:style", "a cat, embedding:style", "a\nembedding:style:1.2, cat", "<pad> a <eos> cat <bos>", "a\0b"],
)
def test_no_part_of_a_text_is_lost(text):
    sentencepiece = bench.clip().tokenizer.sentencepiece
    assert sentencepiece.decode(pieces_of(text)) == text
    trained = tokens(text)
    assert sentencepiece.decode([token for token in trained if token]) == INSTRUCTION + text


def test_a_backslash_before_a_bracket_is_left_out_as_in_the_hosts_prompts():
    assert pieces_of(r"a \(red\) cat") == pieces_of("a (red) cat") and pieces_of(r"a \ cat") != pieces_of("a  cat")


def test_word_ids_tell_the_text_from_bos_and_padding():
    row = bench.clip().tokenize("a cat", return_word_ids=True, instruction="")[CLIP_NAME][0]
    assert [token for token, _, _ in row] == tokens("a cat", instruction="")
    assert [word for _, _, word in row] == [int(0 < i < len(pieces_of("a cat"))) for i in range(CONTEXT_LENGTH)]


# What is said about it


@pytest.mark.parametrize(
    ("text", "code", "place"), [("a \ud83d cat", "D83D", 3), ("\udc31", "DC31", 1)], ids=["first half", "second half"]
)
def test_half_a_character_is_refused_in_one_sentence(text, code, place):
    sentence = rf"The prompt has half a character \(U\+{code}, .*\) at place {place}, .*: delete it or type"
    for inputs in ((text, ""), ("", text), ("a cat", "", "custom", text)):
        with pytest.raises(ValueError, match=sentence):
            bench.encode(*inputs)
    with pytest.raises(ValueError, match=sentence):
        bench.call("CLIPTextEncode", bench.clip(), text)
    with pytest.raises(ValueError, match=sentence):
        bench.clip().tokenize(text, skip_template=True)


def test_a_whole_emoji_is_not_refused():
    assert mask_of(bench.encode("\U0001f431")[0]).sum() > 1


@pytest.fixture
def on_node(monkeypatch) -> list[list[str]]:
    """What each call of the node writes on itself."""
    written = []

    def show(sentences, new=None):
        assert new == []  # the log has them from the tokenizer
        written.append(sentences)

    monkeypatch.setattr(conditioning, "show", show)
    return written


def test_a_prompt_that_is_cut_says_what_is_cut(caplog, on_node):
    text = words(900)
    whole = bench.clip().tokenizer.sentencepiece.encode(" " + " ".join(text), add_bos=False)
    bench.encode(" ".join(text), "blurry")
    (sentence,) = [message for message in caplog.messages if "cut off" in message]
    cut = re.fullmatch(r'SANA: the first 299 tokens count, so the last (\d+) are cut off: "(.*)\.\.\."', sentence)
    assert int(cut[1]) == len(whole) - 299
    assert cut[2] in " ".join(text) and " ".join(text).index(cut[2]) > 200
    assert on_node == [[sentence.replace("SANA: ", "Prompt: ")]]


def test_299_tokens_are_not_cut_and_300_are(caplog, on_node):
    fitting = "a" + " cat" * 200
    while len(tokens_of := bench.clip().tokenizer.sentencepiece.encode(" " + fitting, add_bos=False)) < 299:
        fitting += " a"
    assert len(tokens_of) == 299
    bench.encode(fitting)
    assert on_node == [[]] and "cut off" not in caplog.text
    bench.encode(fitting + " a", fitting + " a")
    assert [sentence.partition(":")[0] for sentence in on_node[1]] == ["Prompt", "Negative prompt"]
    assert caplog.text.count("so the last 1 are cut off") == 2


@pytest.mark.parametrize("text", ["a (red cat:1.2)", "(cat: 2)", "((cat):0.9)", "(a (red) cat:.5)"])
def test_weights_are_read_as_text_with_a_notice(text, caplog, on_node):
    bench.encode("", text)
    assert "SANA: weights as in (word:1.2) are read as plain text" in caplog.text
    assert on_node[0][0].startswith("Negative prompt: weights as in (word:1.2)")
    caplog.clear()
    bench.call(bench.OURS["GemmaEncode"], bench.clip(), "", text, "on", "", False, True)
    assert on_node[1] == [] and "SANA:" not in caplog.text


def test_an_unread_weight_is_told_on_the_node_and_once_in_the_log(caplog, on_node):
    bench.call(bench.OURS["GemmaEncode"], bench.clip(), "a (red:1.2, cat", "a cat", "on", "", False, True)
    assert [sentence[:32] for sentence in on_node[0]] == ['Prompt: "(red:1.2" is read as pl']
    assert caplog.text.count("is read as plain text") == 1


def test_without_its_weights_a_prompt_that_fits_is_not_cut(on_node):
    text = "a" + " (cat:1.2)" * 60
    for weights in (False, True):
        bench.call(bench.OURS["GemmaEncode"], bench.clip(), text, "", "on", "", False, weights)
    assert any("cut off" in sentence for sentence in on_node[0]) and on_node[1] == []


@pytest.mark.parametrize("text", ["a cat (red)", "a photo (16:9)", "time: 12:30", "cat:1.2", "(a cat: red)"])
def test_other_brackets_and_colons_get_no_notice(text, caplog, on_node):
    bench.encode(text)
    assert on_node == [[]] and "SANA:" not in caplog.text


@pytest.mark.parametrize("text", ["embedding:style", "a cat, embedding:style"])
def test_an_embedding_is_read_as_text_with_a_notice(text, caplog):
    bench.call("CLIPTextEncode", bench.clip(), text)
    assert "embedding:name is read as plain text" in caplog.text


def test_a_turns_end_that_is_left_out_is_said(caplog):
    tokens("a cat<end_of_turn>")
    assert "<end_of_turn> is left out" in caplog.text


def test_another_models_clip_is_refused_before_anything_is_said_of_the_prompt():
    with pytest.raises(ValueError, match="This CLIP tokenizes with str, .*load it with SANA Gemma Loader"):
        bench.call(bench.OURS["GemmaEncode"], SimpleNamespace(tokenizer=""), "a" * 5000, "", "on", "", False)


def test_spaces_around_a_prompt_are_dropped():
    assert tokens("  \n a cat \t") == tokens("a cat")


@pytest.mark.parametrize("text", ["2 cats", "\U0001f431 on a bus", "一只猫", "\n", "é", "a\u200bcat"])
def test_any_text_is_encoded_to_300_positions(text):
    for cond in bench.encode(text, text):
        assert cond[0][0].shape == (1, CONTEXT_LENGTH, 64) and mask_of(cond).shape == (1, CONTEXT_LENGTH)
        assert torch.isfinite(cond[0][0]).all() and mask_of(cond)[0, 0] == 1


def test_a_prompt_of_900_words_is_cut_at_its_end():
    text = words(900)
    cond = bench.encode(" ".join(text), " ".join(text))
    other = bench.encode(" ".join(text[:600] + words(300, seed=1)), " ".join(text[:600] + words(300, seed=1)))
    for a, b in zip(cond, other):
        assert a[0][0].shape == (1, CONTEXT_LENGTH, 64) and mask_of(a).sum() == CONTEXT_LENGTH
        assert same(a, b)
    start = bench.encode(" ".join(["street"] + text[1:]))[0]
    assert not same(cond[0], start)


# What reaches the latent


def test_late_words_of_a_long_prompt_change_every_picture_of_a_batch():
    first = words(60)
    second = first[:29] + words(31, seed=1)
    for batch_size in (1, 4):
        pictures = [
            bench.draw(bench.model("sana"), bench.encode(" ".join(text)), bench.empty(batch_size=batch_size))
            for text in (first, second)
        ]
        for a, b in zip(*pictures):
            assert bench.relative(a, b) > 1e-3


@pytest.mark.parametrize("negative", ["", "blurry " * 20], ids=["empty", "long"])
def test_passes_give_the_same_latent_split_or_batched(monkeypatch, negative):
    model, conds = bench.model("sana"), bench.encode("a cat", negative)
    seen = bench.count_calls(monkeypatch, model)
    together = bench.draw(model, conds)
    assert seen.batches == [2, 2]
    seen.batches.clear()
    with monkeypatch.context() as patch:
        patch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)  # the host then batches no passes
        split = bench.draw(model, conds)
    assert seen.batches == [1, 1, 1, 1]
    assert bench.relative(split, together) < 1e-5


def test_a_negative_without_its_padding_or_its_mask_gives_the_same_latent_in_the_same_passes(monkeypatch):
    model, (positive, negative) = bench.model("sana"), bench.encode("a cat", "blurry")
    length = int(mask_of(negative).sum())
    short = bench.changed(negative, context=negative[0][0][:, :length], attention_mask=mask_of(negative)[:, :length])
    unmasked = bench.changed(short, attention_mask=None)
    together = bench.draw(model, (positive, negative))
    seen = bench.count_calls(monkeypatch, model)
    assert bench.relative(bench.draw(model, (positive, short)), together) < 1e-5
    assert bench.relative(bench.draw(model, (positive, unmasked)), together) < 1e-5
    assert set(seen.batches) == {2}


@pytest.mark.parametrize(("family", "steps"), [("sana", 2), ("sana", 4), ("sprint", 1), ("sprint", 2), ("sprint", 4)])
def test_the_first_of_a_batch_is_the_single_picture(family, steps):
    model, conds = bench.model(family), bench.encoded()
    batch = bench.draw(model, conds, bench.empty(96, 160, batch_size=4), steps=steps)
    single = bench.draw(model, conds, bench.empty(96, 160), steps=steps)
    assert batch.shape == (4, 32, 5, 3)
    assert bench.relative(batch[:1], single) < 1e-5
    assert bench.relative(batch[1:2], single) > 0.1


def test_the_negative_prompt_acts_above_cfg_1_and_is_not_computed_at_1(monkeypatch):
    model = bench.model("sana")
    conds = [bench.encode("a cat", negative) for negative in ("", "blurry")]
    a, b = (bench.draw(model, cond, cfg=4.5) for cond in conds)
    assert bench.relative(a, b) > 1e-3
    seen = bench.count_calls(monkeypatch, model)
    a, b = (bench.draw(model, cond, cfg=1.0) for cond in conds)
    assert torch.equal(a, b) and seen.batches == [1, 1, 1, 1]


def test_a_negative_prompt_does_not_stick():
    model = bench.model("sana")
    fresh = bench.draw(model, bench.encode("a cat", ""))
    bench.draw(model, bench.encode("a cat", "blurry"))
    assert torch.equal(bench.draw(model, bench.encode("a cat", "")), fresh)


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_prompts_of_different_length_in_one_batch_equal_their_single_runs(family):
    model = bench.model(family)
    conds = [bench.encode(text, "blurry") for text in ("a cat", " ".join(words(40)))]
    noise = torch.randn(2, 32, 3, 5, generator=torch.Generator().manual_seed(11))
    cfg = 1.0 if family == "sprint" else 4.5

    def run(noise, positive, negative):
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, 4, cfg, "euler", "sana_flow", positive, negative, torch.zeros_like(noise), seed=1
            )

    def join(side):
        context, mask = (torch.cat([pick(pair[side]) for pair in conds]) for pick in (lambda cond: cond[0][0], mask_of))
        return bench.changed(conds[0][side], context=context, attention_mask=mask)

    batch = run(noise, join(0), join(1))
    for i, pair in enumerate(conds):
        assert bench.relative(batch[i : i + 1], run(noise[i : i + 1], *pair)) < 1e-5


# Averages of two texts


SHORT, LONG = "a cat", " ".join(words(60))


def average(to: str, other: str, strength: float) -> list:
    return bench.call("ConditioningAverage", bench.encode(to)[0], bench.encode(other)[0], strength)[0]


@pytest.mark.parametrize("family", bench.FAMILIES)
@pytest.mark.parametrize(("to", "other"), [(SHORT, LONG), (LONG, SHORT)], ids=["short first", "long first"])
def test_an_average_at_strength_0_is_the_second_text_and_at_1_the_first(family, to, other):
    model, negative = bench.model(family), bench.encode("")[1]
    alone = {text: bench.draw(model, (bench.encode(text)[0], negative)) for text in (to, other)}
    assert bench.relative(alone[to], alone[other]) > 1e-2
    for strength, text in ((0.0, other), (1.0, to)):
        assert torch.equal(bench.draw(model, (average(to, other, strength), negative)), alone[text])


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_an_average_does_not_depend_on_which_text_comes_first(strength):
    model, negative = bench.model("sana"), bench.encode("")[1]
    a, b = (
        bench.draw(model, (average(*texts, part), negative))
        for texts, part in (((SHORT, LONG), strength), ((LONG, SHORT), 1 - strength))
    )
    assert bench.relative(a, b) < 1e-5
    for text in (SHORT, LONG):
        assert bench.relative(a, bench.draw(model, (bench.encode(text)[0], negative))) > 1e-3


def test_an_average_with_an_empty_text_keeps_the_positions_of_the_other():
    model, negative = bench.model("sana"), bench.encode("")[1]
    both = bench.call("ConditioningAverage", negative, bench.encode(LONG)[0], 0.0)[0]
    expected = bench.draw(model, (bench.encode(LONG)[0], negative))
    assert torch.equal(bench.draw(model, (both, negative)), expected)


def test_an_earlier_layers_states_are_averaged_like_those_of_the_last():
    clip, model, negative = bench.clip().clone(), bench.model("sana"), bench.encode("")[1]
    clip.clip_layer(-2)
    short, long = (bench.call("CLIPTextEncode", clip, text)[0] for text in (SHORT, LONG))
    mixed = bench.call("ConditioningAverage", short, long, 0.0)[0]
    assert bench.relative(bench.draw(model, (mixed, negative)), bench.draw(model, (long, negative))) < 1e-5


def test_zero_rows_are_padding_only_where_the_encoder_says_so():
    """Others do not zero their padding, so that a zero row of theirs means something."""
    positive, negative = bench.encode(LONG)
    assert positive[0][1][ZERO_PADDED] is True
    context = positive[0][0].clone()
    context[:, 20:40] = 0
    model = bench.model("sana")
    marked = bench.draw(model, (bench.changed(positive, context=context), negative))
    plain = bench.draw(model, (bench.changed(positive, context=context, **{ZERO_PADDED: None}), negative))
    assert bench.relative(marked, plain) > 1e-4


def test_a_text_of_zeros_alone_keeps_its_mask():
    """As Conditioning Zero Out leaves it."""
    context = torch.zeros(2, 4, 3)
    context[1, :2] = 1
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert mask_of_rows(context, mask).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert mask_of_rows(context, None) is None and mask_of_rows(context[1:], None).tolist() == [[1, 1, 0, 0]]
    model, (positive, negative) = bench.model("sana"), bench.encode("a cat")
    zeroed = bench.call("ConditioningZeroOut", positive)[0]
    unmarked = bench.changed(zeroed, **{ZERO_PADDED: None})
    assert torch.equal(bench.draw(model, (zeroed, negative)), bench.draw(model, (unmarked, negative)))


def test_an_instruction_longer_than_gemma_reads_is_refused():
    with pytest.raises(
        ValueError, match=r"custom instruction has \d+ tokens, but at most 4096 .* shorten custom_instr"
    ):
        bench.encode("a cat", instruction="custom", custom="word " * 6000)


def test_a_missing_text_encoder_is_told():
    with pytest.raises(ValueError, match="no text encoder to encode with: connect the CLIP of SANA Gemma Loader"):
        bench.call(bench.OURS["GemmaEncode"], None, "a cat")
