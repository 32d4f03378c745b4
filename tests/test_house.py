"""The house: what may import what, no circle, and a core that one can read in a sitting."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

import nvret

PACKAGE = Path(nvret.__file__).parent
CORE_LINES = 3_000  # the flat core, docstrings and blank lines included
PACKAGE_LINES = 24_287  # raised with a reason in the commit alone

# Each floor imports from the floors above it in this list, and within itself
FLOORS = [
    {"utils"},
    {"models", "data"},
    {"search", "bm25", "encode"},
    {"teachers"},
    {
        "methods", "sampling", "negatives", "mining", "ensembles", "losses", "evaluation",
        "training",
    },
    {"analysis", "cost"},
    {"study"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
CORE = set().union(*FLOORS[1:5]) - {"models"}
FLAT = CORE - {"training"}
# Beside the core: what they may import, and (from the floors above the core) who may import them
BESIDE = {"assets", "io", "scale"}
OVER_THE_CORE = {"analysis", "cost", "study", "cli", "__main__"}
# What a module of the core or of utils and models may import when it is loaded
DEPENDENCIES = {
    "filelock", "fsspec", "numpy", "pandas", "platformdirs", "psutil", "pyarrow", "pydantic",
    "regex", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "tqdm", "transformers",
}  # fmt: skip


LOADED, TYPING, CALLED = "when loaded", "for types", "in a function"


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    """``utils`` of ``nvret.utils.store``; ``nvret`` of the package itself."""
    return module.split(".")[1] if "." in module else module


class Imports(ast.NodeVisitor):
    """Of one module: (what is imported, its line, when: ``LOADED``, ``TYPING``, ``CALLED``)."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.when = LOADED
        self.seen: list[tuple[str, int, str]] = []

    def _add(self, name: str, line: int) -> None:
        while name.startswith("nvret.") and name not in sources():  # a function, a class
            name = name.rpartition(".")[0]
        if (name, line, self.when) not in self.seen:
            self.seen.append((name, line, self.when))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")
            parent = ".".join(above[: len(above) - node.level + 1])
            base = f"{parent}.{base}" if base else parent
        for alias in node.names:
            inside = base.partition(".")[0] == "nvret"
            self._add(f"{base}.{alias.name}" if inside else base, node.lineno)

    def _inside(self, nodes: list[ast.AST], when: str) -> None:
        before, self.when = self.when, when
        for node in nodes:
            self.visit(node)
        self.when = before

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._inside(node.body, CALLED)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_If(self, node: ast.If) -> None:
        for_types = "TYPE_CHECKING" in ast.unparse(node.test)
        self._inside(node.body, TYPING if for_types else self.when)
        self._inside(node.orelse, self.when)


def imports_of(module: str) -> list[tuple[str, int, str]]:
    path = sources()[module]
    visitor = Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    return visitor.seen


@cache
def arrows() -> list[tuple[str, str, int, str]]:
    """Every import in the package: by which module, of what, in which line, when."""
    return [(module, *seen) for module in sources() for seen in imports_of(module)]


def within() -> list[tuple[str, str, int, str]]:
    """Those of the package's own modules."""
    return [a for a in arrows() if a[1].partition(".")[0] == "nvret" and a[0] != a[1]]


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def described(faults: list[tuple[str, str, int, str]]) -> str:
    return "\n".join(f"{a}, line {line}: imports {b} {when}" for a, b, line, when in faults)


def test_every_module_has_its_place():
    known = set().union(*FLOORS) | BESIDE | {"nvret"}
    assert {room(module) for module in sources()} <= known


def test_a_floor_imports_from_those_below_it():
    faults = [
        arrow
        for arrow in within()
        if not {room(arrow[0]), room(arrow[1])} & (BESIDE | {"nvret"})
        and floor(room(arrow[1])) > floor(room(arrow[0]))
    ]
    assert not faults, described(faults)


def test_what_stands_beside_the_core_imports_the_core_alone():
    low = CORE | BESIDE | {"utils", "models", "nvret"}
    faults = [arrow for arrow in within() if room(arrow[0]) in BESIDE and room(arrow[1]) not in low]
    assert not faults, described(faults)


def test_the_core_imports_what_stands_beside_it_in_functions_alone():
    """When a name is given, or an option used."""
    faults = [
        (a, b, line, when)
        for a, b, line, when in within()
        if room(b) in BESIDE and room(a) not in BESIDE | OVER_THE_CORE and when != CALLED
    ]
    assert not faults, described(faults)


def test_the_core_loads_no_extra():
    allowed = sys.stdlib_module_names | DEPENDENCIES | {"nvret"}
    faults = [
        (a, b, line, when)
        for a, b, line, when in arrows()
        if room(a) in CORE | {"utils", "models"} and when == LOADED
        and b.partition(".")[0] not in allowed
    ]  # fmt: skip
    assert not faults, described(faults)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan's strongly connected components of more than one module.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    [['b', 'c']]
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            part = [stack.pop()]
            while part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_no_circle():
    """Imports in functions count, except where the core asks what stands beside it."""
    graph: dict[str, set[str]] = {module: set() for module in sources()}
    for a, b, _, when in within():
        aside = when == CALLED and room(b) in BESIDE and room(a) not in BESIDE
        if not aside and room(b) != "nvret":
            graph[a].add(b)
    assert circles(graph) == []


def lines(paths) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_the_core_is_read_in_a_sitting():
    flat = [path for path in PACKAGE.glob("*.py") if path.stem != "__main__"]
    assert {path.stem for path in flat} - {"__init__"} == FLAT
    assert lines(flat) <= CORE_LINES


def test_the_package_stays_thin():
    assert lines(sources().values()) <= PACKAGE_LINES


@pytest.mark.parametrize(
    ("code", "line", "when"),
    [
        ("import nvret.study", 1, LOADED),
        ("class A:\n    from nvret.study import arms", 2, LOADED),
        ("def f():\n    from nvret import study", 2, CALLED),
        ("if TYPE_CHECKING:\n    from nvret import study", 2, TYPING),
        ("if typing.TYPE_CHECKING: pass\nelse: import nvret.study", 2, LOADED),
        ("from .study.arms import Arm", 1, LOADED),
    ],
)
def test_an_import_is_seen_wherever_it_stands(code, line, when):
    visitor = Imports("nvret.search", False)
    visitor.visit(ast.parse(code))
    ((name, *rest),) = visitor.seen
    assert room(name) == "study"
    assert rest == [line, when]
