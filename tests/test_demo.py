"""The bundled demo checkpoint and its judge: what demo/README.md promises, as far as it can be seen in seconds."""

import io
import json
import random
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from sana_native.models.config import SANA_LATENT_SCALE
from sana_native.models.gemma import INSTRUCTION
from sana_native.models.loader import load_dc_ae
from sana_native.tools.workflow import set_inputs, to_api

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "checkpoint"
SIZE_LIMIT = 16e6  # bytes
PSNR_LIMIT = 25.5  # dB


@pytest.fixture(scope="module")
def judging():
    """The demo's modules; the package is found from the root, which must not stay on sys.path."""
    sys.path.append(str(ROOT))
    try:
        from demo import generate, judge
        from demo.train import data
    finally:
        sys.path.remove(str(ROOT))
    return {"judge": judge, "data": data, "generate": generate}


@pytest.fixture(scope="module")
def judge(judging):
    return judging["judge"].Judge()


def test_judge_is_right_on_true_renderings(judging, judge):
    shares = judging["judge"].judge_itself(judge, count=24, seed=1)
    assert shares["both"] == 1.0


def test_judge_sees_noisy_and_blurred_renderings(judging, judge, seed):
    data = judging["data"]
    sprites, rng = data.load_sprites(), random.Random(seed)
    scenes = [data.draw_scene(rng, held_out=None) for _ in range(12)]
    pictures = torch.stack([data.render(scene, sprites) for scene in scenes])
    pictures = torch.nn.functional.avg_pool2d(pictures, 5, stride=1, padding=2, count_include_pad=False)
    pictures = (pictures + 0.05 * torch.randn_like(pictures)).clamp(0, 1)
    shares, _ = judging["judge"].tally(judge, scenes, pictures)
    assert shares["both"] == 1.0


def test_judge_tells_a_wrong_thing_and_background(judging, judge):
    data = judging["data"]
    sprites = data.load_sprites()
    scene = data.Scene("rocket", "pink", "big", "center", 20, 20)
    other = data.Scene("fish", "green", "big", "center", 20, 20)
    shares, wrong = judging["judge"].tally(judge, [scene], data.render(other, sprites)[None])
    assert shares["thing"] == shares["background"] == 0.0
    assert wrong[0][1].thing == "fish" and wrong[0][1].background == "green"


def test_held_out_pairs_are_never_drawn_for_training(judging):
    data, rng = judging["data"], random.Random(0)
    drawn = [data.draw_scene(rng) for _ in range(2000)]
    assert not any(data.is_held_out(scene.thing, scene.background) for scene in drawn)
    assert {scene.thing for scene in drawn} == set(data.THINGS)
    assert 16 <= sum(data.is_held_out(t, b) for t in data.THINGS for b in data.BACKGROUNDS) <= 32


def test_checkpoint_is_small():
    total = sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file())
    assert total < SIZE_LIMIT


def test_tokenizer_keeps_gemmas_conventions():
    processor = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer" / "tokenizer.model"))
    assert [processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()] == [0, 1, 2, 3]
    ids = processor.encode(INSTRUCTION)
    assert processor.decode(ids) == INSTRUCTION and len(ids) < 300
    assert processor.id_to_piece(ids[-1]) == "▁"  # merges with the prompt's first word
    assert processor.encode("a red apple", out_type=str) == ["a", "▁red", "▁apple"]
    assert processor.decode(processor.encode("naïve  漢\nx")) == "naïve  漢\nx"


def test_transformers_reads_the_same_tokens():
    processor = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer" / "tokenizer.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    for text in (INSTRUCTION + "a Big rocket, yellow background.", "TOP LEFT\na é 漢"):
        assert tokenizer(text).input_ids == [2, *processor.encode(text)]  # BOS, no EOS


def test_autoencoder_rebuilds_held_out_pictures(judging):
    data, rng = judging["data"], random.Random(7)
    sprites = data.load_sprites()
    pictures = torch.stack([data.render(data.draw_scene(rng, held_out=True), sprites) for _ in range(12)])
    vae = load_dc_ae(str(CHECKPOINT), {"dtype": torch.float32})
    latent = vae.encode(pictures.movedim(1, -1))
    rebuilt = vae.decode(latent).movedim(-1, 1)
    assert data.psnr(rebuilt, pictures).mean() > PSNR_LIMIT
    scaled = latent * SANA_LATENT_SCALE
    assert abs(scaled.mean()) < 0.2 and 0.8 < scaled.std() < 1.2


def test_pictures_show_what_the_prompt_says(judging, judge):
    painter = judging["generate"].Painter(CHECKPOINT)
    prompts = judging["judge"].draw_prompts(12, seed=5)
    pictures = painter.paint([caption for _, caption in prompts], [100 + i for i in range(12)])
    shares, wrong = judging["judge"].tally(judge, [scene for scene, _ in prompts], pictures)
    assert shares["both"] >= 10 / 12, [(prompts[i][1]) for i in range(12) if prompts[i][0] in {s for s, _ in wrong}]


def test_diffusers_paints_the_same_picture(judging):
    pipeline = diffusers.SanaPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert json.loads((CHECKPOINT / "vae" / "config.json").read_text())["scaling_factor"] == SANA_LATENT_SCALE
    prompt, noise = (
        "a red apple on a blue background",
        torch.randn(32, 4, 4, generator=torch.Generator().manual_seed(3)),
    )
    options = {"height": 128, "width": 128, "use_resolution_binning": False, "num_inference_steps": 8}
    theirs = pipeline(
        prompt, latents=noise[None], complex_human_instruction=[INSTRUCTION], output_type="pt", **options
    ).images
    ours = judging["generate"].Painter(CHECKPOINT).paint([prompt], [3], steps=8)
    assert judging["data"].psnr(ours, theirs).item() > 50


@pytest.mark.parametrize(("thing", "background"), [("red apple", "blue"), ("rocket", "green"), ("snowman", "gray")])
def test_the_demos_graph_draws_what_the_prompt_says_in_the_real_server(comfy_server, judge, thing, background):
    server = comfy_server()
    graph = json.loads((ROOT / "workflows" / "demo_txt2img.json").read_text(encoding="utf-8"))
    prompt = set_inputs(
        to_api(graph, server.object_info()),
        "SanaNativeGemmaEncode",
        prompt=f"a big {thing} on a {background} background",
    )
    prompt = set_inputs(prompt, "SanaNativeSampler", seed=11)

    (image,) = server.run(prompt, timeout=120).images()

    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(server.fetch_image(image))))).movedim(-1, 0).float() / 255
    verdict = judge.look(pixels)
    assert (verdict.thing, verdict.background) == (thing, background)
