"""A training set -> latents and text states in a folder of files, keyed by content, model and size.

Encoded once, so that a training needs neither the autoencoder nor the text encoder in memory.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.files.file_errors import printable
from .buckets import Size
from .captions import Caption
from .dataset import Sample, SetOptions, TrainingSet, content_digest
from .pictures import fit_picture, read_picture
from .state import save_whole

LATENT, STATES, MASK = "latent", "states", "mask"
DIGEST = "digest"  # key in a file's header: of its tensors
FORMAT = "2"  # of the files; a change makes others of them
VERIFIED: set[tuple[str, int, int]] = set()  # (path, mtime_ns, size) of files whose digest was right, once a process


@dataclass(frozen=True)
class EncodedSample:
    """Files of one sample. size: (height, width) in pixels. picture: the same for a picture and its mirror image."""

    latent_path: str
    caption_path: str
    size: Size
    picture: str = ""

    def latent(self) -> Tensor:
        """The raw latent (C, H, W), as the autoencoder gives it."""
        return load_part(self.latent_path)[LATENT]

    def caption(self) -> Caption:
        return load_caption(self.caption_path)


@dataclass(frozen=True)
class EncodedSet:
    """Samples, each as often as it comes in an epoch, and the file of the empty prompt."""

    samples: tuple[EncodedSample, ...]
    null_path: str
    instruction: bool
    options: SetOptions

    def null(self) -> Caption:
        return load_caption(self.null_path)


def hold_out(samples: Sequence[EncodedSample], count: int) -> tuple[list[EncodedSample], list[EncodedSample]]:
    """The samples that are trained, and `count` pictures from all over the set, each once.

    A mirrored picture goes with its own. Raises ValueError where nothing is left to train.
    """
    picture_of = {sample: sample.picture or sample.latent_path for sample in samples}
    pictures = list(dict.fromkeys(picture_of.values()))
    if count >= len(pictures):
        raise ValueError(
            f"validation {count} leaves no picture to train on, of {len(pictures)} in the set: enter fewer, or add "
            "pictures."
        )
    held = [pictures[(2 * place + 1) * len(pictures) // (2 * count)] for place in range(count)]
    first = {picture_of[sample]: sample for sample in reversed(samples)}
    return [sample for sample in samples if picture_of[sample] not in held], [first[picture] for picture in held]


def save_part(tensors: dict[str, Tensor], path: str, what: str) -> None:
    """Writes a file of the cache. what: it is of. Raises ValueError for values that are not finite."""
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ValueError(f"{what} is encoded to values that are not finite: load the encoder in float32.")
    save_whole(tensors, path, {DIGEST: tensors_digest(tensors)})


def load_part(path: str) -> dict[str, Tensor]:
    """Tensors of a file of the cache.

    Raises FileNotFoundError when it was removed, or has no digest; one that is not as it was written is removed here,
    so that it is encoded again.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not in the cache any more: run SANA Encode Training Set again.")
    tensors, is_whole = read_part(path)
    if is_whole is None:
        raise FileNotFoundError(
            f"{path} is of an older version, which wrote no digest: run SANA Encode Training Set again."
        )
    if not is_whole:
        os.remove(path)
        raise FileNotFoundError(
            f"{path} was damaged, and is not in the cache any more: run SANA Encode Training Set again."
        )
    return tensors


def read_part(path: str) -> tuple[dict[str, Tensor], bool | None]:
    """Tensors of a file of the cache, and whether they are those that were written; None where it has no digest."""
    about = os.stat(path)
    version = path, about.st_mtime_ns, about.st_size
    try:
        with safe_open(path, "pt") as file:
            tensors, digest = {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {}).get(DIGEST)
    except SafetensorError:
        return {}, False
    if digest is None:
        return tensors, None
    if version not in VERIFIED and digest == tensors_digest(tensors):
        VERIFIED.add(version)
    return tensors, version in VERIFIED


def is_encoded(path: str) -> bool:
    """Whether the cache has a file with a digest, which is checked where the file is read."""
    try:
        with safe_open(path, "pt") as file:
            return DIGEST in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_caption(path: str) -> Caption:
    parts = load_part(path)
    return Caption(parts[STATES], parts[MASK])


def digest_of(*parts: str) -> str:
    return hashlib.sha256("\0".join((FORMAT, *parts)).encode()).hexdigest()[:32]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, formats, shapes and values, to the last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def model_digest(patcher: Any) -> str:
    """Of a model's weights, and of the patches on it, which are another's in the next session."""
    return tensors_digest(patcher.model.state_dict()) + (str(patcher.patches_uuid) if patcher.patches else "")


@torch.inference_mode()
def encode_set(
    training_set: TrainingSet,
    vae: Any,
    clip: Any,
    instruction: bool,
    folder: str,
    progress: Callable[[int, int], None],
) -> EncodedSet:
    """Encodes what is not in the folder yet.

    vae, clip: the host's. instruction: the text SANA was trained with stands before each caption. progress: told how
    many of how many are done.
    """
    vae_digest, clip_digest = model_digest(vae.patcher), model_digest(clip.patcher)
    encoded, total = [], 2 * len(training_set.samples) + 1
    null_path = encode_text(clip, "", False, clip_digest, folder)
    progress(1, total)
    captions = []
    for sample in training_set.samples:  # texts first: each encoder is loaded once
        captions.append(encode_text(clip, sample.caption, instruction, clip_digest, folder))
        progress(1 + len(captions), total)
    for done, (sample, caption) in enumerate(zip(training_set.samples, captions, strict=True), 1):
        latent = encode_picture(vae, sample, vae_digest, folder)
        encoded += [EncodedSample(latent, caption, sample.size, sample.digest)] * sample.repeats
        progress(1 + len(captions) + done, total)
    return EncodedSet(tuple(encoded), null_path, instruction, training_set.options)


def encode_text(clip: Any, text: str, instruction: bool, clip_digest: str, folder: str) -> str:
    """Path of a text's states and mask."""
    path = os.path.join(folder, f"text_{digest_of(clip_digest, text, str(instruction))}.safetensors")
    if not is_encoded(path):
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens = clip.tokenize(text, **({} if instruction and text else {"instruction": ""}))
        (states, extra), *_ = clip.encode_from_tokens_scheduled(tokens)
        # Gemma-2's states come with a mask of its padding; other encoders pad nothing, so every position counts.
        mask = extra["attention_mask"][0] if "attention_mask" in extra else torch.ones(states.shape[1])
        # Not the rows of the padding, but those of the empty prompt, which a caption's mask may be laid on.
        length = len(mask) if not text else int(mask.nonzero().max()) + 1
        parts = {STATES: states[0, :length].float().clone(), MASK: mask[:length].clone()}
        save_part(parts, path, f'The caption "{text}"')
    return path


def encode_picture(vae: Any, sample: Sample, vae_digest: str, folder: str) -> str:
    """Path of a picture's raw latent. Raises ValueError for a picture that is another than when the set was read."""
    height, width = sample.size
    key = digest_of(vae_digest, sample.digest, f"{height} {width} {sample.mirrored}")
    path = os.path.join(folder, f"latent_{key}.safetensors")
    if not is_encoded(path):
        comfy.model_management.throw_exception_if_processing_interrupted()
        pixels = fit_picture(read_picture(same_content(sample)).image, sample.size, sample.mirrored)
        save_part({LATENT: vae.encode(pixels[None])[0].float().clone()}, path, printable(sample.path))
    return path


def same_content(sample: Sample) -> bytes:
    """A picture's file. Raises ValueError for one that was changed or removed since the set was read."""
    try:
        with open(sample.path, "rb") as file:
            content = file.read()
    except OSError as error:
        found = f"cannot be read any more ({error.strerror or type(error).__name__})"
    else:
        if content_digest(content) == sample.digest:
            return content
        found = "was changed while its set was encoded"
    raise ValueError(f"{printable(sample.path)} {found}: let it be, and run SANA Training Set again.")
