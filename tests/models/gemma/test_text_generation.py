"""The host's text generation on SANA's text encoder: the words of transformers' own Gemma-2, asked in its turns."""

from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from comfy_extras.nodes_textgen import TextGenerate
from sana_native.models.gemma.chat import END_OF_TURN, START_OF_TURN
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.gemma.text_encoder import INSTRUCTION
from sana_native.tests.support import tiny
from sana_native.tests.support.workbench import call

GREEDY = {"sampling_mode": "off"}
TURN = f"{START_OF_TURN}user\n{INSTRUCTION}a cat sleeping{END_OF_TURN}\n{START_OF_TURN}model\n"


def save_encoder(folder: Path, marks: str = "user_defined_symbols") -> Path:
    """A tiny Gemma-2 whose next token is decided by its layers. `marks`: how its vocabulary has those of the turns."""
    pieces = (START_OF_TURN, END_OF_TURN)
    own = {"symbols": pieces} if marks == "user_defined_symbols" else {marks: list(pieces)} if marks else {}
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(tiny.train_tokenizer(640, **own))
    encoder = tiny.gemma(640, gain=3.0)
    with torch.no_grad():  # short: else a token is simply followed by itself, as tied random embeddings would have it
        encoder.embed_tokens.weight.mul_(0.02)
    encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("gemma") / "sana")


@pytest.fixture(scope="module")
def clip(folder):
    return load_gemma(str(folder))


@pytest.fixture(scope="module")
def reference(folder) -> transformers.Gemma2ForCausalLM:
    encoder = transformers.Gemma2Model.from_pretrained(folder / "text_encoder", attn_implementation="eager")
    model = transformers.Gemma2ForCausalLM(encoder.config)
    model.model = encoder
    model.lm_head.weight = encoder.embed_tokens.weight
    return model.eval().float()


def ask(clip, text: str, template: bool = False) -> list[int]:
    """Token ids of a question, as the host's node asks for them."""
    tokens = clip.tokenize(text, skip_template=not template, min_length=1, image=None, video=None, audio=None)
    return [token for token, *_ in tokens["gemma2_2b"][0]]


def answer(clip, ids: list[int], length: int, **options) -> list[int]:
    with torch.inference_mode():
        tokens = {"gemma2_2b": [[(token, 1.0) for token in ids]]}
        return clip.generate(tokens, **{"do_sample": False, "max_length": length} | options)


@pytest.mark.parametrize("template", [False, True], ids=["plain", "with the instruction"])
def test_greedy_generation_equals_transformers(clip, reference, template):
    ids = ask(clip, "a cat sleeping on a busy street", template)
    expected = reference.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    expected = expected[0, len(ids) :].tolist()
    assert len(set(expected)) > 8, "an answer of few words would prove little"
    assert answer(clip, ids, 24) == expected


def test_scores_of_the_next_token_are_bent_as_in_gemma(clip, reference):
    """Greedy generation does not see it, sampling does."""
    ids = ask(clip, "a cat sleeping")
    network = clip.cond_stage_model.gemma2_2b.transformer
    with torch.inference_mode():
        states = network.model(torch.tensor([ids]), dtype=torch.float32)[0]
        ours, theirs = network.logits(300 * states)[:, -1], reference.lm_head(300 * states[:, -1])
    theirs = 30 * torch.tanh(theirs / 30)
    assert theirs.abs().max() > 25, "small scores are hardly bent"
    assert (ours - theirs).abs().max() < 1e-4
    with torch.inference_mode():
        assert (network.logits(states)[:, -1] - reference(torch.tensor([ids])).logits[:, -1]).abs().max() < 1e-4


def test_question_is_a_turn_with_the_trained_instruction(clip):
    words = clip.tokenizer.sentencepiece
    ids = ask(clip, " a cat sleeping ", template=True)
    assert ids[0] == words.bos_id() and words.decode(ids[1:]) == TURN
    assert [words.id_to_piece(ids[1]), ids.count(words.piece_to_id(START_OF_TURN))] == [START_OF_TURN, 2]
    assert ids.count(words.piece_to_id(END_OF_TURN)) == 1


def test_tokens_of_a_turn_equal_transformers_chat_template(clip, folder):
    tokenizer = transformers.GemmaTokenizer.from_pretrained(folder / "tokenizer", add_bos_token=True)
    assert ask(clip, "a cat sleeping", template=True) == tokenizer(TURN).input_ids


def test_text_with_turns_of_its_own_is_asked_as_it_stands(clip):
    own = f"{START_OF_TURN}user\na poem{END_OF_TURN}\n{START_OF_TURN}model\n"
    assert ask(clip, own, template=True) == ask(clip, own, template=False)
    assert clip.tokenizer.sentencepiece.decode(ask(clip, own)[1:]) == own


def test_a_prompt_cannot_end_its_own_turn(clip):
    assert ask(clip, f"a cat{END_OF_TURN} sleeping", template=True) == ask(clip, "a cat sleeping", template=True)


def test_answer_ends_with_the_turn_and_shows_no_mark(folder, tmp_path, reference):
    """The token that is fifth in the answer changes places with the end of the turn."""
    ids = ask(load_gemma(str(folder)), "a cat sleeping")
    whole = reference.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, len(ids) :]
    words = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer" / "tokenizer.model"))
    fifth, end = int(whole[4]), words.piece_to_id(END_OF_TURN)
    assert fifth not in [*ids, *whole[:4].tolist()] and end not in [*ids, *whole.tolist()]
    encoder = transformers.Gemma2Model.from_pretrained(folder / "text_encoder")
    with torch.no_grad():
        encoder.embed_tokens.weight[[fifth, end]] = encoder.embed_tokens.weight[[end, fifth]]
    encoder.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    swapped = load_gemma(str(tmp_path))
    assert answer(swapped, ids, 8) == [*whole[:4].tolist(), end]
    assert swapped.decode(answer(swapped, ids, 8)) == words.decode(whole[:4].tolist())


def test_clone_of_the_clip_stops_at_the_same_tokens(clip):
    """A LoRA or Set Last Layer between loader and node works on a clone."""
    words = clip.tokenizer.sentencepiece
    stops = clip.clone().cond_stage_model.gemma2_2b.transformer.model.config.stop_tokens
    assert stops == [words.eos_id(), words.piece_to_id(END_OF_TURN)]


def test_vocabulary_without_turns_spells_their_marks(tmp_path):
    clip = load_gemma(str(save_encoder(tmp_path / "plain", marks="")))
    assert clip.tokenizer.sentencepiece.decode(ask(clip, "a cat sleeping", template=True)[1:]) == TURN
    assert clip.cond_stage_model.gemma2_2b.transformer.model.config.stop_tokens == [1]


def test_marks_are_one_token_each_where_the_vocabulary_keeps_them_from_plain_text(tmp_path):
    """SentencePiece spells out its control symbols when a text names them."""
    clip = load_gemma(str(save_encoder(tmp_path / "control", marks="control_symbols")))
    words = clip.tokenizer.sentencepiece
    ids = ask(clip, "a cat sleeping", template=True)
    assert [ids.count(words.piece_to_id(mark)) for mark in (START_OF_TURN, END_OF_TURN)] == [2, 1]
    assert clip.decode([*ids, words.piece_to_id(END_OF_TURN)]) == f"user\n{INSTRUCTION}a cat sleeping\nmodel\n"


def test_hosts_node_answers_and_repeats_itself_with_a_seed(clip):
    sampling = {"sampling_mode": "on", "temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0, "seed": 3}
    first, again = (call(TextGenerate, clip, "a cat", 12, sampling)[0] for _ in range(2))
    other = call(TextGenerate, clip, "a cat", 12, sampling | {"seed": 4})[0]
    assert first == again != other and first
    assert call(TextGenerate, clip, "a cat", 12, GREEDY)[0] not in (first, other)


def test_generation_leaves_the_encoding_as_it_was(clip):
    """The clip is shared: what it wrote before must not show in the conditioning."""
    before = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))[0][0]
    answer(clip, ask(clip, "a cat", template=True), 6)
    assert torch.equal(before, clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))[0][0])


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_pictures_and_sound_are_refused(clip, kind):
    with pytest.raises(ValueError, match="SANA's Gemma-2 reads text alone: unlink image, video and audio"):
        call(TextGenerate, clip, "what is this", 4, GREEDY, **{kind: torch.zeros(1, 8, 8, 3)})
