"""Whether a computation may overwrite its inputs."""

import torch


def can_overwrite() -> bool:
    """True when results may overwrite what they come from: no gradient needs it, and no compiler plans the memory."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())
