"""Gemma-2 as SANA's text encoder: instruction, token positions, attention soft-capping.

Source: SANA, arXiv 2410.10629 section 3.3; Gemma 2, arXiv 2408.00118 section 2. The host's Gemma-2 classes do the
work; what they lack is added here by subclasses: logit soft-capping, the choice of positions, a one-file tokenizer, and
for the host's text generation the turns of Gemma's chat.
"""

import logging
from collections.abc import Sized
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.text_encoders.lumina2 import Gemma2BTokenizer
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from ..files.prepare import prepare_state_dict
from ..files.quantized import make_movable
from ..runtime.cpu.linear_ops import TextOperations
from ..runtime.precision import FLOAT8
from ..runtime.progress import tracked
from ..runtime.prompt_weights import encode_weighted, read_weights, unescape, unread_weights, weights_of_pieces
from ..runtime.weight_fingerprint import WeightFingerprint, read_version, with_version
from ..runtime.zero_padding import ZERO_PADDED
from ..runtime.precision import require_finite_states
from .bfloat16 import Bfloat16Gemma2
from .chat import END_OF_TURN, START_OF_TURN, as_question, decode_answer, encode_turns, stop_tokens
from .model import Gemma2, KeysValues
from .prefix_cache import (
    PREFIXES,
    TEXTS,
    Prefix,
    TextCache,
    clear_caches,
    compact,
    fingerprint_in_use,
    track_loaded,
)
from .prompt_checks import TEXT_NOTICES, check_surrogates, describe_cut

logger = logging.getLogger(__name__)

# The text SANA was trained with, character for character; the quotes and the trailing space matter.
INSTRUCTION = "\n".join(
    [
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual descriptions suitable for '
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing "
        "street lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering "
        "glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    ]
)
PAD = 0
LONGEST_INSTRUCTION = 4096  # tokens; with the prompt about half of what Gemma-2 was trained to read at once
CONTEXT_LENGTH = 300  # positions the transformer is given: BOS and the last 299
CLIP_NAME = "gemma2_2b"  # the host's prefix for this encoder in saved files
COMPUTE = f"{CLIP_NAME}_compute"  # of model_options: the format of matrix products, float32 unless given


def without_end_of_turn(text: str) -> str:
    """The text without the one token at which the host's tokenizer omits BOS and then drops the first word."""
    while END_OF_TURN in text:
        text = text.replace(END_OF_TURN, "")
    return text


class GemmaModel(comfy.sd1_clip.SDClipModel):
    """Last hidden state after the final norm, with the attention mask."""

    def __init__(self, device="cpu", dtype=None, model_options: dict[str, Any] = {}, **kwargs):  # noqa: ARG002, B006 - the host's signature
        if model_options.get("quantization_metadata") is None:
            model_options = {"custom_operations": TextOperations} | model_options
        super().__init__(
            device=device,
            dtype=dtype,
            layer="last",
            textmodel_json_config={},
            special_tokens={"start": 2, "pad": PAD},
            layer_norm_hidden_state=False,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_class=Bfloat16Gemma2 if model_options.get(COMPUTE) == torch.bfloat16 else Gemma2,
            model_options=model_options,
        )


class SanaTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """SentencePiece tokens of [instruction +] prompt, right-padded so that the last 299 positions are the prompt's."""

    def __init__(self, embedding_directory=None, tokenizer_data: dict = {}):  # noqa: B006 - the host's signature
        super().__init__(embedding_directory, tokenizer_data, name=CLIP_NAME, tokenizer=Gemma2BTokenizer)

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        instruction: str | None = None,
        lower_case: bool = False,
        skip_template: bool | None = None,
        **kwargs,
    ) -> dict[str, list]:
        """Token pairs of a prompt.

        instruction: text put before the prompt; "" for none; None for the trained one, except before an empty prompt,
            which is how stock text encode nodes reach us: an empty text there is a negative prompt, and negatives were
            never trained with it.
        lower_case: lower the prompt's case as diffusers does.
        skip_template: given by the host's text generation, and by it alone. False asks for a detailed version of the
            prompt, with the trained instruction as a user's turn; True gives the text as it stands. Raises ValueError
            when that generation brings an image or sound too.

        What of the text does not count is logged. Raises ValueError for text with half a surrogate pair.
        """
        check_surrogates(text, instruction or "")
        if skip_template is not None:
            return {CLIP_NAME: [self.question(text, skip_template, **kwargs)]}
        ids, length = self.prompt_ids(text, instruction, lower_case)
        for sentence in self.notices(text, instruction, lower_case):
            logger.warning("SANA: %s", sentence)
        ids = ids[:length] + [PAD] * (length - len(ids))
        if return_word_ids:
            return {CLIP_NAME: [[(token, 1.0, 1 if 0 < i and token != PAD else 0) for i, token in enumerate(ids)]]}
        return {CLIP_NAME: [[(token, 1.0) for token in ids]]}

    def prompt_ids(self, text: str, instruction: str | None, lower_case: bool) -> tuple[list[int], int]:
        """Token ids of [instruction +] prompt, and how many of them count."""
        text = self.clean(text, lower_case)
        instruction = instruction_before(text, instruction)
        length = CONTEXT_LENGTH
        if instruction:
            # BOS is counted twice and the instruction's last space merges with the prompt: hence the 2.
            length += len(self.encode(instruction)) - 2
        if length > CONTEXT_LENGTH + LONGEST_INSTRUCTION:
            raise ValueError(
                f"The custom instruction has {length - CONTEXT_LENGTH} tokens, but at most {LONGEST_INSTRUCTION} are "
                "read before the prompt: shorten custom_instruction."
            )
        return self.encode(instruction + text), length

    def clean(self, text: str, lower_case: bool = False) -> str:
        return without_end_of_turn(text.lower() if lower_case else text).strip()

    def token_weights(self, text: str, weights: list[float], instruction: str | None = None) -> Tensor:
        """Weights (1, 300) of the positions that the transformer is given, from those of the characters of a text.

        text: clean. Raises ValueError for a tokenizer whose tokens do not spell the text.
        """
        ids, length = self.prompt_ids(text, instruction, lower_case=False)
        before = instruction_before(text, instruction)
        whole, weights = unescape(before + text, [1.0] * len(before) + weights)
        found = [1.0, *weights_of_pieces(self.sentencepiece, ids[1:], whole, weights)][:length]
        found += [1.0] * (length - len(found))
        return torch.tensor([found[:1] + found[1 - CONTEXT_LENGTH :]])

    def encode(self, text: str) -> list[int]:
        """BOS and the tokens of a text, in which a backslash before a bracket is left out as in the host's prompts."""
        return self.sentencepiece.encode(text.replace("\\(", "(").replace("\\)", ")"), add_bos=True, add_eos=False)

    def notices(self, text: str, instruction: str | None = None, lower_case: bool = False) -> list[str]:
        """Sentences on what of a prompt does not act as its writer may expect."""
        check_surrogates(text, instruction or "")
        ids, length = self.prompt_ids(text, instruction, lower_case)
        sentences = [sentence for pattern, sentence in TEXT_NOTICES if pattern.search(text)]
        if len(ids) > length:
            sentences.insert(0, describe_cut(self.sentencepiece.decode(ids[length:]), len(ids) - length))
        return sentences

    @property
    def sentencepiece(self) -> SentencePieceProcessor:
        return self.gemma2_2b.tokenizer.tokenizer

    def question(
        self, text: str, plain: bool, image=None, images=None, video=None, audio=None, system_prompt: str = "", **_
    ) -> list[tuple[int, float]]:
        """Token pairs of a question. system_prompt: in place of the instruction; Gemma-2 knows no turn of its own for
        one. Newer hosts give it, and `images` for `image`."""
        if any(map(is_linked, (image, images, video, audio))):
            raise ValueError("SANA's Gemma-2 reads text alone: unlink image, video and audio from the node that asks.")
        system_prompt = without_end_of_turn(system_prompt or "").strip()
        if not plain and not text.startswith(START_OF_TURN):
            before = f"{system_prompt}\n\n" if system_prompt else INSTRUCTION
            text = as_question(before + without_end_of_turn(text).strip())
        elif system_prompt:
            logger.warning("SANA: system_prompt has no effect, as the text is asked as it stands, without a template.")
        return [(token, 1.0) for token in encode_turns(self.sentencepiece, text)]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:  # noqa: ARG002 - the host's signature
        return decode_answer(self.sentencepiece, token_ids)

    def state_dict(self) -> dict[str, Tensor]:
        # With the encoder's own prefix CLIPSave writes weights and tokenizer into one file.
        return {f"{CLIP_NAME}.{key}": value for key, value in super().state_dict().items()}


def instruction_before(text: str, instruction: str | None) -> str:
    """The instruction that a clean text gets; None stands for the trained one, which an empty text gets none of."""
    if instruction is None:
        instruction = INSTRUCTION if text else ""
    return without_end_of_turn(instruction)


def is_linked(given) -> bool:
    """Whether an input of the host's node is wired: a list of inputs arrives as an empty container if none is."""
    return given is not None and not (isinstance(given, Sized) and len(given) == 0)


class SanaTextEncoder(comfy.sd1_clip.SD1ClipModel):
    """Gemma-2 states at BOS and the last 299 positions: context (1, 300, C) and attention_mask (1, 300)."""

    def __init__(self, device="cpu", dtype=None, model_options: dict[str, Any] = {}):  # noqa: B006 - the host's signature
        super().__init__(device=device, dtype=dtype, name=CLIP_NAME, clip_model=GemmaModel, model_options=model_options)
        self.prefix_cache, self.states_cache = TextCache(PREFIXES), TextCache(TEXTS)

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple[Tensor, None, dict[str, Tensor]]:
        rows = token_weight_pairs[CLIP_NAME]
        if self.gemma2_2b.layer == "last" and is_plain(rows):
            context, mask = self.encode_tokens([token for token, *_ in rows[0]])
        else:
            context, mask = self.encode_every_position(token_weight_pairs)
        require_finite_states(context)
        context = context * mask.to(context)[..., None]  # the host's way computes the padding too
        return context, None, {"attention_mask": mask, ZERO_PADDED: True}

    def encode_every_position(self, token_weight_pairs: dict) -> tuple[Tensor, Tensor]:
        """The host's way: it knows embeddings, hidden layers, and weights, which are measured from an empty prompt."""
        context, _, extra = super().encode_token_weights(token_weight_pairs)
        mask = extra["attention_mask"]
        if context.shape[1] > CONTEXT_LENGTH:
            last = 1 - CONTEXT_LENGTH
            context = torch.cat([context[:, :1], context[:, last:]], dim=1)
            mask = torch.cat([mask[:, :1], mask[:, last:]], dim=1)
        return context, mask

    def encode_tokens(self, tokens: list[int]) -> tuple[Tensor, Tensor]:
        """Context and mask of one row, padded on the right.

        Padding is not computed, as no position may attend to it: its states are zero. A text whose states are cached
        is not computed either.
        """
        device = self.gemma2_2b.execution_device or self.gemma2_2b.transformer.get_input_embeddings().weight.device
        fingerprint = fingerprint_in_use(self, self.gemma2_2b.transformer)
        states = self.states_cache.find(tokens, fingerprint, device)
        if states is None:
            states = self.compute_states(tokens, fingerprint, device)
            self.states_cache.store(tokens, fingerprint, device, states)
        length = min(len(tokens), CONTEXT_LENGTH)
        context = torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
        mask = (torch.arange(length, device=device)[None] < states.shape[1]).long()
        target = comfy.model_management.intermediate_device()
        return context.to(target), mask.to(target)

    def compute_states(self, tokens: list[int], fingerprint: WeightFingerprint | None, device) -> Tensor:
        """States (1, L, C) in float32 of the text's L positions, at most BOS and the last 299 with their padding.

        Of positions before those only keys and values are needed, and they are cached for the next prompt.
        """
        prefix_length = len(tokens) - (CONTEXT_LENGTH - 1) if len(tokens) > CONTEXT_LENGTH else 0
        used = tokens[: tokens.index(PAD)] if PAD in tokens else tokens
        selected, past = [], []
        if prefix_length:
            prefix = self.encode_prefix(used[:prefix_length], fingerprint, device)
            selected, past = [prefix.first], prefix.keys_values
        if used[prefix_length:]:
            selected.append(self.continue_from(past, used[prefix_length:], device)[0])
        return torch.cat(selected, dim=1).float()

    def encode_prefix(self, tokens: list[int], fingerprint: WeightFingerprint | None, device) -> Prefix:
        """Always computed apart from what follows, so that a prompt's states do not depend on those before it."""
        prefix = self.prefix_cache.find(tokens, fingerprint, device)
        if prefix is None:
            states, keys_values = self.continue_from([], tokens, device)
            prefix = Prefix([(compact(keys), compact(values)) for keys, values in keys_values], states[:, :1].clone())
            self.prefix_cache.store(tokens, fingerprint, device, prefix)
        return prefix

    def continue_from(self, past: KeysValues, tokens: list[int], device) -> tuple[Tensor, KeysValues]:
        embeds = self.gemma2_2b.process_tokens([tokens], device)[0]
        return self.gemma2_2b.transformer.continue_from(past, embeds)


def is_plain(rows: list[list[tuple]]) -> bool:
    """Whether this is one text of tokens without weights, as our tokenizer makes it."""
    if len(rows) != 1 or not rows[0]:
        return False
    return all(isinstance(token, int) and weight == 1.0 for token, weight, *_ in rows[0]) and rows[0][0][0] != PAD


class GemmaClip(comfy.sd.CLIP):
    """The host's CLIP, which on the CPU uses weights where the file is mapped and keeps the norms wide."""

    def __init__(self, *args, **kwargs):
        # The host runs nodes in inference mode, where weights would have no version counter.
        with torch.inference_mode(False), torch.no_grad():
            super().__init__(*args, **kwargs)
        # The host stops at the end of the text alone, which an instruction-tuned Gemma does not write.
        self.cond_stage_model.gemma2_2b.transformer.model.config.stop_tokens = stop_tokens(self.tokenizer.sentencepiece)
        if isinstance(self.cond_stage_model.gemma2_2b.transformer, Bfloat16Gemma2):
            self.patcher.set_model_compute_dtype(torch.bfloat16)
        self.patcher.add_callback_with_key(CallbacksMP.ON_LOAD, "sana_text_caches", track_loaded)
        self.patcher.add_callback_with_key(CallbacksMP.ON_DETACH, "sana_text_caches", clear_caches)

    def load_sd(self, sd: dict[str, Tensor], full_model: bool = False):  # noqa: ARG002 - the host's signature
        for key, tensor in sd.items():
            if read_version(tensor) is None:
                sd[key] = with_version(tensor)
        for key, tensor in sd.items():
            if key.endswith("norm.weight") and tensor.dtype in FLOAT8:
                sd[key] = tensor.to(torch.bfloat16)
        model = self.cond_stage_model
        assign = prepare_state_dict(model.gemma2_2b.transformer, sd, self.patcher)
        for module in model.modules():  # the host's way to hand it on
            module.can_assign_sd = assign
        loaded = model.load_sd(sd)
        make_movable(model)
        return loaded


def encode_prompts(
    clip,
    prompt: str,
    negative_prompt: str,
    instruction: str | None = None,
    lower_case: bool = False,
    weights: bool = False,
) -> tuple[list, list]:
    """Host conditioning of a prompt and a negative prompt; only the prompt is given the instruction.

    The negative is encoded even where the sampler will not use it, as a Sprint or a cfg of 1 does not: a node is not
    told what its outputs are linked to, and the sampler's cfg can come from anywhere. Its states are cached instead, so
    that it is computed with the first prompt alone.

    instruction: None for the trained one, "" for none. weights: read those of (word:1.2), as TOKEN_WEIGHTS. Raises
    ValueError when the CLIP is not SANA's text encoder, and for a negative weight.
    """
    texts = with_instruction(clip, prompt, negative_prompt, instruction)
    positive, negative = (encode_weighted(clip, text, own, lower_case, weights) for text, own in tracked(texts))
    return positive, negative


def prompt_notices(
    clip,
    prompt: str,
    negative_prompt: str,
    instruction: str | None = None,
    lower_case: bool = False,
    weights: bool = False,
) -> list[str]:
    """Sentences on what of the two prompts does not act as their writer may expect.

    Raises ValueError when the CLIP is not SANA's text encoder, and for a negative weight.
    """
    texts = with_instruction(clip, prompt, negative_prompt, instruction)
    found = []
    for name, (text, own) in zip(("Prompt", "Negative prompt"), texts, strict=True):
        text, read = read_weights(clip, text, lower_case, weights, negative=name != "Prompt")
        unread = [] if read is None else unread_weights(text)
        for sentence in unread:  # the others are logged where a text is tokenized
            logger.warning("SANA: %s", sentence)
        found += [f"{name}: {sentence}" for sentence in [*clip.tokenizer.notices(text, own, lower_case), *unread]]
    return found


def with_instruction(clip, prompt: str, negative_prompt: str, instruction: str | None) -> list[tuple[str, str]]:
    """Both texts, each with what is put before it. Raises ValueError when the CLIP is not SANA's text encoder."""
    require_gemma_clip(clip)
    return [(prompt, INSTRUCTION if instruction is None else instruction), (negative_prompt, "")]


def require_gemma_clip(clip) -> None:
    if clip is None:
        raise ValueError("There is no text encoder to encode with: connect the CLIP of SANA Gemma Loader.")
    if not hasattr(clip.tokenizer, "notices"):  # of the text encoders of this pack, other families' too
        raise ValueError(
            f"This CLIP tokenizes with {type(clip.tokenizer).__name__}, not as SANA needs: "
            "load it with SANA Gemma Loader."
        )
