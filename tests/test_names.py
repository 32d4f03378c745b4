"""Notebooks, README and docs name only modules, functions, files and options that exist."""

import ast
import contextlib
import functools
import importlib
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from nvret import cli

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
BUILT = {"_build", "api", "results"}  # made from the rest, or older than the code
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not BUILT & set(path.relative_to(ROOT / "docs").parts)
]
CODE = re.compile(r"```(\w*)[^\n]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)


def resolve(name):
    """What a dotted name stands for."""
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 2):
        if isinstance(value, ModuleType) and not hasattr(value, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(".".join(parts[:place]))
        value = getattr(value, part)
    return value


def exists(name):
    try:
        resolve(name)
    except (AttributeError, ModuleNotFoundError):
        return False
    return True


def missing_in_code(source):
    """Imports of nvret, and attributes of its modules, that do not exist or are hidden."""
    tree = ast.parse(source)
    modules, missing = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        else:
            continue
        for local, name in names.items():
            if name.split(".")[0] != "nvret":
                continue
            if not exists(name):
                missing.append(name)
            elif isinstance(resolve(name), ModuleType):
                modules[local.split(".")[0]] = name if "." not in local else "nvret"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in modules:
            missing.append(f"{node.id}, hidden by a variable")
        chain = dotted(node)
        if chain and chain[0] in modules and not exists(".".join([modules[chain[0]], *chain[1:]])):
            missing.append(".".join(chain))
    return missing


def dotted(node):
    """["a", "b"] for the expression a.b; None for what is no chain of names."""
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return [*start, node.attr]
    return [node.id] if isinstance(node, ast.Name) else None


def missing_in_text(text):
    """Dotted names, files of the package and commands that do not exist."""
    names = re.findall(r"(?<![\w./-])nvret(?:\.[A-Za-z_]\w*)+", text)
    missing = [name for name in names if not exists(name)]
    files = re.findall(r"(?<![\w./-])nvret/[\w/*]+(?:\.\w+)?", text)
    missing += [name for name in files if not list(ROOT.glob(name))]
    for language, block, span in CODE.findall(text):
        check = missing_in_code if language == "python" else unknown_options
        missing += check(block or span)
    return missing


def unknown_options(code):
    missing = []
    for command, rest in re.findall(r"\bnvret +([a-z]+)\b([^\n#|]*)", code.replace("\\\n", " ")):
        known = options(command)
        if not known:
            missing.append(f"nvret {command}")
        found = re.findall(r"(?<!\S)--[a-z][\w-]*", rest)
        missing += [f"nvret {command} {name}" for name in found if known and name not in known]
    return missing


@functools.cache
def options(command):
    """The options in the help of a command; empty for an unknown command."""
    text = io.StringIO()
    errors = contextlib.redirect_stderr(io.StringIO())
    with contextlib.redirect_stdout(text), errors, contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    shown = text.getvalue()
    usage = f"Usage: nvret {command}" in shown
    return set(re.findall(r"--[a-z][\w-]*", shown)) | {"--help"} if usage else set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_what_exists(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = {"code": [], "markdown": [], "raw": []}
    for cell in cells:
        texts[cell["cell_type"]].append("".join(cell["source"]))
    assert missing_in_code("\n".join(texts["code"])) == []
    assert missing_in_text("\n\n".join(texts["markdown"])) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_what_exists(path):
    assert missing_in_text(path.read_text(encoding="utf-8")) == []


def test_what_does_not_exist_is_found():
    code = "from nvret.study import config, nothing\nconfig.load\nconfig.lode\n"
    assert missing_in_code(code) == ["nvret.study.nothing", "config.lode"]
    assert missing_in_code("import nvret.data as d\nd.load(1)\nd.lode(1)\n") == ["d.lode"]
    hidden = "from nvret.study import paths\npaths = paths.scores_path(1, '')\n"
    assert missing_in_code(hidden) == ["paths, hidden by a variable"]
    text = "see nvret.search.top_k, nvret.search.topk, nvret/search.py and nvret/searching.py"
    assert missing_in_text(text) == ["nvret.search.topk", "nvret/searching.py"]
    text = "```\nnvret mine \\\n  --teacher bm25 --teecher x  # --no-option\n```\nor `nvret mined`"
    assert missing_in_text(text) == ["nvret mine --teecher", "nvret mined"]
