"""What the cross-attention keeps of a text from step to step of one run: it does not change with the noise level.

For attention on a CPU as in `few_words.py`. Elsewhere the keys and values of a text are a fraction of a step that is
not worth the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from .borrowed_weights import Weights
from .few_words import Words

KEPT_WORDS = "sana_kept_words"  # in transformer_options and, as the name of its callbacks, on the patcher
# Of all texts together: in bfloat16 their keys and values take 17 MB in the 0.6B and 23 MB in the 1.6B. Four texts of
# 32 words that are kept multiplied, for a picture of few positions, take 132 and 229 MB.
MOST_WORDS = 128


@dataclass
class Text:
    """States (L, C) of a text, its bias (L,), and by layer its words and the weights that they were made with."""

    context: Tensor
    bias: Tensor | None
    words: dict[nn.Module, tuple[Weights | None, Words]]

    def is_of(self, context: Tensor, bias: Tensor | None) -> bool:
        return same(self.context, context) and same(self.bias, bias)

    @property
    def length(self) -> int:
        return len(next(iter(self.words.values()))[1])


def same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


class KeptWords:
    """The latest texts last."""

    def __init__(self):
        self.texts: list[Text] = []

    def find(
        self,
        layer: nn.Module,
        weights: Weights | None,
        context: Tensor,
        bias: Tensor | None,
        make: Callable[[Tensor, Tensor | None], Words],
    ) -> Words:
        """Those of a text, states (L, C) and bias (L,), made if they are not known or of other weights."""
        text = next((text for text in self.texts if text.is_of(context, bias)), None)
        if text is not None and layer in text.words:
            before, words = text.words[layer]
            if before is weights or (before is not None and weights is not None and before.are_still(weights)):
                return words
        words = make(context, bias)
        if text is not None:
            text.words[layer] = weights, words
        elif len(words) <= MOST_WORDS:
            # A copy: a patch may write into the text on its way through the network.
            self.texts.append(Text(context.clone(), None if bias is None else bias.clone(), {layer: (weights, words)}))
            while sum(text.length for text in self.texts) > MOST_WORDS:
                del self.texts[0]
        return words


def keep_words(patcher: ModelPatcher) -> None:
    """From the beginning of every run with this patcher or a clone until its end."""
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEPT_WORDS, begin)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEPT_WORDS, end)


def begin(patcher: ModelPatcher) -> None:
    patcher.model.kept_words = KeptWords()


def end(patcher: ModelPatcher) -> None:
    patcher.model.kept_words = None
