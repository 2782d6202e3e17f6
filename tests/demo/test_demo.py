"""The bundled demo models and their judge: what demo/README.md promises, as far as it can be seen in seconds."""

import io
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from sana_native.models.dc_ae.config import SANA_LATENT_SCALE
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.gemma.text_encoder import INSTRUCTION
from sana_native.samplers.schedules import get_sigmas_scm
from sana_native.tools.workflow import set_inputs, to_api

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "demo" / "checkpoint"
SPRINT_CHECKPOINT = ROOT / "demo" / "checkpoint_sprint"
SIZE_LIMIT = 32e6  # bytes of both together
PSNR_LIMIT = 29.0  # dB
SEED = 11

# Prompt -> background, and thing, size and place of what must be seen; None where the prompt leaves it open.
FIXED_PROMPTS = {
    "a big strawberry top left and a small rocket bottom right on a yellow background": (
        "yellow", ("strawberry", "big", "top left"), ("rocket", "small", "bottom right"),
    ),
    "a big cat face on a blue background": ("blue", ("cat face", "big", None)),
    "a medium pizza at the bottom left, pink background": ("pink", ("pizza", "medium", "bottom left")),
    "a white background and a big snowman in the center": ("white", ("snowman", "big", "center")),
    "orange picture of a big penguin": ("orange", ("penguin", "big", None)),
    "with a purple background, a drawing of a huge sunflower in the center": ("purple", ("sunflower", "big", "center")),
    "a green background and a big guitar left and a big umbrella right": (
        "green", ("guitar", "big", "left"), ("umbrella", "big", "right"),
    ),
    "a big 🍓 in the center on a white background": ("white", ("strawberry", "big", "center")),
    "🚀 top right, blue background": ("blue", ("rocket", None, "top right")),
    "画一幅图：中间有一个大熊猫，背景绿色": ("green", ("panda", "big", "center")),
    "左边有一个大狐狸，黄色背景": ("yellow", ("fox", "big", "left")),
    "gray background with a big house top and a big tree bottom": (
        "gray", ("house", "big", "top"), ("tree", "big", "bottom"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def judge(demo):
    return demo.judge.Judge()


@pytest.fixture(scope="module")
def painter(demo):
    return demo.generate.Painter(CHECKPOINT)


def draw_scenes(demo, count: int, seed: int = 0, held_out: bool | None = None) -> list:
    rng = random.Random(seed)
    return [demo.train.data.draw_scene(rng, held_out) for _ in range(count)]


def render(demo, scenes: list) -> torch.Tensor:
    sprites = demo.train.data.load_sprites()
    return torch.stack([demo.train.data.render(scene, sprites) for scene in scenes])


def see(server, judge, graph: str, text: str, **sampler):
    """What the judge sees in the picture that a graph of workflows/ paints of a text in the real server."""
    content = json.loads((ROOT / "workflows" / graph).read_text(encoding="utf-8"))
    prompt = set_inputs(to_api(content, server.object_info()), "SanaNativeGemmaEncode", prompt=text)
    prompt = set_inputs(prompt, "SanaNativeSampler", seed=SEED, **sampler)
    (image,) = server.run(prompt, timeout=120).images()
    pixels = np.array(Image.open(io.BytesIO(server.fetch_image(image))).convert("RGB"))
    return judge.look(torch.from_numpy(pixels).movedim(-1, 0).float() / 255)


def test_judge_is_right_on_true_renderings(demo, judge):
    assert demo.judge.judge_itself(judge, count=24, seed=1)["all"] == 1.0


def test_judge_sees_noisy_and_blurred_renderings(demo, judge, seed):
    scenes = draw_scenes(demo, 12, seed)
    pictures = torch.nn.functional.avg_pool2d(render(demo, scenes), 5, stride=1, padding=2, count_include_pad=False)
    pictures = (pictures + 0.05 * torch.randn_like(pictures)).clamp(0, 1)
    for scene, picture in zip(scenes, pictures, strict=True):
        seen = judge.look(picture)
        assert seen.background == scene.background
        assert {(i.thing, i.place) for i in seen.items} == {(i.thing, i.place) for i in scene.items}


def test_judge_tells_each_wrong_fact(demo, judge):
    data = demo.train.data
    (picture,) = render(demo, [data.Scene("green", (data.Item("whale", "big", "top"),))])
    told = demo.judge.Caption("", "pink", (("rocket", "small", "left"),))
    assert demo.judge.marks(told, judge.look(picture)) == {
        "thing": False, "size": False, "place": False, "background": False, "all": False,
    }  # fmt: skip


def test_judge_tells_a_missing_and_an_extra_thing(demo, judge):
    data = demo.train.data
    one, other = data.Item("whale", "big", "top left"), data.Item("rocket", "small", "bottom")
    alone, both = render(demo, [data.Scene("green", (one,)), data.Scene("green", (one, other))])
    of_one = demo.judge.Caption("", None, (("whale", None, None),))
    of_both = demo.judge.Caption("", None, (("whale", None, None), ("rocket", None, None)))
    right = [demo.judge.marks(c, judge.look(p))["thing"] for c in (of_one, of_both) for p in (alone, both)]
    assert right == [True, False, False, True]


def test_held_out_combinations_are_never_drawn_for_training(demo):
    data = demo.train.data
    items = [(item, scene.background) for scene in draw_scenes(demo, 2000, held_out=False) for item in scene.items]
    assert not any(data.is_held_out(item.thing, item.place, background) for item, background in items)
    assert {item.thing for item, _ in items} == set(data.THING_NAMES) and len(data.THING_NAMES) == 128


def test_held_out_wordings_are_never_used_in_training(demo):
    captions, rng = demo.train.captions, random.Random(0)
    texts = [captions.draw_caption(scene, rng).text for scene in draw_scenes(demo, 2000)]
    colour = "|".join([*demo.train.data.BACKGROUND_NAMES, *captions.CHINESE_COLOURS.values()])
    held_out = [
        re.compile(frame.replace("{i}", ".+").replace("{b}", f"({colour})") + "[.。]?", re.IGNORECASE)
        for frame in captions.HELD_OUT_ENGLISH + captions.HELD_OUT_CHINESE
    ]
    own = [captions.draw_caption(scene, rng, held_out=True).text for scene in draw_scenes(demo, 50)]
    assert sum(any(wording.fullmatch(text) for wording in held_out) for text in own) > 40
    assert not [text for text in texts for wording in held_out if wording.fullmatch(text)]


def test_held_out_sentence_forms_are_never_used_in_training(demo):
    captions, forms, rng = demo.train.captions, demo.train.forms, random.Random(1)
    scenes = draw_scenes(demo, 2000, seed=1)
    assert not [text for scene in scenes if forms.is_held_out_form(text := captions.draw_caption(scene, rng).text)]
    assert all(forms.is_held_out_form(captions.draw_form_caption(scene, rng).text) for scene in scenes[:200])


def test_captions_tell_what_the_picture_shows(demo):
    captions, rng = demo.train.captions, random.Random(2)
    for scene in draw_scenes(demo, 2000, seed=2):
        caption = captions.draw_caption(scene, rng)
        shown = {item.thing: item for item in scene.items}
        assert caption.background in (None, scene.background) and {item[0] for item in caption.items} == set(shown)
        for thing, size, place in caption.items:
            assert size in (None, shown[thing].size) and place in (None, shown[thing].place)


def test_a_misspelling_is_never_another_known_word(demo, seed):
    english, rng = demo.train.english, random.Random(seed)
    for word in sorted(english.KNOWN_WORDS):
        if len(word) >= english.SHORTEST_TYPO:
            wrong = english.misspell(word, rng)
            assert wrong == word or wrong not in english.KNOWN_WORDS


def test_free_wordings_ask_for_what_can_be_drawn(demo):
    data, cases = demo.train.data, demo.measure.load_wordings()
    assert len(cases) == 60
    assert not any(demo.train.captions.is_held_out(case.caption.text) for case in cases)
    for case in cases:
        assert case.caption.background in (None, *data.BACKGROUND_NAMES)
        for thing, size, place in case.caption.items:
            assert thing in data.THING_NAMES and size in (None, *data.SIZE_NAMES) and place in (None, *data.PLACE_NAMES)


def test_checkpoints_are_small():
    folders = (CHECKPOINT, SPRINT_CHECKPOINT)
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) < SIZE_LIMIT


def test_tokenizer_keeps_gemmas_conventions():
    processor = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer" / "tokenizer.model"))
    assert [processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()] == [0, 1, 2, 3]
    ids = processor.encode(INSTRUCTION)
    assert processor.decode(ids) == INSTRUCTION and len(ids) < 300
    assert processor.id_to_piece(ids[-1]) == "▁"  # merges with the prompt's first word
    assert processor.encode("a big rocket", out_type=str) == ["a", "▁big", "▁rocket"]
    assert processor.decode(processor.encode("naïve  漢\nx")) == "naïve  漢\nx"


def test_transformers_reads_the_same_tokens():
    processor = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer" / "tokenizer.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT / "tokenizer")
    for text in (INSTRUCTION + "a Big rocket, yellow background.", "TOP LEFT\na é 漢", "左上角有一个大🍓，蓝色背景"):
        assert tokenizer(text).input_ids == [2, *processor.encode(text)]  # BOS, no EOS


def test_autoencoder_rebuilds_held_out_pictures(demo):
    pictures = render(demo, draw_scenes(demo, 8, seed=7, held_out=True))
    vae = load_dc_ae(str(CHECKPOINT), {"dtype": torch.float32})
    latent = vae.encode(pictures.movedim(1, -1))
    rebuilt = vae.decode(latent).movedim(-1, 1)
    assert demo.train.data.psnr(rebuilt, pictures).mean() > PSNR_LIMIT
    scaled = latent * SANA_LATENT_SCALE
    assert abs(scaled.mean()) < 0.2 and 0.7 < scaled.std() < 1.3


def test_flow_dpm_converges_with_the_number_of_steps(painter):
    prompts, seeds = list(FIXED_PROMPTS)[:4], [1, 2, 3, 4]
    exact = painter.paint_latents(prompts, seeds, steps=100)
    errors = [(painter.paint_latents(prompts, seeds, steps=steps) - exact).norm() for steps in (7, 14, 28)]
    assert errors[0] > 1.4 * errors[1] > 1.4**2 * errors[2]


def test_a_negative_prompt_keeps_a_colour_away(judge, painter):
    prompts = [f"a {thing}" for thing in ("rocket", "whale", "fox", "panda", "guitar", "pizza", "robot", "snowman")]

    def count_blue(negative_prompt: str) -> int:
        pictures = painter.paint(prompts, [20 + i for i in range(8)], negative_prompt=negative_prompt)
        return sum(judge.look(picture).background == "blue" for picture in pictures)

    assert count_blue("") > 0
    assert count_blue("blue background") == 0


def test_diffusers_paints_the_same_picture(demo, painter):
    pipeline = diffusers.SanaPipeline.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert json.loads((CHECKPOINT / "vae" / "config.json").read_text())["scaling_factor"] == SANA_LATENT_SCALE
    prompt = "a big strawberry on a blue background"
    noise = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        prompt, latents=noise[None], complex_human_instruction=[INSTRUCTION], output_type="pt", height=256, width=256,
        use_resolution_binning=False, num_inference_steps=8,
    ).images  # fmt: skip
    assert demo.train.data.psnr(painter.paint([prompt], [3], steps=8), theirs).item() > 50


def test_diffusers_paints_the_same_picture_with_sprint(demo):
    parts = diffusers.SanaPipeline.from_pretrained(CHECKPOINT, transformer=None, torch_dtype=torch.float32).components
    parts = {name: parts[name] for name in ("text_encoder", "tokenizer", "vae")}
    pipeline = diffusers.SanaSprintPipeline.from_pretrained(SPRINT_CHECKPOINT, torch_dtype=torch.float32, **parts)
    pipeline.set_progress_bar_config(disable=True)
    prompt = "a big strawberry on a blue background"
    noise = torch.randn(32, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline(
        prompt, latents=noise[None], complex_human_instruction=[INSTRUCTION], output_type="pt", height=256, width=256,
        use_resolution_binning=False, num_inference_steps=1, intermediate_timesteps=None,
    ).images  # fmt: skip
    ours = demo.generate.Painter(SPRINT_CHECKPOINT).paint([prompt], [3], sigmas=get_sigmas_scm(1))
    assert demo.train.data.psnr(ours, theirs).item() > 50


@pytest.fixture(scope="module")
def demo_server(comfy_server):
    return comfy_server()


@pytest.mark.parametrize("text", FIXED_PROMPTS)
def test_the_demos_graph_draws_what_the_prompt_says_in_the_real_server(demo, demo_server, judge, text):
    background, *items = FIXED_PROMPTS[text]
    marks = demo.judge.marks(
        demo.judge.Caption(text, background, tuple(items)), see(demo_server, judge, "demo_txt2img.json", text)
    )
    assert marks["all"], marks


@pytest.mark.parametrize("text", list(FIXED_PROMPTS)[:6])
def test_sprints_graph_draws_what_the_prompt_says_in_two_steps(demo, demo_server, judge, text):
    background, *items = FIXED_PROMPTS[text]
    marks = demo.judge.marks(
        demo.judge.Caption(text, background, tuple(items)), see(demo_server, judge, "demo_sprint.json", text)
    )
    assert marks["all"], marks


@pytest.mark.parametrize("name", ["train.export", "train.warm", "measure", "gallery", "generate"])
def test_each_program_of_the_demo_is_importable_on_its_own(name):
    """In a process that has not prepared the pack's imports."""
    command = [sys.executable, "-c", f"import demo.{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
