"""Exports: what each format holds, and that its trainer takes the file as it is."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvret import assets, data, mining, negatives
from nvret.io import export, tabular
from nvret.utils.errors import NvretError


@pytest.fixture(scope="module")
def dataset():
    """Questions of a real set, some of them with a second positive; all passages in play."""
    whole = data.load("squadshifts-nyt", progress=False)
    some = whole.select(whole.queries["id"].to_pylist()[:40])
    corpus = some.corpus.slice(0, 400)
    needed = set(some.qrels["corpus_id"].to_pylist())
    ids = [
        i
        for i in some.corpus["id"].to_pylist()
        if i in needed or i in set(corpus["id"].to_pylist())
    ]
    part = some.select(some.queries["id"].to_pylist(), corpus_ids=ids)
    positive = set(
        zip(*part.qrels.select(["query_id", "corpus_id"]).to_pydict().values(), strict=True)
    )
    more = [(part.queries["id"][row].as_py(), ids[-1 - row]) for row in range(3)]
    more = [pair for pair in more if pair not in positive]
    added = pa.table(
        {
            "query_id": [query for query, _ in more],
            "corpus_id": [passage for _, passage in more],
            "score": pa.array([1] * len(more), pa.int32()),
        }
    )
    return replace(part, qrels=pa.concat_tables([part.qrels, added]))


@pytest.fixture(scope="module")
def table(dataset):
    """A ceiling that leaves some pairs three negatives, some fewer, and some none."""
    method = mining.TopKMarginPos(0.7)
    found = mining.mine(dataset, "potion-base-8m", method, 3, progress=False)
    facts = negatives.provenance(found)
    assert 0 < facts["pairs_empty"] < facts["pairs_short"] < facts["pairs"]
    return found


@pytest.fixture(scope="module")
def oracle(dataset, table):
    """{(query id, positive id): negative ids by rank}, of every pair; and all texts by id."""
    query_ids, passage_ids = dataset.queries["id"].to_pylist(), dataset.corpus["id"].to_pylist()
    pairs = {(query_ids[q], passage_ids[p]): [] for q, p in zip(*dataset.pairs, strict=True)}
    for row in table.sort_by("rank").to_pylist():
        pairs[row["query_id"], row["positive_id"]].append(row["negative_id"])
    texts = dict(zip(passage_ids, dataset.passages, strict=True))
    texts |= dict(zip(query_ids, dataset.query_texts, strict=True))
    return pairs, texts


def written(dataset, table, tmp_path, name, **options):
    path = tmp_path / f"negatives{export.FORMATS[name].suffix}"
    counts = export.write(dataset, table, path, name, **options)
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist(), counts
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], counts


def test_triplets(dataset, table, oracle, tmp_path):
    pairs, texts = oracle
    rows, (count, without) = written(dataset, table, tmp_path, "triplet")
    assert [tuple(row.values()) for row in rows] == [
        (texts[q], texts[p], texts[n]) for (q, p), found in pairs.items() for n in found
    ]
    assert list(rows[0]) == ["anchor", "positive", "negative"]
    assert count == table.num_rows
    assert without == sum(not found for found in pairs.values()) > 0


def test_tuples_hold_full_pairs_only(dataset, table, oracle, tmp_path):
    pairs, texts = oracle
    rows, (count, without) = written(dataset, table, tmp_path, "n-tuple")
    assert [tuple(row.values()) for row in rows] == [
        (texts[q], texts[p], *(texts[n] for n in found))
        for (q, p), found in pairs.items()
        if len(found) == 3
    ]
    assert list(rows[0]) == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert count + without == len(pairs)


def test_labeled_pairs(dataset, table, oracle, tmp_path):
    pairs, texts = oracle
    rows, (_, without) = written(dataset, table, tmp_path, "labeled-pair")
    wanted = {}
    for (query, positive), found in pairs.items():
        wanted.setdefault(query, ([], []))[0].append(positive)
        wanted[query][1].extend(n for n in found if n not in wanted[query][1])
    assert [tuple(row.values()) for row in rows] == [
        (texts[query], texts[ident], label)
        for query, parts in wanted.items()
        for part, label in zip(parts, (1, 0), strict=True)
        for ident in part
    ]
    assert list(rows[0]) == ["query", "document", "label"]
    assert without == 0
    assert max(len(positives) for positives, _ in wanted.values()) == 2


def test_labeled_lists(dataset, table, oracle, tmp_path):
    pairs, texts = oracle
    rows, _ = written(dataset, table, tmp_path, "labeled-list")
    assert rows == [
        {
            "query": texts[q],
            "document": [texts[p], *(texts[n] for n in found)],
            "labels": [1] + [0] * len(found),
        }
        for (q, p), found in pairs.items()
        if found
    ]


@pytest.mark.parametrize("name", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_scores_are_the_teachers(dataset, table, tmp_path, name):
    rows, _ = written(dataset, table, tmp_path, name, scores=True)
    texts = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))
    asked = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
    known = {}
    for row in table.to_pylist():
        known[asked[row["query_id"]], texts[row["negative_id"]]] = row["score"]
        known[asked[row["query_id"]], texts[row["positive_id"]]] = row["positive_score"]
    for row in rows:
        query, *others = (value for key, value in row.items() if not key.startswith("score"))
        others = others[0] if isinstance(others[0], list) else others
        said = row.get("scores", [row.get("score")])
        assert said == [known[query, text] for text in others]


def test_flagembedding(dataset, table, oracle, tmp_path):
    pairs, texts = oracle
    rows, (count, without) = written(dataset, table, tmp_path, "flagembedding")
    full = {pair: found for pair, found in pairs.items() if found}
    assert count == len(rows) == len(full) == len(pairs) - without
    for row, ((query, positive), found) in zip(rows, full.items(), strict=True):
        assert row["query"] == texts[query]
        assert (row["pos_id"], row["neg_id"]) == ([positive], found)
        assert (row["pos"], row["neg"]) == ([texts[positive]], [texts[n] for n in found])
        assert len(row["pos_scores"]) == 1
        assert row["neg_scores"] == sorted(row["neg_scores"], reverse=True)
        assert len(row["neg_scores"]) == len(found)


@pytest.mark.parametrize("distilled", [False, True])
def test_flagembeddings_reader_takes_it(dataset, table, tmp_path, distilled):
    embedder = pytest.importorskip("FlagEmbedding.abc.finetune.embedder")
    path = tmp_path / "negatives.jsonl"
    count, _ = export.write(dataset, table, path, "flagembedding")
    options = embedder.AbsEmbedderDataArguments(
        train_data=[str(path)],
        cache_path=str(tmp_path / "cache"),
        train_group_size=4,
        knowledge_distillation=distilled,
    )
    reader = embedder.AbsEmbedderTrainDataset(options, tokenizer=None)
    assert len(reader) == count
    for query, passages, scores in map(reader.__getitem__, range(count)):
        assert query in dataset.query_texts
        assert len(passages) == 4
        assert scores is None or len(scores) == 4
        assert (scores is not None) == distilled


def test_tevatron(dataset, table, oracle, tmp_path):
    pairs, _ = oracle
    rows, _ = written(dataset, table, tmp_path, "tevatron")
    full = {pair: found for pair, found in pairs.items() if found}
    corpus = {row["id"]: row for row in dataset.corpus.to_pylist()}
    for row, ((query, positive), found) in zip(rows, full.items(), strict=True):
        assert row["query_id"] == query
        assert [p["docid"] for p in row["positive_passages"]] == [positive]
        assert [p["docid"] for p in row["negative_passages"]] == found
        for passage in row["positive_passages"] + row["negative_passages"]:
            own = corpus[passage["docid"]]
            assert (passage["title"], passage["text"]) == (own["title"], own["text"])


def test_parquet_keeps_the_provenance_in_every_format(dataset, table, tmp_path):
    for name in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
        export.write(dataset, table, tmp_path / "x.parquet", name)
        assert negatives.provenance(pq.read_table(tmp_path / "x.parquet"))["teacher"]
    export.write(dataset, table, tmp_path / "x.parquet")
    assert negatives.load(tmp_path / "x.parquet").equals(table)


def test_many_records_are_written_in_parts(dataset, table, tmp_path):
    mined = export.NegativesByPair(dataset, table, 3)
    parts = tabular.tables(export.triplets(mined), number=7)
    count = tabular.write_parquet(parts, tmp_path / "x.parquet")
    assert count == table.num_rows
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == list(export.triplets(mined))


def test_nothing_to_write_leaves_no_file(dataset, table, tmp_path):
    empty = table.slice(0, 0)
    for name, entry in export.FORMATS.items():
        path = tmp_path / f"x{entry.suffix}"
        if name == "labeled-pair":
            count, _ = export.write(dataset, empty, path, name)
            assert count == len(dataset.pairs[0])
            path.unlink()
        else:
            with pytest.raises(NvretError, match="no pair has negatives enough"):
                export.write(dataset, empty, path, name)
    assert not list(tmp_path.iterdir())


def test_names_that_do_not_fit(dataset, table, tmp_path):
    with pytest.raises(NvretError, match="format is 'beir', expected one of parquet, triplet"):
        export.write(dataset, table, tmp_path / "x", "beir")
    with pytest.raises(NvretError, match=r"tevatron is written as \.jsonl, not as \.parquet"):
        export.write(dataset, table, tmp_path / "x.parquet", "tevatron")


@pytest.mark.parametrize("name", ["parquet", "triplet"])
def test_a_file_name_that_is_not_utf8_cannot_be_written(dataset, table, tmp_path, name):
    with pytest.raises(NvretError, match="cannot be written"):
        export.write(dataset, table, tmp_path / "\udcff", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["triplet", "n-tuple"])
def test_sentence_transformers_trains_on_it(dataset, table, tmp_path, name):
    from datasets import load_dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.training_args import (
        SentenceTransformerTrainingArguments,
    )

    path = tmp_path / "negatives.parquet"
    export.write(dataset, table, path, name)
    rows = load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    model = SentenceTransformer(str(assets.model_path("potion-base-8m")), device="cpu")
    before = model.encode(dataset.query_texts[:4])
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            per_device_train_batch_size=4,
            learning_rate=0.01,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows,
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(seen) == 2
    assert np.isfinite(seen).all()
    assert not np.allclose(model.encode(dataset.query_texts[:4]), before)
