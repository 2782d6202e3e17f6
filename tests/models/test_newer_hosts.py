"""What newer versions of ComfyUI pass and expect where they differ from 0.30.0, imitated on 0.30.0."""

import types

import comfy.model_patcher
import comfy.utils
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter
from sana_native.models.dc_ae.loader import load_dc_ae
from sana_native.models.files.quantized import FORMATS
from sana_native.models.lora.weight_adapter import fits, prepare, with_alpha
from sana_native.models.runtime.device import disk_options
from sana_native.models.sana.loader import load_sana
from sana_native.tests.support import quantized
from sana_native.tests.support import workbench as bench


@pytest.fixture(autouse=True)
def inference_mode():
    """As the host's executor has it."""
    with torch.inference_mode():
        yield


# comfy/sd.py: VAE.encode and encode_tiled take not_video


@pytest.mark.parametrize("not_video", [None, True, False])
def test_an_image_is_encoded_whatever_is_said_of_videos(not_video):
    vae = load_dc_ae(str(bench.folder() / "sana"))
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(vae.encode(image, not_video=not_video), vae.encode(image))
    tiled = vae.encode_tiled(image, tile_x=64, tile_y=64, overlap=0, not_video=not_video)
    assert torch.equal(tiled, vae.encode_tiled(image, tile_x=64, tile_y=64, overlap=0))


# comfy/storage.py and the patchers' fast_disk


class NewerPatcher(comfy.model_patcher.ModelPatcher):
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False, fast_disk=None):
        super().__init__(model, load_device, offload_device, size, weight_inplace_update)
        self.fast_disk = fast_disk


@pytest.fixture(params=[True, False])
def fast_disk(request, monkeypatch):
    """A host that marks the storage of what it reads, and asks the marks for the disk; copies have none."""
    read = comfy.utils.load_torch_file

    def load_torch_file(path, *args, **kwargs):
        answer = read(path, *args, **kwargs)
        for tensor in (answer[0] if isinstance(answer, tuple) else answer).values():
            tensor.untyped_storage()._comfy_source_path = path
        return answer

    def state_dict_fast_disk(state_dict):
        storages = [tensor.untyped_storage() for tensor in state_dict.values()]
        return request.param and any(hasattr(storage, "_comfy_source_path") for storage in storages)

    monkeypatch.setattr(comfy.utils, "load_torch_file", load_torch_file)
    storage = types.SimpleNamespace(state_dict_fast_disk=state_dict_fast_disk)
    monkeypatch.setattr(comfy, "storage", storage, raising=False)
    for name in ("ModelPatcher", "CoreModelPatcher"):
        monkeypatch.setattr(comfy.model_patcher, name, NewerPatcher)
    return request.param


def test_patchers_are_told_whether_the_file_lies_on_a_fast_disk(fast_disk):
    folder = str(bench.folder() / "sana")
    assert load_sana(folder).fast_disk is fast_disk
    assert load_sana(folder, {"dtype": torch.bfloat16}).fast_disk is fast_disk  # tensors are copied there
    assert load_dc_ae(folder).patcher.fast_disk is fast_disk


def test_patchers_of_this_host_are_told_nothing_of_disks():
    assert disk_options(comfy.model_patcher.ModelPatcher, {}) == {}


# comfy/quant_ops.py: formats with other side tensors


@pytest.mark.parametrize("kind", ["asym_w4a8_int8", "awq_w4a16"])
def test_a_format_that_only_the_host_knows_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(QUANT_ALGOS, kind, {"storage_t": torch.int8, "comfy_tensor_layout": "Layout"})
    weights = quantized.weights("sana")
    layer = "transformer_blocks.0.attn1.to_q"
    rows, columns = weights[f"{layer}.weight"].shape
    weights |= {
        f"{layer}.weight": torch.zeros(rows, columns // 2, dtype=torch.int8),
        f"{layer}.weight_codebook": torch.zeros(16),
        f"{layer}.weight_s_channel": torch.ones(rows),
        f"{layer}.comfy_quant": quantized.mark(kind),
    }
    path = quantized.write_model(tmp_path, weights)
    with pytest.raises(ValueError, match=rf"quantized as {kind} \({layer}\), which is not supported: use a file"):
        load_sana(path)


def test_formats_that_are_read_are_formats_of_the_host():
    assert set(FORMATS) - {"mxfp8"} <= set(QUANT_ALGOS)  # that one asks for torch 2.10


# comfy/weight_adapter/lokr.py: what the host notes on an adapter, and rows it cuts out


def noted(adapter):
    adapter.key, adapter.row_offset = "lora_unet_blocks_0_attn_qkv", 64
    return adapter


def lokr(*factors, dora=None, alpha=2.0):
    w1, w2, w2_a, w2_b, t2 = factors
    return LoKrAdapter(set(), (w1, w2, alpha, None, None, w2_a, w2_b, t2, dora))


ADAPTERS = {
    "Tucker": lambda: lokr(torch.ones(2, 2), None, torch.ones(2, 8), torch.ones(2, 4), torch.ones(2, 2, 3, 3)),
    "DoRA": lambda: lokr(torch.ones(2, 2), torch.ones(8, 4), None, None, None, dora=torch.ones(16, 1)),
    "LoHa": lambda: LoHaAdapter(set(), (torch.ones(4, 2), torch.ones(2, 4), 1.0, *[torch.ones(4, 2)] * 2, *[None] * 3)),
    "LoRA DoRA": lambda: LoRAAdapter(set(), (torch.ones(4, 2), torch.ones(2, 4), 1.0, None, torch.ones(4, 1), None)),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_the_host_notes_on_an_adapter_survives_its_rebuilding(kind):
    adapter = noted(ADAPTERS[kind]())
    for rebuilt in (prepare(adapter), with_alpha(adapter, 3.0)):
        assert rebuilt is not adapter
        assert (rebuilt.key, rebuilt.row_offset) == ("lora_unet_blocks_0_attn_qkv", 64)


def test_exact_dora_hands_the_notes_to_the_hosts_adapter(monkeypatch):
    seen = []
    plain = LoKrAdapter.calculate_weight
    monkeypatch.setattr(
        LoKrAdapter, "calculate_weight", lambda self, *args: seen.append(self.row_offset) or plain(self, *args)
    )
    prepare(noted(ADAPTERS["DoRA"]())).calculate_weight(torch.ones(16, 8), "key", 1.0, 1.0, None, lambda change: change)
    assert seen == [64]


def test_a_lokr_of_one_row_is_refused_because_newer_hosts_reshape_none():
    weight = torch.zeros(16, 1, 3, 3)
    assert not fits(lokr(torch.ones(1, 16), torch.ones(1, 9), None, None, None), weight)
    assert fits(lokr(torch.ones(4, 1), torch.ones(4, 9), None, None, None), weight)


@pytest.mark.parametrize(
    ("rows", "offset", "expected"), [(48, 32, True), (48, 0, True), (48, 33, False), (48, None, False)]
)
def test_rows_of_a_fused_lokr_are_accepted_where_the_host_says_which(rows, offset, expected):
    adapter = lokr(torch.ones(2, 2), torch.ones(rows // 2, 8), None, None, None)
    adapter.row_offset = offset
    assert fits(adapter, torch.zeros(16, 16)) is expected
