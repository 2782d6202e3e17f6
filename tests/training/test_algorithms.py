"""LoRA, DoRA and LoKr: their expressions against PEFT's and the host's, and their files in every reader."""

import copy
import json
from dataclasses import replace

import comfy.sd
import diffusers
import peft
import pytest
import safetensors
import torch
from comfy.weight_adapter import LoKrAdapter
from comfy.weight_adapter.base import factorization
from comfy_extras.nodes_train import LoraModelLoader
from safetensors.torch import load_file
from sana_native.models.lora.loader import load_lora
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS
from sana_native.tests.training.test_trainer import diffusers_velocity, velocity_of
from sana_native.training.adapters import AdapterSet
from sana_native.training.algorithms import ALGORITHMS, KERNEL_PARTS, Dora, Lokr, nearest_factors
from sana_native.training.network import training_mode
from sana_native.training.seeds import generator_of
from sana_native.training.state import load_state, save_state
from sana_native.training.trainer import Trainer
from torch import nn

OTHERS = ("DoRA", "LoKr")


def random_values(module: nn.Module, seed: int = 0) -> nn.Module:
    """With values as after a training, so that every part acts."""
    generator = generator_of(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    return module


def layer_and_input(outputs: int, inputs: int, bias: bool = True) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(outputs)
    return nn.Linear(inputs, outputs, bias), torch.randn(2, 5, inputs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_begins_without_any_effect(algorithm, dtype):
    network = nn.Sequential(nn.Linear(12, 30), nn.Linear(30, 7, bias=False)).to(dtype)
    x = torch.randn(5, 12, dtype=dtype)
    before = network(x)
    adapters = AdapterSet(network, "all linear", 2, 6.0, 0, algorithm=algorithm)
    with adapters.attached():
        assert torch.equal(network(x), before)
        random_values(nn.ModuleList(adapters.adapters.values()))
        assert bench.relative(network(x).float(), before.float()) > 0.02
    assert torch.equal(network(x), before)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="The algorithm GLoRA is unknown: choose one of LoRA, DoRA, LoKr."):
        AdapterSet(nn.Linear(2, 2), "all linear", 2, 2.0, 0, algorithm="GLoRA")


@pytest.mark.parametrize("bias", [True, False])
def test_dora_equals_pefts_layer_in_result_and_gradient(bias):
    layer, x = layer_and_input(30, 12, bias)
    own = random_values(Dora(layer, 1, 4, 6.0, generator_of(0)))
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["0"]), nn.Sequential(copy.deepcopy(layer))
    )
    adapted = theirs[0]
    others = [adapted.lora_A["default"].weight, adapted.lora_B["default"].weight]
    others.append(adapted.lora_magnitude_vector["default"].weight)
    with torch.no_grad():
        for other, value in zip(others, (own.down, own.up, own.magnitude), strict=True):
            other.copy_(value)
    results = own(layer, x, layer(x)), theirs(x)
    assert bench.relative(*results) < 1e-6
    wanted = torch.randn(results[0].shape, generator=generator_of(7))
    gradients = (
        torch.autograd.grad((result - wanted).square().mean(), values)
        for result, values in zip(results, ([own.down, own.up, own.magnitude], others), strict=True)
    )
    for ours, reference in zip(*gradients, strict=True):
        assert bench.relative(ours, reference) < 1e-6


def test_a_row_of_zeros_stays_one_in_a_dora():
    layer, x = layer_and_input(6, 4)
    with torch.no_grad():
        layer.weight[2] = 0
    own = Dora(layer, 1, 2, 2.0, generator_of(0))
    result = own(layer, x, layer(x))
    assert torch.equal(result, layer(x))
    result.square().mean().backward()
    assert all(value.grad.isfinite().all() for value in own.parameters())


@pytest.mark.parametrize("rank", [2, 3, 100])  # of 30 = 5 x 6 and 12 = 3 x 4: from 3 on the factor is whole
def test_lokr_equals_the_hosts_beside_a_layer_and_merged_into_it(rank):
    layer, x = layer_and_input(30, 12)
    own = random_values(Lokr(layer, 1, rank, 5.0, generator_of(0)))
    assert {name for name, _ in own.named_parameters()} == ({"w1", "w2_a", "w2_b"} if rank == 2 else {"w1", "w2"})
    (parts,) = own.file_parts(dict(own.named_parameters()))
    tensors = {f"x.{part}": value.detach() for part, value in parts.items()}
    host = LoKrAdapter.load("x", tensors, float(tensors["x.alpha"]), None)
    with torch.no_grad():
        result = own(layer, x, layer(x))
        assert bench.relative(result, layer(x) + host.h(x, layer(x))) < 1e-6
        merged = host.calculate_weight(layer.weight.clone(), "x", 1.0, 1.0, None, lambda a: a)
        assert bench.relative(result, nn.functional.linear(x, merged, layer.bias)) < 1e-6


def test_each_target_of_a_fused_layer_has_factors_of_its_own():
    layer, x = layer_and_input(90, 12)
    own = random_values(Lokr(layer, 3, 2, 5.0, generator_of(0)))
    files = own.file_parts(dict(own.named_parameters()))
    changes = [
        torch.kron(one["lokr_w1"], one["lokr_w2_a"] @ one["lokr_w2_b"]) * one["alpha"] / len(one["lokr_w2_b"])
        for one in files
    ]
    assert len(changes) == 3 and all(change.shape == (30, 12) for change in changes)
    expected = layer(x) + nn.functional.linear(x, torch.cat(changes))
    assert bench.relative(own(layer, x, layer(x)), expected) < 1e-6


def test_the_factors_are_those_of_lycoris():
    for size in (1, 2, 7, 32, 48, 127, 128, 250, 360, 768, 1024, 1152, 2240, 2304, 4608, 5600, 6720, 11200, 13440):
        assert nearest_factors(size) == factorization(size, -1)


@pytest.mark.parametrize("algorithm", OTHERS)
@pytest.mark.parametrize("layers", ["attention qkv", "all linear"])
def test_the_file_acts_as_the_trained_adapters_in_every_reader_of_comfyui(encoded, files, algorithm, layers):
    plain = velocity_of(bench.model("sana"))
    with torch.inference_mode(), training_mode():
        settings = replace(SETTINGS, algorithm=algorithm, layers=layers)
        trainer = Trainer(bench.model("sana"), encoded, settings, files)
        trainer.run(lambda _: None)
        with trainer.trained.attached(), torch.no_grad():
            trained = bench.velocity(trainer.patcher)
        lora = trainer.results()[""]
    assert bench.relative(trained, plain) > 1e-3
    metadata = header(files)
    stock, _ = comfy.sd.load_lora_for_models(
        bench.model("sana"), None, load_file(files.result), 1.0, 0, lora_metadata=metadata
    )
    (graph,) = bench.call(LoraModelLoader, bench.model("sana"), lora, 1.0)
    for patched in (stock, graph, load_lora(bench.model("sana"), files.result, 1.0)):
        assert bench.relative(velocity_of(patched), trained) < 1e-5
    assert torch.equal(velocity_of(bench.model("sana")), plain)


def header(files) -> dict[str, str]:
    with safetensors.safe_open(files.result, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("layers", ["attention qkv", "attention + mix-ffn"])
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd")
def test_diffusers_reads_a_dora_whose_magnitudes_have_its_name(run, files, layers):
    """As docs/train.md says; of the file as it is diffusers leaves the magnitudes out, warns, and stops."""
    run(algorithm="DoRA", layers=layers)
    lora = {
        name.replace("dora_scale", "lora_magnitude_vector"): (
            value if "dora_scale" not in name else value.flatten() if value.ndim == 2 else value.transpose(0, 1)
        )
        for name, value in load_file(files.result).items()
    }
    pipeline = diffusers.SanaPipeline.from_pretrained(bench.folder() / "sana")
    pipeline.load_lora_weights(lora)
    expected = velocity_of(load_lora(bench.model("sana"), files.result, 1.0))
    assert bench.relative(diffusers_velocity(pipeline), expected) < 1e-5
    as_it_is = diffusers.SanaPipeline.from_pretrained(bench.folder() / "sana")
    as_it_is.load_lora_weights(files.result)
    with pytest.raises(RuntimeError, match="meta"):
        diffusers_velocity(as_it_is)


def test_diffusers_refuses_a_lokr(run, files):
    run(algorithm="LoKr")
    pipeline = diffusers.SanaPipeline.from_pretrained(bench.folder() / "sana")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipeline.load_lora_weights(files.result)


@pytest.mark.parametrize("algorithm", OTHERS)
def test_a_run_goes_on_to_the_bit_and_a_seed_gives_the_same(run, algorithm):
    whole, _ = run(algorithm=algorithm, steps=20, ema=0.9)
    run(algorithm=algorithm, steps=10, ema=0.9)
    torch.randn(100)
    resumed, record = run(algorithm=algorithm, steps=20, ema=0.9, resume=True)
    assert record.step == 20 and resumed.keys() == whole.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    other, _ = run(algorithm=algorithm, steps=20, ema=0.9, seed=4)
    assert any(not torch.equal(value, other[name]) for name, value in whole.items())


@pytest.mark.parametrize(("begun", "other"), [("LoRA", "DoRA"), ("DoRA", "LoRA"), ("LoKr", "DoRA"), ("LoRA", "LoKr")])
def test_a_run_of_another_algorithm_is_not_resumed(run, begun, other):
    run(algorithm=begun)
    told = f"The run was begun with the algorithm {begun} and not {other}: set it as it was, or choose resume new."
    with pytest.raises(ValueError, match=told):
        run(algorithm=other, steps=8, resume=True)


def test_a_state_from_before_there_was_a_choice_is_resumed(run, files):
    whole, _ = run(steps=8)
    run(steps=4)
    tensors, record = load_state(files.state)
    del record["settings"]["algorithm"]
    save_state(tensors, record, files.state)
    resumed, _ = run(steps=8, resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("algorithm", OTHERS)
def test_a_base_in_bfloat16_is_trained(run, files, algorithm):
    model = bench.fresh_model("sana", dtype=torch.bfloat16)
    before = velocity_of(model)
    _, record = run(model=model, algorithm=algorithm, steps=30, rank=4)
    (_, first), (_, last) = record.fixed[0], record.fixed[-1]
    assert sum(last) < 0.95 * sum(first)
    assert torch.equal(velocity_of(model), before)
    assert all(value.dtype == torch.float32 for value in load_file(files.result).values())
    assert bench.relative(velocity_of(load_lora(model, files.result, 1.0)), before) > 0.02


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_header_tells_the_algorithm(run, files, algorithm):
    run(algorithm=algorithm, layers="attention + mix-ffn", rank=100)
    metadata = header(files)
    assert json.loads(metadata["sana_training"])["algorithm"] == algorithm
    config = json.loads(metadata.get("lora_adapter_metadata", "null"))
    assert (config is None) == (algorithm == "LoKr")
    assert config is None or config.get("transformer.use_dora", False) == (algorithm == "DoRA")
    kernels = [name for name, value in load_file(files.result).items() if value.ndim == 4]
    assert kernels and all("ff.conv_" in name and name.endswith(KERNEL_PARTS) for name in kernels)
