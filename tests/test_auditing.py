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
    assert audit.way == "excluded"
    assert naive["near-duplicates"].tolist() == ["excluded", "kept"] * 2
    assert naive["rate"].tolist() == [0.5] * 4  # the other answer, and a neighbour's
    assert naive["mean rank"].tolist() == [1.5] * 4
    reductions = audit.reductions()
    assert set(reductions["method"]) == set(frontier["method"]) - {false_negatives.NAIVE}
    strict = reductions[reductions["method"] == "TopK-MarginPos 5"]
    assert strict["reduction"].tolist() == [1] * 4
    assert audit.by_rank().query("rank == 1")["rate"].tolist() == [1] * 4
    beside = audit.beside_paper()
    assert beside.loc[beside["source"] != "here", "near-duplicates"].unique().tolist() == ["kept"]
    both = beside.loc[beside["source"] == "here", "near-duplicates"]
    assert both.value_counts().tolist() == [len(both) / 2] * 2
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


def test_what_symmetry_gives_is_told_from_what_a_rule_adds(audited):
    """Both answers of a question score the same, so that a ceiling at the positive drops all."""
    audit = audited()
    symmetry = audit.symmetry()
    assert symmetry["pairs"].tolist() == [10] * 4
    assert symmetry["above"].between(0.4, 1).all()
    excess = audit.excess().set_index("method")
    assert set(excess.index) == {"Random", "TopK-MarginPos 0", "TopK-MarginPos 5",
                                 str(false_negatives.HALF)}  # fmt: skip
    ceiling = excess[excess["less than"] == "the ceiling at 100 %"]
    assert ceiling.loc["TopK-MarginPos 0", "their rate"].tolist() == (
        audit.frontier().query("method == 'TopK-PercPos 100%'")["rate"].tolist()
    )
    shift = excess[excess["less than"] == "a shift as hard"]
    assert shift["reduction"].isna().all()  # the profile has none


def test_copies_of_a_positive_are_mined_where_they_are_kept(audited, monkeypatch):
    def copied(name):
        """Each question's second answer is nearly a copy of the first."""
        words = [" ".join(f"w{i}x{j}" for j in range(30)) for i in range(12)]
        texts = [f"{text} {end}" for text in words for end in ("one", "two")]
        texts += [f"nothing {name} {i}" for i in range(20)]
        labels = [[2 * i, 2 * i + 1] for i in range(12)]
        return from_texts(name, texts, [f"w{i}x0 w{i}x1 nothing" for i in range(12)], labels)

    monkeypatch.setattr(data, "load", lambda name, progress: copied(name))
    audit = audited()
    assert audit.sizes()["excluded"].tolist() == [1, 1]
    naive = audit.frontier().query("method == @false_negatives.NAIVE")
    rates = naive.groupby("near-duplicates")["rate"].max()
    assert rates["excluded"] == 0
    assert rates["kept"] > 0
    symmetry = audit.symmetry().set_index("near-duplicates")
    assert (symmetry.loc["excluded", "pairs"] == 0).all()
    assert (symmetry.loc["kept", "pairs"] == 10).all()


def test_figures(audited, tmp_path):
    audit = audited()
    nothing = pd.DataFrame(columns=["threshold", "precision", "recall", "removed"], dtype=float)
    frontier = audit.frontier()
    frontier.loc[0, ["rate", "hardness"]] = np.nan  # a method that found nothing
    curves = audit.curves() | {"empty": {"nobody": nothing}}
    for name, figure in {
        "frontier": mining_figures.frontier(frontier),
        "exclusion": mining_figures.exclusion(
            audit.frontier(), [false_negatives.NAIVE, "TopK-MarginPos 0"], {"one": 0.388}
        ),
        "ranks": mining_figures.by_rank(audit.by_rank()),
        "judges": mining_figures.judges(curves),
    }.items():
        figure.savefig(tmp_path / f"{name}.png")
        plt.close(figure)
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
