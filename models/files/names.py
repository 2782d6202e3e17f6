"""What of a path may name a release, for what no tensor tells; each family reads it in its own way.

Source: names of the releases on the hub, of diffusers' and trainers' folders, and of the hub's own cache.
"""

import re

# The ending of a weight file; the variant in it (".bf16.safetensors") is how it is stored, not how it was trained.
ENDING = re.compile(r"(\.(bf16|fp16|fp32|int4))?(-\d{5}-of-\d{5})?\.(safetensors|sft|pth|pt|ckpt|bin)(\.index.*)?$")
# Folders that say nothing of a model, so that the one around them does: diffusers', trainers', the hub's cache.
HUB_REPOSITORY = "models--"  # begins its folder in the hub's cache
PASSED_FILES = re.compile(r"diffusion_pytorch_model|pytorch_model|model")  # that every diffusers folder has
PASSED_FOLDERS = re.compile(r"transformer\w*|ema|pipeline|checkpoints|snapshots|checkpoint-\d+|[0-9a-f]{40}")


def telling_names(path: str) -> list[str]:
    """What of a path may name the release: the file without its ending, its folder, and the one around `transformer`
    and the like; lower case, innermost first. Separators of either system."""
    *folders, file = re.split(r"[\\/]+", path.strip("\\/").lower())
    names = [ENDING.sub("", file)]
    for folder in reversed(folders):
        names.append(folder)
        if not PASSED_FOLDERS.fullmatch(folder):
            break
    return names


def own_names(names: list[str]) -> list[str]:
    """Of `telling_names` the model's own: its file's, or its folder's where every file has that name; and its hub's
    repository. A folder that models are sorted into has none."""
    telling = [name for name in names if not PASSED_FILES.fullmatch(name) and not PASSED_FOLDERS.fullmatch(name)]
    return telling[:1] + [name for name in telling[1:] if name.startswith(HUB_REPOSITORY)]
