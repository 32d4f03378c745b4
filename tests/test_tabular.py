"""Data of one's own: every format gives the same set, and every fault its file and row."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.files import write_rows
from nvret import data, evaluation, negatives
from nvret.io import inputs, tabular, vectors
from nvret.io.inputs import Columns
from nvret.study import config, mixtures
from nvret.utils.errors import NvretError

CORPUS = [
    {"_id": "d0", "title": "Paris, “capital”", "text": 'It is the "capital"\nof France'},
    {"_id": "d1", "title": "", "text": "Lyon is large, too"},
    {"_id": "007", "title": "", "text": "NA"},
]
QUERIES = [{"_id": "q0", "text": "what, then?"}, {"_id": "q1", "text": "null"}]
QRELS = [
    {"query-id": "q0", "corpus-id": "d0", "score": 1},
    {"query-id": "q0", "corpus-id": "007", "score": 0},
    {"query-id": "q1", "corpus-id": "007", "score": 2},
]


def plain(rows, suffix):
    """A TSV has no line breaks."""
    if suffix != ".tsv":
        return rows
    return [
        {k: v.replace("\n", " ") if isinstance(v, str) else v for k, v in r.items()} for r in rows
    ]


@pytest.mark.parametrize("suffix", tabular.SUFFIXES)
def test_every_format_gives_the_same_set(tmp_path, suffix):
    corpus, queries, qrels = (
        write_rows(tmp_path / f"{name}{suffix}", plain(rows, suffix))
        for name, rows in (("corpus", CORPUS), ("queries", QUERIES), ("qrels", QRELS))
    )
    found = inputs.load_files(corpus, queries, qrels, progress=False)
    rows = plain(CORPUS, suffix)
    assert found.corpus["id"].to_pylist() == ["d0", "d1", "007"]
    assert found.corpus["title"].to_pylist() == [row["title"] for row in rows]
    assert found.corpus["text"].to_pylist() == [row["text"] for row in rows]
    assert found.query_texts == ["what, then?", "null"]
    assert [rows.tolist() for rows in found.positives] == [[0], [2]]
    assert found.qrels["score"].to_pylist() == [1, 0, 2]


text = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(
    lambda value: bool(value.strip())
)


@examples(30)
@given(st.lists(text, min_size=1, max_size=6))
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    rows = [{"id": f"x{i}", "text": value} for i, value in enumerate(texts)]
    for suffix in (".jsonl", ".parquet", ".csv"):
        path = write_rows(folder / f"queries{suffix}", rows)
        found = inputs.texts(path, title=False, progress=False)
        assert found["text"].to_pylist() == texts


@pytest.mark.parametrize(
    "header",
    [("query_id", "doc_id", "relevance"), ("qid", "pid", "label"), ("Query-ID", "docid", "rel")],
)
def test_spellings_of_qrels(tmp_path, header):
    rows = [dict(zip(header, row.values(), strict=True)) for row in QRELS]
    table, _ = inputs.qrels(write_rows(tmp_path / "qrels.csv", rows), progress=False)
    assert table.to_pylist()[2] == {"query_id": "q1", "corpus_id": "007", "score": 2}


def test_qrels_of_two_columns_are_positives(tmp_path):
    rows = [{"query-id": "q0", "corpus-id": "d0"}]
    table, _ = inputs.qrels(write_rows(tmp_path / "qrels.tsv", rows), progress=False)
    assert table["score"].to_pylist() == [1]
    rows = [{"query-id": "q0", "corpus-id": "d0", "useful": 0}]  # a third column says something
    with pytest.raises(NvretError, match="no column 'score'; it has query-id, corpus-id, useful"):
        inputs.qrels(write_rows(tmp_path / "qrels.tsv", rows), progress=False)


def test_named_columns_and_whole_numbers_as_ids(tmp_path):
    rows = [{"key": 3, "head": "T", "body": "x"}, {"key": 4, "head": None, "body": "y"}]
    columns = Columns(id="key", text="body", title="head")
    for suffix in (".parquet", ".jsonl"):
        path = write_rows(tmp_path / f"corpus{suffix}", rows)
        found = inputs.texts(path, title=True, columns=columns, progress=False)
        assert found.to_pylist() == [
            {"id": "3", "title": "T", "text": "x"},
            {"id": "4", "title": "", "text": "y"},
        ]


def test_unjudged_queries_keep_their_rows_only_when_asked(tmp_path):
    paths = [
        write_rows(tmp_path / "corpus.jsonl", CORPUS),
        write_rows(tmp_path / "queries.jsonl", QUERIES),
        write_rows(tmp_path / "qrels.tsv", QRELS[2:]),
    ]
    assert inputs.load_files(*paths, progress=False).queries["id"].to_pylist() == ["q1"]
    found = inputs.load_files(*paths, keep_unjudged=True, progress=False)
    assert found.queries["id"].to_pylist() == ["q0", "q1"]
    assert [rows.tolist() for rows in found.pairs] == [[1], [2]]


ROW = " below the header"
FAULTS = {
    "no such file": ("x.csv", None, r"x\.csv: no such file"),
    "kind of file": ("x.xlsx", b"id", r"x\.xlsx: unknown kind of file, expected \.jsonl"),
    "empty csv": ("x.csv", b"", r"x\.csv: empty; expected a header"),
    "no rows": ("x.csv", b"id,text\n", r"x\.csv: empty; expected rows"),
    "empty jsonl": ("x.jsonl", b"\n\n", r"x\.jsonl: empty"),
    "column": ("x.csv", b"id,txt\n1,a\n", r"no column 'text'; it has id, txt \(did you mean 'txt'"),
    "both ids": ("x.csv", b"_id,id,text\n1,1,a\n", r"both '_id' and 'id' could be meant"),
    "column twice": ("x.csv", b"id,text,text\n1,a,b\n", r"column 'text' stands there more than"),
    "id twice": (
        "x.csv",
        b"id,text\n1,a\n2,b\n1,c\n",
        rf"x\.csv: row 3{ROW}: id '1' stands in row 1 too",
    ),
    "line of an id": (
        "x.jsonl",
        b'{"id": 1, "text": "a"}\n\n{"id": "1", "text": "b"}',
        r"x\.jsonl:3: id '1' stands in line 1 too",
    ),
    "no id": ("x.tsv", b"id\ttext\n1\ta\n\tb\n", rf"row 2{ROW}: 'id' is ''; expected a non-empty"),
    "id of another type": ("x.jsonl", b'{"id": 1.5, "text": "a"}', r"x\.jsonl:1: 'id' is 1\.5"),
    "key": ("x.jsonl", b'{"id": 1, "text": "a"}\n{"id": 2}', r"x\.jsonl:2: 'text' is None"),
    "no text": ("x.csv", b"id,text\n1,a\n2, \n", rf"row 2{ROW}: query '2' has no text"),
    "cells": (
        "x.csv",
        b"id,text\n1,a\n2,b,c\n",
        rf"row 2{ROW}: '2,b,c' has 3 columns, expected 2",
    ),
    "latin-1 csv": ("x.csv", "id,text\n1,é\n".encode("latin-1"), r"x\.csv:2: not UTF-8"),
    "latin-1 and cells": ("x.csv", "id,text\n1,é,\n".encode("latin-1"), r"x\.csv:2: not UTF-8"),
    "latin-1 header": ("x.csv", "é,text\n1,a\n".encode("latin-1"), r"x\.csv:1: not UTF-8"),
    "latin-1 jsonl": (
        "x.jsonl",
        '{"id": 1, "text": "é"}'.encode("latin-1"),
        r"x\.jsonl:1: not UTF",
    ),
    "surrogate": (
        "x.jsonl",
        rb'{"id": 1, "text": "\ud800"}',
        r"x\.jsonl:1: 'text' cannot be written as UTF-8",
    ),
    "deep": ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1: no JSON"),
    "digits": ("x.jsonl", b'{"id": ' + b"1" * 5000 + b"}", r"x\.jsonl:1: no JSON"),
    "parquet": ("x.parquet", b"PAR1 not", r"x\.parquet: cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_and_row(tmp_path, fault):
    name, content, message = FAULTS[fault]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(NvretError, match=message) as caught:
        inputs.texts(tmp_path / name, title=False, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["1", None], "text": ["a", "b"]}, r"x\.parquet: row 2: 'id' is None"),
        ({"id": ["1", "2"], "text": ["a", None]}, r"x\.parquet: row 2: 'text' is None"),
        ({"id": ["1"], "text": [3]}, r"x\.parquet: row 1: 'text' is 3; expected a string"),
        ({"id": [1.5], "text": ["a"]}, r"x\.parquet: row 1: 'id' is 1\.5; expected a non-empty"),
        ({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, "empty"),
        (
            {"id": ["1"], "text": pa.array([b"\xff"]).view(pa.string())},
            r"x\.parquet: column 'text' is not UTF-8",
        ),
    ],
)
def test_faults_of_parquet(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "x.parquet", store_schema=False)
    with pytest.raises(NvretError, match=message):
        inputs.texts(tmp_path / "x.parquet", title=False, progress=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0,d0,1\nq9,d0,1\n", rf"row 2{ROW}: query_id 'q9' is not in the queries"),
        ("q0,d9,1\n", rf"row 1{ROW}: corpus_id 'd9' is not in the corpus"),
        ("q0,d0,1\nq0,d0,2\n", rf"row 2{ROW}: pair 'q0', 'd0' stands in row 1 too"),
        ("q0,d0,0.5\n", rf"row 1{ROW}: score is '0.5'; expected a whole number"),
        ("q0,d0,nan\n", "expected a whole number"),
        ("q0,d0,1e300\n", "expected a whole number"),
        ("q0,d0,\n", "expected a whole number"),
    ],
)
def test_faults_of_qrels(tmp_path, content, message):
    (tmp_path / "qrels.csv").write_text("query-id,corpus-id,score\n" + content)
    corpus, queries = (
        write_rows(tmp_path / "corpus.jsonl", CORPUS),
        write_rows(tmp_path / "queries.jsonl", QUERIES),
    )
    with pytest.raises(NvretError, match=message):
        inputs.load_files(corpus, queries, tmp_path / "qrels.csv", progress=False)


def test_a_judged_query_without_a_positive(tmp_path):
    corpus, queries = (
        write_rows(tmp_path / "corpus.jsonl", CORPUS),
        write_rows(tmp_path / "queries.jsonl", QUERIES),
    )
    qrels = write_rows(tmp_path / "qrels.tsv", QRELS[1:])
    found = inputs.load_files(corpus, queries, qrels, progress=False)
    with pytest.raises(NvretError, match="mine: query 'q0' has no positive"):
        inputs.check_positives(found.qrels, "mine")


# pairs

PAIRS = [
    {"anchor": "where?", "positive": "here"},
    {"anchor": "who?", "positive": "she"},
    {"anchor": "where?", "positive": "there"},
    {"anchor": "where else?", "positive": "here"},
]


@pytest.mark.parametrize("suffix", tabular.SUFFIXES)
def test_pairs(tmp_path, suffix):
    found = inputs.load_pairs(write_rows(tmp_path / f"pairs{suffix}", PAIRS), progress=False)
    assert found.query_texts == ["where?", "who?", "where else?"]
    assert found.passages == ["here", "she", "there"]
    assert [rows.tolist() for rows in found.positives] == [[0, 2], [1], [0]]


def test_pairs_of_lists_and_of_more_columns(tmp_path):
    rows = [{"query": "a", "pos": ["x", "y"], "neg": ["n"]}, {"query": "b", "pos": ["z"]}]
    found = inputs.load_pairs(write_rows(tmp_path / "pairs.jsonl", rows), progress=False)
    assert [rows.tolist() for rows in found.positives] == [[0, 1], [2]]
    assert found.passages == ["x", "y", "z"]
    rows = [{"query": "a", "positive_1": "x", "positive_2": ""}]
    rows += [{"query": "b", "positive_1": "y", "positive_2": "z"}]
    found = inputs.load_pairs(write_rows(tmp_path / "pairs.csv", rows), progress=False)
    assert [rows.tolist() for rows in found.positives] == [[0], [1, 2]]


def test_pairs_with_a_corpus(tmp_path):
    corpus = [{"_id": "p0", "title": "T", "text": "here"}, {"_id": "d1", "text": "she"}]
    corpus = write_rows(tmp_path / "corpus.jsonl", corpus)
    found = inputs.load_pairs(
        write_rows(tmp_path / "pairs.csv", PAIRS), corpus=corpus, progress=False
    )
    assert found.passages == ["T here", "she", "here", "there"]
    assert len(set(found.corpus["id"].to_pylist())) == 4
    assert [rows.tolist() for rows in found.positives] == [[2, 3], [1], [2]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"query": "a", "positive": ""}], rf"row 1{ROW}: query 'a' has no positive in positive"),
        ([{"query": " ", "positive": "x"}], rf"row 1{ROW}: 'query' has no text"),
        ([{"query": "a", "positive": " "}], rf"row 1{ROW}: 'positive' has no text"),
        ([{"one": "a", "two": "b", "three": "c"}], "no column 'query' or 'anchor' or 'question'"),
        ([{"query": "a", "yes": "b", "no": "c"}], "no column of positives; it has query, yes, no"),
    ],
)
def test_faults_of_pairs(tmp_path, rows, message):
    with pytest.raises(NvretError, match=message):
        inputs.load_pairs(write_rows(tmp_path / "pairs.csv", rows), progress=False)


def test_positives_that_are_no_text(tmp_path):
    path = write_rows(tmp_path / "pairs.jsonl", [{"query": "a", "pos": ["x", 3]}])
    with pytest.raises(NvretError, match=r"pairs\.jsonl:1: 'pos' is 3; expected text"):
        inputs.load_pairs(path, progress=False)


# large files, and files that are none


NASTY = [
    b'{"a":"x"}{"a":"y"}', b'{"a":"x"}null', b'{"a":"x"} null {"a":"y"}', b'{"a":"x"}[2]null{}',
    b'{"a":"x","c":', b'{"d":1}}{"a":"y"}', b'{"a":"x","c":{}',
    b"null", b"[1]", b"5", b'"a"', b'{"a":"x\ty"}', b'{"a":"x\x01"}', b'{"a":"x","a":"y"}',
    b'{"a":"\\ud800"}', b'{"a":"\\udc00"}', b'{"a":"\\ud83d\\ude00"}', b'{"a":1}', b'{"a":true}',
    b'{"a":["x"]}', b'{"a":{"b":"x"}}', b'{"a":"x","c":NaN}', b'{"a":"x","c":1e999}',
    b'{"a":"\xff"}', b'{"c":"\xff"}', b'{"a":"x",}', b'{"a":"x"},', b"{'a':'x'}", b'{"a":"x"} x',
    b'{"a":"\\x"}', b'{"a":"x","c":01}', b'{"a":"x"', b'"a":"x"}', b'{"a" "x"}', b"", b" ", b"\x0c",
    b' {"a":"x"}', b'{"a":"x"}\r', b'{"a":"x"}\x0c', b'{"a":/* */"x"}', b'{"a":"x}null"}',
]  # fmt: skip


def by_python(lines, columns):
    """Each line by Python's parser; None where one of them is no object, with texts alone there."""
    rows = []
    for line in lines:
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        rows.append([value.get(name) for name in columns])
        if not all(isinstance(one, str) or one is None for one in rows[-1]):
            return None
    return {name: [row[place] for row in rows] for place, name in enumerate(columns)}


@examples(300)
@given(st.lists(st.sampled_from([*NASTY, b'{"a":"x"}', b'{"a":"y","b":"z"}']), min_size=1))
def test_arrow_reads_lines_as_python_does_or_not_at_all(lines):
    found = tabular._parsed([line + b"\n" for line in lines], ["a", "b"])
    assert found is None or found == by_python(lines, ["a", "b"])


@examples(100)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.text() | st.none()), min_size=1),
       st.booleans())  # fmt: skip
def test_arrow_reads_plain_lines(rows, escaped):
    texts = whole(rows)
    lines = [json.dumps(row, ensure_ascii=escaped).encode() + b"\n" for row in texts]
    found = tabular._parsed(lines, ["a", "b"])
    assert found == by_python(lines, ["a", "b"])


def whole(rows):
    """Without halves of surrogate pairs, which are left to Python."""
    return [{k: v and v.encode("utf-8", "ignore").decode() for k, v in row.items()} for row in rows]


def test_a_fault_in_a_late_block_has_its_line(tmp_path, monkeypatch):
    """What Arrow does not read, Python does: the rows before and after it are the same."""
    monkeypatch.setattr(tabular, "PIECE", 200)
    rows = [{"id": str(row), "text": f"text {row}"} for row in range(100)]
    lines = [json.dumps(row) for row in rows]
    lines[40:40], lines[60] = ["", " "], json.dumps({"id": 58, "text": "text 58"})
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    found = inputs.texts(path, title=False, progress=False)
    assert found.to_pylist() == rows
    path.write_text("\n".join([*lines, '{"id": "0", "text": ""}']))
    with pytest.raises(NvretError, match=r"corpus.jsonl:103: query '0' has no text"):
        inputs.texts(path, title=False, progress=False)
    path.write_text("\n".join([*lines, '{"id": "0", "text": "a"}']))
    with pytest.raises(NvretError, match=r"corpus.jsonl:103: id '0' stands in line 1 too"):
        inputs.texts(path, title=False, progress=False)
    path.write_text("\n".join([*lines, '{"id": "0", "text": 1}']))
    with pytest.raises(NvretError, match=r"corpus.jsonl:103: 'text' is 1; expected a string"):
        inputs.texts(path, title=False, progress=False)


def test_pieces_are_joined_and_rows_keep_their_places(tmp_path, monkeypatch):
    corpus = [{"_id": f"d{i}", "title": "", "text": "a" * (i + 1)} for i in range(300)]
    qrels = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": i % 2} for i in range(300)]
    queries = [{"_id": f"q{i}", "text": "?"} for i in range(300)]
    pairs = [{"query": f"q{i % 7}", "positive": f"p{i}"} for i in range(300)]
    parts = {"corpus": corpus, "queries": queries, "qrels": qrels, "pairs": pairs}

    def load(suffix):
        paths = [write_rows(tmp_path / f"{name}{suffix}", rows) for name, rows in parts.items()]
        files = inputs.load_files(*paths[:3], progress=False)
        return files, inputs.load_pairs(paths[3], progress=False)

    for suffix in tabular.SUFFIXES:
        monkeypatch.setattr(tabular, "PIECE", 1 << 23)
        whole = load(suffix)
        monkeypatch.setattr(tabular, "PIECE", 100)
        for one, other in zip(load(suffix), whole, strict=True):
            assert one.fingerprint == other.fingerprint
            assert one.passages == other.passages
        assert load(suffix)[0].corpus["text"].num_chunks > 10
    faults = {
        "_id 'd3' stands in line 4 too": {"_id": "d3", "title": "", "text": "b"},
        "passage 'x' has no text": {"_id": "x", "title": " ", "text": ""},
        "'text' is None; expected a string": {"_id": "x"},
    }
    for message, row in faults.items():
        path = write_rows(tmp_path / "corpus.jsonl", [*corpus, row])
        with pytest.raises(NvretError, match=rf"corpus\.jsonl:301: {message}"):
            inputs.texts(path, title=True, progress=False)
    path = write_rows(tmp_path / "qrels.tsv", [*qrels, qrels[5]])
    with pytest.raises(NvretError, match=f"row 301{ROW}: pair 'q5', 'd5' stands in row 6 too"):
        inputs.qrels(path, progress=False)


def test_a_reader_holds_no_more_than_a_piece_as_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(tabular, "PIECE", 10_000)
    rows = [{"id": f"d{i}", "text": "a" * 1000} for i in range(100)]
    for suffix in tabular.SUFFIXES:
        path = write_rows(tmp_path / f"x{suffix}", rows)
        sizes = [len(part) for part in tabular.read(path, ["id", "text"], progress=False)]
        assert sum(sizes) == 100
        assert max(sizes) <= 10


@pytest.mark.thorough
def test_more_text_than_an_array_of_strings_holds(tmp_path):
    """In few texts, from JSON Lines and Parquet through all that moves texts about."""
    if psutil.virtual_memory().available < 17e9:
        pytest.skip("mteb's copies of so much text take 16 GB of memory")
    text, number = "passage words " * 160_000, 960
    assert len(text) * number > 2**31
    with (tmp_path / "corpus.jsonl").open("w") as stream:
        for row in range(number):
            stream.write(f'{{"_id": "d{row}", "text": "{row} {text}"}}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0", "text": "which?"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td7\t1\n")
    dataset = data.load(tmp_path, drop_empty=True, progress=False)
    (tmp_path / "corpus.jsonl").unlink()
    assert dataset.corpus.take(pa.array([number - 1, 0]))["id"].to_pylist() == ["d959", "d0"]
    part = dataset.select(["q0"], corpus_ids=[f"d{row}" for row in range(1, number)])
    assert part.corpus.num_rows == number - 1
    merged = mixtures.merge({"a": part, "b": part})
    assert merged.corpus["id"][-1].as_py() == "b/d959"
    del part, merged
    pq.write_table(dataset.corpus, tmp_path / "corpus.parquet", compression="lz4")
    again = inputs.texts(tmp_path / "corpus.parquet", title=True, progress=False)
    (tmp_path / "corpus.parquet").unlink()
    assert again["text"].nbytes > 2**31
    assert again["text"][number - 1] == dataset.corpus["text"][number - 1]
    del again
    ranked = evaluation.evaluate_ranking(np.array([[7, 0]]), np.array([[2.0, 1.0]]), dataset)
    assert ranked.values("ndcg_at_10").tolist() == [1.0]
    assert dataset.passages[number - 1] == f"959 {text}"


@pytest.mark.parametrize("suffix", tabular.SUFFIXES)
def test_what_is_no_file(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.mkdir()
    with pytest.raises(NvretError, match="is a folder, expected a file of rows"):
        inputs.texts(path, title=False, progress=False)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(NvretError, match="is no plain file, expected a file of rows"):
        inputs.texts(path, title=False, progress=False)
    for read, expected in (
        (negatives.load, "Parquet from nvret mine"),
        (lambda path: vectors.read(path, 1, "queries"), r"an array of NumPy \(.npy\)"),
        (config.load, "a YAML file"),
    ):
        with pytest.raises(NvretError, match=f"is no plain file, expected {expected}"):
            read(path)
        with pytest.raises(NvretError, match=f"is a folder, expected {expected}"):
            read(tmp_path)


@pytest.mark.parametrize("suffix", tabular.SUFFIXES)
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_a_file_without_permission(tmp_path, monkeypatch, suffix, closed):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / f"x{suffix}", QUERIES)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are root's own
    (folder / f"x{suffix}" if closed == "file" else folder).chmod(0)
    root = os.geteuid() == 0
    try:
        if root:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(NvretError, match="Permission denied") as caught:
            inputs.texts(Path("folder", f"x{suffix}"), title=False, progress=False)
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert "\n" not in str(caught.value)


def test_a_compressed_file(tmp_path):
    for suffix in (".jsonl", ".csv", ".tsv"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(gzip.compress(b'{"id": 1, "text": "a"}'))
        with pytest.raises(NvretError, match=r"compressed by gzip; expected text") as caught:
            inputs.texts(path, title=False, progress=False)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", tabular.SUFFIXES)
@pytest.mark.parametrize("change", ["grown", "gone", "other columns"])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, suffix, change):
    path = write_rows(tmp_path / f"x{suffix}", [{"id": i, "text": "a" * 50} for i in range(50)])
    names, texts = tabular.names, tabular.Rows.texts

    def alter():
        if change == "grown":
            with path.open("ab") as stream:
                stream.write(b"\n")
        elif change == "gone":
            path.unlink()
        else:
            write_rows(path, [{"ident": 1, "words": "a"}])

    if change == "other columns":  # after the header was read
        monkeypatch.setattr(tabular, "names", lambda path: (names(path), alter())[0])
    else:  # after the first piece
        monkeypatch.setattr(tabular, "PIECE", 1000)
        pieces = iter([alter])
        monkeypatch.setattr(
            tabular.Rows, "texts", lambda *a, **k: (next(pieces, int)(), texts(*a, **k))[1]
        )
    message = {"grown": "has changed while it was read", "gone": "no such file"}.get(
        change, "x.jsonl:1: 'id' is None" if suffix == ".jsonl" else "has changed .*: no column"
    )
    with pytest.raises(NvretError, match=message) as caught:
        inputs.texts(path, title=False, progress=False)
    assert "\n" not in str(caught.value)
