"""What the judge says of a transformer in training: the curve in its log beside the loss."""

import random

import torch

from ..judge import Judge, marks, shares
from .autoencoder import FOLDER as AUTOENCODER_FOLDER
from .autoencoder import SANA_LATENT_SCALE, reconstruct_latent
from .autoencoder import build as build_autoencoder
from .captions import draw_caption, draw_form_caption
from .data import SIDE, draw_scene
from .guided import GuidedSana, Sana
from .loop import load_ema, to_device
from .text import encode_captions
from .text_encoder import load_text_model

from sana_native.samplers.flow_dpm import sample_flow_dpm  # noqa: E402, I001 - after the imports above
from sana_native.samplers.schedules import get_sigmas_flow_dpm  # noqa: E402

STEPS, CFG = 10, 4.5


class JudgeCurve:
    """Paints the same held-out captions, with one thing and with two, from the same noise every time it is asked.

    One half is in held-out frames, the other in held-out sentence forms.
    """

    def __init__(self, count: int, shift: float):
        rng = random.Random(-2)
        scenes = [draw_scene(rng, held_out=True, count=1 + i % 2) for i in range(count)]
        self.captions = [
            draw_caption(scene, rng, held_out=True) if i < count // 2 else draw_form_caption(scene, rng)
            for i, scene in enumerate(scenes)
        ]
        texts = [caption.text for caption in self.captions]
        self.context, self.mask = encode_captions(load_text_model(), texts, [False] * count)
        self.noise = torch.randn(count, 32, SIDE // 32, SIDE // 32, generator=torch.Generator().manual_seed(2))
        self.sigmas = get_sigmas_flow_dpm(STEPS, shift)
        self.autoencoder, self.judge = load_ema(build_autoencoder(), AUTOENCODER_FOLDER), Judge()

    @torch.no_grad()
    def rate(self, network: Sana) -> str:
        scale = torch.full((len(self.noise),), CFG)
        context, mask, scale, noise = to_device(self.context.float(), self.mask, scale, self.noise)
        latents = sample_flow_dpm(GuidedSana(network, context, mask, scale), noise, self.sigmas, disable=True)
        pictures = reconstruct_latent(self.autoencoder, latents / SANA_LATENT_SCALE).cpu()
        seen = zip(self.captions, pictures, strict=True)
        right = shares(marks(caption, self.judge.look(picture)) for caption, picture in seen)
        return ", ".join(f"{name} {share:.0%}" for name, share in right.items())
