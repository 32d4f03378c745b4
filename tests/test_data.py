"""Data sets: validation, BEIR folders, splits and leaks."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers import examples
from nvret import data
from nvret.data import RetrievalDataset
from nvret.study import splits
from nvret.utils.errors import NvretError


def make(passages=3, queries=2, qrels=None, **changes):
    """A small set; passage i is p<i>, and query i is answered by passage i."""
    qrels = [(i, i, 1) for i in range(queries)] if qrels is None else qrels
    tables = {
        "corpus": {
            "id": [f"p{i}" for i in range(passages)],
            "title": [""] * passages,
            "text": [f"passage number {i} says word{i}" for i in range(passages)],
        },
        "queries": {
            "id": [f"q{i}" for i in range(queries)],
            "text": [f"what {i}?" for i in range(queries)],
        },
        "qrels": {
            "query_id": [f"q{q}" for q, _, _ in qrels],
            "corpus_id": [f"p{p}" for _, p, _ in qrels],
            "score": [s for _, _, s in qrels],
        },
    }
    for key, column in changes.items():
        part, name = key.split("__")
        tables[part][name] = column
    return RetrievalDataset("tiny", **{part: pa.table(table) for part, table in tables.items()})


def test_views():
    dataset = make(4, 3, [(2, 0, 1), (0, 3, 2), (0, 1, 1), (1, 2, 0)], corpus__title=[*"abc", ""])
    assert dataset.passages[0] == "a passage number 0 says word0"
    assert dataset.passages[3] == "passage number 3 says word3"
    assert [rows.tolist() for rows in dataset.positives] == [[1, 3], [], [0]]
    assert dataset.positives[0].dtype == np.int64
    assert [rows.tolist() for rows in dataset.pairs] == [[0, 0, 2], [1, 3, 0]]


def test_fingerprint_is_of_the_content():
    assert make().fingerprint == make().fingerprint
    assert make().fingerprint != make(corpus__text=["a", "b", "c"]).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus__id": ["p0", "p1", "p0"]}, "tiny: corpus: id 'p0' stands there more than once"),
        ({"corpus__text": ["a", " ", "c"]}, "tiny: corpus row 1: 'p1' has no text"),
        ({"corpus__text": ["a", None, "c"]}, "tiny: corpus row 1: text is missing"),
        ({"corpus__text": [1, 2, 3]}, "tiny: corpus: column 'text' is int64; expected text"),
        ({"queries__text": ["a", "\t"]}, "tiny: queries row 1: 'q1' has no text"),
        (
            {"qrels__corpus_id": ["p0", "p9"]},
            "tiny: qrels row 1: corpus_id 'p9' is not in the corpus",
        ),
        ({"qrels__query_id": ["x", "q1"]}, "tiny: qrels row 0: query_id 'x' is not in the queries"),
        ({"qrels__score": [1.0, float("nan")]}, "tiny: qrels row 1: score is missing"),
        ({"qrels__score": [1.0, 0.5]}, "tiny: qrels: column 'score'"),
        (
            {"qrels__query_id": ["q0", "q0"], "qrels__corpus_id": ["p1", "p1"]},
            "the pair 'q0', 'p1' is judged more than once",
        ),
    ],
)
def test_bad_tables_are_refused(changes, message):
    with pytest.raises(NvretError, match=message):
        make(**changes)


def test_a_title_alone_is_a_passage():
    assert make(corpus__title=["", "b", ""], corpus__text=["a", "", "c"]).passages[1] == "b"


def test_select():
    dataset = make(3, 3, [(0, 0, 1), (0, 2, 0), (1, 1, 1), (2, 2, 1)])
    part = dataset.select(["q1", "q0"], corpus_ids=["p1", "p0"], name="part")
    assert part.name == "part"
    assert part.queries["id"].to_pylist() == ["q0", "q1"]
    assert part.qrels["corpus_id"].to_pylist() == ["p0", "p1"]  # the judgement 0 of p2 is gone
    with pytest.raises(NvretError, match="query 'q2' would lose its relevant passage 'p2'"):
        dataset.select(["q2"], corpus_ids=["p0"])
    with pytest.raises(NvretError, match="tiny: queries: no id 'q7'"):
        dataset.select(["q7"])


# BEIR folders


@pytest.fixture
def folder(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")

    write("corpus.jsonl", [{"_id": "d1", "title": "T", "text": "x"}, {"_id": "d2", "text": "y"}])
    write("queries.jsonl", [{"_id": "q1", "text": "a?"}, {"_id": "q2", "text": "b?"}])
    (tmp_path / "qrels").mkdir()
    header = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "test.tsv").write_text(header + "q1\td1\t1\n")
    (tmp_path / "qrels" / "train.tsv").write_text(header + "q2\td2\t2\nq2\td1\t0\n")
    return tmp_path


def test_beir_folder(folder):
    test = data.load(folder, progress=False)
    assert test.passages == ["T x", "y"]
    assert test.query_texts == ["a?"]
    train = data.load(str(folder), split="train", progress=False)
    assert train.query_texts == ["b?"]
    assert [rows.tolist() for rows in train.positives] == [[1]]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", None, r"corpus.jsonl: no such file"),
        ("corpus.jsonl", '{"_id": "d1"', r"corpus.jsonl:1: no JSON"),
        ("corpus.jsonl", '\n["d1"]', r"corpus.jsonl:2: expected a JSON object"),
        ("corpus.jsonl", '{"_id": "d1", "text": 3}', r"corpus.jsonl:1: 'text' is 3"),
        ("corpus.jsonl", '{"_id": "", "text": "x"}', r"corpus.jsonl:1: '_id' is ''"),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "x"}\n{"_id": "d1", "text": "y"}',
            r"corpus.jsonl:2: _id 'd1' stands in line 1 too",
        ),
        ("corpus.jsonl", '{"_id": "d1", "text": ""}', r"'d1' has no text"),
        ("queries.jsonl", '{"_id": "q1", "text": " "}', r"queries.jsonl:1: query 'q1' has no text"),
        ("qrels/test.tsv", "q1\td1\t1\n", r"test.tsv: no column 'query-id'; it has q1, d1, 1"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\n",
            r"test.tsv: row 1 below the header: 'q1\\td1' has 2 columns, expected 3",
        ),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\tno\n",
            r"test.tsv: row 1 below the header: score is 'no'; expected a whole number",
        ),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td9\t1\n",
            r"test.tsv: row 1 below the header: corpus_id 'd9' is not in the corpus",
        ),
    ],
)
def test_beir_errors_name_file_and_line(folder, file, text, message):
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(NvretError, match=message):
        data.load(folder, progress=False)


def test_missing_split_lists_those_there_are(folder):
    with pytest.raises(NvretError, match="no qrels named 'dev'; there are: test, train"):
        data.load(folder, split="dev", progress=False)


def test_empty_passages_can_be_dropped(folder):
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "d3", "title": "", "text": " "}\n')
    with pytest.raises(NvretError, match="'d3' has no text"):
        data.load(folder, progress=False)
    assert len(data.load(folder, drop_empty=True, progress=False).corpus) == 2


def test_hub_layout(tmp_path):
    """The files of a hub repository in mteb's form, read from disk."""
    from nvret.io import beir

    pq.write_table(pa.table({"_id": ["d1", "d2"], "text": ["x", "y"]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"_id": ["q1", "q2"], "text": ["a", "b"]}), tmp_path / "q.parquet")
    for part, query in (("test", "q1"), ("train", "q2")):
        table = pa.table({"query-id": [query], "corpus-id": ["d2"], "score": [1.0]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: corpus\n  data_files: [{split: corpus, path: c.parquet}]\n"
        "- config_name: queries\n  data_files: [{split: queries, path: q.parquet}]\n"
        "- config_name: default\n  data_files:\n"
        "  - {split: test, path: test.parquet}\n  - {split: train, path: train.parquet}\n---\n"
    )
    dataset = RetrievalDataset("hub", **beir.read_hub_folder(tmp_path, None))
    assert dataset.queries["id"].to_pylist() == ["q1"]
    assert dataset.passages == ["x", "y"]
    train = RetrievalDataset("hub", **beir.read_hub_folder(tmp_path, "train"))
    assert train.query_texts == ["b"]


def test_unknown_name_lists_the_known():
    with pytest.raises(NvretError, match=r"no known data set \(known: .*squadshifts-reddit"):
        data.load("squad-shifts")
    with pytest.raises(NvretError, match="40 hex digits"):
        data.load("mteb/fiqa", source="hub")


# splits and leaks


def clustered(passages, links, clusters):
    """A set with given (query, passage) links and passage clusters."""
    queries = 1 + max(q for q, _ in links)
    base = make(passages, queries, [(q, p, 1) for q, p in sorted(set(links))])
    corpus = base.corpus.append_column("cluster", pa.array(clusters, pa.int32()))
    return RetrievalDataset("tiny", corpus, base.queries, base.qrels)


@st.composite
def random_sets(draw):
    passages = draw(st.integers(30, 60))
    queries = draw(st.integers(20, 40))
    links = [(q, draw(st.integers(0, passages - 1))) for q in range(queries)]
    links += draw(st.lists(st.sampled_from(links).map(lambda x: (x[0], 0)), max_size=2))
    clusters = draw(st.lists(st.integers(0, 40), min_size=passages, max_size=passages))
    return clustered(passages, links, clusters)


@examples(40)
@given(random_sets(), st.integers(0, 5), st.randoms())
def test_split_separates_groups_and_ignores_the_order(dataset, seed, random):
    try:
        parts = splits.split(dataset, dev=0.3, test=0.3, seed=seed)
    except NvretError:  # a part without a query
        assume(False)
    cluster = dict(zip(*dataset.corpus.select(["id", "cluster"]).to_pydict().values(), strict=True))
    ids = [part.queries["id"].to_pylist() for part in parts]
    assert sorted(itertools.chain(*ids)) == sorted(dataset.queries["id"].to_pylist())
    held_out = set()
    for part in parts[1:]:
        assert part.corpus.num_rows == dataset.corpus.num_rows
        names = part.corpus["id"].to_pylist()
        held_out |= {cluster[names[row]] for row in part.pairs[1]}
    assert not held_out & {cluster[name] for name in parts.train.corpus["id"].to_pylist()}

    rows = list(range(len(dataset.corpus)))
    random.shuffle(rows)
    shuffled = RetrievalDataset("x", dataset.corpus.take(rows), dataset.queries, dataset.qrels)
    again = splits.split(shuffled, dev=0.3, test=0.3, seed=seed)
    assert [part.queries["id"].to_pylist() for part in again] == ids


def test_split_with_own_corpora_divides_the_corpus():
    dataset = clustered(300, [(q, q) for q in range(250)], list(range(300)))
    parts = splits.split(dataset, corpus="own")
    names = [set(part.corpus["id"].to_pylist()) for part in parts]
    assert sum(map(len, names)) == 300 == len(set.union(*names))
    assert {f"p{i}" for i in range(250, 300)} <= names[0]  # passages without a query
    shares = [len(part.queries) / 250 for part in parts]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.08)
    assert splits.split(dataset, seed=1).test.fingerprint != splits.split(dataset).test.fingerprint


def test_split_needs_clusters():
    with pytest.raises(NvretError, match="no column 'cluster', expected the labels"):
        splits.split(make())
    with pytest.raises(NvretError, match="expected shares"):
        splits.split(make(), dev=0.5, test=0.5)


def test_leaks_are_found_and_removed():
    train = make(corpus__text=["one two three four five", "six seven eight nine", "ten eleven"])
    same = make(
        corpus__text=["Two, three four FIVE six", "a b c d", "six seven eight nine"],
        queries__text=["what 9?", "What  1"],
    )
    found = splits.leaks(train, same)
    # p2 of the test set answers no question, so its copy is no leak
    assert found.passages == [("p0", "p0")]
    assert found.queries == [("q1", "q1")]
    with pytest.raises(NvretError, match=r"1 test passages .*p0 ~ p0.*1 test questions .*q1 ~ q1"):
        splits.check_leaks(train, same)
    larger = make(4, 3)
    small = make(corpus__text=[larger.passages[0], "b", "c"], queries__text=["x", "what 2?"])
    lost = splits.leaks(larger, small)
    cleaned = splits.without(
        larger, {name for _, name in lost.passages}, {name for _, name in lost.queries}
    )
    assert cleaned.queries["id"].to_pylist() == ["q1"]
    assert "p0" not in cleaned.corpus["id"].to_pylist()
    splits.check_leaks(cleaned, small)
    with pytest.raises(NvretError, match="queries: empty"):
        splits.without(larger, {"p0", "p1"}, {"q2"})  # nothing would be left


def test_a_question_that_is_trained_on_twice_leaks_twice():
    train = make(queries__text=["Who is it?", "who is it"])
    test = make(corpus__text=["a", "b", "c"], queries__text=["WHO is it", "another one"])
    assert splits.leaks(train, test).queries == [("q0", "q0"), ("q0", "q1")]
    with pytest.raises(NvretError, match="2 test questions are train questions"):
        splits.check_leaks(train, test)


def test_packaged_sets():
    dataset = data.load("nq")
    assert len(dataset.queries) > 12_000
    assert min(len(rows) for rows in dataset.positives) == 1
    parts = splits.split(dataset)
    splits.check_leaks(parts.train, parts.test)
    reddit = data.load("squadshifts-reddit")
    splits.check_leaks(dataset, reddit)
    assert set(reddit.corpus["title"].to_pylist()) == {""}
    with pytest.raises(NvretError, match="nq has no split 'test'"):
        data.load("nq", split="test")
