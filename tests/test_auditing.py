"""The audit of a profile: tables and figures from a set small enough to count by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nvret import data
from nvret.data import from_texts
from nvret.study import config, false_negatives, mining_figures
from nvret.utils import store

NAMES = ["one", "two"]


def made(name):
    """Question i has two answers that share its word, and a word with the next question's."""
    texts = [f"word{i} near{i} near{i + 1} text{j}" for i in range(12) for j in range(2)]
    texts += [f"nothing {name} {i}" for i in range(20)]
    queries = [f"word{i} near{i} near{i + 1}?" for i in range(12)]
    return from_texts(name, texts, queries, [[2 * i, 2 * i + 1] for i in range(12)])


@pytest.fixture
def audited(tmp_path, monkeypatch):
    """An audit by BM25 that a static encoder judges, in a cache of its own."""
    values = config.read(config.project_root() / "params" / "smoke.yaml")
    teacher = {"name": "bm25", "query_max_length": 32, "passage_max_length": 64}
    if "bm25" not in [one["name"] for one in values["teachers"]]:
        values["teachers"] = [teacher, *values["teachers"]]
    values["audit"] = {
        "datasets": NAMES, "queries": 10, "passages": None, "teacher": "bm25", "num_negatives": 2,
        "methods": [{"name": "random"}, {"name": "margin-pos", "margin": [0.0, 5.0]}],
        "judges": ["potion-base-8m"], "judged_pairs": 12,
    }  # fmt: skip
    models = store.cache_dir() / "models"
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    (tmp_path / "models").symlink_to(models)
    monkeypatch.setattr(data, "load", lambda name, progress: made(name))
    settings = config.check(values, "test")
    return lambda: false_negatives.Audit(settings, progress=False)


def test_tables(audited, monkeypatch):
    audit = audited()
    sizes = audit.sizes()
    assert sizes["dataset"].tolist() == NAMES
    assert sizes["labels"].tolist() == ["labelled"] * 2
    assert sizes["hidden per query"].tolist() == [1, 1]

    frontier = audit.frontier()
    naive = frontier[frontier["method"] == false_negatives.NAIVE]
    assert naive["rate"].tolist() == [0.5, 0.5]  # the other answer, and a neighbour's
    assert naive["mean rank"].tolist() == [1.5, 1.5]
    reductions = audit.reductions()
    assert set(reductions["method"]) == set(frontier["method"]) - {false_negatives.NAIVE}
    strict = reductions[reductions["method"] == "TopK-MarginPos 5"]
    assert strict["reduction"].tolist() == [1, 1]
    assert audit.by_rank().query("rank == 1")["rate"].tolist() == [1, 1]
    beside = audit.beside_paper()
    assert beside.loc[beside["source"] == "here", "dataset"].nunique() == 2
    assert {"NQ", "StackExchange"} <= set(beside["dataset"])
    assert "negative of rank 1" in audit.examples("one", 1)[0].data

    quality = audit.quality()
    assert quality["judge"].tolist() == ["bm25, the teacher", "potion-base-8m"] * 2
    assert (quality["pairs"] == 12).all()
    assert (quality["known"] == 6).all()
    assert (quality.loc[quality["judge"] == "potion-base-8m", "tokens per pair"] > 0).all()
    assert audit.seconds().loc["bm25, the teacher"].tolist() == [0, 0]

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(false_negatives.mining, "sweep", fail)
    monkeypatch.setattr(false_negatives.judge_quality, "judge", fail)
    pd.testing.assert_frame_equal(audited().quality(), quality)
    pd.testing.assert_frame_equal(audited().frontier(), frontier)


def test_figures(audited, tmp_path):
    audit = audited()
    nothing = pd.DataFrame(columns=["threshold", "precision", "recall", "removed"], dtype=float)
    frontier = audit.frontier()
    frontier.loc[0, ["rate", "hardness"]] = np.nan  # a method that found nothing
    curves = audit.curves() | {"empty": {"nobody": nothing}}
    for name, figure in {
        "frontier": mining_figures.frontier(frontier),
        "ranks": mining_figures.by_rank(audit.by_rank()),
        "judges": mining_figures.judges(curves),
    }.items():
        figure.savefig(tmp_path / f"{name}.png")
        plt.close(figure)
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
