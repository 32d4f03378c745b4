"""A grid becomes arms, each with a label that says what is different."""

from pathlib import Path

import pytest

from nvret.study import config
from nvret.study.arms import BASE, arms
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "params").glob("*.yaml"))
STUDY = "06_rq3_methods"


def profile(*runs):
    values = config.read(ROOT / "params" / "smoke.yaml")
    study = {"dev": False, "out_of_domain": False, "reference": "Naive Top-K", "runs": list(runs)}
    return config.check(values | {"studies": {STUDY: study}}, "test")


def labels(*runs):
    return [arm.label for arm in arms(profile(*runs), STUDY)]


@pytest.mark.parametrize("path", [p for p in PROFILES if p.stem != "claims"], ids=lambda p: p.stem)
def test_every_profile_has_distinct_arms_and_its_references(path):
    settings = config.load(path)
    seen = {}
    for name, study in settings.studies.items():
        found = arms(settings, name)
        assert len({arm.label for arm in found}) == len(found)
        for arm in found:  # the same label means the same arm in every study
            assert seen.setdefault(arm.label, arm) == arm
        students = {arm.student for arm in found}
        references = [f"{student}: {study.reference}" in seen for student in students]
        assert any(references), name


def test_lists_are_run_through_and_the_base_model_comes_first():
    found = labels({"student": "static", "method": ["naive", "perc-pos"], "num_negatives": [1, 2]})
    assert found == [
        f"static: {BASE}",
        "static: Naive Top-K, 1 negative",
        "static: Naive Top-K",
        "static: TopK-PercPos 95%, 1 negative",
        "static: TopK-PercPos 95%",
    ]


@pytest.mark.parametrize(
    ("grid", "label"),
    [
        ({"method": "perc-pos", "teacher": "bm25"}, "TopK-PercPos 95%, teacher bm25"),
        ({"method": "none"}, "No mined negatives"),
        ({"method": "naive", "in_batch_negatives": True}, "Naive Top-K, in-batch"),
        (
            {"method": "none", "mask_margin": 0.1},
            "No mined negatives, masked above the positive + 0.1",
        ),
        ({"method": "none", "memory_bank": 64}, "No mined negatives, memory bank of 64"),
        ({"method": "naive", "temperature": 0.1}, "Naive Top-K, temperature 0.1"),
        ({"method": "naive", "queries": 20}, "Naive Top-K, 20 queries"),
        ({"method": "naive", "epochs": 2.5}, "Naive Top-K, 2.5 epochs"),
        ({"method": "naive", "train": "nq+quoref"}, "Naive Top-K, trained on nq+quoref"),
        (
            {"method": "naive", "treatment": "dose-50", "train": "nq:clusters"},
            "Naive Top-K, dose-50, trained on nq:clusters",
        ),
        ({"method": "naive", "stage_two": 3}, "Naive Top-K, then 3 negatives"),
        (
            {"method": "naive", "sampling": "top-1+sampled", "k": 5},
            "Naive Top-K, top-1+sampled from 5",
        ),
        (
            {"method": "naive", "teacher": "bm25+potion-base-8m", "ensemble": "cross-sample"},
            "Naive Top-K, teacher bm25+potion-base-8m, cross-sample",
        ),
    ],
)
def test_a_label_names_what_is_changed(grid, label):
    assert labels({"student": "static", **grid})[1:] == [f"static: {label}"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"student": "statik", "method": "naive"}, "runs.0: no student 'statik', only static"),
        ({"method": "nave"}, "no mining method 'nave'"),
        ({"method": "naive", "perc": 0.9}, "method 'naive' does not take perc"),
        ({"method": "naive", "teacher": "bm52"}, "runs.0: 'bm52' is not among teachers"),
        ({"method": "naive", "teacher": "bm25+potion-base-8m"}, "2 teachers with ensemble None"),
        (
            {"method": "naive", "ensemble": "cross-sample"},
            "1 teachers with ensemble 'cross-sample'",
        ),
        ({"method": "naive", "sampling": "sampled"}, "sampling 'sampled' with k None"),
        (
            {"method": "naive", "treatment": "oracle"},
            "runs.0: treatment 'oracle' of naive on nq, expected naive .* hidden labels such as",
        ),
        (
            {"method": "perc-pos", "treatment": "oracle", "train": "nq:clusters"},
            "treatment 'oracle' of perc-pos on nq:clusters",
        ),
        ({"method": "naive", "treatment": "cure"}, "treatment"),
        ({"method": "naive", "k": 5}, "sampling 'top-k' with k 5"),
    ],
)
def test_an_impossible_arm_is_named(grid, message):
    with pytest.raises(NvretError, match=message):
        labels({"student": "static", **grid})


def test_an_unknown_study_is_named():
    with pytest.raises(NvretError, match="has no study '99', only 06_rq3_methods"):
        arms(profile({"student": "static", "method": "naive"}), "99")


def test_a_set_with_hidden_labels_is_fetched_by_its_name():
    hidden = arms(profile({"student": "static", "method": "naive", "train": "nq:clusters"}), STUDY)
    assert hidden[1].train == ("nq:clusters",)
    assert hidden[1].sets == ["nq"]


def test_a_row_holds_names_and_numbers():
    arm = arms(profile({"student": "static", "method": "perc-pos", "perc": 0.9}), STUDY)[1]
    assert arm.row["family"] == "perc-pos"
    assert arm.row["parameter"] == 0.9
    assert arm.row["teacher"] == "potion-base-8m"
    assert arm.row["num_negatives"] == 2
    assert all(isinstance(v, (str, int, float, bool, type(None))) for v in arm.row.values())
