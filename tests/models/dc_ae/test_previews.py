"""Previews of DC-AE latents: the host's own previewer, true colors from whichever DC-AE is loaded, a frame a step."""

import asyncio
import gc
import io
import uuid
from pathlib import Path

import aiohttp
import folder_paths
import latent_preview
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from comfy.cli_args import LatentPreviewMethod, args
from comfy.taesd.taesd import TAESD, Block, Clamp, conv
from PIL import Image
from sana_native.models.dc_ae import latent_formats, previews
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.sana.loader import load_sana
from sana_native.nodes import files
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from torch import Tensor

DEMO = Path(__file__).resolve().parents[3] / "demo" / "checkpoint"
PROMPTS = ["a red apple", "a blue car", "a green tree", "a yellow star", "a purple heart", "an orange fish"]
# Measured on the demo of 0.1.0: 0.93 for 32 px squares, 0.89 for the dots of 8 px.
SQUARES_CORRELATION, DOTS_CORRELATION = 0.85, 0.8


@pytest.fixture
def memory(monkeypatch) -> previews.Memory:
    """What the process remembers of autoencoders, empty; previews are switched on."""
    for name, value in vars(previews.Memory()).items():
        monkeypatch.setattr(previews.MEMORY, name, value)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    return previews.MEMORY


def previewer():
    with torch.inference_mode():  # as the host's executor does
        return latent_preview.get_previewer(torch.device("cpu"), latent_formats.SanaLatent())


def preview(x0: Tensor) -> Tensor:
    """The image that the host would send, (1, 3, H, W) in [0, 1]."""
    _, image, _ = previewer().decode_latent_to_preview_image("JPEG", x0)
    return (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        .view(1, image.height, image.width, 3)
        .movedim(-1, 1)
        / 255
    )


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def encoded_color(vae, color: list[float]) -> Tensor:
    with torch.inference_mode():
        return vae.encode(torch.tensor(color).expand(1, 128, 128, 3)) * 0.41407


@pytest.fixture(scope="module")
def demo():
    return load_sana(str(DEMO)), load_gemma(str(DEMO)), load_dc_ae(str(DEMO))


@pytest.fixture(scope="module")
def demo_map(demo) -> previews.ColorMap:
    with torch.inference_mode():
        return previews.fit(demo[2])


@pytest.fixture
def demo_loaded(memory, demo, demo_map) -> previews.Memory:
    memory.fits[previews.fingerprint(demo[2])] = demo_map
    memory.remember(demo[2])
    return memory


@pytest.mark.usefixtures("memory")
def test_without_a_loaded_dc_ae_there_is_no_preview():
    assert previewer() is None


def test_the_loader_node_makes_previews_possible(memory):
    (vae,) = bench.call(bench.OURS["DCAELoader"], "sana-native-demo/", "auto")
    assert memory.vae() is None and vae is not None  # fitted at once, and not referred to
    assert isinstance(previewer(), latent_preview.Latent2RGBPreviewer)


@pytest.mark.usefixtures("demo_loaded")
def test_previews_have_the_colors_of_the_images(demo):
    model, clip, vae = demo
    shown, decoded = [], []
    for seed, prompt in enumerate(PROMPTS):
        conds = bench.call(bench.OURS["GemmaEncode"], clip, prompt, "", "on", "", False)
        latent = bench.draw(model, conds, bench.empty(128, 128), seed=seed, steps=6)
        shown.append(preview(latent * 0.41407))
        decoded.append(bench.call(bench.OURS["DCAEDecode"], vae, {"samples": latent}, "off", 128, 0)[0].movedim(-1, 1))
    shown, decoded = torch.cat(shown), torch.cat(decoded)
    assert shown.shape == (len(PROMPTS), 3, 16, 16)  # 8 px a dot: four a side of a latent position
    assert correlation(F.avg_pool2d(shown, 4), F.avg_pool2d(decoded, 32)) > SQUARES_CORRELATION
    assert correlation(shown, F.avg_pool2d(decoded, 8)) > DOTS_CORRELATION


@pytest.mark.usefixtures("demo_loaded")
def test_a_plain_color_is_shown_as_that_color(demo):
    for color in ([0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]):
        mean = preview(encoded_color(demo[2], color)).mean(dim=(0, 2, 3))
        assert (mean - torch.tensor(color)).abs().max() < 0.2


@pytest.mark.usefixtures("demo_loaded")
def test_whoever_leaves_the_hook_out_gets_coarser_but_true_colors(demo):
    latent_format = latent_formats.SanaLatent()
    factors, bias = torch.tensor(latent_format.latent_rgb_factors), torch.tensor(latent_format.latent_rgb_factors_bias)
    assert factors.shape == (32, 3) and bias.shape == (3,)
    red, blue = (
        (encoded_color(demo[2], color).movedim(1, -1) @ factors + bias).mean(dim=(0, 1, 2))
        for color in ([0.9, 0.1, 0.1], [0.1, 0.2, 0.9])
    )
    assert red[0] > red[2] + 0.5 and blue[2] > blue[0] + 0.5


@pytest.mark.usefixtures("demo_loaded")
def test_only_the_first_image_of_a_batch_is_shown():
    x0 = torch.randn(3, 32, 5, 7, generator=torch.Generator().manual_seed(1))
    assert preview(x0).shape == (1, 3, 20, 28)
    assert torch.equal(preview(x0), preview(x0[:1]))


def count_encodings(monkeypatch, vae) -> list:
    calls, encode = [], vae.encode_whole
    monkeypatch.setattr(vae, "encode_whole", lambda pixels: calls.append(pixels.shape) or encode(pixels))
    return calls


def test_fitted_once_per_encoder_and_never_while_previews_are_off(memory, monkeypatch):
    vae, again = (load_dc_ae(str(bench.folder() / "sana")) for _ in range(2))
    calls, more = count_encodings(monkeypatch, vae), count_encodings(monkeypatch, again)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    memory.remember(vae)
    memory.prepare()
    assert previewer() is None and not calls
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    memory.prepare()
    first, second = previewer(), previewer()
    memory.remember(again)
    third = previewer()
    assert calls == [(previews.IMAGES, previews.IMAGE_SIZE, previews.IMAGE_SIZE, 3)] and not more
    assert first.latent_rgb_factors.equal(second.latent_rgb_factors) and first.latent_rgb_factors.equal(
        third.latent_rgb_factors
    )


def test_the_dc_ae_that_was_loaded_last_gives_the_colors(demo_loaded, demo, tmp_path):
    tiny.dc_ae(seed=9).save_pretrained(tmp_path / "vae")
    maps = []
    for vae in (demo[2], load_dc_ae(str(tmp_path)), demo[2]):
        demo_loaded.remember(vae)
        with torch.inference_mode():
            maps.append(demo_loaded.current)
    assert maps[0] is maps[2] and maps[0].factors.shape == maps[1].factors.shape
    assert not torch.equal(maps[0].factors, maps[1].factors)


def test_a_dc_ae_that_is_gone_leaves_what_was_fitted_before(demo_loaded, demo_map, monkeypatch):
    assert demo_loaded.current is demo_map
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    demo_loaded.remember(load_dc_ae(str(bench.folder() / "sana")))
    gc.collect()
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    demo_loaded.prepare()
    assert demo_loaded.current is demo_map


def test_reading_the_colors_computes_nothing(memory, monkeypatch):
    """No encode, no model on the device, and no decomposition while the host asks for them or shows a latent."""
    vae = load_dc_ae(str(bench.folder() / "sana"))
    calls, solved = count_encodings(monkeypatch, vae), []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    memory.remember(vae)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    assert latent_formats.SanaLatent().latent_rgb_factors is None and not calls
    memory.prepare()
    assert len(calls) == 1
    monkeypatch.setattr(torch.linalg, "pinv", lambda *given: solved.append(given))
    assert preview(torch.zeros(1, 32, 2, 2)).shape == (1, 3, 8, 8) and len(calls) == 1 and not solved


@pytest.mark.parametrize("call", ["decode", "decode_tiled"])
def test_previews_that_are_switched_on_later_come_with_the_next_use_of_the_dc_ae(memory, monkeypatch, call):
    vae = load_dc_ae(str(bench.folder() / "sana"))
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    memory.remember(vae)
    vae.decode(torch.zeros(1, 32, 1, 1))
    assert memory.current is None
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    getattr(vae, call)(torch.zeros(1, 32, 1, 1))
    assert memory.current is not None and previewer() is not None


def test_the_sana_sampler_fits_before_its_run_when_previews_were_switched_on_later(memory, monkeypatch):
    vae = load_dc_ae(str(bench.folder() / "sana"))
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    memory.remember(vae)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    previewers, get_previewer = [], latent_preview.get_previewer
    monkeypatch.setattr(
        latent_preview, "get_previewer", lambda *given: previewers.append(get_previewer(*given)) or previewers[-1]
    )
    bench.call(bench.OURS["Sampler"], bench.model("sana"), *bench.encoded(), bench.empty(), 1, 2, 4.5, 1.0)
    assert [type(one) for one in previewers] == [latent_preview.Latent2RGBPreviewer]


def test_a_color_map_is_copied_to_a_device_once(demo_map):
    copied = demo_map.on(torch.device("meta"))
    assert copied is demo_map.on(torch.device("meta")) and copied.inverse.device.type == "meta"
    assert demo_map.on(torch.device("cpu")) is demo_map
    assert torch.allclose(demo_map.inverse, torch.linalg.pinv(demo_map.factors), atol=1e-4)


def test_a_fit_that_fails_is_said_once_and_stops_nothing(memory, monkeypatch, caplog):
    def fail(_):
        raise RuntimeError("out of memory")

    vae = load_dc_ae(str(bench.folder() / "sana"))
    monkeypatch.setattr(vae, "encode_whole", fail)
    memory.remember(vae)
    for _ in range(2):
        assert torch.isfinite(bench.draw(bench.model("sana"), bench.encoded())).all()
    said = [record.message for record in caplog.records if "previews" in record.message]
    assert said == ["SANA: no previews, because fitting their colors to the DC-AE failed: out of memory"]


def test_previews_change_no_bit_of_the_latent(memory):
    shown = bench.ksampler(bench.model("sana"), bench.encoded(), seed=4)
    memory.remember(bench.vae())
    assert torch.equal(bench.ksampler(bench.model("sana"), bench.encoded(), seed=4), shown)
    assert memory.current is not None


# The user's tiny decoder


def taesana(seed: int = 0) -> torch.nn.Sequential:
    """The layout of the released taesana_decoder, layer by layer, with random weights."""

    def blocks(width: int, count: int = 3) -> list:
        return [Block(width, width) for _ in range(count)]

    def up(width: int, following: int) -> list:
        return [torch.nn.Upsample(scale_factor=2), conv(width, following, bias=False)]

    layers = [Clamp(), conv(32, 256), torch.nn.ReLU()]
    layers += [*blocks(256), *up(256, 128), *blocks(128), *up(128, 64), *blocks(64), *up(64, 64)]
    layers += [*blocks(64), *up(64, 64), *blocks(64), *up(64, 64), *blocks(64, 1), conv(64, 3)]
    return tiny.randomize(torch.nn.Sequential(*layers), seed, gain=1.2)


@pytest.fixture
def vae_approx(tmp_path, monkeypatch) -> Path:
    known = folder_paths.folder_names_and_paths
    kinds = known["vae_approx"][1]
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known | {"vae_approx": ([str(tmp_path)], kinds)})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(previews.MEMORY, "find_tiny", files.tiny_decoder_path)
    return tmp_path


@pytest.fixture
def tiny_decoders_wanted(monkeypatch, memory):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    return memory


@pytest.mark.usefixtures("tiny_decoders_wanted")
def test_a_tiny_decoder_shows_the_image_at_full_size(vae_approx):
    decoder = taesana()
    torch.save(decoder.state_dict(), vae_approx / "taesana_decoder.pth")
    x0 = torch.randn(2, 32, 3, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = decoder(x0[:1]).clamp(0, 1)
        shown = preview(x0)
    assert shown.shape == (1, 3, 96, 64) and expected.std() > 0.1
    assert (shown - expected).abs().max() < 1.01 / 255  # the host rounds down to bytes


def test_a_tiny_decoder_is_used_only_where_the_host_is_set_to_those(demo_loaded, vae_approx):
    torch.save(taesana().state_dict(), vae_approx / "taesana_decoder.pth")
    assert isinstance(demo_loaded.preview(), previews.ColorMap)


def test_without_a_tiny_decoder_the_fitted_colors_are_shown(demo_loaded, vae_approx, monkeypatch, caplog):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    (vae_approx / "taesd_decoder.pth").touch()
    assert isinstance(demo_loaded.preview(), previews.ColorMap) and isinstance(
        previewer(), latent_preview.Latent2RGBPreviewer
    )
    assert caplog.messages == [
        "Warning: TAESD previews enabled, but could not find models/vae_approx/taesana_decoder"  # the host's own
    ]


@pytest.mark.parametrize("content", ["other", "damaged"])
def test_a_file_that_is_no_tiny_decoder_is_said_once_and_done_without(
    content, demo_loaded, vae_approx, monkeypatch, caplog
):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    path = vae_approx / "taesana_decoder.safetensors"
    path.write_bytes(b"damaged")
    if content == "other":
        safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    assert isinstance(demo_loaded.preview(), previews.ColorMap) and isinstance(demo_loaded.preview(), previews.ColorMap)
    (said,) = caplog.messages
    assert said.startswith("SANA: ") and "taesana_decoder.safetensors is no TAESANA decoder" in said


def test_the_hosts_own_tiny_decoder_would_not_take_the_file(tmp_path):
    """Why the latent format names none: the host would look for one by that name, and the run would end here."""
    torch.save(taesana().state_dict(), tmp_path / "taesana_decoder.pth")
    with pytest.raises(RuntimeError, match="size mismatch"):
        TAESD(None, str(tmp_path / "taesana_decoder.pth"), latent_channels=32)


# Through the real server


async def frames_and_image(server, prompt: dict) -> tuple[list[Image.Image], Image.Image]:
    """Preview frames of a run as a browser gets them, and the image it saved."""
    client, frames = uuid.uuid4().hex, []
    body = {"prompt": prompt, "client_id": client, "extra_data": {"preview_method": "latent2rgb"}}
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId={client}") as socket:
        async with session.post(f"{server.url}/prompt", json=body) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, form = (int.from_bytes(message.data[i : i + 4], "big") for i in (0, 4))
                if kind == 3:  # a text on a node, see test_advice.py
                    continue
                assert (kind, form) == (1, 1)  # a preview, a JPEG
                frames.append(Image.open(io.BytesIO(message.data[8:])).convert("RGB"))
            elif (data := message.json()).get("type") == "executing" and data["data"]["node"] is None:
                break
            assert data["type"] != "execution_error" if message.type == aiohttp.WSMsgType.TEXT else True
    while not (record := server.history(prompt_id)):
        await asyncio.sleep(0.02)
    (image,) = record["outputs"]["9"]["images"]
    return frames, Image.open(io.BytesIO(server.fetch_image(image))).convert("RGB")


def graph(model_name: str, sampler: dict, size: int) -> dict:
    def node(kind: str, **inputs) -> dict:
        return {"class_type": kind, "inputs": inputs}

    wires = {"model": ["1", 0], "positive": ["4", 0], "negative": ["4", 1], "latent_image": ["5", 0]}
    gemma = {"negative_prompt": "", "instruction": "on", "custom_instruction": "", "lower_case": False}
    latent = {"size": "custom", "aspect_ratio": "1:1", "width": size, "height": size, "batch_size": 1}
    return {
        "1": node("SanaNativeModelLoader", model_name=model_name, weight_dtype="auto", shift=0.0, clamp="auto"),
        "2": node("SanaNativeGemmaLoader", text_encoder_name="sana-native-demo/", dtype="auto"),
        "3": node("SanaNativeDCAELoader", vae_name="sana-native-demo/", dtype="auto"),
        "4": node("SanaNativeGemmaEncode", clip=["2", 0], prompt="a red apple", **gemma),
        "5": node("SanaNativeEmptyLatent", **latent),
        "6": node(sampler["kind"], seed=1, denoise=1.0, **{k: v for k, v in sampler.items() if k != "kind"}, **wires),
        "7": node("VAEDecode", samples=["6", 0], vae=["3", 0]),
        "9": node("SaveImage", images=["7", 0], filename_prefix="preview"),
    }


RUNS = {
    "SANA Sampler": {"kind": "SanaNativeSampler", "steps": 6, "cfg": 4.5},
    "KSampler": {"kind": "KSampler", "steps": 5, "cfg": 4.5, "sampler_name": "euler", "scheduler": "simple"},
    "Sprint": {"kind": "SanaNativeSampler", "steps": 4, "cfg": 1.0},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_frame_arrives_at_every_step_and_the_last_looks_like_the_image(name, comfy_server):
    model_name = "sana-native-demo-sprint/" if name == "Sprint" else "sana-native-demo/"
    frames, final = asyncio.run(frames_and_image(comfy_server(), graph(model_name, RUNS[name], 256)))
    assert len(frames) == RUNS[name]["steps"]
    assert {frame.size for frame in frames} == {(512, 512)}  # the host scales them to --preview-size
    pixels = [
        torch.frombuffer(bytearray(image.resize((4, 4), Image.Resampling.BOX).tobytes()), dtype=torch.uint8).float()
        for image in (*frames, final)
    ]
    assert correlation(pixels[-2], pixels[-1]) > 0.7
    assert correlation(pixels[-2], pixels[-1]) >= correlation(pixels[0], pixels[-1])
