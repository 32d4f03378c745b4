"""Where definitions meet, our negatives are those of sentence-transformers, text by text."""

import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from nvret import assets, data, mining, negatives, teachers
from nvret.analysis import lint
from nvret.io import adopted, candidates, export, rankings
from nvret.utils.near_duplicates import normalise

NUMBER = 3


@pytest.fixture(scope="module")
def dataset():
    """Real questions of one positive each; every passage with a text of its own."""
    whole = data.load("squadshifts-nyt", progress=False)
    seen, rows = set(), []
    for row, text in enumerate(map(normalise, whole.passages)):
        if text not in seen:
            seen.add(text)
            rows.append(row)
    passages = [whole.passages[row] for row in rows]
    place = {row: new for new, row in enumerate(rows)}
    asked = {}
    for row, text in enumerate(whole.query_texts):
        positives = whole.positives[row]
        if len(positives) == 1 and positives[0] in place and normalise(text) not in seen:
            asked.setdefault(text, [place[positives[0]]])
        if len(asked) == 150:
            break
    return data.from_texts("interop", passages, list(asked), list(asked.values()))


@pytest.fixture(scope="module")
def teacher(dataset):
    """A length limit that cuts no text: the other tool sets none for a static model."""
    long = teachers.DenseTeacher("potion-base-8m", 100_000, 100_000)
    return long.prepare(dataset, progress=False)


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(assets.model_path("potion-base-8m")), device="cpu")


def theirs(dataset, model, output_format="triplet", names=("anchor", "positive"), **options):
    query_rows, positive_rows = dataset.pairs
    pairs = {
        names[0]: [dataset.query_texts[row] for row in query_rows],
        names[1]: [dataset.passages[row] for row in positive_rows],
    }
    return mine_hard_negatives(
        Dataset.from_dict(pairs),
        model,
        corpus=dataset.passages,
        range_max=len(dataset.passages) - 1,
        num_negatives=NUMBER,
        output_format=output_format,
        verbose=False,
        **options,
    )


def ours(dataset, teacher, method, **options):
    return mining.mine(
        dataset,
        teacher,
        method,
        NUMBER,
        ceiling_positive="lowest",
        near_duplicates=None,
        progress=False,
        **options,
    )


OPTIONS = [
    (mining.NaiveTopK(), {}),
    (mining.TopKShifted(5), {"range_min": 5}),
    (mining.TopKAbs(0.3), {"max_score": 0.3}),
    (mining.TopKMarginPos(0.05), {"absolute_margin": 0.05}),
    (mining.TopKPercPos(0.95), {"relative_margin": 0.05}),
    (mining.TopKPercPos(0.5), {"relative_margin": 0.5}),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS, ids=lambda value: str(value))
def test_the_same_negatives(dataset, teacher, model, method, options):
    mined = export.NegativesByPair(dataset, ours(dataset, teacher, method), NUMBER)
    found = list(export.triplets(mined))
    assert len(found) > 100
    assert found == theirs(dataset, model, **options).to_list()


@pytest.mark.parametrize(
    ("own", "options"),
    [
        ({"skip": 5}, {"range_min": 5}),
        ({"min_score": 0.3}, {"min_score": 0.3}),
        ({"skip": 2, "min_score": 0.35}, {"range_min": 2, "min_score": 0.35}),
    ],
)
def test_a_shift_beside_a_margin_and_a_least_score(dataset, teacher, model, own, options):
    table = ours(dataset, teacher, mining.TopKMarginPos(0.05), **own)
    found = list(export.triplets(export.NegativesByPair(dataset, table, NUMBER)))
    assert len(found) > 0
    assert found == theirs(dataset, model, absolute_margin=0.05, **options).to_list()


@pytest.mark.parametrize("name", ["triplet", "n-tuple", "labeled-list"])
def test_their_scored_files_are_candidates(dataset, teacher, model, name, tmp_path):
    """What the other tool wrote is linted, inspected and mined from, without a model."""
    names = ("query", "answer") if name == "labeled-list" else ("anchor", "positive")
    path = tmp_path / "theirs.parquet"
    theirs(dataset, model, name, names, output_scores=True).to_parquet(path)
    found = lint.lint(path, progress=False)
    assert found.negatives > 300
    assert not any(found.counts[check] for check in ("unreadable", "not-finite", "positive"))
    table = adopted.table(path, dataset)
    assert table.num_rows == found.negatives
    scorer = candidates.load(path, dataset)
    method = mining.TopKPercPos(0.9)
    options = {"near_duplicates": None, "negative_positives": "safe", "progress": False}
    mined = mining.mine(dataset, scorer, method, 1, **options)
    whole = mining.mine(dataset, teacher, method, 1, **options).to_pandas()
    listed = table.to_pandas().groupby("query_id")["negative_id"].agg(set)
    whole = whole[[n in listed.get(q, ()) for q, n in whole[["query_id", "negative_id"]].values]]
    ids = ["query_id", "positive_id", "negative_id"]
    assert mined.select(ids).to_pylist() == whole[ids].to_dict("records")


def test_pylate_reads_our_three_parts(dataset, teacher, tmp_path):
    utils = pytest.importorskip("pylate.utils")
    ranked = rankings.rank(dataset, teacher, 20, mining.exclusions(dataset), progress=False)
    facts = {"teacher": "potion", "kind": "dense", "version": "0"}
    rankings.write(dataset, ranked, tmp_path / "parts", "three-part", facts)
    parts = {
        name: Dataset.from_parquet(str(tmp_path / "parts" / f"{name}.parquet"))
        for name in ("queries", "documents", "scores")
    }
    convert = utils.KDProcessing(parts["queries"], parts["documents"], n_ways=4)
    read = parts["scores"].map(convert.map).to_list()
    assert len(read) == len(dataset.pairs[0])
    for row, query, positive in zip(read, *dataset.pairs, strict=True):
        assert row["query"] == dataset.query_texts[query]
        assert row["documents"][0] == dataset.passages[positive]
        assert len(row["documents"]) == len(row["scores"]) == 4
        assert "" not in row["documents"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("triplet", ("anchor", "positive")),
        ("n-tuple", ("anchor", "positive")),
        ("labeled-pair", ("query", "document")),
        ("labeled-list", ("query", "document")),
    ],
)
@pytest.mark.parametrize("scores", [False, True])
def test_the_same_files(dataset, teacher, model, name, names, scores):
    table = ours(dataset, teacher, mining.TopKMarginPos(0.6))
    facts = negatives.provenance(table)
    assert 0 < facts["pairs_short"] < facts["pairs"]
    found = list(
        export.FORMATS[name].records(export.NegativesByPair(dataset, table, NUMBER), scores)
    )
    wanted = theirs(
        dataset, model, name, names, absolute_margin=0.6, output_scores=scores
    ).to_list()
    if name == "labeled-pair" and scores:  # a pair without negatives has no score in our table
        asked = {row["query"] for row in found}
        wanted = [row for row in wanted if row["query"] in asked]
    assert [list(row) for row in found] == [list(row) for row in wanted]
    assert [_texts(row) for row in found] == [_texts(row) for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        for key in row.keys() - _texts(row).keys():
            assert row[key] == pytest.approx(other[key], abs=2e-6)


def _texts(row):
    return {key: value for key, value in row.items() if not key.startswith(("score", "label"))}
