"""The pack's nodes and its entry point."""

from comfy_api.latest import ComfyExtension, io

from ..models.dc_ae.previews import MEMORY
from ..samplers.registration import register
from .conditioning import SanaNativeBlendPrompts, SanaNativeGemmaEncode
from .control import SanaNativeControlNetLoader, SanaNativeScribble
from .evaluation import SanaNativeClipScore, SanaNativeGrid, SanaNativePictureDifference
from .files import add_output_controlnets, tiny_decoder_path
from .guidance import SanaNativeCFGZeroStar, SanaNativeNAG, SanaNativePAG
from .inpaint import (
    SanaNativeInpaintComposite,
    SanaNativeInpaintCrop,
    SanaNativeInpaintLatent,
    SanaNativeInpaintStitch,
)
from .latent import SanaNativeEmptyLatent, SanaNativeUpscaleLatent
from .loaders import SanaNativeDCAELoader, SanaNativeGemmaLoader, SanaNativeModelLoader
from .lora import SanaNativeLoraLoader
from .lumina import SanaNativeLuminaOptions
from .prompts import SanaNativePromptBatch, SanaNativePromptsFromFile, SanaNativeSeeds
from .replacements import register_replacements
from .sampling import (
    SanaNativeFlowDPMSampler,
    SanaNativeFlowScheduler,
    SanaNativeSampler,
    SanaNativeSCMSampler,
    SanaNativeSCMScheduler,
)
from .save import SanaNativeControlNetSave, SanaNativeQuantizeSave
from .save_named import SanaNativeSaveNamed
from .sizes import SanaNativeFitBack, SanaNativeSize
from .train import SanaNativeTrainLora, SanaNativeTrainModel
from .training import SanaNativeEncodeTrainingSet, SanaNativeTrainingSet
from .vae import SanaNativeDCAEDecode, SanaNativeDCAEEncode

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
    SanaNativeLuminaOptions,
    SanaNativeQuantizeSave,
    SanaNativeControlNetLoader,
    SanaNativeControlNetSave,
    SanaNativeScribble,
    SanaNativeBlendPrompts,
    SanaNativePAG,
    SanaNativeNAG,
    SanaNativeCFGZeroStar,
    SanaNativeInpaintLatent,
    SanaNativeInpaintComposite,
    SanaNativeInpaintCrop,
    SanaNativeInpaintStitch,
    SanaNativeUpscaleLatent,
    SanaNativePromptsFromFile,
    SanaNativePromptBatch,
    SanaNativeSeeds,
    SanaNativeSize,
    SanaNativeFitBack,
    SanaNativeSaveNamed,
    SanaNativeClipScore,
    SanaNativePictureDifference,
    SanaNativeGrid,
    SanaNativeTrainingSet,
    SanaNativeEncodeTrainingSet,
    SanaNativeTrainLora,
    SanaNativeTrainModel,
]


class SanaNativeExtension(ComfyExtension):
    """Hands the host the nodes and our replacements, and adds our samplers and schedules to its dropdowns."""

    async def on_load(self) -> None:
        register()
        add_output_controlnets()
        MEMORY.find_tiny = tiny_decoder_path
        await register_replacements()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> ComfyExtension:
    return SanaNativeExtension()
