"""A claim as a command: computed again and compared with what is committed."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from nvret import cli
from nvret.study import config, ledger, notebooks, readme, rerun
from nvret.study.scores import Results
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "params" / "quick.yaml"


@pytest.fixture(autouse=True)
def committed(monkeypatch):
    """The results of the checkout are what is compared with."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("NVRET_RESULTS", raising=False)


@pytest.fixture
def run(monkeypatch):
    """Stands for the run of studies and notebooks: the committed results, perhaps changed."""
    asked = []

    def copy(settings, values, names, *, again):
        assert again  # what is kept of an earlier run proves nothing
        asked.append(names)
        target = Path(os.environ["NVRET_RESULTS"]) / settings.profile
        shutil.copytree(ROOT / "results" / "quick", target)
        if run.change:
            run.change(target)
        print(f"figures: {target}")

    run.change = None
    monkeypatch.setattr(notebooks, "run", copy)
    run.asked = asked
    return run


@pytest.mark.parametrize(
    ("name", "studies"),
    [
        ("perc-beats-naive", ["06_rq3_methods"]),
        ("perc-halves-false-negatives", ["09_false_negatives"]),
        ("cross-sample-no-gain", ["02_rq1_teachers", "03_rq2_ensembles"]),  # has a best teacher
    ],
)
def test_the_same_results_are_the_same(run, capsys, name, studies):
    assert cli.main(["claim", name]) == 0
    assert run.asked == [studies]
    out = capsys.readouterr().out
    assert out.count("the same") >= 1
    assert "NOT" not in out
    assert "figures" not in out


def test_all_claims_of_the_readme_are_commands(run):
    settings, values = config.load(QUICK), config.read(QUICK)
    for name, student in readme.OTHERS.items():
        rows = rerun.again(settings, values, name).set_index("student")
        assert rows.at[student, "same"]


def test_another_value_is_told(run, capsys):
    def worse(folder: Path) -> None:
        path = folder / "scores" / "06_rq3_methods.parquet"
        results = Results.load(path)
        label = next(
            label
            for label in results.find(student="transformer", family="perc-pos", teacher="minilm-l6")
        )
        cells = results.scores.columns.get_level_values("arm") == label
        results.scores.loc[:, cells] -= 0.02
        results.save(path)

    run.change = worse
    assert cli.main(["claim", "perc-beats-naive"]) == 1
    out = capsys.readouterr().out
    assert "expected +4.15" in out
    assert "found +2.15" in out
    assert "NOT THE SAME" in out


def test_a_verdict_may_differ_where_the_interval_ends_next_to_its_border(run, capsys, monkeypatch):
    """The ledger says of a claim what another processor could have found."""
    read = ledger.read
    name, moved = "best-teacher-beats-bm25", {"low": -4e-4, "high": 4e-4}
    sides = ["undecided", "same sign, smaller"]

    def other(folder: Path):
        table, rest = read(folder)
        chosen = table["id"] == name
        for column, by in moved.items():
            table.loc[chosen, column] += by
        table.loc[chosen, "verdict"] = table["verdict"].replace(sides, sides[::-1])
        return table, rest

    monkeypatch.setattr(ledger, "read", other)
    assert cli.main(["claim", name]) == 0
    out = capsys.readouterr().out
    assert all(side in out for side in sides)
    assert "the same, next to the border of two" in out
    moved["low"] = -4e-3
    assert cli.main(["claim", name]) == 1
    assert "NOT THE SAME" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("perc-beats-naiv", "did you mean 'perc-beats-naive'"),
        ("", "no claim is named ''"),
    ],
)
def test_a_name_that_is_none_is_told(run, capsys, name, message):
    assert cli.main(["claim", name]) == 2
    assert message in capsys.readouterr().err
    assert run.asked == []


def test_what_no_profile_decides_says_why():
    ledger = pd.read_csv(ROOT / "results" / "quick" / "tables" / "10_claims.csv")
    name = ledger.loc[ledger["verdict"] == "not testable here", "id"].iloc[0]
    with pytest.raises(NvretError, match=f"{name} is not testable here: "):
        rerun.claim(name)


def test_a_claim_that_was_not_run_has_nothing_to_compare_with(run):
    ledger = pd.read_csv(ROOT / "results" / "quick" / "tables" / "10_claims.csv")
    ran = set(ledger.loc[ledger["verdict"] != "not run", "id"])
    name = next(name for name in ledger["id"] if name not in ran)
    with pytest.raises(NvretError, match=f"quick has not run {name}"):
        rerun.again(config.load(QUICK), config.read(QUICK), name)


@pytest.mark.thorough
def test_a_claim_from_nothing(capsys):
    """The real thing: 02's teachers, students and notebook."""
    assert cli.main(["claim", "best-teacher-beats-bm25"]) == 0
    assert "the same" in capsys.readouterr().out
