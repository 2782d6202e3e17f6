"""The text encoder's matrix products on a CPU: 16-bit weights, sums in float32, without a wide copy of a matrix."""

import math

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor

STRIP_ELEMENTS = 1024 * 2304  # of float32: 9 MB stay in the cache between cast and product
KERNEL_ROWS = 128  # strips are multiples of it, for which the library's kernels have no remainder


def threaded_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, C) times the transpose of weight (D, C), with the weight's rows divided among the threads.

    The library divides a single product by positions, and a prompt has too few of them.
    """
    parts = math.gcd(len(weight), torch.get_num_threads())
    columns = weight.unflatten(0, (parts, -1)).transpose(1, 2)
    return torch.bmm(x.expand(parts, -1, -1), columns).transpose(0, 1).flatten(1)


class TextOperations(comfy.ops.manual_cast):
    """The host's layers that cast weights to the format of their input, the linear ones strip by strip on a CPU.

    The host casts a matrix as a whole, which writes and reads it in main memory: for a prompt of 30 tokens that takes
    three times as long as the product itself.
    """

    class Linear(comfy.ops.manual_cast.Linear):
        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:  # noqa: A002 - the host's name
            if not self.can_cast_in_strips(input):
                return super().forward_comfy_cast_weights(input)
            length = max(STRIP_ELEMENTS // self.in_features // KERNEL_ROWS, 1) * KERNEL_ROWS
            # One buffer for all strips: allocating one per strip takes the system as long as the product.
            strip = input.new_empty(min(length, self.out_features), self.in_features)
            x = input.flatten(0, -2)
            products = [threaded_linear(x, strip[: len(rows)].copy_(rows)) for rows in self.weight.split(length)]
            return torch.cat(products, dim=-1).unflatten(0, input.shape[:-1])

        def can_cast_in_strips(self, x: Tensor) -> bool:
            """False also in training, and for weights that patches change on the way or that the host streams."""
            plain = self.bias is None and not self.weight_function and not hasattr(self, "_v")
            on_cpu = comfy.model_management.is_device_cpu(x.device) and self.weight.device == x.device
            return plain and on_cpu and self.weight.dtype != x.dtype and not torch.is_grad_enabled()
