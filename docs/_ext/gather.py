"""What the book takes from the repository: executed notebooks, API pages, the ledger.

Pages are written into ``docs/results``, ``docs/api`` and, as notebooks, ``docs/course``, which git
ignores, before Sphinx reads.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import ledger_table
import nbformat
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

import nvret

WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar, frozen at its start
SENTENCE = re.compile(r"^(.+?[.:?])(?:\s|$)", re.DOTALL)


def gather(app: Sphinx) -> None:
    """Write the pages of results, course and API, and remove those of earlier builds."""
    docs, root = Path(app.srcdir), Path(app.srcdir).parent
    pages = dict(_api(root / "nvret")) | dict(_course(root))
    for profile in app.config.profiles:
        pages |= _profile(root / "results" / profile)
    for pattern in ("api/**/*.*", "results/**/*.*", "course/*.ipynb"):
        for path in docs.glob(pattern):
            if path.relative_to(docs).as_posix() not in pages:
                path.unlink()
    for name, text in pages.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _api(package: Path) -> Iterator[tuple[str, str]]:
    """A page for each module of the core, in the order of ``nvret.__doc__``, and one a room."""
    flat = {path.stem for path in package.glob("[!_]*.py")}
    listed = re.findall(r"^\d+\. ([^:]+):", nvret.__doc__ or "", re.MULTILINE)
    order = re.findall(r"`(\w+)`", " ".join(listed))
    core = [name for name in order if name in flat] + sorted(flat - set(order))
    rooms = sorted(
        path.parent.name for path in package.glob("*/__init__.py") if path.parent.name != "cli"
    )
    for name in core:
        yield f"api/{name}.rst", _module(f"nvret.{name}", "=")
    for room in rooms:
        modules = sorted(path.stem for path in (package / room).glob("[!_]*.py"))
        sections = [_module(f"nvret.{room}.{name}", "-") for name in modules]
        title = f"nvret.{room}"
        page = [title, "=" * len(title), "", f".. automodule:: {title}", "   :members:", ""]
        yield f"api/{room}.rst", "\n".join([*page, *sections])
    for name, pages in (("core", core), ("rooms", rooms)):
        title = {"core": "The method, in reading order", "rooms": "The rooms around it"}[name]
        about = [".. automodule:: nvret", ""] if name == "core" else []
        lines = [title, "=" * len(title), "", *about, ".. toctree::", "   :maxdepth: 1", ""]
        yield f"api/{name}.rst", "\n".join([*lines, *(f"   {page}" for page in pages), ""])


def _module(name: str, underline: str) -> str:
    return f"{name}\n{underline * len(name)}\n\n.. automodule:: {name}\n   :members:\n"


def _course(root: Path) -> Iterator[tuple[str, str]]:
    """The lessons, executed where there is such a copy; what a reader predicts is folded."""
    for source in sorted((root / "notebooks" / "course").glob("*.ipynb")):
        executed = root / "results" / "course" / source.name
        notebook = nbformat.read(executed if executed.is_file() else source, as_version=4)
        _tidy(notebook)
        for text, code in itertools.pairwise(notebook.cells):
            if "**Predict before you run:**" in text.source and code.cell_type == "code":
                code.metadata["tags"].append("hide-output")
                code.metadata["mystnb"]["code_prompt_show"] = "Show what it prints"
        yield f"course/{source.name}", nbformat.writes(notebook)


def _profile(folder: Path) -> dict[str, str]:
    """The executed notebooks of a profile, and a page that leads to them."""
    paths = sorted((folder / "notebooks").glob("*.ipynb"))
    if not paths:
        raise ExtensionError(
            f"{folder} has no executed notebooks; run: nvret run params/quick.yaml"
        )
    pages, rows = {}, []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        _tidy(notebook)
        _link(notebook, {other.stem for other in paths} - {path.stem})
        pages[f"results/{folder.name}/{path.name}"] = nbformat.writes(notebook)
        question = re.search(r"\*\*Question\.\*\* (.+)", notebook.cells[0].source)
        rows.append((path.stem, question[1] if question else ""))
    pages[f"results/{folder.name}/index.md"] = _overview(folder, rows)
    return pages


def _overview(folder: Path, rows: list[tuple[str, str]]) -> str:
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["runs"][-1]
    settings, hardware = facts["parameters"], facts["hardware"]
    students = ", ".join(f"{name} ({one['model']})" for name, one in settings["students"].items())
    students, teacher, processor = map(
        _literal, (students, settings["teacher"], hardware["processor"])
    )
    return "\n".join(
        [
            f"# Notebooks of `{folder.name}`",
            "",
            f"Students: {students}. Default teacher: {teacher}. "
            f"Seeds: {len(settings['seeds'])}. Executed on {hardware['threads']} threads of "
            f"{processor}.",
            "",
            *(f"[`{name}`]({name}.ipynb)\n: {question}\n" for name, question in rows),
            "```{toctree}\n:hidden:",
            *(name for name, _ in rows),
            "```",
            "",
        ]
    )


def _literal(text: str) -> str:
    r"""Text whose every character stands for itself in Markdown: no tag, role or formula.

    >>> print(_literal("a <b>"))
    a \<b\>
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def _tidy(notebook: NotebookNode) -> None:
    """Take out progress bars, fold parameters, and describe each figure in words."""
    notebook.metadata.pop("widgets", None)
    heading = ""
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,6} (.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        if cell.cell_type != "code":
            continue
        shown = cell.metadata.setdefault("mystnb", {})
        tags = cell.metadata.setdefault("tags", [])
        if {"parameters", "injected-parameters"} & set(tags):
            tags.append("hide-input")
            shown["code_prompt_show"] = shown["code_prompt_hide"] = "Parameters of the profile"
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in cell.outputs:
            html = output.get("data", {}).get("text/html")
            if html:  # pandas' own style knows no dark page; the theme's is for its class
                html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)
                html = re.sub(r"<table(?![^>]*class=)", '<table class="dataframe"', html)
                output.data["text/html"] = html
        words = f"Figure, {heading.rstrip('.?!:')}. {_next_sentence(notebook.cells[place + 1 :])}"
        shown["image"] = {"alt": re.sub(r"[*`$]", "", words).strip()}


def _next_sentence(cells: list[NotebookNode]) -> str:
    """First sentence of the text that follows, unless a new section or more code comes first."""
    if not cells or cells[0].cell_type != "markdown" or cells[0].source.lstrip().startswith("#"):
        return ""
    sentence = SENTENCE.match(cells[0].source.strip())
    return sentence[1] if sentence else ""


def _link(notebook: NotebookNode, names: set[str]) -> None:
    """Where the text names another notebook, lead to it."""
    pattern = "|".join(map(re.escape, sorted(names)))
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and names:
            cell.source = re.sub(rf"(?<!\[)`({pattern})`", r"[`\1`](\1.ipynb)", cell.source)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("profiles", [], "env", list)
    app.connect("builder-inited", gather)
    app.add_directive("ledger", ledger_table.Ledger)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
