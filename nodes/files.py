"""The names a loader offers, and the path behind each: files of the host's folders and whole diffusers folders."""

import os

import folder_paths

FOLDER_MARK = "/"  # ends the name of a diffusers folder in a loader's list
# The demo model comes with the pack, so that its workflow runs before anything was downloaded.
BUNDLED_NAME = "sana-native-demo" + FOLDER_MARK
BUNDLED_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "demo", "checkpoint")


def diffusers_folders(component: str) -> dict[str, str]:
    """Name -> path of every model in the host's `diffusers` folders that holds the component."""
    found: dict[str, str] = {}
    for search_path in folder_paths.get_folder_paths("diffusers"):
        for root, folders, files in os.walk(search_path, followlinks=True):
            if "model_index.json" in files:
                if component in folders:
                    name = os.path.relpath(root, search_path).replace(os.sep, "/") + FOLDER_MARK
                    found.setdefault(name, root)
                folders.clear()  # a model's own subfolders hold no further model
    if os.path.isdir(os.path.join(BUNDLED_FOLDER, component)):
        found.setdefault(BUNDLED_NAME, BUNDLED_FOLDER)
    return dict(sorted(found.items()))


def list_names(folder: str, component: str) -> list[str]:
    """Names for a loader's combo: diffusers folders first, then files."""
    return [*diffusers_folders(component), *folder_paths.get_filename_list(folder)]


def resolve(name: str, folder: str, component: str) -> str:
    """Path of a name from `list_names`. Raises FileNotFoundError when the file or folder is gone."""
    if name.endswith(FOLDER_MARK):
        folders = diffusers_folders(component)
        if name not in folders:
            raise FileNotFoundError(
                f"The diffusers folder {name} is not in models/diffusers any more: refresh the list and pick again."
            )
        return folders[name]
    return folder_paths.get_full_path_or_raise(folder, name)
