"""The site: nothing is loaded from a network, every link resolves, and a browser shows it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup

from nvret import cli, exhibits, rendering, site
from nvret.errors import NvretError
from nvret.params import project_root

RESULTS = project_root() / "results"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def soups(built: Path) -> dict[Path, BeautifulSoup]:
    pages = built.rglob("*.html")
    return {page: BeautifulSoup(page.read_text("utf-8"), "html.parser") for page in pages}


def test_every_executed_notebook_has_a_page_and_a_card(built, soups):
    notebooks = [path for path in RESULTS.glob("*/notebooks/*.ipynb") if "smoke" not in path.parts]
    pages = {f"{path.parts[-3]}/{path.stem}.html" for path in notebooks}
    there = {page.relative_to(built).as_posix() for page in soups}
    assert there == pages | {"index.html", "ledger.html", "benchmarks.html"}
    cards = soups[built / "index.html"].select(".card .profiles a")
    assert {link["href"] for link in cards} == pages


def test_links_and_images_resolve(built, soups):
    seen = 0
    for page, soup in soups.items():
        for element in soup.find_all(["a", "img", "link", "script"]):
            address = element.get("href") or element.get("src")
            if address is None or re.match(r"(https?|data):", address):
                continue
            name, _, anchor = address.partition("#")
            target = (page.parent / unquote(name)).resolve() if name else page
            assert target.is_file(), f"{page.relative_to(built)}: {address}"
            assert target.is_relative_to(built)
            if anchor:
                assert soups[target].find(id=anchor), f"{page.relative_to(built)}: {address}"
            seen += 1
    assert seen > 100


def test_nothing_is_loaded_from_a_network(built, soups):
    for page, soup in soups.items():
        for name, attribute in LOADED.items():
            for element in soup.find_all(name):
                assert not re.match(r"(https?:)?//", element.get(attribute, "")), page
        for style in [*soup.find_all("style"), *soup.select("[style]")]:
            assert "url(" not in str(style), page
        for script in soup.find_all("script"):
            assert not script.string, f"{page}: a script within the page"
    for path in (*built.glob("*.css"), *built.glob("*.js")):
        assert not re.search(r"@import|url\(|https?:|fetch\(", path.read_text("utf-8")), path


def test_pages_have_a_language_headings_and_texts_for_figures(soups):
    for page, soup in soups.items():
        assert soup.html["lang"] == "en"
        assert soup.title.get_text().strip()
        assert len(soup.find_all("h1")) == 1, page
        levels = [int(h.name[1]) for h in soup.find_all(re.compile("^h[1-6]$"))]
        steps = [b - a for a, b in itertools.pairwise(levels)]
        assert levels[0] == 1, page
        assert max(steps, default=0) <= 1, f"{page}: a level of headings is skipped"
        for image in soup.select("figure img"):
            assert len(image["alt"]) > 10, page
            assert "No description" not in image["alt"], page
        assert all(table.find_parent(class_="table-box") for table in soup.find_all("table")), page
        ids = [element["id"] for element in soup.select("[id]")]
        assert len(ids) == len(set(ids)), f"{page}: an id occurs twice"


def test_one_can_walk_from_the_first_page_to_the_last(built, soups):
    page, walked = built / "index.html", []
    while True:
        walked.append(page)
        following = soups[page].select_one(".steps a[rel=next]")
        if following is None:
            break
        target = (page.parent / following["href"]).resolve()
        back = soups[target].select_one(".steps a[rel=prev]")
        assert page == built / "index.html" or (target.parent / back["href"]).resolve() == page
        assert target not in walked
        page = target
    assert page.name == "benchmarks.html"
    assert len(walked) == len(list((RESULTS / "quick" / "notebooks").glob("*.ipynb"))) + 3


def test_ledger_holds_each_claim_with_its_verdict(built, soups):
    table = soups[built / "ledger.html"].select_one("table.claims")
    for place, profile in enumerate(site._profiles(RESULTS)):
        claims = json.loads((RESULTS / profile / "claims.json").read_text("utf-8"))["claims"]
        expected = sorted((one["claim"], one["student"], one["verdict"]) for one in claims)
        found = []
        for row in table.select("tr.row"):
            cells = row.find_all("td")
            claim = next(cells[0].strings).strip()
            verdict = cells[4 + 2 * place].get_text().strip()
            if verdict != "–":
                found.append((claim, cells[1].get_text(), verdict))
        assert sorted(found) == expected


def test_benchmarks_say_what_was_met(built, soups):
    groups, _ = exhibits.benchmarks(RESULTS / "benchmarks")
    missed = sum(not row["met"] for rows in groups.values() for row in rows)
    assert len(soups[built / "benchmarks.html"].select(".badge.not-reproduced")) == missed
    assert f"{sum(map(len, groups.values()))}" == str(
        len(soups[built / "benchmarks.html"].select("tbody tr:not(.section)"))
    )


def test_formulas_are_drawn_and_not_left_as_latex(soups):
    drawn = 0
    for page, soup in soups.items():
        if page.parent.name != "quick":
            continue
        source = nbformat.read(RESULTS / "quick" / "notebooks" / f"{page.stem}.ipynb", 4)
        texts = "\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$`\n]+\$", re.sub(r"`[^`]*`", "", texts), re.S)
        assert len(soup.find_all("math")) == len(formulas), page
        for cell in soup.select(".text_cell_render"):
            assert not re.search(r"\\[a-z]+|\$", cell.get_text()), page
        drawn += len(formulas)
    assert drawn > 5


def _notebook(path: Path, *cells) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.mark.parametrize("latex", ["a^b^c", r"\nosuchcommand{x}"])
def test_wrong_formula_is_an_error_and_not_a_gap(tmp_path, latex):
    text = nbformat.v4.new_markdown_cell(f"# Title\n\n${latex}$")
    with pytest.raises(NvretError, match=r"formula '"):
        rendering.render(_notebook(tmp_path / "a.ipynb", text))


def test_notebook_without_a_title_and_no_notebook_are_errors(tmp_path):
    with pytest.raises(NvretError, match="expected a title"):
        rendering.render(_notebook(tmp_path / "a.ipynb", nbformat.v4.new_markdown_cell("Text")))
    (tmp_path / "b.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(NvretError, match=r"b\.ipynb: not a notebook"):
        rendering.render(tmp_path / "b.ipynb")


def test_columns_of_numbers_are_marked_and_texts_are_not(tmp_path):
    html = "<table><thead><tr><th>name</th><th>share</th></tr></thead><tbody>"
    html += "<tr><td>a 1</td><td>0.5 [0.4, 0.6]</td></tr><tr><td>2</td><td>–</td></tr></tbody>"
    data = {"text/html": html + "</table>"}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data)])
    title = nbformat.v4.new_markdown_cell("# T")
    body = rendering.render(_notebook(tmp_path / "a.ipynb", title, cell)).body
    soup = BeautifulSoup(body, "html.parser")
    assert [c.get_text() for c in soup.select(".number")] == ["share", "0.5 [0.4, 0.6]", "–"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Results of one notebook, to build again and again."""
    quick = tmp_path / "results" / "quick"
    (quick / "notebooks").mkdir(parents=True)
    shutil.copy(RESULTS / "quick" / "claims.json", quick)
    shutil.copy(RESULTS / "quick" / "notebooks" / "10_claims.ipynb", quick / "notebooks")
    return tmp_path / "results"


def test_same_results_give_the_same_bytes_over_an_earlier_site(small, tmp_path):
    def content(folder: Path) -> dict[str, bytes]:
        return {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }

    target = tmp_path / "site"
    assert site.build(small, target) == sorted(target.rglob("*.html"))
    first = content(target)
    (target / "stale.html").write_text("old", encoding="utf-8")
    site.build(small, target)
    assert content(target) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "site"]


def test_failure_leaves_the_earlier_site_and_nothing_else(small, tmp_path, capsys):
    target = tmp_path / "site"
    arguments = ["site", "--results", str(small), "--output", str(target)]
    assert cli.main(arguments) == 0
    before = (target / "index.html").read_bytes()
    capsys.readouterr()
    (small / "quick" / "claims.json").write_text('{"claims": 3}', encoding="utf-8")
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "claims.json" in error
    assert error.count("\n") == 1
    assert (target / "index.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "site"]


def test_a_folder_of_something_else_is_left_alone(small, tmp_path, capsys):
    target = tmp_path / "precious"
    target.mkdir()
    (target / "index.html").write_text("my own page", encoding="utf-8")
    assert cli.main(["site", "--results", str(small), "--output", str(target)]) == 2
    assert "precious" in capsys.readouterr().err
    assert (target / "index.html").read_text(encoding="utf-8") == "my own page"


def test_without_the_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['latex2mathml'] = None; from nvret import cli; "
    command = [sys.executable, "-c", code + "sys.exit(cli.main(['site']))"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "nvret: site needs latex2mathml: pip install 'nvret[site]'\n"


def test_results_without_notebooks_are_an_error(tmp_path):
    with pytest.raises(NvretError, match="no executed notebooks"):
        site.build(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()
