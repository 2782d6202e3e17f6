"""A folder of pictures -> a training set -> an encoded set, which the training nodes take."""

import os

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..models.sana.resolution import RATIO
from ..training.dataset import SetOptions, caption_path, find_pictures, read_folder
from ..training.encode import encode_set
from .files import BUNDLED_PICTURES, FOLDER_MARK
from .training_inputs import CATEGORY, EncodedPictures
from .training_run import FOLDER, LOST, output_folder
from .warnings import show

PictureSet = io.Custom("SANA_TRAINING_SET")


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
                io.Vae.Input("vae", tooltip="The model's own VAE; for SANA the DC-AE."),
                io.Clip.Input("clip", tooltip="The model's own text encoder; for SANA Gemma-2."),
                io.Boolean.Input(
                    "instruction",
                    default=True,
                    optional=True,
                    tooltip="Puts SANA's instruction before each caption, as SANA Gemma Encode does for a prompt.",
                ),
            ],
            outputs=[
                EncodedPictures.Output(display_name="encoded_set", tooltip="For SANA Train LoRA or SANA Train Model.")
            ],
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
