"""The built book: every link resolves, nothing is loaded from a network, Chromium shows it.

Pages are opened as files; ``conftest.py`` says what the browser needs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from bs4 import BeautifulSoup

from helpers import book
from nvret.study.claims import TABLES

pytestmark = pytest.mark.xdist_group("browser")

PAGES = [
    "index.html",
    "own_data.html",
    "course/loss.html",
    "course/false_negatives.html",
    "course/rules.html",
    "ledger.html",
    "results/quick/06_rq3_methods.html",
    "api/methods.html",
]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
SIZES = "return [...document.images].map(image => [image.src, image.naturalWidth])"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    return book.build(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def soups(built: Path) -> dict[Path, BeautifulSoup]:
    pages = [page for page in built.rglob("*.html") if "_static" not in page.parts]
    return {page: BeautifulSoup(page.read_text("utf-8"), "html.parser") for page in pages}


@pytest.fixture(scope="module")
def root(built: Path) -> str:
    return built.as_uri()


def test_every_executed_notebook_and_module_has_a_page(built):
    notebooks = (book.ROOT / "results" / "quick" / "notebooks").glob("*.ipynb")
    pages = {page.stem for page in (built / "results" / "quick").glob("*.html")}
    assert pages == {path.stem for path in notebooks} | {"index"}
    core = {path.stem for path in (book.ROOT / "nvret").glob("[!_]*.py")}
    rooms = {path.parent.name for path in (book.ROOT / "nvret").glob("*/__init__.py")} - {"cli"}
    pages = {page.stem for page in (built / "api").glob("*.html")}
    assert pages == core | rooms | {"core", "rooms"}


def test_links_and_images_resolve(built, soups):
    seen = 0
    anchors = {page: {e["id"] for e in soup.find_all(id=True)} for page, soup in soups.items()}
    for page, soup in soups.items():
        for element in soup.find_all(["a", "img", "link", "script"]):
            address = element.get("href") or element.get("src")
            if not address or re.match(r"(https?|data):", address):
                continue
            name, _, anchor = address.partition("#")
            target = (page.parent / unquote(name.partition("?")[0])).resolve() if name else page
            assert target.is_file(), f"{page.relative_to(built)}: {address}"
            if anchor and target in soups:
                assert unquote(anchor) in anchors[target], f"{page.name}: {address}"
            seen += 1
    assert seen > 1000


def test_nothing_is_loaded_from_a_network(built, soups):
    for page, soup in soups.items():
        for name, attribute in LOADED.items():
            for element in soup.find_all(name):
                assert not re.match(r"(https?:)?//", element.get(attribute, "")), page
    for path in built.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text("utf-8")), path


def test_figures_have_a_text_and_formulas_are_drawn(built, soups):
    folder = built / "results" / "quick"
    for page in (built / "index.html", built / "ledger.html", *folder.glob("*.html")):
        for image in soups[page].select("article img"):
            assert len(image["alt"]) > 10, page
    assert soups[built / "index.html"].find("math")
    assert soups[folder / "06_rq3_methods.html"].find("math")
    for page in folder.glob("*.html"):
        for cell in soups[page].select("article p"):
            assert not re.search(r"\\[a-z]{3,}|\$\$", cell.get_text()), page


def test_ledger_holds_each_claim_with_its_verdict(built, soups):
    page = soups[built / "ledger.html"]
    assert [title.get_text() for title in page.select(".ledger h2")] == list(TABLES.values())
    for profile in ("quick", "cpu"):
        path = built.parent / "results" / profile / "claims.json"
        claims = json.loads(path.read_text("utf-8"))["claims"]
        expected = [(one["claim"], one["student"] or "", one["verdict"]) for one in claims]
        rows = []
        for row in page.select(".ledger tr.one"):
            claim, student, *_ = row.find_all("td")
            verdict = row.select(f"td.of-{profile}")[-1].get_text().strip()
            if verdict != "–":
                rows.append((next(claim.strings).strip(), student.get_text(), verdict))
        assert sorted(rows) == sorted(expected)


def _width(browser, pixels: int) -> None:
    metrics = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_without_an_error_or_a_request(browser, root, page):
    _width(browser, 1280)
    for log in ("performance", "browser"):  # of the pages that were open before
        browser.get_log(log)
    browser.get(f"{root}/{page}")
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
    sizes = browser.execute_script(SIZES)
    assert all(width > 0 for _, width in sizes), sizes
    requests = [entry for entry in browser.get_log("performance") if "requestWill" in str(entry)]
    assert requests
    assert not [entry for entry in requests if '"url":"http' in entry["message"]]


def test_search_finds_a_word_without_a_server(browser, root):
    _width(browser, 1280)
    browser.get(f"{root}/search.html?q=ceiling")
    browser.implicitly_wait(20)
    found = browser.find_elements("css selector", "#search-results li a")
    browser.implicitly_wait(0)
    assert any("methods" in link.get_attribute("href") for link in found)


@pytest.mark.parametrize("page", PAGES)
def test_page_does_not_scroll_sideways_on_a_telephone(browser, root, page):
    _width(browser, 375)
    browser.get(f"{root}/{page}")
    assert browser.execute_script("return window.innerWidth") == 375
    assert browser.execute_script(OVERFLOW) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(browser, root, scheme):
    """WCAG's contrast of 4.5 for text, links, code and verdicts."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    _width(browser, 1280)
    colours = {}
    for page in PAGES:
        browser.get(f"{root}/{page}")
        colours |= {f"{page}: {pair}": ratio for pair, ratio in browser.execute_script(CONTRASTS)}
    assert len(colours) > 15
    assert {pair: ratio for pair, ratio in colours.items() if ratio < 4.5} == {}
    assert browser.execute_script(DARK) == (scheme == "dark")


DARK = (
    "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
    ".reduce((a, b) => a + +b, 0) < 300"
)
# Each pair of colour and ground that has a text of its own, with its contrast (WCAG 2.2)
CONTRASTS = """
const light = (colour) => {
  const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
};
const found = new Map();
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !element.getClientRects().length) continue;
  if (element.closest("button, noscript, .visually-hidden")) continue;
  const [front, back] = [getComputedStyle(element).color, ground(element)];
  const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
  found.set(`${front} on ${back}, ${element.tagName}.${element.className}`,
            (high + 0.05) / (low + 0.05));
}
return [...found];
"""


def _shown(browser, column: str = "className") -> list[str]:
    script = (
        "return [...document.querySelectorAll('tr.one')]"
        f".filter(row => row.getClientRects().length).map(row => row.{column})"
    )
    return browser.execute_script(script)


def _choose(browser, name: str) -> None:
    browser.execute_script("arguments[0].click()", browser.find_element("id", name))


@pytest.mark.parametrize("script", [True, False])
def test_ledger_filters_with_and_without_a_script(browser, root, script):
    _width(browser, 1280)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    try:
        browser.get(f"{root}/ledger.html")
        everything = [set(name.split()) for name in _shown(browser)]
        assert browser.find_element("id", "words").is_displayed() == script
        for chosen, wanted in (
            (["verdict-confirmed"], {"all-confirmed"}),
            (["profile-cpu"], {"cpu-confirmed"}),
            (["student-static"], {"cpu-confirmed", "student-static"}),
            (["verdict-all", "profile-all"], {"student-static"}),
        ):
            for name in chosen:
                _choose(browser, name)
            expected = [names for names in everything if wanted <= names]
            assert 0 < len(expected) < len(everything)
            assert [set(name.split()) for name in _shown(browser)] == expected
        _choose(browser, "student-all")
        assert len(_shown(browser)) == len(everything)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_ledger_search_counts_what_it_shows(browser, root):
    _width(browser, 1280)
    browser.get(f"{root}/ledger.html")
    total = len(_shown(browser))
    search = browser.find_element("id", "words")
    search.send_keys("margin rule static")
    shown = _shown(browser, "textContent")
    assert 0 < len(shown) < total
    assert all("margin rule" in text and "static" in text for text in shown)
    count = browser.find_element("css selector", ".ledger output").text
    assert count == f"{len(shown)} of {total} rows"
    search.clear()
    search.send_keys("no such claim")
    assert _shown(browser) == []


def _lesson(name: str, wanted: str) -> dict:
    """What a lesson's own cells compute, up to the one that makes ``wanted``."""
    (path,) = (book.ROOT / "notebooks" / "course").glob(f"{name}_*.ipynb")
    names: dict = {}
    with np.printoptions():  # which a lesson sets for all
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and wanted not in names:
                exec("".join(cell["source"]), names)
    return names


def _slide(browser, place: int, value: float) -> None:
    browser.execute_script(
        "const input = document.querySelectorAll('.play input[type=range]')[arguments[0]];"
        "input.value = arguments[1]; input.dispatchEvent(new Event('input'))",
        place,
        value,
    )


def test_the_push_on_the_page_is_that_of_the_lesson(browser, root, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    lesson = _lesson("A1", "shares")
    browser.get(f"{root}/course/loss.html")
    for place, angle, T in ((-1, 37, 0.1), (0, 37, 1), (-2, 37, 0.01), (-1, 90, 0.1)):
        _slide(browser, 0, place)
        _slide(browser, 1, angle)
        scores = np.array([np.cos(np.radians(angle)), *lesson["scores"][2:]])
        shown = [float(e.text) for e in browser.find_elements("css selector", ".play .value")]
        np.testing.assert_allclose(shown, lesson["softmax"](scores, T), atol=6e-4)


def test_the_circle_on_the_page_is_trained_as_in_the_lesson(browser, root, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    lesson = _lesson("A3", "states")
    browser.get(f"{root}/course/false_negatives.html")
    for name, negative in (("flipped", lesson["flipped"]), ("clean", lesson["clean"])):
        end = lesson["states"][name]
        loss = float(lesson["losses"](lesson["cosines"](*end), negative).sum())
        recall = float(lesson["held_out"](end).mean())
        said = browser.find_element("css selector", ".play .said").text
        found = [float(number) for number in re.findall(r"\d+\.\d+", said)]
        before = float(lesson["held_out"](lesson["start"]).mean())
        np.testing.assert_allclose(found, [loss, recall, before], atol=0.006)
        browser.find_elements("css selector", ".play input[type=checkbox]")[5].click()


def test_the_rules_on_the_page_take_what_those_of_the_lesson_take(browser, root, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    lesson = _lesson("A4", "percentage")
    browser.get(f"{root}/course/rules.html")
    for settings in ((3, 0.7, 0.05, 0.95), (1, 0.38, 0.2, 0.8)):
        for place, value in enumerate(settings):
            _slide(browser, place, value)
        rules = [lesson[name] for name in ("shifted", "absolute", "margin", "percentage")]
        expected = []
        for scores, positive, answer in lesson["QUESTIONS"].values():
            for rule, value in zip(rules, settings, strict=True):
                taken = rule(scores, positive, value)
                expected.append(f"{answer[taken].sum()} of {len(taken)}")
        cells = browser.find_elements("css selector", ".play td:nth-child(3)")
        assert [cell.text for cell in cells] == expected
