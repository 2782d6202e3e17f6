"""Training in the graph: a folder of pictures -> a training set -> a LoRA in the host's list of LoRAs."""

import os

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..models.sana.resolution import RATIO
from ..training.adapters import PRESETS
from ..training.captions import NULL_MASKS
from ..training.dataset import SetOptions, caption_path, find_pictures, read_folder
from ..training.encode import encode_set
from ..training.loss import TIME_SAMPLINGS
from ..training.optimizer import SCHEDULES
from ..training.trainer import Settings
from .files import BUNDLED_PICTURES, FOLDER_MARK
from .training_run import FOLDER, LATEST, LOST, NEW, STOPPED, output_folder, run_files, train_lora
from .warnings import show

CATEGORY = "model/training/sana"
PictureSet, EncodedPictures = io.Custom("SANA_TRAINING_SET"), io.Custom("SANA_ENCODED_SET")
DEFAULTS = Settings()
DEFAULT_NAME = "sana_lora"


class SanaNativeTrainingSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeTrainingSet",
            display_name="SANA Training Set",
            category=CATEGORY,
            description="Reads and checks a folder of pictures with a .txt caption beside each.",
            search_aliases=["sana train", "dataset", "captions", "load training images"],
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    tooltip="Folder with the pictures: a full path, or a name below ComfyUI's input folder. A "
                    "subfolder 5_name has its pictures five times in an epoch.",
                ),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=RATIO,
                    max=4096,
                    step=RATIO,
                    optional=True,
                    tooltip="Side in pixels of the square that the model was trained on: 512, 1024, 2048 or 4096; "
                    "256 for the demo.",
                ),
                io.Boolean.Input(
                    "bins",
                    default=True,
                    optional=True,
                    tooltip="Trains each picture in the trained size nearest to its shape. Off: all become squares.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    optional=True,
                    tooltip="Adds every picture mirrored. Not for text, faces or anything with a left and a right.",
                ),
                io.String.Input(
                    "trigger_word",
                    default="",
                    optional=True,
                    tooltip="Put before every caption that does not have it, so that it calls up what was trained.",
                ),
                io.String.Input(
                    "default_caption",
                    default="",
                    optional=True,
                    tooltip="Caption of pictures without a .txt file. Empty: such a picture is an error, unless there "
                    "is a trigger_word.",
                ),
            ],
            outputs=[
                PictureSet.Output(display_name="training_set", tooltip="For SANA Encode Training Set."),
                io.String.Output(
                    display_name="report", tooltip="How many pictures at which sizes, and what is converted or cropped."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_) -> list:
        return listing(folder)

    @classmethod
    def execute(cls, folder="", size=1024, bins=True, flip=False, trigger_word="", default_caption="") -> io.NodeOutput:
        found = read_folder(resolve_folder(folder), SetOptions(size, bins, flip, trigger_word, default_caption))
        show(list(found.notices))
        return io.NodeOutput(found, found.describe())


class SanaNativeEncodeTrainingSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeEncodeTrainingSet",
            display_name="SANA Encode Training Set",
            category=CATEGORY,
            description="Encodes pictures and captions once; the files are found again by content and model.",
            search_aliases=["sana train", "cache latents", "cache text states"],
            inputs=[
                PictureSet.Input("training_set", tooltip="From SANA Training Set."),
                io.Vae.Input("vae", tooltip="DC-AE from SANA DC-AE Loader."),
                io.Clip.Input("clip", tooltip="Gemma-2 from SANA Gemma Loader."),
                io.Boolean.Input(
                    "instruction",
                    default=True,
                    optional=True,
                    tooltip="Puts SANA's instruction before each caption, as SANA Gemma Encode does for a prompt.",
                ),
            ],
            outputs=[EncodedPictures.Output(display_name="encoded_set", tooltip="For SANA Train LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **_) -> int:
        """Changes when a file of the cache was found missing, so that Run encodes again."""
        return LOST[FOLDER]

    @classmethod
    def execute(cls, training_set, vae, clip, instruction: bool = True) -> io.NodeOutput:
        bar = comfy.utils.ProgressBar(2 * len(training_set.samples) + 1)
        cache = os.path.join(output_folder(), "cache")
        return io.NodeOutput(encode_set(training_set, vae, clip, instruction, cache, bar.update_absolute))


def count(name: str, least: int, most: int, tooltip: str, **options) -> io.Input:
    default = getattr(DEFAULTS, name)
    return io.Int.Input(name, default=default, min=least, max=most, optional=True, tooltip=tooltip, **options)


def number(name: str, most: float, step: float, tooltip: str, **options) -> io.Input:
    default = getattr(DEFAULTS, name)
    return io.Float.Input(
        name, default=default, min=0.0, max=most, step=step, round=False, optional=True, tooltip=tooltip, **options
    )


def choice(name: str, values, tooltip: str, **options) -> io.Input:
    default = getattr(DEFAULTS, name)
    return io.Combo.Input(name, options=list(values), default=default, optional=True, tooltip=tooltip, **options)


def setting_inputs() -> list[io.Input]:
    """Inputs of a run by the names of `Settings`."""
    hidden = {"advanced": True}
    return [
        count("steps", 1, 1_000_000, "Steps in all, those before a resume included; each trains batch_size times "
              "accumulation pictures."),
        number("learning_rate", 1.0, 1e-6, "How far each step goes. 1e-4 for a LoRA; lower it when the loss jumps."),
        count("rank", 1, 1024, "Width of the LoRA: 4 to 16 for a thing, 16 to 64 for a style."),
        number("alpha", 1024.0, 0.5, "Strength of the LoRA while it is trained, divided by rank. Equal to rank is "
               "usual."),
        choice("layers", PRESETS, "Layers that are trained. attention qkv: as diffusers' script. The others learn "
               "more and make larger files."),
        count("batch_size", 1, 256, "Pictures of one size computed at once; more needs more memory."),
        count("accumulation", 1, 1024, "Batches before each step: a larger batch without more memory."),
        count("seed", 0, 0xFFFFFFFFFFFFFFFF, "The same seed, set and settings give the same LoRA on the same machine.",
              control_after_generate=False),
        count("save_every", 0, 1_000_000, "Steps between saves of the run and of a LoRA with the step in its name. 0: "
              "at the end only."),
        count("sample_every", 0, 1_000_000, "Steps between pictures of sample_positive. 0: at the end only."),
        choice("schedule", SCHEDULES, "constant, or cosine: the learning rate falls to 0 at the last step.", **hidden),
        count("warmup", 0, 100_000, "Steps in which the learning rate grows from 0.", **hidden),
        choice("time_sampling", TIME_SAMPLINGS, "Which noise levels are trained, pushed by the model's shift. "
               "logit-normal: as SANA was trained.", **hidden),
        number("caption_dropout", 1.0, 0.01, "Part of the captions left out, so that guidance (cfg) stays good.",
               **hidden),
        choice("null_mask", NULL_MASKS, "How a left-out caption is read. bos: as ComfyUI and diffusers do. caption: as "
               "NVIDIA's code does.", **hidden),
        number("ema", 0.99999, 0.001, "Decay of an average of the weights, which is saved in their place; 0.999 is "
               "usual, 0 is off.", **hidden),
        number("clip_norm", 1000.0, 0.1, "Largest norm of a step's gradient; 0 is off.", **hidden),
        number("weight_decay", 1.0, 1e-4, "AdamW's decay of the weights.", **hidden),
        io.Boolean.Input("checkpointing", default=DEFAULTS.checkpointing, optional=True, advanced=True,
                         tooltip="Computes each block again for its gradient: less memory, more time."),
    ]  # fmt: skip


class SanaNativeTrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SanaNativeTrainLora",
            display_name="SANA Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on SANA or SANA-1.5 and writes it into models/loras. Cancel keeps what was "
            "trained.",
            search_aliases=["sana train", "train lora", "dreambooth", "fine-tune"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SANA or SANA-1.5 from SANA Model Loader, in bfloat16 or float32. It stays as it is.",
                ),
                EncodedPictures.Input("encoded_set", tooltip="From SANA Encode Training Set."),
                io.String.Input(
                    "name",
                    default=DEFAULT_NAME,
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
                *setting_inputs(),
                io.Conditioning.Input(
                    "sample_positive", optional=True, tooltip="Prompts to generate while training; needs vae too."
                ),
                io.Conditioning.Input("sample_negative", optional=True, tooltip="Their negative prompt, for cfg 4.5."),
                io.Vae.Input("vae", optional=True, tooltip="DC-AE that decodes the sample pictures."),
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model, in the same graph."),
                io.LossMap.Output(display_name="loss", tooltip="Loss of every step."),
                io.Image.Output(
                    display_name="samples",
                    tooltip="The sample prompts before the first step and at the end.",
                ),
                io.Image.Output(display_name="plot", tooltip="Loss of every step, smoothed, and per noise level."),
                io.String.Output(display_name="path", tooltip="The file in models/loras."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name=DEFAULT_NAME, resume=NEW, **_) -> list:
        """Changes when a run of the name was stopped, so that the host does not give its result again for a press of
        Run, and when another run became the last."""
        return [STOPPED[name], run_files(name, resume).state if resume == LATEST else ""]

    @classmethod
    def execute(
        cls,
        model,
        encoded_set,
        name=DEFAULT_NAME,
        resume=NEW,
        steps=DEFAULTS.steps,
        learning_rate=DEFAULTS.learning_rate,
        rank=DEFAULTS.rank,
        alpha=DEFAULTS.alpha,
        layers=DEFAULTS.layers,
        batch_size=DEFAULTS.batch_size,
        accumulation=DEFAULTS.accumulation,
        seed=DEFAULTS.seed,
        save_every=DEFAULTS.save_every,
        sample_every=DEFAULTS.sample_every,
        schedule=DEFAULTS.schedule,
        warmup=DEFAULTS.warmup,
        time_sampling=DEFAULTS.time_sampling,
        caption_dropout=DEFAULTS.caption_dropout,
        null_mask=DEFAULTS.null_mask,
        ema=DEFAULTS.ema,
        clip_norm=DEFAULTS.clip_norm,
        weight_decay=DEFAULTS.weight_decay,
        checkpointing=DEFAULTS.checkpointing,
        sample_positive=None,
        sample_negative=None,
        vae=None,
    ) -> io.NodeOutput:
        settings = Settings(
            steps, batch_size, accumulation, learning_rate, schedule, warmup, rank, alpha, layers,
            time_sampling, caption_dropout, null_mask, ema, clip_norm, weight_decay,
            checkpointing, seed, save_every, sample_every,
        )  # fmt: skip
        return train_lora(model, encoded_set, settings, name, resume, sample_positive, sample_negative, vae)


def resolve_folder(folder: str) -> str:
    """A full path, a folder below ComfyUI's input folder, or the bundled pictures. Raises ValueError for none."""
    if not folder.strip():
        raise ValueError("No folder was entered: enter the folder with the pictures and their .txt files.")
    folder = folder.strip().strip('"')  # Windows copies a path with quotes around it
    path = os.path.join(folder_paths.get_input_directory(), os.path.expanduser(folder))
    bundled = BUNDLED_PICTURES.get(folder.rstrip("/\\") + FOLDER_MARK)
    return bundled if bundled and not os.path.isdir(path) else path


def listing(folder: str) -> list[tuple[str, float, int]]:
    """Names, times and sizes of a set's pictures and captions, so that the host reads it again after a change.

    Of no other file, so that a folder entered by mistake, such as /, is not walked through.
    """
    if not folder.strip() or not os.path.isdir(path := resolve_folder(folder)):
        return []
    pictures = [picture for picture, _ in find_pictures(path)]
    files = [one for picture in pictures for one in (picture, caption_path(picture)) if os.path.isfile(one)]
    return [(file, os.path.getmtime(file), os.path.getsize(file)) for file in files]
