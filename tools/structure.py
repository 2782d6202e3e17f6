"""The pack's structure as its imports show it: longest files and functions, the longest chain of imports, circles.

    python -m tools.structure

`tests/pack/test_boundaries.py` holds the same figures against their limits. Standard library only.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nodes", "models", "samplers", "training", "evaluation", "scale")  # those that exist are looked at
# Of `scale/` nodes need these; the rest is a command beside the pack, which starts servers and talks to them.
NODES_NEED = {"scale": {"__init__.py", "formats.py", "rows.py"}}


@dataclass(frozen=True)
class Import:
    """One imported module or name: dotted from the pack's root when `inside`, else as written. line: its source."""

    module: str
    inside: bool
    line: str


def pack_files(root: Path = ROOT) -> list[Path]:
    """Every source file of the pack, the entry point included; of a command those alone that nodes need."""
    found = (file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return sorted(f for f in found if f.name in NODES_NEED.get(f.parent.name, {f.name})) + [root / "__init__.py"]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports_of(file: Path, root: Path = ROOT) -> list[Import]:
    """Raises ValueError for a relative import that leaves the pack."""
    package = file.relative_to(root).parts[:-1]
    found = []
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, False, ast.unparse(node)) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(Import(node.module, False, ast.unparse(node)))
        elif isinstance(node, ast.ImportFrom):
            if node.level - 1 > len(package):
                raise ValueError(f"{file} imports from outside the pack: {ast.unparse(node)}")
            base = [*package[: len(package) - (node.level - 1)], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found += [Import(name if is_module(name, root) else base, True, ast.unparse(node)) for name in names]
    return found


def is_module(name: str, root: Path = ROOT) -> bool:
    return path_of(name, root) is not None


def path_of(name: str, root: Path = ROOT) -> Path | None:
    """File of a module of the pack, `__init__.py` for a package; None for anything else."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def import_graph(root: Path = ROOT) -> dict[Path, list[Path]]:
    """File -> files of the pack that it imports. Empty `__init__.py` files do not count."""
    return {
        file: sorted({path for one in imports_of(file, root) if one.inside and (path := path_of(one.module, root))})
        for file in pack_files(root)
    }


def longest_chain(graph: dict[Path, list[Path]]) -> list[Path]:
    """Files of which each imports the next, the entry point aside. Raises ValueError naming the files of a circle."""
    chains: dict[Path, list[Path]] = {}

    def chain(file: Path, above: tuple[Path, ...]) -> list[Path]:
        if file in above:
            raise ValueError(f"circle: {' -> '.join(one.stem for one in (*above, file))}")
        if file not in chains:
            below = [chain(other, (*above, file)) for other in graph.get(file, ())]
            chains[file] = [file, *max(below, key=len, default=[])]
        return chains[file]

    return max((chain(file, ()) for file in graph if file != ROOT / "__init__.py"), key=len)


def functions_of(file: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def longest_functions(files: list[Path]) -> list[tuple[int, str]]:
    """Lines and place of every function but the schemas, which are tables; the longest first."""
    return sorted(
        (
            (node.end_lineno - node.lineno + 1, f"{file.name}:{node.lineno} {node.name}")
            for file in files
            for node in functions_of(file)
            if node.name != "define_schema"
        ),
        reverse=True,
    )


def main() -> None:
    files = pack_files()
    chain = longest_chain(import_graph())
    rows = [f"{len(files)} files, {sum(map(lines_of, files))} lines"]
    rows += [f"{lines_of(file):5d} lines  {file.relative_to(ROOT)}" for file in sorted(files, key=lines_of)[:-6:-1]]
    rows += [f"{length:5d} lines  {place}" for length, place in longest_functions(files)[:5]]
    rows += [
        f"longest chain of imports: {len(chain)} files",
        "  " + " -> ".join(str(f.relative_to(ROOT)) for f in chain),
    ]
    sys.stdout.write("\n".join([*rows, "no circle", ""]))


if __name__ == "__main__":
    main()
