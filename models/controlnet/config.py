"""What a SANA ControlNet is made of, and which base models it is for.

Source: SANA's ControlNet in NVlabs/Sana and in diffusers; no paper describes either.
"""

from dataclasses import dataclass

from ..sana.config import SanaConfig

# How control branch and base are joined: NVIDIA's own class, and diffusers'. The same weights are different functions.
NVLABS, DIFFUSERS = "NVlabs", "diffusers"
WIRINGS = (NVLABS, DIFFUSERS)
# Families of base models, as `trained_for` in a file's metadata names them, with their names in messages.
SANA, SANA_1_5, SPRINT = "sana", "sana-1.5", "sprint"
KINDS = {SANA: "SANA", SANA_1_5: "SANA-1.5", SPRINT: "SANA-Sprint"}


@dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet: copies of the base's first blocks, and how they act on it."""

    blocks: SanaConfig  # of the copied blocks; depth is their number, and the embeddings' sizes count only if own
    wiring: str
    own_embeddings: bool  # the file has embeddings of its own; else the base's are used
    trained_for: tuple[str, ...] = (SANA,)
    rounds_time: bool = False  # the time was rounded to bfloat16 in training, as NVIDIA's class does


def kind_of(config: SanaConfig) -> str:
    """Family of a base model, one of KINDS."""
    return SPRINT if config.guidance_embeds else SANA_1_5 if config.qk_norm else SANA
