"""The pack's nodes and its entry point."""

from comfy_api.latest import ComfyExtension, io

from ..samplers.registration import register
from .conditioning import SanaNativeGemmaEncode
from .dc_ae import SanaNativeDCAEDecode, SanaNativeDCAEEncode
from .latent import SanaNativeEmptyLatent
from .loaders import SanaNativeDCAELoader, SanaNativeGemmaLoader, SanaNativeModelLoader
from .lora import SanaNativeLoraLoader
from .sampling import (
    SanaNativeFlowDPMSampler,
    SanaNativeFlowScheduler,
    SanaNativeSampler,
    SanaNativeSCMSampler,
    SanaNativeSCMScheduler,
)

NODES: list[type[io.ComfyNode]] = [
    SanaNativeModelLoader,
    SanaNativeGemmaLoader,
    SanaNativeDCAELoader,
    SanaNativeGemmaEncode,
    SanaNativeEmptyLatent,
    SanaNativeFlowScheduler,
    SanaNativeFlowDPMSampler,
    SanaNativeSCMScheduler,
    SanaNativeSCMSampler,
    SanaNativeSampler,
    SanaNativeDCAEEncode,
    SanaNativeDCAEDecode,
    SanaNativeLoraLoader,
]


class SanaNativeExtension(ComfyExtension):
    """Hands the host the nodes, and adds our samplers and schedules to its dropdowns."""

    async def on_load(self) -> None:
        register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return SanaNativeExtension()
