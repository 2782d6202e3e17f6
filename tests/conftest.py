"""Make `import sana_native` and `import comfy` mean the same in every test, however pytest was started."""

import os
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".comfyui" / "ComfyUI")
# Tiny tensors: a second thread only waits for the first. Servers and programs that tests start take it from here.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# With the repository root on sys.path the host's `import nodes` would find the pack's folder of that name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
# The root is the pack, and its __init__.py needs the host; an empty package gives tests its modules one by one.
sana_native = types.ModuleType("sana_native")
sana_native.__path__ = [str(ROOT)]
sys.modules["sana_native"] = sana_native

if (HOST / "comfy").is_dir():
    sys.path.insert(0, str(HOST))
    import torch
    from comfy.cli_args import args

    torch.set_num_threads(1)  # whatever the environment says
    # Before anything else of comfy is imported: without it the host looks for a GPU and fails where there is none.
    args.cpu = not torch.cuda.is_available()


@pytest.fixture
def seed() -> int:
    """Seed torch's global generator, and return the seed for generators of a test's own."""
    import torch

    torch.manual_seed(1234)
    return 1234


@pytest.fixture(scope="session")
def comfy_server(tmp_path_factory):
    """Return a factory of running servers: `comfy_server(*extra_args, prepare=function_of_base_directory)`.

    The pack lies in custom_nodes under a name with a space and a hyphen. Equal arguments share one server.
    """
    from sana_native.tools.comfy_server import ComfyServer
    from sana_native.tools.host import prepare_base

    running = {}

    def start(*extra_args: str, prepare=None) -> ComfyServer:
        key = (extra_args, prepare)
        if key not in running:
            base = prepare_base(tmp_path_factory.mktemp("base dir"), pack_name="sana native-pack")
            if prepare is not None:
                prepare(base)
            server = ComfyServer(base, extra_args, host=HOST, cpu=args.cpu)
            server.start()
            running[key] = server
        return running[key]

    yield start
    for server in running.values():
        server.stop()


def without_space(base: Path) -> None:
    pack = base / "custom_nodes" / "sana native-pack"
    pack.rename(pack.with_name("sana-native"))


@pytest.fixture(scope="session")
def web_server(comfy_server):
    """A server whose browser finds the pack's files: the host serves none from a folder with a space in its name.

    Its page is that of the version that FRONTEND names, or the host's own.
    """
    from sana_native.tools.host import front_end_arguments

    return comfy_server(*front_end_arguments(), prepare=without_space)


@pytest.fixture(scope="session")
def object_info(comfy_server) -> dict:
    """The host's description of every node, the pack's included."""
    return comfy_server().object_info()
