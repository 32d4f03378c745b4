"""The README says what the committed results say."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from nvret.study import ledger, readme
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SHOWN = [name for name in readme.PROFILES if (RESULTS / name / "scores").is_dir()]


def write(folder, rows):
    """A results folder's ledger, as ``ledger.save`` writes it."""
    folder.mkdir(parents=True)
    cells = [{name: None for name in ledger.COLUMNS} | row for row in rows]
    (folder / "claims.json").write_text(json.dumps({"margin": 0.002, "claims": cells}))


@pytest.fixture
def rows():
    naive = {"id": "perc-beats-naive", "claim": "A beats B", "unit": "points", "paper": 0.0449}
    return [
        {"id": "other", "claim": "C", "student": "static", "unit": "points",
         "verdict": "not testable here"},
        {"id": "perc-halves-false-negatives", "claim": "D", "unit": "share", "student": "nq",
         "paper": 0.57, "difference": 0.5, "high": 0.7, "verdict": "undecided"},
        naive | {"student": "static", "difference": 0.02, "low": 0.01, "high": 0.03, "p": 0.01,
                 "p_holm": 0.01, "verdict": "reproduced"},
        naive | {"student": "transformer", "verdict": "not run"},
    ]  # fmt: skip


@pytest.fixture
def results(rows, tmp_path):
    """A results folder with one small profile."""
    write(tmp_path / "results" / "quick", rows)
    return tmp_path / "results"


def test_the_readme_shows_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not SHOWN or readme.section(RESULTS) in text


def test_section(results):
    text = readme.section(results)
    assert text.splitlines()[-3:] == [
        "| A beats B | static | +4.49 | +2.00 [+1.00, +3.00] | **reproduced** |",
        "| A beats B | transformer | +4.49 | – | not run |",
        "| D | nq | 57 % | 50 % [–, 70 %] | undecided |",
    ]
    assert "lies below 0.2 points" in text
    assert "`quick`: 1 not testable here, 1 undecided, 1 reproduced, 1 not run; adjusted" in text
    assert "adjusted for all 1 tests together, 1 (Holm) or 1 (Benjamini-Hochberg) stay" in text


def test_a_second_profile_stands_beside_the_first(rows, results):
    rows[3] |= {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "reproduced"}
    write(results / "cpu", rows[2:])
    text = readme.section(results)
    assert "| paper | `quick` | verdict | `cpu` | verdict |" in text
    beaten = "| A beats B | transformer | +4.49 | – | not run | +10.00 [+5.00, +15.00] |"
    assert f"{beaten} **reproduced** |" in text
    assert "| D | nq | 57 % | 50 % [–, 70 %] | undecided | – | not run |" in text


def test_the_headline_is_registered():
    from nvret.study import claims

    assert set(readme.HEADLINE) <= {claim.id for claim in claims.load().claims}


def test_the_saved_ledger_is_read_back(results):
    table, margin = ledger.read(results / "quick")
    assert margin == 0.002
    assert list(table.columns) == ledger.COLUMNS
    assert math.isnan(table.loc[0, "difference"])
    assert table["difference"].dtype == pd.Series(dtype=float).dtype
    with pytest.raises(NvretError, match=r"claims\.json: no such file; run the profile first"):
        ledger.read(results / "cpu")


def test_replace_changes_only_what_stands_between_the_markers(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "before\n<!-- results: begin -->\nformer text\n<!-- results: end -->\nafter\n",
        encoding="utf-8",
    )
    section = readme.section(results)
    readme.replace(page, "results", section)
    text = page.read_text(encoding="utf-8")
    assert text == f"before\n<!-- results: begin -->\n{section}\n<!-- results: end -->\nafter\n"


def test_bad_input_is_named(results, tmp_path):
    with pytest.raises(NvretError, match="run a profile first"):
        readme.section(tmp_path)
    (tmp_path / "README.md").write_text("no marker")
    with pytest.raises(NvretError, match="expected the markers"):
        readme.replace(tmp_path / "README.md", "results", readme.section(results))
