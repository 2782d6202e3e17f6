"""The report of a GPU: what a row holds, that a failure costs one row only, the budget, and the counting, by fakes."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sana_native.models.dc_ae.inplace import CudaAutoencoderDC
from sana_native.models.sana.cuda import CudaSana
from sana_native.tests.support.fake_cuda_graph import record_on_the_cpu

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("gpu", "gpu_clock", "gpu_parts", "gpu_pictures", "gpu_report", "gpu_stages", "networks")


@pytest.fixture(scope="module")
def benchmarks():
    """Their modules; the package is found from the root, which must not stay on sys.path."""
    sys.path.append(str(ROOT))
    try:
        return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in MODULES})
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def report(benchmarks, tmp_path):
    return benchmarks.gpu_report.Report(tmp_path / "gpu.json", "cpu", 100.0)


def written(report) -> dict:
    return json.loads(report.path.read_text())


# The report


def test_json_holds_every_field_after_each_row(benchmarks, report):
    report.measure("decode 64", "ours", lambda: None)
    assert set(written(report)["rows"][0]) == set(benchmarks.gpu_report.FIELDS)
    report.measure("decode 64", "host", lambda: None, note="twice")
    assert [(row["variant"], row["note"]) for row in written(report)["rows"]] == [("ours", ""), ("host", "twice")]
    assert written(report).keys() >= {"card", "torch", "seconds", "operations_per_second", "skipped"}


def test_an_error_is_written_into_its_row_and_the_next_is_measured(report):
    def fails():
        raise RuntimeError("CUDA error:\nno kernel image")

    report.measure("decode 64", "ours", fails)
    report.measure("decode 64", "host", lambda: None)
    first, second = written(report)["rows"]
    assert first["failed"] == "RuntimeError: CUDA error: no kernel image" and first["ms"] is None
    assert second["failed"] is None and second["ms"] > 0
    assert "| decode 64 | ours | RuntimeError: CUDA error: no kernel image |" in report.table()


def test_a_machine_that_lets_nobody_trace_kernels_gives_the_times(benchmarks, report, monkeypatch):
    def refused(_run, _device):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(benchmarks.gpu_report, "trace_kernels", refused)
    row = report.measure("decode 64", "ours", lambda: None, note="alone")
    assert row["failed"] is None and row["ms"] > 0 and row["launches"] is None
    assert row["note"] == "alone kernels not traced: RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"


def test_a_failed_job_does_not_end_the_run(benchmarks, report):
    def fails(_report):
        raise ValueError("no such weights")

    jobs = [benchmarks.gpu.Job("text", fails), benchmarks.gpu.Job("parts", lambda r: r.measure("part", "ours", list))]
    benchmarks.gpu.run(report, jobs)
    assert [(row["stage"], row["failed"]) for row in report.rows] == [
        ("text", "ValueError: no such weights"),
        ("part", None),
    ]
    assert "ValueError" in report.rows[0]["note"]


def test_what_the_budget_does_not_reach_is_listed(benchmarks, tmp_path):
    report = benchmarks.gpu_report.Report(tmp_path / "gpu.json", "cpu", 20.0)
    begun = []
    benchmarks.gpu.run(
        report, [benchmarks.gpu.Job("long", begun.append, 30), benchmarks.gpu.Job("short", begun.append)]
    )
    assert begun == [report] and written(report)["skipped"] == [
        {"stage": "long", "variant": "-", "why": "it takes 30 s and 20 s were left"}
    ]
    report.budget = 10.0
    report.measure("decode 64", "ours", lambda: None)
    assert not report.rows and written(report)["skipped"][-1]["why"] == "the time was up"


def test_only_the_stages_asked_for_are_measured(benchmarks, tmp_path):
    report = benchmarks.gpu_report.Report(tmp_path / "gpu.json", "cpu", 100.0, only=["decode", "text"])
    for stage in ("decode 64", "step 0.6B x1 64", "text 30 tokens"):
        report.measure(stage, "ours", lambda: None)
    assert [row["stage"] for row in report.rows] == ["decode 64", "text 30 tokens"]


def test_the_share_of_the_roofline_is_that_of_the_slower_ceiling(benchmarks, report):
    work = benchmarks.gpu_report.Work(operations=2e12, bytes=1e9)
    assert report.share_of_roofline(work, 4.0) is None
    report.ceilings = {"operations": 1e15, "bytes": 1e12}
    assert report.share_of_roofline(work, 4.0) == pytest.approx(0.5)  # 2 ms of products, 1 ms of copies
    report.ceilings = {"operations": 1e16, "bytes": 1e12}
    assert report.share_of_roofline(work, 4.0) == pytest.approx(0.25)


def test_a_fused_kernel_saves_what_the_fastest_other_form_takes_longer(benchmarks, report):
    empty = dict.fromkeys(benchmarks.gpu_report.FIELDS) | {"syncs": {}}
    saving = {"stage": "step 1.6B x2 1024", "calls": 20}
    for stage, variant, ms, of in (
        ("step 1.6B x2 1024", "ours", 10.0, None),
        ("part attention", "ours", 0.3, None),
        ("part attention", "bfloat16 products", 0.2, None),
        ("part attention", "Triton", 0.1, saving),
    ):
        report.add(empty | {"stage": stage, "variant": variant, "ms": ms, "saving": of})
    assert report.savings()[1:] == ["| part attention | Triton | step 1.6B x2 1024 | 20.0% |"]
    assert "| part attention | bfloat16 products | 0.2 |" in report.table()


def test_the_files_have_the_cards_name(benchmarks):
    assert benchmarks.gpu_report.file_name("NVIDIA H100 80GB HBM3", False) == "gpu-nvidia-h100-80gb-hbm3"
    assert benchmarks.gpu_report.file_name("CPU", True) == "gpu-cpu-tiny"


def test_some_stages_do_not_replace_the_report_of_all(benchmarks):
    assert benchmarks.gpu_report.file_name("CPU", True, ["decode 64", "Text"]) == "gpu-cpu-tiny-only-decode-64-text"


def test_a_machine_without_a_card_is_told_so(benchmarks, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(benchmarks.gpu, "stop_politely", lambda: None)
    with pytest.raises(SystemExit, match=r"No CUDA device was found: .*torch \d.* give --tiny to try it on a CPU"):
        benchmarks.gpu.main()


def test_a_torch_without_cuda_is_named(benchmarks, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(benchmarks.gpu, "stop_politely", lambda: None)
    with pytest.raises(SystemExit, match="a torch built for CUDA, which this one is not"):
        benchmarks.gpu.main()


@pytest.fixture
def tiny_run(benchmarks, monkeypatch):
    """Runs the command on a CPU with these arguments, and without jobs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmarks.gpu, "stop_politely", lambda: None)
    monkeypatch.setattr(benchmarks.gpu, "quiet", lambda: None)
    monkeypatch.setattr(benchmarks.gpu, "jobs", lambda _: [])
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", *map(str, arguments)])
        benchmarks.gpu.main()

    return run


def test_a_stage_that_does_not_exist_is_named(tiny_run, tmp_path):
    with pytest.raises(SystemExit, match="No stage's name holds decod3 or txt: .* such as decode, step, text"):
        tiny_run("--only", "decod3", "txt", "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"The folder .*file.below cannot be made \(Not a directory\): give another"):
        tiny_run("--out", tmp_path / "file" / "below")


# The clock


def test_launches_and_times_are_summed_by_kernel(benchmarks):
    found = benchmarks.gpu_clock.sum_kernels([("gemm", 30.0), ("copy", 50.0), ("gemm", 40.0)])
    assert found["launches"] == 3 and found["busy_ms"] == pytest.approx(0.12)
    assert found["top_kernels"] == [
        {"name": "gemm", "count": 2, "ms": pytest.approx(0.07)},
        {"name": "copy", "count": 1, "ms": pytest.approx(0.05)},
    ]


def test_lines_that_wait_for_the_device_are_counted(benchmarks, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("the debug mode does not yet detect all synchronizing operations", stacklevel=1)

    (site,) = benchmarks.gpu_clock.sync_sites(run, "cuda").items()
    assert site[0].startswith("benchmarks/test_gpu.py:") and site[1] == 3
    assert modes == ["warn", "default"]
    with pytest.raises(ZeroDivisionError):
        benchmarks.gpu_clock.sync_sites(lambda: 1 / 0, "cuda")
    assert modes == ["warn", "default"] * 2


def test_a_device_is_timed_by_its_own_clock(benchmarks, monkeypatch):
    ticks = iter(range(1000))

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(ticks) ** 2

        def elapsed_time(self, end):
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    calls = []
    found = benchmarks.gpu_clock.time_runs(lambda: calls.append(1), "cuda", seconds=60)
    assert found["runs"] == benchmarks.gpu_clock.MOST and len(calls) == found["runs"] + benchmarks.gpu_clock.WARM_UPS
    assert found["ms"] == 59.0 and found["best_ms"] == 1.0  # 1, 5, 9, ... 117
    assert 0 <= found["host_ms"] < 1000


def test_long_calls_are_timed_less_often(benchmarks):
    wants_more = benchmarks.gpu_clock.wants_more
    assert wants_more(1, 99.0, 1.5) and not wants_more(2, 99.0, 1.5)  # two of them in any case
    assert wants_more(4, 7.0, 1.5) and not wants_more(5, 7.0, 1.5)
    assert wants_more(29, 1.0, 1.5) and not wants_more(30, 1.0, 1.5)


# The stages


@pytest.mark.parametrize("stage", ["decode", "step"])
def test_the_plain_network_is_the_devices_without_its_fast_paths(benchmarks, stage):
    build, run = benchmarks.networks.build, benchmarks.networks.call
    ours, plain = (build(stage, name, torch.float32, "cpu", "tiny") for name in ("ours", "plain"))
    assert type(ours) is not type(plain) and isinstance(ours, type(plain))
    plain.load_state_dict(ours.state_dict())
    outs = []
    for network in (ours, plain):
        torch.manual_seed(0)
        with torch.inference_mode():
            outs.append(run(stage, "ours", network, 64, torch.float32)())
    assert benchmarks.gpu_stages.relative_error(outs[0], outs[1]) < 1e-5


@pytest.mark.parametrize("stage", ["decode", "step"])
def test_the_option_of_the_loaders_has_a_row_that_a_cpu_skips(benchmarks, report, stage):
    variants = ("ours", "ours, cuda_graphs")
    if stage == "decode":
        benchmarks.gpu_stages.decode(report, 64, variants, "tiny")
    else:
        benchmarks.gpu_stages.step(report, "tiny", 2, 64, variants)
    assert [row["variant"] for row in report.rows] == ["ours"]
    assert [(one["variant"], one["why"]) for one in report.skipped] == [
        (variants[1], "there are no CUDA graphs on a CPU")
    ]


@pytest.mark.parametrize(("stage", "half"), [("decode", "decoder"), ("step", None)])
def test_the_row_of_the_option_is_measured_on_what_it_captured(benchmarks, report, monkeypatch, stage, half):
    """On a stand-in of a card."""
    stages, networks = benchmarks.gpu_stages, benchmarks.networks
    record_on_the_cpu(monkeypatch)
    monkeypatch.setattr("sana_native.models.sana.loader.choose_network", lambda _: (CudaSana, 1.0))
    monkeypatch.setattr("sana_native.models.dc_ae.inplace.choose_network", lambda _: CudaAutoencoderDC)
    monkeypatch.setattr(report, "device", "cuda")
    monkeypatch.setattr(report, "timed", lambda _: {"ms": 1.0})
    network = networks.build(stage, "ours", torch.float32, "cpu", "tiny")
    run = networks.call(stage, "ours", network, 64, torch.float32)
    module = getattr(network, half) if half else network
    stages.measure_form(report, stage, "ours, cuda_graphs", network, module, run, None)
    (row,) = report.rows
    assert row["failed"] is None and row["error"] == 0.0 and row["error_to"] == "eager"
    assert row["note"].endswith("MiB held") and module.graphs.recorder.captures == 1
    handle = module.register_forward_hook(lambda *_: None)
    stages.measure_form(report, stage, "ours, cuda_graphs", network, module, run, None)
    handle.remove()
    assert report.rows[-1]["failed"].startswith("RuntimeError: nothing was captured: another node has hooked")


def test_the_reference_of_a_step_is_what_diffusers_computes(benchmarks):
    state, inputs, wanted = benchmarks.gpu_stages.step_reference("tiny", True, 1, 64)
    network = benchmarks.networks.build(
        "step", "diffusers", torch.float32, "cpu", "tiny", 2, **benchmarks.gpu_stages.SPRINT
    )
    network.load_state_dict(state)
    with torch.inference_mode():
        found = benchmarks.gpu_stages.step_call("diffusers", network, inputs)()
    assert benchmarks.gpu_stages.relative_error(found, wanted) < 1e-5


def test_equal_images_have_the_highest_psnr(benchmarks):
    image = torch.rand(1, 8, 8, 3)
    assert benchmarks.gpu_pictures.psnr(image, image) == benchmarks.gpu_pictures.MOST_PSNR
    assert benchmarks.gpu_pictures.psnr(image + 0.1, image) == pytest.approx(20, abs=1e-3)


def test_the_most_valuable_stages_come_first_and_compiling_last(benchmarks):
    names = [job.name for job in benchmarks.gpu.jobs(tiny=False)]
    assert names[:3] == ["ceilings", "decode", "step with cfg"] and len(set(names)) == len(names)
    assert [name for name in names if "compiled" in name] == names[-2:]


@pytest.mark.heavy
def test_every_stage_runs_with_small_networks(benchmarks, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--budget", "3000", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (path,) = tmp_path.glob("gpu-*-tiny.json")
    found = json.loads(path.read_text())
    assert not [row for row in found["rows"] if row["failed"]]
    assert all(set(row) == set(benchmarks.gpu_report.FIELDS) and row["ms"] > 0 for row in found["rows"])
    rows = {(row["stage"], row["variant"]): row for row in found["rows"]}
    for stage in ("decode 64", "step tiny x2 64", "step tiny Sprint x1 64"):
        for variant in ("ours", "diffusers"):
            assert 0 < rows[stage, variant]["error"] < 0.02 and rows[stage, variant]["operations"] > 0
    assert {
        "image demo SANA 256",
        "image sprint tiny 64, 2 steps",
        "image sana tiny 64, 20 steps",
        "text 30 tokens",
    } <= {stage for stage, _ in rows}
    close = re.match(r"PSNR ([\d.]+) dB", rows["image demo SANA 256", "ours in float32"]["note"])
    assert float(close.group(1)) > 60
    assert {stage for stage, variant in rows if variant == "Triton"} == {
        "part SiLU, depthwise and gate",
        "part linear attention",
        "part norm, bias and residual",
        "part convolution, bias and SiLU",
    }
    assert path.with_suffix(".md").read_text().count("\n| ") > len(rows)
