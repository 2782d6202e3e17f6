"""Advice on a run, on the node that samples and in the log, whichever sampler node it is."""

import logging

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context

from ..models.sana.run_checks import advise
from .host_server import running_server

logger = logging.getLogger(__name__)

KEY = "sana_native_advice"
SHOWN: set[str] = set()  # nodes with a text of ours, which the frontend leaves there until another comes
NOTHING = " "  # the shortest text that the frontend takes


def warn_about_runs(model) -> None:
    """Has every run of the model, and of its clones, looked at before it starts; the host's own way to be told."""
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, watch_run)


def watch_run(run, noise, latent_image, sampler, sigmas, *args, **kwargs):
    if isinstance(sampler, comfy.samplers.KSAMPLER):  # not a training, which borrows the way in
        guider = run.class_obj
        model, prompts = guider.model_patcher, [cond for conds in guider.conds.values() for cond in conds]
        guidance = [cond["guidance"] for cond in prompts if cond.get("guidance") is not None]
        config = model.model.diffusion_model.config
        show(advise(config, model.get_model_object("model_sampling"), sigmas, guidance, tuple(noise.shape[-2:])))
    return run(noise, latent_image, sampler, sigmas, *args, **kwargs)


def show(sentences: list[str]) -> None:
    """Logs the sentences and writes them on the node that runs; without any, takes older ones off it."""
    for sentence in sentences:
        logger.warning("SANA: %s", sentence)
    server, context = running_server(), get_executing_context()
    if server is None or context is None:
        return
    if sentences:
        SHOWN.add(context.node_id)
    elif context.node_id not in SHOWN:
        return
    else:
        SHOWN.discard(context.node_id)
    server.send_progress_text("\n".join(sentences) or NOTHING, context.node_id, server.client_id)
