"""T5-XXL as PixArt's text encoder: the host's classes, with prompts cut where training cut them.

Source: PixArt-Sigma, arXiv 2403.04692 (300 tokens); PixArt-alpha, arXiv 2310.00426 (120 tokens).
"""

import logging

import comfy.sd
import comfy.text_encoders.pixart_t5
from torch import Tensor

from ..files.prepare import prepare_state_dict
from ..files.quantized import make_movable
from ..runtime.precision import require_finite_states

logger = logging.getLogger(__name__)

CLIP_NAME = "t5xxl"  # the host's prefix for this encoder in saved files
CONTEXT_LENGTH = 300  # tokens with the one that ends the text
END = 1
EXCERPT = 120  # characters of a text in a notice


class T5Tokenizer(comfy.text_encoders.pixart_t5.PixArtTokenizer):
    """Tokens of a prompt with the host's weights, at most 300: the first 299 and the end of the text."""

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        instruction: str | None = None,  # noqa: ARG002 - of Gemma-2's; PixArt was trained without one
        lower_case: bool = False,
        skip_template: bool | None = None,
        **kwargs,
    ) -> dict[str, list]:
        """Token pairs of a prompt. lower_case: lower the case as diffusers does.

        skip_template: given by the host's text generation, and by it alone. What of the text does not count is logged.
        Raises ValueError for skip_template, and for text with half a surrogate pair.
        """
        if skip_template is not None:
            raise ValueError("T5 encodes PixArt's prompts only: take the Gemma-2 of SANA to generate text.")
        for sentence in self.notices(text, lower_case=lower_case):
            logger.warning("SANA: %s", sentence)
        (row,) = super().tokenize_with_weights(plain(text, lower_case), return_word_ids, **kwargs)[CLIP_NAME]
        if len(row) > CONTEXT_LENGTH:
            row = [*row[: CONTEXT_LENGTH - 1], row[-1]]
        return {CLIP_NAME: [row]}

    def notices(self, text: str, instruction: str | None = None, lower_case: bool = False) -> list[str]:  # noqa: ARG002 - as above
        """Sentences on what of a prompt does not act."""
        tokens = super().tokenize_with_weights(plain(text, lower_case))[CLIP_NAME][0]
        ids = [token for token, _ in tokens]
        if self.is_unknown(ids):
            return ["T5 knows no letter of this prompt, so it says nothing of the image: write it in English"]
        rest = ids[CONTEXT_LENGTH - 1 : -1]
        if len(tokens) <= CONTEXT_LENGTH:
            return []
        cut = " ".join(self.clip_t5xxl.tokenizer.decode(rest).split())
        excerpt = cut if len(cut) <= EXCERPT else f"{cut[:EXCERPT]}..."
        return [f'the first {CONTEXT_LENGTH - 1} tokens count, so the last {len(rest)} are cut off: "{excerpt}"']

    def is_unknown(self, ids: list) -> bool:
        """Whether T5 has tokens for no letter of a text, only for its marks, as of Chinese or emoji."""
        tokenizer = self.clip_t5xxl.tokenizer
        if not all(isinstance(token, int) for token in ids) or tokenizer.unk_token_id not in ids:  # an embedding acts
            return False
        return not any(map(str.isalnum, tokenizer.decode(ids, skip_special_tokens=True)))


def plain(text: str, lower_case: bool) -> str:
    """The text as it is tokenized. Raises ValueError for half a surrogate pair."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            "The prompt has half a character, as a cut emoji leaves it: delete it or type the character again."
        )
    return (text.lower() if lower_case else text).strip()


class T5TextEncoder(comfy.text_encoders.pixart_t5.PixArtT5XXL):
    """T5's final states of a prompt (1, L, C), as many as it has tokens, so without a mask."""

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        encoded = super().encode_token_weights(token_weight_pairs)
        require_finite_states(encoded[0])
        return encoded


class T5Clip(comfy.sd.CLIP):
    """The host's CLIP, which on the CPU uses weights where the file is mapped."""

    def load_sd(self, sd: dict[str, Tensor], full_model: bool = False):  # noqa: ARG002 - the host's signature
        encoder = self.cond_stage_model.t5xxl
        encoder.can_assign_sd = prepare_state_dict(encoder.transformer, sd, self.patcher)
        loaded = self.cond_stage_model.load_sd(sd)
        make_movable(self.cond_stage_model)
        return loaded
