"""What a ControlNet's file tells and what it is refused for, its formats, and the file that is saved of it."""

import dataclasses
import logging

import comfy.controlnet
import diffusers
import pytest
import safetensors
import torch
from sana_native.models.controlnet.config import DIFFUSERS, NVLABS, SANA, SPRINT
from sana_native.models.controlnet.convert import convert_controlnet, has_nvidia_keys, to_nvidia_layout
from sana_native.models.controlnet.detection import detect_controlnet, is_controlnet
from sana_native.models.controlnet.saving import save_controlnet
from sana_native.models.registry import load_model
from sana_native.models.sana.cpu import CpuSanaBlock
from sana_native.models.sana.detection import detect_sana
from sana_native.models.sana.loader import convert_sana, load_sana
from sana_native.tests.models.controlnet.test_parity import predict, seed_9
from sana_native.tests.support import controlnets, layouts, tiny

CONFIG = {"num_cross_attention_heads": 4}
# Width, heads, and parameters with and without embeddings of its own, of the two released sizes.
RELEASED = {"1.6B": (2240, 20, 631_576_960, 585_603_200), "0.6B": (1152, 16, 168_765_696, 155_149_056)}


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> str:
    base = tiny.transformer(num_layers=4)
    return controlnets.save_merged(tmp_path_factory.mktemp("merged"), base, controlnets.reference())


def released(size: str) -> dict[str, torch.Tensor]:
    """Tensors of diffusers' class in a released size."""
    width, heads, _, _ = RELEASED[size]
    with torch.device("meta"):
        return diffusers.SanaControlNetModel(
            num_attention_heads=width // 32,
            num_cross_attention_heads=heads,
            cross_attention_head_dim=width // heads,
            cross_attention_dim=width,
            caption_channels=2304,
            num_layers=7,
        ).state_dict()


@pytest.mark.parametrize("size", RELEASED)
@pytest.mark.parametrize("layout", [NVLABS, DIFFUSERS])
def test_a_released_size_is_read_in_both_layouts(size, layout):
    width, heads, with_embeddings, without = RELEASED[size]
    file = released(size)
    assert len(file) == 162
    if layout == NVLABS:
        file = controlnets.nvidia_branch(file)
        assert len(file) == 121
    state_dict = convert_controlnet(file)
    assert is_controlnet(state_dict)
    config = detect_controlnet(state_dict, "x", {}, "x", has_nvidia_keys(file))
    assert (config.wiring, config.own_embeddings, config.blocks.depth) == (layout, layout == DIFFUSERS, 7)
    assert (config.blocks.hidden_size, config.blocks.num_cross_attention_heads) == (width, heads)
    assert sum(each.numel() for each in state_dict.values()) == (without if layout == NVLABS else with_embeddings)


def test_the_branch_is_back_in_nvidias_layout_as_it_was():
    file = controlnets.nvidia_branch(controlnets.reference().state_dict())
    back = to_nvidia_layout(convert_controlnet(file))
    assert back.keys() == file.keys()
    assert all(torch.equal(back[key], file[key]) for key in file)


def test_the_base_of_the_merged_file_is_all_that_the_model_loader_takes(merged):
    base = load_sana(merged).model.diffusion_model
    assert len(base.transformer_blocks) == 4
    loaded = layouts.nvidia_sana(tiny.transformer(num_layers=4).state_dict())
    assert torch.equal(base.patch_embed.proj.weight, loaded["x_embedder.proj.weight"])


@pytest.mark.parametrize(
    ("name", "trained_in", "shift", "rounds"),
    [
        ("Sana_600M_1024px_ControlNet_HED.pth", "float16", 4.0, False),
        ("Sana_1600M_1024px_BF16_ControlNet_HED.pth", "bfloat16", 3.0, True),
    ],
)
def test_the_released_files_have_their_own_shift_and_training(name, trained_in, shift, rounds):
    """NVIDIA's class casts the time to the format of the weights, so bfloat16 rounds it, and float16 does not."""
    size = "1.6B" if "1600M" in name else "0.6B"
    branch = controlnets.nvidia_branch(released(size))
    control = detect_controlnet(convert_controlnet(branch), name, {}, name, True)
    assert (control.blocks.trained_in, control.rounds_time) == (trained_in, rounds)
    assert control.blocks.clamp_attention is (True if trained_in == "float16" else None)
    width, heads, _, _ = RELEASED[size]
    with torch.device("meta"):
        base = diffusers.SanaTransformer2DModel(
            num_attention_heads=width // 32,
            num_cross_attention_heads=heads,
            cross_attention_head_dim=width // heads,
            cross_attention_dim=width,
            caption_channels=2304,
            num_layers=28 if size == "0.6B" else 20,
        ).state_dict()
    state_dict = convert_sana(layouts.nvidia_sana(base) | branch)
    positions = state_dict.pop("pos_embed").shape[1]
    assert detect_sana(state_dict, name, {}, positions).shift == shift


def test_a_rounded_time_is_that_of_bfloat16(merged):
    base, control = load_sana(merged).model.diffusion_model, load_model("controlnet", merged)
    given = seed_9()
    network = control.control_model
    outs = {}
    for rounds in (False, True):
        network.config = dataclasses.replace(network.config, rounds_time=rounds)
        for time in (982.0, 984.0):
            outs[rounds, time] = predict(base, control, given | {"timesteps": torch.tensor([time])}, 1.0)
    with torch.inference_mode():
        network.config = dataclasses.replace(network.config, rounds_time=True)
        times = [given | {"timesteps": torch.tensor([time])} for time in (982.0, 984.0)]
        rounded = [network(**one, base=base)["input"][1] for one in times]
        network.config = dataclasses.replace(network.config, rounds_time=False)
        exact = [network(**one, base=base)["input"][1] for one in times]
    assert torch.equal(*rounded) and not torch.equal(*exact)
    assert torch.equal(rounded[1], exact[1])  # 984 is a number of bfloat16
    assert not torch.equal(outs[True, 982.0], outs[False, 982.0])


def test_each_residual_enters_its_own_block(merged):
    """All output layers but the first are zero, and that one adds one channel: it first shows behind base block 1, in
    NVIDIA's wiring by its input, in diffusers' by its output."""
    base = load_sana(merged).model.diffusion_model
    for wiring, place in ((NVLABS, 1), (DIFFUSERS, 2)):
        control = load_model("controlnet", merged, {"wiring": wiring})
        for i, layer in enumerate(control.control_model.controlnet_blocks):
            layer.weight.data.zero_()
            layer.bias.data.zero_()
            if i == 0:
                layer.bias.data[3] = 1.0
        inputs = {}
        for strength in (0.0, 1.0):
            record = inputs[strength] = []
            hooks = [
                block.register_forward_pre_hook(lambda _, args, record=record: record.append(args[0].clone()))
                for block in base.transformer_blocks
            ]
            given = seed_9()
            with torch.inference_mode():
                residuals = control.control_model(**given, base=base)["input"]
                record.clear()  # what the branch ran of the base
                scaled = [None if one is None else one * strength for one in residuals]
                base(**{key: one for key, one in given.items() if key != "hint"}, control={"input": scaled})
            for hook in hooks:
                hook.remove()
        same = [torch.equal(a, b) for a, b in zip(inputs[0.0], inputs[1.0], strict=True)]
        assert same == [index < place for index in range(4)]
        change = inputs[1.0][place] - inputs[0.0][place]
        assert torch.allclose(change[..., 3], torch.ones(1, 15), atol=1e-6) and not change[..., :3].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [NVLABS, DIFFUSERS])
def test_a_16_bit_file_on_a_32_bit_base_is_close(merged, layout, dtype, tmp_path):
    state_dict = {key: each.to(dtype) for key, each in controlnets.reference().state_dict().items()}
    content = controlnets.nvidia_branch(state_dict) if layout == NVLABS else state_dict
    control = load_model("controlnet", layouts.save(tmp_path / "half.safetensors", content, CONFIG))
    if layout == NVLABS:
        wide = load_model("controlnet", merged)
    else:
        content = controlnets.reference().state_dict()
        wide = load_model("controlnet", layouts.save(tmp_path / "wide.safetensors", content, CONFIG))
    base = load_sana(merged).model.diffusion_model
    out = predict(base, control, seed_9())
    expected = predict(base, wide, seed_9())
    assert torch.isfinite(out).all()
    assert 0 < ((out - expected).norm() / expected.norm()).item() < 1e-2


def test_a_base_in_bfloat16_takes_a_controlnet_with_it(merged):
    """Weights are cast where they are used, because the format of a run is its base's."""
    base = load_sana(merged).model.diffusion_model
    narrow = load_sana(merged, {"dtype": torch.bfloat16}).model.diffusion_model.to(torch.bfloat16)
    control = load_model("controlnet", merged)
    given = seed_9()
    expected = predict(base, control, given)
    half = {key: each.to(torch.bfloat16) if key in ("x", "hint", "context") else each for key, each in given.items()}
    out = predict(narrow, control, half)
    assert out.dtype == torch.bfloat16 and torch.isfinite(out).all()
    assert ((out.float() - expected).norm() / expected.norm()).item() < 5e-2


def test_the_copied_blocks_are_the_devices_and_clamp_as_the_base(merged):
    control = load_model("controlnet", merged)
    base = load_sana(merged).model.diffusion_model
    assert {type(block) for block in control.control_model.transformer_blocks} == {CpuSanaBlock}
    assert {block.attn1.clamp for block in control.control_model.transformer_blocks} == {
        base.transformer_blocks[0].attn1.clamp
    }


# The file that is saved


@pytest.mark.parametrize("layout", [NVLABS, DIFFUSERS])
@pytest.mark.parametrize("wiring", [NVLABS, DIFFUSERS])
def test_a_saved_file_is_the_same_controlnet_without_its_base(merged, layout, wiring, tmp_path):
    source = merged
    if layout == DIFFUSERS:
        source = layouts.save(tmp_path / "a" / "own.safetensors", controlnets.reference().state_dict(), CONFIG)
    control = load_model("controlnet", source, {"wiring": wiring})
    path = str(tmp_path / "saved.safetensors")
    size = save_controlnet(control, path)
    with safetensors.safe_open(path, "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
        dtypes = {file.get_tensor(key).dtype for key in names}
    expected = controlnets.reference().state_dict()
    assert names == (controlnets.nvidia_branch(expected) if layout == NVLABS else expected).keys()
    assert dtypes == {torch.bfloat16} and size < 1.1 * 2 * sum(each.numel() for each in expected.values()) + 20000
    assert metadata["wiring"] == wiring and metadata["trained_for"] == SANA
    again = load_model("controlnet", path)  # no config.json beside it
    assert again.control_model.config == control.control_model.config
    base = load_sana(merged).model.diffusion_model
    out, before = predict(base, again, seed_9()), predict(base, control, seed_9())
    assert 0 < ((out - before).norm() / before.norm()).item() < 1e-2


def test_a_file_of_float16_training_stays_in_float16(merged, tmp_path):
    control = load_model("controlnet", merged)
    network = control.control_model
    network.config = dataclasses.replace(
        network.config, blocks=dataclasses.replace(network.config.blocks, trained_in="float16")
    )
    path = str(tmp_path / "saved.safetensors")
    save_controlnet(control, path)
    with safetensors.safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118 - no mapping
    assert load_model("controlnet", path).control_model.config.blocks.clamp_attention is True


def test_another_familys_controlnet_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="This control_net is a ControlNet of another family: connect a SANA Con"):
        save_controlnet(comfy.controlnet.ControlNet(), str(tmp_path / "x.safetensors"))


# What a file says of itself


def with_metadata(tmp_path, **metadata: str) -> str:
    path = tmp_path / "told.safetensors"
    content = controlnets.nvidia_branch(controlnets.reference().state_dict())
    content = {key: each.contiguous().clone() for key, each in content.items()}
    safetensors.torch.save_file(content, path, {"num_cross_attention_heads": "4"} | metadata)
    return str(path)


def test_metadata_tell_for_what_it_was_trained(tmp_path):
    config = load_model("controlnet", with_metadata(tmp_path, trained_for="sana-1.5, sprint")).control_model.config
    assert config.trained_for == ("sana-1.5", SPRINT)
    assert load_model("controlnet", with_metadata(tmp_path)).control_model.config.trained_for == (SANA,)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"trained_for": "flux"}, r'told.safetensors says trained_for = "flux": one of sana, sana-1.5, sprint is exp'),
        ({"wiring": "both"}, r'told.safetensors says wiring = "both": NVlabs or diffusers is expected'),
        ({"num_cross_attention_heads": "four"}, r'say num_cross_attention_heads = "four": a whole number is expected'),
    ],
)
def test_wrong_metadata_are_named(tmp_path, metadata, match):
    with pytest.raises(ValueError, match=match):
        load_model("controlnet", with_metadata(tmp_path, **metadata))


def test_a_width_of_no_release_needs_its_configuration(tmp_path):
    path = layouts.save(tmp_path / "x.safetensors", controlnets.reference().state_dict())
    with pytest.raises(ValueError, match="is a SANA ControlNet of width 64, whose number of cross-attention heads no"):
        load_model("controlnet", path)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("controlnet.1.after_proj.weight", r"\(1 missing, such as controlnet_blocks.1.weight of"),
        ("controlnet.0.copied_block.attn.qkv.weight", "3 missing, such as transformer_blocks.0.attn1.to_k.weight of"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path, key, match):
    content = controlnets.nvidia_branch(controlnets.reference().state_dict())
    del content[key]
    with pytest.raises(ValueError, match=match):
        load_model("controlnet", layouts.save(tmp_path / "x.safetensors", content, CONFIG))


def test_an_unknown_tensor_of_the_branch_is_named(tmp_path):
    content = controlnets.nvidia_branch(controlnets.reference().state_dict())
    content["controlnet.0.gate"] = torch.ones(1)
    with pytest.raises(ValueError, match="1 unexpected, such as controlnet.0.gate of"):
        load_model("controlnet", layouts.save(tmp_path / "x.safetensors", content, CONFIG))


def test_wrappers_of_trainers_are_taken_off(tmp_path):
    content = layouts.prefixed(controlnets.nvidia_branch(controlnets.reference().state_dict()), "module.")
    path = layouts.save(tmp_path / "x.pth", {"state_dict": content}, CONFIG)
    assert load_model("controlnet", path).control_model.config.wiring == NVLABS


def test_loading_is_logged_in_one_line(merged, caplog):
    with caplog.at_level(logging.INFO):
        load_model("controlnet", merged)
    line = next(line for line in caplog.messages if "ControlNet" in line)
    assert "is a ControlNet for SANA (" in line
    assert "width 64, 2 copied blocks, NVlabs wiring, the base's embeddings)" in line
