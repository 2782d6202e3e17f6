"""The measuring tools: which rows, ratios and messages they print, and that each measures what it says. No seconds."""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("measuring", "networks", "stages", "growth", "picture", "stage_clock", "random_files", "random_pipelines",
           "throughput")  # fmt: skip


@pytest.fixture(scope="module")
def benchmarks():
    """Their modules; the package is found from the root, which must not stay on sys.path."""
    sys.path.append(str(ROOT))
    try:
        return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in MODULES})
    finally:
        sys.path.remove(str(ROOT))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def column(lines: list[str], table, name: str) -> list[str]:
    return [cells(line)[table.COLUMNS.index(name)] for line in lines]


def options(**changed) -> argparse.Namespace:
    usual = {"stages": ["step"], "sizes": [64], "tokens": [30], "pairs": 1, "dtype": "float32", "model": "0.6B"}
    return argparse.Namespace(**usual | {"compile": False, "blocks": 1} | changed)


# Rounds, ratios, processes


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_seconds(benchmarks):
    rounds = [
        {"ours": {"seconds": ours}, "diffusers": {"seconds": other}} for ours, other in ((1, 2), (10, 30), (100, 110))
    ]
    assert benchmarks.measuring.ratio(rounds, "diffusers") == 2.0
    assert benchmarks.measuring.ratio(rounds, "ours") == 1.0
    assert benchmarks.measuring.middle(rounds, "diffusers", "seconds") == 30


def test_another_implementation_begins_each_round(benchmarks):
    order = []
    rounds = benchmarks.measuring.in_turns("abc", 3, lambda name: order.append(name) or {"name": name})
    assert "".join(order) == "abcbcacab"
    assert [list(one) for one in rounds] == [["a", "b", "c"]] * 3 and rounds[1]["a"] == {"name": "a"}


def test_a_measurement_that_fails_says_why(benchmarks):
    with pytest.raises(RuntimeError, match=r"benchmarks\.nothing.*ended with 1:\n.*No module named"):
        benchmarks.measuring.in_a_process("nothing")


# Single stages


def test_each_stage_has_a_row_for_every_size_and_prompt_it_depends_on(benchmarks):
    given = options(stages=["text", "step", "decode"], sizes=[512, 1024], tokens=[30, 300])
    assert list(benchmarks.stages.cases(given)) == [
        *(("text", 0, 30), ("text", 0, 300)),
        *(("step", 512, 30), ("step", 512, 300), ("step", 1024, 30), ("step", 1024, 300)),
        *(("decode", 512, 0), ("decode", 1024, 0)),
    ]


def test_the_table_of_stages_holds_what_the_processes_gave(benchmarks, monkeypatch, capsys):
    def given_back(module, _measure, _stage, name, *_options):
        assert module == "stages"
        seconds = {"ours": 2.0, "diffusers": 3.0, "host": 5.0, "transformers": 20.0}[name]
        return {"seconds": seconds, "peak": 2**29, "operations": 3e12, "of_limit": 0.5}

    monkeypatch.setattr(benchmarks.stages, "in_a_process", given_back)
    benchmarks.stages.compare(options(stages=["text", "encode"], sizes=[512], dtype="bfloat16", pairs=3))
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert cells(heading) == list(benchmarks.stages.COLUMNS)
    assert rows == [
        "| text | - | 30 | bfloat16 | ours | 2 | 0.50 | 1.00 | 3 | 50% |",
        "| text | - | 30 | bfloat16 | transformers | 20 | 0.50 | 10.00 | 3 | 50% |",
        "| encode | 512 | - | bfloat16 | ours | 2 | 0.50 | 1.00 | 3 | 50% |",
        "| encode | 512 | - | bfloat16 | diffusers | 3 | 0.50 | 1.50 | 3 | 50% |",
        "| encode | 512 | - | bfloat16 | host | 5 | 0.50 | 2.50 | 3 | 50% |",
    ]


@pytest.mark.parametrize("tokens", ["0", "301", "many"])
def test_more_tokens_than_positions_are_refused(benchmarks, monkeypatch, capsys, tokens):
    monkeypatch.setattr(sys, "argv", ["stages", "--tokens", tokens])
    with pytest.raises(SystemExit):
        benchmarks.stages.main()
    assert f"{tokens} is not from 1 to 300, the positions the transformer is given" in capsys.readouterr().err


def test_what_cannot_be_compiled_is_said_in_one_sentence(benchmarks, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks.stages, "compare", lambda _: None)
    monkeypatch.setattr(benchmarks.stages, "stop_politely", lambda: None)
    monkeypatch.setattr(sys, "argv", ["stages", "--stages", "text", "decode", "--compile"])
    benchmarks.stages.main()
    assert re.fullmatch(r"\ntext is not compiled: [^.]+\.\n", capsys.readouterr().out)


@torch.inference_mode()
def test_a_prompt_after_the_first_costs_ours_its_own_tokens_alone(benchmarks, monkeypatch):
    """One layer of Gemma-2-2b, narrowed: 30 of 506 positions, compiled or not."""
    monkeypatch.setattr(
        benchmarks.networks, "GEMMA", benchmarks.networks.GEMMA | {"hidden_size": 256, "intermediate_size": 512}
    )
    monkeypatch.setattr(benchmarks.stages, "MATRIX", {"cpu": 64, "cuda": 64})
    found = {
        name: benchmarks.stages.measure("text", name, 0, 30, options(compile=True)) for name in ("ours", "transformers")
    }
    share = found["ours"]["operations"] / found["transformers"]["operations"]
    assert 0.5 * 30 / 506 < share < 1.1 * 30 / 506  # less where attention counts: its keys are not all positions
    assert found["ours"].keys() >= {"seconds", "peak", "limit", "of_limit"}


@torch.enable_grad()
def test_both_sides_of_a_step_get_the_same_prompt(benchmarks):
    """Ours without its padding: fewer operations, and as many when nothing is padding, in the plain path."""
    counts = {}
    for name in ("ours", "diffusers"):
        network = benchmarks.networks.build("step", name, torch.float32, blocks=1)
        for tokens in (30, 300):
            run = benchmarks.networks.call("step", name, network, 64, torch.float32, tokens=tokens)
            counts[name, tokens] = benchmarks.stages.operations(run)
    assert counts["diffusers", 30] == counts["diffusers", 300] == pytest.approx(counts["ours", 300], rel=0.01)
    assert counts["ours", 30] < 0.3 * counts["ours", 300]


# Growth


def test_a_cost_that_grows_with_the_pixels_is_called_linear(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks.growth, "build", lambda *_, **__: None)
    monkeypatch.setattr(benchmarks.growth, "call", lambda _stage, _name, _network, size, *_: lambda: size)

    def clock(run, _device):
        return sum(7 * size**2 for size in run())

    rounds = benchmarks.growth.measure("decode", [256, 1024, 2048], 2, "0.6B", None, clock, None)
    ratios = [benchmarks.measuring.ratio(rounds, size, to=1024, field="cost") for size in (256, 1024, 2048)]
    assert ratios == [1.0, 1.0, 1.0] and rounds[0][1024]["cost"] == rounds[0][1024]["seconds"]


# Whole pictures


def test_what_the_networks_do_not_take_is_the_time_around_them(benchmarks):
    clock, owner = benchmarks.stage_clock.StageClock(), SimpleNamespace(step=lambda x: x + 1, decode=lambda z: z)
    clock.watch(owner, "step", "steps")
    clock.watch(owner, "decode", "decode")
    results = []

    def paint(_prompt, _seed, steps):
        results.extend(owner.step(torch.zeros(1)) for _ in range(steps))
        owner.decode(z=torch.zeros(1, dtype=torch.bfloat16))

    found = benchmarks.picture.timed(paint, clock.take, "a cat", 1, 3)
    assert results == [1, 1, 1] and found["calls"] == {"steps": 3, "decode": 1}
    assert found["computed in"] == "float32 / bfloat16" and found["text"] == 0 < found["around"]
    assert found["seconds"] == pytest.approx(sum(found[part] for part in ("text", "steps", "decode", "around")))
    assert not clock.take()["calls"]


def test_the_table_of_pictures_has_a_row_for_each_picture_and_side(benchmarks):
    def side(seconds: float) -> dict:
        one = {"seconds": seconds, "text": 1.0, "steps": 2.0, "decode": 3.0, "around": seconds - 6, "peak": 2**31}
        one["computed in"] = "bfloat16 / float32"
        return {"another prompt": one, "another seed": one | {"seconds": seconds / 2}}

    rounds = [{"ours": side(10.0), "diffusers": side(10.0 * factor)} for factor in (2, 3, 9)]
    rows = benchmarks.picture.table_rows(("sana 0.6B, 20 steps", 512), rounds)
    assert column(rows, benchmarks.picture, "picture") == ["another prompt"] * 2 + ["another seed"] * 2
    assert column(rows, benchmarks.picture, "implementation") == ["ours", "diffusers"] * 2
    assert column(rows, benchmarks.picture, "time / ours") == ["1.00", "3.00"] * 2
    assert rows[0] == (
        "| sana 0.6B, 20 steps | 512 | another prompt | ours | bfloat16 / float32 | 10 | 1 | 2 | 3 | 4 | 2.00 | 1.00 |"
    )


# Latency and throughput


class Machine:
    """Stands in for a GPU: a batch takes a second and a tenth for each picture, and 3 bytes above 10."""

    def __init__(self, monkeypatch, benchmarks, memory: int, error: str = "CUDA out of memory"):
        self.memory, self.error, self.now, self.peak, self.batches = memory, error, 0.0, 0, []
        monkeypatch.setattr(benchmarks.throughput.time, "perf_counter", lambda: self.now)

    def paint(self, batch: int) -> None:
        from sana_native.tools.comfy_server import ServerError

        if 10 + 3 * batch > self.memory:
            raise ServerError(f"SANA Sampler failed: {self.error}")
        self.batches.append(batch)
        self.now += 1 + batch / 10
        self.peak = 10 + 3 * batch


def serve_errors(benchmarks, monkeypatch):
    """The module's own error, as the tests know the pack by another name."""
    from sana_native.tools.comfy_server import ServerError

    monkeypatch.setattr(benchmarks.throughput, "ServerError", ServerError)


def test_throughput_is_that_of_the_largest_batch_which_fits(benchmarks, monkeypatch):
    serve_errors(benchmarks, monkeypatch)
    machine = Machine(monkeypatch, benchmarks, 40)
    found = benchmarks.throughput.throughput(machine.paint, lambda: machine.peak, 64, lambda: 10**9)
    assert machine.batches == [1, 1, 2, 2, 4, 4, 8, 8]  # 16 does not fit; the first of each warms up
    assert found == {"batch": 8, "pictures a second": pytest.approx(8 / 1.8), "peak": 34}


def test_a_batch_that_would_fill_the_memory_is_not_tried(benchmarks, monkeypatch):
    serve_errors(benchmarks, monkeypatch)
    machine = Machine(monkeypatch, benchmarks, 10**9)
    found = benchmarks.throughput.throughput(machine.paint, lambda: machine.peak, 64, lambda: 40 - machine.peak)
    assert found["batch"] == 8  # it holds 34 bytes and 6 are free; 16 pictures would take 24 more


def test_other_errors_and_a_picture_that_does_not_fit_are_told(benchmarks, monkeypatch):
    serve_errors(benchmarks, monkeypatch)
    with pytest.raises(RuntimeError, match="Not even one picture fits into the memory"):
        benchmarks.throughput.throughput(Machine(monkeypatch, benchmarks, 1).paint, lambda: 0, 4, lambda: 10**9)
    machine = Machine(monkeypatch, benchmarks, 1, "a shape is wrong")
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        benchmarks.throughput.throughput(machine.paint, lambda: 0, 4, lambda: 10**9)


def test_latency_is_the_median_and_the_90th_percentile(benchmarks, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmarks.throughput.time, "perf_counter", lambda: now[0])

    def paint(seed: int) -> None:
        now[0] += 9.0 if seed == 10 else 1.0 + seed / 10

    assert benchmarks.throughput.latency(paint, 11) == (pytest.approx(1.5), pytest.approx(1.9))


def test_the_papers_figures_stand_beside_ours_and_nowhere_else(benchmarks):
    found = {"device": "card", "median": 1.25, "slow": 1.5, "pictures a second": 0.9, "batch": 8, "peak": 2**33}
    row = benchmarks.throughput.table_row("sana", "1.6B", 1024, 20, found)
    assert row == "| sana 1.6B | 1024 | 20 | card | 1.25 | 1.5 | 0.9 | 8 | 8.00 | 1.2 | 1.0 |"
    assert cells(benchmarks.throughput.table_row("sana", "tiny", 64, 20, found))[-2:] == ["-", "-"]
    assert all("paper" in name for name in benchmarks.throughput.COLUMNS[-2:])


def test_a_full_disk_is_told_in_one_sentence_before_anything_is_written(benchmarks, monkeypatch, tmp_path):
    free = SimpleNamespace(free=2.5e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(
        benchmarks.picture,
        "in_a_process",
        lambda *_, **__: benchmarks.picture.written(tmp_path, ["sprint"], "0.6B", False),
    )
    with pytest.raises(
        SystemExit, match=r"The random weights take 7\.\d GB and .* has 2\.5 GB free: set TMPDIR to .*\."
    ):
        benchmarks.picture.compare(["sprint"], options())
    assert not list(tmp_path.iterdir())


def test_random_files_hold_every_tensor_and_keep_states_in_range(benchmarks, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.random_files, "BLOCK", 1000)  # values repeat within a tensor
    shapes = {"linear.weight": torch.empty(60, 50, device="meta"), "linear.bias": torch.empty(60, device="meta")}
    benchmarks.random_files.write_bfloat16(tmp_path / "new" / "weights.safetensors", shapes)
    tensors = load_file(tmp_path / "new" / "weights.safetensors")
    assert {key: tensor.shape for key, tensor in tensors.items()} == {key: t.shape for key, t in shapes.items()}
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert float(tensors["linear.weight"].float().std()) == pytest.approx(50**-0.5, rel=0.1)
    assert (tmp_path / "new" / "weights.safetensors").stat().st_size > benchmarks.random_files.size_of(shapes)


def test_released_files_are_the_released_size(benchmarks):
    parts = benchmarks.random_pipelines.shared_parts()
    parts |= {family: benchmarks.random_pipelines.own_part(family, "0.6B") for family in ("sana", "sprint")}
    sizes = {name: benchmarks.random_files.size_of(part.state_dict()) / 1e9 for name, part in parts.items()}
    assert sizes == pytest.approx({"text_encoder": 5.23, "vae": 0.625, "sana": 1.18, "sprint": 1.19}, rel=0.02)


def test_both_sides_make_the_same_pictures_from_the_same_files(benchmarks, tmp_path):
    """The real server and diffusers' pipeline, with a tiny Sprint."""
    benchmarks.random_pipelines.write_pipelines(tmp_path, ["sprint"], "0.6B", tiny=True)
    prompts = json.loads((tmp_path / benchmarks.random_pipelines.PROMPTS).read_text())
    assert len(set(prompts)) == 2
    found = {
        name: benchmarks.picture.measure("sprint", name, 64, options(folder=str(tmp_path)))
        for name in ("ours", "diffusers")
    }
    for pictures in found.values():
        assert list(pictures) == list(benchmarks.picture.PICTURES)
        for picture in pictures.values():
            assert picture["calls"]["steps"] == 2 and picture["calls"]["decode"] == 1
            assert picture["computed in"] == "float32 / float32" and picture["around"] > 0
    assert "text" in found["ours"]["another prompt"]["calls"] and "text" not in found["ours"]["another seed"]["calls"]
    assert found["diffusers"]["another seed"]["calls"]["text"] == 1
    assert not list(tmp_path.glob("tmp*"))  # of either side


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["sana", "sprint"])
def test_the_picture_program_prints_its_table(benchmarks, family):
    command = [sys.executable, "-m", "benchmarks.picture", "--tiny", "--families", family, "--sizes", "64"]
    out = subprocess.run([*command, "--pairs", "1"], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    heading, _, *rows = out.splitlines()
    assert cells(heading) == list(benchmarks.picture.COLUMNS) and len(rows) == 4
    assert all(float(share) > 0 for share in column(rows, benchmarks.picture, "time / ours"))
