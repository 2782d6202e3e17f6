"""One step of the released 0.6B size at 1024 px, through our loader and the host's sampler, with random weights."""

import resource
import sys
import time

import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import torch
from safetensors.torch import save_file
from sana_native.models.sana.config import SanaConfig
from sana_native.models.sana.convert import to_file_layout
from sana_native.models.sana.loader import load_sana
from sana_native.models.sana.model import Sana
from sana_native.samplers.flow_dpm import sample_flow_dpm
from sana_native.samplers.schedules import get_sigmas_flow_dpm

SANA_600M = SanaConfig(
    hidden_size=1152,
    depth=28,
    num_cross_attention_heads=16,
    caption_channels=2304,
    mlp_hidden_size=2880,
    in_channels=32,
    out_channels=32,
    qk_norm=False,
    guidance_embeds=False,
    guidance_embeds_scale=0.1,
    interpolation_scale=None,
    sample_size=32,
    shift=3.0,
    clamp_attention=None,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights of unit gain in one bfloat16 file of 1.18 GB."""
    with torch.device("meta"):
        shapes = to_file_layout(Sana(SANA_600M, operations=comfy.ops.disable_weight_init).state_dict())
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: (
            torch.randn(tensor.shape, generator=generator) * (tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1)
        ).bfloat16()
        for key, tensor in shapes.items()
    }
    path = tmp_path_factory.mktemp("full size") / "Sana_600M_1024px_random.safetensors"
    save_file(weights, path)
    return path


@pytest.mark.heavy
@torch.inference_mode()
def test_one_step_at_1024_px_is_finite(checkpoint, capsys):
    started = time.perf_counter()
    model = load_sana(str(checkpoint), {"dtype": torch.bfloat16})
    loaded = time.perf_counter()
    context = [[torch.randn(1, 300, 2304), {"attention_mask": torch.ones(1, 300, dtype=torch.long)}]]
    latent = torch.zeros(1, 32, 32, 32)

    out = comfy.sample.sample_custom(
        model,
        comfy.sample.prepare_noise(latent, 0),
        1.0,
        comfy.samplers.KSAMPLER(sample_flow_dpm),
        get_sigmas_flow_dpm(1, 3.0),
        context,
        context,
        latent,
        disable_pbar=True,
    )

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with capsys.disabled():
        sys.stdout.write(
            f"\n0.6B at 1024 px in {model.model.get_dtype_inference()}: load {loaded - started:.1f} s, "
            f"one step {time.perf_counter() - loaded:.1f} s, peak resident {peak:.2f} GiB\n"
        )
    assert torch.isfinite(out).all()
    assert out.std() > 0.1
