"""The Inception v3 of FID and KID: pictures -> features (B, 2048), with a file that users bring.

Source: Szegedy et al., arXiv 1512.00567, with the poolings of the TensorFlow graph of 2015, whose averages leave out
the padding and whose last block takes the maximum. Keys are those of pytorch-fid's file; pictures are resized as
clean-fid does. Checked against both.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

SIDE, FEATURES, MIDDLE = 299, 2048, 128.0
UNUSED = ("fc.",)  # of the file: the classes
Layer = tuple  # name, channels in and out, kernel, padding, stride


class ConvNorm(nn.Module):
    def __init__(self, channels: int, out: int, kernel, padding=0, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, each a chain of layers whose names begin alike, and a pooling at last.

    Layers that end in a and b both take what the layer before them gives.
    """

    def __init__(self, branches: list[list[Layer]], pool: str):
        super().__init__()
        self.chains, self.pool = [[layer[0] for layer in chain] for chain in branches], pool
        for chain in branches:
            for name, *settings in chain:
                self.add_module(name, ConvNorm(*settings))

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return functional.max_pool2d(x, 3, 2)
        if self.pool == "max":
            return functional.max_pool2d(x, 3, 1, 1)
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            part = self.pooled(x) if chain == ["branch_pool"] else x
            for name in [name for name in chain if name[-1] not in "ab"]:
                part = self.get_submodule(name)(part)
            ends = [name for name in chain if name[-1] in "ab"]
            found += [self.get_submodule(name)(part) for name in ends] or [part]
        return torch.cat(found if ["branch_pool"] in self.chains else [*found, self.pooled(x)], dim=1)


def with_pool(channels: int, out: int, branches: list[list[Layer]], pool: str = "average") -> Mixed:
    return Mixed([*branches, [("branch_pool", channels, out, 1)]], pool)


def five(channels: int, pool: int) -> Mixed:
    """At 35 x 35."""
    return with_pool(
        channels,
        pool,
        [
            [("branch1x1", channels, 64, 1)],
            [("branch5x5_1", channels, 48, 1), ("branch5x5_2", 48, 64, 5, 2)],
            [
                ("branch3x3dbl_1", channels, 64, 1),
                ("branch3x3dbl_2", 64, 96, 3, 1),
                ("branch3x3dbl_3", 96, 96, 3, 1),
            ],
        ],
    )


def seven(width: int) -> Mixed:
    """At 17 x 17, with kernels of 7 as two lines."""
    row, column = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    return with_pool(
        768,
        192,
        [
            [("branch1x1", 768, 192, 1)],
            [("branch7x7_1", 768, width, 1), ("branch7x7_2", width, width, *row), ("branch7x7_3", width, 192, *column)],
            [
                ("branch7x7dbl_1", 768, width, 1),
                ("branch7x7dbl_2", width, width, *column),
                ("branch7x7dbl_3", width, width, *row),
                ("branch7x7dbl_4", width, width, *column),
                ("branch7x7dbl_5", width, 192, *row),
            ],
        ],
    )


def last(channels: int, pool: str) -> Mixed:
    """At 8 x 8."""
    row, column = ((1, 3), (0, 1)), ((3, 1), (1, 0))
    return with_pool(
        channels,
        192,
        [
            [("branch1x1", channels, 320, 1)],
            [("branch3x3_1", channels, 384, 1), ("branch3x3_2a", 384, 384, *row), ("branch3x3_2b", 384, 384, *column)],
            [
                ("branch3x3dbl_1", channels, 448, 1),
                ("branch3x3dbl_2", 448, 384, 3, 1),
                ("branch3x3dbl_3a", 384, 384, *row),
                ("branch3x3dbl_3b", 384, 384, *column),
            ],
        ],
        pool,
    )


class Inception(nn.Module):
    """x (B, 3, 299, 299), values from -1 to 1 -> features (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 0, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, 1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = five(192, 32), five(256, 64), five(288, 64)
        self.Mixed_6a = Mixed(
            [
                [("branch3x3", 288, 384, 3, 0, 2)],
                [
                    ("branch3x3dbl_1", 288, 64, 1),
                    ("branch3x3dbl_2", 64, 96, 3, 1),
                    ("branch3x3dbl_3", 96, 96, 3, 0, 2),
                ],
            ],
            "halve",
        )
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = seven(128), seven(160), seven(160), seven(192)
        self.Mixed_7a = Mixed(
            [
                [("branch3x3_1", 768, 192, 1), ("branch3x3_2", 192, 320, 3, 0, 2)],
                [
                    ("branch7x7x3_1", 768, 192, 1),
                    ("branch7x7x3_2", 192, 192, (1, 7), (0, 3)),
                    ("branch7x7x3_3", 192, 192, (7, 1), (3, 0)),
                    ("branch7x7x3_4", 192, 192, 3, 0, 2),
                ],
            ],
            "halve",
        )
        self.Mixed_7b, self.Mixed_7c = last(1280, "average"), last(2048, "max")

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = functional.max_pool2d(x, 3, 2)
            x = layer(x)
        return x.mean(dim=(2, 3))


def build_inception(state: dict[str, Tensor]) -> Inception:
    """The network with a file's weights.  Raises: ValueError for a file of anything else."""
    state = {key: value for key, value in state.items() if not key.startswith(UNUSED)}
    network = Inception().eval()
    wanted = network.state_dict()
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing, surplus = sorted(wanted.keys() - state.keys() - counters), sorted(state.keys() - wanted.keys())
    shapes = [key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape]
    if missing or surplus or shapes:
        wrong = (missing or surplus or shapes)[0]
        problem = "is missing" if missing else "is not expected" if surplus else "has another shape"
        raise ValueError(f"it is not FID's Inception v3, as {wrong} {problem}")
    network.load_state_dict(state, strict=False)
    return network.float()


def resized(picture: np.ndarray) -> Tensor:
    """A picture (H, W, 3) of 0 to 255 as clean-fid resizes it, by channel and not rounded: (3, 299, 299), -1 to 1."""
    channels = [Image.fromarray(picture[..., i].astype(np.float32)) for i in range(3)]
    values = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for one in channels]
    return (torch.from_numpy(np.stack(values)) - MIDDLE) / MIDDLE


@torch.inference_mode()
def inception_features(network: Inception, pictures: list[np.ndarray]) -> np.ndarray:
    """Features (B, 2048) of pictures (H, W, 3) of 0 to 255, of any sizes."""
    device = next(network.parameters()).device
    return network(torch.stack([resized(one) for one in pictures]).to(device)).float().cpu().numpy()
