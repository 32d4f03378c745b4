"""A linear head on frozen vectors: exact gradients, finetune's order, the folder, a real run."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from helpers.training import CONFIG, STATIC, Table, changed, fitting, mined, run, toy
from nvret import assets, data, mining, teachers
from nvret.encode import Encoder, embed
from nvret.evaluation import evaluate, evaluate_all
from nvret.methods import RandomNegatives
from nvret.study import config, mixtures, runs, workspace
from nvret.training import head, trainer
from nvret.training.config import TrainingConfig
from nvret.training.head import HeadEncoder, apply, train_head
from nvret.utils.errors import NvretError

L3 = assets.model_path("paraphrase-minilm-l3")
RATE = changed(CONFIG, learning_rate=0.01, logging_steps=1, checkpoint_steps=None)


def unit(rows, dimension=6, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def frozen(dataset):
    return unit(dataset.queries.num_rows), unit(dataset.corpus.num_rows, seed=1)


def train(output, config=RATE, seed=1, dataset=None, negatives=None, vectors=None, guide=None):
    dataset = dataset or toy()
    negatives = mined(dataset, skip={2}) if negatives is None else negatives
    vectors = frozen(dataset) if vectors is None else vectors
    return train_head(
        dataset, negatives, *vectors, output, config, seed=seed, guide=guide, progress=False
    )


def loop_loss(weight, dataset, table, chosen, config, scores=None):
    """The mean loss of some pairs, pair by pair and negative by negative, from ids."""
    scores = np.zeros((12, 20)) if scores is None else scores
    queries, passages = (torch.from_numpy(v).double() for v in frozen(dataset))

    def cosine(query, passage):
        q, p = weight @ queries[query], weight @ passages[passage]
        return (q @ p) / (q.norm() * p.norm())

    listed = {}
    for row in table.sort_by("rank").to_pylist():
        key = int(row["query_id"][1:]), int(row["positive_id"][1:])
        listed.setdefault(key, []).append(int(row["negative_id"][1:]))
    batch = {passage for pair in chosen for passage in (pair[1], *listed.get(pair, ()))}
    total = 0.0
    for query, positive in chosen:
        others = list(listed.get((query, positive), ()))
        if config.in_batch_negatives:
            for passage in sorted(batch - {positive, *others}):
                relevant = passage in dataset.positives[query]
                limit = scores[query, positive] + (config.mask_margin or 0.0)
                suspected = config.mask_margin is not None and scores[query, passage] > limit
                if not relevant and not suspected:
                    others.append(passage)
        weights = [math.e ** (cosine(query, n) / config.temperature) for n in others]
        own = math.e ** (cosine(query, positive) / config.temperature)
        total = total - (own / (own + sum(weights))).log()
    return total / len(chosen)


@pytest.mark.parametrize(
    "changes", [{}, {"in_batch_negatives": True}, {"in_batch_negatives": True, "mask_margin": 0.1}]
)
def test_the_first_step_follows_the_gradient_of_explicit_loops(tmp_path, changes):
    """AdamW's first step is the sign of each gradient, so the change of W shows them all."""
    dataset, size = toy(12, 20), 8
    config = changed(
        RATE, batch_size=size, epochs=0.5, temperature=0.3, warmup_ratio=0.0, schedule="constant",
        max_grad_norm=0.0, weight_decay=0.0, **changes,
    )  # fmt: skip
    table = mined(dataset, skip={2})
    scores = np.random.default_rng(5).random((12, 20)).astype(np.float32)
    guide = Table(scores) if "mask_margin" in changes else None
    pairs = list(zip(*(rows.tolist() for rows in dataset.pairs), strict=True))
    chosen = [pairs[i] for i in list(trainer.Shuffle(len(pairs), 1))[:size]]
    weight = torch.eye(6, dtype=torch.float64, requires_grad=True)
    loss = loop_loss(weight, dataset, table, chosen, config, scores)
    loss.backward()
    log = train(tmp_path / "head", config, dataset=dataset, negatives=table, guide=guide)
    assert log["loss"][0].as_py() == pytest.approx(loss.item(), rel=1e-5)
    assert log["grad_norm"][0].as_py() == pytest.approx(weight.grad.norm().item(), rel=1e-5)
    assert log["step"].to_pylist() == [1]
    step = -config.learning_rate * weight.grad / (weight.grad.abs() + 1e-8)
    np.testing.assert_allclose(head.load(tmp_path / "head") - np.eye(6), step, atol=1e-6)


def test_the_gradient_is_that_of_explicit_loops():
    """Of the module itself, away from the identity."""
    dataset = toy(12, 20)
    config = changed(RATE, in_batch_negatives=True, temperature=0.3)
    table = mined(dataset, skip={2})
    pairs = trainer_batch(dataset, table, config, range(8))
    one = head.Head(6)
    with torch.no_grad():
        one.change.copy_(torch.from_numpy(unit(6, seed=3)))
    trainer.Student(one, config, pairs[0].mask)(**pairs[1])["loss"].backward()
    weight = torch.tensor(one.weight, dtype=torch.float64, requires_grad=True)
    named = list(zip(*(rows.tolist() for rows in dataset.pairs), strict=True))[:8]
    loop_loss(weight, dataset, table, named, config).backward()
    torch.testing.assert_close(one.change.grad.double(), weight.grad, atol=1e-5, rtol=1e-4)


def trainer_batch(dataset, table, config, chosen):
    """A collator of frozen vectors, and one of its batches."""
    from nvret.losses import FalseNegativeMask
    from nvret.training.batches import Collator, Examples

    queries, passages = frozen(dataset)
    batches = Collator(
        Examples.of(dataset, table), head.Head(6), head.Vectors(queries), head.Vectors(passages),
        np.arange(len(queries)), np.arange(len(passages)), FalseNegativeMask(dataset.positives),
        10**9, 10**9,
    )  # fmt: skip
    return batches, batches(list(chosen))


def seen_batches(monkeypatch):
    """The (query, positive) texts of each batch that a student is given, as they come."""
    batches, forward = [], trainer.Student.forward

    def watched(self, *args, **batch):
        rows = batch["query_rows"].tolist(), batch["passage_rows"][batch["positives"]].tolist()
        batches.append(list(zip(*rows, strict=True)))
        return forward(self, *args, **batch)

    monkeypatch.setattr(trainer.Student, "forward", watched)
    return batches


def test_pairs_steps_and_rates_are_those_of_finetune(tmp_path, monkeypatch):
    changes = {"epochs": 2.4, "in_batch_negatives": True, "logging_steps": 3, "schedule": "cosine"}
    batches = seen_batches(monkeypatch)
    plain = run(tmp_path / "model", config=changed(fitting(STATIC), **changes))
    expected = batches.copy()
    batches.clear()
    ours = train(tmp_path / "head", changed(RATE, **changes, learning_rate=0.1))
    assert batches == expected
    assert batches[0] != batches[len(batches) // 2]
    assert ours.schema == plain.schema
    for column in ("step", "epoch", "learning_rate"):
        np.testing.assert_allclose(ours[column], plain[column], rtol=1e-12)


def test_before_any_step_and_by_decay_alone_the_head_is_the_base_model(tmp_path):
    vectors = unit(20)
    one = head.Head(6)
    np.testing.assert_allclose(one(torch.from_numpy(vectors)).detach(), vectors, atol=1e-7)
    np.testing.assert_array_equal(one.weight, np.eye(6))
    dataset = toy()
    none = mined(dataset).slice(0, 0)  # no negative, so no gradient
    train(tmp_path / "none", changed(RATE, weight_decay=0.9), dataset=dataset, negatives=none)
    np.testing.assert_array_equal(head.load(tmp_path / "none"), np.eye(6))
    np.testing.assert_allclose(apply(tmp_path / "none", vectors), vectors, atol=1e-7)


def test_decay_keeps_the_head_near_the_base_model(tmp_path):
    away = {}
    for decay in (0.0, 5.0, 20.0):
        config = changed(RATE, weight_decay=decay, epochs=4)
        train(tmp_path / str(decay), config)
        away[decay] = np.abs(head.load(tmp_path / str(decay)) - np.eye(6)).sum()
    assert away[0.0] > 1.2 * away[5.0] > 1.5 * away[20.0] > 0


def test_a_repeated_run_returns_the_log_and_another_is_refused(tmp_path):
    log = train(tmp_path / "head")
    written = (tmp_path / "head" / head.FILE).stat().st_mtime_ns
    assert train(tmp_path / "head").equals(log)
    assert (tmp_path / "head" / head.FILE).stat().st_mtime_ns == written
    assert {path.name for path in (tmp_path / "head").iterdir()} == {
        "head.safetensors", "training_log.parquet", "training.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "head" / "training.json").read_text())["seed"] == 1
    others = frozen(toy())[0], unit(60, seed=9)
    for changes in ({"seed": 2}, {"config": changed(RATE, temperature=0.5)}, {"vectors": others}):
        with pytest.raises(NvretError, match="holds a run with other inputs"):
            train(tmp_path / "head", **changes)
    train(tmp_path / "again")
    np.testing.assert_array_equal(head.load(tmp_path / "again"), head.load(tmp_path / "head"))
    train(tmp_path / "other", seed=2)
    assert np.abs(head.load(tmp_path / "other") - head.load(tmp_path / "head")).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "dropout is 0.1, expected None: a head has no use for it"),
        ({"lora_rank": 4}, "lora_rank is 4"),
        ({"pooling": "mean"}, "pooling is 'mean'"),
        ({"bidirectional": True}, "bidirectional is True"),
        ({"chunk_tokens": 9}, "chunk_tokens is 9"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing is True, expected False"),
        ({"query_max_length": 16}, "query_max_length is 16, expected 32"),
        ({"passage_max_length": 16}, "passage_max_length is 16, expected 64"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16', expected 'float32'"),
        ({"checkpoint_steps": 5}, "checkpoint_steps is 5"),
        ({"in_batch_negatives": True, "mask_margin": 0.1}, "but no guide is given"),
    ],
)
def test_a_setting_without_a_use_is_refused(tmp_path, changes, message):
    with pytest.raises(NvretError, match=message):
        train(tmp_path / "head", changed(RATE, **changes))
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ((unit(40), unit(59)), r"passages have shape \(59, 6\), expected \(60, 6\)"),
        ((unit(41), unit(60)), r"queries have shape \(41, 6\), expected \(40, 6\)"),
        ((unit(40), unit(60, 5)), r"passages have shape \(60, 5\), expected \(60, 6\)"),
        ((unit(40).astype(float), unit(60)), "queries are float64, expected float32"),
        ((unit(40), 2 * unit(60)), r"passages\[0\] has length 2, expected 1"),
        ((unit(40), np.full((60, 6), np.nan, np.float32)), r"passages\[0\] has length nan"),
    ],
)
def test_vectors_that_do_not_fit_are_named(tmp_path, vectors, message):
    with pytest.raises(NvretError, match=message):
        train(tmp_path / "head", vectors=vectors)


def test_what_is_no_head_is_named(tmp_path):
    train(tmp_path / "head")
    with pytest.raises(NvretError, match=r"vectors have shape \(3, 5\), expected \(N, 6\)"):
        apply(tmp_path / "head", unit(3, 5))
    with pytest.raises(NvretError, match="expected the folder of a trained head"):
        apply(tmp_path, unit(3))
    (tmp_path / "head" / head.FILE).write_bytes(b"half")
    with pytest.raises(NvretError, match="cannot be read as a model"):
        apply(tmp_path / "head", unit(3))


def test_weights_that_blow_up_are_not_saved(tmp_path):
    with pytest.raises(NvretError, match="not finite"):
        train(tmp_path / "head", changed(RATE, learning_rate=1e38, max_grad_norm=0))
    assert not (tmp_path / "head").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """500 questions of NQ, L3's vectors of them, a head trained on random negatives."""
    dataset = mixtures.sample(data.load("nq", progress=False), 500)
    dataset = mixtures.sample_passages(dataset, 600)
    base = Encoder.load(L3)
    vectors = [
        embed(base, dataset.query_texts, "query", max_length=32, progress=False),
        embed(base, dataset.passages, "passage", max_length=64, progress=False),
    ]
    teacher = teachers.dense_scorer("l3", ["test"], *vectors)
    table = mining.mine(dataset, teacher, RandomNegatives(), 4, progress=False)
    config = TrainingConfig(
        epochs=3, batch_size=50, learning_rate=1e-3, temperature=0.05, in_batch_negatives=True,
        memory_bank=64,
    )  # fmt: skip
    output = tmp_path_factory.mktemp("head") / "head"
    log = train(output, config, 0, dataset, table, vectors)
    return dataset, base, output, log


def test_a_real_run_lowers_the_loss_and_finds_more(trained):
    dataset, base, output, log = trained
    loss = log["loss"].to_numpy()
    assert log["step"].to_pylist() == list(range(1, len(loss) + 1))
    assert loss[-5:].mean() < 0.9 * loss[:5].mean()
    lengths = {"query_max_length": 32, "passage_max_length": 64, "progress": False}
    before, after, plain = (
        evaluate(encoder, dataset, **lengths).values("ndcg_at_10").mean()
        for encoder in (HeadEncoder(base), HeadEncoder(base, output), base)
    )
    assert before == pytest.approx(plain, abs=1e-9)
    assert after > before + 0.02  # on the questions that it has seen


def test_the_log_is_the_mean_since_the_row_before(tmp_path):
    each = train(tmp_path / "each", changed(RATE, epochs=2))
    rows = train(tmp_path / "rows", changed(RATE, epochs=2, logging_steps=4))
    assert rows["step"].to_pylist() == [4, 8, 12]
    means = each["loss"].to_numpy().reshape(3, 4).mean(1)
    np.testing.assert_allclose(rows["loss"], means, rtol=1e-6)


SMOKE, STUDY = Path(__file__).parents[1] / "params" / "smoke.yaml", "06_rq3_methods"


@pytest.fixture(scope="module")
def study():
    """A head on a static model, whose texts are encoded in no time; a set alone and a mixture."""
    values = config.load(SMOKE).model_dump()
    student = values["students"]["static"]
    student["head"] = True
    student["training"] |= {"dropout": None, "learning_rate": 1e-2, "passage_max_length": 48}
    values["students"] = {"head": student}
    values["studies"] = {STUDY: values["studies"][STUDY]}
    values["studies"][STUDY]["runs"] = [
        {"student": "head", "method": ["random", "naive"]},
        {"student": "head", "method": "naive", "epochs": 2.0},
        {"student": "head", "method": "naive", "train": "nq+squad-dev"},
    ]
    return runs.Study(workspace.Workspace(config.check(values, "test"), progress=False), STUDY)


def arm(study, label):
    return next(arm for arm in study.arms if arm.label == f"head: {label}")


@pytest.mark.parametrize("label", ["Random", "Naive Top-K, trained on nq+squad-dev"])
def test_an_arms_vectors_are_those_of_its_questions_and_passages(study, label):
    for seed in (0, 1):
        dataset = study.dataset(arm(study, label), seed)
        queries, passages = study._vectors(arm(study, label), seed)
        encoder = Encoder.load(assets.model_path("potion-base-8m"))
        for texts, kind, length, found in (
            (dataset.query_texts, "query", 32, queries),
            (dataset.passages, "passage", 48, passages),
        ):
            direct = encoder.encode(texts, kind, max_length=length, progress=False)
            np.testing.assert_allclose(found, direct, atol=1e-6)


def test_a_study_of_heads_reads_each_text_once(study, monkeypatch):
    base, *trained = study.arms[:4]
    tests, lengths = list(study.tests_of(trained[0]).values()), (32, 48)
    frozen = study._encoder(base, study.model(base, 0))
    before = evaluate_all(frozen, tests, *lengths, progress=False)
    plain = evaluate_all(Encoder.load(study.model(base, 0)), tests, *lengths, progress=False)
    for one, other in zip(before, plain, strict=True):
        np.testing.assert_allclose(one.values("ndcg_at_10"), other.values("ndcg_at_10"))
    study._vectors(trained[0], 0)
    folders = {study.model(one, seed) for one in trained for seed in (0, 1)}
    assert len(folders) == 6
    assert all((folder / head.FILE).exists() for folder in folders)
    scores = [study._evaluated(one, 1)[0] for one in trained]

    def fail(*_, **__):
        raise AssertionError("encoded again")

    monkeypatch.setattr(Encoder, "encode", fail)
    for one, table in zip(trained, scores, strict=True):
        assert len(study._vectors(one, 1)[0]) == one.queries
        encoder = study._encoder(one, study.model(one, 1))
        after = evaluate_all(encoder, tests, *lengths, progress=False)
        means = table.groupby("dataset")["ndcg_at_10"].mean()
        assert set(means.index) == {test.name for test in tests}
        for found, old in zip(after, before, strict=True):
            assert found.values("ndcg_at_10").mean() == pytest.approx(means[found.dataset])
            assert found.values("ndcg_at_10").mean() != old.values("ndcg_at_10").mean()


def test_a_model_goes_when_it_has_been_tested(study, monkeypatch):
    one, settings = study.arms[1], study.settings.model_copy(update={"keep_models": True})
    scores, log = study._evaluated(one, 2)
    assert not study._place(one, 2).exists()
    keeping = runs.Study(workspace.Workspace(settings), study.name)
    keeping._evaluated(one, 3)
    assert keeping._place(one, 3).exists()

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs.Study, "_train", fail)
    for found, again in zip((scores, log), study._evaluated(one, 2), strict=True):
        pd.testing.assert_frame_equal(found, again)


def test_an_arm_of_two_epochs_takes_twice_the_steps(study):
    steps = [
        pq.read_table(study.model(arm(study, label), 0) / "training_log.parquet").num_rows
        for label in ("Naive Top-K", "Naive Top-K, 2 epochs")
    ]
    assert steps[1] == 2 * steps[0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_two": 4}, "stage_two is 4, but student 'head' is a head"),
        ({"pooling": "last"}, "pooling is 'last', but student 'head' is a head"),
    ],
)
def test_what_a_head_cannot_be_is_named(study, change, message):
    values = study.settings.model_dump()
    values["studies"][STUDY]["runs"] = [{"student": "head", "method": "naive"} | change]
    with pytest.raises(NvretError, match=message):
        runs.Study(workspace.Workspace(config.check(values, "test")), STUDY)
