"""Forest plots of a study's arms: what is shown, where, and against which zero."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from nvret.study import forest
from nvret.study.arms import BASE

METHODS = [
    "Random", "Top-K shifted by 10", "TopK-Abs 0.7", "TopK-MarginPos 0.05", "TopK-PercPos 95%",
]  # fmt: skip


def differences(arms, dataset=("nq-test", "average")):
    """A table as of ``tables.differences``: (label, reference, points) of each arm."""
    rows = [
        {"arm": f"head: {label}", "student": "head", "dataset": name, "reference": reference,
         "difference": value / 100, "low": value / 100 - 0.01, "high": value / 100 + 0.01}
        for label, reference, value in arms
        for name in dataset
    ]  # fmt: skip
    return pd.DataFrame(rows)


def labels(axis):
    return [tick.get_text().replace("\n", " ") for tick in axis.get_yticklabels()]


def drawn(axis):
    return [one.lines[0].get_xdata()[0] for one in axis.containers]


def dotted(axis):
    return [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]


@pytest.fixture
def draw():
    def make(arms, **options):
        return forest.differences(differences(arms, **options), "head")

    yield make
    plt.close("all")


def test_few_arms_have_a_panel_for_the_first_set_and_one_for_the_average(draw):
    arms = [(BASE, "Naive Top-K", -2.0), *((name, "Naive Top-K", 1.0) for name in METHODS)]
    figure = draw(arms, dataset=["nq-test", "reddit", "average"])
    assert [axis.get_title() for axis in figure.axes] == ["nq-test", "average"]
    assert labels(figure.axes[0]) == [BASE, *METHODS]
    assert [dotted(axis) for axis in figure.axes] == [[pytest.approx(-2)]] * 2
    assert figure.get_supxlabel().startswith("NDCG@10, points above Naive Top-K ")


def test_of_one_set_the_average_is_that_set(draw):
    arms = [(name, "Naive Top-K", 1.0) for name in METHODS]
    assert len(draw(arms).axes) == 1
    assert "base" not in draw(arms).get_supxlabel()


def test_many_arms_have_a_panel_for_each_setting_with_a_zero_of_its_own(draw):
    plain, other = "Naive Top-K", "Naive Top-K, in-batch"
    arms = [(BASE, plain, -2.0), *((name, plain, 1.0) for name in METHODS)]
    arms += [(other, plain, 3.0), ("No mined negatives, memory bank of 9", plain, 0.5)]
    arms += [(f"{name}, in-batch", other, 2.0) for name in METHODS]
    figure = draw(arms)
    own, in_batch = figure.axes
    assert own.get_title() == "own setting"
    assert in_batch.get_title() == "in-batch"
    assert figure.get_supxlabel().startswith(
        "NDCG@10, points above Naive Top-K in the same setting"
    )
    assert labels(own) == [BASE, *METHODS]
    assert drawn(own) == pytest.approx([-2, *(1 for _ in METHODS)])  # none alone in its setting
    assert drawn(in_batch) == pytest.approx([2 for _ in METHODS])
    assert dotted(own) == [pytest.approx(-2)]
    assert dotted(in_batch) == [pytest.approx(-2 - 3)]  # against that panel's own zero


def test_what_all_arms_share_stands_in_the_title_alone(draw):
    plain = "Naive Top-K, trained on a+b"
    arms = [(BASE, plain, -1.0), ("TopK-PercPos 95%, trained on a+b", plain, 1.0)]
    arms.append(("TopK-PercPos 95%, trained on a+b, mixture temperature 0", plain, 1.0))
    figure = draw(arms)
    assert labels(figure.axes[0]) == [
        BASE, "TopK-PercPos 95%", "TopK-PercPos 95%, mixture temperature 0",
    ]  # fmt: skip
    assert figure.get_suptitle() == "Student: head, trained on a+b"


def test_arms_that_are_all_alone_fill_panels_of_at_most_eight_rows(draw):
    arms = [(BASE, "Naive Top-K", -1.0), ("Random", "Naive Top-K", -1.0)]
    arms += [(f"Naive Top-K, sampled from {k}", "Naive Top-K", 1.0) for k in range(20)]
    figure = draw(arms)
    shown = [label for axis in figure.axes for label in labels(axis)]
    assert shown == [label.removeprefix("Naive Top-K, ") for label, *_ in arms]
    assert max(len(labels(axis)) for axis in figure.axes) <= forest.ROWS
