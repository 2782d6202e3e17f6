"""Single stages on a GPU: ceilings of the card, decode, denoising step and text, ours beside diffusers and the host.

Networks have the released sizes and the same random weights in every implementation; the error is that of the same
weights in float32 on a CPU, at a small size and, for the transformers, in two blocks. Ours comes from the same
functions that the pack's loaders call, so that what they choose for a device is what is measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from benchmarks.gpu_clock import release, time_runs
from benchmarks.gpu_report import OURS, Report, Work
from benchmarks.networks import CAPTION_CHANNELS, HALF, INSTRUCTION_POSITIONS, POSITIONS, PROMPT_TOKENS, build, encoding
from benchmarks.stages import operations

PRODUCT_SIDE = {"cuda": 8192, "cpu": 512}
COPIED = {"cuda": 1 << 30, "cpu": 1 << 22}  # bytes
CHECKED_SIZE = {False: 256, True: 64}  # px at which errors are measured, by `tiny`
CHECKED_BLOCKS = 2
STEP_TOKENS = 48  # the host's batch of a prompt of about 30 tokens and an empty one
TIMESTEP = {False: 547.0, True: 0.7}  # by whether the model is a SANA-Sprint
GUIDANCE = 4.5
SPRINT = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True}
TEXT_LENGTHS = (1, PROMPT_TOKENS, INSTRUCTION_POSITIONS + PROMPT_TOKENS)
# Forms of an implementation, behind a comma in the variant's name. A graph is the call alone, without copies; the last
# is what the option of the loaders does.
COMPILED, GRAPH, OPTION = "compiled", "graph", "cuda_graphs"


def relative_error(found, wanted) -> float:
    """Of the Frobenius norm of tensors, or of the objects in which diffusers returns them."""
    found, wanted = (getattr(one, "sample", one).double().cpu() for one in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def ceilings(report: Report) -> None:
    """Operations a second of a large bfloat16 product, and bytes a second of a large copy, read and written."""
    import torch

    device, side = report.device, PRODUCT_SIDE[report.device]
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    source = torch.empty(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = time_runs(lambda: a @ b, device)["best_ms"]
        copied = time_runs(lambda: target.copy_(source), device)["best_ms"]
    report.ceilings = {"operations": 2 * side**3 / product * 1e3, "bytes": 2 * COPIED[device] / copied * 1e3}
    report.save()


def weight_bytes(network) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def least_work(network, run: Callable) -> Callable[[], Work]:
    """Operations of one call as torch counts them, and every weight read once."""

    def count() -> Work:
        return Work(in_inference_mode(functools.partial(operations, run)), weight_bytes(network))

    return count


def stage_work(report: Report, stage: str, network, run: Callable) -> Callable[[], Work]:
    """The work of a stage, counted in its first variant: all variants have to give the same result."""

    def count() -> Work:
        if stage not in report.works:
            report.works[stage] = least_work(network, run)()
        return report.works[stage]

    return count


def known_work(report: Report, stage: str) -> Callable[[], Work]:
    """For a variant that cannot be counted, a compiled or replayed one: what another one was found to do."""
    return lambda: report.works.get(stage, Work())


def backend(report: Report) -> str:
    """Of torch.compile; a dry run shows that the graph is whole, without a compiler."""
    return "inductor" if report.device == "cuda" else "eager"


def measure_form(report: Report, stage: str, variant: str, network, module, run: Callable, error: Callable) -> None:
    """A row for an implementation as it is, or in the form behind the comma of the variant's name.

    module: what of the network is compiled. error: of the implementation as it is, to float32; that of a compiled or
    replayed one is its difference to eager kernels, which spares compiling for another shape.
    """
    form = variant.partition(", ")[2]
    if not form:
        report.measure(stage, variant, run, stage_work(report, stage, network, run), error)
        return
    if form in (GRAPH, OPTION) and report.device != "cuda":
        report.skip(stage, variant, "there are no CUDA graphs on a CPU")
        return
    note = ""
    try:
        wanted = in_inference_mode(run)
        if form == GRAPH:
            run = in_inference_mode(functools.partial(captured, run))
        elif form == OPTION:
            note = f"{replayed_by_option(module, run) / 2**20:.0f} MiB held"
        else:
            module.compile(backend=backend(report))
    except Exception as failure:  # noqa: BLE001 - what cannot be captured is a finding of its own
        report.fail(stage, failure, variant)
        return

    def difference() -> float:
        return relative_error(in_inference_mode(run), wanted)

    work, detail = known_work(report, stage), form == COMPILED
    report.measure(stage, variant, run, work, difference, "eager", detail=detail, note=note)
    if form == COMPILED:
        import torch

        torch._dynamo.reset()


def in_inference_mode(run: Callable):
    import torch

    with torch.inference_mode():
        return run()


def replayed_by_option(module, run: Callable) -> int:
    """Switches on in a network what `cuda_graphs` of the loaders does, and returns the bytes that it holds.

    run: a call of the network. Raises RuntimeError where nothing is captured; the log says why.
    """
    from sana_native.models.runtime.cuda_graph import GraphCache

    module.graphs = GraphCache()
    for _ in range(2):  # the first runs as usual
        in_inference_mode(run)
    if not module.graphs.recordings:
        raise RuntimeError("nothing was captured: " + "; ".join(sorted(module.graphs.told) or ["see the log"]))
    return module.graphs.held


def captured(run: Callable) -> Callable:
    """A call as a CUDA graph that is replayed, to the same tensor each time."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose and allocate in the first calls
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay():
        graph.replay()
        return out

    return replay


# Decode


@functools.cache
def decode_reference(model: str, size: int) -> tuple[dict, Any, Any]:
    """Weights in float32, a latent, and its image by the plain network on the CPU."""
    import torch

    torch.manual_seed(0)
    network = build("decode", "plain", torch.float32, "cpu", model)
    latent = torch.randn(1, 32, size // 32, size // 32)
    with torch.inference_mode():
        return network.state_dict(), latent, network.decode(latent)


def autoencoder(implementation: str, report: Report, model: str):
    """One of the implementations with the reference's weights, in bfloat16 on the device."""
    import torch

    network = build("decode", implementation, torch.bfloat16, report.device, model)
    network.load_state_dict(decode_reference(model, CHECKED_SIZE[report.tiny])[0])
    return network


def decode(report: Report, size: int, variants: tuple[str, ...], model: str) -> None:
    """variants: implementations, each with a form behind it or not."""
    import torch

    stage = f"decode {size}"
    if not report.wants(stage):
        return
    _, small, image = decode_reference(model, CHECKED_SIZE[report.tiny])
    latent = torch.randn(1, 32, size // 32, size // 32, device=report.device, dtype=torch.bfloat16)
    for variant in variants:
        implementation = variant.partition(", ")[0]
        network = autoencoder(implementation, report, model)
        scale = network.scaling_factor if implementation == "host" else 1  # the host's class divides by it
        check = functools.partial(decode_error, network, (small * scale).to(latent), image)
        half, run = getattr(network, HALF["decode"]), functools.partial(network.decode, latent)
        measure_form(report, stage, variant, network, half, run, check)
        del network, half, run, check


def decode_error(network, latent, wanted) -> float:
    return relative_error(in_inference_mode(functools.partial(network.decode, latent)), wanted)


# Denoising step


def step_inputs(batch: int, size: int, device: str, dtype, sprint: bool) -> dict:
    """Arguments of our network for a batch whose prompts have no padding."""
    import torch

    kw = {"device": device, "dtype": dtype}
    found = {
        "x": torch.randn(batch, 32, size // 32, size // 32, **kw),
        "timesteps": torch.full((batch,), TIMESTEP[sprint], device=device),
        "context": torch.randn(batch, STEP_TOKENS, CAPTION_CHANNELS, **kw),
        "attention_mask": torch.ones(batch, STEP_TOKENS, device=device, dtype=torch.long),
    }
    return found | ({"guidance": torch.full((batch,), GUIDANCE, device=device)} if sprint else {})


def step_call(implementation: str, network, inputs: dict) -> Callable:
    if implementation != "diffusers":
        return functools.partial(network, **inputs)
    import torch.nn.functional as F

    mask = inputs["attention_mask"].to(inputs["x"])
    padding = POSITIONS - STEP_TOKENS  # which diffusers' pipeline leaves in place
    mask, context = F.pad(mask, (0, padding)), F.pad(inputs["context"], (0, 0, 0, padding))
    args = inputs["x"], context, inputs["timesteps"]
    scaled = {"guidance": inputs["guidance"] * 0.1} if "guidance" in inputs else {}  # its pipeline scales it
    return functools.partial(network, *args, encoder_attention_mask=mask, **scaled)


@functools.cache
def step_reference(model: str, sprint: bool, batch: int, size: int) -> tuple[dict, dict, Any]:
    """Weights of a few blocks in diffusers' layout, inputs, and what our network gives for them, float32 on a CPU."""
    import torch
    from sana_native.models.sana.convert import to_network_layout

    torch.manual_seed(0)
    options = SPRINT if sprint else {}
    state = build("step", "diffusers", torch.float32, "cpu", model, CHECKED_BLOCKS, **options).state_dict()
    network = build("step", "plain", torch.float32, "cpu", model, CHECKED_BLOCKS, **options)
    network.load_state_dict(to_network_layout(state))
    inputs = step_inputs(batch, size, "cpu", torch.float32, sprint)
    with torch.inference_mode():
        return state, inputs, network(**inputs)


def step_error(report: Report, implementation: str, model: str, sprint: bool, batch: int) -> float:
    """Relative error of a few blocks in bfloat16 on the device."""
    import torch
    from sana_native.models.sana.convert import to_network_layout

    state, inputs, wanted = step_reference(model, sprint, batch, CHECKED_SIZE[report.tiny])
    options = SPRINT if sprint else {}
    network = build("step", implementation, torch.bfloat16, report.device, model, CHECKED_BLOCKS, **options)
    network.load_state_dict(state if implementation == "diffusers" else to_network_layout(state))
    moved = {
        name: value.to(report.device, torch.bfloat16 if name in ("x", "context") else None)
        for name, value in inputs.items()
    }
    return relative_error(in_inference_mode(step_call(implementation, network, moved)), wanted)


def step(report: Report, model: str, batch: int, size: int, variants: tuple[str, ...], sprint: bool = False) -> None:
    """variants: implementations, each with a form behind it or not."""
    import torch

    stage = f"step {model}{' Sprint' if sprint else ''} x{batch} {size}"
    if not report.wants(stage):
        return
    inputs = step_inputs(batch, size, report.device, torch.bfloat16, sprint)
    for variant in variants:
        implementation = variant.partition(", ")[0]
        network = build("step", implementation, torch.bfloat16, report.device, model, **(SPRINT if sprint else {}))
        run = step_call(implementation, network, inputs)
        check = functools.partial(step_error, report, implementation, model, sprint, batch)
        measure_form(report, stage, variant, network, network, run, check)
        del network, run


# Text


def text(report: Report, model: str) -> None:
    """A prompt as the node encodes it, after the first; and single lengths in both formats, without any prefix."""
    import torch

    stage = f"text {PROMPT_TOKENS} tokens"
    for variant in (OURS, "ours in float32", "transformers") if report.wants(stage) else ():
        implementation, _, own_format = variant.partition(" in ")
        options = {"compute": getattr(torch, own_format)} if own_format else {}
        network = build("text", implementation, torch.bfloat16, report.device, model, **options)
        run = encoding(implementation, network, report.device, PROMPT_TOKENS)
        report.measure(stage, variant, run, least_work(network, run))
        del network, run
        release(report.device)
    for compute in (torch.float32, torch.bfloat16):
        gemma = gemma_of("bfloat16", report.device, model, None, compute)
        for length in TEXT_LENGTHS:
            embeds = torch.randn(1, length, gemma.model.config.hidden_size, device=report.device)
            run = functools.partial(gemma.continue_from, [], embeds)
            error = functools.partial(text_error, report, length, compute, model)
            report.measure(f"text of length {length}", str(compute)[6:], run, least_work(gemma, run), error)
        del gemma, run


def gemma_of(dtype: str, device: str, model: str, blocks: int | None, compute):
    """Our Gemma-2 alone. dtype: of its weights; compute: of its matrix products."""
    import torch

    network = build("text", OURS, getattr(torch, dtype), device, model, blocks, compute=compute)
    return network.gemma2_2b.transformer


@functools.cache
def text_reference(model: str, length: int) -> tuple[dict, Any, Any]:
    """Weights of a few layers in float32, embeddings, and the states they give on the CPU."""
    import torch

    torch.manual_seed(0)
    gemma = gemma_of("float32", "cpu", model, CHECKED_BLOCKS, torch.float32)
    embeds = torch.randn(1, length, gemma.model.config.hidden_size)
    return gemma.state_dict(), embeds, in_inference_mode(functools.partial(gemma.continue_from, [], embeds))[0]


def text_error(report: Report, length: int, compute, model: str) -> float:
    """Relative error of a few layers with weights in bfloat16 on the device."""
    state, embeds, wanted = text_reference(model, length)
    gemma = gemma_of("bfloat16", report.device, model, CHECKED_BLOCKS, compute)
    gemma.load_state_dict(state)
    run = functools.partial(gemma.continue_from, [], embeds.to(report.device))
    return relative_error(in_inference_mode(run)[0], wanted)
