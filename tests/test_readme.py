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


def write(folder, rows):
    """A results folder's ledger, as ``ledger.save`` writes it."""
    folder.mkdir(parents=True)
    cells = [{name: None for name in ledger.COLUMNS} | row for row in rows]
    (folder / "claims.json").write_text(json.dumps({"margin": 0.005, "claims": cells}))


@pytest.fixture
def rows():
    common = {"unit": "points", "primary": True}
    naive = common | {"id": "perc-beats-naive", "claim": "A beats B", "paper": 0.0449}
    bm25 = common | {"id": "beats-bm25", "claim": "C beats D", "paper": 0.0808, "student": "head"}
    return [
        common | {"id": "other", "claim": "C", "student": "static", "primary": False,
                  "verdict": "not testable here"},
        common | {"id": "halved", "claim": "D", "unit": "share", "student": "nq",
                  "primary": False, "verdict": "undecided"},
        naive | {"student": "transformer", "difference": 0.03, "low": 0.02, "high": 0.04,
                 "p": 0.01, "p_adjusted": 0.02, "verdict": "confirmed"},
        bm25 | {"verdict": "not run"},
    ]  # fmt: skip


@pytest.fixture
def results(rows, tmp_path):
    """A results folder with one small profile."""
    write(tmp_path / "results" / "quick", rows)
    return tmp_path / "results"


def test_the_readme_shows_the_committed_results():
    assert readme.section(RESULTS) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size < 9000


def test_section_shows_the_primary_claims_alone(results):
    text = readme.section(results)
    assert text.splitlines()[-4:] == [
        "| A beats B | transformer | `quick` | +4.49 | +3.00 [+2.00, +4.00] | 0.02 | "
        "**confirmed** |",
        "| C beats D | head | `quick` | +8.08 | – |  | not run |",
        "",
        "All claims of `quick`: primary 1 confirmed, 1 not run; exploratory 1 undecided, 1 not "
        "testable here.",
    ]
    assert "± 0.5 points" in text


def test_findings_are_sentences_of_the_ledger_and_the_tables(rows, results):
    table, _ = ledger.read(results / "quick")
    (only,) = readme.findings(results / "quick", table)
    assert only.startswith("- **Against naive mining.** Trained on mined negatives alone")
    assert "by +3.00 [+2.00, +4.00] points" in only
    assert only.endswith("(the paper: +4.49): *confirmed*.")
    (results / "quick" / "tables").mkdir()
    lines = ["dataset,near-duplicates,method,rate", "nq,kept,Naive Top-K,0.271",
             "nq,excluded,Naive Top-K,0.1", "nq,kept,TopK-PercPos 95%,0.0323"]  # fmt: skip
    (results / "quick" / "tables" / "09_rates.csv").write_text("\n".join(lines))
    found = readme.findings(results / "quick", table)
    assert "27.1 % of the naive negatives are such answers, and 3.2 % of" in found[1]


def test_the_primary_claims_of_a_second_profile_stand_below_those_of_the_first(rows, results):
    """Two experiments, whose intervals are not to be read as one."""
    rows[2] |= {"difference": 0.031}
    rows[3] |= {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "confirmed"}
    rows[3] |= {"p": 0.001, "p_adjusted": 0.002}
    write(results / "cpu", rows)
    text = readme.section(results)
    assert text.startswith("- **Against naive mining.** Trained on mined negatives alone, a")
    assert "by +3.10 [+2.00, +4.00] points" in text  # of the larger one
    assert text.splitlines()[-7:-3] == [
        "| A beats B | transformer | `quick` | +4.49 | +3.00 [+2.00, +4.00] | 0.02 | "
        "**confirmed** |",
        "|  |  | `cpu` |  | +3.10 [+2.00, +4.00] | 0.02 | **confirmed** |",
        "| C beats D | head | `quick` | +8.08 | – |  | not run |",
        "|  |  | `cpu` |  | +10.00 [+5.00, +15.00] | 0.002 | **confirmed** |",
    ]
    assert text.count("All claims of `") == 2


def test_a_profile_that_is_not_through_waits(rows, results):
    write(results / "cpu", rows)
    assert "`cpu`" not in readme.section(results)


def test_a_ledger_of_an_earlier_release_is_an_error(rows, results):
    write(results / "cpu", rows)
    path = results / "cpu" / "claims.json"
    path.write_text(path.read_text().replace("p_adjusted", "p_holm"))
    with pytest.raises(NvretError, match=r"claims\.json has no p_adjusted; run the profile again"):
        readme.section(results)
    path.unlink()
    assert "`cpu`" not in readme.section(results)
    (results / "quick" / "claims.json").unlink()
    with pytest.raises(NvretError, match="has no ledger of quick or cpu"):
        readme.section(results)


def test_ledgers_of_two_margins_do_not_stand_together(rows, results):
    write(results / "cpu", rows)
    path = results / "cpu" / "claims.json"
    path.write_text(path.read_text().replace('"margin": 0.005', '"margin": 0.002'))
    with pytest.raises(NvretError, match="cpu had another margin"):
        readme.section(results)


def test_the_saved_ledger_is_read_back(results):
    table, margin = ledger.read(results / "quick")
    assert margin == 0.005
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
