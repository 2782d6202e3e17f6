"""Gates on the source of the pack: who may import whom, what it never does, and how long things may get."""

import ast
import re
import sys
from pathlib import Path

import pytest
from sana_native.tools import structure
from sana_native.tools.structure import ROOT, Import, functions_of, imports_of, lines_of, pack_files, tree_of

PACK = pack_files()
# Rooms at the root -> rooms of the pack that they may import from.
MAY_IMPORT = {
    "": {"nodes"},
    "nodes": {"nodes", "models", "samplers", "training", "evaluation", "scale"},
    "models": {"models"},
    "samplers": {"samplers"},
    "training": {"training", "samplers", "models"},
    "evaluation": {"evaluation", "models"},
    "scale": {"scale"},
}
# Floors inside `models`: a room imports from its own floor's rules and from those below, never up.
FLOORS = ("runtime", "files")
SHARED = "layers"  # the plain layers of the networks, beside the rooms
# Between families: what the plan of the house names, and nothing else. (importing file, imported module)
BETWEEN_FAMILIES = (
    (r"models/\w+/supported_models\.py", r"models\.dc_ae\.latent_formats"),
    (r"models/\w+/(loader|supported_models)\.py", r"models\.lora\.(stock_nodes|depthwise)"),
    (r"models/controlnet/\w+\.py", r"models\.(sana\.\w+|dc_ae\.latent_formats)"),  # a ControlNet copies its base
    (r"models/pixart_controlnet/\w+\.py", r"models\.pixart\.\w+"),
    (r"models/lora/\w+\.py", r"models\.\w+\.(convert|config)"),  # trainers write every family's layouts
)
NETWORKS = re.compile(r"models/(\w+/)?(model|layers)\.py")
FAST_PATHS = "models.runtime.cpu"
MAY_USE_FAST_PATHS = re.compile(r"models/(runtime/|sana/cpu\.py|dc_ae/inplace\.py|gemma/text_encoder\.py)")
PURE = {
    "models/sana/config.py",
    "models/sana/convert.py",
    "models/sana/detection.py",
    "models/sana/filename_hints.py",
    "models/sana/resolution.py",
    "models/controlnet/config.py",
    "models/controlnet/convert.py",
    "models/controlnet/detection.py",
    "models/dc_ae/config.py",
    "models/dc_ae/convert.py",
    "models/dc_ae/detection.py",
    "models/gemma/detection.py",
    "models/pixart/config.py",
    "models/pixart/convert.py",
    "models/pixart/detection.py",
    "models/pixart_controlnet/convert.py",
    "models/pixart_controlnet/detection.py",
    "models/t5/detection.py",
    "models/gemma1/detection.py",
    "models/lumina/config.py",
    "models/lumina/convert.py",
    "models/lumina/detection.py",
    "models/lumina/rotary.py",
    "models/lora/convert.py",
    "models/files/config_values.py",
    "models/files/foreign_files.py",
    "models/files/layout.py",
    "models/files/names.py",
    "models/files/saved_config.py",
    "models/runtime/precision.py",
    "samplers/schedules.py",
    "scale/formats.py",
    "scale/rows.py",
    "evaluation/geneval.py",
    "evaluation/intervals.py",
    "evaluation/metrics.py",
    "evaluation/pictures.py",
}
TESTS_WITHOUT_A_ROOM = {"pack", "docs", "browser", "full_size", "support"}
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
LIBRARIES = {"torch", "safetensors", "sentencepiece", "numpy", "PIL"}
OPTIONAL = {"training/optimizer.py": {"bitsandbytes"}}  # imported where they are chosen, or one sentence says so
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
FILE_LINES, MODEL_LINES, SANA_LINES, FUNCTION_LINES, EXECUTE_LINES = 450, 400, 250, 60, 10
CHAIN = 8

files = pytest.mark.parametrize("file", PACK, ids=lambda file: str(file.relative_to(ROOT)))


def place_of(file: Path, root: Path = ROOT) -> str:
    return file.relative_to(root).as_posix()


def floor_of(module: str) -> int:
    """Of a module below `models`: 0 and 1 for the rooms of FLOORS and what is shared, 2 for a family, 3 beside them."""
    room = module.split(".")[1] if module.count(".") else ""
    if room in FLOORS:
        return FLOORS.index(room)
    return 0 if room == SHARED else 2 if module.count(".") > 1 else 3


def family_of(module: str) -> str | None:
    return module.split(".")[1] if floor_of(module) == 2 else None


def module_of(place: str) -> str:
    return place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def forbidden(place: str, one: Import) -> str | None:
    """Why a file may not import this module of the pack; None if it may."""
    own, target = module_of(place), one.module
    room = own.partition(".")[0] if place != "__init__.py" else ""
    if target.partition(".")[0] not in MAY_IMPORT[room]:
        return f"{room or 'the entry point'} does not look at {target}"
    if NETWORKS.fullmatch(place) and target.startswith(FAST_PATHS):
        return "a network imports a fast path"
    if target.startswith(FAST_PATHS) and not MAY_USE_FAST_PATHS.match(place):
        return "only the files beside the networks choose fast paths"
    if room != "models" or not target.startswith("models."):
        return None
    if floor_of(target) > floor_of(own):
        return f"{own} looks up at {target}"
    families = family_of(own), family_of(target)
    named = any(re.fullmatch(a, place) and re.fullmatch(b, target) for a, b in BETWEEN_FAMILIES)
    if None not in families and families[0] != families[1] and not named:
        return f"the family {families[0]} imports from {families[1]}"
    return None


def test_the_gates_see_the_whole_pack():
    assert {file.relative_to(ROOT).parts[0] for file in PACK[:-1]} >= {"nodes", "models", "samplers"} and len(PACK) > 60
    assert {place_of(file) for file in PACK} >= PURE


@files
def test_imports_inside_the_pack_are_relative_and_in_the_right_direction(file):
    for one in imports_of(file):
        if one.inside:
            assert forbidden(place_of(file), one) is None, one.line
        else:
            assert one.module.partition(".")[0] not in {"sana_native", "models", "samplers"}, one.line


@pytest.mark.parametrize(
    ("place", "module", "why"),
    [
        ("models/sana/model.py", "nodes.files", "models does not look at nodes.files"),
        ("models/runtime/device.py", "models.files.reader", "looks up"),
        ("models/files/reader.py", "models.sana.config", "looks up"),
        ("models/sana/model.py", "models.registry", "looks up"),
        ("models/sana/model.py", "models.runtime.cpu.malloc", "a network imports a fast path"),
        ("models/sana/loader.py", "models.runtime.cpu.malloc", "only the files beside the networks"),
        ("models/sana/model.py", "models.dc_ae.vae", "the family sana imports from dc_ae"),
        ("models/sana/supported_models.py", "models.dc_ae.latent_formats", None),
        ("models/sana/loader.py", "models.lora.stock_nodes", None),
        ("models/sana/model.py", "models.layers", None),
        ("models/sana/cpu.py", "models.runtime.cpu.malloc", None),
        ("scale/rows.py", "models.layers", "scale does not look at models.layers"),
    ],
)
def test_the_direction_gate_knows_right_from_wrong(place, module, why):
    found = forbidden(place, Import(module, True, ""))
    assert (found is None) if why is None else why in found


def test_no_chain_of_imports_is_long_and_none_is_a_circle():
    chain = structure.longest_chain(structure.import_graph())
    assert len(chain) <= CHAIN, " -> ".join(map(place_of, chain))


def test_a_circle_of_imports_is_found():
    a, b = Path("a.py"), Path("b.py")
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        structure.longest_chain({a: [b], b: [a]})


def test_every_folder_of_tests_has_a_room_of_its_name():
    folders = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("*.py")} - {Path(".")}
    without = {folder for folder in folders if folder.parts[0] not in TESTS_WITHOUT_A_ROOM}
    assert not {folder for folder in without if not (ROOT / folder).is_dir()}
    assert not list((ROOT / "tests").rglob("__init__.py"))  # such a folder would hide the host's `nodes`


@files
def test_only_the_standard_library_torch_and_the_host_are_imported(file):
    allowed = set(sys.stdlib_module_names) | LIBRARIES | HOST | OPTIONAL.get(str(file.relative_to(ROOT)), set())
    assert not [one.line for one in imports_of(file) if not one.inside and one.module.partition(".")[0] not in allowed]


@files
def test_the_hosts_node_side_is_imported_by_nodes_alone(file):
    if file.parent.name != "nodes":
        outside = [one for one in imports_of(file) if not one.inside]
        assert not [one.line for one in outside if one.module.partition(".")[0] in ONLY_IN_NODES]


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_files_import_nothing_of_the_host(name):
    for one in imports_of(ROOT / name):
        if one.inside:
            path = structure.path_of(one.module)
            assert place_of(path) in PURE, f"a pure file imports one that is not: {one.line}"
        else:
            assert one.module.partition(".")[0] not in HOST, one.line


@files
def test_no_import_is_of_a_banned_module_or_a_star(file):
    for one in imports_of(file):
        assert one.module.partition(".")[0] not in BANNED_MODULES and not one.line.endswith("import *"), one.line


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
    place = place_of(file)
    limit = (
        SANA_LINES if place == "models/sana/model.py" else MODEL_LINES if place.startswith("models/") else FILE_LINES
    )
    assert lines_of(file) <= limit


@files
def test_functions_stay_short(file):
    assert not [one for one in structure.longest_functions([file]) if one[0] > FUNCTION_LINES]


@files
def test_execute_only_hands_on(file):
    for node in functions_of(file):
        if node.name == "execute":
            assert node.end_lineno - node.body[0].lineno + 1 <= EXECUTE_LINES
