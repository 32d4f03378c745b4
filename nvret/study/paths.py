"""Where a profile's results lie: tables, figures, scores, and what produced them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from nvret.study.config import Settings, project_root
from nvret.utils import machine, store
from nvret.utils.errors import check_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = [
    "datasets", "mteb", "numpy", "nvret", "pyarrow", "sentence-transformers", "torch",
    "transformers",
]  # fmt: skip


def results_folder(settings: Settings) -> Path:
    """``results/<profile>``, the home of a profile's tables, figures and executed notebooks.

    ``$NVRET_RESULTS`` names another folder than the checkout's ``results``.
    """
    root = Path(os.environ.get("NVRET_RESULTS") or project_root() / "results")
    return root / check_name(settings.profile)


def _path(settings: Settings, kind: str, name: str, suffix: str) -> Path:
    return results_folder(settings) / kind / f"{check_name(name)}{suffix}"


def scores_path(settings: Settings, study: str) -> Path:
    """A study's scores, from which its tables, figures and claims are computed."""
    return _path(settings, "scores", study, ".parquet")


def table_path(settings: Settings, name: str) -> Path:
    """``tables/<name>.csv``."""
    return _path(settings, "tables", name, ".csv")


def save_table(settings: Settings, name: str, table: pd.DataFrame) -> None:
    """Write ``tables/<name>.csv`` with six digits, which other machines reproduce."""
    with store.atomic_file(table_path(settings, name)) as partial:
        table.to_csv(partial, index=not isinstance(table.index, pd.RangeIndex), float_format="%.6f")


def save_figure(settings: Settings, name: str, figure: Figure) -> None:
    """Write ``figures/<name>.png``."""
    with store.atomic_file(_path(settings, "figures", name, ".png")) as partial:
        figure.savefig(
            partial, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None}
        )


def provenance_path(settings: Settings) -> Path:
    """``provenance.json``, of `save_provenance`."""
    return results_folder(settings) / "provenance.json"


def save_provenance(
    settings: Settings, made: Sequence[str], fingerprints: dict[str, str], seconds: float
) -> None:
    """Add a run to ``provenance.json``: which notebooks it made, and what produced them.

    A notebook that is made again leaves the run that it came from before.

    Args:
        made: names of the notebooks.
        fingerprints: of the data sets and models, by name.
        seconds: that the run took; how many of them each stage took is added, notebooks being
            executed in another process beside them.
    """
    root, path = project_root(), provenance_path(settings)
    changes = machine.git(root, "status", "--porcelain", "--", "nvret", "notebooks", "params")
    run = {
        "notebooks": list(made),
        "parameters": settings.model_dump(),
        "fingerprints": fingerprints,
        "versions": machine.versions(PACKAGES),
        "commit": machine.git(root, "rev-parse", "HEAD"),
        "uncommitted_changes": bool(changes),
        "hardware": machine.hardware(),
        "seconds": round(seconds),
        "seconds_by_stage": {name: round(spent) for name, spent in store.SPENT.items()},
    }
    kept = json.loads(path.read_bytes()).get("runs", []) if path.is_file() else []
    for one in kept:
        one["notebooks"] = [name for name in one["notebooks"] if name not in made]
    runs = [one for one in kept if one["notebooks"]]
    store.write_json(path, {"runs": [*runs, run]})
