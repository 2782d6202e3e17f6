"""Gates on the source of the pack: who may import whom, what it never does, and how long things may get."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nodes", "models", "samplers")
PACK = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")) + [ROOT / "__init__.py"]
PURE = {
    "models/config.py",
    "models/config_checks.py",
    "models/model_detection.py",
    "models/convert.py",
    "models/release_names.py",
    "models/lora_convert.py",
    "models/precision.py",
    "models/resolution.py",
    "models/summary.py",
    "samplers/schedules.py",
}
# Package -> packages of the pack it may import from.
MAY_IMPORT = {"": {"nodes"}, "nodes": {"nodes", "models", "samplers"}, "models": {"models"}, "samplers": {"samplers"}}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "node_helpers",
    "nodes",
    "execution",
    "server",
}
ONLY_IN_NODES = HOST - {"comfy"}
LIBRARIES = {"torch", "safetensors", "sentencepiece", "numpy"}
BANNED_MODULES = {
    "subprocess",
    "socket",
    "requests",
    "urllib",
    "http",
    "ftplib",
    "huggingface_hub",
    "pip",
    "ctypes",
    "marshal",
}
BANNED_CALLS = {"print", "eval", "exec", "compile", "__import__", "breakpoint", "input"}
BANNED_ATTRIBUTES = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("os", "system"),
                     ("os", "popen"), ("torch", "load"), ("logging", "basicConfig"), ("torch.hub", "load")}  # fmt: skip
FILE_LINES, FUNCTION_LINES, EXECUTE_LINES = 450, 80, 10

files = pytest.mark.parametrize("file", PACK, ids=lambda file: str(file.relative_to(ROOT)))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path) -> list[tuple[int, str, str]]:
    """(level, top-level module or package of the pack, line) for each import in a file."""
    package = file.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name.split(".")[0], ast.unparse(node)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((0, node.module.split(".")[0], ast.unparse(node)))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - (node.level - 1)]
            assert node.level - 1 <= len(package), f"{file.name} imports from outside the pack: {ast.unparse(node)}"
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, ".".join([*above, name]).split(".")[0], ast.unparse(node)) for name in names]
    return found


def functions_of(file: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_gates_see_the_whole_pack():
    assert {file.parent.name for file in PACK[:-1]} == set(PACKAGES) and len(PACK) > 20
    assert {str(file.relative_to(ROOT)) for file in PACK} >= PURE


@files
def test_imports_inside_the_pack_are_relative_and_in_the_right_direction(file):
    own = file.relative_to(ROOT).parts[0] if file.parent != ROOT else ""
    for level, package, line in imports_of(file):
        if level:
            assert package in MAY_IMPORT[own], line
        else:
            assert package not in {"sana_native", "models", "samplers"}, f"absolute import of the pack: {line}"


@files
def test_only_the_standard_library_torch_and_the_host_are_imported(file):
    allowed = set(sys.stdlib_module_names) | LIBRARIES | HOST
    assert not [line for level, module, line in imports_of(file) if not level and module not in allowed]


@files
def test_the_hosts_node_side_is_imported_by_nodes_alone(file):
    if file.parent.name != "nodes":
        assert not [line for level, module, line in imports_of(file) if not level and module in ONLY_IN_NODES]


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_files_import_nothing_of_the_host(name):
    for level, module, line in imports_of(ROOT / name):
        assert module not in HOST, line
        if level:
            imported = [
                part
                for part in line.replace("from .", "from . ").split()
                if f"{part}.py" in {Path(p).name for p in PURE}
            ]
            assert imported, f"a pure file imports one that is not: {line}"


@files
def test_no_import_is_of_a_banned_module_or_a_star(file):
    for _, module, line in imports_of(file):
        assert module not in BANNED_MODULES and not line.endswith("import *"), line


@files
def test_nothing_is_printed_evaluated_downloaded_or_unpickled(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in BANNED_CALLS, ast.unparse(node)
        if isinstance(node, ast.Attribute):
            assert (ast.unparse(node.value), node.attr) not in BANNED_ATTRIBUTES, ast.unparse(node)
        assert not isinstance(node, ast.Assert | ast.Global), f"line {node.lineno}"


@files
def test_importing_a_file_only_defines_names(file):
    for node in tree_of(file).body:
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"work at import: {ast.unparse(node)}"
        assert not isinstance(node, ast.For | ast.While | ast.With | ast.Try | ast.If), (
            f"work at import, line {node.lineno}"
        )


@files
def test_every_file_says_what_it_holds(file):
    assert not file.read_text(encoding="utf-8") or ast.get_docstring(tree_of(file))


@files
def test_files_stay_readable_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@files
def test_functions_stay_short(file):
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions_of(file)}
    assert not {name: lines for name, lines in long.items() if lines > FUNCTION_LINES}


@files
def test_execute_only_hands_on(file):
    for node in functions_of(file):
        if node.name == "execute":
            assert node.end_lineno - node.body[0].lineno + 1 <= EXECUTE_LINES


def test_the_direction_gate_catches_a_planted_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "models").mkdir()
    planted = tmp_path / "models" / "planted.py"
    planted.write_text("from ..nodes.files import resolve\n")
    with pytest.raises(AssertionError, match="nodes.files"):
        test_imports_inside_the_pack_are_relative_and_in_the_right_direction(planted)
