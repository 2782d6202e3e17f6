"""Warnings about a run, on the node that samples and in the log, whichever sampler node it is."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import comfy.samplers
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_execution.utils import get_executing_context

from ..models.files.file_errors import printable
from ..models.lumina import guidance as lumina_guidance
from ..models.lumina import run_checks as lumina_checks
from ..models.lumina.model_base import LuminaModel
from ..models.pixart import run_checks as pixart_checks
from ..models.pixart.model_base import PixArtModel
from ..models.pixart.model_sampling import is_consistency
from ..models.runtime.base_control import controlnets_of
from ..models.sana.patch_checks import (
    UNCONDITIONAL_BY,
    check_guidance,
    check_patches,
    refuse_patches,
    unconditional_by,
)
from ..models.sana.run_checks import Run, check_run, require_run, sampler_name
from .host_server import running_server

logger = logging.getLogger(__name__)

KEY = "sana_native_advice"
# (client, node) with a text of ours, which that browser leaves there until another comes.
SHOWN: set[tuple[str, str]] = set()
NOTHING = " "  # the shortest text that the frontend takes
# What a node of ours says of itself while it samples, before the warnings about its run.
ANNOUNCED: ContextVar[tuple[str, ...]] = ContextVar("sana_native_announced", default=())


@contextmanager
def announced(sentences: list[str]) -> Iterator[None]:
    """Within it every text of `show` begins with these sentences; the log gets them once."""
    for sentence in sentences:
        logger.info("SANA: %s", sentence)
    token = ANNOUNCED.set(tuple(sentences))
    try:
        yield
    finally:
        ANNOUNCED.reset(token)


def warn_about_runs(model) -> None:
    """Checks every run of the model, and of its clones, before it starts; through the host's own wrappers."""
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, watch_of(model.model))


def watch_of(model):
    """The wrapper that checks the runs of a model's family."""
    if isinstance(model, PixArtModel):
        return watch_pixart_run
    return watch_lumina_run if isinstance(model, LuminaModel) else watch_run


def watch_pixart_run(run, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    if isinstance(sampler, comfy.samplers.KSAMPLER):  # not a training, which borrows the way in
        guider = run.class_obj
        sigmas = pixart_checks.usable_sigmas(sampler_name(sampler.sampler_function), sigmas)
        settings = pixart_checks.Run(
            config=guider.model_patcher.model.config,
            sampler=sampler_name(sampler.sampler_function),
            sigmas=sigmas,
            cfg=guider.cfg,
            size=tuple(latent_image.shape[-2:]),
            is_consistency=is_consistency(guider.model_patcher.get_model_object("model_sampling")),
            has_image=has_image(latent_image, denoise_mask),
            is_empty=is_new_image(noise, latent_image),
        )
        show([*pixart_checks.check_run(settings), *check_controls(guider, settings.config, latent_image)])
    return run(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


def watch_lumina_run(run, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    if isinstance(sampler, comfy.samplers.KSAMPLER):  # not a training
        model_options = run.class_obj.model_options
        name, is_empty = sampler_name(sampler.sampler_function), is_new_image(noise, latent_image)
        lumina_checks.require_run(model_options, name, sigmas)
        found = lumina_checks.check_run(model_options, name, sigmas, has_image(latent_image, denoise_mask), is_empty)
        watch = PassWatch(found, lumina_guidance.check_patches)
        options = model_options.setdefault("transformer_options", {})  # of this run alone
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, watch, options)
    return run(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


def watch_run(run, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
    if isinstance(sampler, comfy.samplers.KSAMPLER):  # not a training, which borrows the way in
        guider = run.class_obj
        settings = describe_run(guider, latent_image, sampler, sigmas, denoise_mask)
        options = guider.model_options.setdefault("transformer_options", {})  # of this run alone
        is_sprint = settings.config.guidance_embeds
        refuse_patches(guider.model_options, is_sprint, latent_image.shape[0])
        require_run(settings)
        options[UNCONDITIONAL_BY] = unconditional_by(guider, settings.sampler)
        found = [
            *check_controls(guider, settings.config, latent_image),
            *check_guidance(guider, is_sprint, settings.size),
        ]
        watch = PassWatch([*check_run(settings), *found], partial(check_patches, depth=settings.config.depth))
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, watch, options)
    return run(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)


def describe_run(guider, latent_image, sampler, sigmas, denoise_mask) -> Run:
    model, prompts = guider.model_patcher, [cond for conds in guider.conds.values() for cond in conds]
    return Run(
        config=model.model.diffusion_model.config,
        model_sampling=model.get_model_object("model_sampling"),
        sampler=sampler_name(sampler.sampler_function),
        sigmas=sigmas,
        size=tuple(latent_image.shape[-2:]),
        guidance=tuple(cond["guidance"] for cond in prompts if cond.get("guidance") is not None),
        has_image=has_image(latent_image, denoise_mask),
        has_area=any("area" in cond and cond["area"][0] != "percentage" for cond in prompts),
    )


def check_controls(guider, config, latent_image) -> list[str]:
    """Warnings about the ControlNets of a run, and their control images."""
    prompts = [cond for conds in guider.conds.values() for cond in conds]
    batch, *_, height, width = latent_image.shape
    found = [
        sentence
        for control in controlnets_of(prompts)
        for sentence in (*control.check(config), *control.check_images(batch, height, width))
    ]
    return list(dict.fromkeys(found))


def has_image(latent_image, denoise_mask) -> bool:
    """Whether a run gets an image, of which no mask keeps a part whatever the noise."""
    return denoise_mask is None and bool(latent_image.any())


def is_new_image(noise, latent_image) -> bool:
    """Whether a run makes an image out of noise that it adds to an empty latent."""
    return not latent_image.any() and bool(noise.any())


class PassWatch:
    """Shows a run's warnings, and adds those about patches, which some nodes put on single passes only."""

    def __init__(self, sentences: list[str], check: Callable[..., list[str]]):
        """check: warnings about the options and the control of a pass, in this order."""
        self.sentences, self.check = sentences, check
        show(sentences)

    def __call__(self, apply, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        found = self.check(transformer_options or {}, control)
        new = [sentence for sentence in found if sentence not in self.sentences]
        if new:
            self.sentences = [*self.sentences, *new]
            show(self.sentences, new)
        return apply(x, t, c_concat, c_crossattn, control, transformer_options or {}, **kwargs)


def show(sentences: list[str], new: list[str] | None = None) -> None:
    """Writes the sentences on the node that runs, and the new ones (None: all) to the log.

    Without any, takes older ones off the node. A prompt that came without a client, as from a script, has no node on
    any screen.
    """
    for sentence in sentences if new is None else new:
        logger.warning("SANA: %s", printable(sentence))
    sentences = [printable(sentence) for sentence in (*ANNOUNCED.get(), *sentences)]
    server, context = running_server(), get_executing_context()
    if server is None or context is None or server.client_id is None:
        return
    place = (server.client_id, context.node_id)
    if sentences:
        SHOWN.add(place)
    elif place not in SHOWN:
        return
    else:
        SHOWN.discard(place)
    server.send_progress_text("\n".join(sentences) or NOTHING, context.node_id, server.client_id)
