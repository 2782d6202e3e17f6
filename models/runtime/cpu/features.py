"""Which instructions this processor has."""

import torch

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16")  # instructions that multiply in it


def cpu_has(instructions: str) -> bool:
    """Whether this processor has them, under torch's name, which the host does not ask."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return bool(capabilities.get(instructions))


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it, without which it is slower than float32."""
    return any(map(cpu_has, CPU_BFLOAT16))
