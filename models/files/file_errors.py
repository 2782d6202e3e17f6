"""What keeps a file from being read as weights, told from its path, size and first bytes in one sentence with a cure.

Nothing is unpickled here. The host reads safetensors in two ways, of which the memory-mapped one of its dynamic loading
trusts the header; hence the checks of the header here.
"""

import errno
import json
import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import IO

SHOWN_LENGTH = 120
HEADER_LIMIT = 100_000_000  # bytes, as in the format's definition
TEXT_LIMIT = 4096  # bytes that a pointer or a server's error message may have
TAIL, TAIL_CHECKED_FROM = 1 << 14, 1 << 20  # bytes; no trained tensors end in so many zeros
UNFINISHED = (".aria2", ".part", ".crdownload", ".incomplete", ".partial", ".download", ".tmp", ".!qB")
DOWNLOAD_AGAIN = "download it again"
UNPACK = "unpack it and pick the weight file inside"
OTHER_FORMAT = "use the safetensors or .pth file of the same model"

# First bytes of what users keep under a weight file's name -> what it is, and the cure.
SIGNATURES = {
    b"GGUF": ("a GGUF file, which this pack does not load", OTHER_FORMAT),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive, not weights", UNPACK),
    b"Rar!": ("a RAR archive, not weights", UNPACK),
    b"\x1f\x8b": ("a gzip archive, not weights", UNPACK),
    b"\xfd7zXZ": ("an xz archive, not weights", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive, not weights", UNPACK),
    b"\x89HDF": ("an HDF5 file of Keras or TensorFlow, which this pack does not load", OTHER_FORMAT),
    b"\x93NUMPY": ("a NumPy array, not weights by name", OTHER_FORMAT),
    b"\x89PNG": ("a PNG image, not weights", "pick the model that made it"),
    b"\xff\xd8\xff": ("a JPEG image, not weights", "pick the model that made it"),
    b"RIFF": ("a WebP, AVI or WAV file, not weights", "pick a model"),
    b"%PDF": ("a PDF document, not weights", DOWNLOAD_AGAIN),
    b"MZ": ("a Windows program, not weights", "delete it, and download the model from its authors"),
    b"\x7fELF": ("a Linux program, not weights", "delete it, and download the model from its authors"),
}
PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
SAFETENSORS_ENDINGS = (".safetensors", ".sft")
DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
              "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}  # fmt: skip


def shown(path: str) -> str:
    """The last three parts of a path, as one printable line of bearable length, for messages."""
    name = "/".join(os.path.normpath(path).split(os.sep)[-3:])
    name = "".join(char if char.isprintable() else "?" for char in name.encode("utf-8", "replace").decode())
    return name if len(name) <= SHOWN_LENGTH else f"{name[: SHOWN_LENGTH // 2]}…{name[-SHOWN_LENGTH // 2 :]}"


def printable(text: str) -> str:
    """A text that any log and browser takes: half characters, as in a name that is not UTF-8, become escapes.

    The host's worker ends when an exception's message has one.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The gist of another library's message, to be quoted in one of ours."""
    return shown((str(error) or type(error).__name__).splitlines()[0].split(". ")[0].rstrip("."))


def fault(path: str, found: str, cure: str) -> ValueError:
    return ValueError(f"{shown(path)} {found}: {cure}.")


def forbidden(path: str) -> PermissionError:
    return PermissionError(
        f"{shown(path)} may not be read by the user that ComfyUI runs as: allow it to, or move it to another folder."
    )


def gone(path: str) -> FileNotFoundError:
    return FileNotFoundError(f"{shown(path)} does not exist: pick the file again after refreshing the list.")


@contextmanager
def naming_disk_faults(path: str):
    """Turns what the operating system says while a file is read into one sentence."""
    try:
        yield
    except PermissionError as error:
        raise forbidden(path) from error
    except FileNotFoundError as error:
        raise gone(path) from error
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        reason = f"cannot be read from its disk ({error.strerror or type(error).__name__})"
        raise fault(path, reason, f"check the disk, or {DOWNLOAD_AGAIN}") from error


def check_place(path: str) -> None:
    """Raises FileNotFoundError, PermissionError or ValueError unless the path is a file or folder that may be read."""
    try:
        os.stat(path)
    except PermissionError as error:
        raise forbidden(path) from error
    except (OSError, ValueError) as error:
        if not os.path.islink(path):
            raise gone(path) from error
        target = shown(os.path.join(os.path.dirname(path), os.readlink(path)))
        raise FileNotFoundError(
            f"{shown(path)} is a link to {target}, which is not there: put the file itself in its place."
        ) from error
    if not (os.path.isfile(path) or os.path.isdir(path)):
        raise fault(path, "is neither a file nor a folder", "pick a weight file")
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fault(path, "has a name that is not valid UTF-8", "rename it") from error


def unfinished_in(folder: str, names: list[str]) -> ValueError | None:
    """The error for the first of the names in a folder that is what a download manager keeps until a file is whole."""
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending in UNFINISHED and os.path.exists(os.path.join(folder, name)):
            path = os.path.join(folder, stem)
            return fault(path, f"is still being downloaded, as {shown(name)} beside it shows", "wait for its end")
    return None


def check_content(path: str) -> None:
    """Raises ValueError for a file whose size or first bytes show that it holds no whole weights."""
    pending = unfinished_in(os.path.dirname(path), [os.path.basename(path) + ending for ending in UNFINISHED])
    if pending is not None:
        raise pending
    with open(path, "rb") as file:
        head = file.read(TEXT_LIMIT)
    if not head:
        raise fault(path, "is empty", DOWNLOAD_AGAIN)
    named_safetensors = path.lower().endswith(SAFETENSORS_ENDINGS)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= HEADER_LIMIT:
        if not named_safetensors:
            raise fault(path, "is a safetensors file under another name", "rename it to end in .safetensors")
        return check_safetensors(path)
    if head.startswith(b"PK"):
        check_archive(path)
    if head.startswith((b"PK", *PICKLE)):
        if named_safetensors:
            raise fault(path, "is a PyTorch file under another name", "rename it to end in .pth")
        return None
    for signature, (found, cure) in SIGNATURES.items():
        if head.startswith(signature):
            raise fault(path, f"is {found}", cure)
    if not head.strip(b"\0"):
        raise fault(path, "holds only zeros at its start", f"wait for its download to end, or {DOWNLOAD_AGAIN}")
    raise text_fault(path, head) or fault(path, "is no weight file, whatever its name says", DOWNLOAD_AGAIN)


def text_fault(path: str, head: bytes) -> ValueError | None:
    """The error for a text: a web page, a git-lfs pointer, or what a server answered instead of the file."""
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        if error.start < TEXT_LIMIT - 4:  # not a letter that the limit cut in two
            return None
        text = head[: error.start].decode("utf-8").strip()
    if not all(char.isprintable() or char.isspace() for char in text):
        return None
    if text.startswith("version https://git-lfs"):
        return fault(path, "is a git-lfs pointer, not the weights themselves", "run git lfs pull, or download the file")
    if re.match(r"<(!doctype|html|\?xml|head)", text, re.IGNORECASE):
        return fault(
            path,
            "is a web page saved under this name, not weights",
            "download it with the page's own button, logged in if the site asks for it",
        )
    if text.startswith(("{", "[")):
        return fault(path, "is a JSON text, not weights", DOWNLOAD_AGAIN)
    start = "".join(char if char.isprintable() else " " for char in text[:40])
    return fault(path, f'is a text ("{start}"), not weights', f"check its address, and {DOWNLOAD_AGAIN}")


def check_archive(path: str) -> None:
    """Raises ValueError for a zip archive that is cut off or not what torch.save writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError) as error:
        raise fault(
            path, "is incomplete, its end is missing", f"wait for its download to end, or {DOWNLOAD_AGAIN}"
        ) from error
    if any(name.endswith("constants.pkl") for name in names):
        raise fault(path, "is a TorchScript program, which is not loaded because it could run code", OTHER_FORMAT)
    if not any(name.endswith("data.pkl") for name in names):
        inside = f"that holds {shown(names[0])}" if names else "without content"
        raise fault(path, f"is a zip archive {inside}, not weights", UNPACK)


SAFE_PICKLE_MODULES = {"torch", "collections", "numpy", "_codecs"}  # of what weights are saved with


def holds_code(path: str) -> bool:
    """Whether a pickle names functions or classes that weights do not need. It is read, opcode by opcode, never run."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return any(module.partition(".")[0] not in SAFE_PICKLE_MODULES for module in pickled_modules(file))
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(name) as file:
                return any(module.partition(".")[0] not in SAFE_PICKLE_MODULES for module in pickled_modules(file))
    except (OSError, zipfile.BadZipFile, StopIteration):
        return False


def pickled_modules(file: IO[bytes]) -> Iterator[str]:
    """Modules of the functions and classes that a pickle names, up to its end or to where it is damaged."""
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                yield argument.partition(" ")[0]
            elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                yield texts[-2]
            elif isinstance(argument, str):
                texts = [*texts[-1:], argument]
    except (ValueError, IndexError, UnicodeDecodeError, AttributeError):
        return


def check_safetensors(path: str) -> None:
    """Raises ValueError for a safetensors file whose header is damaged or does not fit the file's size."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            raise incomplete(path, size, 8 + length)
        header = file.read(length)
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None)
        spans = sorted(span_of(entry) for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise fault(path, "is damaged, its header cannot be read", DOWNLOAD_AGAIN) from error
    if not isinstance(metadata, dict | None):
        raise fault(path, "is damaged, its header cannot be read", DOWNLOAD_AGAIN)
    end = 0
    for start, stop in spans:
        if start != end or stop < start:
            raise fault(path, "is damaged, its tensors overlap or leave gaps", DOWNLOAD_AGAIN)
        end = stop
    if size < 8 + length + end:
        raise incomplete(path, size, 8 + length + end)
    if size > 8 + length + end:
        raise fault(
            path, f"is damaged, it has {size - 8 - length - end:,} bytes more than its header lists", DOWNLOAD_AGAIN
        )
    if end >= TAIL_CHECKED_FROM:
        with open(path, "rb") as file:
            file.seek(-TAIL, os.SEEK_END)
            tail = file.read()
        if not tail.strip(b"\0"):
            raise fault(
                path,
                "ends in zeros, as a file does whose download has reserved its place",
                f"wait for its end, or {DOWNLOAD_AGAIN}",
            )


def span_of(entry: dict) -> tuple[int, int]:
    """Start and end of a tensor's bytes. Raises ValueError, KeyError or TypeError for an entry that makes no sense."""
    start, stop = entry["data_offsets"]
    shape, bits = entry["shape"], DTYPE_BITS.get(entry["dtype"])
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)):
        raise ValueError("not a count")
    if bits is not None and (stop - start) * 8 != prod(shape) * bits:
        raise ValueError("another size than its shape")
    return start, stop


def incomplete(path: str, size: int, expected: int) -> ValueError:
    return fault(
        path,
        f"is incomplete, it has {size:,} of at least {expected:,} bytes",
        f"wait for its download to end, or {DOWNLOAD_AGAIN}",
    )
