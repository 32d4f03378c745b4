"""Scored candidates, of `nvret rank` and of others, under every rule, without a model."""

from __future__ import annotations

import gzip
import json
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvret import cli, mining, negatives, teachers
from nvret.cli import rank as command
from nvret.data import RetrievalDataset, from_texts
from nvret.io import adopted, candidates, export, rankings
from nvret.search import top_k
from nvret.utils.errors import NvretError

METHODS = [
    mining.NaiveTopK(),
    mining.TopKShifted(3),
    mining.TopKAbs(0.3),
    mining.TopKMarginPos(0.05),
    mining.TopKPercPos(0.8),
]


def own_set(queries=12, passages=40, seed=0):
    """Questions with one or two positives, over passages of random words."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 60, 12)) for _ in range(passages)]
    asked = [" ".join(texts[q].split()[:5]) + f" q{q}" for q in range(queries)]
    return from_texts("own", texts, asked, [[q] + [q + 20] * (q % 3 == 0) for q in range(queries)])


@pytest.fixture
def dataset():
    return own_set()


@pytest.fixture
def files(dataset, tmp_path):
    """The data set as files, and the options that name them."""
    for name, table in (("corpus", dataset.corpus), ("queries", dataset.queries)):
        pq.write_table(table.rename_columns({"id": "_id"}), tmp_path / f"{name}.parquet")
    names = {"query_id": "query-id", "corpus_id": "corpus-id"}
    pq.write_table(dataset.qrels.rename_columns(names), tmp_path / "qrels.parquet")
    parts = ("corpus", "queries", "qrels")
    return [x for part in parts for x in (f"--{part}", f"{tmp_path}/{part}.parquet")]


def written(dataset, path, name="scored-lists", teacher="bm25", depth=39, parts=None):
    scorer = teachers.prepare(teacher, dataset, progress=False)
    exclude = dataset.positives if name == "trec" else mining.exclusions(dataset)
    ranked = rankings.rank(dataset, scorer, depth, exclude, progress=False)
    facts = {"teacher": teacher, "kind": "sparse", "version": "0"}
    rankings.write(dataset, ranked, path, name, facts)
    return path


def assert_same(one, other):
    """The same negatives at the same ranks; how a product rounds depends on its shape."""
    ids = ["query_id", "positive_id", "negative_id", "rank"]
    assert one.select(ids).to_pylist() == other.select(ids).to_pylist()
    for name in ("score", "positive_score"):
        np.testing.assert_allclose(one[name], other[name], rtol=2e-6)


@pytest.mark.parametrize("teacher", ["bm25", "potion-base-8m"])
@pytest.mark.parametrize("name", rankings.FORMATS)
def test_every_rule_gives_what_its_teacher_gives(dataset, tmp_path, name, teacher, monkeypatch):
    monkeypatch.setattr(rankings, "PART", 5)  # a query's pairs may lie in two parts
    suffix = {"three-part": "", "trec": ".run.gz"}.get(name, ".parquet")
    path = written(dataset, tmp_path / f"ranked{suffix}", name, teacher)
    scorer = candidates.load(path, dataset)
    assert candidates.scored(dataset, scorer) is dataset
    exclude = mining.exclusions(dataset)
    for sampling in (mining.TopK(), mining.SampledTopK(6)):
        expected, got = (
            mining.sweep(dataset, one, METHODS, 3, sampling, exclude=exclude, progress=False)
            for one in (teacher, scorer)
        )
        for one, other in zip(expected, got, strict=True):
            assert_same(one, other)
            facts = negatives.provenance(other)
            assert facts["search"]["candidates"] == path.name
            assert facts["pairs_short"] == negatives.provenance(one)["pairs_short"]


@given(st.data())
def test_the_search_in_lists_is_the_search(some):
    rng = np.random.default_rng(some.draw(st.integers(0, 2**32 - 1)))
    queries, passages = some.draw(st.integers(1, 6)), some.draw(st.integers(1, 20))
    # Few distinct scores: ties everywhere
    vectors = [rng.integers(-2, 3, (n, 2)).astype(np.float32) for n in (queries, passages)]
    dataset = from_texts("x", [f"p {n}" for n in range(passages)],
                         [f"q {n}" for n in range(queries)], [[0]] * queries)  # fmt: skip
    pairs = np.indices((queries, passages)).reshape(2, -1)
    order = rng.permutation(pairs.shape[1])
    query, passage = pairs[:, order]
    by_query = np.argsort(query, kind="stable")
    query, passage = query[by_query], passage[by_query]
    scores = np.einsum("pd,pd->p", vectors[0][query], vectors[1][passage])
    lists = candidates.Lists(
        Path("x.parquet"), pa.array([f"q{n}" for n in range(queries)], pa.large_string()),
        pa.array([f"p{n}" for n in passage], pa.large_string()), scores,
        np.arange(queries + 1) * passages, texts=False,
    )  # fmt: skip
    scorer = candidates.ListScorer.of(lists, query, passage, dataset)
    rows = rng.integers(0, queries, some.draw(st.integers(1, 8)))
    k = some.draw(st.integers(1, passages + 2))
    ceiling = rng.choice([-np.inf, -1, 0, 1, np.inf], len(rows)).astype(np.float32)
    exclude = [np.flatnonzero(rng.random(passages) < 0.3) for _ in rows]
    expected = top_k(vectors[0][rows], vectors[1], k, ceiling=ceiling, exclude=exclude)
    got = scorer.top_k(rows, k, ceiling, exclude)
    np.testing.assert_array_equal(got.ids.numpy(), expected.ids.numpy())
    np.testing.assert_array_equal(got.scores.numpy(), expected.scores.numpy())
    block = scorer.block_scores(rows, np.arange(passages))
    np.testing.assert_array_equal(block, vectors[0][rows] @ vectors[1].T)


def test_a_list_that_is_too_short_for_a_rule_is_said(dataset, files, tmp_path, capsys):
    path = written(dataset, tmp_path / "ranked.parquet", depth=4)
    mine = ["mine", *files, "--candidates", str(path), "--output", str(tmp_path / "n.parquet")]
    assert cli.main([*mine, "--method", "shifted", "--n", "2"]) == 0
    out = capsys.readouterr().out
    assert "16 pairs have fewer than 4; their lists end before the rule is content" in out


def test_rank_and_mine_at_the_command_line(dataset, files, tmp_path, capsys):
    for teacher, name in (("bm25", "a.parquet"), ("potion-base-8m", "b.parquet")):
        path = tmp_path / name
        rank = ["rank", *files, "--teacher", teacher, "--depth", "39", "--output", str(path)]
        assert cli.main(rank) == 0
        assert "16 pairs of query and positive, 12 queries" in capsys.readouterr().out
        assert cli.main(rank) == 2
        assert "is there already; --overwrite replaces it" in capsys.readouterr().err
        facts = json.loads(pq.read_schema(path).metadata[b"nvret"])
        assert (facts["teacher"], facts["depth"]) == (teacher, 39)
        outputs = []
        for option, value in (("--candidates", str(path)), ("--teacher", teacher)):
            outputs.append(tmp_path / f"{value.split('/')[-1]}-{option[2:]}.parquet")
            mine = ["mine", *files, option, value, "--output", str(outputs[-1]),
                    "--method", "perc-pos", "--perc", "0.9", "--num-negatives", "2"]  # fmt: skip
            assert cli.main(mine) == 0
        assert_same(*(negatives.load(output) for output in outputs))


def test_an_interrupted_ranking_continues(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(rankings, "PART", 4)
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    scorer, calls = teachers.prepare("bm25", dataset, progress=False), []

    class Stopping:
        name, fingerprint = "bm25", "stopping"
        pair_scores = scorer.pair_scores

        def top_k(self, rows, *rest, **options):
            calls.append(len(rows))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return scorer.top_k(rows, *rest, **options)

    exclude = mining.exclusions(dataset)
    with pytest.raises(KeyboardInterrupt):
        list(rankings.rank(dataset, Stopping(), 5, exclude, progress=False))
    again = list(rankings.rank(dataset, Stopping(), 5, exclude, progress=False))
    whole = scorer.top_k(dataset.pairs[0], 5, None, [exclude[row] for row in dataset.pairs[0]])
    np.testing.assert_array_equal(np.vstack([part.ids for part in again]), whole.ids.numpy())
    assert calls == [4, 4, 4, 4, 4]  # two kept, one stopped, two left


def test_another_models_scores_set_the_order_anew(dataset, monkeypatch):
    monkeypatch.setattr(rankings, "PART", 5)
    scorer = teachers.prepare("bm25", dataset, progress=False)
    ranked = list(rankings.rank(dataset, scorer, 4, mining.exclusions(dataset), progress=False))

    class Judge:
        def scores(self, queries, passages, positives):
            values = [len(set(q) & set(p)) for q, p in zip(queries, passages, strict=True)]
            return SimpleNamespace(values=np.array(values, np.float32))

    def read(query, passage):
        return len(set(dataset.query_texts[query]) & set(dataset.passages[passage]))

    parts = list(rankings.rescored(dataset, iter(ranked), Judge(), "shared letters"))
    assert len(parts) == len(ranked) > 1
    for before, after in zip(ranked, parts, strict=True):
        for one, other in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True):
            (query, positive, _, ids, _), (*same, own, found, scores) = one, other
            wanted = sorted((-read(query, row), row) for row in ids)
            assert (same, own) == ([query, positive], read(query, positive))
            assert list(zip(-scores, found, strict=True)) == wanted


def test_a_run_names_what_made_it(dataset, tmp_path):
    path = written(dataset, tmp_path / "ranked.run", "trec", depth=3)
    lines = path.read_text().splitlines()
    assert lines[0] == "# ir_metadata.start"
    assert "# ir_metadata.end" in lines
    ranked = [line.split() for line in lines if not line.startswith("#")]
    assert {len(line) for line in ranked} == {6}
    own = [line for line in ranked if line[0] == "q0"]
    assert [int(line[3]) for line in own] == list(range(1, len(own) + 1))
    assert [float(line[4]) for line in own] == sorted((float(x[4]) for x in own), reverse=True)
    assert {"p0", "p20"} <= {line[2] for line in own}  # a positive is at its own place


def test_lists_with_texts_are_a_data_set(tmp_path):
    """Scored outputs of sentence-transformers and FlagEmbedding, and three parts."""
    scores = [0.9, 0.85, 0.3]
    texts = ["a b", "c d", "e f"]
    layouts = {
        "list.parquet": {"query": "q", "answer": texts, "scores": scores},
        "tuple.parquet": {
            "anchor": "q", "positive": "a b", "negative_1": "c d", "negative_2": "e f",
            "scores": scores,
        },
        "flag.jsonl": {
            "query": "q", "pos": ["a b"], "neg": ["c d", "e f"], "pos_scores": scores[:1],
            "neg_scores": scores[1:],
        },
    }  # fmt: skip
    for name, record in layouts.items():
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_pylist([record]), tmp_path / name)
        else:
            (tmp_path / name).write_text(json.dumps(record))
    triplets = [
        {"anchor": "q", "positive": "a b", "negative": text, "scores": [0.9, score]}
        for text, score in zip(texts[1:], scores[1:], strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(triplets), tmp_path / "triplet.parquet")
    (tmp_path / "parts" / "scores").mkdir(parents=True)
    parts = {
        "queries": [{"query_id": 7, "query": "q"}],
        "documents": [{"document_id": n, "text": text} for n, text in enumerate(texts)],
        "scores/train-00000": [{"query_id": 7, "document_ids": [0, 1, 2], "scores": scores}],
    }
    for name, records in parts.items():
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "parts" / f"{name}.parquet")
    for name in (*layouts, "triplet.parquet", "parts"):
        output = tmp_path / "mined" / name / "n.jsonl"
        mine = ["mine", "--candidates", str(tmp_path / name), "--format", "flagembedding"]
        rule = ["--method", "perc-pos", "--perc", "0.5", "--num-negatives", "1"]
        assert cli.main([*mine, *rule, "--output", str(output)]) == 0
        (record,) = map(json.loads, output.read_text().splitlines())
        assert (record["query"], record["pos"], record["neg"]) == ("q", ["a b"], ["e f"])


def test_a_positive_without_a_score_is_left_out_and_counted(dataset, files, tmp_path, caplog):
    path = written(dataset, tmp_path / "ranked.run", "trec")
    lines = [line for line in path.read_text().splitlines() if " p20 " not in line]
    path.write_text("\n".join(lines))
    output = tmp_path / "n.parquet"
    mine = ["mine", *files, "--candidates", str(path), "--method", "naive", "--output", str(output)]
    assert cli.main(mine) == 0
    assert "1 positives have no score there" in caplog.text
    table = negatives.load(output)
    assert "p20" not in table["positive_id"].to_pylist() + table["negative_id"].to_pylist()
    assert negatives.provenance(table)["pairs"] == len(dataset.pairs[0]) - 1


def faulty(tmp_path, content):
    """A file of lists, or a run, with a mistake."""
    if isinstance(content, str):
        path = tmp_path / "x.run"
        path.write_text(content)
    else:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table(content), path)
    return path


def lists(query="q0", documents=("p0",), scores=(0.5,)):
    return {"query_id": [query], "document_ids": [documents], "scores": [scores]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0 Q0 p0 1 0.5\nq0 Q0 p1 2 x t\n", "no TREC run"),
        ("q0 Q0 p0 1 nan t\n", "the score of 'p0' for query 'q0' is nan, expected a number"),
        ("q0 Q0 p0 1 0.5 t\nq0 Q0 p0 2 0.4 t\n", "'p0' has two scores for query 'q0'"),
        ("q0 Q0 p999 1 0.5 t\n", r"'p999' is not in the corpus \(1 such\)"),
        ("q99 Q0 p0 1 0.5 t\n", "'q99' is not in the queries"),
        ("", "no TREC run|no scored candidate"),
        ("# ir_metadata.start\n", "no TREC run|no scored candidate"),
        (lists(scores=[0.5, 0.4]), "1 documents and 2"),
        (lists(scores=None), "scores is missing|scores is null"),
        ({"query_id": ["q0"], "document_ids": ["p0"], "scores": [0.5]}, "expected a list"),
        (lists(documents=["p0", None], scores=[0.5, 0.4]), "missing"),
        (lists(documents=[], scores=[]), "no scored candidate|scores|expected a list"),
        ({"query": ["w1"], "document": [["w2"]], "labels": [[1]]}, "has 0 scores for 1 passages"),
        ({"query": ["w1"], "document": [["w2"]], "labels": [[0]]}, "expected a positive, and"),
        ({"query": ["w1"], "pos": [["w2"]], "neg": [["w3"]]}, "has 0 scores for 2 passages"),
    ],
)
def test_a_faulty_file_is_named(dataset, files, tmp_path, content, message, capsys):
    path = faulty(tmp_path, content)
    with pytest.raises(NvretError, match=message):
        candidates.scored(dataset, candidates.load(path, dataset))
    output = tmp_path / "n.parquet"
    mine = ["mine", *files, "--candidates", str(path), "--method", "naive", "--output", str(output)]
    assert cli.main(mine) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert path.name in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidates", "RANKED", "--teacher", "bm25"], "--teacher is of one"),
        (["--candidates", "RANKED", "--method", "random"], "have no score in"),
        (["--candidates", "none.parquet"], "none.parquet"),
        (["--candidates", "FOLDER"], "none for the part 'scores'"),
    ],
)
def test_options_that_do_not_fit_candidates(dataset, files, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"RANKED": str(written(dataset, tmp_path / "r.parquet")), "FOLDER": f"{tmp_path}/empty"}
    arguments = [names.get(one, one) for one in arguments]
    method = [] if "--method" in arguments else ["--method", "naive"]
    output = ["--output", str(tmp_path / "n.parquet")]
    assert cli.main(["mine", *files, *arguments, *method, *output]) == 2
    assert message in capsys.readouterr().err


def test_ids_alone_are_no_data(dataset, tmp_path, capsys):
    path = written(dataset, tmp_path / "r.parquet")
    output = ["--output", str(tmp_path / "n.parquet")]
    assert cli.main(["mine", "--candidates", str(path), "--method", "naive", *output]) == 2
    assert "holds ids alone, expected your data beside it" in capsys.readouterr().err


def test_the_command_knows_all_formats():
    assert typing.get_args(command.Format) == rankings.FORMATS


def test_a_blank_in_an_id_is_no_run(dataset, tmp_path):
    ids = pa.chunked_array([["two words", *dataset.corpus["id"].to_pylist()[1:]]])
    others = pc.not_equal(dataset.qrels["corpus_id"], "p0")
    corpus = dataset.corpus.set_column(0, "id", ids)
    other = RetrievalDataset("x", corpus, dataset.queries, dataset.qrels.filter(others))
    with pytest.raises(NvretError, match="'two words' has a blank"):
        written(other, tmp_path / "x.run", "trec")
    assert not (tmp_path / "x.run").exists()


def test_a_zipped_run_is_read(dataset, tmp_path):
    path = written(dataset, tmp_path / "x.run.gz", "trec")
    assert gzip.decompress(path.read_bytes()).startswith(b"# ir_metadata.start\n")
    assert candidates.read(path).texts is False


@pytest.mark.parametrize(
    "name", ["triplet", "n-tuple", "labeled-list", "flagembedding", "automodel"]
)
def test_what_others_mined_becomes_a_table(dataset, tmp_path, name):
    """Written by `export`, read again without the data: the same texts, scored by a teacher."""
    table = mining.mine(dataset, "bm25", mining.NaiveTopK(), 2, progress=False)
    suffix = export.FORMATS[name].suffix
    path = tmp_path / f"a{suffix}"
    export.write(dataset, table, path, name, scores=False)
    other = adopted.load_dataset(path)
    assert set(other.query_texts) <= set(dataset.query_texts)
    with pytest.raises(NvretError, match="record 1 has 0 scores"):
        adopted.table(path, other)
    scorer = teachers.prepare("bm25", dataset, progress=False)
    found = adopted.table(path, dataset, scorer)
    assert_same(table, found)
    assert negatives.provenance(found)["file"] == path.name


def test_inspect_reads_what_others_mined(dataset, tmp_path, capsys):
    table = mining.mine(dataset, "bm25", mining.NaiveTopK(), 2, progress=False)
    plain, scored = tmp_path / "plain.parquet", tmp_path / "scored.parquet"
    export.write(dataset, table, plain, "triplet", scores=False)
    export.write(dataset, table, scored, "triplet", scores=True)
    for path, more in ((plain, ["--teacher", "bm25"]), (scored, [])):
        report = tmp_path / f"{path.stem}.html"
        assert cli.main(["inspect", str(path), "--output", str(report), *more]) == 0
        assert f"{table.num_rows} negatives for 16 pairs" in capsys.readouterr().out
        assert "data-pair" in report.read_text()
    assert cli.main(["inspect", str(plain), "--output", str(tmp_path / "x.html")]) == 2
    assert "record 1 has 0 scores for 2 passages" in capsys.readouterr().err


@pytest.mark.parametrize("spoilt", ["query", "pos", "neg"])
def test_half_a_surrogate_pair_in_anothers_file_is_named(tmp_path, capsys, spoilt):
    record = {"query": "asked", "pos": ["yes"], "neg": ["no"]}
    bad = record | {spoilt: "\ud800" if spoilt == "query" else ["\ud800"]}
    file = tmp_path / "mined.jsonl"
    file.write_text("\n".join(map(json.dumps, (record, bad))))
    assert cli.main(["inspect", str(file), "--output", str(tmp_path / "out.html")]) == 2
    assert f"{file}: list 2: " in capsys.readouterr().err
    assert not (tmp_path / "out.html").exists()
