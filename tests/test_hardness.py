"""Methods at equal hardness: on scores that are a known function of it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nvret.analysis import statistics
from nvret.study import mining_figures, tables
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
    results = Results.of(frame.drop(columns="hardness"), pd.concat(scores), pd.DataFrame(), "dev")
    mined = pd.DataFrame({
        "mean score": 0.8 * frame["hardness"], "mean positive score": 0.8,
        "share found": np.linspace(0.5, 1, len(frame)),
        "in the positive's cluster": frame["hardness"] ** 2,
    })  # fmt: skip
    return results, mined


def test_a_score_that_is_linear_in_hardness_leaves_the_bonus_alone():
    results, mined = study(lambda hardness: 0.4 + 0.3 * hardness, bonus=0.02)
    rows = tables.equal_hardness(results, mined, [("perc-pos", "abs"), ("abs", "perc-pos")])
    assert rows["difference"].tolist() == ["perc-pos − abs", "abs − perc-pos"]
    assert rows["value"].tolist() == pytest.approx([2, -2], abs=1e-4)
    row = rows.iloc[0]
    assert (row["from"], row["to"]) == pytest.approx((0.55, 0.75))
    assert row["arms"] == 7
    assert row["least found"] == mined.loc[[*labels("perc-pos"), *labels("abs")]].min().iloc[2]


def test_without_a_bonus_hardness_alone_makes_no_difference():
    """Where plain means would: perc-pos has the harder arms."""
    results, mined = study(lambda hardness: hardness, noise=0.02)
    row = tables.equal_hardness(results, mined, [("perc-pos", "abs")]).iloc[0]
    assert row["low"] < 0 < row["high"]
    plain = {family: np.mean([results.values(label)["test"].mean() for label in labels(family)])
             for family in ("perc-pos", "margin-pos")}  # fmt: skip
    assert plain["perc-pos"] - plain["margin-pos"] > 0.3


def test_the_interval_is_that_of_the_weighted_contrast():
    results, mined = study(np.square, bonus=0.01, noise=0.05)
    row = tables.equal_hardness(results, mined, [("perc-pos", "abs")], steps=3).iloc[0]

    def at(family, hardness):
        """The family's scores (seeds, queries), interpolated by hand."""
        levels = np.array(list(SWEPT[family].values()))
        values = [results.values(label)["test"] for label in labels(family)]
        right = int(np.searchsorted(levels, hardness, side="right").clip(1, len(levels) - 1))
        share = (hardness - levels[right - 1]) / (levels[right] - levels[right - 1])
        return (1 - share) * values[right - 1] + share * values[right]

    by_hand = np.mean([at("perc-pos", x) - at("abs", x) for x in (0.55, 0.65, 0.75)], axis=0)
    interval = statistics.mean_interval(by_hand)
    assert row[["value", "low", "high"]].tolist() == pytest.approx(
        [100 * end for end in interval], abs=1e-6
    )


def test_another_column_no_common_range_and_what_is_absent():
    results, mined = study(np.square, bonus=0.01)
    column = "in the positive's cluster"
    (row,) = tables.equal_hardness(results, mined, [("perc-pos", "abs")], by=column).to_dict(
        "records"
    )
    assert row["by"] == column
    assert row["from"] == pytest.approx(0.55**2)
    assert row["value"] == pytest.approx(1, abs=1e-4)  # the score is linear in this column
    pairs = [("perc-pos", "margin-pos"), ("perc-pos", "shifted"), ("perc-pos", "random")]
    rows = tables.equal_hardness(results, mined, pairs)
    assert len(rows) == 3
    assert rows["value"].isna().all()
    assert tables.equal_hardness(results.__class__(
        results.arms[results.arms["family"] != "abs"], results.scores, results.logs, results.dev
    ), mined, [("perc-pos", "abs")]).empty  # fmt: skip
    with pytest.raises(NvretError, match="by: mined has no column 'rate', only mean score"):
        tables.equal_hardness(results, mined, pairs, by="rate")


def test_arms_against_hardness_and_their_figures(tmp_path):
    results, mined = study(np.square, noise=0.01)
    mined.loc["s: abs 0.4", ["mean score", "mean positive score"]] = np.nan  # found nothing
    table = tables.against_hardness(results, mined, "Naive Top-K").set_index("arm")
    assert set(table.index) == set(mined.index) - {"s: abs 0.4"}
    assert table.loc[NAIVE, ["difference", "low", "high", "hardness"]].tolist() == [0, 0, 0, 0.9]
    expected = 100 * (0.7**2 - 0.9**2)
    assert table.loc["s: perc-pos 0.9", "difference"] == pytest.approx(expected, abs=1)
    table = table.reset_index()
    table["method"] = table["family"].map(
        {"abs": "Abs", "perc-pos": "PercPos", "margin-pos": "MarginPos", "shifted": "shifted",
         "naive": "Naive", "random": "Random"}
    )  # fmt: skip
    doses = pd.DataFrame([
        {"train": train, "student": student, "treatment": name, "left": left,
         "difference": 1 - left, "low": 0.5 - left, "high": 1.5 - left}
        for train in ("nq:clusters", "vitaminc:hidden")
        for student in ("s", "t")
        for name, left in {"oracle": 0, "dose-25": 0.25, "naive": 1, "placebo": 1,
                           "perc-pos": np.nan}.items()
    ])  # fmt: skip
    for name, figure in {
        "hardness": mining_figures.against_hardness(table, "Naive Top-K"),
        "false": mining_figures.against_hardness(table, "Naive Top-K", by="false"),
        "doses": mining_figures.dose_response(doses, "Naive Top-K"),
    }.items():
        figure.savefig(tmp_path / f"{name}.png")
        plt.close(figure)
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
