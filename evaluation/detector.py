"""Objects in images by the host's RT-DETR v4, as its node Run Real-Time Detection finds them.

Source: Liao et al., RT-DETRv4, arXiv 2510.25257; the network is the host's `comfy.ldm.rt_detr`.
"""

from collections.abc import Sequence

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
def detect(model, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Objects of images (H, W, 3) of 8 bits: for each an array (N, 6) of `FIELDS`, the most confident first.

    Classes are places in `comfy.ldm.rt_detr.rtdetr_v4.COCO_CLASSES`; boxes are in px.
    """
    comfy.model_management.load_model_gpu(model)
    squeezed = []
    for image in images:
        pixels = torch.from_numpy(image)[None].movedim(-1, 1).float() / 255
        squeezed.append(comfy.utils.common_upscale(pixels, SIDE, SIDE, "bilinear", crop="disabled"))
    found = []
    for image, one in zip(images, model.model.diffusion_model(torch.cat(squeezed), (1, 1)), strict=True):
        height, width = image.shape[:2]
        boxes = one["boxes"].float().cpu() * torch.tensor([width, height] * 2)
        rows = torch.cat([one["labels"].float().cpu()[:, None], one["scores"].float().cpu()[:, None], boxes], dim=1)
        found.append(rows[rows[:, 1] > LEAST_CONFIDENCE].numpy())
    return found
