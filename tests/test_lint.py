"""The lint of mined negatives: every layout, every mistake, any piece, and what `--fix` leaves."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import hostile
from nvret import cli, mining
from nvret.analysis import lint
from nvret.data import from_texts
from nvret.io import export, mined
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import normalise

LONG = "the old king of the north rode out with forty men and did not come back before the snow"
NEAR = LONG.replace("forty", "fifty") + " fell on the hills and the river was frozen over for weeks"
PLAIN = "a passage about something else that nobody asked for"


def lines(path, records):
    text = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def flag(query, positives, negatives, **scores):
    return {"query": query, "pos": positives, "neg": negatives} | scores


def counts(path, **options):
    found = lint.lint(path, progress=False, **options)
    return {check: number for check, number in found.counts.items() if number}


def test_each_mistake_in_a_text_is_found_where_it_is(tmp_path):
    copy = LONG.replace("king", "KING").replace("north", "north:") + "!"
    near = LONG.replace("before the snow", "before the frost")
    records = [
        flag("who rode out?", [LONG], [copy, PLAIN, "Who rode out"]),
        flag("who rode out", [NEAR], [LONG, near + " fell", PLAIN + " twice"]),
        flag("where is it?", ["it is over there"], ["", PLAIN, PLAIN]),
        flag(
            "what else?",
            ["Moscow is a city in the north"],
            ["Москва это город на севере", "two words"],
        ),
        "{not json",
        '["a list"]',
        {"query": "no neg", "pos": ["a"]},
    ]
    found = lint.lint(lines(tmp_path / "a.jsonl", records), progress=False)
    assert found.layout == "flagembedding"
    assert (found.records, found.negatives) == (7, 11)
    expected = {"positive": 1, "query": 1, "other-positive": 1, "empty": 1, "repeated": 1,
                "script": 1, "length": 1, "short": 1, "unreadable": 3}  # fmt: skip
    assert {c: n for c, n in found.counts.items() if n} == expected
    where = {check: [(e.record, e.place) for e in found.examples[check]] for check in expected}
    assert where["positive"] == [(1, 0)]
    assert where["query"] == [(1, 2)]
    assert where["other-positive"] == [(2, 0)]
    assert where["repeated"] == [(3, 2)]
    assert where["script"] == [(4, 0)]
    assert where["short"] == [(4, 0)]
    assert [record for record, _ in where["unreadable"]] == [5, 6, 7]
    assert found.mistakes == 3 / 7


def test_near_copies_of_the_positive_are_found_and_others_are_not(tmp_path):
    words = LONG.split()
    near = " ".join([*words[:-1], "frost"])
    apart = " ".join(words[::2] + words[1::2])
    path = lines(tmp_path / "a.jsonl", [flag("q", [LONG], [near, apart, LONG[:40], PLAIN])])
    assert counts(path) == {"near-positive": 1}


def test_scores_that_are_none_or_above_the_positive(tmp_path):
    scores = {"pos_scores": [0.8, 0.7], "neg_scores": [0.6, 0.7, 0.9, math.inf]}
    negatives = [f"{PLAIN} {word}" for word in ("one", "two", "three", "four")]
    path = lines(tmp_path / "a.jsonl", [flag("q", [LONG, NEAR], negatives, **scores)])
    found = lint.lint(path, progress=False)
    assert found.counts == Counter({"above-positive": 2, "not-finite": 1})
    assert found.excess == pytest.approx([0.0, 0.2])
    assert "by 0.100 in the median, at most 0.200" in lint.report(found, path)


def test_hubs_and_texts_that_were_cut(tmp_path):
    texts = [f"{number} {PLAIN} {'x' * 200}"[:150] for number in range(30)]
    records = [flag(f"query {n}", [f"the answer number {n}"], [PLAIN, text])
               for n, text in enumerate(texts)]  # fmt: skip
    records[0]["neg"].append(PLAIN)  # once more for its query: no further one
    found = lint.lint(lines(tmp_path / "a.jsonl", records), progress=False)
    assert found.counts == Counter({"hub": 30, "cut": 1, "repeated": 1})
    assert found.examples["hub"][0].text == "for 30 queries"
    assert "30 texts have 150 characters" in found.examples["cut"][0].text


@pytest.fixture(scope="module")
def toy():
    animals = ["koala", "wombat", "emu", "dingo", "quokka", "numbat"]
    ends = ["and sleeps", "in a burrow", "on two legs", "with its pack", "near Perth", "on ants"]
    passages = [f"The {a} of Australia lives {b}" for a, b in zip(animals, ends, strict=True)]
    queries = [f"where in Australia lives the {name}?" for name in animals[::2]]
    dataset = from_texts("toy", passages, queries, [[0], [1, 2], [3]])
    return dataset, mining.mine(
        dataset, "bm25", mining.NaiveTopK(), 2, near_duplicates=None, progress=False
    )


@pytest.mark.parametrize("name", ["parquet", *export.FORMATS])
def test_what_nvret_writes_is_read_and_faultless(toy, tmp_path, name):
    suffix = ".parquet" if name == "parquet" else export.FORMATS[name].suffix
    path = tmp_path / f"mined{suffix}"
    export.write(*toy, path, name)
    found = lint.lint(path, progress=False)
    # bm25 may score a negative above the positive; near-copies are not of one another's pair
    assert not any(found.counts[check] for check in lint.MISTAKES if check != "near-positive")
    assert found.negatives >= 6


LAYOUTS = {
    "tuple": [
        {"question": "q one", "answer": LONG, "negative_1": PLAIN, "negative_2": LONG},
        {"question": "q two", "answer": NEAR, "negative_1": PLAIN, "negative_2": PLAIN + " b"},
    ],
    "labeled-list": [
        {"query": "q one", "document": [LONG, PLAIN, LONG], "labels": [1, 0, 0]},
        {"query": "q two", "document": [PLAIN, NEAR, PLAIN + " b"], "labels": [0, 1, 0]},
    ],
    "labeled-pair": [
        {"query": "q one", "passage": LONG, "label": 1},
        {"query": "q one", "passage": PLAIN, "label": 0},
        {"query": "q one", "passage": LONG, "label": 0.0},
        {"query": "q two", "passage": NEAR, "label": 1},
        {"query": "q two", "passage": PLAIN, "label": 0},
        {"query": "q two", "passage": PLAIN + " b", "label": 0},
    ],
    "tevatron": [
        {"query_id": "1", "query": "q one", "positive_passages": [{"title": "", "text": LONG}],
         "negative_passages": [{"title": "", "text": PLAIN}, {"title": None, "text": LONG}]},
        {"query_id": "2", "query": "q two", "positive_passages": [{"title": "", "text": NEAR}],
         "negative_passages": [{"title": "", "text": PLAIN}, {"title": "", "text": PLAIN + " b"}]},
    ],
    "automodel": [
        {"question": "q one", "pos_doc": [{"id": "a"}], "neg_doc": [{"id": "p"}, {"id": "a"}]},
        {"question": "q two", "pos_doc": [{"id": "b"}], "neg_doc": [{"id": "p"}, {"id": "c"}]},
    ],
    "scored-lists": [
        {"query_id": 1, "document_ids": ["a", "p", "a"], "scores": [0.9, 0.5, 0.4]},
        {"query_id": 2, "document_ids": ["b", "p", "c"], "scores": [0.9, 0.5, 0.4]},
    ],
    "scored-texts": [
        {"query": "q one", "answer": [LONG, PLAIN, LONG], "scores": [0.9, 0.5, 0.4]},
        {"query": "q two", "answer": [NEAR, PLAIN, PLAIN + " b"], "scores": [0.9, 0.5, 0.4]},
    ],
    "nvret": [
        {"query_id": q, "positive_id": p, "negative_id": n, "score": 0.5, "positive_score": 0.9}
        for q, p, n in (("1", "a", "p"), ("1", "a", "a"), ("2", "b", "p"), ("2", "b", "c"))
    ],
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_has_its_mistake_found_and_taken_out(tmp_path, name, suffix):
    path, fixed = tmp_path / f"a{suffix}", tmp_path / f"fixed{suffix}"
    if suffix == ".jsonl":
        lines(path, LAYOUTS[name])
    else:
        pq.write_table(pa.Table.from_pylist(LAYOUTS[name]), path)
    found = lint.lint(path, progress=False)
    check = "other-positive" if name == "labeled-pair" else "positive"
    assert found.layout == name
    assert {c: n for c, n in found.counts.items() if n} == {check: 1}
    done = lint.clean(path, found, fixed)
    assert done["dropped"] == 1
    again = lint.lint(fixed, progress=False)
    assert not any(again.counts[check] for check in lint.DROPPED)
    assert again.layout == name
    listed = [json.loads(line) for line in (tmp_path / "fixed.dropped.jsonl").open()]
    assert [row["check"] for row in listed] == [check]
    whole = name == "tuple"  # a trainer needs all of its columns
    assert again.negatives == found.negatives - (2 if whole else 1)


INLINE = [
    {"query": "q one", "pos_doc": LONG, "neg_doc": [PLAIN, LONG]},
    {"query": "q two", "pos_doc": [NEAR], "neg_doc": [PLAIN, PLAIN + " b"]},
]


@pytest.mark.parametrize("records", [INLINE, LAYOUTS["automodel"]], ids=["texts", "ids"])
@pytest.mark.parametrize("around", [None, {"corpus": {"path": "x"}}], ids=["lines", "object"])
def test_both_kinds_of_automodel(tmp_path, records, around):
    path, fixed = tmp_path / "a.json", tmp_path / "b.json"
    (tmp_path / "x").mkdir()  # the corpus
    if around is None:
        lines(path, records)
    else:
        path.write_text(json.dumps(around | {"data": records}, indent=1))
    found = lint.lint(path, progress=False)
    assert (found.layout, found.records, found.negatives) == ("automodel", 2, 4)
    assert counts(path) == {"positive": 1}
    assert lint.clean(path, found, fixed)["dropped"] == 1
    assert counts(fixed) == {}
    if around is not None:
        kept = json.loads(fixed.read_text())
        assert (kept["corpus"], len(kept["data"][0]["neg_doc"])) == ({"path": "x"}, 1)


def test_what_automodels_own_audit_looks_for(tmp_path):
    """Known positives, repeated ids, and scores that are missing or not finite; more of one row."""
    negatives = [
        {"id": "a", "score": 0.3}, {"id": "p", "score": 0.2}, {"id": "p", "score": 0.2},
        {"id": "c"}, {"id": "d", "score": float("-inf")}, {"id": "e", "score": 0.1},
    ]  # fmt: skip
    record = {"question": "q", "pos_doc": [{"id": "a", "score": 0.5}, {"id": "b", "score": 0.4}],
              "neg_doc": negatives}  # fmt: skip
    path, fixed = tmp_path / "mined.json", tmp_path / "fixed.json"
    path.write_text(json.dumps({"corpus": [], "data": [record]}))
    assert counts(path) == {"positive": 1, "repeated": 1, "not-finite": 2}
    lint.clean(path, lint.lint(path, progress=False), fixed)
    kept = json.loads(fixed.read_text())["data"][0]["neg_doc"]
    assert kept == [{"id": "p", "score": 0.2}, {"id": "e", "score": 0.1}]
    for one in negatives:
        one.pop("score", None)  # all are missing: a file without scores
    path.write_text(json.dumps({"corpus": [], "data": [record]}))
    assert counts(path) == {"positive": 1, "repeated": 1}


def test_automodels_checklist(tmp_path):
    """The six points that its guide says to verify in a mined file; ids of passages: below."""
    folder = tmp_path / "corpora" / "wiki"
    folder.mkdir(parents=True)
    (folder / "merlin_metadata.json").write_text(json.dumps({"corpus_id": "wikipedia"}))

    def record(name, corpus="wikipedia", own=0.9, **more):
        listed = [{"id": f"{name}{n}", "score": 0.5} for n in range(3)]
        first = {"question_id": name, "question": f"q {name}", "corpus_id": corpus}
        passages = {"pos_doc": [{"id": f"p{name}", "score": own}], "neg_doc": listed}
        return first | passages | more

    def counted(*records, corpus="corpora/wiki", **options):
        path = tmp_path / "mined.json"
        path.write_text(json.dumps({"corpus": [{"path": corpus}], "data": records}))
        found = lint.lint(path, progress=False, **options)
        return {check: number for check, number in found.counts.items() if number}

    assert counted(record("a"), record("b")) == {}
    assert counted(record("a"), record("b") | {"question_id": "a"}) == {"query-id": 1}
    assert counted(record("a"), record("b", corpus="news")) == {"corpus": 1}
    assert counted(record("a"), corpus="gone/wiki") == {"corpus": 2}  # the file, and its record
    siblings = [{"id": "pa", "score": 0.9}, {"id": "pb", "score": 0.8}]
    mined = [{"id": "pb", "score": 0.5}, {"id": "x", "score": 0.4}]
    assert counted(record("a", pos_doc=siblings, neg_doc=mined)) == {"positive": 1}
    sibling = record("a", question="q b", neg_doc=mined)
    assert counted(record("b", neg_doc=mined[1:]), sibling, needed=1) == {"other-positive": 1}
    assert counted(record("a", own=float("nan"))) == {"positive-score": 1}
    assert counted(record("a", own=None)) == {"positive-score": 1}
    assert counted(record("a", own=10**400)) == {"positive-score": 1}
    twice = record("a", neg_doc=mined[1:] * 2)
    assert counted(twice, needed=2) == {"repeated": 1, "short": 1}
    assert counted(record("a"), needed=3) == {}


def test_ids_that_the_corpus_lacks(tmp_path):
    path = lines(tmp_path / "a.jsonl", LAYOUTS["automodel"])
    assert counts(path, corpus=["a", "b", "p"]) == {"positive": 1, "unknown-id": 1}


WORDS = st.lists(st.sampled_from(["red", "Red!", "green", "blue", ""]), max_size=4)


@given(
    st.lists(st.tuples(st.sampled_from(["red", "q", "Q?"]), WORDS, WORDS), min_size=1, max_size=8)
)
def test_counts_are_those_of_a_loop_over_all_records(rows):
    part = lint._Part()
    layout = mined._layout(["query", "pos", "neg"])
    for number, row in enumerate(rows, 1):
        part.records += 1
        lint._look(part, number, mined.Row(*row), layout, None)
    total = lint._together([part], layout)
    labels = {(normalise(q), normalise(p)) for q, positives, _ in rows for p in positives}
    expected = Counter()
    for query, positives, negatives in rows:
        q, own = normalise(query), [normalise(p) for p in positives]
        seen = set()
        for text in map(normalise, negatives):
            expected["empty"] += not text
            expected["positive"] += bool(text) and text in own
            expected["query"] += bool(text) and text == q and text not in own
            expected["repeated"] += bool(text) and text in seen
            other = (q, text) in labels and text not in own
            expected["other-positive"] += bool(text) and other and text not in seen
            seen.add(text)
    for check in ("empty", "positive", "query", "repeated", "other-positive"):
        assert total.counts[check] == expected[check], check


def test_pieces_of_any_size_and_processes_give_what_one_gives(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = [f"{PLAIN} {number}" for number in range(30)]
    records = [
        flag(f"query {rng.integers(20)}", [texts[rng.integers(30)]],
             [texts[row] for row in rng.integers(30, size=rng.integers(3, 6))])
        for _ in range(60)
    ]  # fmt: skip
    path = lines(tmp_path / "a.jsonl", [*records, "broken"])
    whole = lint.lint(path, progress=False)
    assert whole.counts["other-positive"]
    for size in (300, 5000):
        monkeypatch.setattr(mined, "PIECE", size)
        monkeypatch.setattr(lint.os, "cpu_count", lambda cores=1 if size == 300 else 2: cores)
        parts = lint.lint(path, progress=False)
        assert (parts.records, parts.negatives, parts.counts) == (
            whole.records, whole.negatives, whole.counts,
        )  # fmt: skip
        assert parts.examples == whole.examples
        np.testing.assert_array_equal(parts.dropped, whole.dropped)


@pytest.mark.parametrize("text", ["", "\n\n", "no json", "[1]", '{"a": 1}', "\x00\x01"])
def test_a_file_of_no_known_layout_is_one_line(tmp_path, text, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    assert cli.main(["lint", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_what_no_record_may_hold_is_reported_and_no_error(tmp_path):
    odd = [None, 5, [], {}, "text", [None], [5], {"a": 1}, ["half a pair: \ud800"]]
    records = [flag("q", [LONG], [PLAIN])]
    records += [
        flag("q", [LONG], [PLAIN]) | {key: value}
        for key in ("query", "pos", "neg")
        for value in odd
    ]
    records += [flag("q", [LONG], [PLAIN], neg_scores=value, pos_scores=value) for value in odd]
    found = lint.lint(lines(tmp_path / "a.jsonl", records), progress=False)
    assert found.records == len(records)
    assert found.counts["unreadable"]
    lint.clean(tmp_path / "a.jsonl", found, tmp_path / "b.jsonl")
    lint.page(found, tmp_path / "a.jsonl").encode()


def test_the_command_reports_limits_and_fixes(tmp_path, capsys):
    path = lines(tmp_path / "a.jsonl", LAYOUTS["tevatron"])
    report, fixed = tmp_path / "report.json", tmp_path / "fixed.jsonl"
    arguments = ["lint", str(path), "--limit", "0.5", "--output", str(report), "--fix", str(fixed)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "! positive" in out
    assert "1 negatives dropped" in out
    found = json.loads(report.read_text())
    assert found["checks"][2] | {"examples": 0} == {
        "check": "positive", "what": "the positive itself", "count": 1, "share": 0.25,
        "mistake": True, "examples": 0,
    }  # fmt: skip
    assert cli.main(["lint", str(path), "--limit", "0.2"]) == 1
    assert cli.main(["lint", str(fixed), "--limit", "0"]) == 0
    assert cli.main(arguments) == 2  # both files are there already
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "a.txt"], "--output a.txt: expected .json or .html"),
        (["--fix", "a.parquet"], "--fix a.parquet: expected .jsonl"),
        (["--limit", "1.5"], "1.5"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_options_are_refused(tmp_path, capsys, options, message):
    path = lines(tmp_path / "a.jsonl", LAYOUTS["tevatron"])
    assert cli.main(["lint", str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_nothing_of_a_text_is_live_in_the_page(tmp_path):
    records = [flag("q", [LONG], [text, text]) for text in hostile.TEXTS]
    path = lines(tmp_path / "a.jsonl", records)
    page = lint.page(lint.lint(path, progress=False), path)
    hostile.check(page)


def test_a_model_counts_likely_answers(tmp_path):
    same = "Emma is a novel of 1815 by the English author Jane Austen."
    records = [flag(f"who wrote Emma {n}?", [same], [same + " indeed", PLAIN]) for n in range(40)]
    path = lines(tmp_path / "a.jsonl", records)
    judged = lint.judge(path, "potion-base-8m", 30)
    assert judged["number"] == 30
    assert 0.2 < judged["rate"] < 0.8
    assert judged["low"] < judged["rate"] < judged["high"]
    with pytest.raises(NvretError, match="has ids and no texts"):
        lint.judge(lines(tmp_path / "b.jsonl", LAYOUTS["automodel"]), "potion-base-8m", 3)


def test_a_parquet_that_is_none(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(NvretError, match=r"a\.parquet: cannot be read"):
        lint.lint(path)
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(NvretError, match="no known layout has the columns a;"):
        lint.lint(path)
