"""``nvret fetch``, ``run``, ``encode``, ``report``, ``claim``: a profile and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nvret.cli import options
from nvret.cli.options import Only, Profile

STAGES = {"encode": "vectors", "mine": "negatives", "train": "models"}


def fetch(names: list[str], /) -> None:
    """Download and convert data sets and models.

    Args:
        names: of models and data sets, as in nvret/assets/registry
    """
    from nvret import assets

    for name, folder in assets.fetch(names).items():
        print(f"{name}: {folder}")


def run(
    params: Profile,
    /,
    *,
    only: Annotated[list[str] | None, Parameter(help="only this notebook; may be repeated")] = None,
    again: bool = False,
) -> None:
    """Compute a profile and execute its notebooks.

    Args:
        again: execute notebooks anew that the cache has as they would be
    """
    from nvret.study import config, kernels

    settings = config.load(params)
    kernels.use()  # they import while this process does

    from nvret.study import notebooks

    notebooks.run(settings, config.read(params), only or settings.notebooks, again=again)


def encode(params: Profile, /, *, only: Only = None) -> None:
    """Compute the vectors of a profile, also under torchrun."""
    stage("encode", params, only)


def stage(name: str, params: Path, only: list[str] | None) -> None:
    """One stage of a profile, a key of `nvret.study.notebooks.STAGES`."""
    from nvret.study import config, notebooks
    from nvret.utils import processes

    settings = config.load(params)
    number = notebooks.compute(settings, name, only)
    if processes.is_main_process():
        print(f"the {STAGES[name]} of {number} arms are in the store")


def report(params: Profile, /, *, crate: Path | None = None) -> None:
    """Write tables, ledger and README from a profile's scores.

    Args:
        crate: a .zip to write: all results, described for an archive (RO-Crate)
    """
    from nvret.study import config, ledger, paths, readme

    options.check_output("crate", crate, ".zip")
    settings = config.load(params)
    table = ledger.write(settings)
    for verdict, count in table["verdict"].value_counts().items():
        print(f"{verdict}: {count}")
    folder, root = paths.results_folder(settings), config.project_root()
    # The README shows the checkout's own results, and those of the large profiles only
    if settings.profile in readme.PROFILES and folder.parent == root / "results":
        readme.replace(root / "README.md", "results", readme.section(folder.parent))
    if crate is not None:
        from nvret.study import crate as archive

        print(f"{crate}: {archive.write(settings, crate)} files")


def claim(name: str, params: Profile = Path("params/quick.yaml"), /) -> int:
    """Compute what decides a claim again, and compare it with the committed results.

    Exit status 1 where a value is not within its tolerance, or a verdict is another, unless its
    interval ends next to the border between the two.

    Args:
        name: of a claim in params/claims.yaml, for example perc-beats-naive
    """
    from nvret.study import config, rerun

    registered = rerun.claim(name)
    settings = config.load(params)
    table = rerun.again(settings, config.read(params), name)
    print(f"\n{registered.claim} ({settings.profile}):")
    for row in table.itertuples():
        told = "the same" if row.same else "NOT THE SAME"
        if row.same and row.verdict != row.verdict_now:
            told += ", next to the border of two verdicts"
        print(
            f"{row.student}: expected {row.expected}, {row.verdict}; "
            f"found {row.found}, {row.verdict_now}: {told}"
        )
    return int(not table["same"].all())
