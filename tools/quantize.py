"""A transformer or text encoder into a file with narrow weights, one layer in memory at a time.

    python -m tools.host -- -m tools.quantize IN OUT [--preset int8] [--part transformer]

IN is a weight file of SANA, PixArt or Lumina-Next, any shard of a set, or a diffusers folder; OUT a new .safetensors
file for this pack's loaders.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys

HELP = {
    "int8": "8 bits, the closest to 16 (the default)",
    "fp8": "8 bits for Ada and later",
    "nvfp4": "4 bits for Blackwell",
    "w4a4": "4 bits from Turing on",
}


def read_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.quantize", description=__doc__.splitlines()[0])
    parser.add_argument("source", metavar="IN", help="weight file, shard or folder")
    parser.add_argument("target", metavar="OUT", help="the .safetensors file to write")
    presets = "; ".join(f"{name}: {told}" for name, told in HELP.items())
    parser.add_argument("--preset", choices=HELP, default="int8", help=presets)
    parser.add_argument(
        "--part",
        choices=("transformer", "text_encoder"),
        help="of a folder that holds several; the first one found if left out",
    )
    return parser.parse_args(arguments)


def stop_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end the program as an error does, so that no unfinished file stays."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    from demo.train.pack import prepare_imports

    prepare_imports()
    from comfy.cli_args import args

    args.mmap_torch_files = True  # before the host reads it: NVIDIA's .pth files stay mapped too
    from sana_native.models.files.saving import quantize_file
    from sana_native.models.registry import FAMILIES

    logging.getLogger().setLevel(logging.ERROR)  # the host's own messages on kernels and devices
    try:
        report = quantize_file(FAMILIES, given.source, given.target, given.preset, given.part)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{report}\n")
    return 0


if __name__ == "__main__":
    stop_on_signals()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
