"""InfoNCE against its definition in float64, one pair at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import examples
from nvret.losses import info_nce
from nvret.utils.errors import NvretError


def oracle(
    queries, passages, positives, negatives, temperature, in_batch, known, bank=(), bank_known=(),
    hardness=0,
):  # fmt: skip
    losses = []
    for q, (positive, listed) in enumerate(zip(positives, negatives, strict=True)):
        own = [n for n in listed if n >= 0]
        pool = list(own)
        if in_batch:
            left_out = {positive, *own} | {p for p in range(len(passages)) if known[q][p]}
            pool += [p for p in range(len(passages)) if p not in left_out]
        vectors = [passages[p] for p in [positive, *pool]]
        vectors += [bank[m] for m in range(len(bank)) if not bank_known[q][m]]
        score = [math.exp(float(queries[q] @ vector) / temperature) for vector in vectors]
        for place in range(1, len(own) + 1):
            score[place] *= math.exp(hardness * float(queries[q] @ vectors[place]))
        losses.append(-math.log(score[0] / sum(score)))
    return sum(losses) / len(losses)


@st.composite
def batches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size, pool, count = draw(st.integers(1, 5)), draw(st.integers(1, 8)), draw(st.integers(0, 4))
    vectors = [rng.standard_normal((n, 4)) for n in (size, pool)]
    queries, passages = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    positives = rng.integers(0, pool, size)
    negatives = rng.integers(-1, pool, (size, count))  # with repetitions and gaps
    known = rng.random((size, pool)) < 0.3
    return queries, passages, positives, negatives, known


@examples(200)
@given(batches(), st.sampled_from([0.05, 0.5, 1.0]), st.booleans(), st.sampled_from([0, 5]))
def test_equals_the_definition(batch, temperature, in_batch, hardness):
    queries, passages, positives, negatives, known = batch
    got = info_nce(
        torch.from_numpy(queries),
        torch.from_numpy(passages),
        torch.from_numpy(positives),
        torch.from_numpy(negatives),
        temperature=temperature,
        in_batch=in_batch,
        known=torch.from_numpy(known) if in_batch else None,
        hardness=hardness,
    )
    expected = oracle(
        queries, passages, positives, negatives, temperature, in_batch, known, hardness=hardness
    )
    assert got.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@examples(200)
@given(batches(), st.integers(0, 6), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_bank_equals_the_definition(batch, places, in_batch, seed):
    queries, passages, positives, negatives, known = batch
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((places, 4))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    bank_known = rng.random((len(queries), places)) < 0.3

    def loss(**options):
        tensors = map(torch.from_numpy, (queries, passages, positives, negatives, known))
        *tensors, relevant = tensors
        return info_nce(
            *tensors, temperature=0.5, in_batch=in_batch, known=relevant, **options
        ).item()

    got = loss(bank=torch.from_numpy(bank), bank_known=torch.from_numpy(bank_known))
    expected = oracle(
        queries, passages, positives, negatives, 0.5, in_batch, known, bank, bank_known
    )
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    everything = torch.ones(len(queries), places, dtype=torch.bool)
    assert loss(bank=torch.from_numpy(bank), bank_known=everything) == pytest.approx(
        loss(), rel=1e-12, abs=1e-15
    )
    none = np.zeros_like(bank_known)
    assert loss(bank=torch.from_numpy(bank)) == pytest.approx(
        oracle(queries, passages, positives, negatives, 0.5, in_batch, known, bank, none),
        rel=1e-9,
        abs=1e-12,
    )


def test_gradients():
    torch.manual_seed(0)
    queries = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    passages = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    positives, negatives = torch.tensor([0, 1, 4]), torch.tensor([[2, 2], [3, -1], [-1, -1]])
    for in_batch in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, p, on=in_batch: info_nce(
                q, p, positives, negatives, temperature=0.5, in_batch=on
            ),
            (queries, passages),
        )


def test_hardness_is_that_of_sentence_transformers():
    """Loss and gradients: the weight itself has none."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    class NoModel(torch.nn.Module):
        pass

    rng = np.random.default_rng(0)
    vectors = [torch.from_numpy(rng.standard_normal((4, 8))) for _ in range(3)]
    ours = [one.clone().requires_grad_() for one in vectors]
    theirs = [one.clone().requires_grad_() for one in vectors]
    queries, *pool = (torch.nn.functional.normalize(one, dim=1) for one in ours)
    rows = torch.arange(4)
    loss = info_nce(
        queries, torch.cat(pool), rows, rows[:, None] + 4,
        temperature=0.05, in_batch=True, hardness=5.0,
    )  # fmt: skip
    peer = MultipleNegativesRankingLoss(
        NoModel(), scale=20.0, hardness_mode="hard_negatives", hardness_strength=5.0
    )
    expected = peer.compute_loss_from_embeddings(theirs, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)


def test_a_pair_without_negatives_moves_nothing_and_counts():
    queries = torch.eye(2, requires_grad=True)
    passages = torch.eye(2)
    negatives = torch.tensor([[1], [-1]])
    loss = info_nce(queries, passages, torch.tensor([0, 1]), negatives, temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)
    assert queries.grad[1].abs().sum() == 0
    assert queries.grad[0].abs().sum() > 0


def test_equal_scores_give_the_logarithm_of_the_candidates():
    vectors = torch.ones(1, 4) / 2
    loss = info_nce(
        vectors,
        vectors.expand(5, 4),
        torch.tensor([0]),
        torch.tensor([[1, 2, 3, 4]]),
        temperature=0.02,
    )
    assert loss.item() == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"passages": torch.ones(3, 5)}, "shapes"),
        ({"positives": torch.tensor([0])}, "expected"),
        ({"known": torch.zeros(1, 1, dtype=torch.bool), "in_batch": True}, "known has shape"),
        ({"bank": torch.ones(3, 5)}, r"bank has shape \(3, 5\), expected \(M, 4\)"),
        ({"bank": torch.ones(3, 4), "bank_known": torch.zeros(2, 2)}, r"expected \(2, 3\)"),
        ({"bank_known": torch.zeros(2, 2, dtype=torch.bool)}, r"expected \(2, 0\)"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    given_ = {
        "queries": torch.ones(2, 4),
        "passages": torch.ones(3, 4),
        "positives": torch.tensor([0, 1]),
        "negatives": torch.tensor([[2], [2]]),
        "temperature": 0.1,
    }
    with pytest.raises(NvretError, match=message):
        info_nce(**{**given_, **change})
