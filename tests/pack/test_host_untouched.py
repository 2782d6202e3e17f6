"""Loading and using the pack leaves the host as it was: the same functions and pictures, nothing said or opened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest
from sana_native.tests.support import tiny

PACK = Path(__file__).resolve().parents[2]
HOST = Path(folder_paths.__file__).resolve().parent
NODES = ["BlendPrompts", "CFGZeroStar", "ClipScore", "ControlNetLoader", "ControlNetSave", "DCAEDecode", "DCAEEncode",
         "DCAELoader", "EmptyLatent", "EncodeTrainingSet", "FitBack", "FlowDPMSampler", "FlowScheduler",
         "GemmaEncode", "GemmaLoader", "Grid", "InpaintComposite", "InpaintCrop", "InpaintLatent", "InpaintStitch",
         "LoraLoader", "LuminaOptions", "ModelLoader", "NAG", "PAG", "PictureDifference", "PromptBatch",
         "PromptsFromFile", "QuantizeSave", "SCMSampler", "SCMScheduler", "Sampler", "SaveNamed", "Scribble", "Seeds",
         "Size", "TrainLora", "TrainModel", "TrainingSet", "UpscaleLatent"]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """Findings of a fresh process that loads the pack by the host's own loader and draws with it."""
    path = tmp_path_factory.mktemp("probe")
    tiny.save_pipeline(path / "models" / "sana")
    tiny.save_pipeline(path / "models" / "sprint", sprint=True)
    command = [
        sys.executable,
        PACK / "tests" / "support" / "host_probe.py",
        HOST,
        PACK,
        path / "models",
        path / "report.json",
    ]
    done = subprocess.run(
        command, cwd=path, capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((path / "report.json").read_text(encoding="utf-8"))


def test_the_host_loads_the_pack_and_gains_the_packs_nodes_alone(report):
    assert report["loaded"] and report["nodes_added"] == [f"SanaNative{name}" for name in NODES]
    assert not report["nodes_changed"]


def test_the_pack_draws_with_its_nodes_in_that_process(report):
    assert report["shape"] == [1, 64, 64, 3]


def test_no_function_class_or_method_of_the_host_or_torch_is_replaced(report):
    assert report["watched"] > 10_000 and not report["changed"]


def test_nothing_is_added_to_the_hosts_modules_but_the_samplers(report):
    assert not report["added"]
    assert [name.rpartition(".")[2] for name in report["registered"]] == [
        "sample_sana_flow_dpm",
        "sample_sana_midpoint",
        "sample_sana_pixart_dmd",
        "sample_sana_scm",
    ]


def test_the_hosts_dropdowns_keep_their_order_and_grow_at_the_end(report):
    assert report["lists_extended"] == [True, True]


def test_a_stock_model_draws_bit_equal_latents_before_and_after(report):
    assert report["latents_equal"] == [True, True, True]
    assert report["latents_differ_among_samplers"] and report["latent_std"] > 0.1


def test_importing_the_pack_says_nothing(report):
    assert report["said"] == ""


def test_importing_the_pack_is_quick_and_brings_in_no_library_the_host_lacks(report):
    assert report["seconds"] < 3.0  # 0.35 s measured on two busy cores
    # The host's own package of the executor is loaded before any pack, but for this probe.
    assert set(report["modules"]) <= {"sentencepiece", "comfy_execution"}
