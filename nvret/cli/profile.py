"""``nvret fetch``, ``run``, ``encode``, ``report``: a profile and what it needs."""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = {"encode": "vectors", "mine": "negatives", "train": "models"}


def add(commands: argparse._SubParsersAction) -> None:
    fetch = commands.add_parser("fetch", help="download and convert data sets and models")
    fetch.add_argument("names", nargs="+", help="names of nvret/registry/*.yaml")
    fetch.set_defaults(command=_fetch)

    run = commands.add_parser("run", help="compute a profile and execute its notebooks")
    run.add_argument("params", type=Path, help="for example params/quick.yaml")
    run.add_argument("--only", action="append", metavar="NOTEBOOK", help="only this notebook")
    run.set_defaults(command=_run)

    encode = commands.add_parser("encode", help="vectors of a profile, also under torchrun")
    encode.add_argument("params", type=Path, help="for example params/gpu.yaml")
    encode.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")
    encode.set_defaults(command=stage, stage="encode")

    report = commands.add_parser("report", help="tables, ledger and README from a profile's scores")
    report.add_argument("params", type=Path, help="for example params/quick.yaml")
    report.set_defaults(command=_report)


def _fetch(chosen: argparse.Namespace) -> None:
    from nvret import assets

    for name, folder in assets.fetch(chosen.names).items():
        print(f"{name}: {folder}")


def _run(chosen: argparse.Namespace) -> None:
    from nvret.study import config, notebooks

    settings = config.load(chosen.params)
    notebooks.run(settings, config.read(chosen.params), chosen.only or settings.notebooks)


def stage(chosen: argparse.Namespace) -> None:
    from nvret.study import config, notebooks
    from nvret.utils import processes

    settings = config.load(chosen.params)
    number = notebooks.compute(settings, chosen.stage, chosen.only)
    if processes.is_main_process():
        print(f"the {STAGES[chosen.stage]} of {number} arms are in the store")


def _report(chosen: argparse.Namespace) -> None:
    from nvret.study import config, ledger, paths, readme

    settings = config.load(chosen.params)
    table = ledger.write(settings)
    for verdict, count in table["verdict"].value_counts().items():
        print(f"{verdict}: {count}")
    folder, root = paths.results_folder(settings), config.project_root()
    # The README shows the checkout's own results, and those of the large profiles only
    if settings.profile in readme.PROFILES and folder.parent == root / "results":
        readme.update(root / "README.md", folder.parent)
