"""The training nodes: an encoded set -> a LoRA, or a model, in the host's lists."""

import os

from comfy_api.latest import io

from ..models.files.saving import check_merged
from ..models.registry import load_model
from ..training.recipes import CUSTOM, with_recipe
from ..training.settings import AVERAGED, LATEST, LORA, MODEL, NEW, RunFiles, Settings, with_ending
from ..training.trainer import train
from .training_inputs import (
    CATEGORY,
    DEFAULT_NAMES,
    DEFAULTS,
    later_inputs,
    run_inputs,
    run_outputs,
    sample_inputs,
    setting_inputs,
)
from .training_run import SamplePrompts, Watch, mark_of_runs, node_output, noted, run_files
from .warnings import warn_about_runs

OF_LORA, OF_MODEL = DEFAULTS[LORA], DEFAULTS[MODEL]


class SanaNativeTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeTrainLora",
            display_name="SANA Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA and writes it into models/loras. Cancel keeps what was trained.",
            search_aliases=["sana train", "train lora", "dreambooth", "fine-tune"],
            inputs=[
                *run_inputs(LORA, "SANA, SANA-1.5, PixArt or Lumina-Next from SANA Model Loader, in bfloat16 or "
                            "float32. It stays as it is."),
                *setting_inputs(LORA),
                *sample_inputs(),
                *later_inputs(LORA),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model, in the same graph."),
                *run_outputs("The file in models/loras."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, name=DEFAULT_NAMES[LORA], resume=NEW, **_) -> list:
        return mark_of_runs(name, resume, LORA)

    @classmethod
    def execute(
        cls,
        model,
        encoded_set,
        name=DEFAULT_NAMES[LORA],
        resume=NEW,
        steps=OF_LORA.steps,
        learning_rate=OF_LORA.learning_rate,
        rank=OF_LORA.rank,
        alpha=OF_LORA.alpha,
        layers=OF_LORA.layers,
        batch_size=OF_LORA.batch_size,
        accumulation=OF_LORA.accumulation,
        seed=OF_LORA.seed,
        save_every=OF_LORA.save_every,
        sample_every=OF_LORA.sample_every,
        schedule=OF_LORA.schedule,
        warmup=OF_LORA.warmup,
        time_sampling=OF_LORA.time_sampling,
        caption_dropout=OF_LORA.caption_dropout,
        null_mask=OF_LORA.null_mask,
        ema=OF_LORA.ema,
        clip_norm=OF_LORA.clip_norm,
        weight_decay=OF_LORA.weight_decay,
        checkpointing=OF_LORA.checkpointing,
        sample_positive=None,
        sample_negative=None,
        vae=None,
        preset=CUSTOM,
        validation=OF_LORA.validation,
        optimizer=OF_LORA.optimizer,
        algorithm=OF_LORA.algorithm,
    ) -> io.NodeOutput:
        settings = Settings(
            steps, batch_size, accumulation, learning_rate, schedule, warmup, rank, alpha, layers,
            time_sampling, caption_dropout, null_mask, ema, clip_norm, weight_decay,
            checkpointing, seed, save_every, sample_every, LORA, optimizer, validation, algorithm,
        )  # fmt: skip
        prompts = SamplePrompts(sample_positive, sample_negative, vae)
        return train_on_node(model, encoded_set, with_recipe(settings, preset), name, resume, prompts)


class SanaNativeTrainModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeTrainModel",
            display_name="SANA Train Model",
            category=CATEGORY,
            description="Trains all weights of SANA or SANA-1.5 and writes a model into models/diffusion_models.",
            search_aliases=["sana train", "fine-tune", "full fine-tuning", "train checkpoint"],
            inputs=[
                *run_inputs(MODEL, "SANA or SANA-1.5 from SANA Model Loader, in bfloat16 or float32. It stays as it "
                            "is."),
                *setting_inputs(MODEL),
                *sample_inputs(),
                *later_inputs(MODEL),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained model; the average, where ema is on."),
                *run_outputs("The file in models/diffusion_models."),
            ],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, name=DEFAULT_NAMES[MODEL], resume=NEW, **_) -> list:
        return mark_of_runs(name, resume, MODEL)

    @classmethod
    def execute(
        cls,
        model,
        encoded_set,
        name=DEFAULT_NAMES[MODEL],
        resume=NEW,
        steps=OF_MODEL.steps,
        learning_rate=OF_MODEL.learning_rate,
        batch_size=OF_MODEL.batch_size,
        accumulation=OF_MODEL.accumulation,
        seed=OF_MODEL.seed,
        save_every=OF_MODEL.save_every,
        sample_every=OF_MODEL.sample_every,
        schedule=OF_MODEL.schedule,
        warmup=OF_MODEL.warmup,
        time_sampling=OF_MODEL.time_sampling,
        caption_dropout=OF_MODEL.caption_dropout,
        null_mask=OF_MODEL.null_mask,
        ema=OF_MODEL.ema,
        clip_norm=OF_MODEL.clip_norm,
        weight_decay=OF_MODEL.weight_decay,
        checkpointing=OF_MODEL.checkpointing,
        sample_positive=None,
        sample_negative=None,
        vae=None,
        preset=CUSTOM,
        validation=OF_MODEL.validation,
        optimizer=OF_MODEL.optimizer,
    ) -> io.NodeOutput:
        settings = Settings(
            steps, batch_size, accumulation, learning_rate, schedule, warmup, OF_MODEL.rank, OF_MODEL.alpha,
            OF_MODEL.layers, time_sampling, caption_dropout, null_mask, ema, clip_norm, weight_decay,
            checkpointing, seed, save_every, sample_every, MODEL, optimizer, validation,
        )  # fmt: skip
        prompts = SamplePrompts(sample_positive, sample_negative, vae)
        return train_on_node(model, encoded_set, with_recipe(settings, preset), name, resume, prompts)


def train_on_node(
    model, encoded_set, settings: Settings, name: str, resume: str, prompts: SamplePrompts
) -> io.NodeOutput:
    """Trains, shows it on the node, and gives the node's outputs."""
    if settings.target == MODEL:
        check_merged("transformer", model)
    files, watch = run_files(name, resume, settings.target), Watch(prompts.vae)
    with noted(name, settings, watch) as records:
        preview = prompts.preview(encoded_set)
        lora, record = train(model, encoded_set, settings, files, watch, resume == LATEST, preview, name_of(model))
        records.append(record)
    result = lora if settings.target == LORA else load_trained(model, files, settings)
    return node_output(result, record, watch.pictures(), files.result)


def load_trained(model, files: RunFiles, settings: Settings):
    """The model that a run wrote, or its average, loaded with the options of the one it was trained on."""
    options = dict(model.cached_patcher_init[1][1] or {})
    trained = load_model("transformer", with_ending(files.result, AVERAGED) if settings.ema else files.result, options)
    warn_about_runs(trained)
    return trained


def name_of(model) -> str:
    """The file that a model was loaded from."""
    source = model.cached_patcher_init[1][0] if model.cached_patcher_init else ""
    return os.path.basename(os.path.normpath(str(source))) if source else ""
