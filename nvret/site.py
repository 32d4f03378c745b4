"""The results as a folder of pages: notebooks, ledger and benchmarks, to read without a network.

The pages need no server and load nothing from elsewhere: ``site/index.html`` opens as a file, and
the folder can be published as it is. Everything is read from ``results/``; nothing is computed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pygments.formatters import HtmlFormatter

from nvret import exhibits, readme, rendering
from nvret.errors import NvretError
from nvret.params import project_root

GENERATOR = '<meta name="generator" content="nvret site">'
MAIN_FIGURE = "06_differences_transformer"
LEDGER_FIGURE = "10_ledger"
STYLES = {"light": "vs", "dark": "github-dark"}  # of Pygments, readable on the pages' grounds
ASSETS = ("style.css", "ledger.js")


@dataclass(frozen=True)
class Link:
    """Where a page leads: an address relative to the site's root, and its text."""

    href: str
    text: str


def build(results: Path, target: Path) -> list[Path]:
    """Write the site.

    Args:
        results: the folder ``results``, of a checkout.
        target: the folder to write; an earlier site in it is replaced when the new one is whole.
    Returns:
        the pages, as paths in ``target``.
    Raises:
        NvretError: there is nothing to show, or ``target`` holds something else.
    """
    profiles = _profiles(results)
    with _replaced(target) as folder:
        _assets(folder)
        notebooks = {name: _notebooks(results / name / "notebooks") for name in profiles}
        _figures(results, profiles, folder)
        for href, template, content in _pages(results, profiles, notebooks):
            _write(folder, href, template, content)
        for profile, pages in notebooks.items():
            for page in pages:
                for name, data in page.files.items():
                    path = folder / profile / name
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(data)
    return sorted(target.rglob("*.html"))


def _profiles(results: Path) -> list[str]:
    """Profiles with a ledger and executed notebooks, the README's first."""
    found = {path.parent.name for path in results.glob("*/claims.json")} - {"smoke"}
    found = {name for name in found if any((results / name / "notebooks").glob("*.ipynb"))}
    if not found:
        raise NvretError(f"{results} has no executed notebooks; run: nvret run params/quick.yaml")
    return sorted(found, key=lambda name: (name not in readme.PROFILES, name != "quick", name))


def _notebooks(folder: Path) -> list[rendering.Rendered]:
    paths = sorted(folder.glob("*.ipynb"))
    names = [path.stem for path in paths]
    return [rendering.render(path, names) for path in paths]


def _pages(
    results: Path, profiles: list[str], notebooks: dict[str, list[rendering.Rendered]]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Address, template and content of each page; the first profile's notebooks lead to the end."""
    home, ledger = Link("index.html", "Home"), Link("ledger.html", "Ledger of claims")
    first = [_link(profiles[0], page) for page in notebooks[profiles[0]]]
    timed = (results / "benchmarks" / "table.csv").is_file()
    speed = Link("benchmarks.html", "Benchmarks") if timed else None
    counts = exhibits.counts(results, profiles)
    shared = {"profiles": profiles, "speed": speed}

    cards = _cards(notebooks)
    content = {"cards": cards, "counts": counts, "previous": None, "next": first[0]}
    content["figure"] = _figure(results, profiles, MAIN_FIGURE)
    yield home.href, "index.html", shared | content

    for profile, pages in notebooks.items():
        links = [home, *(_link(profile, page) for page in pages), ledger]
        for page, previous, following in zip(pages, links, links[2:], strict=False):
            others = [
                Link(f"{other}/{page.name}.html", other)
                for other in profiles
                if other != profile and any(one.name == page.name for one in notebooks[other])
            ]
            content = {"page": page, "profile": profile, "others": others}
            content |= {"previous": previous, "next": following}
            yield f"{profile}/{page.name}.html", "notebook.html", shared | content

    content = {"sections": exhibits.claims(results, profiles), "counts": counts}
    content |= {"verdicts": exhibits.VERDICTS, "margin": exhibits.margin(results, profiles[0])}
    content |= {"figures": {name: _figure(results, [name], LEDGER_FIGURE) for name in profiles}}
    yield ledger.href, "ledger.html", shared | content | {"previous": first[-1], "next": speed}

    if speed is not None:
        groups, facts = exhibits.benchmarks(results / "benchmarks")
        content = {"groups": groups, "facts": facts, "previous": ledger, "next": None}
        content["figure"] = (results / "benchmarks" / "ratios.png").is_file()
        yield speed.href, "benchmarks.html", shared | content


def _link(profile: str, page: rendering.Rendered) -> Link:
    return Link(f"{profile}/{page.name}.html", page.title)


def _cards(notebooks: dict[str, list[rendering.Rendered]]) -> list[dict[str, Any]]:
    """One card a notebook, whichever profiles have executed it; the first one's figure."""
    cards: dict[str, dict[str, Any]] = {}
    for profile, pages in notebooks.items():
        for page in pages:
            image = page.first_figure and f"{profile}/{page.first_figure}"
            card = cards.setdefault(page.name, {"page": page, "image": image, "links": []})
            card["links"].append(Link(f"{profile}/{page.name}.html", profile))
    return [cards[name] for name in sorted(cards)]


def _figure(results: Path, profiles: list[str], name: str) -> str | None:
    """Address of a profile's figure: of the first profile that has it."""
    there = [p for p in profiles if (results / p / "figures" / f"{name}.png").is_file()]
    return f"{there[0]}/{name}.png" if there else None


def _figures(results: Path, profiles: list[str], folder: Path) -> None:
    for profile in profiles:
        (folder / profile).mkdir()
        for name in (MAIN_FIGURE, LEDGER_FIGURE):
            source = results / profile / "figures" / f"{name}.png"
            if source.is_file():
                shutil.copyfile(source, folder / profile / source.name)
    if (results / "benchmarks" / "ratios.png").is_file():
        shutil.copyfile(results / "benchmarks" / "ratios.png", folder / "benchmarks.png")


def _environment() -> Environment:
    loader = PackageLoader("nvret", "templates/site")
    found = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found.filters["slug"] = exhibits.slug
    return found


def _write(folder: Path, href: str, template: str, content: dict[str, Any]) -> None:
    root = "../" * href.count("/")
    text = _environment().get_template(template).render(root=root, href=href, **content)
    (folder / href).write_text(text, encoding="utf-8")


def _assets(folder: Path) -> None:
    """Style, script and licence; the colours of code come from Pygments."""
    source = Path(__file__).parent / "templates" / "site"
    for name in ASSETS:
        shutil.copyfile(source / name, folder / name)
    licence = project_root() / "LICENSE"
    if licence.is_file():  # an installed package has no checkout around it
        shutil.copyfile(licence, folder / "LICENSE.txt")
    rules = {name: HtmlFormatter(style=style) for name, style in STYLES.items()}
    css = {name: one.get_token_style_defs(".highlight") for name, one in rules.items()}
    with (folder / "style.css").open("a", encoding="utf-8") as stream:
        stream.write("\n".join(["", *css["light"]]))
        stream.write(
            "\n@media (prefers-color-scheme: dark) {\n  .highlight span { color: #e6edf3 }"
        )
        stream.write("\n".join([*css["dark"], "}", ""]))


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, which takes its place when the block succeeds."""
    index = target / "index.html"
    if target.exists() and not (
        index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")
    ):
        raise NvretError(f"{target}: exists and is no site of `nvret site`; name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(
        tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    )
    try:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
