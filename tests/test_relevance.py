"""Negatives by chance: what the labels and a guide keep out, against loops over all pairs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from helpers.training import CONFIG, STATIC, Table, assert_same, changed, fitting, mined, toy
from nvret import teachers
from nvret.encode import Encoder
from nvret.losses import FalseNegativeMask
from nvret.training import finetune, trainer
from nvret.training.batches import Collator, Examples
from nvret.utils.errors import NvretError

GUIDED = changed(CONFIG, in_batch_negatives=True, mask_margin=0.1)


def guide(dataset, seed=0):
    shape = dataset.queries.num_rows, dataset.corpus.num_rows
    return Table(np.random.default_rng(seed).random(shape))


def tune(output, config, dataset=None, **options):
    dataset = dataset or toy()
    negatives = mined(dataset)
    return finetune(
        STATIC, dataset, negatives, output, config, seed=1, device="cpu", progress=False, **options
    )


@examples(100)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([-0.5, 0.0, 0.25, 1.0, np.inf]),
    st.integers(0, 7),
    st.booleans(),
)
def test_equals_the_loop(seed, margin, pool, guided):
    """Scores are multiples of 1/4, so that ties with the positive and with the margin occur."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-4, 5, (3, 8)).astype(np.float32) / 4
    labelled = [np.flatnonzero(rng.random(8) < 0.3) for _ in range(3)]
    queries, positives = rng.integers(0, 3, 5), rng.integers(0, 8, 5)
    passages = rng.choice(8, pool, replace=False)
    relevance = FalseNegativeMask(labelled, Table(table) if guided else None, margin)
    found = relevance(queries, positives, passages)
    assert found.shape == (5, pool)
    for b, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        for u, passage in enumerate(passages):
            above = guided and table[query, passage] > table[query, positive] + margin
            assert found[b, u] == (passage in labelled[query] or above)
    if margin == np.inf:
        assert (found == FalseNegativeMask(labelled)(queries, positives, passages)).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 1.25]))
def test_a_share_instead_of_a_margin(seed, perc):
    """Of a positive of negative score the limit is as far above it as the share says."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-4, 5, (3, 8)).astype(np.float32) / 4
    queries, positives = rng.integers(0, 3, 5), rng.integers(0, 8, 5)
    mask = FalseNegativeMask([np.array([], int)] * 3, Table(table), perc=perc)
    found = mask(queries, positives, np.arange(8))
    for b, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        own = table[query, positive]
        limit = own * perc if own >= 0 else own * (2 - perc)
        assert found[b].tolist() == (table[query] > limit).tolist()


def test_a_share_masks_in_training(tmp_path):
    dataset = toy()
    loose, tight = (
        tune(tmp_path / str(perc), changed(CONFIG, in_batch_negatives=True, mask_perc=perc),
             dataset, guide=guide(dataset))
        for perc in (2.0, 0.1)
    )  # fmt: skip
    assert loose["loss"][0].as_py() > tight["loss"][0].as_py()


@pytest.mark.parametrize("teacher", ["bm25", STATIC])
def test_real_guides(teacher):
    """No passage is suspected for having the positive's own text, and some are suspected."""
    dataset = toy()
    scorer = teachers.prepare(
        teacher if teacher == "bm25" else str(teacher), dataset, progress=False
    )
    queries, positives = dataset.pairs
    passages = np.arange(dataset.corpus.num_rows)
    suspected = FalseNegativeMask([np.array([], int)] * len(dataset.queries), scorer)(
        queries, positives, passages
    )
    assert not suspected[np.arange(len(queries)), positives].any()
    assert 0 < suspected.mean() < 1
    for b in (0, 7, 20):
        for passage in passages:
            pair = np.array([positives[b], passage])
            own, other = scorer.pair_scores(queries[[b, b]], pair)
            assert suspected[b, passage] == (other > own)


def test_the_batch_says_what_the_guide_suspects():
    dataset = toy()
    scorer = guide(dataset)
    pairs = Examples.of(dataset, mined(dataset))
    encoder = Encoder.load(STATIC)
    collate = Collator.of(encoder, dataset, pairs, GUIDED, False, scorer)
    batch = collate([0, 3, 9, 21])
    rows, chosen = batch["passage_rows"].numpy(), batch["query_rows"]
    listed = np.column_stack([pairs.positives, pairs.negatives])[[0, 3, 9, 21]]
    student = trainer.Student(encoder, GUIDED, collate.mask)
    options = torch.from_numpy(listed), None, batch["passage_rows"]
    excluded = student._excluded(chosen, *options).numpy()
    assert chosen.tolist() == pairs.queries[[0, 3, 9, 21]].tolist()
    suspects = 0
    for b, i in enumerate([0, 3, 9, 21]):
        query, positive = pairs.queries[i], pairs.positives[i]
        assert rows[batch["positives"][b]] == positive
        assert rows[batch["negatives"][b]].tolist() == pairs.negatives[i].tolist()
        for u, row in enumerate(rows):
            above = scorer.scores[query, row] > scorer.scores[query, positive] + np.float32(0.1)
            relevant = row in dataset.positives[query]
            assert excluded[b, u] == (relevant or above or row in pairs.negatives[i])
            suspects += above
    assert suspects > 5
    plain = Collator.of(encoder, dataset, pairs, fitting(STATIC), False)([0, 3])
    assert "passage_rows" not in plain


def test_a_guide_that_suspects_nothing_changes_nothing(tmp_path):
    dataset = toy()
    flat = Table(np.zeros((dataset.queries.num_rows, dataset.corpus.num_rows)))
    tune(tmp_path / "guided", GUIDED, guide=flat)
    tune(tmp_path / "plain", changed(GUIDED, mask_margin=None))
    assert_same(tmp_path / "guided", tmp_path / "plain")
    tune(tmp_path / "strict", GUIDED, guide=guide(dataset))
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "strict", tmp_path / "plain")


def test_a_guide_that_suspects_all_leaves_the_mined_negatives(tmp_path):
    dataset = toy()
    scores = np.ones((dataset.queries.num_rows, dataset.corpus.num_rows))
    scores[dataset.pairs] = 0
    tune(tmp_path / "guided", GUIDED, guide=Table(scores))
    config = changed(GUIDED, in_batch_negatives=False, mask_margin=None)
    tune(tmp_path / "mined", config)
    assert_same(tmp_path / "guided", tmp_path / "mined", atol=1e-6)


def test_the_guide_is_an_input_of_the_run(tmp_path):
    tune(tmp_path / "guided", GUIDED, guide=guide(toy()))
    said = json.loads((tmp_path / "guided" / "training.json").read_text())
    assert said["guide"] == "of the test"
    other = guide(toy())
    other.fingerprint = "another"
    with pytest.raises(NvretError, match="holds a run with other inputs"):
        tune(tmp_path / "guided", GUIDED, guide=other)


def test_a_run_from_before_there_was_an_option_is_one_without_it(tmp_path):
    tune(tmp_path / "model", CONFIG)
    path = tmp_path / "model" / "training.json"
    said = json.loads(path.read_text())
    assert "guide" not in said
    for name in ("mask_margin", "memory_bank"):
        del said["config"][name]
    path.write_text(json.dumps(said))
    tune(tmp_path / "model", CONFIG)
    with pytest.raises(NvretError, match="holds a run with other inputs"):
        tune(tmp_path / "model", changed(CONFIG, memory_bank=4))


def test_guide_and_margin_need_each_other(tmp_path):
    with pytest.raises(NvretError, match=r"mask_margin is 0\.1, but no guide is given"):
        tune(tmp_path / "model", GUIDED)
    with pytest.raises(NvretError, match="guide 'table' is given, but mask_margin is None"):
        tune(tmp_path / "model", CONFIG, guide=guide(toy()))
