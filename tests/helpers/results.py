"""Results of a study whose truth is known, and the ledger on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from nvret.study import arms, claims, config, ledger
from nvret.study.scores import Results

SETTINGS = config.load(Path(__file__).parents[2] / "params" / "smoke.yaml")
LIFT = 0.05  # what training adds, so that each arm is a positive control
ALL_DIFFER = 0.9  # the share of negatives that differ between any two arms


def synthetic(
    study, effects=None, *, queries=200, seeds=3, noise=0.05, of_seed=0.002, draw=0, only=None,
    sets=("nq-test",), primary=("nq-test",), lift=LIFT, differing=ALL_DIFFER,
):  # fmt: skip
    """Results of a study of the smoke profile.

    Args:
        effects: label -> what its arm adds; (label, set) where it adds it on this set alone.
        differing: share of the negatives that any two arms do not share.
    """
    rng, effects = np.random.default_rng(draw), effects or {}
    rows = [arm for arm in arms.arms(SETTINGS, study) if only is None or arm.label in only]
    frames = []
    for name in [*sets, *(["nq-dev"] if SETTINGS.studies[study].dev else [])]:
        of_query = rng.normal(0.6, 0.2, queries)
        for arm in rows:
            added = effects.get(arm.label, 0.0) + effects.get((arm.label, name), 0.0)
            for seed in range(seeds if arm.trained else 1):
                value = of_query + added + (lift if arm.trained else 0.0)
                value = value + rng.normal(0, of_seed) + rng.normal(0, noise, queries)
                ids = [f"q{i}" for i in range(queries)]
                cells = {"dataset": name, "query_id": ids, "arm": arm.label, "seed": seed}
                frames.append(pd.DataFrame(cells | dict.fromkeys(
                    ("ndcg_at_10", "recall_at_100"), value)))  # fmt: skip
    table = pd.DataFrame([{"arm": arm.label, **arm.row} for arm in rows]).set_index("arm")
    mined = [arm.label for arm in rows if arm.method is not None]
    share = pd.DataFrame(differing * (1 - np.eye(len(mined))), index=mined, columns=mined)
    scores, logs = pd.concat(frames, ignore_index=True), pd.DataFrame()
    return Results.of(table, scores, logs, "nq-dev", list(primary), differing=share)


def save_ledger(results: Path, profile: str, effects: Mapping[str, float], draw: int) -> None:
    """Write a profile's ledger, as if the studies of the smoke profile had given it."""
    studies = {name: synthetic(name, effects, queries=50, draw=draw) for name in SETTINGS.studies}
    table = ledger.build(SETTINGS, claims.load(), studies, {})
    with mock.patch.dict(os.environ, {"NVRET_RESULTS": str(results)}):
        ledger.save(SETTINGS.model_copy(update={"profile": profile}), table)
