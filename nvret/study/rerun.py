"""One claim again: its study and notebook from the store or from nothing, beside what is committed.

As the two-click reproductions of pyserini: a claim is a command, with the value to expect.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from typing import Any
from unittest import mock

import pandas as pd

from nvret.study import claims, ledger, notebooks, paths
from nvret.study.claims import Claim, NotTestable
from nvret.study.config import Settings
from nvret.utils.errors import NvretError, hint

TOLERANCE = {"points": 1e-3, "share": 0.01}  # of another processor, in NDCG@10 and as a share
TEACHERS = "02_rq1_teachers"  # whose notebook has the teachers' own scores


def claim(name: str) -> Claim:
    """The registered claim of that name; `NvretError` where there is none, or no way to decide."""
    known = {one.id: one for one in claims.load().claims}
    if name not in known:
        near = hint(name, list(known)) or ","
        raise NvretError(f"no claim is named {name!r}{near} see params/claims.yaml")
    if isinstance(known[name], NotTestable):
        raise NvretError(f"{name} is not testable here: {known[name].reason}")
    return known[name]


def again(settings: Settings, values: dict[str, Any], name: str) -> pd.DataFrame:
    """A row for each student (or set) of a claim: what was found before, and what is found now.

    The study is run, which takes from the store what is there, and its notebook executed, into a
    folder that is removed. Nothing that was there before is read but the committed ledger.

    Args:
        values: the file that ``settings`` was read from.
        name: id of a claim.
    Returns:
        columns student, expected, found (texts, in points or percent), verdict, verdict_now, same:
        whether the values agree within ``TOLERANCE``, and the verdicts. Where these do not, both
        ends of the interval have to agree as well: it then ends next to a border of verdicts.
    Raises:
        NvretError: no such claim; the profile has no ledger, or its ledger not this claim.
    """
    chosen = claim(name)
    kept, _ = ledger.read(paths.results_folder(settings))
    kept = kept[(kept["id"] == name) & (kept["verdict"] != "not run")]
    if kept.empty:
        raise NvretError(f"{settings.profile} has not run {name}")
    words = str(chosen.model_dump())
    needed = [TEACHERS] * ("'best'" in words and chosen.study != TEACHERS)
    with (
        tempfile.TemporaryDirectory(prefix="nvret-claim-") as folder,
        mock.patch.dict(os.environ, {"NVRET_RESULTS": folder}),
        contextlib.redirect_stdout(io.StringIO()),  # where files lie that are removed
    ):
        notebooks.run(settings, values, [*needed, chosen.study], again=True)
        found = ledger.load(settings, chosen.study)
    found = found[found["id"] == name].set_index("student").reindex(kept["student"]).reset_index()
    kept = kept.reset_index(drop=True)
    texts = [ledger.shown(table)["here"] for table in (kept, found)]
    numbers = ["difference", "low", "high"]
    near = (kept[numbers] - found[numbers]).abs().le(kept["unit"].map(TOLERANCE), axis=0)
    near = near["difference"] & ((kept["verdict"] == found["verdict"]) | near.all(axis=1))
    columns = [kept["student"], *texts, kept["verdict"], found["verdict"], near]
    names = ["student", "expected", "found", "verdict", "verdict_now", "same"]
    return pd.concat(columns, axis=1, keys=names)
