"""What README, CONTRIBUTING and the book's pages name exists, and what they show runs."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from helpers import hostile, results
from nvret import cli

ROOT = Path(__file__).parents[1]
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]  # of the book
PAGES = [*OUTSIDE, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
COMMANDS = (
    "mine", "rank", "calibrate", "inspect", "lint", "train", "evaluate", "cost", "plan", "fetch",
    "run", "report", "claim",
)  # fmt: skip
FOLDERS = "nvret|params|docs|results|notebooks|tests|examples"


def _notebook(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """All prose: the pages, and the notebooks with their code."""
    return TEXTS | {path.name: _notebook(path) for path in NOTEBOOKS}


@pytest.fixture
def options(capsys: pytest.CaptureFixture[str]) -> dict[str, set[str]]:
    """The options of each command, as its help lists them."""
    listed = {}
    for command in COMMANDS:
        assert cli.main([command, "--help"]) == 0
        listed[command] = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
    return listed


def test_options_in_the_guide_exist(options):
    """Options that stand alone, in the pages on own data; other tools' have underscores."""
    known = set.union(*options.values()) | {"--print-completion", "--help"}
    for name in ("own_data.md", "from_pairs.md", "coming_from.md", "README.md"):
        for code in re.findall(r"`([^`\n]+)`", TEXTS[name]):
            if not code.startswith(("--", "nvret ")):
                continue
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert "_" in option or option in known, (name, code)


def test_paths_exist():
    """The book's pages of results are made when it is built, which checks links to them."""
    for name, text in TEXTS.items():
        for path in re.findall(rf"(?<![\w/.~<-])((?:{FOLDERS})/[\w./-]*\w)(?![\w<*{{])", text):
            if not re.search(r"NN_|_build|results/\w+/(index|\d\d_)", path):
                assert (ROOT / path).exists(), f"{name}: {path}"


def test_links_resolve():
    for page in OUTSIDE:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page.name]):
            assert target.startswith("http") or (ROOT / target).exists(), f"{page.name}: {target}"


def test_notebooks_that_are_named_exist(texts):
    known = {path.stem for path in NOTEBOOKS}
    for name, text in texts.items():
        for notebook in re.findall(r"`(\d\d_[a-z]\w*)`", text):
            assert notebook in known, f"{name}: {notebook}"


def test_make_help_lists_every_target_and_the_pages_name_no_other():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^make ([a-z-]+) +(\S.*)$", done.stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(listed) == set(phony[1].split())
    for name, text in TEXTS.items():
        for target in re.findall(r"(?:^\$? ?|`)make ([a-z-]+)", text, re.MULTILINE):
            assert target in listed, f"{name}: make {target}"


def test_own_data_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    """The block as it stands, from the heredoc to the last command."""
    block = re.search(r"```bash\ncat > (\S+) <<'END'\n(.*?)END\n(.*?)```", TEXTS["README.md"], re.S)
    monkeypatch.chdir(tmp_path)
    Path(block[1]).write_text(block[2], encoding="utf-8")
    commands = block[3].strip().splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "nvret"
        assert cli.main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert (tmp_path / "model" / "modules.json").is_file()


def test_the_way_from_pairs_to_a_model_runs(tmp_path, monkeypatch, capsys):
    """Every block of the page in its order, on 250 of its questions."""
    from nvret import data

    whole = data.load("nq")
    ids = whole.queries["id"].to_pylist()[:250]
    used = sorted({row for rows in whole.positives[:250] for row in rows.tolist()})
    corpus = whole.corpus["id"].take(used + [row for row in range(60) if row not in used])
    part = whole.select(ids, corpus_ids=corpus.to_pylist())
    monkeypatch.setattr(data, "load", lambda name: part)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|console)\n(.*?)```", TEXTS["from_pairs.md"], re.S)
    assert [kind for kind, _ in blocks] == ["python"] + ["console"] * 5
    for kind, text in blocks:
        if kind == "python":
            exec(text.replace("1000", "50"), {})
            continue
        for command in re.findall(r"^\$ (.+)$", text, re.M):
            program, *arguments = shlex.split(command)
            assert program == "nvret"
            assert cli.main(arguments) == 0, capsys.readouterr().err
    assert "low" in capsys.readouterr().out
    for made in ("label.html", "report.html", "model/modules.json"):
        assert (tmp_path / made).is_file()


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch):
    """A module of ``docs/_ext`` by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    yield importlib.import_module
    for name in ("docstrings", "gather", "ledger_table", "mathml"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["docstrings", "ledger_table"])
def test_examples_of_the_books_own_code(extension, name):
    outcome = doctest.testmod(extension(name))
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize("latex", ["a^b^c", r"\nosuchcommand{x}"])
def test_wrong_formula_is_an_error_and_not_a_gap(extension, latex):
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match=r"formula '"):
        extension("mathml").formula(latex, "inline")


def test_the_ledger_page_has_the_profiles_that_were_run(extension, tmp_path):
    from nvret.study import claims
    from nvret.utils.errors import NvretError

    page = extension("ledger_table")
    for place, profile in enumerate(("quick", "cpu")):
        results.save_ledger(tmp_path, profile, {}, draw=place)
    shown = page.content(tmp_path, ["quick", "cpu"])
    assert list(shown["tables"]) == list(claims.TABLES.values())
    rows = [row for own in shown["tables"].values() for part in own.values() for row in part]
    assert sum(row["primary"] for row in rows) == 6
    (tmp_path / "cpu" / "claims.json").unlink()
    assert page.content(tmp_path, ["quick", "cpu"])["profiles"] == ["quick"]
    with pytest.raises(NvretError, match="no ledger of cpu; run a profile first"):
        page.content(tmp_path, ["cpu"])


def test_results_without_notebooks_are_an_error(extension, tmp_path):
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match="no executed notebooks"):
        extension("gather")._profile(tmp_path)


def test_nothing_in_a_profile_is_live_in_its_page(extension, tmp_path):
    from docutils.core import publish_parts
    from myst_parser.docutils_ import Parser

    whole = json.loads((ROOT / "results" / "quick" / "provenance.json").read_text())
    facts = whole["runs"][-1]
    facts["parameters"]["teacher"] = facts["hardware"]["processor"] = hostile.ALL
    student = next(iter(facts["parameters"]["students"].values()))
    facts["parameters"]["students"] = {hostile.ALL: student | {"model": hostile.ALL}}
    (tmp_path / "provenance.json").write_text(json.dumps(whole))
    text = extension("gather")._overview(tmp_path, [])
    text = text[: text.index("```{toctree}")]
    options = {"myst_enable_extensions": ["dollarmath"], "raw_enabled": True, "report_level": 1}
    parts = publish_parts(text, parser=Parser(), writer="html5", settings_overrides=options)
    hostile.check(parts["body"])
    assert "system-message" not in parts["body"]
    assert BeautifulSoup(parts["body"], "html.parser").text.count(hostile.TEXTS[-1]) == 4


def test_progress_bars_go_and_figures_get_a_text(extension):
    import nbformat

    gather = extension("gather")
    bar = nbformat.v4.new_output("display_data", {gather.WIDGET: {"model_id": "1"}})
    figure = nbformat.v4.new_output("display_data", {"image/png": "AAAA"})
    notebook = nbformat.v4.new_notebook(
        metadata={"widgets": {}},
        cells=[
            nbformat.v4.new_markdown_cell("## How *far*?"),
            nbformat.v4.new_code_cell("plot()", outputs=[bar, figure]),
            nbformat.v4.new_markdown_cell("Right of `0` is better. See `01_data`."),
        ],
    )
    gather._tidy(notebook)
    gather._link(notebook, {"01_data"})
    assert "widgets" not in notebook.metadata
    assert notebook.cells[1].outputs == [figure]
    assert notebook.cells[1].metadata["mystnb"]["image"]["alt"] == (
        "Figure, How far. Right of 0 is better."
    )
    assert notebook.cells[2].source.endswith("See [`01_data`](01_data.ipynb).")
