"""Editing with the bundled demo: no seam, nothing changed outside, the masked part fits the rest, previews, sizes."""

from functools import cache
from pathlib import Path

import comfy.samplers
import pytest
import torch
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.editing.latents import upscaled_size
from sana_native.models.editing.masks import feather_outwards
from sana_native.models.gemma.loader import load_gemma
from sana_native.models.sana.loader import load_sana
from sana_native.nodes import warnings
from sana_native.nodes.sampling import Schedule, solver_for
from sana_native.samplers.schedules import get_sigmas_scm
from sana_native.tests.support import workbench as bench
from sana_native.tests.support.workbench import OURS, call

DEMO = Path(__file__).resolve().parents[2] / "demo"
BEFORE = "a big strawberry top left and a small rocket bottom right on a yellow background"
AFTER = "a big strawberry top left and a small apple bottom right on a yellow background"
MASKED = (slice(130, 246), slice(130, 246))
SEAM, CONTEXT = 0.01, 0.03


@cache
def demo(family: str):
    return load_sana(str(DEMO / ("checkpoint_sprint" if family == "sprint" else "checkpoint")), {})


@cache
def clip():
    return load_gemma(str(DEMO / "checkpoint"))


@cache
def vae():
    return load_dc_ae(str(DEMO / "checkpoint"))


@pytest.fixture(scope="module", autouse=True)
def unload():
    yield
    for cached in (demo, clip, vae, text, first_image):
        cached.cache_clear()


@cache
def text(prompt: str) -> tuple[list, list]:
    return call(OURS["GemmaEncode"], clip(), prompt, "", "on", "", False)


def sample(family: str, prompt: str, latent: dict, start: str = "auto", **settings) -> dict:
    steps, cfg = (2, 1.0) if family == "sprint" else (20, 4.5)
    values = {"seed": 5, "steps": steps, "cfg": cfg, "denoise": 1.0} | settings
    return call(OURS["Sampler"], demo(family), *text(prompt), latent, **values, inpaint_start=start)[0]


def decode(latent: dict) -> torch.Tensor:
    return call(OURS["DCAEDecode"], vae(), latent)[0]


@cache
def first_image(prompt: str = BEFORE) -> torch.Tensor:
    return decode(sample("sprint", prompt, bench.empty(256, 256)))


def spot(height: int = 256, width: int = 256, place: tuple[slice, slice] = MASKED) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[0][place] = 1
    return mask


def inpaint(family: str, image: torch.Tensor, mask, feather: int = 24, **inputs) -> tuple[torch.Tensor, ...]:
    """The composite, the canvas and its mask."""
    latent, whole, canvas = call(OURS["InpaintLatent"], vae(), image, mask, **inputs)
    result = decode(sample(family, AFTER, latent))
    return call(OURS["InpaintComposite"], canvas, result, whole, feather)[0], canvas, whole


def jump_at_the_border(image: torch.Tensor) -> float:
    """Mean difference of neighboring pixels on both sides of the mask's border."""
    rows, columns = MASKED
    pairs = [
        (image[:, rows, columns.start - 1], image[:, rows, columns.start]),
        (image[:, rows, columns.stop - 1], image[:, rows, columns.stop]),
        (image[:, rows.start - 1, columns], image[:, rows.start, columns]),
        (image[:, rows.stop - 1, columns], image[:, rows.stop, columns]),
    ]
    return float(torch.stack([(a - b).abs().mean() for a, b in pairs]).mean())


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_the_masked_part_is_new_without_a_seam_and_beyond_the_feather_nothing_changes(family):
    image, mask = first_image(), spot()
    done, canvas, whole = inpaint(family, image, mask)
    beyond = feather_outwards(mask, 24) == 0
    assert torch.equal(canvas, image) and torch.equal(whole, mask)
    assert torch.equal(done[beyond], image[beyond]) and int(beyond.sum()) > 30_000
    assert (done - image)[mask > 0].abs().mean() > 0.02
    assert jump_at_the_border(done) <= SEAM


def test_a_hard_paste_shows_a_greater_jump_than_the_feather():
    image, mask = first_image(), spot()
    hard, soft = (inpaint("sprint", image, mask, feather)[0] for feather in (0, 24))
    assert jump_at_the_border(soft) < 0.7 * jump_at_the_border(hard)


def dependence(start: str, steps: int) -> float:
    """How much the masked latent changes with what is outside, in units of its standard deviation."""
    latents = [
        call(OURS["InpaintLatent"], vae(), first_image(prompt), spot(), 0)[0]
        for prompt in (BEFORE, "a big cat in the center on a blue background")
    ]
    cells = latents[0]["noise_mask"][:, None, 16::32, 16::32] > 0
    inside = cells.expand_as(latents[0]["samples"])
    other = torch.where(inside, latents[0]["samples"], latents[1]["samples"])
    results = [
        sample("sprint", AFTER, latents[0] | {"samples": samples}, start, steps=steps)["samples"][inside]
        for samples in (latents[0]["samples"], other)
    ]
    return float((results[0] - results[1]).abs().mean() / results[0].std())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sprints_masked_part_depends_on_the_rest(steps):
    assert dependence("auto", steps) >= CONTEXT


def test_from_pure_noise_one_step_of_sprint_is_blind_to_the_rest():
    assert dependence("off", 1) == 0


def shown_by(monkeypatch, family: str, start: str, **changes) -> list[str]:
    """What the node says; the sampler does not run."""
    said = []
    monkeypatch.setattr(
        "sana_native.nodes.sampling.SamplerCustom.execute",
        lambda *args: said.extend(warnings.ANNOUNCED.get()) or said.append(args[7]) or type("Out", (), {"result": [0]}),
    )
    latent = bench.empty() | {"noise_mask": torch.ones(1, 128, 128)}
    settings = {"seed": 0, "steps": 2, "cfg": 1.0, "denoise": 1.0, "inpaint_start": start} | changes
    call(OURS["Sampler"], bench.model(family), [], [], settings.pop("latent", latent), **settings)
    return said


def test_the_sampler_says_that_it_begins_below_pure_noise(monkeypatch):
    sentence, sigmas = shown_by(monkeypatch, "sprint", "auto")
    assert sentence.startswith("Inpainting with SANA-Sprint begins at angle 1.3 (sigma 0.78), so that")
    assert torch.equal(sigmas, get_sigmas_scm(2, 1.3, None)) and float(sigmas[0]) == pytest.approx(0.783, abs=1e-3)
    assert warnings.ANNOUNCED.get() == ()


def test_off_changes_nothing_and_names_the_cure(monkeypatch):
    sentence, sigmas = shown_by(monkeypatch, "sprint", "off")
    assert "is generated without regard to the rest of the image: set inpaint_start" in sentence
    assert torch.equal(sigmas, get_sigmas_scm(2))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("sana", {}), ("sprint", {"denoise": 0.8}), ("sprint", {"latent": bench.empty()})],
    ids=["base", "denoise", "no mask"],
)
def test_auto_leaves_other_runs_alone(monkeypatch, family, changes):
    (with_auto,) = shown_by(monkeypatch, family, "auto", **changes)
    (with_off,) = shown_by(monkeypatch, family, "off", **changes)
    assert torch.equal(with_auto, with_off)


def test_the_sentence_stands_before_the_warnings_of_the_run(monkeypatch):
    sent = []
    server = type("Server", (), {"client_id": "me", "send_progress_text": lambda _, *args: sent.append(args[0])})()
    monkeypatch.setattr(warnings, "running_server", lambda: server)
    monkeypatch.setattr(warnings, "get_executing_context", lambda: type("Context", (), {"node_id": "7"}))
    with warnings.announced(["First."]):
        warnings.show(["Second."])
    warnings.show([])
    warnings.show(["\udcff.png: alpha laid on white"])  # a file's name that is not UTF-8
    assert sent == ["First.\nSecond.", warnings.NOTHING, "\\udcff.png: alpha laid on white"]


@pytest.mark.parametrize("family", ["sana", "sprint"])
def test_strength_as_sigma_begins_at_that_noise_level(family):
    _, sigmas = solver_for(bench.model(family), Schedule(4, 0.3, by_sigma=True), None)
    assert len(sigmas) == 5 and float(sigmas[0]) == pytest.approx(0.3, abs=1e-6)
    whole, today = (solver_for(bench.model(family), Schedule(4, 1.0, kind), None)[1] for kind in (True, False))
    assert torch.equal(whole, today)


def test_lumina_begins_at_that_noise_level_too():
    _, sigmas = solver_for(bench.lumina(), Schedule(4, 0.3, by_sigma=True), None)
    assert len(sigmas) == 5 and float(sigmas[0]) == pytest.approx(0.3, abs=1e-6)


def test_less_sigma_preserves_more():
    image = {"samples": call(OURS["DCAEEncode"], vae(), first_image())[0]["samples"]}
    changes = [
        (sample("sprint", AFTER, image, "off", denoise=share, strength_as="sigma")["samples"] - image["samples"]).std()
        for share in (0.1, 0.3, 0.8)
    ]
    assert 0 < changes[0] < changes[1] < changes[2]


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_previews_of_masked_runs_show_the_original_outside(monkeypatch, family):
    """They are made of the clean latent that a sampler reports, in the model's scale."""
    seen = []
    keep = comfy.samplers.KSAMPLER.sample

    def watched(self, wrap, sigmas, extra_args, _, *args, **kwargs):
        def report(_, x0, *__):
            seen.append(x0.clone())

        return keep(self, wrap, sigmas, extra_args, report, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers.KSAMPLER, "sample", watched)
    latent = call(OURS["InpaintLatent"], vae(), first_image(), spot(), 0)[0]
    sample(family, AFTER, latent, steps=2)
    outside = (latent["noise_mask"][:, None, 16::32, 16::32] == 0).expand_as(latent["samples"])
    original = demo(family).model.process_latent_in(latent["samples"])[outside]
    assert len(seen) == 2
    for x0 in seen:
        assert (x0[outside] - original).abs().max() <= 1e-4
        assert (x0[~outside] - demo(family).model.process_latent_in(latent["samples"])[~outside]).abs().mean() > 0.01


@pytest.mark.parametrize("sides", ["pad", "crop"])
def test_odd_sizes_come_back_at_their_size_and_exact_outside(sides):
    image = first_image()[:, :250, :201]
    mask = spot(250, 201, (slice(100, 140), slice(90, 120)))
    done, _, _ = inpaint("sprint", image, mask, sides=sides)
    beyond = feather_outwards(mask, 24) == 0
    assert done.shape == image.shape and torch.equal(done[beyond], image[beyond])
    assert (done - image)[mask > 0].abs().mean() > 2e-4  # of the demo's 0 to 1: generated anew


def test_on_1000_px_the_latent_has_the_mask_of_that_cell_alone():
    image = first_image().repeat(1, 4, 4, 1)[:, :1000, :1000]
    mask = spot(1000, 1000, (slice(96, 128), slice(960, 992)))
    latent, _, canvas = call(OURS["InpaintLatent"], bench.vae(), image, mask, 0)
    assert latent["samples"].shape[-2:] == (32, 32) and canvas.shape == image.shape
    assert latent["noise_mask"].shape == (1, 1024, 1024) and int(latent["noise_mask"].sum()) == 32 * 32
    assert bool((latent["noise_mask"][0, 96:128, 960:992] == 1).all())


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_outpainting_by_200_px_on_any_side(side):
    image = first_image()
    done, canvas, mask = inpaint("sprint", image, None, **{side: 200})
    before = {"left": (0, 200), "top": (200, 0)}.get(side, (0, 0))
    kept = (slice(None), slice(before[0], before[0] + 256), slice(before[1], before[1] + 256))
    assert done.shape == canvas.shape == (1, *((456, 256) if side in ("top", "bottom") else (256, 456)), 3)
    assert torch.equal(canvas[kept], image) and not mask[kept].any() and mask.sum() == 200 * 256
    beyond = feather_outwards(mask, 24)[kept] == 0
    assert torch.equal(done[kept][beyond], image[beyond]) and int(beyond.sum()) == (256 - 24) * 256


def test_outpainting_by_whole_cells_leaves_the_others_exact():
    image = first_image().repeat(1, 4, 4, 1)
    latent = call(OURS["InpaintLatent"], bench.vae(), image, None, 0, right=256)[0]
    assert latent["samples"].shape[-2:] == (32, 40)
    assert not latent["noise_mask"][:, :, :1024].any() and bool(latent["noise_mask"][:, :, 1024:].all())


def test_outpainted_cells_outside_the_mask_come_back_exact():
    latent = call(OURS["InpaintLatent"], vae(), first_image(), None, 0, right=64)[0]
    result = sample("sprint", AFTER, latent)["samples"]
    assert (result - latent["samples"])[..., :8].abs().max() <= 1e-5
    assert (result - latent["samples"])[..., 8:].abs().mean() > 0.01


@pytest.mark.parametrize(("images", "masks"), [(2, 1), (2, 2), (1, 2)])
def test_one_mask_for_two_images_or_one_each(images, masks):
    batch = torch.cat([first_image(), first_image().flip(2)])[:images]
    painted = torch.cat([spot(), spot(place=(slice(0, 60), slice(0, 60)))])[:masks]
    latent, mask, canvas = call(OURS["InpaintLatent"], vae(), batch, painted)
    result = sample("sprint", AFTER, latent)
    done = call(OURS["InpaintComposite"], canvas, decode(result), mask)[0]
    assert len(latent["samples"]) == len(done) == 2
    for number, one in enumerate(done):
        pick_mask, pick = painted[min(number, masks - 1)], batch[min(number, images - 1)]
        beyond = feather_outwards(pick_mask[None], 24)[0] == 0
        assert torch.equal(one[beyond], pick[beyond]) and (one - pick)[pick_mask > 0].abs().mean() > 0.005


def test_a_small_part_is_changed_at_the_models_size_and_the_rest_stays():
    image, mask = first_image(), spot(place=(slice(170, 220), slice(170, 220)))
    crop, part, part_mask = call(OURS["InpaintCrop"], image, mask, 256, 24)
    latent = call(OURS["InpaintLatent"], vae(), part, part_mask)[0]
    result = decode(sample("sprint", "a big apple in the center on a yellow background", latent))
    done = call(OURS["InpaintStitch"], crop, result)[0]
    beyond = feather_outwards(mask, 24) == 0
    assert part.shape == (1, 256, 256, 3) and torch.equal(done[beyond], image[beyond])
    assert (done - image)[mask > 0].abs().mean() > 0.02


def test_an_empty_mask_is_answered_with_the_cure():
    with pytest.raises(ValueError, match="No cell of 32 x 32 px is masked, so nothing would be generated: mask a part"):
        call(OURS["InpaintLatent"], vae(), first_image(), torch.zeros(1, 64, 64))


def test_a_picture_smaller_than_a_cell_cannot_be_cropped_to_cells():
    with pytest.raises(ValueError, match="The image is smaller than a cell of 32 px, so nothing is left of it"):
        call(OURS["InpaintLatent"], vae(), torch.rand(1, 20, 64, 3), torch.ones(1, 20, 64), sides="crop")


class OtherVAE:
    """As much as the nodes ask of a VAE."""

    def __init__(self, ratio: object, latent_dim: int = 2):
        self.ratio, self.latent_dim = ratio, latent_dim

    def spacial_compression_encode(self) -> object:
        return self.ratio

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), self.ratio)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return samples.repeat_interleave(self.ratio, -1).repeat_interleave(self.ratio, -2).movedim(1, -1)


def test_cells_of_8_px_where_the_vae_has_them():
    image, mask = torch.rand(1, 100, 90, 3), spot(100, 90, (slice(40, 48), slice(16, 17)))
    latent = call(OURS["InpaintLatent"], OtherVAE(8), image, mask, 0)[0]
    assert latent["samples"].shape[-2:] == (13, 12) and int(latent["noise_mask"].sum()) == 64


def test_the_vae_of_videos_is_refused():
    with pytest.raises(ValueError, match="This VAE does not encode single images, so its latent has no cells to mask"):
        call(OURS["InpaintLatent"], OtherVAE(8, latent_dim=3), torch.rand(1, 32, 32, 3), torch.ones(1, 32, 32))


def test_a_missing_vae_is_named():
    """A checkpoint without one gives the host's loader nothing to link."""
    with pytest.raises(ValueError, match="There is no VAE to encode with: connect that of SANA DC-AE Loader"):
        call(OURS["InpaintLatent"], None, torch.rand(1, 32, 32, 3), torch.ones(1, 32, 32))


def test_pixels_preserve_the_image_that_interpolated_latents_lose():
    image = first_image()
    latent = call(OURS["DCAEEncode"], vae(), image)[0]
    larger = torch.nn.functional.interpolate(decode(latent).movedim(-1, 1), (512, 512), mode="bicubic", antialias=True)
    errors = {}
    for method in ("pixel", "latent"):
        decoded = decode(call(OURS["UpscaleLatent"], vae(), latent, 2.0, 0.0, method)[0])
        errors[method] = (decoded.movedim(-1, 1) - larger.clamp(0, 1)).square().mean()
    assert -10 * errors["pixel"].log10() > 33 and -10 * errors["latent"].log10() < 28


@pytest.mark.parametrize("method", ["pixel", "latent"])
def test_sides_are_whole_cells_and_a_mask_goes_along(method):
    latent = bench.clean_latent(160, 96) | {"noise_mask": spot(96, 160, (slice(0, 32), slice(0, 32)))}
    result = call(OURS["UpscaleLatent"], bench.vae(), latent, 1.5, 0.0, method)[0]
    assert result["samples"].shape == (1, 32, 4, 8) and result["noise_mask"].shape == (1, 128, 256)
    assert result["noise_mask"][0, 0, 0] == 1 and result["noise_mask"][0, 100:, 100:].abs().max() == 0


@pytest.mark.parametrize(
    "place", [(slice(0, 32), slice(0, 32)), (slice(96, 128), slice(96, 128)), (slice(0, 256), slice(3, 6))]
)
@pytest.mark.parametrize("factor", [0.25, 0.5, 0.75, 1.3, 2.0])
def test_a_small_mask_is_not_lost_in_scaling(place, factor):
    latent = bench.clean_latent(256, 256) | {"noise_mask": spot(place=place)}
    result = call(OURS["UpscaleLatent"], bench.vae(), latent, factor, 0.0, "latent")[0]
    size = result["noise_mask"].shape[-1]
    rows, columns = ((int(side.start * size / 256), -int(-side.stop * size // 256)) for side in place)
    touched = result["noise_mask"][0, rows[0] : rows[1], columns[0] : columns[1]]
    assert touched.numel() and bool((touched == 1).all())
    assert int(result["noise_mask"].sum()) <= (rows[1] - rows[0] + 64) * (columns[1] - columns[0] + 64)


def test_megapixels_keep_the_shape():
    assert upscaled_size(24, 32, 32, 2.0, 4.0) == (55, 74)
    assert upscaled_size(24, 32, 32, 1.5) == (36, 48)


@pytest.mark.parametrize(("channels", "decodes"), [(32, 4), (4, 32)])
def test_the_latent_of_another_model_is_not_decoded(channels, decodes):
    vae = bench.vae() if decodes == 32 else OtherVAE(8)
    vae.latent_channels = decodes
    with pytest.raises(
        ValueError, match=f"This latent has {channels} channels where this VAE decodes {decodes}: connect"
    ):
        call(OURS["UpscaleLatent"], vae, {"samples": torch.zeros(1, channels, 4, 4)})


def test_the_latent_of_a_video_is_refused():
    with pytest.raises(ValueError, match="This latent has 5 dimensions, but an image's has 4"):
        call(OURS["UpscaleLatent"], bench.vae(), {"samples": torch.zeros(1, 32, 2, 3, 3)})
