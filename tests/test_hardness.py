"""Methods at equal hardness: on scores that are a known function of it."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from nvret import data
from nvret.analysis import statistics
from nvret.study import hardness, mining_figures, tables
from nvret.study.scores import METRICS, Results
from nvret.utils.errors import NvretError

SWEPT = {  # family -> parameter -> hardness
    "perc-pos": {0.7: 0.5, 0.8: 0.6, 0.9: 0.7, 1.0: 0.8},
    "abs": {0.4: 0.55, 0.6: 0.66, 0.7: 0.75},
    "margin-pos": {0.3: 0.2, 0.2: 0.3},  # nowhere as hard as the others
    "shifted": {1: 0.6, 3: 0.6},  # twice the same
}
NAIVE, RANDOM = "s: Naive Top-K", "s: Random"


def labels(family):
    return {f"s: {family} {parameter:g}": parameter for parameter in SWEPT[family]}


def study(curve, bonus=0.0, noise=0.0, queries=50, seeds=3):
    """Results and the table of what was mined; score = curve(hardness), perc-pos gets a bonus."""
    rng = np.random.default_rng(0)
    arms = [
        {"arm": label, "family": family, "parameter": float(parameter), "hardness": hardness}
        for family in SWEPT
        for (label, parameter), hardness in zip(
            labels(family).items(), SWEPT[family].values(), strict=True
        )
    ]
    arms += [
        {"arm": NAIVE, "family": "naive", "parameter": None, "hardness": 0.9},
        {"arm": RANDOM, "family": "random", "parameter": None, "hardness": 0.1},
        {"arm": "s: abs 0.6, in-batch", "family": "abs", "parameter": 0.6, "hardness": 0.99},
    ]
    frame = pd.DataFrame(arms).set_index("arm").assign(student="s")
    frame["method"] = [label[3:].removesuffix(", in-batch") for label in frame.index]
    of_query = rng.normal(0, 0.2, queries)
    scores = []
    for label, row in frame.iterrows():
        truth = curve(row["hardness"]) + bonus * (row["family"] == "perc-pos")
        for seed in range(seeds):
            values = truth + of_query + rng.normal(0, noise, queries)
            ids = [f"q{i}" for i in range(queries)]
            cells = {"dataset": "test", "query_id": ids, "arm": label, "seed": seed}
            scores.append(pd.DataFrame(cells | dict.fromkeys(METRICS, values)))
    results = Results.of(
        frame.drop(columns="hardness"), pd.concat(scores), pd.DataFrame(), "dev", ["test"]
    )
    mined = pd.DataFrame({
        "mean score": 0.8 * frame["hardness"], "mean positive score": 0.8,
        "share found": np.linspace(0.5, 1, len(frame)),
        "in the positive's cluster": frame["hardness"] ** 2,
    })  # fmt: skip
    return results, mined


def test_a_score_that_is_linear_in_hardness_leaves_the_bonus_alone():
    results, mined = study(lambda hardness: 0.4 + 0.3 * hardness, bonus=0.02)
    rows = hardness.equal_hardness(results, mined, [("perc-pos", "abs"), ("abs", "perc-pos")])
    assert rows["difference"].tolist() == ["perc-pos − abs", "abs − perc-pos"]
    assert rows["value"].tolist() == pytest.approx([2, -2], abs=1e-4)
    row = rows.iloc[0]
    assert (row["from"], row["to"]) == pytest.approx((0.55, 0.75))
    assert row["arms"] == 7
    assert row["least found"] == mined.loc[[*labels("perc-pos"), *labels("abs")]].min().iloc[2]


def test_without_a_bonus_hardness_alone_makes_no_difference():
    """Where plain means would: perc-pos has the harder arms."""
    results, mined = study(lambda hardness: hardness, noise=0.02)
    row = hardness.equal_hardness(results, mined, [("perc-pos", "abs")]).iloc[0]
    assert row["low"] < 0 < row["high"]
    plain = {family: np.mean([results.values(label)["test"].mean() for label in labels(family)])
             for family in ("perc-pos", "margin-pos")}  # fmt: skip
    assert plain["perc-pos"] - plain["margin-pos"] > 0.3


def test_the_interval_is_that_of_the_weighted_contrast():
    results, mined = study(np.square, bonus=0.01, noise=0.05)
    row = hardness.equal_hardness(results, mined, [("perc-pos", "abs")]).iloc[0]

    def at(family, hardness):
        """The family's scores (seeds, queries), interpolated by hand."""
        levels = np.array(list(SWEPT[family].values()))
        values = [results.values(label)["test"] for label in labels(family)]
        right = int(np.searchsorted(levels, hardness, side="right").clip(1, len(levels) - 1))
        share = (hardness - levels[right - 1]) / (levels[right] - levels[right - 1])
        return (1 - share) * values[right - 1] + share * values[right]

    levels = np.linspace(0.55, 0.75, hardness.STEPS)
    by_hand = np.mean([at("perc-pos", x) - at("abs", x) for x in levels], axis=0)
    interval = statistics.mean_interval(by_hand)
    assert row[["value", "low", "high"]].tolist() == pytest.approx(
        [100 * end for end in interval], abs=1e-6
    )


def test_another_column_no_common_range_and_what_is_absent():
    results, mined = study(np.square, bonus=0.01)
    column = "in the positive's cluster"
    (row,) = hardness.equal_hardness(results, mined, [("perc-pos", "abs")], by=column).to_dict(
        "records"
    )
    assert row["by"] == column
    assert row["from"] == pytest.approx(0.55**2)
    assert row["value"] == pytest.approx(1, abs=1e-4)  # the score is linear in this column
    pairs = [("perc-pos", "margin-pos"), ("perc-pos", "shifted"), ("perc-pos", "random")]
    rows = hardness.equal_hardness(results, mined, pairs)
    assert len(rows) == 3
    assert rows["value"].isna().all()
    without = dataclasses.replace(results, arms=results.arms[results.arms["family"] != "abs"])
    assert hardness.equal_hardness(without, mined, [("perc-pos", "abs")]).empty
    with pytest.raises(NvretError, match="by: mined has no column 'rate', only mean score"):
        hardness.equal_hardness(results, mined, pairs, by="rate")


def treated_study(noise=0.0, queries=80, seeds=3):
    """A hidden positive left in costs 0.02 of NDCG, and the hardness that a treatment takes 0.01.

    ``Results`` and what ``Study.treated`` says of them: naive .50, placebo .49, oracle .51.
    """
    rng = np.random.default_rng(1)
    truth = {None: (1.0, 0.50), "oracle": (0.0, 0.51), "dose-25": (0.25, 0.505),
             "dose-50": (0.5, 0.50), "placebo": (1.0, 0.49)}  # fmt: skip
    arms, scores, treated = [], [], []
    for student in ("s", "t"):
        for train in ("nq:clusters", "vitaminc:hidden"):
            cases = [("Naive Top-K", name, *values) for name, values in truth.items()]
            for method, name, left, value in [*cases, ("Random", None, None, 0.52)]:
                label = f"{student}: {', '.join(filter(None, [method, name, train]))}"
                arms.append({"arm": label, "student": student, "method": method, "train": train,
                             "treatment": name, "family": method.split()[0].lower()})  # fmt: skip
                treated.append({"arm": label, "share left": left if name else None})
                for seed in range(seeds):
                    noisy = value + rng.normal(0, noise, queries)
                    ids = [f"q{i}" for i in range(queries)]
                    cells = {"dataset": "test", "query_id": ids, "arm": label, "seed": seed}
                    scores.append(pd.DataFrame(cells | dict.fromkeys(METRICS, noisy)))
    frame = pd.DataFrame(arms).set_index("arm")
    results = Results.of(frame, pd.concat(scores), pd.DataFrame(), "dev", ["test"])
    return results, pd.DataFrame(treated).set_index("arm")


def test_cleanliness_is_told_from_hardness():
    table = hardness.causal(*treated_study())
    assert len(table) == 2 * 2 * 7
    own = table[(table["train"] == "nq:clusters") & (table["student"] == "t")]
    own = own.set_index(["treatment", "less"])
    naive = "Naive Top-K"
    expected = {
        ("oracle", naive): 1, ("dose-25", naive): 0.5, ("dose-50", naive): 0,
        ("placebo", naive): -1, ("Random", naive): 2, ("oracle", "placebo"): 2,
    }  # fmt: skip
    for row, value in expected.items():
        assert own.loc[row, "difference"] == pytest.approx(value, abs=1e-4)
    doses, scores = np.array([0, 0.25, 0.5, 1]), np.array([51, 50.5, 50, 50])
    slope = np.polyfit(doses, scores, 1)[0]
    assert own.loc[("slope of the doses", ""), "difference"] == pytest.approx(slope, abs=1e-3)
    assert own["left"].dropna().tolist() == [0, 0.25, 0.5, 1, 0]  # the last: oracle less placebo
    noisy = hardness.causal(*treated_study(noise=0.2))
    assert (noisy["low"] < noisy["difference"]).all()
    assert (noisy["difference"] < noisy["high"]).all()
    assert noisy["p"].between(0, 1).all()
    results, treated = treated_study()
    lone = treated.index[results.arms.loc[treated.index, "treatment"].notna()]
    assert hardness.causal(results, treated.loc[lone]).empty  # without naive mining


def test_the_answers_are_read_from_the_intervals():
    results, mined = study(np.square, bonus=0.02)
    pairs = [("perc-pos", "abs"), ("perc-pos", "margin-pos")]
    found = hardness.readings(
        hardness.equal_hardness(results, mined, pairs), hardness.causal(*treated_study())
    )
    assert len(found) == 1 + 4 * 4  # without a common range there is no answer
    assert found["question"].iloc[0] == "at equal hardness: perc-pos − abs"
    readings = found.groupby(found["question"].str.split(":").str[0])["reading"].unique().str[0]
    assert readings.to_dict() == {
        "at equal hardness": "above 0", "cleaner and easier": "above 0",
        "easier alone": "below 0", "cleanliness at equal hardness": "above 0",
        "all hidden positives left in": "below 0",
    }  # fmt: skip
    unsure = pd.DataFrame({"student": ["s"], "difference": ["a − b"], "by": ["hardness"],
                           "value": [1.0], "low": [-1.0], "high": [3.0]})  # fmt: skip
    empty = hardness.causal(*treated_study()).head(0)
    assert hardness.readings(unsure, empty)["reading"].tolist() == ["not told apart"]


def test_arms_against_hardness_and_their_figures(tmp_path):
    results, mined = study(np.square, noise=0.01)
    mined.loc["s: abs 0.4", ["mean score", "mean positive score"]] = np.nan  # found nothing
    table = hardness.against_hardness(results, mined, "Naive Top-K").set_index("arm")
    assert set(table.index) == set(mined.index) - {"s: abs 0.4", "s: abs 0.6, in-batch"}
    assert table.loc[NAIVE, ["difference", "low", "high", "hardness"]].tolist() == [0, 0, 0, 0.9]
    expected = 100 * (0.7**2 - 0.9**2)
    assert table.loc["s: perc-pos 0.9", "difference"] == pytest.approx(expected, abs=1)
    table = table.reset_index()
    table["method"] = table["family"].map(
        {"abs": "Abs", "perc-pos": "PercPos", "margin-pos": "MarginPos", "shifted": "shifted",
         "naive": "Naive", "random": "Random"}
    )  # fmt: skip
    doses = hardness.causal(*treated_study(noise=0.02))
    for name, figure in {
        "hardness": mining_figures.against_hardness(table, "Naive Top-K"),
        "false": mining_figures.against_hardness(table, "Naive Top-K", by="false"),
        "doses": mining_figures.dose_response(doses, "Naive Top-K"),
    }.items():
        figure.savefig(tmp_path / f"{name}.png")
        plt.close(figure)
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_teachers_at_equal_hardness():
    """The percentages of two teachers are their lines; other arms of theirs stay out."""
    results, mined = study(lambda hardness: 0.4 + 0.3 * hardness)
    perc = list(labels("perc-pos"))
    teacher = pd.Series(None, results.arms.index, dtype=object)
    teacher[perc[:2]], teacher[perc[2:]] = "a", "b"
    teacher["s: abs 0.6"] = "a"
    arms = results.arms.assign(teacher=teacher, ensemble=None, treatment=None)
    results = dataclasses.replace(results, arms=arms)
    mined = mined.assign(common=[0.2, 0.6, 0.4, 0.8, *range(5, 5 + len(mined) - 4)])
    (row,) = hardness.equal_hardness(
        results, mined, [("a", "b")], of="teacher", by="common"
    ).to_dict("records")
    assert (row["from"], row["to"], row["arms"]) == (0.4, 0.6, 4)
    # At 0.4 to 0.6 of ``common``, a's own hardness goes from 0.55 to 0.6, and b's from 0.7 to 0.75
    assert row["value"] == pytest.approx(100 * 0.3 * (0.575 - 0.725), abs=1e-4)


def test_more_teachers_more_known_positives():
    passages = ["one", "one again", "two", "three", "four"]
    dataset = data.from_texts("toy", passages, ["what", "which"], [[0], [2]])
    clusters = pa.array([7, 7, 8, 9, 10])
    dataset = dataclasses.replace(dataset, corpus=dataset.corpus.append_column("cluster", clusters))

    def table(*rows):
        columns = zip(*rows, strict=True)
        names = ["query_id", "positive_id", "negative_id", "rank"]
        return pa.table(dict(zip(names, map(list, columns), strict=True)))

    found = tables.by_agreement(
        dataset,
        {
            "a": table(("q0", "p0", "p1", 1), ("q0", "p0", "p3", 2), ("q1", "p2", "p4", 1)),
            "b": table(("q0", "p0", "p1", 2), ("q1", "p2", "p3", 1), ("q1", "p2", "p4", 5)),
        },
    )
    assert found[["teachers", "negatives", "rate"]].to_numpy().tolist() == [[1, 3, 0], [2, 1, 1]]
