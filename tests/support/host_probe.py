"""Run as a program in a fresh process: what loading and using the pack changes in the host, written as JSON.

Arguments: the host's folder, the pack's folder, a folder with diffusers models, the file to write.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import types

HOST, PACK, MODELS, REPORT = sys.argv[1:]
sys.path[0] = HOST  # in place of this file's own folder
sys.argv = [sys.argv[0]]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy_config.config_parser  # noqa: E402, F401 - the host's own, for any pack
import comfy_extras.nodes_custom_sampler  # noqa: E402, F401 - loaded by the host before any pack
import folder_paths  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
folder_paths.add_model_folder_path("diffusers", MODELS)
# Reimplemented here, not taken from the pack: what it may add.
SAMPLERS = ("flow_dpm", "scm", "midpoint", "pixart_dmd")
ADDED = {f"comfy.k_diffusion.sampling.sample_sana_{name}" for name in SAMPLERS}
WATCHED = ("comfy", "comfy_extras", "comfy_api", "nodes", "node_helpers", "folder_paths", "torch")


def stock_model() -> comfy.model_patcher.ModelPatcher:
    """A narrow Stable Diffusion 1 of the host, with random weights."""
    unet = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "num_heads": 4, "use_spatial_transformer": True, "transformer_depth": [1, 1],
            "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 1, 1], "context_dim": 64,
            "dtype": torch.float32}  # fmt: skip
    model = comfy.model_base.BaseModel(comfy.supported_models.SD15(unet), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.diffusion_model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def stock_latents() -> list[torch.Tensor]:
    """Latents of the stock model by several of the host's samplers, with guidance."""
    model, latent = stock_model(), torch.zeros(1, 4, 8, 8)
    generator = torch.Generator().manual_seed(2)
    positive, negative = ([[torch.randn(1, 8, 64, generator=generator), {}]] for _ in range(2))
    noise = comfy.sample.prepare_noise(latent, 3)
    return [
        comfy.sample.sample(
            model, noise, 4, 5.0, sampler, "normal", positive, negative, latent, disable_pbar=True, seed=3
        )
        for sampler in ("euler", "dpmpp_2m", "uni_pc")
    ]


def callables() -> dict[str, object]:
    """Every function and class of the watched modules, and every member of their classes, by name."""
    found = {}
    for module in list(sys.modules.values()):
        name = getattr(module, "__name__", "")
        if not isinstance(module, types.ModuleType) or name.split(".")[0] not in WATCHED:
            continue
        for key, value in list(vars(module).items()):
            if callable(value):
                found[f"{name}.{key}"] = value
            if isinstance(value, type) and value.__module__ == name:
                found |= {
                    f"{name}.{key}.{member}": item for member, item in vars(value).items() if callable_member(item)
                }
    return found


def callable_member(item) -> bool:
    return callable(item) or isinstance(item, staticmethod | classmethod | property)


def refuse(*_, **__):
    raise AssertionError("the pack opened a connection or a process")


def load_pack() -> dict:
    """Loads the pack as the host does; what it took, wrote and imported."""
    loop = asyncio.new_event_loop()  # opens sockets of its own
    real = socket.socket, socket.create_connection, subprocess.Popen, os.system
    socket.socket = socket.create_connection = subprocess.Popen = os.system = refuse
    known, streams = set(sys.modules), [os.dup(1), os.dup(2)]
    with open(REPORT + ".out", "w+b") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        start = time.perf_counter()
        loaded = loop.run_until_complete(nodes.load_custom_node(PACK))
        seconds = time.perf_counter() - start
        sys.stdout.flush()
        sys.stderr.flush()
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        out.seek(0)
        said = out.read().decode()
    socket.socket, socket.create_connection, subprocess.Popen, os.system = real
    modules = {name.split(".")[0] for name in set(sys.modules) - known if not name.startswith(PACK.replace(".", "_x_"))}
    return {
        "loaded": loaded,
        "seconds": seconds,
        "said": said,
        "modules": sorted(modules - set(sys.stdlib_module_names)),
    }


def call(name: str, *inputs):
    return nodes.NODE_CLASS_MAPPINGS[f"SanaNative{name}"].execute(*inputs).result


@torch.inference_mode()
def use_pack() -> list[int]:
    """A picture by our nodes, SANA with guidance and Sprint without; the shape of the last."""
    (clip,), (vae,) = call("GemmaLoader", "sana/", "auto"), call("DCAELoader", "sana/", "auto")
    conds = call("GemmaEncode", clip, "a cat", "blurry", "on", "", False)
    (latent,) = call("EmptyLatent", "custom", "1:1", 64, 64, 1)
    for name, steps, cfg in (("sana/", 3, 4.5), ("sprint/", 2, 1.0)):
        (model,) = call("ModelLoader", name, "auto", 0.0, "auto")
        (samples,) = call("Sampler", model, *conds, latent, 1, steps, cfg, 1.0)
        (image,) = call("DCAEDecode", vae, samples, "auto", 1024, 128)
        call("DCAEEncode", vae, image, "on", 128, 32)
    return list(image.shape)


def main() -> None:
    before_latents, before_lists = (
        stock_latents(),
        (list(comfy.samplers.SAMPLER_NAMES), list(comfy.samplers.SCHEDULER_NAMES)),
    )
    before, before_nodes = callables(), dict(nodes.NODE_CLASS_MAPPINGS)
    report = load_pack() | {"shape": use_pack()}
    after, after_latents = callables(), stock_latents()
    names = {key.rpartition(".")[0] for key in before}
    report |= {
        "watched": len(before),
        "changed": sorted(key for key in before if after.get(key) is not before[key]),
        "added": sorted(
            key for key in set(after) - set(before) - ADDED if key.rpartition(".")[0] in names and "torch" not in key
        ),
        "registered": sorted(ADDED & set(after)),
        "latents_equal": [torch.equal(a, b) for a, b in zip(before_latents, after_latents, strict=True)],
        "latents_differ_among_samplers": not torch.equal(before_latents[0], before_latents[1]),
        "latent_std": float(before_latents[0].std()),
        "lists_extended": [
            comfy.samplers.SAMPLER_NAMES[: len(before_lists[0])] == before_lists[0],
            comfy.samplers.SCHEDULER_NAMES[: len(before_lists[1])] == before_lists[1],
        ],
        "nodes_added": sorted(set(nodes.NODE_CLASS_MAPPINGS) - set(before_nodes)),
        "nodes_changed": [name for name, node in before_nodes.items() if nodes.NODE_CLASS_MAPPINGS[name] is not node],
    }
    with open(REPORT, "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main()
