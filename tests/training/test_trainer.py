"""Training a LoRA on the tiny SANA: exact resumes and seeds, batches, and files that every reader takes."""

import copy
import json
import logging
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import diffusers
import pytest
import safetensors
import torch
from comfy_extras.nodes_train import LoraModelLoader
from sana_native.models.lora.loader import load_lora
from sana_native.models.sana.loader import load_sana
from sana_native.models.sana.model import CrossAttention, GLUMBConv
from sana_native.tests.support import tiny
from sana_native.tests.support import workbench as bench
from sana_native.tests.training.conftest import SETTINGS, SIDE
from sana_native.training import trainer as trainer_file
from sana_native.training.captions import Caption, batch_captions
from sana_native.training.family import PRESETS
from sana_native.training.seeds import generator_of
from sana_native.training.network import training_mode
from sana_native.training.preview import Preview
from sana_native.training.resumption import base_digest, compare, origin_of
from sana_native.training.set_loss import SetLoss
from sana_native.training.settings import MODEL
from sana_native.training.state import load_state, save_state
from sana_native.training.trainer import Trainer, train
from safetensors.torch import load_file


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_at_fixed_noises_falls_and_the_model_stays_as_it_was(run):
    before = bench.velocity(bench.model("sana"))
    lora, record = run(steps=30)
    (_, first), (step, last) = record.fixed[0], record.fixed[-1]
    assert step == 30 and sum(last) < 0.9 * sum(first)
    assert len(record.losses) == 30 and any(value.any() for name, value in lora.items() if "lora_B" in name)
    assert torch.equal(bench.velocity(bench.model("sana")), before)


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "warmup": 3, "accumulation": 2, "layers": "all linear"}])
def test_a_resumed_run_equals_one_without_a_stop_to_the_bit(run, files, changes):
    whole, _ = run(steps=8, **changes)
    state, _ = load_state(files.state)
    run(steps=4, **changes)
    resumed, record = run(steps=8, resume=True, **changes)
    assert equal(resumed, whole) and equal(load_state(files.state)[0], state) and len(record.losses) == 8


def test_a_seed_gives_the_same_lora_whatever_was_drawn_before_and_another_gives_another(run):
    first, _ = run()
    torch.randn(100)
    again, _ = run()
    other, _ = run(seed=4)
    assert equal(first, again) and not equal(first, other)


def test_a_new_run_is_not_written_over_another(run, encoded, files):
    run()
    before = Path(files.state).read_bytes()
    with pytest.raises(ValueError, match="state.safetensors is of a run that was begun already: go on with that, or"):
        train(bench.model("sana"), encoded, SETTINGS, files, lambda *_: None)
    assert Path(files.state).read_bytes() == before


def test_a_run_of_another_rank_is_not_resumed(run):
    run()
    with pytest.raises(ValueError, match="another rank, other layers or another model"):
        run(steps=8, resume=True, rank=3)


def test_a_run_with_another_alpha_is_not_resumed_even_without_a_step_left(run, files):
    run()
    before = Path(files.result).read_bytes()
    with pytest.raises(ValueError, match="begun with alpha 4, and 8 would change the strength .+ or choose resume new"):
        run(resume=True, alpha=8.0)
    assert Path(files.result).read_bytes() == before


def test_a_run_on_another_base_is_not_resumed_and_on_the_same_in_another_format_it_is(run, files, tmp_path):
    run()
    before = Path(files.state).read_bytes()
    tiny.transformer(seed=5).save_pretrained(tmp_path / "other" / "transformer")
    other = load_sana(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="begun on a model with other weights.+: connect that model, or choose resume"):
        run(steps=6, resume=True, model=other)
    assert Path(files.state).read_bytes() == before
    half, whole = (bench.fresh_model("sana").model.diffusion_model for _ in range(2))
    assert base_digest(half.bfloat16()) == base_digest(whole)


def test_what_a_run_goes_on_with_otherwise_is_told(run):
    _, first = run()
    _, record = run(steps=6, resume=True, save_every=5, seed=4, batch_size=1, validation=1)
    told = "The run goes on with batch_size 1, which was 2; seed 4, which was 3; validation 1, which was 0."
    assert first.notices == [] and record.notices == [told]


def test_another_base_is_told_where_loras_are_merged_into_it(run):
    run()
    patched = bench.model("sana").clone()
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    patched.add_patches({key: ("diff", (torch.ones(patched.model.get_parameter(key).shape),))}, 0.1)
    _, record = run(steps=5, resume=True, model=patched)
    (told,) = record.notices
    assert told.startswith("The run goes on with other weights of the model, or the same after a merge of its LoRAs")
    with pytest.raises(ValueError, match="begun on a model with other weights"):
        run(steps=6, resume=True)


def test_another_set_is_told(encoded):
    network = torch.nn.Linear(2, 2)
    more = replace(encoded, samples=encoded.samples[:-1])
    before, now = (origin_of(SETTINGS, network, one) for one in (encoded, more))
    assert compare(before, now) == ["The run goes on with another training set."]
    assert compare(before, before) == compare({}, now) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda name, value: {} if ".down" in name else {name: value}, "another rank, other layers"),
        (lambda name, value: {name: value[:1] if "exp_avg." in name else value}, "does not fit what is trained"),
        (lambda name, value: {} if "exp_avg_sq." in name else {name: value}, "does not fit what is trained"),
        (lambda name, value: {name: value[:1] if "ema." in name else value}, "does not fit what is trained"),
    ],
)
def test_a_state_with_tensors_of_other_shapes_is_refused(run, files, change, told):
    run(ema=0.9)
    tensors, record = load_state(files.state)
    save_state({k: v for name, value in tensors.items() for k, v in change(name, value).items()}, record, files.state)
    with pytest.raises(ValueError, match=told):
        run(steps=6, resume=True, ema=0.9)


def test_a_result_that_cannot_be_written_is_told_before_the_first_step(run, files):
    Path(files.result).mkdir(parents=True)
    with pytest.raises(OSError, match=r"mine.safetensors cannot be written \(Is a directory\): move that folder away"):
        run(tell=lambda *_: pytest.fail("a step was trained"))


def test_the_log_tells_of_the_start_each_save_and_the_end(run, files, caplog):
    caplog.set_level(logging.INFO, "sana_native.training")
    run(save_every=2)
    run(steps=5, resume=True, seed=4)
    assert [record.message for record in caplog.records if record.name.startswith("sana_native.training")] == [
        f"SANA: The training of {files.result} begins, step 0 of 4.",
        f"SANA: {files.result} and its state are saved, step 2 of 4.",
        f"SANA: {files.result} and its state are saved, step 4 of 4.",
        "SANA: The training is finished, step 4 of 4.",
        f"SANA: The training of {files.result} goes on, step 4 of 5.",
        "SANA: The run goes on with seed 4, which was 3.",
        f"SANA: {files.result} and its state are saved, step 5 of 5.",
        "SANA: The training is finished, step 5 of 5.",
    ]


def gradients(trainer: Trainer, indices: list[int], start: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses and gradients of a batch, whose noises are those of its place in a larger one."""
    samples = [trainer.data.samples[index] for index in indices]
    x0 = trainer.predict.scaled(torch.stack([one.latent() for one in samples]))
    noise = torch.randn(2, *x0.shape[1:], generator=generator_of(5))[start : start + len(indices)]
    sigma = torch.tensor([0.3, 0.8])[start : start + len(indices)]
    states, mask = batch_captions([one.caption() for one in samples])
    losses = trainer.predict.loss(x0, states, mask, sigma, noise)
    values = list(trainer.parameters.values())
    return losses.detach(), torch.autograd.grad(losses.mean(), values)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_equals_the_mean_of_its_samples_in_loss_and_gradient(encoded, files, checkpointing):
    with torch.inference_mode(), training_mode():
        settings = replace(SETTINGS, checkpointing=checkpointing)
        trainer = Trainer(bench.model("sana"), encoded, settings, files)
        with torch.no_grad():
            for name, value in trainer.parameters.items():
                value.copy_(torch.randn(value.shape, generator=generator_of(len(name))) * 0.1)
        with trainer.trained.attached():
            both, gradient = gradients(trainer, [0, 3], 0)
            (one, first), (two, second) = gradients(trainer, [0], 0), gradients(trainer, [3], 1)
    torch.testing.assert_close(both, torch.cat([one, two]), rtol=1e-5, atol=0)
    for whole, a, b in zip(gradient, first, second, strict=True):
        torch.testing.assert_close(whole, (a + b) / 2, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_recomputed_blocks_give_the_same_lora(run):
    for layers in ("attention qkv", "all linear"):
        stored, _ = run(checkpointing=False, layers=layers)
        recomputed, _ = run(checkpointing=True, layers=layers)
        assert all(torch.allclose(stored[name], recomputed[name], atol=1e-5) for name in stored)


def stored_bytes(patcher, data, files, **changes) -> int:
    """Bytes that a batch keeps for its gradient, weights aside, each tensor's memory once."""
    with torch.inference_mode(), training_mode():
        trainer = Trainer(patcher, data, replace(SETTINGS, **changes), files)
        weights = {one.untyped_storage().data_ptr() for one in trainer.predict.network.parameters()}
        weights |= {one.untyped_storage().data_ptr() for one in trainer.parameters.values()}
        sizes: dict[int, int] = {}
        kept = []  # so that no memory is used again for another tensor

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
            return tensor

        with trainer.trained.attached(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.losses.of_batch(trainer.samples[:2], generator_of(0))
        return sum(sizes.values())


@pytest.mark.parametrize("target", ["LoRA", "model"])
def test_recomputed_blocks_store_less_than_half_for_the_gradient(encoded, files, target):
    """At block level: the host's checkpointing of the whole network keeps as much at the gradient's peak."""
    stored, recomputed = (
        stored_bytes(bench.model("sana"), encoded, files, target=target, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert recomputed < 0.5 * stored


def test_latents_are_trained_at_the_models_scale(encoded, files):
    with torch.inference_mode(), training_mode():
        trainer = Trainer(bench.model("sana"), encoded, SETTINGS, files)
        for sample in encoded.samples:  # of both sizes
            assert torch.allclose(trainer.predict.scaled(sample.latent()[None]), sample.latent()[None] * 0.41407)


@pytest.mark.parametrize("layers", ["attention qkv", "attention + mix-ffn", "all linear"])
def test_the_file_acts_alike_in_our_loader_the_stock_loader_the_graph_and_diffusers(run, files, layers):
    lora, _ = run(layers=layers)
    plain = velocity_of(bench.model("sana"))
    ours = load_lora(bench.model("sana"), files.result, 1.0)
    stock, _ = comfy.sd.load_lora_for_models(bench.model("sana"), None, load_file(files.result), 1.0, 0)
    (graph,) = bench.call(LoraModelLoader, bench.model("sana"), lora, 1.0)
    pipeline = diffusers.SanaPipeline.from_pretrained(bench.folder() / "sana")
    pipeline.load_lora_weights(files.result)
    reference = diffusers_velocity(pipeline)
    for patched in (ours, stock, graph):
        assert bench.relative(velocity_of(patched), reference) < 1e-5
    assert bench.relative(reference, plain) > 1e-2


def velocity_of(patcher) -> torch.Tensor:
    comfy.model_management.load_models_gpu([patcher])
    return bench.velocity(patcher)


@torch.no_grad()
def diffusers_velocity(pipeline) -> torch.Tensor:
    """x0 as `bench.velocity` predicts it, by diffusers' transformer."""
    x = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    positive, _ = bench.encoded()
    states, mask = positive[0][0], positive[0][1]["attention_mask"]
    velocity = pipeline.transformer(x, states.clone(), torch.tensor([700.0]), encoder_attention_mask=mask.clone())
    return x - 0.7 * velocity.sample


def test_the_header_tells_what_was_trained(run, files):
    run(ema=0.9)
    with safetensors.safe_open(files.result, "pt") as file:
        metadata = file.metadata()
    told = json.loads(metadata["sana_training"])
    assert (told["base_model"], told["shift"], told["step"], told["rank"]) == ("tiny", 3.0, 4, 2)
    assert told["instruction"] is True and told["layers"] == "attention qkv" and told["seed"] == 3
    assert json.loads(metadata["lora_adapter_metadata"])["transformer.r"] == 2


def test_an_interrupt_saves_and_hands_on_the_lora_so_far(run, files):
    def stop(_, report) -> None:
        if report.step == 2:
            comfy.model_management.interrupt_current_processing()

    lora, record = run(steps=6, tell=stop)
    assert record.step == 2 and not comfy.model_management.processing_interrupted()
    assert equal(load_file(files.result), lora)
    resumed, _ = run(steps=6, resume=True)
    assert equal(resumed, run(steps=6)[0])


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("no memory"), FileNotFoundError("no latent")])
def test_a_fault_of_another_part_loses_no_step(run, files, fault):
    def fail(_, report) -> None:
        if report.step == 3:
            raise fault

    with pytest.raises(type(fault)) as told:
        run(steps=6, tell=fail)
    assert told.value is fault and load_state(files.state)[1]["step"] == 3
    learned = load_file(files.result)
    assert equal(learned, run(steps=3)[0])


def test_a_cached_part_that_is_gone_loses_no_step(run, encoded, files, tmp_path):
    """Of the first picture, by which a save is checked too."""
    part = Path(encoded.samples[0].latent_path)

    def take_away(_, report) -> None:
        if report.step == 3:
            part.rename(tmp_path / part.name)

    try:
        with pytest.raises(OSError, match=part.name):
            run(steps=9, tell=take_away)
    finally:
        (tmp_path / part.name).rename(part)
    assert 3 <= load_state(files.state)[1]["step"] < 9 and Path(files.result).is_file()


def test_a_run_stopped_while_a_sample_is_decoded_has_its_model_back_before_it_saves(run, files, monkeypatch):
    reload, back = Trainer.reload, []
    monkeypatch.setattr(Trainer, "reload", lambda self: (back.append(self.saved), reload(self)))

    def stop(_, report) -> None:
        if report.step == 2:
            raise comfy.model_management.InterruptProcessingException

    run(steps=4, tell=stop)
    assert back == [None] and load_state(files.state)[1]["step"] == 2


def test_a_fault_in_the_middle_of_a_step_leaves_the_save_before(run, files, monkeypatch):
    step = torch.optim.AdamW.step

    def broken(self):
        step(self)
        if len(os.listdir(Path(files.result).parent)) > 1:
            raise MemoryError

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)
    with pytest.raises(MemoryError):
        run(steps=6, save_every=2)
    assert load_state(files.state)[1]["step"] == 2


def test_a_lora_lies_beside_every_save_and_a_sample_before_the_first_step_and_after_every_interval(run, files):
    positive, negative = bench.encoded()
    captions = [Caption(one[0][0][0], one[0][1]["attention_mask"][0]) for one in (positive, negative)]
    side = SIDE // 32
    shown = []
    preview = Preview(captions[:1], captions[1], (side, side), steps=2)
    run(steps=5, save_every=2, sample_every=2, preview=preview, tell=lambda _, report: shown.append(report.sample))
    assert sorted(path.name for path in Path(files.result).parent.iterdir()) == [
        "mine.safetensors", "mine_step000002.safetensors", "mine_step000004.safetensors",
    ]  # fmt: skip
    assert [sample is not None for sample in shown] == [True, False, True, False, True, True]
    assert shown[-1].shape == (1, 32, side, side) and shown[-1].isfinite().all()
    assert not torch.equal(shown[0], shown[2]) and not torch.equal(shown[2], shown[-1])


def test_a_step_without_a_finite_gradient_changes_nothing_and_many_end_the_run(run, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    lora, _ = run(steps=5)
    assert not any(value.any() for name, value in lora.items() if "lora_B" in name)
    with pytest.raises(ValueError, match="No gradient was finite for 21 steps"):
        run(steps=40)


def test_a_last_step_without_a_finite_loss_loses_nothing(run, files, monkeypatch):
    loss, calls = SetLoss.of_batch, []

    def ruined(self, *args):
        calls.append(args)
        return loss(self, *args) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(SetLoss, "of_batch", ruined)
    lora, record = run(steps=3)
    assert math.isnan(record.losses[-1]) and equal(load_file(files.result), lora)
    monkeypatch.undo()
    assert equal(lora, run(steps=2)[0])


@pytest.mark.parametrize("target", ["LoRA", "model"])
def test_an_average_that_begins_at_a_resume_begins_with_what_was_learned(run, files, target):
    run(steps=4, target=target)
    learned = load_file(files.result)
    run(steps=5, resume=True, target=target, ema=0.999, learning_rate=1e-9)
    averaged = load_file(files.result if target == "LoRA" else files.result.replace("mine", "mine_ema"))
    assert learned.keys() == averaged.keys()
    assert all(torch.allclose(averaged[name], value, atol=1e-6) for name, value in learned.items())


def test_a_run_that_diverges_leaves_the_files_before_and_names_the_last_step_saved(run, files):
    run(steps=2)
    state, learned = Path(files.state).read_bytes(), Path(files.result).read_bytes()
    ruined = {"resume": True, "learning_rate": 1e30, "clip_norm": 0, "save_every": 3}
    for steps, found in ((3, "The loss is not finite after step 3"), (40, "No gradient was finite for 21 steps")):
        with pytest.raises(
            ValueError, match=f"{found}: lower learning_rate, and go on from step 2, the last one saved"
        ):
            run(steps=steps, **ruined)
        assert Path(files.state).read_bytes() == state and Path(files.result).read_bytes() == learned
    assert [path.name for path in Path(files.result).parent.iterdir()] == ["mine.safetensors"]


def test_a_new_run_that_diverges_writes_nothing_and_says_so_even_when_it_is_stopped(run, files):
    def stop(_, report) -> None:
        if report.step == 2:
            comfy.model_management.interrupt_current_processing()

    found = "The loss is not finite after step 2: lower learning_rate, and begin a new run, as no state of this one"
    with pytest.raises(ValueError, match=found):
        run(steps=9, tell=stop, learning_rate=1e30, clip_norm=0)
    assert not os.path.exists(files.state) and not os.path.exists(files.result)


@pytest.fixture(scope="module")
def sana15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sana15")
    tiny.transformer(qk_norm="rms_norm_across_heads").save_pretrained(folder / "transformer")
    return load_sana(str(folder))


@pytest.mark.parametrize("changes", [*({"layers": preset} for preset in PRESETS), {"target": MODEL}])
def test_the_gradient_reaches_all_that_is_trained(run, sana15, changes):
    """With and without checkpointing, and with every caption left out: the trainer raises where it does not."""
    for model in (bench.model("sana"), sana15):
        for more in ({"checkpointing": False}, {"caption_dropout": 1.0}):
            _, record = run(model=model, steps=1, **changes, **more)
            assert record.step == 1


@pytest.mark.parametrize("checkpointing", [True, False])
def test_an_attention_without_a_gradient_is_told_before_the_first_step(run, files, monkeypatch, checkpointing):
    """As that of a kernel made for sampling, of which queries and keys would stay as they are without a word."""
    attend = CrossAttention.attend
    monkeypatch.setattr(CrossAttention, "attend", lambda self, q, k, v, **rest: attend(self, *cut(q, k, v), **rest))
    found = "did not reach 12 of 24 tensors that are trained .transformer_blocks.0.attn2.to_q.down.: connect the model"
    with pytest.raises(ValueError, match=found):
        run(checkpointing=checkpointing)
    assert not os.path.exists(files.state) and not os.path.exists(files.result)


def cut(*values):
    return [value.detach() for value in values]


def test_weights_that_the_network_only_copies_are_told_before_the_first_step(run, monkeypatch):
    """As in the host's dynamic memory."""
    forward = GLUMBConv.forward
    monkeypatch.setattr(GLUMBConv, "forward", lambda self, x, grid: forward(copied(self), x, grid))
    with pytest.raises(ValueError, match=r"did not reach \d+ of \d+ tensors .+ff.+ and start ComfyUI without"):
        run(target=MODEL)


def copied(layer):
    return copy.deepcopy(layer).requires_grad_(False)


KILLED = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
import types
pack = types.ModuleType("sana_native"); pack.__path__ = [sys.argv[1]]; sys.modules["sana_native"] = pack
from sana_native.training import state
big = {"x": torch.zeros(1000, 1000)}
state.save_state({"x": torch.ones(3)}, {"step": 1}, sys.argv[2])
real = state.save_file
def slow(*args):
    real(*args)
    print("half", flush=True)
    import time; time.sleep(60)
state.save_file = slow
state.save_state(big, {"step": 2}, sys.argv[2])
"""


def test_a_process_killed_in_the_middle_of_a_save_leaves_the_file_before(tmp_path):
    path, root = str(tmp_path / "state.safetensors"), Path(trainer_file.__file__).parents[1]
    sys_path = os.pathsep.join(filter(None, [os.environ.get("COMFYUI_PATH"), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), path],
        stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": sys_path},
    )  # fmt: skip
    assert process.stdout.readline().strip() == b"half"
    process.send_signal(signal.SIGKILL)
    process.wait()
    tensors, record = load_state(path)
    assert record["step"] == 1 and torch.equal(tensors["x"], torch.ones(3))
    assert [name for name in os.listdir(tmp_path) if name.endswith(".safetensors")] == ["state.safetensors"]


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("sprint", {}, "SANA-Sprint cannot be trained as a plain flow"),
        ("sana", {"dtype": torch.bfloat16, "trained_in_float16": True}, "trained in float16"),
    ],
)
def test_models_that_training_would_spoil_are_refused(run, monkeypatch, family, options, message):
    model = bench.fresh_model(family, **options)
    if options:
        monkeypatch.setattr(model.model, "get_dtype_inference", lambda: options["dtype"])
    with pytest.raises(ValueError, match=message):
        run(model=model)
