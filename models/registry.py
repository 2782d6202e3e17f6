"""The families of weight files that this pack loads: one line each, and the way of a file through them."""

from typing import Any

from .autoencoder_kl.loader import KL
from .controlnet.loader import SANA_CONTROLNET
from .dc_ae.loader import DC_AE
from .files.family import Family, describe, detect
from .files.layout import StateDict
from .files.reader import Checkpoint
from .gemma.loader import GEMMA
from .gemma1.loader import GEMMA_1
from .lumina.loader import LUMINA
from .pixart.loader import PIXART
from .pixart_controlnet.loader import PIXART_CONTROLNET
from .sana.loader import SANA
from .t5.loader import T5

FAMILIES: tuple[Family, ...] = (
    SANA,
    PIXART,
    LUMINA,
    GEMMA,
    GEMMA_1,
    T5,
    DC_AE,
    KL,
    PIXART_CONTROLNET,
    SANA_CONTROLNET,
)


def load_model(component: str, path: str, options: dict[str, Any] | None = None) -> Any:
    """The host's model of a file or folder, by the family that recognizes it.

    component: "transformer", "text_encoder", "vae" or "controlnet". options: as the family's loader takes them.
    Raises ValueError, FileNotFoundError or PermissionError with one sentence for what cannot be loaded.
    """
    candidates = [family for family in FAMILIES if family.component == component]
    checkpoint = Checkpoint.open(path, component)
    family, checkpoint = detect(checkpoint, candidates, FAMILIES)
    return family.load(checkpoint, options or {}, False)


def describe_file(state_dict: StateDict) -> str:
    """What a state dict seems to be, of the families here and of foreign ones, for an error message."""
    return describe(state_dict, FAMILIES)
