"""What each recipe gives on a small input, as it was recorded: a change needs a new version.

Results are kept under keys that stand for the code by a number (`nvret.utils.recipes`). Whoever
changes what a recipe gives must raise its number, or old results would be taken for new ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from helpers import models
from helpers.mining import MatrixTeacher
from nvret.data import RetrievalDataset, from_texts
from nvret.study import workspace
from nvret.utils import recipes, store
from nvret.utils.recipes import VERSIONS

GOLDEN = Path(__file__).parent / "golden" / "recipes.json"
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # what processors and releases of a library may differ by

PASSAGES = [
    "Paris is the capital of France and its largest city, on the river Seine.",
    "Paris is the capital of France and its largest city, by the river Seine!",
    "Lyon is a large city in the south-east of France.",
    "Berlin is the capital of Germany and its largest city.",
    "Bananas grow in bunches in warm and wet countries.",
    "The moon moves the water of the sea, which makes the tides.",
    "The tides are higher when the sun and the moon stand in one line.",
    "Salt is won from the water of the sea, which the sun dries.",
    "A river carries stones and salt to the sea.",
    "Charles Darwin wrote On the Origin of Species in 1859.",
    "Alfred Wallace wrote to Charles Darwin about the origin of species in 1858.",
    "The Eiffel Tower in Paris was finished in 1889.",
]
QUESTIONS = [
    "what is the capital of France",
    "where do bananas grow",
    "what makes the tides",
    "who wrote the origin of species",
    "where does salt come from",
    "when was the Eiffel Tower finished",
]
POSITIVES = [[0, 1], [4], [5, 6], [9], [7, 8], [11]]


def toy() -> RetrievalDataset:
    return from_texts("toy", PASSAGES, QUESTIONS, POSITIVES)


def clustered(dataset: RetrievalDataset) -> RetrievalDataset:
    """The set with the near-duplicate cluster of each passage."""
    from nvret.utils.near_duplicates import clusters

    labels = clusters(dataset.passages, threshold=0.5, measure="overlap")
    return replace(dataset, corpus=dataset.corpus.append_column("cluster", pa.array(labels)))


def grid(rows: int, columns: int, seed: int) -> np.ndarray:
    """(rows, columns) multiples of 1/16 in [-1/2, 1/2]: exact in float32, with ties."""
    row, column = np.indices((rows, columns))
    return (((row * 31 + column * 17 + row * column * seed) % 17 - 8) / 16).astype(np.float32)


def rows_of(table: Any) -> list[list[Any]]:
    """Ids, rank and scores of a table of negatives."""
    names = ["query_id", "positive_id", "negative_id", "rank", "score", "positive_score"]
    return [list(row.values()) for row in table.select(names).to_pylist()]


def digest(*parts: Any) -> str:
    """A hash of arrays and texts of our own, so that no key of the store plays a part."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return found.hexdigest()[:16]


def conversion(shared: Callable) -> Any:
    from safetensors.numpy import load_file

    from nvret import assets, data

    result = {}
    for name in ("potion-base-8m", "paraphrase-minilm-l3"):
        weights = load_file(assets.model_path(name) / "model.safetensors")
        result[name] = digest(*(part for key in sorted(weights) for part in (key, weights[key])))
    dataset = data.load("squadshifts-nyt", progress=False)
    pairs = [part.astype(np.int64) for part in dataset.pairs]
    result["squadshifts-nyt"] = digest(*dataset.passages, *dataset.query_texts, *pairs)
    return result


def vectors(shared: Callable) -> Any:
    from nvret import assets
    from nvret.encode import Encoder

    result = {}
    for name in ("potion-base-8m", "paraphrase-minilm-l3"):
        encoder = Encoder.load(assets.model_path(name))
        for kind, texts, length in (("query", QUESTIONS[:2], 6), ("passage", PASSAGES[:5], 12)):
            found = encoder.encode(texts, kind, max_length=length, progress=False)
            result[f"{name}, {kind}"] = found[:, :8].tolist()
    for pooling in ("cls", "mean", "last"):
        encoder = Encoder.load(shared("filled-bert", write_filled_bert), pooling=pooling)
        result[pooling] = encoder.encode(PASSAGES[:2], progress=False)[:, :8].tolist()
    return result


def write_filled_bert(folder: Path) -> None:
    from transformers import BertModel

    models.write_bert(folder)
    models.fill(BertModel.from_pretrained(folder)).save_pretrained(folder)


def search(shared: Callable) -> Any:
    from nvret.search import top_k

    queries, corpus = grid(5, 8, 3), grid(40, 8, 5)
    ceiling = np.array([np.inf, 0.5, 0.25, 0.0, -0.125], np.float32)
    exclude = [[0, 3], [], [7], list(range(20)), [39]]
    result = {}
    for name, options in {
        "all": {}, "ceiling": {"ceiling": ceiling}, "exclude": {"exclude": exclude},
        "both": {"ceiling": ceiling, "exclude": exclude},
    }.items():  # fmt: skip
        found = top_k(queries, corpus, 7, **options)
        result[name] = [found.ids.tolist(), finite(found.scores.numpy())]
    return result


def finite(scores: np.ndarray) -> list[list[float | None]]:
    """As JSON holds them: None for minus infinity."""
    return [[float(s) if math.isfinite(s) else None for s in row] for row in scores]


def bm25(shared: Callable) -> Any:
    from nvret.bm25 import BM25, tokenize

    index = BM25([tokenize(text) for text in PASSAGES])
    queries = [tokenize(text) for text in QUESTIONS]
    found = index.top_k(queries, 5)
    pairs = index.pair_scores(queries, np.array([rows[0] for rows in POSITIVES]))
    return {
        "tokens": tokenize("The Café's 2nd—edition_x, in Ünïcode"),
        "top": [found.ids.tolist(), finite(found.scores.numpy())],
        "pairs": finite(pairs[None])[0],
    }


def near_duplicates(shared: Callable) -> Any:
    from nvret.utils.near_duplicates import clusters, near_duplicate_pairs, normalise

    texts = [*PASSAGES, PASSAGES[3].upper(), "Ünïcode — two  words", "ünïcode two words"]
    result = {"normalised": [normalise(text) for text in texts[-3:]]}
    for measure in ("jaccard", "overlap"):
        found = near_duplicate_pairs(texts, threshold=0.2, measure=measure)
        result[measure] = [part.tolist() for part in found]
        result[f"clusters, {measure}"] = clusters(texts, threshold=0.2, measure=measure).tolist()
    return result


def mining(shared: Callable) -> Any:
    from nvret import mining, sampling
    from nvret.methods import (
        NaiveTopK,
        RandomNegatives,
        TopKAbs,
        TopKMarginPos,
        TopKPercPos,
        TopKShifted,
    )  # fmt: skip

    methods = [
        RandomNegatives(), NaiveTopK(), TopKShifted(2), TopKAbs(0.3), TopKMarginPos(0.05),
        TopKPercPos(0.95),
    ]  # fmt: skip
    teacher, dataset = MatrixTeacher(grid(6, 12, 7)), toy()
    options = {"near_duplicates": 0.5, "seed": 3, "progress": False}
    result = {}
    for method in methods:
        for draw in (sampling.TopK(), sampling.SampledTopK(5), sampling.Top1PlusSampled(5)):
            table = mining.mine(dataset, teacher, method, 2, draw, **options)
            result[f"{method}, {draw}"] = rows_of(table)
    for key, choice in {"ceiling_positive": "lowest", "negative_positives": "safe"}.items():
        table = mining.mine(dataset, teacher, TopKPercPos(0.95), 2, **options | {key: choice})
        result[f"{key}: {choice}"] = rows_of(table)
    return result


def ensembles(shared: Callable) -> Any:
    from nvret import ensembles, mining

    dataset = toy()
    tables = [
        mining.mine(dataset, MatrixTeacher(grid(6, 12, seed), name=f"t{seed}"), mining.NaiveTopK(),
                    6, near_duplicates=None, progress=False)
        for seed in (2, 3, 5)
    ]  # fmt: skip
    return {
        "cross-sample": rows_of(ensembles.cross_sample(dataset, tables, 3, seed=1)),
        "intra-sample": rows_of(ensembles.intra_sample(dataset, tables, 4, dedup=True)),
        "intra-sample-no-dedup": rows_of(ensembles.intra_sample(dataset, tables, 4, dedup=False)),
    }


def training(shared: Callable) -> Any:
    import tempfile

    from nvret import assets, mining, training
    from nvret.training.config import TrainingConfig

    dataset = toy()
    teacher = MatrixTeacher(grid(6, 12, 7))
    table = mining.mine(dataset, teacher, mining.NaiveTopK(), 3, progress=False)
    options = {
        "mined": {},
        "in-batch, bank": {"in_batch_negatives": True, "memory_bank": 6},
        "masked": {"in_batch_negatives": True, "mask_margin": 0.1},
    }
    bases = {name: assets.model_path("potion-base-8m") for name in options}
    options["transformer"] = {"precision": "float32", "dropout": 0.0}
    bases["transformer"] = shared("filled-bert", write_filled_bert)
    result = {}
    for name, changes in options.items():
        rate = 0.01 if name != "transformer" else 1e-3
        config = TrainingConfig(batch_size=3, learning_rate=rate, temperature=0.1, **changes)
        with tempfile.TemporaryDirectory() as folder:
            log = training.finetune(
                bases[name], dataset, table, Path(folder) / "model", config, seed=1,
                guide=teacher if config.mask_margin is not None else None,
                device="cpu", progress=False,
            )  # fmt: skip
        columns = ("step", "loss", "learning_rate", "grad_norm")
        result[name] = {column: log[column].to_pylist()[:3] for column in columns}
    return result


def head(shared: Callable) -> Any:
    import tempfile

    from nvret import mining
    from nvret.training import TrainingConfig
    from nvret.training.head import apply, train_head

    dataset, teacher = toy(), MatrixTeacher(grid(6, 12, 7))
    table = mining.mine(dataset, teacher, mining.NaiveTopK(), 3, progress=False)
    frozen = [grid(6, 8, 3), grid(12, 8, 5)]
    frozen = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in frozen]
    result = {}
    for name, changes in {
        "mined": {"epochs": 1.5, "weight_decay": 0.5},
        "in-batch, bank": {"in_batch_negatives": True, "memory_bank": 6},
        "masked": {"in_batch_negatives": True, "mask_margin": 0.1},
    }.items():
        config = TrainingConfig(batch_size=3, learning_rate=0.01, temperature=0.1, **changes)
        guide = teacher if config.mask_margin is not None else None
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "head"
            log = train_head(
                dataset, table, *frozen, output, config, seed=1, guide=guide, progress=False
            )
            mapped = apply(output, frozen[0][:2]).tolist()
        columns = ("step", "loss", "learning_rate", "grad_norm")
        result[name] = {column: log[column].to_pylist()[:3] for column in columns}
        result[name]["vectors"] = mapped
    return result


def evaluation(shared: Callable) -> Any:
    from nvret.evaluation import evaluate_ranking
    from nvret.study.scores import collapsed

    scores, dataset = grid(6, 12, 11), clustered(toy())
    ids = np.argsort(-scores, axis=1, kind="stable")
    found = evaluate_ranking(ids, np.take_along_axis(scores, ids, 1), dataset, k=(1, 3, 10))
    twins = collapsed(found, dataset, k=(3, 10)).scores
    return found.scores.to_pydict() | {"collapsed": twins.to_pydict()}


def splits(shared: Callable) -> Any:
    from nvret.study import mixtures
    from nvret.study import splits as parts

    dataset = clustered(toy())
    other = from_texts("other", [PASSAGES[1], PASSAGES[6]], [QUESTIONS[2], "new"], [[0], [1]])
    result: dict[str, Any] = {"clusters": dataset.corpus["cluster"].to_pylist()}
    for seed in (0, 1):
        for part in parts.split(dataset, dev=0.3, test=0.3, seed=seed, corpus="own"):
            ids = [part.queries["id"].to_pylist(), part.corpus["id"].to_pylist()]
            result[f"{part.name}, seed {seed}"] = ids
    result["leaks"] = [sorted(map(list, pairs)) for pairs in parts.leaks(toy(), other)]
    for seeds in ((), (0,), (1,), (0, 1, 2)):
        drawn = mixtures.sample(toy(), 3, *seeds)
        result[f"sample{seeds}"] = sorted(drawn.queries["id"].to_pylist())
    part = parts.split(dataset, dev=0.3, test=0.3, corpus="own").test
    for most in (None, 8):
        larger = parts.with_corpus(part, dataset, {"other": other}, passages=most).corpus
        ids, labels = (larger[name].to_pylist() for name in ("id", "cluster"))
        result[f"corpus, {most}"] = dict(zip(ids, labels, strict=True))
    result["passages"] = sorted(mixtures.sample_passages(toy(), 11).corpus["id"].to_pylist())
    result["shares"] = mixtures.shares({"a": 900, "b": 100, "c": 7}, 100, 0.5)
    return result


def hidden_labels(shared: Callable) -> Any:
    from nvret.analysis import audit

    result = {}
    for seed in range(4):
        hidden = audit.hide(toy(), seed)
        result[f"hidden, seed {seed}"] = hidden.pairs.to_pydict()
        result[f"seen, seed {seed}"] = hidden.dataset.qrels.to_pydict()
    one_each = from_texts("one", PASSAGES, QUESTIONS, [rows[:1] for rows in POSITIVES])
    derived = audit.cluster_labels(clustered(one_each))
    result["derived"] = derived.pairs.to_pydict()
    return result


def judges(shared: Callable) -> Any:
    from nvret.analysis import judges

    folders = {
        "embeddings": "potion-base-8m",
        "language model": str(shared("causal", models.write_causal)),
        "cross-encoder": str(shared("cross-encoder", models.write_cross_encoder)),
    }
    positives = [PASSAGES[rows[0]] for rows in POSITIVES]
    result = {}
    for name, folder in folders.items():
        judge = judges.load(folder, max_length=16)
        found = judge.scores(QUESTIONS, PASSAGES[3:9], positives, progress=False)
        result[name] = [type(judge).__name__, found.values.tolist(), int(found.tokens)]
    return result


def calibration(shared: Callable) -> Any:
    from nvret.analysis import audit, calibrate, ladder

    rng = np.random.default_rng(0)
    positives = [sorted(rng.choice(90, 3, replace=False).tolist()) for _ in range(80)]
    scores = (rng.integers(0, 60, (80, 90)) / 128).astype(np.float32)
    for query, rows in enumerate(positives):
        scores[query, rows] = rng.integers(40, 100, 3) / 128
    texts = [f"passage {n}" for n in range(90)], [f"question {n}" for n in range(80)]
    hidden = audit.hide(from_texts("toy", *texts, positives))
    dataset, teacher = hidden.dataset, MatrixTeacher(scores)
    result = {}
    for family in ladder.FAMILIES:
        steps = ladder.build(dataset, teacher, family, 2, dataset.positives, progress=False)
        pairs = calibrate.sample(steps, 0.1, 40)
        asked = pairs[["query_id", "corpus_id"]]
        known = pd.MultiIndex.from_frame(hidden.pairs.to_pandas())
        score = pd.MultiIndex.from_frame(asked).isin(known).astype(np.int32)
        labels = pa.table({**asked.to_dict("list"), "score": score})
        answers = (
            calibrate.by_hidden(steps, hidden, 0.1),
            calibrate.by_labels(steps, labels, 0.1, resamples=5),
            calibrate.by_scores(steps, 0.1, resamples=5),
        )
        curves = [found.curve["rate"].iloc[::10].tolist() for found in answers]
        result[family] = [pairs["candidate"].tolist()[:10], *curves]
    return result


RECIPES = {
    "conversion": conversion, "vectors": vectors, "search": search, "bm25": bm25,
    "near-duplicates": near_duplicates, "mining": mining, "ensembles": ensembles,
    "training": training, "head": head, "evaluation": evaluation, "splits": splits,
    "hidden-labels": hidden_labels, "judges": judges, "calibration": calibration,
}  # fmt: skip


def rounded(value: Any) -> Any:
    """Numbers to six significant digits, so that the file stays small."""
    if isinstance(value, dict):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """The places that differ: ids, texts and shapes at all, numbers by more than the tolerance."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return [
            d for key in found for d in differences(found[key], expected[key], f"{where}/{key}")
        ]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    numbers = isinstance(found, float) and isinstance(expected, int | float)
    if numbers and math.isclose(found, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
        return []
    return [] if found == expected else [f"{where}: {found!r}, recorded {expected!r}"]


def test_every_recipe_has_a_result():
    assert RECIPES.keys() == VERSIONS.keys() == json.loads(GOLDEN.read_text()).keys()


@pytest.mark.parametrize("name", VERSIONS)
def test_a_recipe_gives_what_its_version_gave(name, shared, request):
    golden = json.loads(GOLDEN.read_text())
    found, record = rounded(RECIPES[name](shared)), golden.get(name)
    if record is None or record["version"] != VERSIONS[name]:
        if not request.config.getoption("record"):
            pytest.fail(
                f"no result of {name!r} is recorded at version {VERSIONS[name]}; record it with: "
                "python -m pytest tests/test_recipes.py --record"
            )
        golden[name] = {"version": VERSIONS[name], "result": found}
        entries = (f'"{key}": {json.dumps(golden[key])}' for key in sorted(golden))
        GOLDEN.write_text("{\n" + ",\n".join(entries) + "\n}\n")
        return
    changed = differences(found, record["result"])
    if changed:
        pytest.fail(
            f"{name!r} gives another result than at version {record['version']} "
            f"({len(changed)} places, the first: {changed[0]}). If that is meant, raise "
            f"VERSIONS[{name!r}] in nvret/utils/recipes.py, so that no old result is taken for a "
            "new one, and record it with: python -m pytest tests/test_recipes.py --record"
        )


@pytest.mark.parametrize("stage", workspace.RECIPES)
def test_a_stages_key_changes_with_all_that_it_rests_on(stage, monkeypatch):
    def key():
        recipes._release.cache_clear()
        return store.fingerprint(workspace.inputs(stage, part=1))

    before = key()
    assert store.fingerprint(workspace.inputs(stage, part=2)) != before
    for name in workspace.RECIPES[stage]:
        with monkeypatch.context() as patch:
            patch.setitem(VERSIONS, name, VERSIONS[name] + 1)
            assert key() != before, name
        for library in recipes.LIBRARIES.get(name, ()):
            with monkeypatch.context() as patch:
                keys = []
                for version in ("1", "1+cu130", "2"):
                    installed = {library: version}
                    patch.setattr(metadata, "version", lambda n, own=installed: own.get(n, "1"))
                    keys.append(key())
                assert keys[0] == keys[1] != keys[2], library
    assert key() == before


def test_what_encodes_or_trains_rests_on_its_libraries():
    for stage, names in workspace.RECIPES.items():
        if stage not in ("leaks", "logs"):  # texts alone; a model, whose name has them
            assert {"vectors", "judges"} & set(names), stage


def test_a_difference_is_seen():
    record = {"ids": [1, 2], "scores": [0.5, None], "name": "a"}
    assert differences(record, {"ids": [1, 2], "scores": [0.50001, None], "name": "a"}) == []
    assert differences(record, record | {"ids": [2, 1]}) == [
        "/ids/0: 1, recorded 2", "/ids/1: 2, recorded 1",
    ]  # fmt: skip
    assert len(differences(record, record | {"scores": [0.501, None]})) == 1
    assert len(differences(record, record | {"scores": [0.5]})) == 1
    assert len(differences(record, {"ids": [1, 2]})) == 1
