"""What a comparison holds fixed, and what it keeps."""

from dataclasses import replace
from pathlib import Path

import pytest

from nvret import data, mining, params, report, runs
from nvret.errors import NvretError
from nvret.runs import Comparison, sample_queries

SMOKE = Path(__file__).parents[1] / "params" / "smoke.yaml"


@pytest.fixture(scope="module")
def comparison():
    return Comparison(params.load(SMOKE), progress=False)


def toy(number=30):
    texts = [f"passage number {i}" for i in range(number)]
    return data.from_texts("toy", texts, [f"question {i}" for i in range(number)],
                           [[i] for i in range(number)])  # fmt: skip


def test_smaller_samples_are_parts_of_larger_ones():
    dataset = toy()
    samples = [set(sample_queries(dataset, n).queries["id"].to_pylist()) for n in (3, 10, 30, 99)]
    assert [len(sample) for sample in samples] == [3, 10, 30, 30]
    assert samples[0] < samples[1] < samples[2]
    assert sample_queries(dataset, None) is dataset


def test_conditions_cover_every_method_and_seed(comparison):
    settings = comparison.settings
    conditions = comparison.conditions(settings.students[0])
    labels = {condition.label for condition in conditions}
    models = {(condition.label, condition.seed) for condition in conditions}
    assert len(models) == 1 + len(settings.methods) * len(settings.seeds)
    assert labels == {runs.BASE, *map(str, comparison.methods)}


def test_train_and_test_do_not_touch(comparison):
    for name, test in comparison.tests.items():
        assert not set(test.queries["id"].to_pylist()) & set(
            comparison.parts.train.queries["id"].to_pylist()
        ), name
        data.check_leaks(comparison.parts.train, test)


def test_a_leak_stops_the_comparison_every_time(comparison):
    test = next(iter(comparison.tests.values()))
    for _ in range(2):  # a leak is not kept as "checked"
        with pytest.raises(NvretError, match="leaks into"):
            comparison._check_leaks(test, test)


def test_every_method_is_mined_for_the_same_pairs(comparison):
    pairs = {
        mining.provenance(comparison.negatives(method, 0))["pairs"] for method in comparison.methods
    }
    assert pairs == {len(comparison.train.pairs[0])}


def test_only_a_draw_depends_on_the_seed(comparison):
    for method in comparison.methods:
        same = comparison.negatives(method, 0).equals(comparison.negatives(method, 1))
        assert same == (str(method) != "Random")


def test_a_changed_teacher_is_mined_anew(comparison):
    other = Comparison(comparison.settings, progress=False)
    other.teacher = replace(comparison.teacher, fingerprint="other")
    method = comparison.methods[1]
    assert other.negatives(method, 0).equals(comparison.negatives(method, 0))
    stored = [c.teacher.fingerprint for c in (comparison, other)]
    assert len(set(stored)) == 2


def test_tables_of_a_comparison(comparison):
    results = comparison.run()
    scores = results.scores
    means = report.means(scores)
    tests = [*comparison.tests, report.AVERAGE]
    assert set(means["dataset"]) == set(tests)
    for row in means[means["dataset"] != report.AVERAGE].itertuples():
        part = scores[(scores["method"] == row.method) & (scores["dataset"] == row.dataset)]
        assert row.mean == pytest.approx(part["ndcg_at_10"].mean())
        assert row.low <= row.mean <= row.high
    average = means[means["dataset"] == report.AVERAGE].set_index("method")["mean"]
    differences = report.differences(scores, "Naive Top-K")
    for row in differences[differences["dataset"] == report.AVERAGE].itertuples():
        assert row.difference == pytest.approx(average[row.method] - average["Naive Top-K"])
    claims = report.claims(scores, comparison.settings.students[0].name)
    assert len(claims) == 8
    beside = report.paper_beside_ours(means, "Naive Top-K")
    assert beside.loc["Naive Top-K"].dropna().eq(0).all()
    losses = results.logs.groupby(["method", "seed"])["step"].max()
    assert losses.nunique() == 1  # every model took the same number of steps
