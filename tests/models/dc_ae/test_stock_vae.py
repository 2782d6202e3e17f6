"""The host's own autoencoder nodes on our VAE: encoding, decoding, tiles, running out of memory, inpainting."""

import comfy.sd
import pytest
import torch
from sana_native.tests.support import workbench as bench


@pytest.fixture(params=bench.FAMILIES)
def model(request):
    return bench.model(request.param)


@pytest.mark.parametrize(("width", "height"), [(128, 96), (150, 131)])
def test_stock_and_our_nodes_encode_and_decode_alike(width, height):
    pixels, vae = bench.picture(width, height), bench.vae()
    latent = bench.call("VAEEncode", vae, pixels)[0]["samples"]
    assert latent.shape == (1, 32, height // 32, width // 32)
    top, left = height % 32 // 2, width % 32 // 2
    cropped = pixels[:, top : top + height // 32 * 32, left : left + width // 32 * 32]
    assert torch.equal(latent, bench.call("VAEEncode", vae, cropped)[0]["samples"])
    assert torch.equal(latent, bench.call(bench.OURS["DCAEEncode"], vae, pixels, "auto", 1024, 128)[0]["samples"])

    image = bench.call("VAEDecode", vae, {"samples": latent})[0]
    assert image.shape == (1, height // 32 * 32, width // 32 * 32, 3) and 0 <= image.min() < image.max() <= 1
    assert torch.equal(image, bench.call(bench.OURS["DCAEDecode"], vae, {"samples": latent}, "auto", 1024, 128)[0])


def test_an_image_with_alpha_is_encoded_by_its_colors():
    pixels = bench.picture()
    alpha = torch.cat([pixels, torch.zeros_like(pixels[..., :1])], dim=-1)
    assert torch.equal(bench.vae().encode(alpha), bench.vae().encode(pixels))


@pytest.mark.parametrize(("tile_size", "overlap"), [(512, 64), (256, 64), (128, 32), (96, 0), (64, 64), (128, 4096)])
def test_stock_tiled_decode_takes_every_tile_size(tile_size, overlap):
    latent = bench.clean_latent(192, 160)
    whole = bench.call("VAEDecode", bench.vae(), latent)[0]
    tiled = bench.call("VAEDecodeTiled", bench.vae(), latent, tile_size, overlap)[0]
    assert tiled.shape == whole.shape == (1, 160, 192, 3) and torch.isfinite(tiled).all()
    if tile_size >= 512:
        assert bench.relative(tiled, whole) < 1e-4
    assert float((tiled - whole).abs().mean()) < 0.25 and tiled.std() > 0.05


@pytest.mark.parametrize(
    ("tile_size", "overlap"), [(512, 64), (256, 64), (128, 64), (128, 32), (64, 64), (64, 0), (192, 96), (128, 4096)]
)
def test_stock_tiled_encode_takes_every_tile_size(tile_size, overlap):
    pixels = bench.picture(256, 170)
    whole = bench.call("VAEEncode", bench.vae(), pixels)[0]["samples"]
    tiled = bench.call("VAEEncodeTiled", bench.vae(), pixels, tile_size, overlap)[0]["samples"]
    assert tiled.shape == whole.shape == (1, 32, 5, 8) and torch.isfinite(tiled).all()
    if tile_size >= 512:
        assert bench.relative(tiled, whole) < 1e-4
    assert torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1] > 0.3


@pytest.mark.parametrize(("tile_size", "overlap"), [(128, 0), (128, 4096), (160, 32), (224, 128), (1024, 128)])
def test_our_nodes_take_every_tile_size_of_their_widgets(tile_size, overlap):
    pixels = bench.picture(224, 160)
    latent = bench.call(bench.OURS["DCAEEncode"], bench.vae(), pixels, "on", tile_size, overlap)[0]
    assert latent["samples"].shape == (1, 32, 5, 7) and torch.isfinite(latent["samples"]).all()
    image = bench.call(bench.OURS["DCAEDecode"], bench.vae(), latent, "on", tile_size, overlap)[0]
    assert image.shape == pixels.shape and torch.isfinite(image).all()


def fails_above(function, positions: int):
    """The function, out of memory for inputs of more positions than that."""

    def run(x):
        if x.shape[-1] * x.shape[-2] > positions:
            raise torch.OutOfMemoryError("simulated")
        return function(x)

    return run


def test_out_of_memory_falls_back_to_tiles(monkeypatch):
    vae, network = bench.vae(), bench.vae().first_stage_model
    latent, pixels = bench.clean_latent(192, 128), bench.picture(192, 128)
    image = bench.call("VAEDecodeTiled", vae, latent, 128, 32)[0]
    encoded = bench.call("VAEEncodeTiled", vae, pixels, 128, 32)[0]["samples"]
    monkeypatch.setattr(type(vae).decode_tiled_, "__defaults__", (4, 4, 1))
    monkeypatch.setattr(type(vae).encode_tiled_, "__defaults__", (128, 128, 32))
    monkeypatch.setattr(network, "decode", fails_above(network.decode, 4 * 4))
    monkeypatch.setattr(network, "encode", fails_above(network.encode, 128 * 128))
    assert torch.equal(bench.call("VAEDecode", vae, latent)[0], image)
    assert torch.equal(bench.call("VAEEncode", vae, pixels)[0]["samples"], encoded)


@pytest.mark.parametrize("tiling", ["auto", "off"])
def test_the_fallback_takes_tiles_of_1024_px(monkeypatch, tiling):
    vae, network, calls = bench.vae(), bench.vae().first_stage_model, []
    monkeypatch.setattr(network, "decode", fails_above(network.decode, 0))
    monkeypatch.setattr(network, "encode", fails_above(network.encode, 0))
    monkeypatch.setattr(
        comfy.sd.VAE, "decode_tiled_", lambda _, *args: calls.append(args[1:]) or torch.zeros(1, 3, 64, 64)
    )
    monkeypatch.setattr(
        comfy.sd.VAE, "encode_tiled_", lambda _, *args: calls.append(args[1:]) or torch.zeros(1, 32, 2, 2)
    )
    bench.call(bench.OURS["DCAEDecode"], vae, bench.clean_latent(64, 64), tiling, 256, 32)
    bench.call(bench.OURS["DCAEEncode"], vae, bench.picture(64, 64), tiling, 256, 32)
    assert calls == [(32, 32, 4), (1024, 1024, 128)]


def test_what_cannot_fit_is_tiled_without_being_tried(monkeypatch):
    vae, calls = bench.vae(), []
    monkeypatch.setattr(vae, "most_free_memory", lambda: 0.0)
    for name in ("decode_tiled_", "encode_tiled_"):
        original = getattr(vae, name)
        monkeypatch.setattr(
            vae,
            name,
            lambda *args, original=original, name=name, **options: calls.append(name) or original(*args, **options),
        )
    bench.call("VAEDecode", vae, bench.clean_latent())
    bench.call("VAEEncode", vae, bench.picture())
    assert calls == ["decode_tiled_", "encode_tiled_"]
    bench.call(bench.OURS["DCAEDecode"], vae, bench.clean_latent(), "off", 1024, 128)
    assert len(calls) == 2


def test_inpainting_keeps_what_the_mask_leaves(model):
    pixels, mask = bench.picture(), torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1.0
    encoded = bench.call("VAEEncode", bench.vae(), pixels)[0]
    latent = bench.call("SetLatentNoiseMask", encoded, mask)[0]
    for sample in (bench.draw, bench.ksampler):
        out = sample(model, bench.encoded(), latent, steps=4)
        assert bench.relative(out[..., :2], encoded["samples"][..., :2]) < 1e-5
        assert bench.relative(out[..., 2:], encoded["samples"][..., 2:]) > 0.1


def test_encoding_for_inpainting_greys_the_masked_part(model):
    pixels, mask = bench.picture(150, 131), torch.zeros(1, 131, 150)
    mask[:, :, 75:] = 1.0
    latent = bench.call("VAEEncodeForInpaint", bench.vae(), pixels, mask, 0)[0]
    assert latent["samples"].shape == (1, 32, 4, 4) and latent["noise_mask"].shape[-2:] == (128, 128)
    other = bench.picture(150, 131, seed=6)
    other[:, :, :75] = pixels[:, :, :75]
    again = bench.call("VAEEncodeForInpaint", bench.vae(), other, mask, 0)[0]
    assert torch.equal(latent["samples"], again["samples"])
    out = bench.draw(model, bench.encoded(), latent, steps=4)
    assert bench.relative(out[..., :2], latent["samples"][..., :2]) < 1e-5
