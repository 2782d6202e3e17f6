"""Comparisons: axes are read and put into graphs, cells are measured, and the grid shows what was found."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import torch
from PIL import Image
from sana_native.tools import compare
from sana_native.tools.comfy_server import NodeFailed, Result, ServerEnded, ServerError
from sana_native.tools.compare import Drawn, judge, lines_of, picture_of, read_arguments, table_of
from sana_native.tools.compare_plan import (
    LATENT_NODE,
    ROOT,
    Axis,
    PlanError,
    Subject,
    best_place,
    demo_subjects,
    plan_cells,
    put,
    put_subject,
    read_axis,
    read_graph,
    read_subjects,
    save_latent,
)

STEPS = Axis("KSampler", ("steps",), (("4",), ("8",)))


@pytest.fixture
def graph() -> dict:
    return {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["9", 0]}, "_meta": {"title": "Prompt"}},
        "2": {
            "class_type": "KSampler",
            "inputs": {"seed": 0, "steps": 20, "cfg": 4.5, "sampler_name": "a", "scheduler": "b", "positive": ["1", 0]},
        },
        "3": {"class_type": "SanaNativeGemmaEncode", "inputs": {"prompt": "other", "lower_case": False}},
    }


def test_an_axis_is_a_node_an_input_and_values():
    assert read_axis("KSampler.steps=4, 8") == STEPS
    assert STEPS.names == ["steps 4", "steps 8"]
    together = read_axis("SANA Model Loader.a+b=x+1,y+2")
    assert together == Axis("SANA Model Loader", ("a", "b"), (("x", "1"), ("y", "2")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps=4", '"steps=4" is no axis; write a node, an input and values, such as KSampler.steps=4,8,20'),
        ("KSampler.steps", "is no axis"),
        ("KSampler.steps=", "is no axis"),
        ("KSampler.a+b=1,2+3", '"1" has 1 values for 2 inputs'),
    ],
)
def test_what_is_no_axis_is_refused(text, message):
    with pytest.raises(PlanError, match=message.replace("+", r"\+").replace(".", r"\.")):
        read_axis(text)


def test_values_take_the_type_that_the_graph_has(graph):
    changed = put(graph, read_axis("KSampler.steps+cfg+sampler_name=8+5+euler"), ("8", "5", "euler"))
    inputs = changed["2"]["inputs"]
    assert (inputs["steps"], inputs["cfg"], inputs["sampler_name"]) == (8, 5.0, "euler")
    assert type(inputs["cfg"]) is float and graph["2"]["inputs"]["steps"] == 20
    assert (
        put(graph, read_axis("SanaNativeGemmaEncode.lower_case=true"), ("true",))["3"]["inputs"]["lower_case"] is True
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KSampler.step=4", "KSampler has no input step; it has seed, steps"),
        ("Sampler.steps=4", "0 nodes are called Sampler, .*: Prompt, KSampler, SanaNativeGemmaEncode"),
        ("KSampler.steps=many", '"many" is no number, where the graph has 20'),
        ("KSampler.positive=4", "is for an input that another node gives"),
        ("SanaNativeGemmaEncode.lower_case=maybe", '"maybe" is neither true nor false'),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(graph, text, message):
    axis = read_axis(text)
    with pytest.raises(PlanError, match=message):
        put(graph, axis, axis.values[0])


INFO = {
    "KSampler": {
        "input": {
            "required": {
                "steps": ["INT", {"min": 1, "max": 10000}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "sampler_name": [["euler", "dpm"]],
                "scheduler": ["COMBO", {"options": ["a", "b"]}],
            }
        }
    }
}


def test_every_cell_is_planned_before_one_is_drawn(graph):
    x, y = read_axis("KSampler.steps=4,8"), read_axis("KSampler.sampler_name+scheduler=euler+a,dpm+b")
    cells = plan_cells(graph, x, y, INFO)
    inputs = [[cell["2"]["inputs"] for cell in row] for row in cells]
    assert [[(one["steps"], one["sampler_name"]) for one in row] for row in inputs] == [
        [(4, "euler"), (8, "euler")],
        [(4, "dpm"), (8, "dpm")],
    ]
    assert plan_cells(graph, x, None, {})[0][1]["2"]["inputs"]["steps"] == 8


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ("KSampler.steps=4,8,x", "", '"x" is no number'),
        ("KSampler.steps=4,99999999", "", "KSampler.steps=99999999 is out of range; give 1 to 10000."),
        ("KSampler.steps=4,8.5", "", "KSampler.steps=8.5 is no whole number."),
        ("KSampler.steps=4,inf", "", "KSampler.steps=inf is no whole number."),
        ("KSampler.seed=1,2", "", "KSampler.seed is the same in every cell: give SEEDS="),
        ("KSampler.cfg=1,nan", "", "KSampler.cfg=nan is no finite number."),
        ("KSampler.steps=4", "KSampler.sampler_name=dpm,heun", "sampler_name=heun is none of the choices, euler, dpm."),
        ("KSampler.steps=4", "KSampler.scheduler=a,c", "scheduler=c is none of the choices, a, b."),
        ("KSampler.steps=4", "KSampler.cfg+steps=1+1", "X and Y both set steps of KSampler; give each an input of its"),
    ],
)
def test_a_value_that_the_host_would_refuse_is_told_before_a_cell_is_drawn(graph, x, y, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan_cells(graph, read_axis(x), read_axis(y) if y else None, INFO)


def test_prompt_and_seed_go_to_the_nodes_that_hold_them(graph):
    changed = put_subject(graph, Subject("a red cat", 7))
    assert changed["1"]["inputs"]["text"] == "a red cat" and changed["2"]["inputs"]["seed"] == 7
    assert changed["3"]["inputs"]["prompt"] == "other" and graph["2"]["inputs"]["seed"] == 0
    with pytest.raises(PlanError, match='one node titled "Prompt" with the prompt, and a seed'):
        put_subject({}, Subject("a", 1))


def test_the_demos_prompts_are_held_out_and_the_same_each_time():
    found = demo_subjects(5)
    assert [len(one.caption.items) for one in found] == [1, 2, 1, 2, 1]
    assert found == demo_subjects(5) and len({one.seed for one in found}) == 5


def test_prompts_come_from_a_file_with_seeds_of_their_own(tmp_path):
    (tmp_path / "p.txt").write_text("a cat --seed 9\na dog\n", encoding="utf-8")
    found = read_subjects(str(tmp_path / "p.txt"), 2, demo=False)
    assert [(one.prompt, one.seed) for one in found] == [("a cat", 9), ("a cat", 1009), ("a dog", 1), ("a dog", 1001)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "PROMPTS=4 is for the demo model"),
        ("none.txt", r"PROMPTS=none.txt cannot be read \(No such file or directory\); give a prompt file"),
        ("a.exe", "no prompt"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(PlanError, match=message):
        read_subjects(text, 1, demo=False)


def test_no_prompt_is_no_comparison():
    with pytest.raises(PlanError, match="PROMPTS=0 is no number of prompts; give 1 or more"):
        read_subjects("0", 1, demo=True)


def test_the_cell_that_others_are_compared_with_can_be_chosen():
    solver = read_axis("KSampler.sampler_name=dpm,euler")
    assert best_place("", STEPS, solver) == (0, 1)
    assert best_place("4", STEPS, None) == (0, 0) and best_place("4|euler", STEPS, solver) == (1, 0)
    with pytest.raises(PlanError, match='BEST=5: "5" is none of X\'s values, 4, 8'):
        best_place("5", STEPS, solver)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "a.jpg"], "does not end in .png"),
        (["--seeds", "0"], "SEEDS=0 is no number"),
        (["--models", "/nowhere"], "MODELS=/nowhere is no folder"),
    ],
)
def test_wrong_settings_are_refused_before_anything_starts(arguments, message):
    with pytest.raises(PlanError, match=message):
        read_arguments(arguments)


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "p.txt").write_text("a cat\n", encoding="utf-8")
    paths = ["--models", "~", "--prompts", "~/p.txt", "--out", "~/grid.png", "--workflow", "~/w.json"]
    given = read_arguments(paths)
    assert [Path(given.models), Path(given.out)] == [tmp_path, tmp_path / "grid.png"]
    assert [one.prompt for one in read_subjects(given.prompts, 1, demo=False)] == ["a cat"]
    assert read_arguments([]).workflow == "demo" and Path(given.workflow) == tmp_path / "w.json"


def test_a_graph_that_is_none_is_named(tmp_path):
    with pytest.raises(PlanError, match="cannot be read .* give WORKFLOW= a saved workflow, or demo"):
        read_graph(str(tmp_path / "no.json"))
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(PlanError, match="is no JSON"):
        read_graph(str(tmp_path / "bad.json"))
    for text in ("[]", "{}", '{"1": {}}'):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(PlanError, match="bad.json holds no workflow; save one in ComfyUI, or export it"):
            read_graph(str(tmp_path / "bad.json"))
    exported = {"1": {"class_type": "KSampler", "inputs": {}}}
    (tmp_path / "api.json").write_text(json.dumps(exported), encoding="utf-8")
    assert read_graph(str(tmp_path / "api.json")) == exported


def cells() -> list[list[Drawn]]:
    """Two cells of the demo's own renderings: the second one's first picture is another one's."""
    from sana_native.demo.train.data import THING_NAMES, Item, Scene, load_sprites, render
    from torchvision.transforms.functional import to_pil_image

    sprites = load_sprites()
    scenes = [Scene("blue", (Item(thing, "big", "center"),)) for thing in THING_NAMES[:2]]
    right, wrong = (to_pil_image(render(scene, sprites)) for scene in scenes)
    sampled = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(2))
    return [
        [
            Drawn("steps 4", "", [wrong, right], [0.5, 0.7], latents=[1.5 * sampled, sampled]),
            Drawn("steps 8", "", [right, right], [1.0, 1.2], latents=[sampled, sampled]),
        ]
    ]


@pytest.fixture
def judged() -> list[list[Drawn]]:
    from sana_native.demo.train.captions import Caption
    from sana_native.demo.train.data import THING_NAMES

    caption = Caption("", "blue", ((THING_NAMES[0], "big", "center"),))
    rows = cells()
    judge(rows, (0, 1), [Subject("", 1, caption), Subject("", 2, caption)], "")
    return rows


def test_cells_are_measured_against_the_best_and_by_what_they_show(judged):
    worse, best = (cell.numbers for cell in judged[0])
    assert worse["seconds"] == pytest.approx(0.6) and best["seconds"] == pytest.approx(1.1)
    assert worse["right"]["value"] == 0.5 and best["right"]["value"] == 1.0
    assert 0 < worse["ssim"]["value"] < 1 and not worse["equal"] and "psnr" not in best
    assert worse["latent"]["value"] == pytest.approx((0.5 + 0) / 2) and "latent" not in best


def test_the_grid_and_the_table_show_what_was_found(judged):
    worse, best = judged[0]
    seconds, right, differs, latent = lines_of(worse)
    assert (seconds, right, latent) == ("0.60 s", "right 50%", "latent 0.250") and "SSIM" in differs
    assert lines_of(best) == ["1.10 s", "right 100%"]
    sheet = picture_of(judged, (0, 1), "Demo", ["a note"])
    assert isinstance(sheet, Image.Image) and sheet.width > 2 * compare.SHOWN
    table = table_of(judged, (0, 1)).splitlines()
    assert table[0] == "| X | Y | s a picture | PSNR, dB | SSIM | latent distance | right | N |" and len(table) == 4
    assert "| 0.250 | 50% | 2 |" in table[2]
    assert "| the reference | the reference | the reference | 100% | 2 |" in table[3]


def test_a_cell_of_another_size_is_not_called_the_reference():
    small, large = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (64, 64), "red")
    names = {"256": small, "512": large, "256 again": small}
    latents = [torch.ones(4, side, side) for side in (1, 2, 1)]
    rows = [[Drawn(name, "", [names[name]], [1.0], latents=[one]) for name, one in zip(names, latents, strict=True)]]
    judge(rows, (0, 0), [Subject("", 1)], "")
    assert [line.split(" | ")[3:6] for line in table_of(rows, (0, 0)).splitlines()[2:]] == [
        ["the reference", "the reference", "the reference"],
        ["-", "-", "-"],
        ["100.0", "1.0000", "0.000"],
    ]


class FailingServer:
    """Takes 2 steps; fails at the second picture with 4, where it ends, and with 8. It does not start a third time."""

    def __init__(self):
        self.pid, self.calls, self.starts = 1, [], 0

    def run(self, prompt: dict) -> Result:
        steps = prompt["2"]["inputs"]["steps"]
        self.calls.append(steps)
        if self.calls.count(steps) > 2 and steps == 4:
            raise ServerEnded("The server ended during the prompt; its log ends with:\nloaded\nKilled\n")
        if self.calls.count(steps) > 2 and steps == 8:
            raise NodeFailed("KSampler", "expected int | None")
        if steps == 16:
            raise aiohttp.ServerDisconnectedError
        return Result("id", {"7": {"images": [{}]}}, {"2": 0.5})

    def fetch_image(self, _: dict) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), "red").save(file, "png")
        return file.getvalue()

    def stop(self):
        self.calls.append("stop")
        self.pid = None

    def start(self):
        self.calls.append("start")
        self.starts += 1
        if self.starts > 1:
            raise ServerError("ComfyUI gave no answer in 180 s; its log ends with:\nloading")
        self.pid = 2


@pytest.mark.parametrize("best", [(0, 0), (0, 2)])
def test_a_cell_that_fails_says_why_and_loses_no_other_one(graph, capsys, best):
    x = read_axis("KSampler.steps=2,4,8,16,20")
    server, subjects = FailingServer(), [Subject("a", 1), Subject("b", 1)]
    rows = compare.draw(server, plan_cells(graph, x, None, {}), x, None, subjects)
    assert server.calls == [2, 2, 2, 4, 4, 4, "stop", "start", 8, 8, 8, 16, "stop", "start", "stop"]
    reasons = [
        "The server ended during the prompt; its log ends with: Killed",
        "KSampler failed: expected int | None",
        "Server disconnected",
        "ComfyUI gave no answer in 180 s; its log ends with: loading",
    ]
    assert [cell.error for cell in rows[0]] == ["", *reasons]
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"steps {steps} : failed: {reason}" for steps, reason in zip((4, 8, 16, 20), reasons, strict=True)
    ]
    judge(rows, best, subjects, "")
    table = table_of(rows, best).splitlines()
    assert table[2:4] == ["| steps 2 | - | 0.50 | 2 |", f"| steps 4 | - | failed: {reasons[0]} | 0 |"]
    assert table[4] == r"| steps 8 | - | failed: KSampler failed: expected int \| None | 0 |"
    assert lines_of(rows[0][2]) == ["failed:", "KSampler failed: expected int | None"]
    assert picture_of(rows, best, "", []).width > 5 * compare.SHOWN


@pytest.fixture
def command(tmp_path, monkeypatch, graph):
    """Compares a graph along an axis with a server that fails, and returns how many cells did."""
    nodes = {key: graph[key] for key in ("1", "2")} | {"7": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}}
    (tmp_path / "w.json").write_text(json.dumps(nodes))
    (tmp_path / "p.txt").write_text("a\nb\n")
    server = FailingServer()
    server.object_info = dict
    monkeypatch.setattr(compare, "ComfyServer", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(compare, "prepare_base", lambda base: base)
    told = {"--workflow": tmp_path / "w.json", "--prompts": tmp_path / "p.txt", "--out": tmp_path / "grid.png"}
    given = [str(one) for pair in told.items() for one in pair]
    return lambda axis: compare.compare(read_arguments(["--x", axis, *given]))


def test_a_comparison_writes_what_there_is_and_counts_what_failed(command, tmp_path):
    assert command("KSampler.steps=2,8") == 1
    told = json.loads((tmp_path / "grid.json").read_text())
    assert [(cell["count"], cell.get("error")) for cell in told["cells"]] == [
        (2, None), (0, "KSampler failed: expected int | None"),
    ]  # fmt: skip
    assert (tmp_path / "grid.png").is_file() and (tmp_path / "grid.md").is_file()


def test_a_comparison_of_which_every_cell_fails_writes_nothing(command, tmp_path):
    with pytest.raises(ServerError, match="^Server disconnected$"):
        command("KSampler.steps=16,16")
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("latents", "others"),
    [
        ([], []),
        ([torch.full((4, 2, 2), torch.nan)], [torch.ones(4, 2, 2)]),
        ([torch.ones(4, 2, 2)], [torch.zeros(4, 2, 2)]),
        ([torch.ones(4, 2, 2)], [torch.ones(32, 2, 2)]),
    ],
)
def test_latents_without_a_distance_leave_the_other_numbers(latents, others):
    picture = Image.new("RGB", (32, 32), "red")
    rows = [[Drawn("a", "", [picture], [1.0], latents=latents), Drawn("b", "", [picture], [1.0], latents=others)]]
    judge(rows, (0, 1), [Subject("", 1)], "")
    assert "latent" not in rows[0][0].numbers and rows[0][0].numbers["equal"]


def test_the_latent_that_the_shown_picture_is_decoded_from_is_saved(graph):
    shown = {
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["9", 0]}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["9", 0]}},
        "6": {"class_type": "ImageBlend", "inputs": {"image1": ["5", 0], "image2": ["7", 0], "blend_factor": 0.5}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["6", 0]}},
    }
    for number, sampled in (("7", "2"), ("8", "3")):
        saved = save_latent(graph | shown, number)
        assert saved.pop(LATENT_NODE)["inputs"]["samples"] == [sampled, 0] and saved == graph | shown
    assert save_latent(graph, "1") == graph, "nothing is decoded"


@pytest.mark.heavy
def test_a_comparison_of_the_demo_by_a_real_server(tmp_path):
    out = tmp_path / "grid.png"
    arguments = ["--x", "KSampler.steps=1,8", "--prompts", "2", "--base", str(tmp_path / "base"), "--out", str(out)]
    subprocess.run([sys.executable, "-m", "tools.compare", *arguments], cwd=ROOT, check=True)
    told = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    one, eight = told["cells"]
    assert told["best"] == ["steps 8", ""] and one["psnr"]["value"] < 25 and one["seconds"] < eight["seconds"]
    assert 0.01 < one["latent"]["value"] < 2 and "latent" not in eight
    assert Image.open(out).width > 2 * compare.SHOWN and "steps 8" in out.with_suffix(".md").read_text(encoding="utf-8")
