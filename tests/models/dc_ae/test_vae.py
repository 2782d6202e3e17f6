"""DC-AE as a host VAE: its lifetime, what it checks and says, and layers that other packs replace or patch."""

import copy
import gc
import logging
import weakref

import comfy.ops
import comfy.sd
import pytest
import torch
from sana_native.models.dc_ae import vae as vae_module
from sana_native.models.dc_ae.detection import detect_dc_ae
from sana_native.models.dc_ae.inplace import InplaceAutoencoderDC, choose_network
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.dc_ae.model import AutoencoderDC
from sana_native.models.runtime.cpu import malloc
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench

WIDTHS = {"encoder_block_out_channels": (8, 8, 16, 32, 32, 64), "decoder_block_out_channels": (8, 8, 16, 32, 32, 64)}
PATH = "decoder.up_blocks.0.1.conv1"


def latent(height: int = 2, width: int = 3) -> torch.Tensor:
    return torch.randn(1, 32, height, width, generator=torch.Generator().manual_seed(1))


def image(height: int = 96, width: int = 128, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, height, width, channels, generator=torch.Generator().manual_seed(2))


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host's executor has it."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae():
    return load_dc_ae(str(bench.folder() / "sana"))


# The two networks


def both(reference) -> tuple[AutoencoderDC, InplaceAutoencoderDC]:
    models = [kind(detect_dc_ae(reference.state_dict()), operations=comfy.ops.manual_cast)
              for kind in (AutoencoderDC, InplaceAutoencoderDC)]  # fmt: skip
    for model in models:
        model.load_state_dict(reference.state_dict())
        model.eval()
    return tuple(models)


@pytest.mark.parametrize("make", [tiny.dc_ae, tiny.dc_ae_lite])
def test_the_network_in_place_has_the_keys_and_values_of_the_plain_one(make):
    plain, inplace = both(make(**WIDTHS))
    assert list(plain.state_dict()) == list(inplace.state_dict())
    z, x = latent(), image().movedim(-1, 1) * 2 - 1
    assert error(inplace.decode(z), plain.decode(z)) < 2e-6
    assert error(inplace.encode(x), plain.encode(x)) < 2e-6


def test_the_plain_network_overwrites_nothing_it_computed():
    plain, _ = both(tiny.dc_ae(**WIDTHS))
    outputs = []
    for module in plain.modules():
        module.register_forward_hook(lambda _, __, out: outputs.append((out, out.clone())))
    plain.decode(latent())
    assert len(outputs) > 50 and all(torch.equal(out, before) for out, before in outputs)


def test_the_loader_chooses_the_network_once(monkeypatch, vae):
    calls = []
    monkeypatch.setattr("sana_native.models.dc_ae.inplace.raise_mmap_threshold", lambda: calls.append(1))
    assert choose_network(torch.device("cpu")) is type(vae.first_stage_model) is InplaceAutoencoderDC
    assert choose_network(torch.device("mps")) is InplaceAutoencoderDC and len(calls) == 1
    vae.decode(latent())
    assert len(calls) == 1 and malloc.LARGEST_REUSED > 0


# Layers that are not the host's plain ones


class FlippedConv(comfy.ops.manual_cast.Conv2d):
    def forward(self, x):
        return super().forward(x).flip(1)


class FlippedLinear(comfy.ops.manual_cast.Linear):
    def forward(self, x):
        return super().forward(x).flip(-1)


def replaced(layer: torch.nn.Module, kind: type) -> torch.nn.Module:
    layer = copy.deepcopy(layer)
    layer.__class__ = kind
    return layer


LAYERS = {
    "decode": {
        "residual conv": ("decoder.up_blocks.0.1.conv1", FlippedConv),
        "upsampling conv": ("decoder.up_blocks.1.0.conv", FlippedConv),
        "1x1 conv": ("decoder.up_blocks.4.1.conv_out.conv_inverted", FlippedConv),
        "linear": ("decoder.up_blocks.4.1.attn.to_out", FlippedLinear),
        "first conv": ("decoder.conv_in", FlippedConv),
        "last conv": ("decoder.conv_out", FlippedConv),
    },
    "encode": {
        "residual conv": ("encoder.down_blocks.0.0.conv2", FlippedConv),
        "downsampling conv": ("encoder.down_blocks.1.1.conv", FlippedConv),
        "depthwise conv": ("encoder.down_blocks.4.0.conv_out.conv_depth", FlippedConv),
        "linear": ("encoder.down_blocks.4.0.attn.to_q", FlippedLinear),
        "last conv": ("encoder.conv_out", FlippedConv),
    },
}
CASES = [(half, name) for half, names in LAYERS.items() for name in names]


@pytest.mark.parametrize(("half", "name"), CASES, ids=str)
def test_a_replaced_layer_acts_as_in_the_plain_network(half, name):
    plain, inplace = both(tiny.dc_ae(**WIDTHS))
    x = latent(6, 5) if half == "decode" else image(160, 192).movedim(-1, 1) * 2 - 1
    before = getattr(inplace, half)(x)
    path, kind = LAYERS[half][name]
    for model in (plain, inplace):
        parent, _, leaf = path.rpartition(".")
        parent = model.get_submodule(parent)
        setattr(parent, leaf, replaced(getattr(parent, leaf), kind))
    expected = getattr(plain, half)(x)
    assert error(expected, before) > 1e-3
    assert error(getattr(inplace, half)(x), expected) < 2e-6
    inplace.tile_size = 64
    assert error(getattr(inplace, half)(x), expected) < 2e-6


@pytest.mark.parametrize("path", ["decoder.up_blocks.0.1", "decoder.up_blocks.4", "decoder.norm_out"])
def test_hooks_on_blocks_stages_and_norms_act_and_hold_on_to_what_they_saw(path):
    plain, inplace = both(tiny.dc_ae(**WIDTHS))
    results = []
    for model in (plain, inplace):
        captured = []
        handle = lambda _, __, out, captured=captured: captured.append(out) or 1.5 * out  # noqa: E731
        model.get_submodule(path).register_forward_hook(handle)
        results.append((model.decode(latent(6, 5)), captured))
    (expected, saw), (ours, ours_saw) = results
    assert error(ours, expected) < 2e-6
    assert len(ours_saw) == 1 and error(ours_saw[0], saw[0]) < 2e-6


def test_an_object_patch_on_the_vae_acts(vae):
    before = vae.decode(latent())
    layer = replaced(vae.first_stage_model.get_submodule(PATH), FlippedConv)
    vae.patcher.add_object_patch(PATH, layer)
    vae.patcher.patch_model()
    try:
        assert error(vae.decode(latent()), before) > 1e-3
    finally:
        vae.patcher.unpatch_model()
        vae.patcher.object_patches.clear()
    assert torch.equal(vae.decode(latent()), before)


# Lifetime and logging


def test_a_vae_and_its_network_are_freed_as_soon_as_they_are_deleted():
    vae = load_dc_ae(str(bench.folder() / "sana"))
    vae.encode(vae.decode(latent()))  # and loaded onto the device on the way
    alive = weakref.ref(vae), weakref.ref(vae.first_stage_model)
    gc.collect()
    gc.disable()
    try:
        del vae
        assert [one() for one in alive] == [None, None]
    finally:
        gc.enable()


def test_building_a_vae_filters_nothing_and_says_nothing_of_missing_weights(caplog, monkeypatch):
    root, filters = logging.getLogger(), []
    monkeypatch.setattr(root, "addFilter", filters.append)
    original = comfy.sd.VAE.__init__

    def init(self, *args, **kwargs):
        logging.warning("another thread's: No VAE weights detected")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(comfy.sd.VAE, "__init__", init)
    load_dc_ae(str(bench.folder() / "sana"))
    assert not filters
    assert [line for line in caplog.messages if "VAE weights" in line] == ["another thread's: No VAE weights detected"]


def test_a_vae_has_every_default_of_the_host(vae):
    names = set(vars(comfy.sd.VAE(sd={}))) - {"first_stage_model", "memory_used_decode", "memory_used_encode"}
    assert names <= set(vars(vae)) and len(names) > 15


@pytest.mark.parametrize("call", ["decode", "decode_whole", "decode_tiled"])
def test_a_decode_is_checked_once_by_the_sum_of_what_the_network_gives(vae, call, monkeypatch):
    sums, checked, network = [], [], vae.first_stage_model
    decode, isfinite = type(network).decode, torch.isfinite

    def summed(self, z):
        out = decode(self, z)
        sums.append(out.sum(dtype=torch.float32))
        return out

    monkeypatch.setattr(type(network), "decode", summed)
    monkeypatch.setattr(torch, "isfinite", lambda value: checked.append(value) or isfinite(value))
    getattr(vae, call)(latent())
    assert [value.numel() for value in checked] == [1] and checked[0] == sum(sums) and network.sums is None


def test_an_image_that_is_not_finite_is_found_though_the_host_clamps_it(vae, monkeypatch):
    decoder = type(vae.first_stage_model.decoder)
    monkeypatch.setattr(decoder, "to_image", lambda *_: torch.full((1, 3, 64, 96), float("inf")))
    with pytest.raises(ValueError, match="The image decoded by DC-AE holds NaN or infinity: load the autoencoder in"):
        vae.decode(latent())
    assert vae.first_stage_model.sums is None


def test_a_decode_that_another_pack_replaced_is_checked_too(vae, monkeypatch):
    monkeypatch.setattr(
        vae.first_stage_model, "decode", lambda _: torch.full((1, 3, 64, 96), float("nan")), raising=False
    )
    with pytest.raises(ValueError, match="The image decoded by DC-AE holds NaN or infinity"):
        vae.decode(latent())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_value_that_is_not_finite_is_found(vae, value):
    bad = latent()
    bad[0, 5, 1, 1] = value
    with pytest.raises(ValueError, match="The latent to decode holds NaN or infinity: look for the stage"):
        vae.decode(bad)
    bad = image()
    bad[0, 5, 1, 1] = value
    with pytest.raises(ValueError, match="The latent encoded by DC-AE holds NaN or infinity"):
        vae.encode(bad)


def test_many_large_values_of_16_bits_count_as_finite():
    values = torch.full((1, 32, 64, 64), 60000.0, dtype=torch.float16)
    assert torch.isfinite(vae_module.is_finite(values))
    values[0, 0, 0, 0] = float("nan")
    assert not torch.isfinite(vae_module.is_finite(values))


# What it is given


@pytest.mark.parametrize("call", ["encode", "encode_whole", "encode_tiled"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_an_image_of_another_number_of_channels_is_refused_in_one_sentence(vae, call, channels):
    with pytest.raises(
        ValueError, match=f"This image has {channels} channels, where DC-AE encodes images of 3"
    ) as error:
        getattr(vae, call)(image(channels=channels))
    assert "Convert Mask to Image" in str(error.value)


def test_a_mask_in_the_place_of_an_image_is_refused_in_one_sentence(vae):
    with pytest.raises(ValueError, match=r"This image is of shape \(1, 96, 128\), where DC-AE encodes"):
        vae.encode(image()[..., 0])


@pytest.mark.parametrize("call", ["decode", "decode_whole", "decode_tiled"])
def test_a_video_latent_is_refused_in_one_sentence(vae, call):
    video = torch.zeros(1, 16, 5, 8, 8)
    with pytest.raises(ValueError, match="This latent holds 5 frames of a video, where DC-AE decodes images"):
        getattr(vae, call)(video)


def test_a_latent_of_one_frame_decodes_as_an_image(vae):
    assert torch.equal(vae.decode(latent()[:, :, None]), vae.decode(latent()))


@pytest.mark.parametrize(
    ("channels", "ratio", "likely", "first"),
    [
        (
            4,
            8,
            "likely that of Stable Diffusion 1.5 or SDXL",
            "with PixArt and Lumina-Next use the stock VAE Decode and ",
        ),
        (16, 8, "likely that of SD3, FLUX", "connect the VAE"),
        (7, 3, "another model", "connect the VAE"),
    ],
)
def test_another_vae_is_refused_with_whose_it_likely_is_and_the_cure(channels, ratio, likely, first):
    other = comfy.sd.VAE(sd={})
    other.latent_channels, other.downscale_ratio = channels, ratio
    for call, given in ((vae_module.decode_image, latent()), (vae_module.encode_image, image())):
        with pytest.raises(ValueError, match=f"This VAE is .*{likely}.*, not SANA's DC-AE: {first}") as error:
            call(other, given)
        assert str(error.value).endswith(
            "connect the VAE of SANA DC-AE Loader, which loads dc-ae-f32c32-sana-1.0 or 1.1."
        )


@pytest.mark.parametrize("tiling", ["auto", "off", "on"])
def test_an_encode_that_crops_says_so_in_one_line(vae, tiling, caplog):
    caplog.set_level("INFO")
    vae_module.encode_image(vae, image(96, 128), tiling)
    assert "cropped" not in caplog.text
    vae_module.encode_image(vae, image(100, 150), tiling)
    assert [line for line in caplog.messages if "cropped" in line] == [
        "SANA: the image of 150 x 100 px is cropped to 128 x 96 px, because DC-AE encodes multiples of 32"
    ]


def test_one_frame_of_a_video_decodes_in_tiles_as_whole():
    latent = torch.randn(1, 32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    vae = bench.vae()
    with torch.inference_mode():
        tiled, image = (
            vae.decode_tiled(latent, tile_x=8, tile_y=8, overlap=2),
            vae.decode_tiled(latent[:, :, 0], 8, 8, 2),
        )
    assert torch.equal(tiled, image)


# Nothing to decode or encode


@pytest.mark.parametrize("decode", ["decode", "decode_tiled", "decode_whole"])
@pytest.mark.parametrize("shape", [(0, 32, 2, 2), (1, 32, 0, 2)])
def test_a_latent_that_holds_nothing_is_refused(vae, decode, shape):
    with pytest.raises(ValueError, match="This latent holds nothing, its shape is .*: check the node that made it"):
        getattr(vae, decode)(torch.zeros(shape))


@pytest.mark.parametrize("encode", ["encode", "encode_tiled", "encode_whole"])
def test_a_batch_without_an_image_is_refused(vae, encode):
    with pytest.raises(ValueError, match=r"This batch holds no image, its shape is \(0, 64, 64, 3\): check the node"):
        getattr(vae, encode)(torch.zeros(0, 64, 64, 3))
