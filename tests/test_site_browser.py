"""The site in a real Chromium, opened as files; ``conftest.py`` says what it needs."""

from __future__ import annotations

import pytest

PAGES = ["index.html", "quick/06_rq3_methods.html", "ledger.html", "benchmarks.html"]
SIZES = "return [...document.images].map(image => [image.src, image.naturalWidth])"
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def root(built) -> str:
    return built.as_uri()


def _width(browser, pixels: int) -> None:
    metrics = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_without_an_error_and_shows_its_figures(browser, root, page):
    _width(browser, 1280)
    for log in ("performance", "browser"):  # of the pages that were open before
        browser.get_log(log)
    browser.get(f"{root}/{page}")
    assert browser.get_log("browser") == []
    sizes = browser.execute_script(SIZES)
    assert sizes
    assert all(width > 0 for _, width in sizes), sizes
    requests = [entry for entry in browser.get_log("performance") if "requestWill" in str(entry)]
    assert requests
    assert not [entry for entry in requests if '"url":"http' in entry["message"]]


@pytest.mark.parametrize("page", PAGES)
def test_page_does_not_scroll_sideways_on_a_telephone(browser, root, page):
    _width(browser, 375)
    browser.get(f"{root}/{page}")
    assert browser.execute_script("return window.innerWidth") == 375
    assert browser.execute_script(OVERFLOW) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(browser, root, scheme):
    """WCAG's contrast of 4.5 for text, links and the verdicts' badges."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    _width(browser, 1280)
    colours = {}
    for page in PAGES[:3]:
        browser.get(f"{root}/{page}")
        colours |= dict(browser.execute_script(CONTRASTS))
    assert len(colours) > 5
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
  const [front, back] = [getComputedStyle(element).color, ground(element)];
  const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
  found.set(`${front} on ${back}`, (high + 0.05) / (low + 0.05));
}
return [...found];
"""


def _shown(browser) -> list[str]:
    script = (
        "return [...document.querySelectorAll('tr.row')]"
        ".filter(row => row.getClientRects().length).map(row => row.className)"
    )
    return browser.execute_script(script)


@pytest.mark.parametrize("script", [True, False])
def test_ledger_filters_by_verdict_with_and_without_a_script(browser, root, script):
    _width(browser, 1280)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    try:
        browser.get(f"{root}/ledger.html")
        everything = _shown(browser)
        browser.find_element("id", "show-reproduced").click()
        expected = [name for name in everything if "is-reproduced" in name.split()]
        assert 0 < len(expected) < len(everything)
        assert _shown(browser) == expected
        assert browser.find_element("id", "search").is_displayed() == script
        browser.find_element("id", "show-all").click()
        assert _shown(browser) == everything
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_ledger_search_counts_what_it_shows(browser, root):
    _width(browser, 1280)
    browser.get(f"{root}/ledger.html")
    total = len(_shown(browser))
    search = browser.find_element("id", "search")
    search.send_keys("margin rule transformer")
    shown = browser.execute_script(
        "return [...document.querySelectorAll('tr.row')]"
        ".filter(row => row.getClientRects().length).map(row => row.textContent)"
    )
    assert 0 < len(shown) < total
    assert all("margin rule" in text and "transformer" in text for text in shown)
    assert browser.find_element("css selector", "output").text == f"{len(shown)} of {total} rows"
    search.clear()
    search.send_keys("no such claim")
    assert _shown(browser) == []
