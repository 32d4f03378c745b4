"""``nvret site``: executed notebooks, ledger and benchmarks as a folder of pages."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.errors import NvretError


def add(commands: argparse._SubParsersAction) -> None:
    site = commands.add_parser("site", help="notebooks, ledger and benchmarks as a folder of pages")
    site.add_argument("--results", type=Path, help="folder of the profiles' results (results)")
    site.add_argument("--output", type=Path, default=Path("site"), help="folder to write (site)")
    site.set_defaults(command=run)


def run(chosen: argparse.Namespace) -> None:
    try:
        from nvret import site
    except ModuleNotFoundError as error:
        package = (error.name or "more").partition(".")[0]
        raise NvretError(f"site needs {package}: pip install 'nvret[site]'") from error
    from nvret.params import project_root

    pages = site.build(chosen.results or project_root() / "results", chosen.output)
    print(f"{chosen.output / 'index.html'}: {len(pages)} pages")
