"""Objects by the host's RT-DETR v4 with random weights: those of the host's own node, through the same file."""

import comfy.ops
import numpy as np
import pytest
import torch
from comfy.ldm.rt_detr.rtdetr_v4 import COCO_CLASSES, RTv4
from comfy_extras.nodes_rtdetr import RTDETR_detect
from safetensors.torch import save_file
from sana_native.evaluation.detector import LEAST_CONFIDENCE, build_detector, detect
from sana_native.tools.evaluation_files import load_detector, require_detector

WIDTH = 32  # of the encoder; the rest of the network has one size


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random weights whose confidences are spread, so that each detector has its own objects."""
    torch.manual_seed(6)
    network = RTv4(enc_h=WIDTH, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    for name, value in network.state_dict().items():
        if name.endswith(".weight") and value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif name.endswith(".weight") or name.endswith("running_var"):
            value.fill_(1.0)
        elif name.endswith((".bias", "running_mean")):
            value.normal_(0, 0.1)
    return {name: value.clone() for name, value in network.state_dict().items()}  # two are the same tensor


@pytest.fixture(scope="module")
def detector(state, tmp_path_factory):
    file = tmp_path_factory.mktemp("detector") / "rt_detr.safetensors"
    save_file(state, file)
    return load_detector(str(file))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((96, 160), (700, 500))]


def test_objects_are_those_of_the_hosts_node(detector, pictures):
    for picture in pictures:
        rows = detect(detector, picture)
        with torch.inference_mode():
            image = torch.from_numpy(picture)[None].float() / 255
            expected = RTDETR_detect.execute(detector, image, LEAST_CONFIDENCE, "all", 300)[0][0]
        assert len(rows) == len(expected) > 20 and len({one["label"] for one in expected}) > 1
        assert [COCO_CLASSES[int(row[0])] for row in rows] == [one["label"] for one in expected]
        boxes = [[one["x"], one["y"], one["x"] + one["width"], one["y"] + one["height"]] for one in expected]
        assert np.allclose(rows[:, 1], [one["score"] for one in expected], atol=1e-6)
        assert np.allclose(rows[:, 2:], boxes, atol=1e-3)
        assert np.all(np.diff(rows[:, 1]) <= 0)


def test_a_file_of_float16_finds_the_same(state, detector, pictures):
    """The released file is one. Its weights are rounded, so that objects of near confidence change places."""
    narrow = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    expected, found = (detect(one, pictures[0]) for one in (detector, build_detector(narrow)))
    assert np.isfinite(found).all() and np.abs(np.sort(found[:20, 1]) - np.sort(expected[:20, 1])).max() < 0.02


def test_a_file_without_some_tensors_is_refused_with_the_first(state):
    part = {key: value for key, value in state.items() if "dec_score_head.5" not in key}
    with pytest.raises(ValueError, match="2 tensors are missing, such as decoder.dec_score_head.5.weight"):
        build_detector(part)


def test_another_file_is_refused_with_where_to_find_the_right_one(tmp_path):
    save_file({"blocks.0.weight": torch.zeros(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"other.safetensors cannot be used: it is no RT-DETR v4; download https.*x-hg"
    ):
        load_detector(str(tmp_path / "other.safetensors"))
    with pytest.raises(FileNotFoundError, match="none.safetensors is not there: geneval needs the detector RT-DETR v4"):
        require_detector(str(tmp_path / "none.safetensors"))


def test_a_damaged_file_is_named(state, tmp_path):
    file = tmp_path / "half.safetensors"
    save_file(state, file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="half.safetensors"):
        load_detector(str(file))
