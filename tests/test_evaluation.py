"""Scores against a plain oracle and mteb's own search; nothing shared, leaked or fetched."""

import math
import os
import random
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.evaluation import LENGTHS, PASSAGES, QRELS, QUERIES, make_dataset
from nvret import evaluation
from nvret.evaluation import Evaluation, evaluate, evaluate_all, evaluate_ranking
from nvret.search import top_k
from nvret.study.scores import collapsed
from nvret.utils import store
from nvret.utils.errors import NvretError


@pytest.fixture(scope="module")
def toy():
    return make_dataset(PASSAGES, QUERIES, QRELS)


@pytest.fixture(scope="module")
def questions():
    """Real ones, out of the shared cache."""
    from nvret import data
    from nvret.study import mixtures

    return mixtures.sample(data.load("squadshifts-nyt"), 60)


@pytest.fixture(scope="module")
def model_folder():
    from nvret.assets import model_path

    return model_path("potion-base-8m")


@pytest.fixture
def encoder(model_folder):
    from nvret.encode import Encoder

    return Encoder.load(model_folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, request):
    if "model_folder" in request.fixturenames:
        request.getfixturevalue("model_folder")  # comes out of the shared cache
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path / "cache"))


# --- the metrics -------------------------------------------------------------------------------


def oracle(ranked, relevant, k):
    """trec_eval's metrics of one query, from their definitions."""
    gains = [relevant.get(passage, 0) for passage in ranked[:k]]
    ideal = sorted(relevant.values(), reverse=True)[:k]
    discounted = [sum(g / math.log2(r + 2) for r, g in enumerate(v)) for v in (gains, ideal)]
    hits = [rank for rank, gain in enumerate(gains, 1) if gain]
    return {
        f"ndcg_at_{k}": discounted[0] / discounted[1],
        f"recall_at_{k}": len(hits) / len(relevant),
        f"map_at_{k}": sum(n / rank for n, rank in enumerate(hits, 1)) / len(relevant),
        f"mrr_at_{k}": 1 / hits[0] if hits else 0.0,
    }


@st.composite
def rankings(draw):
    num_passages, num_queries = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    names = draw(
        st.lists(
            st.text("abAB01", min_size=1, max_size=3),
            min_size=num_passages,
            max_size=num_passages,
            unique=True,
        )
    )
    depth = draw(st.integers(1, 14))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    ids = np.full((num_queries, depth), -1)
    for row in ids:
        found = rng.permutation(num_passages)[: rng.integers(0, min(depth, num_passages) + 1)]
        row[rng.permutation(depth)[: len(found)]] = found
    scores = rng.integers(-2, 3, ids.shape) / 2  # many ties
    if draw(st.booleans()):
        scores = rng.standard_normal(ids.shape)
    scores[ids < 0] = -np.inf
    grades = rng.choice([0, 0, 1, 2, 3], (num_queries, num_passages))
    grades[draw(st.integers(0, num_queries - 1)), 0] = 1  # one query has an answer
    return names, ids, scores, grades


def judged(names, grades):
    """The data set of a case: its grades as judgements of queries q0, q1, ..."""
    queries = [f"q{row}" for row in range(len(grades))]
    qrels = [
        (query, name, int(grade))
        for query, row in zip(queries, grades, strict=True)
        for name, grade in zip(names, row, strict=True)
        if grade
    ]
    texts = {name: ("", f"text {name}") for name in names}
    return make_dataset(texts, {query: f"text {query}" for query in queries}, qrels)


@given(rankings(), st.sampled_from([(1,), (3, 10), (10, 2)]))
@examples(60)
def test_ranking_scores_match_the_definitions(case, cuts):
    names, ids, scores, grades = case
    dataset = judged(names, grades)
    table = evaluate_ranking(ids, scores, dataset, k=cuts).scores
    asked = grades.any(1)
    as_arrays = evaluation._scored(dataset, ids[asked], scores[asked], sorted(cuts))
    assert as_arrays.scores.equals(table)  # what mteb and trec_eval say, to the last bit
    found = table.to_pylist()
    expected = []
    for row, query in enumerate(dataset.queries["id"].to_pylist()):
        relevant = {n: int(g) for n, g in zip(names, grades[row], strict=True) if g}
        pairs = zip(ids[row], scores[row].astype(np.float32), strict=True)
        ranked = sorted(((s, names[i]) for i, s in pairs if i >= 0), reverse=True)
        if relevant:
            metrics = {"query_id": query}
            for k in cuts:
                metrics |= oracle([name for _, name in ranked], relevant, k)
            expected.append(metrics)
    assert [row["query_id"] for row in found] == [row["query_id"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted | {"query_id": row["query_id"]}, abs=1e-6)


def test_summary_is_the_mean_over_queries():
    table = pa.table({"query_id": ["a", "b", "c"], "mrr_at_10": [1.0, 0.0, 0.5]})
    found = Evaluation("toy", table)
    assert found.summary == {"mrr_at_10": 0.5}
    with pytest.raises(NvretError, match="no metric 'ndcg', expected one of mrr_at_10"):
        found.values("ndcg")


# --- near-duplicates as one passage ----------------------------------------------------------


def with_clusters(dataset, labels):
    column = pa.array(labels, pa.int32())
    return replace(dataset, corpus=dataset.corpus.append_column("cluster", column))


def test_only_the_best_of_a_cluster_stands_in_the_ranking():
    """By hand: the copies of "a" and "b" move the answer from rank 5 to rank 3."""
    names = {name: ("", f"text {name}") for name in ("a", "a2", "b", "b2", "c", "c2", "d")}
    dataset = make_dataset(names, {"q": "text"}, [("q", "c", 1), ("q", "d", 1)])
    dataset = with_clusters(dataset, [4, 4, 9, 9, 7, 7, 0])
    ids = np.array([[0, 2, 1, 3, 5, 4, 6]])  # a b a2 b2 c2 c d
    plain = evaluate_ranking(ids, -np.arange(7.0)[None], dataset, k=(3, 10))
    found = collapsed(plain, dataset, k=(3, 10)).scores.to_pylist()[0]
    ideal = 1 + 1 / math.log2(3)
    assert found["ndcg_at_10"] == pytest.approx((1 / math.log2(4) + 1 / math.log2(5)) / ideal)
    assert found["ndcg_at_3"] == pytest.approx((1 / math.log2(4)) / ideal)
    assert found["mrr_at_10"] == pytest.approx(1 / 3)
    assert plain.scores["mrr_at_10"][0].as_py() == pytest.approx(1 / 6)  # c2 has no label


@given(rankings(), st.integers(1, 6))
@examples(60)
def test_collapsed_scores_match_a_ranking_of_clusters(case, count):
    names, ids, scores, grades = case
    labels = np.random.default_rng(count).integers(0, count, len(names)).tolist()
    dataset = with_clusters(
        judged(names, grades),
        labels,
    )
    plain = evaluate_ranking(ids, scores, dataset, k=(3, 10))
    found = collapsed(plain, dataset, k=(3, 10)).scores.to_pylist()
    asked = [row for row in range(len(ids)) if grades[row].any()]
    assert [row["query_id"] for row in found] == [f"q{row}" for row in asked]
    for row, given_ in zip(asked, found, strict=True):
        pairs = zip(ids[row], scores[row].astype(np.float32), strict=True)
        ranked = sorted(((s, names[i], labels[i]) for i, s in pairs if i >= 0), reverse=True)
        clusters = list(dict.fromkeys(label for _, _, label in ranked))
        relevant = {}
        for label, grade in zip(labels, grades[row].tolist(), strict=True):
            relevant[label] = max(grade, relevant.get(label, 0))
        relevant = {label: grade for label, grade in relevant.items() if grade}
        expected = oracle(clusters, relevant, 3) | oracle(clusters, relevant, 10)
        assert given_ == pytest.approx({"query_id": given_["query_id"], **expected}, abs=1e-6)


# --- an encoder end to end ---------------------------------------------------------------------


def test_encoder_equals_its_own_ranking_and_finds_the_answers(encoder, toy):
    found = evaluate(encoder, toy, **LENGTHS)
    assert found.scores["query_id"].to_pylist() == ["q1", "q2", "q3", "q4"]  # q5 has no answer
    assert found.summary["recall_at_10"] == 1  # eight passages: all found, the other two are -1
    assert found.summary["ndcg_at_10"] > 0.7
    queries = encoder.encode(toy.query_texts, "query", max_length=32, progress=False)
    passages = encoder.encode(toy.passages, "passage", max_length=64, progress=False)
    ranking = top_k(queries, passages, 10)
    assert evaluate_ranking(ranking.ids, ranking.scores, toy).scores.equals(found.scores)


def test_all_at_once_gives_what_one_by_one_gives(encoder, toy, questions, monkeypatch):
    """Bit for bit, in the order that was asked for; a text that several sets have once."""
    from nvret.study import mixtures

    sets = [mixtures.sample_passages(questions, number) for number in (100, None, 400)]
    sets.append(toy)
    expected = [evaluate(encoder, one, **LENGTHS) for one in sets]
    encoded = []
    own = type(encoder).encode

    def encode(self, texts, kind, **options):
        encoded.append((kind, list(texts)))
        return own(self, texts, kind, **options)

    monkeypatch.setattr(type(encoder), "encode", encode)
    lengths = LENGTHS["query_max_length"], LENGTHS["passage_max_length"]
    found = evaluate_all(encoder, sets, *lengths, progress=False)
    for one, alone in zip(found, expected, strict=True):
        assert one.dataset == alone.dataset
        assert one.scores.equals(alone.scores)
        for ours, theirs in zip(one.ranking, alone.ranking, strict=True):
            assert np.array_equal(ours, theirs)
    assert found[0].summary != found[1].summary
    (_, asked), (_, passages) = encoded
    assert [kind for kind, _ in encoded] == ["query", "passage"]
    assert len(passages) == len(set(sets[1].passages) | set(toy.passages)) == len(set(passages))
    assert len(asked) == 60 + 4  # one question has no answer


def test_equals_the_search_of_mteb_on_the_same_model(encoder, toy):
    """The same task, the same weights, mteb's own encoder wrapper, search and means."""
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType

    from nvret.io import mteb_task

    class Wrapped(AbsEncoder):
        mteb_model_meta = ModelMeta.create_empty(
            {"name": "a/b", "revision": "c", "similarity_fn_name": ScoringFunction.COSINE}
        )

        def __init__(self):
            pass

        def encode(self, inputs, *, prompt_type, **_):
            kind = "query" if prompt_type == PromptType.query else "passage"
            texts = [text for batch in inputs for text in batch["text"]]
            return encoder.encode(texts, kind, max_length=64, progress=False)

    with mteb_task.isolated():
        kwargs = {"batch_size": 4, "show_progress_bar": False}
        task = mteb_task.local_task(toy, mteb_task.judgements(toy), [3, 10])
        theirs = task.evaluate(Wrapped(), "test", encode_kwargs=kwargs)["default"]
    lengths = LENGTHS | {"query_max_length": 64}
    ours = evaluate(encoder, toy, k=(3, 10), **lengths).summary
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=5.1e-6), name  # theirs has five digits


def test_random_generators_are_left_as_they_were(encoder, toy):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    def seed():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    evaluate(encoder, toy, **LENGTHS)
    assert draw() == expected


def test_needs_no_network_and_writes_only_to_the_cache(tmp_path, model_folder):
    """In a fresh process: mteb's import and an evaluation."""
    tests = Path(__file__).parent
    script = f"""
        import socket, sys

        def refuse(*arguments, **_):
            raise AssertionError(f"network: {{arguments}}")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        sys.path[:0] = {[str(tests), str(tests.parent)]!r}
        import nvret.evaluation
        assert not {{"torch", "mteb"}} & set(sys.modules)
        from nvret.encode import Encoder
        from helpers.evaluation import LENGTHS, PASSAGES, QRELS, QUERIES, make_dataset

        encoder = Encoder.load({str(model_folder)!r})
        toy = make_dataset(PASSAGES, QUERIES, QRELS)
        assert nvret.evaluation.evaluate(encoder, toy, **LENGTHS).summary["mrr_at_10"] > 0.7
    """
    home = tmp_path / "home"
    home.mkdir()
    kept = {"MTEB_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=home,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(home.rglob("*")) == []
    written = {path.name for path in store.cache_dir().iterdir()}
    assert written == {"mteb"}


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids, scores: (ids[:4], scores[:4]), r"expected \(5, depth\) for the 5 queries"),
        (lambda ids, scores: (ids, scores[:, :1]), "ids have shape"),
        (lambda ids, scores: (ids.astype(float), scores), "ids have type float64"),
        (lambda ids, scores: (ids + 7, scores), "query row 0 holds an id outside of -1 to 7"),
        (lambda ids, scores: (ids * 0, scores), "query row 0 holds the same id twice"),
        (lambda ids, scores: (ids, scores * np.nan), "query row 0 holds a score that is not fin"),
    ],
)
def test_bad_rankings_are_named(toy, change, message):
    ids = np.tile(np.arange(3), (5, 1))
    with pytest.raises(NvretError, match=message):
        evaluate_ranking(*change(ids, np.ones((5, 3))), toy)


@pytest.mark.parametrize("k", [(), (0,), (1.5,), (True,)])
def test_bad_k_is_named(toy, k):
    with pytest.raises(NvretError, match="k is"):
        evaluate_ranking(np.zeros((5, 1), int), np.ones((5, 1)), toy, k=k)


def test_a_set_without_answers_is_refused():
    dataset = make_dataset(PASSAGES, QUERIES, [("q1", "mars", 0)], name="empty")
    with pytest.raises(NvretError, match="empty"):
        evaluate_ranking(np.zeros((5, 1), int), np.ones((5, 1)), dataset)
