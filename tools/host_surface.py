"""What the pack uses of ComfyUI, read from its source and written to docs/host_surface.md, to see what an update moves.

    python -m tools.host_surface [--check]

Runs inside the host's environment. `--check` writes nothing and names what this host lacks. The tests do the same.
What Python decides only at run time is not seen: attributes of objects whose class no annotation tells.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .structure import ROOT, pack_files, tree_of

HOST = (
    *("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras", "execution"),
    *("folder_paths", "latent_preview", "node_helpers", "nodes", "server"),
)
PAGE = ROOT / "docs" / "host_surface.md"
HEAD = """# Host surface
What the pack uses of ComfyUI, by module of the host. `python -m tools.host_surface` writes this page from the source,
in the host's environment; the tests require that it is up to date and that ComfyUI has every name and every keyword.
`--check` names what another ComfyUI (`COMFYUI_PATH`) lacks.

Use: *override*, a method or attribute of a host class that a class of the pack defines anew; *set*, one that the pack
assigns; *optional*, one that the pack asks for and does without; no remark, one that is read or called. What is decided
only at run time is not listed.
"""
# Mixins: their host class is a base of theirs only at run time.
MIXINS = {
    "StockLora": "comfy.model_patcher.ModelPatcher",
    "StockPatches": "comfy.model_patcher.ModelPatcher",
    "ExactMagnitude": "comfy.weight_adapter.LoRAAdapter",
}
OVERRIDE, SET, OPTIONAL, READ = "override", "set", "optional", ""
BUILDING = ("__init__", "__new__", "__call__")  # said by the class itself


@dataclass(frozen=True, order=True)
class Use:
    """One use of a host's symbol. symbol: dotted. how: one of the constants above. keywords: passed by name."""

    symbol: str
    how: str
    place: str
    keywords: tuple[str, ...] = ()


@dataclass
class PackClass:
    """A class of the pack. bases: dotted host classes, those of its pack bases included. own: what it defines."""

    bases: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    assigned: set[str] = field(default_factory=set)


# What the installed host has


@cache
def import_module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise


@cache
def module_part(symbol: str) -> str:
    """The longest part of a dotted symbol that is a module of this host; "" if not even its root is one."""
    parts = symbol.split(".")
    names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if import_module(name) is not None), "")


@cache
def assigned_by_class(file: str) -> dict[str, set[str]]:
    """Class -> what its methods assign to `self`, for the classes of a source file."""
    nodes = (node for node in ast.walk(tree_of(Path(file))) if isinstance(node, ast.ClassDef))
    found: dict[str, set[str]] = defaultdict(set)
    for node in nodes:
        found[node.name] |= definitions(node)[1]
    return found


@cache
def instance_attributes(host_class: type) -> frozenset[str]:
    """What the methods of a host's class, bases outside the host aside, assign to `self`."""
    found: set[str] = set()
    for one in host_class.__mro__:
        if one.__module__.split(".")[0] in HOST and (file := inspect.getsourcefile(one)):
            found |= assigned_by_class(file)[one.__name__] | set(getattr(one, "__annotations__", {}))
    return frozenset(found)


def defines(host_class: type, name: str) -> bool:
    """Whether the class or a base of it inside the host has an attribute of that name."""
    inside = (one for one in host_class.__mro__ if one.__module__.split(".")[0] in HOST)
    return any(name in vars(one) for one in inside) or name in instance_attributes(host_class)


def find(symbol: str) -> tuple[Any, bool]:
    """(what a dotted symbol stands for on this host, or None for an attribute of instances; whether it is there)."""
    module = module_part(symbol)
    found = import_module(module) if module else None
    for name in symbol.removeprefix(module).strip(".").split(".") if symbol != module else ():
        if inspect.isclass(found) and not hasattr(found, name):
            return None, defines(found, name)
        if found is None or not hasattr(found, name):
            return None, False
        found = getattr(found, name)
    return found, found is not None or symbol != module


def shorten(symbol: str) -> str:
    """Without what is no longer the host's: methods of lists, dicts, tensors and functions."""
    parts = symbol.split(".")
    for count in range(len(module_part(symbol).split(".")) + 1, len(parts)):
        found, _ = find(".".join(parts[:count]))
        if not isinstance(found, ModuleType | type) and type(found).__module__ != "argparse":
            return ".".join(parts[:count])
    return symbol


def lacking(use: Use) -> str | None:
    """What this host lacks of a use, as one sentence; None when it has all."""
    if use.how == OPTIONAL:
        return None
    symbol = use.symbol.rpartition(".")[0] if use.how == SET else use.symbol
    found, there = find(symbol)
    if not there:
        return f"{symbol} is not in this ComfyUI ({use.place})"
    accepted = parameters(found)
    refused = [name for name in use.keywords if accepted is not None and name not in accepted]
    return f"{symbol} does not take {', '.join(refused)} ({use.place})" if refused else None


def parameters(found: Any) -> set[str] | None:
    """Names that may be passed; None when any may, or when nobody can tell."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None
    kinds = signature.parameters.values()
    return None if any(one.kind is one.VAR_KEYWORD for one in kinds) else set(signature.parameters)


# What the pack uses


def imported_names(tree: ast.Module) -> dict[str, str]:
    """Names that a file's imports of the host bind -> dotted module or symbol."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in HOST:
                    root = alias.name.split(".")[0]
                    names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in HOST:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """The dotted host symbol that an expression names, if it does."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        before = dotted(node.value, names)
        return before and f"{before}.{node.attr}"
    return None


def pack_classes(files: list[Path]) -> dict[str, PackClass]:
    """Classes of the pack that derive from the host's, by name; those of the rest share no name with them."""
    trees = [(tree_of(file), imported_names(tree_of(file))) for file in files]
    nodes = [(node, names) for tree, names in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    classes: dict[str, PackClass] = {}
    for _ in nodes:  # until bases that stand in other files are known
        before = len(classes)
        for node, names in nodes:
            mixed = [MIXINS[node.name]] if node.name in MIXINS else []
            bases = [symbol for base in node.bases if (symbol := dotted(base, names))] + mixed
            inside = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
            if bases or inside:
                own, assigned = definitions(node)
                classes[node.name] = PackClass(
                    bases + [base for one in inside for base in one.bases],
                    own.union(*(one.own for one in inside)),
                    assigned.union(*(one.assigned for one in inside)),
                )
        if len(classes) == before:
            break
    return classes


def definitions(node: ast.ClassDef) -> tuple[set[str], set[str]]:
    """Names that a class defines in its body, and those that its methods assign to `self`."""
    own: set[str] = set()
    for one in node.body:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(one.name)
        targets = one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
        own |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    stored = (one for one in ast.walk(node) if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store))
    return own, {one.attr for one in stored if isinstance(one.value, ast.Name) and one.value.id == "self"}


class Reader(ast.NodeVisitor):
    """Collects the uses of one file in `uses`."""

    def __init__(self, file: Path, classes: dict[str, PackClass]):
        self.place, self.classes = file.relative_to(ROOT).as_posix(), classes
        self.names = imported_names(tree_of(file))
        self.typed: dict[str, PackClass] = {}  # names of variables whose class is known
        self.inside: PackClass | None = None
        self.uses: set[Use] = set()

    def visit_Import(self, node: ast.Import) -> None:
        self.uses |= {Use(alias.name, READ, self.place) for alias in node.names if alias.name.split(".")[0] in HOST}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level and node.module.split(".")[0] in HOST:
            self.uses |= {Use(f"{node.module}.{alias.name}", READ, self.place) for alias in node.names}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self.inside = self.inside, self.classes.get(node.name)
        if self.inside:
            own, assigned = definitions(node)
            for how, names in ((OVERRIDE, own), (SET, assigned - own)):
                for name in names:
                    self.add_attribute(self.inside, name, how)
        self.generic_visit(node)
        self.inside = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.typed)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            self.typed.pop(argument.arg, None)
            known = self.class_of(argument.annotation)
            if argument.arg in ("self", "cls") and self.inside:
                known = self.inside
            if known:
                self.typed[argument.arg] = known
        self.generic_visit(node)
        self.typed = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.add_chain(node)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in self.names and isinstance(node.ctx, ast.Load):
            self.uses.add(Use(self.names[node.id], READ, self.place))

    def visit_Call(self, node: ast.Call) -> None:
        words = tuple(sorted(one.arg for one in node.keywords if one.arg))
        self.add_chain(node.func, words)
        asks = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) > 1
        if asks and isinstance(node.args[1], ast.Constant) and (symbol := dotted(node.args[0], self.names)):
            self.uses.add(Use(f"{symbol}.{node.args[1].value}", OPTIONAL, self.place))
        self.generic_visit(node)

    def add_chain(self, node: ast.AST, keywords: tuple[str, ...] = ()) -> None:
        """An attribute chain on a module of the host, or an attribute of an object of a known class."""
        if symbol := dotted(node, self.names):
            how = SET if isinstance(node.ctx, ast.Store) else READ
            self.uses.add(Use(symbol if how == SET else shorten(symbol), how, self.place, keywords))
        elif isinstance(node, ast.Attribute):
            value = node.value
            is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
            known = self.inside if is_super else self.typed.get(value.id) if isinstance(value, ast.Name) else None
            stored = isinstance(node.ctx, ast.Store)
            if known and not stored and (is_super or node.attr not in known.own | known.assigned):
                self.add_attribute(known, node.attr, READ, keywords)

    def add_attribute(self, known: PackClass, name: str, how: str, keywords: tuple[str, ...] = ()) -> None:
        """Of the first host's class that has it; what none has is torch's or Python's, or the pack's own."""
        for base in known.bases:
            found, _ = find(base)
            if inspect.isclass(found) and defines(found, name):
                symbol = base if name in BUILDING and how == READ else f"{base}.{name}"
                self.uses.add(Use(symbol, how, self.place, keywords))
                return

    def class_of(self, annotation: ast.AST | None) -> PackClass | None:
        if isinstance(annotation, ast.BinOp):
            return self.class_of(annotation.left)
        if symbol := dotted(annotation, self.names) if annotation else None:
            return PackClass([symbol])
        return self.classes.get(annotation.id) if isinstance(annotation, ast.Name) else None


def uses_of(files: list[Path]) -> list[Use]:
    """Every use of the host in these files, each once. Names that only lead to another one are left out."""
    classes = pack_classes(files)
    found: set[Use] = set()
    for file in files:
        reader = Reader(file, classes)
        reader.visit(tree_of(file))
        found |= with_optional(reader.uses)
    leading = {(one.symbol[: at.start()], one.place) for one in found for at in re.finditer(r"\.", one.symbol)}
    modules = {one.symbol for one in found if one.symbol == module_part(one.symbol)}
    return sorted(one for one in found if one.symbol not in modules or (one.symbol, one.place) not in leading)


def with_optional(uses: set[Use]) -> set[Use]:
    """The uses of one file; what the file asks for anywhere is optional wherever it is used there."""
    asked = tuple(use.symbol for use in uses if use.how == OPTIONAL)
    return {
        replace(use, how=OPTIONAL) if any(f"{use.symbol}.".startswith(f"{symbol}.") for symbol in asked) else use
        for use in uses
    }


# The page


def page(uses: list[Use]) -> str:
    """The page in Markdown: a section for each module of the host, a row for each name and kind of use."""
    rows: dict[tuple[str, str, str], list[Use]] = defaultdict(list)
    for use in uses:
        module = module_part(use.symbol)
        rows[module, use.symbol.removeprefix(module).lstrip(".") or "(the module)", use.how].append(use)
    return HEAD + "".join(_lines(rows))


def _lines(rows: dict[tuple[str, str, str], list[Use]]) -> Iterator[str]:
    section = None
    for (module, name, how), found in sorted(rows.items()):
        if module != section:
            section = module
            yield f"\n## {module}\n| name | use | keywords | in |\n|---|---|---|---|\n"
        words = ", ".join(sorted({f"`{word}`" for use in found for word in use.keywords}))
        places = ", ".join(sorted({use.place for use in found}))
        yield f"| `{name}` | {how} | {words} | {places} |\n"


def import_host() -> None:
    """Makes the host importable as it is for itself.  Raises: ModuleNotFoundError outside the host's environment."""
    # The repository root would hide the host's `nodes` behind the pack's folder of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.path.insert(0, os.environ.get("COMFYUI_PATH") or str(ROOT / ".comfyui" / "ComfyUI"))
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.host_surface", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="name what this host lacks, and write nothing")
    check = parser.parse_args().check
    import_host()
    uses = uses_of(pack_files())
    missing = [sentence for use in uses if (sentence := lacking(use))]
    sys.stdout.write("".join(f"{sentence}\n" for sentence in missing))
    if not check:
        PAGE.write_text(page(uses), encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
