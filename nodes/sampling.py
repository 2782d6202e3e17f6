"""Schedules, samplers, and one block that picks both for the model it is given."""

from dataclasses import dataclass

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import SamplerCustom

from ..models.dc_ae.previews import MEMORY
from ..models.lumina.model_base import LuminaModel
from ..models.lumina.model_base import require_flow as require_lumina_flow
from ..models.pixart.config import DMD, LCM
from ..models.pixart.model_base import PixArtModel
from ..models.pixart.model_sampling import HIGHEST_SIGMA, is_consistency, require_noise_prediction
from ..models.sana.model_sampling import require_flow
from ..models.sana.run_checks import require_position
from ..samplers.dmd import sample_pixart_dmd
from ..samplers.flow_dpm import sample_flow_dpm
from ..samplers.registration import flow_shift_of
from ..samplers.schedules import (
    SCM_MAX_TIME,
    get_sigmas_flow_dpm,
    get_sigmas_flow_euler,
    get_sigmas_pixart,
    get_sigmas_scm,
    scm_time_to_sigma,
)
from ..samplers.scm import sample_scm
from ..samplers.strength import flow_dpm_from, flow_euler_from, pixart_from, scm_from, simple_from
from .warnings import announced

SCHEDULERS = "model/sampling/schedulers"
SAMPLERS = "model/sampling/samplers"
FLOW_GRIDS = {"flow_dpm": get_sigmas_flow_dpm, "flow_euler": get_sigmas_flow_euler}
OFF, AUTO = INPAINT_STARTS = ("off", "auto")
STEPS, SIGMA = STRENGTHS = ("steps", "sigma")
INPAINT_TIME = 1.3  # radians, where the picture around a mask has a fifth of the latent
DENOISE_TOOLTIP = (
    "Share of the schedule that is run: 1 starts from pure noise; below 1 part of the given latent is preserved."
)


def denoise_input() -> io.Float.Input:
    return io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, optional=True, tooltip=DENOISE_TOOLTIP)


def model_shift(model) -> float:
    """The model's flow shift. Raises ValueError for a model that has none, or one of ours set to sample otherwise."""
    model_sampling = model.get_model_object("model_sampling")
    if isinstance(model.model, LuminaModel):
        require_lumina_flow(model_sampling)
    if hasattr(model.model, "is_sprint"):
        require_flow(model_sampling)
    if not hasattr(model_sampling, "shift"):
        raise ValueError(
            f"This {type(model.model).__name__} model has no flow shift, so SANA's noise levels do not fit it: load a "
            "SANA model with SANA Model Loader, or use KSampler."
        )
    return flow_shift_of(model_sampling)


def require_flow_family(model) -> None:
    """Raises ValueError for a PixArt, also where the flow shift is given."""
    if isinstance(model.model, PixArtModel):
        config = model.model.config
        raise ValueError(
            f"SANA Flow Scheduler has noise levels from 1 to 0, and {config.family} begins at {HIGHEST_SIGMA:.4g}: use "
            f"Basic Scheduler with {'simple' if config.distilled == LCM else 'sana_pixart'} in its place."
        )


@dataclass(frozen=True)
class Schedule:
    """How long and from where to sample: `denoise` is a share of the steps or, `by_sigma`, the first noise level."""

    steps: int
    denoise: float = 1.0
    by_sigma: bool = False
    max_time: float = SCM_MAX_TIME  # SANA-Sprint's first angle


def solver_for(model, schedule: Schedule, batch_index: list[int] | None):
    """The released solver and sigmas: SCM for SANA-Sprint, Euler for Lumina-Next, Flow-DPM for the rest of SANA."""
    steps, denoise = schedule.steps, schedule.denoise
    if isinstance(model.model, PixArtModel):
        return pixart_solver(model, schedule, batch_index)
    if isinstance(model.model, LuminaModel):
        grid = flow_euler_from if schedule.by_sigma else get_sigmas_flow_euler
        return comfy.samplers.KSAMPLER(k_diffusion.sample_euler), grid(steps, model_shift(model), denoise)
    if getattr(model.model, "is_sprint", False):
        return comfy.samplers.KSAMPLER(sample_scm, {"batch_index": batch_index}), sprint_sigmas(schedule)
    grid = flow_dpm_from if schedule.by_sigma else get_sigmas_flow_dpm
    return comfy.samplers.KSAMPLER(sample_flow_dpm), grid(steps, model_shift(model), denoise)


def sprint_sigmas(schedule: Schedule):
    if schedule.max_time < SCM_MAX_TIME:
        return get_sigmas_scm(schedule.steps, schedule.max_time, None)
    if schedule.by_sigma:
        return scm_from(schedule.steps, schedule.denoise)
    return get_sigmas_scm(schedule.steps, denoise=schedule.denoise)


def pixart_solver(model, schedule: Schedule, batch_index: list[int] | None):
    """The released solver and sigmas of a PixArt: DPM-Solver++ 2M, or what its distilled form needs."""
    steps, denoise = schedule.steps, schedule.denoise
    model_sampling, distilled = model.get_model_object("model_sampling"), model.model.config.distilled
    require_noise_prediction(model_sampling)
    if distilled == DMD:
        return comfy.samplers.KSAMPLER(sample_pixart_dmd), get_sigmas_pixart(1, denoise)
    if distilled == LCM or is_consistency(model_sampling):
        if schedule.by_sigma:
            sigmas = simple_from(model_sampling.sigmas, steps, denoise)
        else:
            sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", int(steps / denoise))[-(steps + 1) :]
        return comfy.samplers.KSAMPLER(sample_scm, {"batch_index": batch_index}), sigmas
    grid = pixart_from if schedule.by_sigma else get_sigmas_pixart
    return comfy.samplers.sampler_object("dpmpp_2m"), grid(steps, denoise)


def inpaint_time(model, latent: dict, denoise: float, inpaint_start: str) -> tuple[float, list[str]]:
    """SANA-Sprint's first angle, and a sentence about a mask: from pure noise it is blind to the rest."""
    blind = getattr(model.model, "is_sprint", False) and latent.get("noise_mask") is not None and denoise == 1
    if not blind:
        return SCM_MAX_TIME, []
    if inpaint_start == OFF:
        return SCM_MAX_TIME, [
            "SANA-Sprint begins at pure noise, so the masked part is generated without regard to the rest of the "
            "image: set inpaint_start of SANA Sampler, an advanced input, to auto."
        ]
    return INPAINT_TIME, [
        f"Inpainting with SANA-Sprint begins at angle {INPAINT_TIME} (sigma {scm_time_to_sigma(INPAINT_TIME):.2f}), so "
        "that the masked part fits the rest of the image."
    ]


class SanaNativeFlowScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeFlowScheduler",
            display_name="SANA Flow Scheduler",
            category=SCHEDULERS,
            description="SANA's own noise levels for its Flow-DPM-Solver or Flow-Euler.",
            search_aliases=["sana sigmas", "flow shift", "basic scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose flow shift is used."),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="Number of steps: 20 for flow_dpm, 28 for flow_euler.",
                ),
                io.Combo.Input(
                    "grid",
                    options=list(FLOW_GRIDS),
                    default="flow_dpm",
                    optional=True,
                    tooltip="flow_dpm: for SANA Flow-DPM Sampler. flow_euler: the reference's twice-shifted grid, for "
                    "euler.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="Flow shift; larger spends more steps on composition. 0.00 means auto: the model's own "
                    "(3, or "
                    "6 at 4K).",
                ),
                denoise_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels, descending, the last 0.")],
        )

    @classmethod
    def execute(
        cls, model, steps: int = 20, grid: str = "flow_dpm", shift: float = 0.0, denoise: float = 1.0
    ) -> io.NodeOutput:
        require_flow_family(model)
        return io.NodeOutput(FLOW_GRIDS[grid](steps, shift or model_shift(model), denoise))


class SanaNativeFlowDPMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeFlowDPMSampler",
            display_name="SANA Flow-DPM Sampler",
            category=SAMPLERS,
            description="DPM-Solver++ for rectified flow, the sampler SANA is released with.",
            search_aliases=["flow dpm solver", "dpm++", "sana sampler"],
            inputs=[
                io.Int.Input(
                    "order",
                    default=2,
                    min=1,
                    max=3,
                    optional=True,
                    tooltip="Order of the multistep solver: 2 as released, 1 is Euler, 3 is third-order.",
                )
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, order: int = 2) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_flow_dpm, {"order": order}))


class SanaNativeSCMScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        angle = {"min": 0.01, "max": 1.5708, "step": 0.0001, "round": 0.00001, "advanced": True, "optional": True}
        return io.Schema(
            node_id="SanaNativeSCMScheduler",
            display_name="SANA SCM Scheduler",
            category=SCHEDULERS,
            description="Noise levels of SANA-Sprint for 1 to 4 steps.",
            search_aliases=["sprint sigmas", "scm", "trigflow"],
            inputs=[
                io.Int.Input(
                    "steps",
                    default=2,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="Number of steps; SANA-Sprint is made for 1 to 4.",
                ),
                io.Float.Input(
                    "max_time",
                    default=1.5708,
                    **angle,
                    tooltip="Angle of the first step in radians; 1.5708 is pure noise.",
                ),
                io.Float.Input(
                    "intermediate_time",
                    default=1.3,
                    **angle,
                    tooltip="Angle of the second step in radians, below max_time, with 2 steps and denoise 1 only; "
                    "otherwise the angles are even.",
                ),
                denoise_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels, descending, the last 0.")],
        )

    @classmethod
    def execute(
        cls, steps: int = 2, max_time: float = 1.5708, intermediate_time: float = 1.3, denoise: float = 1.0
    ) -> io.NodeOutput:
        return io.NodeOutput(get_sigmas_scm(steps, max_time, intermediate_time, denoise))


class SanaNativeSCMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeSCMSampler",
            display_name="SANA SCM Sampler",
            category=SAMPLERS,
            description="Consistency steps of SANA-Sprint: predict the image, add fresh noise, repeat. Use it with cfg "
            "1.",
            search_aliases=["sprint sampler", "scm", "lcm"],
            inputs=[],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustom and SamplerCustomAdvanced. They do not pass on which image of a batch "
                    "is sampled: to repeat one alone, use SANA Sampler."
                )
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(comfy.samplers.KSAMPLER(sample_scm))


class SanaNativeSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeSampler",
            display_name="SANA Sampler",
            category="model/sampling",
            description="Samples with the solver and noise levels the model was released with: Flow-DPM for SANA, SCM "
            "for Sprint, Euler for Lumina-Next, DPM-Solver++ for PixArt.",
            search_aliases=["sana ksampler", "ksampler", "sprint sampler"],
            inputs=[
                io.Model.Input("model", tooltip="SANA, SANA-1.5, SANA-Sprint, Lumina-Next or PixArt."),
                io.Conditioning.Input("positive", tooltip="What to generate."),
                io.Conditioning.Input("negative", tooltip="What to avoid; not used at cfg 1."),
                io.Latent.Input("latent_image", tooltip="Empty for a new image, or an encoded image to start from."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    optional=True,
                    tooltip="The same seed gives the same image, on every device, in every batch, and alone after "
                    "Get Latent From Batch; with int8 and 4-bit weights it varies a little with the batch.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="20 for SANA and PixArt, 30 for Lumina-Next, 1 to 4 for SANA-Sprint, 4 for PixArt's LCM; "
                    "its DMD takes one.",
                ),
                io.Float.Input(
                    "cfg",
                    default=4.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="Classifier-free guidance: how much the prompt outweighs the negative prompt, 4 to 5 for "
                    "SANA and PixArt, 4 for Lumina-Next, 1 for PixArt's LCM and DMD. Must be 1 for SANA-Sprint, whose "
                    "guidance is set with FluxGuidance.",
                ),
                denoise_input(),
                io.Combo.Input(
                    "inpaint_start",
                    options=list(INPAINT_STARTS),
                    default=OFF,
                    advanced=True,
                    optional=True,
                    tooltip="auto: SANA-Sprint with a mask and denoise 1 begins below pure noise, at angle 1.3, so "
                    "that the masked part fits the rest. off: as denoise says. No effect on other models.",
                ),
                io.Combo.Input(
                    "strength_as",
                    options=list(STRENGTHS),
                    default=STEPS,
                    advanced=True,
                    optional=True,
                    tooltip="What denoise counts. steps: the share of the schedule, as in KSampler. sigma: the share "
                    "of noise at the start, so that 0.3 preserves 0.7 of the image.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="The generated latent, for SANA DC-AE Decode, or VAE Decode after Lumina-Next and PixArt."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed: int = 0,
        steps: int = 20,
        cfg: float = 4.5,
        denoise: float = 1.0,
        inpaint_start: str = OFF,
        strength_as: str = STEPS,
    ) -> io.NodeOutput:
        require_position(latent_image["samples"].shape, latent_image.get("downscale_ratio_spacial"))
        MEMORY.prepare()  # previews may have been switched on after the DC-AE was loaded
        time, sentences = inpaint_time(model, latent_image, denoise, inpaint_start)
        schedule = Schedule(steps, denoise, strength_as == SIGMA, time)
        sampler, sigmas = solver_for(model, schedule, latent_image.get("batch_index"))
        with announced(sentences):
            output = SamplerCustom.execute(model, True, seed, cfg, positive, negative, sampler, sigmas, latent_image)
        return io.NodeOutput(output.result[0])
