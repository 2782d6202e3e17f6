"""PixArt's network against diffusers' PixArtTransformer2DModel: same weights, same input, float32."""

import comfy.ops
import pytest
import sana_native.models.pixart.model as pixart_model
import torch
import torch._dynamo.testing
from comfy.ldm.modules.attention import attention_pytorch
from sana_native.models.pixart.config import ALPHA, SIGMA, PixArtConfig
from sana_native.models.pixart.loader import load_pixart
from sana_native.models.pixart.model import PixArt, encode_axis, position_embedding
from sana_native.tests.support import pixart, tiny

TOLERANCE = 2e-6  # of outputs of about unit size
TIMESTEPS = torch.tensor([999.0, 347.0])


def inputs(height: int, width: int, length: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent (2, 4, h, w) of an image of so many pixels and text states (2, L, C)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, height // 8, width // 8, generator=generator)
    return x, torch.randn(2, length, pixart.TEXT_WIDTH, generator=generator)


def noise_of_reference(reference, x, context, mask=None) -> torch.Tensor:
    height, width = 8 * x.shape[-2], 8 * x.shape[-1]
    sizes = {"resolution": None, "aspect_ratio": None}
    if reference.config.use_additional_conditions:
        sizes = {
            "resolution": torch.tensor([[height, width]]).repeat(2, 1).float(),
            "aspect_ratio": torch.tensor([[height / width]]).repeat(2, 1),
        }
    out = reference(x, context, TIMESTEPS, added_cond_kwargs=sizes, encoder_attention_mask=mask).sample
    return out.chunk(2, dim=1)[0]


def worst(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).abs().max() / expected.std())


@pytest.mark.parametrize("layout", pixart.LAYOUTS)
@pytest.mark.parametrize("kind", pixart.KINDS)
@torch.inference_mode()
def test_every_release_in_every_layout_equals_diffusers_off_its_size_too(kind, layout, tmp_path):
    reference = pixart.reference(kind)
    model = load_pixart(pixart.save(reference, kind, layout, tmp_path)).model
    assert model.config.family == (ALPHA if kind.startswith("alpha") else SIGMA)
    assert type(model.latent_format).__name__ == ("SD15" if kind.startswith("alpha") else "SDXL")
    for size in ((256, 256), (320, 192), (512, 512)):
        x, context = inputs(*size)
        ours = model.diffusion_model(x, TIMESTEPS, context)
        assert worst(ours, noise_of_reference(reference, x, context)) < TOLERANCE


@pytest.mark.parametrize("kind", ["alpha 1024-MS", "Sigma 1024"])
@torch.inference_mode()
def test_the_released_width_equals_diffusers(kind, tmp_path):
    reference = pixart.reference(kind, heads=16)
    model = load_pixart(pixart.save(reference, kind, "authors with pos_embed", tmp_path)).model
    x, context = inputs(320, 192)
    ours = model.diffusion_model(x, TIMESTEPS, context)
    assert float((ours - noise_of_reference(reference, x, context)).abs().max()) < TOLERANCE


@pytest.mark.parametrize("size", [(1152, 896), (128, 512), (512, 128)], ids=str)
@torch.inference_mode()
def test_portrait_and_strip_sizes_equal_diffusers(size, tmp_path):
    reference = pixart.reference("alpha 1024-MS")
    model = load_pixart(pixart.save(reference, "alpha 1024-MS", "diffusers file", tmp_path)).model
    x, context = inputs(*size)
    assert worst(model.diffusion_model(x, TIMESTEPS, context), noise_of_reference(reference, x, context)) < TOLERANCE


@torch.inference_mode()
def test_the_grid_is_as_exact_in_a_bfloat16_model(tmp_path):
    model = load_pixart(pixart.save(pixart.reference(), "Sigma 512", "diffusers file", tmp_path)).model
    height, width, quarter = 36, 28, 288
    omega = 10000.0 ** -(torch.arange(quarter).double() / quarter)
    rows = (torch.arange(height).double() * 32 / height)[:, None] * omega
    columns = (torch.arange(width).double() * 32 / width)[:, None] * omega
    parts = [columns.sin()[None], columns.cos()[None], rows.sin()[:, None], rows.cos()[:, None]]
    exact = torch.cat([part.expand(height, width, quarter) for part in parts], dim=-1).flatten(0, 1)
    ours = position_embedding(*(encode_axis(size, 4 * quarter, 32, "cpu") for size in (height, width)))
    assert float((ours.double() - exact).abs().max()) < 1e-6
    assert float((ours.bfloat16().double() - exact).abs().max()) < 0.004
    assert model.config.span == 32


@torch.inference_mode()
def test_the_span_of_alpha_at_256_px_is_half():
    halves = [position_embedding(*2 * [encode_axis(16, 1152, span, "cpu")]) for span in (16, 32)]
    assert float((halves[0] - halves[1]).abs().max()) > 0.1


def test_an_axis_is_encoded_once_per_length_and_device_and_never_changes(tmp_path, monkeypatch):
    encoded = []

    def counted(*args):
        encoded.append((args[0], str(args[-1])))
        return encode_axis(*args)

    monkeypatch.setattr(pixart_model, "encode_axis", counted)
    network = load_pixart(pixart.save(pixart.reference(), "Sigma 512", "authors", tmp_path)).model.diffusion_model
    (x, context), timesteps = inputs(128, 192), torch.tensor([500.0, 500.0])
    with torch.inference_mode():
        first = network(x, timesteps, context)
        assert torch.equal(network(x, timesteps, context), first) and encoded == [(8, "cpu"), (12, "cpu")]
        network.axis(8, torch.device("meta"))
        assert encoded[2:] == [(8, "meta")] and network.axis(8, torch.device("cpu")).device.type == "cpu"
        for size in range(100, 120):
            network.axis(size, torch.device("cpu"))
        assert len(network.axes) <= pixart_model.MAX_AXES
        assert torch.equal(network(x, timesteps, context), first)
    noise = x.clone().requires_grad_()
    network(noise, timesteps, context).sum().backward()  # what inference has stored serves a training
    assert noise.grad.abs().max() > 0


@torch.inference_mode()
def test_texts_of_three_lengths_in_one_batch_equal_each_alone_and_diffusers(tmp_path):
    reference = pixart.reference()
    network = load_pixart(pixart.save(reference, "Sigma 512", "diffusers file", tmp_path)).model.diffusion_model
    lengths = torch.tensor([5, 11, 1])
    x, context = inputs(128, 128, length=11)
    x, context = x[[0, 1, 0]], context[[0, 1, 0]]
    t = torch.tensor([999.0, 347.0, 20.0])
    mask = (torch.arange(11) < lengths[:, None]).long()
    together = network(x, t, context, attention_mask=mask)
    expected = reference(x, context, t, added_cond_kwargs={}, encoder_attention_mask=mask.float()).sample.chunk(
        2, dim=1
    )[0]
    assert worst(together, expected) < 5e-6
    for row, length in enumerate(lengths.tolist()):
        alone = network(x[row : row + 1], t[row : row + 1], context[row : row + 1, :length])
        assert worst(together[row : row + 1], alone) < 5e-6


@torch.inference_mode()
def test_sides_that_patches_do_not_divide_run_at_their_own_size(tmp_path):
    network = load_pixart(
        pixart.save(pixart.reference(), "Sigma 512", "diffusers file", tmp_path)
    ).model.diffusion_model
    x, context = inputs(264, 248)
    out = network(x, TIMESTEPS, context)
    assert out.shape == x.shape and torch.isfinite(out).all()


@torch.inference_mode()
def test_keys_and_values_are_pooled_on_the_token_grid():
    ratios = {"kv_ratios": (1, 2)}
    config = load_config(**ratios)
    network = PixArt(config, dtype=torch.float32, operations=comfy.ops.manual_cast)
    tiny.randomize(network, 1)
    x, context = inputs(96, 160)
    captured = []
    network.blocks[1].attn.sr.register_forward_hook(lambda _, args, out: captured.append((args[0].shape, out.shape)))
    assert torch.isfinite(network(x, TIMESTEPS, context)).all()
    assert captured == [((2, 144, 6, 10), (2, 144, 3, 5))] * 2
    assert network.state_dict()["blocks.1.attn.sr.weight"].shape == (144, 1, 2, 2)


def load_config(**changes) -> PixArtConfig:
    values = dict(family=SIGMA, hidden_size=144, depth=2, caption_channels=pixart.TEXT_WIDTH, in_channels=4,
                  learns_variance=True, micro_conditions=False, qk_norm=False, kv_ratios=(1, 1),
                  sample_size=64)  # fmt: skip
    return PixArtConfig(**values | changes)


@pytest.mark.parametrize("micro", [False, True])
def test_the_network_compiles_to_one_graph(micro, monkeypatch):
    monkeypatch.setattr(pixart_model, "optimized_attention", attention_pytorch)
    torch._dynamo.reset()
    network = tiny.randomize(
        PixArt(load_config(micro_conditions=micro), dtype=torch.float32, operations=comfy.ops.manual_cast), 1
    )
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    x, context = inputs(128, 128)
    with torch.no_grad():
        for t in (999.0, 20.0):
            timesteps = torch.tensor([t, t])
            assert worst(compiled(x, timesteps, context), network(x, timesteps, context)) < 1e-5
    assert counter.frame_count == 1


def kv_compressed(x: torch.Tensor, layer, grid: tuple[int, int], heads: int) -> torch.Tensor:
    """Attention with compressed keys and values as PixArt-Sigma's paper writes it (2.3): each channel's mean over
    R x R tokens with learnt weights, then a LayerNorm; written out token by token in float64. x: (N, C)."""
    weights = {name: value.double() for name, value in layer.state_dict().items()}
    q, k, v = (x.double() @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, dim=-1)
    (height, width), size = grid, layer.sr_ratio

    def compress(tokens: torch.Tensor) -> torch.Tensor:
        out = []
        for row in range(height // size):
            for column in range(width // size):
                total = weights["sr.bias"].clone()
                for i in range(size):
                    for j in range(size):
                        token = tokens[(row * size + i) * width + column * size + j]
                        total += weights["sr.weight"][:, 0, i, j] * token
                centered = total - total.mean()
                out.append(
                    centered / (centered.square().mean() + 1e-5).sqrt() * weights["norm.weight"] + weights["norm.bias"]
                )
        return torch.stack(out)

    k, v = compress(k), compress(v)
    parts = []
    for q_head, k_head, v_head in zip(*(part.chunk(heads, dim=-1) for part in (q, k, v)), strict=True):
        scores = torch.softmax(q_head @ k_head.T / q_head.shape[-1] ** 0.5, dim=-1)
        parts.append(scores @ v_head)
    return torch.cat(parts, dim=-1) @ weights["proj.weight"].T + weights["proj.bias"]


@pytest.mark.parametrize(("ratio", "grid"), [(2, (6, 8)), (2, (5, 7)), (4, (8, 12))])
@torch.no_grad()
def test_compressed_keys_and_values_equal_the_papers_formula(ratio, grid):
    layer = pixart_model.PixArtSelfAttention(
        144, 2, sr_ratio=ratio, dtype=torch.float32, operations=comfy.ops.disable_weight_init
    )
    tiny.randomize(layer, 4)
    x = torch.randn(2, grid[0] * grid[1], 144, generator=torch.Generator().manual_seed(3))
    expected = torch.stack([kv_compressed(row, layer, grid, 2) for row in x])
    ours = layer(x, grid, {})
    assert ours.std() > 0.1 and float((ours - expected).abs().max() / expected.std()) < 1e-5
