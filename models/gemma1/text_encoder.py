"""Gemma-1 as Lumina-Next's text encoder: the host's Llama with Gemma's embedding scale, norms and activation.

Source: Gemma, arXiv 2403.08295; Lumina-Next, arXiv 2406.18583 (states of the second to last layer, no instruction).
"""

import logging
from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.sd1_clip
import torch
from comfy.text_encoders import llama
from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from ..files.prepare import prepare_state_dict
from ..files.quantized import make_movable
from ..runtime.precision import require_finite_states
from ..runtime.prompt_weights import unescape, weights_of_pieces

logger = logging.getLogger(__name__)

PAD, BOS = 0, 2
CONTEXT_LENGTH = 256  # tokens the transformer is given, BOS among them
EXCERPT = 120  # characters of a text in a notice
CLIP_NAME = "gemma_2b"  # prefix of this encoder in saved files


@dataclass
class Gemma1Config(llama.Llama2Config):
    """Gemma-1 2B in the host's terms; the sizes come from `config_dict`."""

    vocab_size: int = 256000
    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    head_dim: int = 256
    rms_norm_add: bool = True
    mlp_activation: str = "gelu_pytorch_tanh"


class Gemma1(llama.BaseLlama, torch.nn.Module):
    """The host's Llama with what Gemma-1 has instead: scaled embeddings, and norms that add one to their weight.

    All layers are there, though the last one is not read: a file saved without it would lose another at the next load.
    """

    def __init__(self, config_dict: dict, dtype, device, operations):
        super().__init__()
        config = Gemma1Config(**config_dict)
        self.num_layers, self.dtype = config.num_hidden_layers, dtype
        self.model = llama.Llama2_(config, device=device, dtype=dtype, ops=operations)
        scale = config.hidden_size**0.5
        self.model.embed_tokens = llama._make_scaled_embedding(
            operations, config.vocab_size, config.hidden_size, scale, device, dtype
        )
        for layer in self.model.layers:
            layer.input_layernorm.add = layer.post_attention_layernorm.add = True
        for module in self.modules():
            if isinstance(module, llama.RMSNorm):  # the sum of one and the weight needs more digits than 16 bits have
                module.to(torch.float32)


class Gemma1Model(comfy.sd1_clip.SDClipModel):
    """States of the second to last layer, before any norm."""

    def __init__(self, device="cpu", dtype=None, model_options: dict[str, Any] = {}, **kwargs):  # noqa: ARG002, B006 - the host's signature
        super().__init__(
            device=device,
            dtype=dtype,
            layer="hidden",
            layer_idx=-2,
            textmodel_json_config={},
            special_tokens={"start": BOS, "pad": PAD},
            layer_norm_hidden_state=False,
            enable_attention_masks=True,
            model_class=Gemma1,
            model_options=model_options,
        )


class SentencePieceTokenizer(comfy.sd1_clip.SDTokenizer):
    """The host's tokenizer around the bytes of a tokenizer.model."""

    def __init__(self, embedding_directory=None, tokenizer_data: dict = {}):  # noqa: ARG002, B006 - the host's signature
        super().__init__(
            tokenizer_data["spiece_model"],
            pad_with_end=False,
            embedding_size=2048,
            embedding_key=CLIP_NAME,
            tokenizer_class=SPieceTokenizer,
            has_end_token=False,
            pad_to_max_length=False,
            tokenizer_args={"add_bos": True, "add_eos": False},
            tokenizer_data=tokenizer_data,
        )

    def state_dict(self) -> dict[str, Tensor]:
        return {"spiece_model": self.tokenizer.serialize_model()}


class Gemma1Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    """BOS and the tokens of a prompt, the first 256; no end token, no padding, no weights."""

    def __init__(self, embedding_directory=None, tokenizer_data: dict = {}):  # noqa: B006 - the host's signature
        super().__init__(embedding_directory, tokenizer_data, name=CLIP_NAME, tokenizer=SentencePieceTokenizer)

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        instruction: str | None = None,
        lower_case: bool = False,
        skip_template: bool | None = None,
        **kwargs,  # noqa: ARG002 - options of other encoders
    ) -> dict[str, list]:
        """Token pairs of a prompt.

        instruction: not used; Lumina-Next was trained without one. lower_case: lower the case as diffusers does.
        skip_template: given by the host's text generation, and by it alone. Raises ValueError for it, and for text with
        half a surrogate pair.
        """
        if skip_template is not None:
            raise ValueError("Gemma-1 encodes Lumina-Next's prompts only: take the Gemma-2 of SANA to generate text.")
        for sentence in self.notices(text, instruction, lower_case):
            logger.warning("SANA: %s", sentence)
        ids = self.encode(text, lower_case)[:CONTEXT_LENGTH]
        if return_word_ids:
            return {CLIP_NAME: [[(token, 1.0, min(i, 1)) for i, token in enumerate(ids)]]}
        return {CLIP_NAME: [[(token, 1.0) for token in ids]]}

    def encode(self, text: str, lower_case: bool = False) -> list[int]:
        """BOS and the tokens of a text, in which a backslash before a bracket is left out as in the host's prompts."""
        text = self.clean(text, lower_case).replace("\\(", "(").replace("\\)", ")")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(
                "The prompt has half a character, as a cut emoji leaves it: delete it or type the character again."
            )
        return self.sentencepiece.encode(text, add_bos=True, add_eos=False)

    def clean(self, text: str, lower_case: bool = False) -> str:
        return (text.lower() if lower_case else text).strip()

    def token_weights(self, text: str, weights: list[float], instruction: str | None = None) -> Tensor:  # noqa: ARG002 - as `tokenize_with_weights`
        """Weights (1, L) of BOS and the tokens of a clean text, the first 256, from those of its characters."""
        ids = self.encode(text)
        found = [1.0, *weights_of_pieces(self.sentencepiece, ids[1:], *unescape(text, weights))]
        return torch.tensor([found[:CONTEXT_LENGTH]])

    def notices(self, text: str, instruction: str | None = None, lower_case: bool = False) -> list[str]:  # noqa: ARG002 - as `tokenize_with_weights`
        """Sentences on what of a prompt does not act."""
        rest = self.encode(text, lower_case)[CONTEXT_LENGTH:]
        if not rest:
            return []
        cut = " ".join(self.sentencepiece.decode(rest).split())
        excerpt = cut if len(cut) <= EXCERPT else f"{cut[:EXCERPT]}..."
        return [f'the first {CONTEXT_LENGTH - 1} tokens count, so the last {len(rest)} are cut off: "{excerpt}"']

    @property
    def sentencepiece(self) -> SentencePieceProcessor:
        return self.gemma_2b.tokenizer.tokenizer

    def state_dict(self) -> dict[str, Tensor]:
        # With the encoder's own prefix CLIPSave writes weights and tokenizer into one file.
        return {f"{CLIP_NAME}.{key}": value for key, value in super().state_dict().items()}


class LuminaTextEncoder(comfy.sd1_clip.SD1ClipModel):
    """Gemma-1's states of a prompt (1, L, C), as many as it has tokens, so without a mask."""

    def __init__(self, device="cpu", dtype=None, model_options: dict[str, Any] = {}):  # noqa: B006 - the host's signature
        super().__init__(
            device=device, dtype=dtype, name=CLIP_NAME, clip_model=Gemma1Model, model_options=model_options
        )

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        encoded = super().encode_token_weights(token_weight_pairs)
        require_finite_states(encoded[0])
        return encoded


class Gemma1Clip(comfy.sd.CLIP):
    """The host's CLIP, which on the CPU uses weights where the file is mapped."""

    def load_sd(self, sd: dict[str, Tensor], full_model: bool = False):  # noqa: ARG002 - the host's signature
        for key, tensor in sd.items():
            if key.endswith("norm.weight"):
                sd[key] = tensor.float()
        model = self.cond_stage_model
        model.gemma_2b.can_assign_sd = prepare_state_dict(model.gemma_2b.transformer, sd, self.patcher)
        loaded = model.load_sd(sd)
        make_movable(model)
        return loaded
