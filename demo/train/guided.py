"""SANA with classifier-free guidance as the samplers call it, on training's tensors."""

from types import SimpleNamespace

import torch
from torch import Tensor

from .loop import autocast
from .pack import prepare_imports

prepare_imports()

from sana_native.models.sana.model import Sana  # noqa: E402
from sana_native.models.sana.model_sampling import ModelSamplingSana  # noqa: E402


class GuidedSana:
    """A denoiser x (B, 32, h, w), sigma (B,) -> denoised, guided away from the empty prompt by `scale` (B,)."""

    def __init__(self, network: Sana, context: Tensor, mask: Tensor, scale: Tensor):
        sampling = ModelSamplingSana()
        self.inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda _: sampling))
        silent = mask.clone()
        silent[:, 1:] = 0  # of the empty prompt only BOS is seen
        self.network, self.scale = network, scale[:, None, None, None]
        self.context, self.mask = torch.cat([context, context]), torch.cat([mask, silent])

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        with autocast():
            both = self.network(torch.cat([x, x]), (1000 * sigma).floor().repeat(2), self.context, self.mask).float()
        towards, away = both.chunk(2)
        return x - sigma[:, None, None, None] * (away + self.scale * (towards - away))
