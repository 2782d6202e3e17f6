"""The kit for a bare GPU machine: what it holds, its limit, and that it measures where nothing else is installed."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from sana_native.tests.support.shipping import commit_tree, write_files
from sana_native.tools import gpu_kit

HOST = {
    "comfyui_version.py": '__version__ = "0.30.0"\n',
    "comfy/ops.py": "import av\n",
    "comfy/__pycache__/ops.pyc": "",
    "comfy/text_encoders/llama_tokenizer/tokenizer.json": "{}",
    "comfy/text_encoders/llama_tokenizer.py": "",
    "comfy_api/video.py": "    from av.subtitles.stream import SubtitleStream\nfrom average import mean\n",
    "models/readme.txt": "",
}


@pytest.fixture
def kit(tmp_path, monkeypatch) -> Path:
    """A kit of a host of a few lines and of one small package."""
    monkeypatch.setattr(gpu_kit, "lacking", lambda: ["trampoline"])
    gpu_kit.build(tmp_path / ".kit", write_files(tmp_path / "host", HOST))
    return tmp_path / ".kit"


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_kit_holds_what_such_a_machine_lacks_and_nothing_that_it_has():
    names = gpu_kit.lacking()
    assert {"diffusers", "comfy-aimdo", "comfy-kitchen", "torchsde", "trampoline"} <= set(names)
    assert not set(names) & {gpu_kit.normalized(name) for name in gpu_kit.PRESENT}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]


def test_compiled_libraries_of_the_largest_package_stay_behind():
    paths = [path for path, _ in gpu_kit.package_files("comfy-kitchen")]
    assert "comfy_kitchen/__init__.py" in paths
    assert not [path for path in paths if path.endswith(gpu_kit.LIBRARIES) or "__pycache__" in path]


def test_a_package_that_is_not_installed_is_one_sentence():
    with pytest.raises(
        gpu_kit.KitError, match=r"^no-such-thing is not installed here: build the kit with `make gpu-kit`\.$"
    ):
        gpu_kit.closure(["no-such-thing"], everywhere=True)


def test_the_manifest_says_what_was_packed(kit):
    found = json.loads((kit / "manifest.json").read_text())
    assert found["host"] == "0.30.0" and found["packages"] == {"trampoline": metadata.version("trampoline")}
    assert found["bytes"] == (kit / "kit.tar.gz").stat().st_size and found["files"] == len(
        files_below(gpu_kit.unpack(kit))
    )


def test_an_unpacked_kit_has_the_hosts_code_without_its_data(kit):
    place = gpu_kit.unpack(kit)
    assert files_below(place / "host") == {
        "comfyui_version.py",
        "comfy/ops.py",
        "comfy/text_encoders/llama_tokenizer.py",
        "comfy_api/video.py",
    }
    assert "trampoline/__init__.py" in files_below(place / "site")
    assert gpu_kit.environment(place)["COMFYUI_PATH"] == str(place / "host")
    assert gpu_kit.unpack(kit) == place and not list(kit.glob("*.part"))


def test_modules_of_the_stub_give_any_class_that_the_host_asks_for(kit):
    code = "import av; from av.subtitles.stream import SubtitleStream as S; assert issubclass(S, object) and av.open()"
    variables = gpu_kit.environment(gpu_kit.unpack(kit))
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)


def test_a_kit_above_the_limit_is_refused_before_its_manifest_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_kit, "lacking", lambda: [])
    monkeypatch.setattr(gpu_kit, "SIZE_LIMIT", 100)
    with pytest.raises(
        gpu_kit.KitError, match=r"^The kit has 0\.0 MB, expected at most 0: leave a package out of NEEDED"
    ):
        gpu_kit.build(tmp_path / ".kit", write_files(tmp_path / "host", HOST))
    with pytest.raises(gpu_kit.KitError, match="holds no kit: run `make gpu-kit` where ComfyUI is"):
        gpu_kit.unpack(tmp_path / ".kit")


def test_a_damaged_kit_is_refused(kit):
    with open(kit / "kit.tar.gz", "ab") as archive:
        archive.write(b"more")
    with pytest.raises(
        gpu_kit.KitError, match=r"kit\.tar\.gz is not what its manifest says: copy the folder \.kit anew"
    ):
        gpu_kit.unpack(kit)


# The bare machine


def installed_with(names: tuple[str, ...]) -> set[str]:
    """Distributions that these bring on this system, by pip's own reading of their requirements."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found, waiting = set(), [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            wanted = [
                one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
            waiting += [canonicalize_name(one.name) for one in wanted]
    return found


# Which the hub of this transformers requires and older ones do not.
NOT_EVERYWHERE = {"pydantic", "pydantic-core", "annotated-types", "typing-inspection"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """The interpreter of an environment that has what a GPU machine's has, as links, and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in installed_with(gpu_kit.PRESENT) - NOT_EVERYWHERE:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


@pytest.mark.heavy
@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_the_kit_measures_every_stage_on_a_bare_machine(bare_python, tmp_path):
    """A copy of the tree, an environment without ComfyUI's and diffusers' packages, and the one printed command."""
    tree = commit_tree(tmp_path / "tree")
    subprocess.run([sys.executable, "-m", "tools.gpu_kit"], cwd=tree, check=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("COMFYUI_", "PYTHON"))}
    lacks = "import importlib.util as u; assert not any(map(u.find_spec, ('diffusers', 'torchsde', 'av', 'pydantic')))"
    subprocess.run([bare_python, "-c", lacks], check=True, env=variables)
    command = [bare_python, "-m", "tools.gpu_kit", "--run", "--tiny", "--budget", "3000"]
    command += ["--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = (tmp_path / "out").glob("*.json")
    rows = json.loads(report.read_text())["rows"]
    assert len(rows) > 50 and not [row for row in rows if row["failed"]]
