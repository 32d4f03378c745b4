"""Mined negatives inspected: numbers against plain loops, texts escaped, the page in a browser."""

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples, hostile
from nvret import cli, data, methods, mining, negatives
from nvret.analysis import (
    audit,
    calibrate,
    ceilings,
    inspection,
    inspection_report,
    looks,
    slider,
    statistics,
    suspects,
)
from nvret.data import from_texts
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import normalise

TEACHER = "potion-base-8m"
EVIL = "<script>alert('x')</script> & \"quoted\" Easter eggs were brought by a bunny of great hope"


@pytest.fixture(scope="module")
def real():
    """Some queries of a packaged set, with every passage."""
    whole = data.load("nq", progress=False)
    return whole.select(whole.queries["id"].to_pylist()[:1200], name="nq-part")


@pytest.fixture(scope="module")
def naive(real):
    return mining.mine(real, TEACHER, mining.NaiveTopK(), 4, progress=False)


@pytest.fixture(scope="module")
def found(real, naive):
    return inspection.inspect(naive, real, teacher=TEACHER, progress=False)


def toy(evil=EVIL):
    dataset = from_texts(
        "toy",
        ["Paris is old and big", "Rome is old", f"Old {evil}", "Bananas are old"],
        ["is Paris old", "is Rome old"],
        [[0], [1]],
    )
    return dataset, mining.mine(dataset, "bm25", mining.NaiveTopK(), 3, progress=False)


def trigrams(text):
    words = normalise(text).split()
    return set(zip(words, words[1:], words[2:], strict=False))


def windows(text, size):
    words = normalise(text).split()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def test_counts_and_signs_by_plain_loops(real, naive, found):
    text = dict(zip(real.corpus["id"].to_pylist(), real.passages, strict=True))
    taken = naive.to_pylist()
    per_pair = {}
    queries_of = {}
    for row in taken:
        key = row["query_id"], row["positive_id"]
        per_pair[key] = per_pair.get(key, 0) + 1
        queries_of.setdefault(row["negative_id"], set()).add(row["query_id"])
    pairs = len(real.pairs[0])
    assert found.counts["pairs"] == pairs
    assert found.counts["negatives"] == len(taken)
    assert found.counts["short"] == pairs - sum(n >= 4 for n in per_pair.values())
    assert found.counts["passages"] == len(queries_of)
    assert found.counts["above"] == sum(r["score"] >= r["positive_score"] for r in taken) > 0
    used = {text[row[name]] for row in taken for name in ("positive_id", "negative_id")}
    have = Counter(run for one in used for run in windows(one, 13))
    most = max(5, len(used) // 1000)  # a run that more passages have is boilerplate
    for row, sign in zip(taken, found.rows.to_dict("records"), strict=True):
        positive, negative = text[row["positive_id"]], text[row["negative_id"]]
        a, b = trigrams(positive), trigrams(negative)
        jaccard = len(a & b) / max(len(a | b), 1)
        assert sign["near_duplicate"] == (jaccard >= 0.5)
        p, n = f" {normalise(positive)} ", f" {normalise(negative)} "
        assert sign["contains"] == (p in n or n in p)
        common = windows(positive, 13) & windows(negative, 13)
        assert sign["shared"] == any(have[run] <= most for run in common)
        assert sign["mined_for"] == len(queries_of[row["negative_id"]])
    assert found.rows[["near_duplicate", "shared", "contains"]].any().all()
    assert not found.rows["labelled"].any()


def test_the_suspicious_come_first_and_by_their_gap(found):
    order = suspects.order(found.rows)
    rows = found.rows.iloc[order]
    tier = [
        0 if r.labelled
        else 1 if r.near_duplicate or r.contains or r.shared
        else 2 if r.above
        else 3 if r.same_title
        else 4
        for r in rows.itertuples()
    ]  # fmt: skip
    assert sorted(order) == list(range(len(rows)))
    assert tier == sorted(tier)
    for (one, a), (two, b) in itertools.pairwise(zip(tier, rows["gap"], strict=True)):
        assert one < two or a <= b


@pytest.mark.parametrize(
    "method", [mining.TopKPercPos(0.9), mining.TopKMarginPos(0.05), mining.TopKAbs(0.4)]
)
def test_a_ceiling_is_recovered_from_the_table(real, method):
    table = mining.mine(real, TEACHER, method, 2, progress=False)
    found = inspection.inspect(table, real)
    assert found.counts["at_ceiling"] == 0
    assert (found.rows["room"] > 0).all()
    expected = method.ceiling(table["positive_score"].to_numpy())
    np.testing.assert_allclose(found.rows["ceiling"], expected, atol=1e-6)
    assert found.counts["short"] == negatives.provenance(table)["pairs_short"]
    assert found.counts["empty"] == negatives.provenance(table)["pairs_empty"]


def test_the_lowest_positive_bounds_all_pairs_of_a_query():
    dataset = data.from_texts(
        "two", ["old Paris", "Paris", "old bananas", "big old Rome"], ["old Paris"], [[0, 1]]
    )
    table = mining.mine(
        dataset, "bm25", mining.TopKPercPos(0.9), 2, ceiling_positive="lowest", progress=False
    )
    found = inspection.inspect(table, dataset)
    lowest = min(table["positive_score"].to_pylist())
    assert len(set(table["positive_score"].to_pylist())) == 2
    np.testing.assert_allclose(found.rows["ceiling"], 0.9 * lowest, rtol=1e-6)


def test_a_newly_registered_method_is_known_from_provenance_alone(tmp_path, registered):
    """A ceiling of a method that the package does not have; the file says which, and with what."""
    dataset, _ = toy()
    table = mining.mine(dataset, "bm25", registered(share=0.25, plus=0.125), 3, progress=False)
    negatives.save(table, tmp_path / "negatives.parquet")
    table = negatives.load(tmp_path / "negatives.parquet")
    inspected = inspection.inspect(table, dataset)
    expected = 0.25 * table["positive_score"].to_numpy() + 0.125
    assert table.num_rows
    np.testing.assert_allclose(inspected.rows["ceiling"], expected, rtol=1e-6)
    assert inspected.counts["at_ceiling"] == 0
    assert inspected.method == "a share plus a bit"
    assert "a share plus a bit · teacher bm25" in inspection_report.page(inspected)
    del methods.BY_NAME["share-plus"]  # another process, which never saw the class
    unknown = inspection.inspect(table, dataset)
    assert np.isinf(unknown.rows["ceiling"]).all()
    assert "No mining method 'share-plus' is known here" in unknown.warnings[0]


@pytest.fixture
def registered():
    before = dict(methods.BY_NAME)

    @dataclass(frozen=True)
    class SharePlus(methods.Method):
        name: ClassVar[str] = "share-plus"
        share: float = 0.5
        plus: float = 0.0

        def ceiling(self, pos_scores, *, safe=False):
            return (pos_scores * self.share + self.plus).astype(np.float32)

        def __str__(self):
            return "a share plus a bit"

    yield SharePlus
    methods.BY_NAME.clear()
    methods.BY_NAME.update(before)


def test_a_fine_percentage_is_not_rounded(real):
    table = mining.mine(real, TEACHER, mining.TopKPercPos(0.975), 2, progress=False)
    inspected = inspection.inspect(table, real, progress=False)
    exact = mining.TopKPercPos(0.975).ceiling(table["positive_score"].to_numpy())
    np.testing.assert_array_equal(inspected.rows["ceiling"], exact)
    assert inspected.method == "TopK-PercPos 97.5%"


SCORES = st.floats(-1, 1, width=32)
ROWS = st.lists(st.tuples(st.integers(0, 5), SCORES, SCORES, st.booleans()), min_size=1)


@given(ROWS, st.sampled_from(["perc-pos", "margin-pos"]))
@examples(60)
def test_survival_by_plain_loops(drawn, family):
    rows = pd.DataFrame(
        [(q, np.float32(s), np.float32(p)) for q, s, p, _ in drawn],
        columns=["pair", "score", "positive_score"],
    )
    suspect = np.array([flag for *_, flag in drawn])
    table = ceilings.survival(family, rows, suspect)
    for step, line in zip(ceilings.grid(family, rows), table.to_dict("records"), strict=True):
        kept = []
        for _, score, positive, _ in drawn:
            limit = (
                positive - abs(positive) * (1 - step) if family == "perc-pos" else positive - step
            )
            kept.append(np.float32(score) < np.float32(limit))
        assert step == line["parameter"]
        for kind, chosen in (("suspects", suspect), ("others", ~suspect)):
            expected = np.mean(np.array(kept)[chosen]) if chosen.any() else np.nan
            assert line[kind] == pytest.approx(expected, nan_ok=True)
        pairs = {q for q, *_ in drawn}
        left = {q for (q, *_), stays in zip(drawn, kept, strict=True) if stays}
        assert line["pairs"] == pytest.approx(len(left) / len(pairs))
    assert table["pairs"].is_monotonic_decreasing


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1), st.booleans()), min_size=60))
@examples(30)
def test_a_suggestion_is_the_best_of_all_on_the_grid(drawn):
    rows = pd.DataFrame(
        [(i, np.float32(s), np.float32(p)) for i, (s, p, _) in enumerate(drawn)],
        columns=["query", "score", "positive_score"],
    )
    suspect = np.array([flag for *_, flag in drawn])
    suggested = ceilings.suggest("perc-pos", rows, suspect)
    assert vars(suggested)["family"] == "perc-pos"  # what a table of several needs
    if suspect.sum() < ceilings.LEAST or suspect.all():
        assert suggested.parameter is None
        assert ("every" if suspect.all() else "too few") in suggested.why
        return
    gains = []
    for perc in range(100, 49, -1):
        dropped = [
            np.float32(s) >= np.float32(np.float64(np.float32(p)) * (perc / 100))
            for s, p, _ in drawn
        ]
        gains.append(np.mean(np.array(dropped)[suspect]) - np.mean(np.array(dropped)[~suspect]))
    if suggested.parameter is not None:
        place = 100 - round(100 * suggested.parameter)
        assert gains[place] == pytest.approx(max(gains), abs=1e-5)
        assert suggested.low <= suggested.high
    else:
        assert "does not tell" in suggested.why


def test_a_clear_gap_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"query": np.arange(400), "positive_score": np.float32(0.8)})
    suspect = np.arange(400) < 100
    ratio = np.where(suspect, rng.uniform(0.93, 1.1, 400), rng.uniform(0.4, 0.9, 400))
    clear = ceilings.suggest("perc-pos", rows.assign(score=np.float32(0.8 * ratio)), suspect)
    assert 0.9 <= clear.low <= clear.parameter <= clear.high <= 0.94
    assert clear.suspects_dropped == 1
    assert clear.others_dropped == 0
    backwards = ceilings.suggest("perc-pos", rows.assign(score=np.float32(0.8 * ratio)), ~suspect)
    assert backwards.parameter is None


def test_hidden_labels_give_the_audits_rate():
    whole = data.load("vitaminc", progress=False)
    hidden = audit.labels(whole, queries=300, passages=3000)
    table = mining.mine(hidden.dataset, "bm25", mining.NaiveTopK(), 4, progress=False)
    column = pa.array([1] * len(hidden.pairs), pa.int32())
    labels = hidden.pairs.append_column("score", column)
    found = inspection.inspect(table, hidden.dataset, hidden=labels)
    lost = set(map(tuple, hidden.pairs.to_pandas().to_numpy().tolist()))
    false = [(r["query_id"], r["negative_id"]) in lost for r in table.to_pylist()]
    assert found.rows["labelled"].tolist() == false
    assert found.hidden.false == sum(false) > 0
    assert found.hidden.rate == statistics.rate(audit.false_negatives(table, hidden))
    assert f"Hidden labels know {sum(false)} of" in inspection_report.page(found)
    assert found.suspicious().head(5)["labelled"].all()


def test_labels_of_irrelevance_are_counted_apart():
    dataset, table = toy()
    labels = pa.table({"query_id": ["q0", "q0"], "corpus_id": ["p1", "p2"], "score": [0, 2]})
    found = inspection.inspect(table, dataset, hidden=labels)
    assert (found.hidden.false, found.hidden.not_relevant, found.hidden.queries) == (1, 1, 1)
    with pytest.raises(NvretError, match="no relevant pair that mining did not see"):
        inspection.inspect(table, dataset, hidden=labels.slice(0, 1))


def test_another_teacher_or_other_data_are_refused(real, naive, found):
    assert len(found.random_scores) == len(real.pairs[0])
    with pytest.raises(NvretError, match="bm25 is not the one that mined"):
        inspection.inspect(naive, real, teacher="bm25", progress=False)
    dataset, table = toy()
    with pytest.raises(NvretError, match="row 0: query_id"):
        inspection.inspect(naive, dataset)
    swapped = from_texts("toy", dataset.passages, dataset.query_texts, [[1], [0]])
    with pytest.raises(NvretError, match="'p0' is no labelled positive of query 'q0'"):
        inspection.inspect(table, swapped)
    with pytest.raises(NvretError, match="no provenance"):
        inspection.inspect(table.replace_schema_metadata(), dataset)
    other = from_texts("toy", [t + "!" for t in dataset.passages], dataset.query_texts, [[0], [1]])
    assert "differ from those" in inspection.inspect(table, other).warnings[0]


class _Outline(HTMLParser):
    """Tags, ids and texts of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.texts, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [v for k, v in given.items() if k in ("src", "href", "xlink:href", "action")]

    def handle_data(self, text):
        self.texts.append(text)


def test_texts_are_escaped_and_nothing_is_fetched():
    dataset, table = toy()
    found = inspection.inspect(table, dataset)
    page = inspection_report.page(found)
    outline = _Outline()
    outline.feed(page)
    assert outline.tags.count("script") == 1
    assert "<script>alert" not in page
    assert any(EVIL in text for text in outline.texts)
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert outline.tags.count("h1") == 1
    assert page == inspection_report.page(found)  # the same input, the same bytes
    frame = inspection_report.show(found).data
    assert frame.startswith("<div><iframe")
    assert frame.count("<") == 4


def test_save_does_not_replace_a_file(tmp_path):
    dataset, table = toy()
    found = inspection.inspect(table, dataset)
    path = inspection_report.save_html(found, tmp_path / "new" / "report.html")
    size = path.stat().st_size
    path.write_text("mine")
    with pytest.raises(NvretError, match="exists"):
        inspection_report.save_html(found, path)
    assert path.read_text() == "mine"
    inspection_report.save_html(found, path, overwrite=True)
    assert path.stat().st_size == size
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.fixture
def files(tmp_path):
    dataset, table = toy()
    for name, part in (("corpus", dataset.corpus), ("queries", dataset.queries)):
        lines = [json.dumps({"_id": row.pop("id"), **row}) for row in part.to_pylist()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    judged = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "test.tsv").write_text(f"{judged}q0\tp0\t1\nq1\tp1\t1\n")
    (tmp_path / "hidden.tsv").write_text(f"{judged}q0\tp1\t1\n")
    negatives.save(table, tmp_path / "negatives.parquet")
    return tmp_path


def command(folder, *more, negatives="negatives.parquet"):
    return cli.main(
        ["inspect", str(folder / negatives), "--output", str(folder / "r.html"), *map(str, more)]
    )


def test_command(files, capsys):
    three = [
        *("--corpus", files / "corpus.jsonl", "--queries", files / "queries.jsonl"),
        *("--qrels", files / "qrels" / "test.tsv"),
    ]
    hidden = ("--hidden", files / "hidden.tsv", "--teacher", "bm25")
    assert command(files, *three, *hidden) == 0
    assert "negatives for 2 pairs" in capsys.readouterr().out
    first = (files / "r.html").read_text()
    assert "Known false negatives" in first
    assert "random passages" in first
    assert command(files, "--data", files) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (files / "r.html").read_text() == first
    assert command(files, "--data", files, "--overwrite") == 0
    assert "Known false negatives" not in (files / "r.html").read_text()


@pytest.mark.parametrize(
    ("more", "negatives", "message"),
    [
        ((), "negatives.parquet", "inspect needs as data --data alone"),
        (("--data", "{}", "--qrels", "x.tsv"), "negatives.parquet", "given: only --data, --qrels"),
        (("--data", "{}"), "no.parquet", "no such file"),
        (("--data", "{}"), "corpus.jsonl", "no known layout has the columns"),
        (("--data", "{}", "--hidden", "{}/no.tsv"), "negatives.parquet", "no.tsv"),
        (("--data", "{}", "--teacher", "no-such"), "negatives.parquet", "no-such"),
        (("--data", "{}", "--split", "dev"), "negatives.parquet", "dev"),
    ],
)
def test_bad_input_ends_in_one_message(files, capsys, more, negatives, message):
    assert command(files, *(part.format(files) for part in more), negatives=negatives) == 2
    error = capsys.readouterr().err
    assert message in error
    said = [line for line in error.splitlines() if line and "lines/s]" not in line]
    assert len(said) == 1
    assert said[0].startswith("nvret: ")
    assert not (files / "r.html").exists()


@pytest.fixture(scope="module")
def report(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return inspection_report.save_html(found, path).as_uri()


def resize(browser, width):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.mark.parametrize("width", [1280, 768, 375, 320])
def test_the_page_fits_and_says_nothing_in_the_console(browser, report, width):
    resize(browser, width)
    browser.get_log("browser")  # what other pages said is read and gone
    browser.get(report)
    assert browser.get_log("browser") == []
    assert browser.title == "Mined negatives of nq-part"
    for detail in ("", "document.querySelectorAll('details').forEach(e => e.open = true);"):
        wide = browser.execute_script(f"{detail} return document.documentElement.scrollWidth")
        assert wide <= browser.execute_script("return window.innerWidth") == width
    blank = "return [...document.querySelectorAll('svg')].filter(e => !e.getBBox().width).length"
    assert browser.execute_script(blank) == 0
    assert browser.execute_script("return document.querySelectorAll('figure svg').length") == 3


def test_the_filter_hides_what_does_not_match(browser, report, found):
    resize(browser, 1280)
    browser.get(report)
    pairs = browser.find_elements("css selector", ".pair")
    word = normalise(pairs[3].get_attribute("textContent")).split()[1]
    expected = [word in pair.get_attribute("textContent").lower() for pair in pairs]
    box = browser.find_element("id", "words")
    box.send_keys(word.upper())
    assert [pair.is_displayed() for pair in pairs] == expected
    assert browser.find_element("id", "shown").text == f"{sum(expected)} of {len(pairs)} pairs"
    box.clear()
    box.send_keys("zzzzqqqq")
    assert not any(pair.is_displayed() for pair in pairs)
    box.clear()
    browser.find_element("id", "only").click()
    signed = [bool(pair.find_elements("css selector", ".tag")) for pair in pairs]
    assert [pair.is_displayed() for pair in pairs] == signed
    assert 0 < sum(signed) <= len(pairs) == 40


def test_the_page_works_without_its_script(browser, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report)
        assert not browser.find_element("id", "filter").is_displayed()
        closed = browser.find_elements("css selector", ".pair")[1]
        assert closed.get_attribute("open") is None
        closed.find_element("tag name", "summary").click()
        assert closed.find_element("tag name", "ol").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_nothing_in_a_text_id_or_name_is_live(browser, tmp_path):
    texts = [f"{text} is old" for text in hostile.TEXTS]
    dataset = from_texts(hostile.ALL, texts, [f"{hostile.ALL} old", "what is old"], [[0], [1]])
    corpus = dataset.corpus.drop_columns(["id", "title"])
    corpus = corpus.append_column("id", [texts]).append_column("title", [texts])
    qrels = dataset.qrels.set_column(1, "corpus_id", [texts[:2]])
    dataset = data.RetrievalDataset(hostile.ALL, corpus, dataset.queries, qrels)
    table = mining.mine(dataset, "bm25", mining.NaiveTopK(), 3, progress=False)
    names = pa.array([hostile.ALL] * len(table))
    for name in ("teacher", "method"):
        table = table.set_column(table.column_names.index(name), name, names)
    facts = negatives.provenance(table) | {"teacher": {"name": hostile.ALL}, hostile.ALL: "x"}
    table = table.replace_schema_metadata({"nvret": json.dumps(facts)})
    report = inspection.inspect(table, dataset, progress=False)
    path = inspection_report.save_html(report, tmp_path / "report.html")
    browser.get(path.as_uri())
    assert browser.execute_script("return window.hostile") is None
    assert browser.execute_script("return document.images.length") == 0
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.find_elements("css selector", "[onload], [onerror], a[href^=javascript]") == []
    assert hostile.TEXTS[0] in browser.find_element("tag name", "main").get_attribute("textContent")
    (tmp_path / "shown.html").write_text(inspection_report.show(report).data)
    browser.get((tmp_path / "shown.html").as_uri())
    assert browser.execute_script("return window.hostile") is None
    parts = [looks.example(hostile.ALL, {hostile.ALL: hostile.ALL}).data]
    parts += [slider.page(pd.DataFrame({"score": [0.5], "text": [hostile.ALL]}), 1.0, 0.9)]
    (tmp_path / "output.html").write_text("".join(parts))
    browser.get((tmp_path / "output.html").as_uri())
    assert browser.execute_script("return window.hostile") is None
    assert hostile.TEXTS[0] in browser.find_element("tag name", "body").text


def contrast(one, two):
    def light(colour):
        values = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    high, low = sorted([light(one), light(two)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_in_both_schemes(browser, report, scheme):
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    browser.get(report)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    page, card = (
        browser.execute_script(style, where, "backgroundColor") for where in ("body", "figure")
    )
    for name in ("body", ".soft", "a", ".look b", ".good b"):
        assert contrast(browser.execute_script(style, name, "color"), page) >= 4.5
    assert contrast(browser.execute_script(style, "figure svg text", "fill"), card) >= 4.5
    tag = browser.execute_script(style, ".tag", "backgroundColor")
    assert contrast(browser.execute_script(style, ".tag", "color"), tag) >= 4.5


SAVED = """
window.saved = null;
window.make = URL.createObjectURL;
URL.createObjectURL = blob => { blob.text().then(text => window.saved = text); return "#"; };
"""


def saved(browser):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script(SAVED)
    browser.find_element("id", "save").click()
    return WebDriverWait(browser, 10).until(lambda b: b.execute_script("return window.saved"))


def test_labels_are_given_by_keys_and_buttons_and_saved(browser, report):
    resize(browser, 1280)
    browser.get(report)
    body = browser.find_element("tag name", "body")
    body.send_keys("jy")
    first = browser.switch_to.active_element
    assert first.get_attribute("data-pair")
    first.send_keys("j")
    second = browser.switch_to.active_element
    assert second.get_attribute("data-pair") != first.get_attribute("data-pair")
    second.find_element("css selector", "button[value='0']").click()
    assert browser.find_element("id", "count").text == "2 labelled"
    pressed = first.find_elements("css selector", "[aria-pressed=true]")
    assert [button.text for button in pressed] == ["answers"]
    lines = saved(browser)
    expected = [f"{one.get_attribute('data-pair')}\t{value}" for one, value in
                ((first, 1), (second, 0))]  # fmt: skip
    assert lines.splitlines() == ["query-id\tcorpus-id\tscore", *expected]


def test_a_page_of_pairs_is_labelled_and_remembers(browser, tmp_path):
    pairs = pd.DataFrame({
        "query_id": ["q0", "q1", "q2"], "corpus_id": ["p0", "p1", "p2"],
        "query": ["who?", "</script><b>what?", "where?"], "passage": ["she", "this", "there"],
        "positive": ["her", "that", "here"],
    })  # fmt: skip
    path = tmp_path / "label.html"
    path.write_text(calibrate.page(pairs), encoding="utf-8")
    browser.get(path.as_uri())
    body = browser.find_element("tag name", "body")
    assert browser.find_element("id", "place").text == "Pair 1 of 3; 0 labelled"
    body.send_keys("y")
    assert browser.find_element("id", "query").text == "</script><b>what?"
    browser.find_element("id", "skip").click()
    body.send_keys("b")
    assert browser.find_element("id", "place").text.startswith("Pair 2 of 3")
    body.send_keys("n")
    browser.refresh()
    assert browser.find_element("id", "place").text == "Pair 3 of 3; 2 labelled"
    browser.find_element("tag name", "body").send_keys("s")
    assert "All pairs are done" in browser.find_element("id", "place").text
    lines = saved(browser)
    assert lines.splitlines() == ["query-id\tcorpus-id\tscore", "q0\tp0\t1", "q1\tp1\t0"]
