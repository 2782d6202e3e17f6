"""Objects in images by the host's RT-DETR v4, as its node Run Real-Time Detection finds them.

Source: Liao et al., RT-DETRv4, arXiv 2510.25257; the network is the host's `comfy.ldm.rt_detr`.
"""

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.utils
import numpy as np
import torch
from torch import Tensor

SIDE = 640  # px; the network sees every image squeezed to this
LEAST_CONFIDENCE = 0.05  # of what is returned; below, detectors see objects everywhere
FIELDS = ("class", "confidence", "left", "top", "right", "bottom")
WEIGHTS = (".weight", ".bias", ".running_mean", ".running_var")  # the rest of its state is computed
PREFIX = "model.diffusion_model."


def build_detector(state: dict[str, Tensor]):
    """The host's model of a file's tensors.  Raises: ValueError for another network, or one with missing tensors."""
    names = {key.removeprefix(PREFIX) for key in state}  # the host takes the tensors out
    model = comfy.sd.load_diffusion_model_state_dict(dict(state))
    if model is None or not isinstance(model.model, comfy.model_base.RT_DETR_v4):
        raise ValueError("it is no RT-DETR v4")
    wanted = [key for key in model.model.diffusion_model.state_dict() if key.endswith(WEIGHTS)]
    missing = [key for key in wanted if key not in names]
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    return model


@torch.inference_mode()
def detect(model, image: np.ndarray) -> np.ndarray:
    """Objects of an image (H, W, 3) of 8 bits: (N, 6) of `FIELDS`, the most confident first.

    Classes are places in `comfy.ldm.rt_detr.rtdetr_v4.COCO_CLASSES`; boxes are in px. One image at a time: in a batch
    rounding would let the objects of one depend on the others.
    """
    comfy.model_management.load_model_gpu(model)
    pixels = torch.from_numpy(image)[None].movedim(-1, 1).float() / 255
    squeezed = comfy.utils.common_upscale(pixels, SIDE, SIDE, "bilinear", crop="disabled")
    (found,) = model.model.diffusion_model(squeezed, (1, 1))
    height, width = image.shape[:2]
    boxes = found["boxes"].float().cpu() * torch.tensor([width, height] * 2)
    rows = torch.cat([found["labels"].float().cpu()[:, None], found["scores"].float().cpu()[:, None], boxes], dim=1)
    return rows[rows[:, 1] > LEAST_CONFIDENCE].numpy()
