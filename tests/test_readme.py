"""The README says what the committed results say."""

from pathlib import Path

import pytest

from nvret import readme
from nvret.errors import NvretError

ROOT = Path(__file__).parents[1]
QUICK = ROOT / "results" / "quick"


def test_the_readme_shows_the_committed_results():
    assert readme.section(QUICK) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    local = [target for target in targets if not target.startswith("http")]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_update_replaces_only_what_stands_between_the_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(
        "before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n", encoding="utf-8"
    )
    readme.update(page, QUICK)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert readme.section(QUICK) in text


def test_bad_input_is_named(tmp_path):
    with pytest.raises(NvretError, match="run the profile first"):
        readme.section(tmp_path)
    (tmp_path / "README.md").write_text("no marker")
    with pytest.raises(NvretError, match="expected the markers"):
        readme.update(tmp_path / "README.md", QUICK)
