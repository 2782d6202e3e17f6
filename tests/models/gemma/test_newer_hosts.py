"""What newer hosts do otherwise around a text encoder, imitated: their generation node, their layers, their caches."""

import comfy.text_encoders.llama as llama
import pytest
import torch
from sana_native.models.gemma.chat import END_OF_TURN, START_OF_TURN
from sana_native.models.gemma.text_encoder import CLIP_NAME, INSTRUCTION
from sana_native.models.runtime import device
from sana_native.tests.support import workbench as bench


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def clip(request, monkeypatch):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)
    return bench.load_gemma(str(bench.folder() / "sana"), {"dtype": request.param})


def ask(clip, text: str, **inputs) -> str:
    """The question as the newer node asks for it: a list of pictures in place of one, and a system prompt."""
    unlinked = {"images": {}, "video": None, "audio": None, "system_prompt": ""}
    tokens = clip.tokenize(text, skip_template=False, min_length=1, thinking=False, **unlinked | inputs)
    return clip.tokenizer.sentencepiece.decode([token for token, *_ in tokens[CLIP_NAME][0]][1:])


def states(clip, prompt: str = "a red cat") -> torch.Tensor:
    clip.cond_stage_model.states_cache.clear()
    clip.cond_stage_model.prefix_cache.clear()
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0]


# Its generation node


@pytest.mark.parametrize("unlinked", [{}, [], None], ids=str)
def test_an_empty_list_of_pictures_is_none(clip, unlinked):
    assert ask(clip, "a cat", images=unlinked) == ask(clip, "a cat")


@pytest.mark.parametrize(
    "linked", [{"images": [torch.zeros(1, 8, 8, 3)]}, {"audio": {"waveform": torch.zeros(1, 2, 8)}}]
)
def test_pictures_and_sound_are_refused(clip, linked):
    with pytest.raises(ValueError, match="SANA's Gemma-2 reads text alone: unlink image, video and audio"):
        ask(clip, "a cat", **linked)


def test_a_system_prompt_takes_the_place_of_the_instruction(clip):
    turn = f"{START_OF_TURN}user\n{{}}a cat{END_OF_TURN}\n{START_OF_TURN}model\n"
    assert ask(clip, "a cat") == turn.format(INSTRUCTION)
    assert ask(clip, "a cat", system_prompt=f" Answer{END_OF_TURN} in verse. ") == turn.format("Answer in verse.\n\n")


def test_a_system_prompt_beside_turns_of_its_own_is_warned_about(clip, caplog):
    own = f"{START_OF_TURN}user\na poem{END_OF_TURN}\n{START_OF_TURN}model\n"
    assert ask(clip, own, system_prompt="Answer in verse.") == own
    assert "SANA: system_prompt has no effect, as the text is asked as it stands" in caplog.text


# Its layers


def test_layers_that_write_into_their_input_give_the_same_states(clip, monkeypatch):
    expected, forward = states(clip), llama.TransformerBlockGemma2.forward

    def forward_inplace(self, x, *args, **kwargs):
        out, present = forward(self, x, *args, **kwargs)
        return x.copy_(out), present

    monkeypatch.setattr(llama.TransformerBlockGemma2, "forward", forward_inplace)
    assert torch.equal(states(clip), expected)
    with torch.inference_mode():
        context, mask = clip.cond_stage_model.encode_every_position(clip.tokenize("a red cat"))
    assert torch.allclose(context[mask.bool()], expected[mask.bool()], atol=3e-2)


@pytest.fixture
def rope_matrices(monkeypatch) -> list[tuple]:
    """The newer host's rotation by matrices, made of the three tables wherever they arrive; which ones were made."""
    made, apply_rope = [], llama.apply_rope

    def rope_matrix(rotation):
        if not torch.is_tensor(rotation):
            made.append(rotation)
            cos, sin, negative_sin = rotation
            half = sin.shape[-1]
            rotation = torch.stack((cos[..., :half], negative_sin, sin, cos[..., half:]), dim=-1)
        return rotation.unflatten(-1, (2, 2)) if rotation.shape[-1] == 4 else rotation

    def apply_matrix(q, k, freqs_cis):
        matrix = rope_matrix(freqs_cis)
        cos = torch.cat((matrix[..., 0, 0], matrix[..., 1, 1]), dim=-1)
        return apply_rope(q, k, (cos, matrix[..., 1, 0], matrix[..., 0, 1]))

    monkeypatch.setattr(llama, "rope_matrix", rope_matrix, raising=False)
    monkeypatch.setattr(llama, "apply_rope", apply_matrix)
    return made


def test_the_rotation_is_made_once_a_pass(monkeypatch, request):
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: False)
    clip = bench.load_gemma(str(bench.folder() / "sana"))
    expected = states(clip)
    made = request.getfixturevalue("rope_matrices")
    assert torch.equal(states(clip), expected)
    assert len(made) == 2, "of the instruction and of the prompt"


# Its cache of fixed size


def test_generation_keeps_to_the_cache_that_the_soft_cap_acts_on(clip, monkeypatch):
    """A newer host takes the other one for models that allow it: its kernel for single positions has no soft cap."""
    network = clip.cond_stage_model.gemma2_2b.transformer
    monkeypatch.setattr(llama.Gemma2_2B_Config, "fixed_kv", True, raising=False)
    init = llama.Llama2_.__init__

    def init_with_fixed_kv(self, config, *args, **kwargs):
        init(self, config, *args, **kwargs)
        self.fixed_kv = config.fixed_kv

    monkeypatch.setattr(llama.Llama2_, "__init__", init_with_fixed_kv)
    assert bench.load_gemma(str(bench.folder() / "sana")).cond_stage_model.gemma2_2b.transformer.model.fixed_kv is False
    assert network.model.fixed_kv is False
