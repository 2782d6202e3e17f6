"""The registry's and Manager's own command lines on this pack: slow, and installing them needs the package index."""

import functools
import http.server
import json
import re
import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from sana_native.tests.support.shipping import commit_tree, git
from sana_native.tools import registry_tools
from sana_native.tools.build_archive import shipped_files
from sana_native.tools.comfy_server import ComfyServer
from sana_native.tools.workflow import to_api

pytestmark = pytest.mark.heavy
HOST = next(Path(entry) for entry in sys.path if (Path(entry) / "comfy" / "sd.py").is_file())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return commit_tree(tmp_path_factory.mktemp("git") / "sana-native")


# comfy-cli


@pytest.fixture(scope="module")
def comfy(checkout, tmp_path_factory):
    """comfy-cli in the checkout; it may leave its files there and in a home of its own."""
    env = registry_tools.environment(tmp_path_factory.mktemp("home"))
    return functools.partial(registry_tools.run, "comfy", "--skip-prompt", cwd=checkout, env=env)


def test_comfy_cli_has_nothing_to_say_against_the_pack(comfy):
    said = comfy("node", "validate")
    assert "All validation checks passed" in said
    assert not re.search("warning|error|invalid", said, re.IGNORECASE), said


def test_comfy_cli_packs_the_same_files(comfy, checkout):
    files = shipped_files(checkout)
    comfy("node", "pack")
    assert sorted(zipfile.ZipFile(checkout / "node.zip").namelist()) == files


# ComfyUI Manager


@pytest.fixture(scope="module")
def git_url(checkout, tmp_path_factory):
    """The checkout as a repository that this machine serves to itself."""
    folder = tmp_path_factory.mktemp("served")
    git(folder, "clone", "-q", "--bare", str(checkout), "sana-native.git")
    git(folder / "sana-native.git", "update-server-info")
    handler = functools.partial(_SilentHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/sana-native.git"
        server.shutdown()


class _SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def fresh_host(tmp_path_factory) -> Path:
    """A copy of ComfyUI of its own, with nothing installed, whose Manager may not use the network."""
    folder = tmp_path_factory.mktemp("fresh") / "ComfyUI"
    shutil.copytree(HOST, folder, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    for name in ("custom_nodes", "models", "user"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    settings = folder / "user" / "__manager" / "config.ini"
    settings.parent.mkdir()
    settings.write_text("[default]\nnetwork_mode = offline\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def manager(fresh_host, tmp_path_factory):
    env = registry_tools.environment(tmp_path_factory.mktemp("home"), COMFYUI_PATH=str(fresh_host))
    return functools.partial(registry_tools.run, "cm-cli", cwd=fresh_host, env=env)


def files_in(folder: Path) -> set[str]:
    own = (folder / "user", folder / "temp", folder / "output")  # of Manager and the server, whatever is installed
    return {
        str(path)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and path.name != "server.log" and not any(o in path.parents for o in own)
    }


def our_nodes(server: ComfyServer) -> list[str]:
    return [name for name in server.object_info() if name.startswith("SanaNative")]


def test_manager_installs_the_pack_runs_its_demo_and_removes_it_without_a_trace(manager, git_url, fresh_host):
    with ComfyServer(fresh_host, host=fresh_host, cpu=True) as server:  # which makes folders of its own
        assert not our_nodes(server)
    before = files_in(fresh_host)
    packages = manager_packages()

    assert "[INSTALLED]" in manager("install", git_url, "--exit-on-fail")
    assert (fresh_host / "custom_nodes" / "sana-native" / "__init__.py").is_file()
    with ComfyServer(fresh_host, host=fresh_host, cpu=True) as server:
        assert our_nodes(server) and not re.search("IMPORT FAILED|Error while calling", server.log())
        (path,) = (fresh_host / "custom_nodes" / "sana-native").glob("*workflows/demo_txt2img.json")
        graph = json.loads(path.read_text(encoding="utf-8"))
        (image,) = server.run(to_api(graph, server.object_info()), timeout=300).images()
        assert server.fetch_image(image).startswith(b"\x89PNG")

    assert "[UNINSTALLED]" in manager("uninstall", "sana-native")
    assert files_in(fresh_host) == before and manager_packages() == packages
    with ComfyServer(fresh_host, host=fresh_host, cpu=True) as server:
        assert not our_nodes(server)


def manager_packages() -> set[str]:
    """What is installed where Manager installs requirements, but for the frontend, which it keeps up to date itself."""
    return {path.name for path in registry_tools.FOLDER.rglob("*.dist-info") if "comfyui_frontend" not in path.name}
