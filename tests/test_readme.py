"""The README says what the committed results say."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nvret.study import readme
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SHOWN = [name for name in readme.PROFILES if (RESULTS / name / "scores").is_dir()]


@pytest.fixture
def results(tmp_path):
    """A results folder with one small profile."""
    folder = tmp_path / "results" / "quick"
    (folder / "tables").mkdir(parents=True)
    common = {"section": "RQ3", "unit": "points", "kind": "difference", "note": "why"}
    pd.DataFrame(
        [
            common | {"id": "a", "claim": "A beats B", "student": "static", "paper": 0.0449,
                      "difference": 0.02, "low": 0.01, "high": 0.03, "p_holm": 0.01,
                      "verdict": "reproduced"},
            common | {"id": "b", "claim": "B beats C", "student": "static",
                      "verdict": "not run"},
            common | {"id": "c", "claim": "D", "unit": "share", "student": "nq", "paper": 0.57,
                      "difference": 0.5, "low": float("-inf"), "high": 0.7,
                      "verdict": "undecided"},
            common | {"id": "d", "claim": "E", "student": "", "verdict": "not testable here"},
        ]
    ).to_csv(folder / "tables" / "10_claims.csv", index=False)  # fmt: skip
    pd.DataFrame(
        {
            "arm": ["static: Naive Top-K"] * 2,
            "dataset": ["nq-test", "average"],
            "mean": [0.6361, 0.6361],
            "student": "static",
        }
    ).to_csv(folder / "tables" / "06_means.csv", index=False)
    (folder / "claims.json").write_text(json.dumps({"margin": 0.002}))
    facts = {
        "parameters": {"profile": "quick", "teacher": "minilm-l6", "seeds": [0, 1],
                       "students": {"static": {"model": "potion-base-8m"}}},
        "hardware": {"threads": 2, "processor": "some"},
        "seconds": 600,
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(facts))
    return tmp_path / "results"


def test_the_readme_shows_the_committed_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not SHOWN or readme.section(RESULTS) in text


def test_section(results):
    text = readme.section(results)
    assert "| A beats B | static | +4.49 | +2.00 [+1.00, +3.00] | **reproduced** |" in text
    assert "| D | nq | 57 % | 50 % [–, 70 %] | undecided |" in text
    assert "*Not run*: B beats C (why)." in text
    assert "*Not testable here*: E (why)." in text
    assert "lies below 0.2 points" in text
    assert "adjusted for all 1 tests together (Holm), 1 stay reproduced" in text
    assert "| static | Naive Top-K | 0.636 | 0.636 |" in text
    assert "`static` potion-base-8m; default teacher minilm-l6; 2 seeds; executed" in text


def test_a_second_profile_stands_beside_the_first(results):
    other = results / "cpu"
    (other / "tables").mkdir(parents=True)
    table = pd.read_csv(results / "quick" / "tables" / "10_claims.csv")
    table.loc[1, ["difference", "low", "high", "verdict"]] = [0.1, 0.05, 0.15, "reproduced"]
    table.to_csv(other / "tables" / "10_claims.csv", index=False)
    text = (results / "quick" / "provenance.json").read_text()
    (other / "provenance.json").write_text(text.replace("quick", "cpu"))
    shown = readme.section(results)
    assert "| paper | `quick` | verdict | `cpu` | verdict |" in shown
    assert (
        "| B beats C | static | – | – | not run | +10.00 [+5.00, +15.00] | **reproduced** |"
        in shown
    )
    assert "*Not run*" not in shown


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_update_replaces_only_what_stands_between_the_markers(results, tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "before\n<!-- results: begin -->\nformer text\n<!-- results: end -->\nafter\n",
        encoding="utf-8",
    )
    readme.update(page, results)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "former text" not in text
    assert readme.section(results) in text


def test_bad_input_is_named(results, tmp_path):
    with pytest.raises(NvretError, match="run a profile first"):
        readme.section(tmp_path)
    (tmp_path / "README.md").write_text("no marker")
    with pytest.raises(NvretError, match="expected the markers"):
        readme.update(tmp_path / "README.md", results)
    (results / "quick" / "claims.json").unlink()
    with pytest.raises(NvretError, match=r"claims\.json: no such file; run the profile first"):
        readme.section(results)
