"""How a network and its blocks are called: through what other nodes have put around the one or in place of the others.

Source: the contracts of the host's `patcher_extension`, and of "patches_replace" in its transformer options.
"""

from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor, nn

BlockArgs = dict[str, Any]  # "img" (B, N, C), "txt" (B, L, C), "vec" modulation, "transformer_options", own ones


def call_wrapped(
    network: nn.Module, forward: Callable[..., Tensor], transformer_options: dict, *args, **kwargs
) -> Tensor:
    """A network's own forward inside the wrappers of other nodes, each of which may spare the call."""
    wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
    return WrapperExecutor.new_class_executor(forward, network, wrappers).execute(*args, **kwargs)


def find_block_replacement(transformer_options: dict, index: int) -> Callable | None:
    """What another node has put in place of block `index`."""
    return transformer_options.get("patches_replace", {}).get("dit", {}).get(("double_block", index))


def call_replacement(
    replacement: Callable, block: Callable[[BlockArgs], Tensor], args: BlockArgs
) -> tuple[Tensor, Tensor]:
    """Image and text as a replacement gives them, which may call the block with other arguments.

    block: args -> image.
    """

    def original(args: BlockArgs) -> dict[str, Tensor]:
        return {"img": block(args), "txt": args["txt"]}

    out = replacement(args, {"original_block": original})
    return out["img"], out["txt"]
