"""Keys and values of a text, kept by the cross-attention for a run: they do not change with the noise level.

For attention on a CPU as in `few_words.py`; elsewhere they are a fraction of a step that is not worth the memory. A run
is the unit because the host loads weights and their patches only before it.
"""

from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..runtime.cpu.absorbed_attention import SHARE, Words
from ..runtime.weight_fingerprint import LentWeights

KEPT_WORDS = "sana_kept_words"  # in transformer_options and, as the name of its callbacks, on the patcher
# Of all texts together, in each layer; the first ones stay. In bfloat16 they take 17 MB in the 0.6B and 23 MB in the
# 1.6B. Longer texts would gain more, and take more memory than the rest of a step.
MOST_WORDS = 128


@dataclass
class Text:
    """States (L, c) of a text, its bias (L,), and by layer its words and the weights that they were made with.

    slots: for the keys and values (L, C) of each layer, parts of one tensor. Pieces of their own would lie where the
    activations of a layer were in the heap, and leave no such place whole for the next layer's.
    """

    context: Tensor
    bias: Tensor | None
    slots: list[tuple[Tensor, Tensor]]
    words: dict[nn.Module, tuple[LentWeights, Words]] = field(default_factory=dict)

    @classmethod
    def first_seen(cls, context: Tensor, bias: Tensor | None, words: Words, layers: int) -> "Text":
        """With copies: a patch may write into the text on its way through the network."""
        keys, values = words.k.new_empty(2, layers, *words.k.shape)
        return cls(context.clone(), None if bias is None else bias.clone(), list(zip(keys, values, strict=True)))

    def is_of(self, context: Tensor, bias: Tensor | None) -> bool:
        return same(self.context, context) and same(self.bias, bias)

    @property
    def length(self) -> int:
        return len(self.slots[0][0])

    def keep(self, layer: nn.Module, weights: LentWeights, words: Words) -> bool:
        """Whether there is room for one more layer."""
        index = next((index for index, other in enumerate(self.words) if other is layer), len(self.words))
        if index == len(self.slots):
            return False
        words.move_to(*self.slots[index])
        self.words[layer] = weights, words
        return True


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


class KeptWords:
    """The texts of a run. layers: how many keep words of each."""

    def __init__(self, layers: int):
        self.layers = layers
        self.texts: list[Text] = []

    def find(self, layer: nn.Module, weights: LentWeights, context: Tensor, bias: Tensor | None) -> Words | None:
        """The words of a text, states (L, C) and bias (L,), in this layer; None if not known, or of other weights."""
        text = self.text_of(context, bias)
        made_with, words = text.words.get(layer, (None, None)) if text else (None, None)
        return words if words is not None and made_with.are_still(weights) else None

    def keep(self, layer: nn.Module, weights: LentWeights, context: Tensor, bias: Tensor | None, words: Words) -> None:
        """Lets later steps find the words of a text in this layer, if there is room for them."""
        text = self.text_of(context, bias)
        before = sum(other.length for other in self.texts if other is not text)
        if before + len(words) > MOST_WORDS:
            return
        if text is None:
            text = Text.first_seen(context, bias, words, self.layers)
            self.texts.append(text)
        words.lasting = text.keep(layer, weights, words)
        words.roomy = SHARE * words.heads * (before + len(words)) <= words.channels

    def text_of(self, context: Tensor, bias: Tensor | None) -> Text | None:
        return next((text for text in self.texts if text.is_of(context, bias)), None)


def keep_words(patcher: ModelPatcher) -> None:
    """From the beginning of every run with this patcher or a clone until its end."""
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEPT_WORDS, begin_run)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEPT_WORDS, end_run)


def begin_run(patcher: ModelPatcher) -> None:
    patcher.model.kept_words = KeptWords(len(patcher.model.diffusion_model.transformer_blocks))


def end_run(patcher: ModelPatcher) -> None:
    patcher.model.kept_words = None
