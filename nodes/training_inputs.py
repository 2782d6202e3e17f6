"""Inputs and outputs that the training nodes share, by the names of `Settings`."""

from comfy_api.latest import io

from ..training.algorithms import ALGORITHMS
from ..training.captions import NULL_MASKS
from ..training.family import PRESETS
from ..training.loss import TIME_SAMPLINGS
from ..training.optimizer import LORA_OPTIMIZERS, OPTIMIZERS, SCHEDULES
from ..training.recipes import CUSTOM, LORA_RECIPES, MODEL_RECIPES
from ..training.settings import LATEST, LORA, MODEL, NEW, Settings

CATEGORY = "model/training/sana"
EncodedPictures = io.Custom("SANA_ENCODED_SET")
DEFAULTS = {LORA: Settings(), MODEL: Settings(target=MODEL, learning_rate=1e-5, weight_decay=0.0)}
DEFAULT_NAMES = {LORA: "sana_lora", MODEL: "sana_model"}
OF_A_LORA = ("rank", "alpha", "layers", "algorithm")


class Inputs:
    """Makes inputs of a target with its defaults."""

    def __init__(self, target: str):
        self.defaults = DEFAULTS[target]

    def common(self, name: str, tooltip: str) -> dict:
        return {"id": name, "default": getattr(self.defaults, name), "optional": True, "tooltip": tooltip}

    def count(self, name: str, least: int, most: int, tooltip: str, **options) -> io.Input:
        return io.Int.Input(min=least, max=most, **self.common(name, tooltip), **options)

    def number(self, name: str, most: float, step: float, tooltip: str, **options) -> io.Input:
        return io.Float.Input(min=0.0, max=most, step=step, round=False, **self.common(name, tooltip), **options)

    def choice(self, name: str, values, tooltip: str, **options) -> io.Input:
        return io.Combo.Input(options=list(values), **self.common(name, tooltip), **options)


def run_inputs(target: str, model_tooltip: str) -> list[io.Input]:
    """What a run trains on, and under which name."""
    return [
        io.Model.Input("model", tooltip=model_tooltip),
        EncodedPictures.Input("encoded_set", tooltip="From SANA Encode Training Set."),
        io.String.Input(
            "name",
            default=DEFAULT_NAMES[target],
            optional=True,
            tooltip="Name of the file; a number follows for each run.",
        ),
        io.Combo.Input(
            "resume",
            options=[NEW, LATEST],
            default=NEW,
            optional=True,
            tooltip="latest: goes on with the last run of this name, as if it had not stopped.",
        ),
    ]


def setting_inputs(target: str) -> list[io.Input]:
    """Inputs of a run by the names of `Settings`."""
    make, hidden = Inputs(target), {"advanced": True}
    usual = "1e-4 for a LoRA" if target == LORA else "1e-5 for a small set"
    inputs = [
        make.count("steps", 1, 1_000_000, "Steps in all, those before a resume included; each trains batch_size times "
                   "accumulation pictures."),
        make.number("learning_rate", 1.0, 1e-6, f"How far each step goes. {usual}; lower it when the loss jumps."),
        make.count("rank", 1, 1024, "Width of the LoRA: 4 to 16 for a thing, 16 to 64 for a style."),
        make.number("alpha", 1024.0, 0.5, "Strength of the LoRA while it is trained, divided by rank. Equal to rank is "
                    "usual.", **hidden),
        make.choice("layers", PRESETS, "Layers that are trained. attention qkv: as diffusers' script. The others learn "
                    "more and make larger files."),
        make.count("batch_size", 1, 256, "Pictures of one size computed at once; more needs more memory."),
        make.count("accumulation", 1, 1024, "Batches before each step: a larger batch without more memory.",
                   **hidden),
        make.count("seed", 0, 0xFFFFFFFFFFFFFFFF, f"The same seed, set and settings give the same {target} on the same "
                   "machine.", control_after_generate=False),
        make.count("save_every", 0, 1_000_000, f"Steps between saves of the run and of a {target} with the step in its "
                   "name. 0: at the end only."),
        make.count("sample_every", 0, 1_000_000, "Steps between pictures of sample_positive. 0: at the end only."),
        make.choice("schedule", SCHEDULES, "constant, or cosine: the learning rate falls to 0 at the last step.",
                    **hidden),
        make.count("warmup", 0, 100_000, "Steps in which the learning rate grows from 0.", **hidden),
        make.choice("time_sampling", TIME_SAMPLINGS, "Which noise levels are trained, pushed by the model's shift. "
                    "logit-normal: as SANA was trained.", **hidden),
        make.number("caption_dropout", 1.0, 0.01, "Part of the captions left out, so that guidance (cfg) stays good.",
                    **hidden),
        make.choice("null_mask", NULL_MASKS, "How a left-out caption is read. bos: as ComfyUI and diffusers do. "
                    "caption: as NVIDIA's code does.", **hidden),
        make.number("ema", 0.99999, 0.001, "Decay of an average of the weights, which is saved "
                    f"{'in their place' if target == LORA else 'beside them and handed on'}; 0.999 is usual, 0 is "
                    "off.", **hidden),
        make.number("clip_norm", 1000.0, 0.1, "Largest norm of a step's gradient; 0 is off.", **hidden),
        make.number("weight_decay", 1.0, 1e-4, "AdamW's decay of the weights.", **hidden),
        io.Boolean.Input("checkpointing", default=True, optional=True, advanced=True,
                         tooltip="Computes each block again for its gradient: less memory, more time."),
    ]  # fmt: skip
    return [one for one in inputs if target == LORA or one.id not in OF_A_LORA]


def sample_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input(
            "sample_positive", optional=True, tooltip="Prompts to generate while training; needs vae too."
        ),
        io.Conditioning.Input("sample_negative", optional=True, tooltip="Their negative prompt, for cfg 4.5."),
        io.Vae.Input("vae", optional=True, tooltip="The model's own VAE, to decode the sample pictures."),
    ]


def later_inputs(target: str) -> list[io.Input]:
    """Inputs that came later, and so last."""
    make = Inputs(target)
    recipes = LORA_RECIPES if target == LORA else MODEL_RECIPES
    described = "LoRA small: as diffusers' script. LoRA style: rank 32 on more layers, averaged."
    optimizers, without_copy = LORA_OPTIMIZERS, ""
    if target == MODEL:
        described = "full, NVIDIA: as SANA was trained, for thousands of pictures."
        optimizers, without_copy = OPTIMIZERS, " no float32 copy: halves all memory once more, noisier steps."
    inputs = [
        io.Combo.Input("preset", options=list(recipes), default=CUSTOM, optional=True,
                       tooltip=f"custom: the values above. {described} Its values take the place of those above; "
                       "docs/train.md lists them."),
        make.count("validation", 0, 1000, "Pictures that are not trained, whose loss at fixed noises the plot shows: "
                   "it rises when the rest is learned by heart.", advanced=True),
        make.choice("optimizer", optimizers, "AdamW 8-bit: a quarter of the optimizer's memory; needs the package "
                    f"bitsandbytes.{without_copy}", advanced=True),
        make.choice("algorithm", ALGORITHMS,
                    "LoRA: read everywhere. DoRA: also the length of each row of the weights; "
                    "slower, for the trained model alone. LoKr: a file a twentieth as large. See docs/train.md.",
                    advanced=True),
    ]  # fmt: skip
    return [one for one in inputs if target == LORA or one.id not in OF_A_LORA]


def run_outputs(path: str) -> list[io.Output]:
    return [
        io.LossMap.Output(display_name="loss", tooltip="Loss of every step."),
        io.Image.Output(display_name="samples", tooltip="The sample prompts before the first step and at the end."),
        io.Image.Output(display_name="plot", tooltip="Loss of every step, smoothed, and per noise level."),
        io.String.Output(display_name="path", tooltip=path),
    ]
