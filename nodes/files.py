"""The names a loader offers, and the path behind each: files of the host's folders and whole diffusers folders."""

import os

import folder_paths

from ..models.dc_ae.tiny_decoder import TINY_DECODER
from ..models.files.file_errors import printable
from ..models.files.reader import read_json

FOLDER_MARK = "/"  # ends the name of a folder in a loader's list
# Files with all three parts, as the host's own Save Checkpoint writes them, lie in a folder of their own.
CHECKPOINTS = "checkpoints"
CHECKPOINTS_MARK = CHECKPOINTS + "/"
# Folders beside models/controlnet where NVIDIA's file of a base with its ControlNet may lie, and how it is known there.
MERGED_FOLDERS = (CHECKPOINTS, "diffusion_models")
MERGED_NAME = "control"
# Class in config.json -> component, for a folder that holds this one alone.
CLASSES = {
    "SanaTransformer2DModel": "transformer",
    "PixArtTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",
    "LuminaNextDiT2DModel": "transformer",
    "SanaControlNetModel": "controlnet",
    "PixArtControlNetAdapterModel": "controlnet",
    "AutoencoderDC": "vae",
    "AutoencoderKL": "vae",
    "Gemma2Model": "text_encoder",
    "Gemma2ForCausalLM": "text_encoder",
    "T5EncoderModel": "text_encoder",
    "GemmaModel": "text_encoder",
    "GemmaForCausalLM": "text_encoder",
}
COMPONENTS = ("transformer", "vae", "text_encoder", "controlnet")
AVERAGED = "transformer_ema"  # a trainer's average of the weights, beside the transformer
# The demo models come with the pack, so that their workflows run before anything was downloaded.
BUNDLED_NAME = "sana-native-demo" + FOLDER_MARK
DEMO_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "demo")
BUNDLED_FOLDERS = {
    BUNDLED_NAME: os.path.join(DEMO_FOLDER, "checkpoint"),
    # A transformer alone: text encoder and autoencoder are the other's.
    "sana-native-demo-sprint" + FOLDER_MARK: os.path.join(DEMO_FOLDER, "checkpoint_sprint"),
    # ControlNets for the two, listed once they are trained.
    "sana-native-demo-controlnet" + FOLDER_MARK: os.path.join(DEMO_FOLDER, "checkpoint_controlnet"),
    "sana-native-demo-controlnet-sprint" + FOLDER_MARK: os.path.join(DEMO_FOLDER, "checkpoint_controlnet_sprint"),
}
# Ten pictures of a thing that the demo model does not know, for a first training.
BUNDLED_PICTURES = {"sana-native-demo-pictures" + FOLDER_MARK: os.path.join(DEMO_FOLDER, "pictures")}


def component_of(folder: str) -> str | None:
    """Which component's config.json lies in a folder; None for another class's, and for one that cannot be read."""
    try:
        config = read_json(os.path.join(folder, "config.json"))
    except (OSError, ValueError):
        return None
    names = [config.get("_class_name"), *(config.get("architectures") or [])]
    return next((CLASSES[name] for name in names if name in CLASSES), None)


def parts_of(folder: str, subfolders: list[str], files: list[str]) -> dict[str, list[str]]:
    """Component -> folders to offer for it, of a folder that is a model; {} for one that is none, such as a group."""
    parts = {name: [folder] for name in COMPONENTS if name in subfolders}
    if AVERAGED in subfolders:
        parts.setdefault("transformer", []).append(os.path.join(folder, AVERAGED))
    if "transformer" in parts or "model_index.json" in files:
        return parts
    alone = component_of(folder) if "config.json" in files else None
    return {alone: [folder]} if alone else {}


def walk_models() -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Component -> name -> path of every model in the host's `diffusers` folders, and when each folder last changed.

    A model is a diffusers folder, a trainer's checkpoint with a `transformer` folder, or one component's folder.
    """
    found: dict[str, dict[str, str]] = {}
    changed: dict[str, float] = {}
    for search_path in folder_paths.get_folder_paths("diffusers"):
        for root, folders, files in os.walk(search_path, followlinks=True):
            changed[root] = modified(root)
            config = os.path.join(root, "config.json")
            if "config.json" in files:
                changed[config] = modified(config)
            parts = {} if root == search_path else parts_of(root, folders, files)
            for component, paths in parts.items():
                for path in paths:
                    name = os.path.relpath(path, search_path).replace(os.sep, "/") + FOLDER_MARK
                    found.setdefault(component, {}).setdefault(name, path)
            if parts or "model_index.json" in files:
                folders.clear()  # a model's own subfolders hold no further model
    return found, changed


def modified(path: str) -> float:
    """When a file or folder last changed; -1 for one that is gone."""
    try:
        return os.path.getmtime(path)
    except OSError:
        return -1.0


class ModelFolders:
    """The models of the host's `diffusers` folders, walked anew only when one of the folders has changed.

    As the host caches its own lists of files: every loader's schema asks, and a user may have thousands of folders.
    """

    def __init__(self):
        self.cached: tuple[list[str], dict[str, dict[str, str]], dict[str, float]] = ([], {}, {})

    def of(self, component: str) -> dict[str, str]:
        """Name -> path of every model that holds the component."""
        roots = list(folder_paths.get_folder_paths("diffusers"))
        known, found, changed = self.cached
        watched = {*changed, *filter(os.path.isdir, roots)}
        if roots != known or any(modified(path) != changed.get(path) for path in watched):
            found, changed = walk_models()
            self.cached = roots, found, changed
        return found.get(component, {})


MODEL_FOLDERS = ModelFolders()


def diffusers_folders(component: str) -> dict[str, str]:
    """Name -> path of every model that holds the component: those of the user, then those of the pack."""
    found = dict(MODEL_FOLDERS.of(component))
    for name, folder in BUNDLED_FOLDERS.items():
        if os.path.isdir(os.path.join(folder, component)):
            found.setdefault(name, folder)
    return {name: found[name] for name in sorted(found, key=lambda name: name.removesuffix(FOLDER_MARK))}


def list_names(folder: str, component: str) -> list[str]:
    """Names for a loader's combo: diffusers folders first, then files, then those of `checkpoints`."""
    files = folder_paths.get_filename_list(folder)
    checkpoints = [CHECKPOINTS_MARK + name for name in folder_paths.get_filename_list(CHECKPOINTS)]
    return [*diffusers_folders(component), *files, *(name for name in checkpoints if name not in files)]


def resolve(name: str, folder: str, component: str) -> str:
    """Path of a name from `list_names`. Raises FileNotFoundError when the file or folder is gone."""
    if name.endswith(FOLDER_MARK):
        folders = diffusers_folders(component)
        if name not in folders:
            raise FileNotFoundError(
                f"The diffusers folder {printable(name)} is not in models/diffusers any more: refresh the list and "
                "pick again."
            )
        return folders[name]
    if name.startswith(CHECKPOINTS_MARK) and folder_paths.get_full_path(folder, name) is None:
        return file_path(name.removeprefix(CHECKPOINTS_MARK), CHECKPOINTS)
    return file_path(name, folder)


def list_controlnets() -> list[str]:
    """Names for the ControlNet loader: folders, files of models/controlnet, then merged files of `MERGED_FOLDERS`."""
    names = folder_paths.get_filename_list("controlnet")
    merged = [
        f"{folder}/{name}"
        for folder in MERGED_FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if MERGED_NAME in name.lower()
    ]
    return [*diffusers_folders("controlnet"), *names, *(name for name in merged if name not in names)]


def resolve_controlnet(name: str) -> str:
    """Path of a name from `list_controlnets`. Raises FileNotFoundError when the file or folder is gone."""
    folder, _, rest = name.partition("/")
    if folder in MERGED_FOLDERS and rest and folder_paths.get_full_path("controlnet", name) is None:
        return file_path(rest, folder)
    return resolve(name, "controlnet", "controlnet")


def add_output_controlnets() -> None:
    """Lists what SANA ControlNet Save writes, as the host lists its own save nodes' folders below the output folder."""
    folder_paths.add_model_folder_path("controlnet", os.path.join(folder_paths.get_output_directory(), "controlnet"))


def tiny_decoder_path() -> str | None:
    """The user's TAESANA decoder in models/vae_approx, found as the host finds its own tiny decoders; None for none."""
    names = folder_paths.get_filename_list("vae_approx")
    name = next((name for name in names if name.startswith(TINY_DECODER)), None)
    return name and folder_paths.get_full_path("vae_approx", name)


def file_path(name: str, folder: str) -> str:
    """Path of a file in the host's folders. Raises FileNotFoundError when it is gone."""
    path = folder_paths.get_full_path(folder, name)
    if path is not None:
        return path
    for search_path in folder_paths.get_folder_paths(folder):
        candidate = os.path.join(search_path, os.path.normpath(os.sep + name).lstrip(os.sep))
        if os.path.lexists(candidate):  # a link that leads nowhere, or no file: the reader says which
            return candidate
    raise FileNotFoundError(f"{printable(name)} is not in models/{folder} any more: refresh the list and pick again.")
