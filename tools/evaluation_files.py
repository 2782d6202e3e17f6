"""Files of networks that scores need: named with where they come from when they are missing, loaded by the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

CLIP = "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/model.safetensors"
CLIP_NAME = "clip-vit-large-patch14.safetensors"
INCEPTION = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
INCEPTION_NAME = "pt_inception-2015-12-05-6726825d.pth"
# The file that ComfyUI's own blueprints name for its node Run Real-Time Detection.
DETECTOR = "https://huggingface.co/Comfy-Org/RT-DETR/resolve/main/diffusion_models/rt_detr_v4-x-hgnet_fp16.safetensors"
DETECTOR_NAME = "rt_detr_v4-x-hgnet_fp16.safetensors"


def require_clip(clip: str) -> Path:
    """The file, which holds both halves.  Raises: FileNotFoundError with the cure."""
    needs = f"clip, cmmd and geneval's colors need CLIP ViT-L/14 with both its halves; download {CLIP} (1.7 GB)"
    return _required(clip or CLIP_NAME, f"{needs}, save it as {CLIP_NAME}, and give its path as CLIP=.")


def require_inception(inception: str) -> Path:
    """Raises: FileNotFoundError with the cure."""
    needs = f"fid and kid need the Inception v3 of 2015; download {INCEPTION} (95 MB)"
    return _required(inception or INCEPTION_NAME, f"{needs}, and give its path as INCEPTION=.")


def require_detector(detector: str) -> Path:
    """Raises: FileNotFoundError with the cure."""
    needs = f"geneval needs the detector RT-DETR v4; download {DETECTOR} (124 MB)"
    return _required(detector or DETECTOR_NAME, f"{needs}, and give its path as DETECTOR=.")


def _required(file: str, cure: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {cure}")
    return path


def compute_wide_on_cpu() -> None:
    """Lets the host compute CLIP in float32 where there is no GPU: its float16 is many times slower on a CPU."""
    from comfy.cli_args import args

    args.fp32_text_enc = args.fp32_text_enc or args.cpu


def load_clip_vision(clip: str):
    """The picture's half.  Raises: ValueError for a file that is no CLIP Vision."""
    import comfy.clip_vision

    compute_wide_on_cpu()
    path = require_clip(clip)
    found = comfy.clip_vision.load(str(path))
    if found is None:
        raise ValueError(f"{path} holds no CLIP Vision that ComfyUI knows; take {CLIP}.")
    return found


def load_clip(clip: str):
    """The text's half."""
    import comfy.sd

    compute_wide_on_cpu()
    return comfy.sd.load_clip([str(require_clip(clip))], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)


def load_inception(inception: str):
    """FID's network, on a GPU where there is one.  Raises: ValueError for another file, or a damaged one."""
    import comfy.model_management
    from sana_native.evaluation.inception import build_inception

    network = built(build_inception, require_inception(inception), INCEPTION)
    return network.to(comfy.model_management.get_torch_device())


def load_detector(detector: str):
    """The host's model of RT-DETR v4.  Raises: ValueError for another file, or a damaged one."""
    from sana_native.evaluation.detector import build_detector

    return built(build_detector, require_detector(detector), DETECTOR)


def built(build: Callable, path: Path, source: str):
    """What is built of a file's tensors.  Raises: ValueError that names the file and where the right one is."""
    from sana_native.models.files.reader import load_file

    state, _ = load_file(str(path))
    try:
        return build(state)
    except (ValueError, RuntimeError) as error:  # torch's own for a tensor of another shape
        raise ValueError(f"{path} cannot be used: {error}; download {source}.") from None
