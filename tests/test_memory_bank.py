"""The memory bank: a queue against a list, its loss against loops, and a run that is resumed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers import examples
from helpers.training import (
    CONFIG,
    STATIC,
    Table,
    assert_same,
    changed,
    fitting,
    mined,
    run,
    stopped_at,
    toy,
    weights,
)  # fmt: skip
from nvret.encode import Encoder
from nvret.losses import FalseNegativeMask
from nvret.training import trainer
from nvret.training.batches import Collator, CrossBatchMemory, Examples


@pytest.fixture(params=["static", "bert"])
def base(request, tiny_bert):
    return STATIC if request.param == "static" else tiny_bert


@examples(100)
@given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 9), max_size=8, unique=True)))
def test_the_queue_is_a_list_without_repetitions(size, batches):
    bank, expected = CrossBatchMemory(size, 1), []
    for step, rows in enumerate(batches):
        vectors = torch.tensor([[100.0 * step + row] for row in rows]).reshape(-1, 1)
        bank.push(torch.tensor(rows, dtype=torch.int64), vectors.requires_grad_())
        old = [(row, value) for row, value in expected if row not in rows]
        expected = [*old, *((row, 100.0 * step + row) for row in rows)][-size:]
        filled = bank.rows >= 0
        assert not bank.vectors.requires_grad
        assert bank.rows.shape == (size,)
        assert bank.vectors.shape == (size, 1)
        found = zip(bank.rows[filled].tolist(), bank.vectors[filled, 0].tolist(), strict=True)
        assert list(found) == expected


def student(base, config, guide=None, dataset=None, dropout=0.0):
    """In float64 and in training mode, with its collator and pairs."""
    dataset = dataset or toy()
    encoder = Encoder.load(base, dropout=dropout).double().train()
    pairs = Examples.of(dataset, mined(dataset, skip={2}))
    batches = replace(
        Collator.of(encoder, dataset, pairs, config, False, guide), budget=40, slack=4
    )
    return trainer.Student(encoder, config, batches.mask), batches, pairs, dataset


@pytest.mark.parametrize(("in_batch", "guided"), [(False, False), (True, False), (True, True)])
def test_loss_and_gradients_are_those_of_the_loop(in_batch, guided):
    """Over three batches, with a bank that holds the passages of about two."""
    margin = 0.1 if guided else None
    config = changed(CONFIG, temperature=0.1, memory_bank=20, in_batch_negatives=in_batch)
    config = changed(config, mask_margin=margin)
    table = np.random.default_rng(5).random((40, 60)).astype(np.float32)
    model, batches, pairs, dataset = student(STATIC, config, Table(table) if guided else None)
    assert model.memory.vectors.dtype == torch.float64
    encoder = model.encoder

    def vector(text, kind, length):
        tokens = encoder.tokenize([text], kind, max_length=length, progress=False)
        return encoder(**encoder.collate(tokens, [0]))[0]

    def barred(query, positive, row):
        above = guided and table[query, row] > table[query, positive] + np.float32(0.1)
        return row in dataset.positives[query] or above

    queue, older, left_out = [], 0, 0
    for chosen in ([0, 1, 2, 9], [3, 4, 5, 6, 7], [0, 10, 9, 4]):
        encoder.zero_grad()
        loss = model(**batches(chosen))["loss"]
        loss.backward()
        found = encoder.backbone.weight.grad.clone()
        encoder.zero_grad()
        pool = np.unique(np.column_stack([pairs.positives, pairs.negatives])[chosen])
        pool = [int(row) for row in pool if row >= 0]
        new = {row: vector(dataset.passages[row], "passage", 64) for row in pool}
        losses = []
        for i in chosen:
            query, positive = pairs.queries[i], int(pairs.positives[i])
            own = [int(row) for row in pairs.negatives[i] if row >= 0]
            others = [new[row] for row in own]
            if in_batch:
                others += [
                    new[row]
                    for row in pool
                    if row not in [positive, *own] and not barred(query, positive, row)
                ]
            kept = [
                value
                for row, value in queue
                if row not in own
                and not barred(query, positive, row)
                and not (in_batch and row in pool)
            ]
            older, left_out = older + len(kept), left_out + len(queue) - len(kept)
            q = vector(dataset.query_texts[query], "query", 32)
            logits = torch.stack([q @ p for p in [new[positive], *others, *kept]]) / 0.1
            losses.append(-logits.log_softmax(0)[0])
        expected = torch.stack(losses).mean()
        torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
        expected.backward()
        torch.testing.assert_close(found, encoder.backbone.weight.grad, atol=1e-9, rtol=1e-7)
        queue = [(row, value) for row, value in queue if row not in pool]
        queue = [*queue, *((row, new[row].detach()) for row in pool)][-20:]
    assert older > 20
    assert left_out > 20
    assert model.memory.rows.tolist() == [row for row, _ in queue]


def test_only_training_fills_the_bank():
    model, batches, *_ = student(STATIC, changed(CONFIG, memory_bank=8))
    model.eval()(**batches([0, 1]))
    assert (model.memory.rows < 0).all()
    model.train()(**batches([0, 1]))
    assert (model.memory.rows >= 0).sum() == min(8, len(batches([0, 1])["passage_rows"]))


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_bank_of_known_positives_changes_nothing(in_batch):
    config = changed(CONFIG, memory_bank=8, in_batch_negatives=in_batch)
    model, batches, *_ = student(STATIC, config)
    model.mask = FalseNegativeMask([np.arange(60)] * 40)  # every passage answers every query
    model(**batches([0, 1, 2]))
    batch = batches([7, 8, 9])
    with_bank = model(**batch)["loss"]
    assert (model.memory.rows >= 0).all()
    model.memory = None
    torch.testing.assert_close(model(**batch)["loss"], with_bank, atol=0, rtol=0)


def test_chunks_give_the_loss_the_gradients_and_the_bank_of_the_whole_batch(tiny_bert):
    found = []
    for chunk_tokens in (None, 80):
        config = changed(CONFIG, temperature=0.1, memory_bank=16, in_batch_negatives=True)
        model, batches, *_ = student(
            tiny_bert, changed(config, chunk_tokens=chunk_tokens), dropout=0.3
        )
        torch.manual_seed(3)
        for chosen in ([0, 1, 2], [3, 4, 9]):
            batch = batches(chosen)
            groups = [*batch["query_batches"], *batch["passage_batches"]]
            assert sum(group["input_ids"].numel() for group in groups) > 80
            model.zero_grad()
            loss = model(**batch)["loss"]
            loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), model.memory.state_dict(), gradients))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("in_batch", [False, True])
def test_resumed_is_the_same_as_uninterrupted(base, in_batch, tmp_path, monkeypatch):
    """Stopped two steps after a checkpoint, with a bank that is not yet full there."""
    changes = {"checkpoint_steps": 3, "logging_steps": 1}
    config = fitting(base, memory_bank=150, in_batch_negatives=in_batch, **changes)
    dataset = toy(64, passages=200)
    options = {"dataset": dataset, "negatives": mined(dataset), "base": base}
    with stopped_at(monkeypatch, 6):
        run(tmp_path / "resumed", config=config, **options)
    checkpoint = tmp_path / ".resumed.partial" / "checkpoints" / "checkpoint-3"
    saved = load_file(checkpoint / "model.safetensors")
    assert saved["memory.vectors"].shape[0] == 150
    assert 0 < (saved["memory.rows"] >= 0).sum() < 150
    resumed = run(tmp_path / "resumed", config=config, **options)
    whole = run(tmp_path / "whole", config=config, **options)
    np.testing.assert_allclose(resumed["loss"], whole["loss"], atol=1e-5)
    assert_same(tmp_path / "resumed", tmp_path / "whole", atol=1e-6)
    run(tmp_path / "without", config=changed(config, memory_bank=0), **options)
    assert weights(tmp_path / "whole").keys() == weights(tmp_path / "without").keys()
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "whole", tmp_path / "without", atol=1e-4)


def test_training_with_a_bank_lowers_the_loss(base, tmp_path):
    log = run(tmp_path / "model", base=base, config=fitting(base, epochs=8, memory_bank=30))
    loss = log["loss"].to_pylist()
    assert loss[-1] < loss[2]  # the bank is filled by then
