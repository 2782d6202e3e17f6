"""TAESANA, a tiny decoder of DC-AE latents for previews at full size, from the host's blocks for such decoders.

Source: madebyollin/taesd, the layout of `taesana_decoder`; the host's own decoder ends at 8x and cannot hold it.
"""

import comfy.utils
import torch
from comfy.taesd.taesd import Block, Clamp, conv
from torch import Tensor, nn

TINY_DECODER = "taesana_decoder"  # what the file's name begins with
CHANNELS = 32
WIDTHS = (256, 128, 64, 64, 64, 64)  # from the latent up, each at twice the size of the one before


class TinyDecoder(nn.Sequential):
    """Latent as the model has it, (B, 32, h, w) -> image about [0, 1], (B, 3, 32h, 32w); names are the file's."""

    def __init__(self):
        layers: list[nn.Module] = [Clamp(), conv(CHANNELS, WIDTHS[0]), nn.ReLU()]
        for width, next_width in zip(WIDTHS, WIDTHS[1:]):
            layers += [Block(width, width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), conv(width, next_width, bias=False)]
        super().__init__(*layers, Block(WIDTHS[-1], WIDTHS[-1]), conv(WIDTHS[-1], 3))


class TinyPreview:
    """A tiny decoder in the place of the host's colors: the hook before them decodes, and they are the identity."""

    factors, bias = torch.eye(3), torch.zeros(3)

    def __init__(self, path: str):
        """Raises RuntimeError for a file of another layout, and what reading a damaged one raises."""
        self.decoder = TinyDecoder().eval()
        self.decoder.load_state_dict(comfy.utils.load_torch_file(path, safe_load=True))

    def refine(self, x0: Tensor) -> Tensor:
        """(B, 32, h, w) -> (1, 3, 32h, 32w) in about [-1, 1], of the first image."""
        return self.decoder.to(x0.device)(x0[:1].float()) * 2 - 1
