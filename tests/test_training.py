"""Fine-tuning: exact gradients, one order for all methods, resumption, the saved folder."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from transformers import TrainingArguments

from helpers.training import (
    CONFIG,
    STATIC,
    assert_same,
    changed,
    fitting,
    mined,
    run,
    stopped_at,
    toy,
)  # fmt: skip
from nvret import assets
from nvret.encode import Encoder
from nvret.losses import info_nce
from nvret.training import finetuning, trainer
from nvret.training.batches import Collator, Examples
from nvret.training.config import TrainingConfig
from nvret.utils import store
from nvret.utils.errors import NvretError

POTION = assets.model_path("potion-base-8m")
BERT = assets.model_path("paraphrase-minilm-l3")


@pytest.fixture(params=["static", "bert"])
def base(request, tiny_bert):
    return STATIC if request.param == "static" else tiny_bert


def test_examples_join_pairs_and_negatives():
    dataset = toy()
    pairs = Examples.of(dataset, mined(dataset, skip={3, 7}))
    queries, positives = dataset.pairs
    np.testing.assert_array_equal(pairs.queries, queries)
    np.testing.assert_array_equal(pairs.positives, positives)
    without = np.isin(queries, [3, 7])
    assert (pairs.negatives[without] == -1).all()
    assert (pairs.negatives[~without] >= 0).all()
    table = mined(dataset, skip={3, 7}).sort_by([("rank", "ascending")]).to_pylist()
    for row, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        key = f"q{query}", f"p{positive}"
        listed = [
            int(r["negative_id"][1:]) for r in table if (r["query_id"], r["positive_id"]) == key
        ]
        assert [n for n in pairs.negatives[row] if n >= 0] == listed


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("q0", "p0", "nowhere", 1), "negatives row 1: negative_id 'nowhere' is not in toy"),
        (("q0", "p59", "p1", 1), "row 1: 'p59' is no labelled positive of query 'q0'"),
    ],
)
def test_negatives_that_do_not_fit_are_named(row, message):
    dataset = toy()
    names = ["query_id", "positive_id", "negative_id", "rank"]
    query, positive = (int(rows[0]) for rows in dataset.pairs)
    good = (f"q{query}", f"p{positive}", f"p{(positive + 1) % 60}", 1)
    table = pa.table([pa.array(list(c)) for c in zip(good, row, strict=True)], names=names)
    with pytest.raises(NvretError, match=message):
        Examples.of(dataset, table)
    own = (f"q{query}", f"p{positive}", f"p{positive}", 1)
    table = pa.table([pa.array([c]) for c in own], names=names)
    with pytest.raises(NvretError, match="is the pair's own positive"):
        Examples.of(dataset, table)
    with pytest.raises(NvretError, match="no column 'rank'"):
        Examples.of(dataset, table.drop_columns("rank"))


@pytest.mark.parametrize("in_batch", [False, True])
def test_grouped_batches_give_the_plain_loss_and_gradients(base, in_batch):
    """Against every text encoded on its own, no text shared, in float64."""
    dataset = toy()
    config = changed(CONFIG, in_batch_negatives=in_batch, temperature=0.1)
    encoder = Encoder.load(base, dropout=0.0).double().train()
    pairs = Examples.of(dataset, mined(dataset, skip={2}))
    batches = Collator.of(encoder, dataset, pairs, config, False)
    batches = replace(batches, budget=40, slack=4)
    chosen = [0, 1, 2, 9]
    loss = trainer.Student(encoder, config, batches.mask)(**batches(chosen))["loss"]
    loss.backward()
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()

    def vector(text, kind, length):
        tokens = encoder.tokenize([text], kind, max_length=length, progress=False)
        return encoder(**encoder.collate(tokens, [0]))

    pool = np.unique(np.column_stack([pairs.positives, pairs.negatives])[chosen])
    pool = pool[pool >= 0]
    q = torch.cat([vector(dataset.query_texts[pairs.queries[i]], "query", 32) for i in chosen])
    p = torch.cat([vector(dataset.passages[j], "passage", 64) for j in pool])
    slot = {int(j): i for i, j in enumerate(pool)} | {-1: -1}
    known = [np.isin(pool, dataset.positives[pairs.queries[i]]) for i in chosen]
    plain = info_nce(
        q,
        p,
        torch.tensor([slot[int(pairs.positives[i])] for i in chosen]),
        torch.tensor([[slot[int(j)] for j in pairs.negatives[i]] for i in chosen]),
        temperature=0.1,
        in_batch=in_batch,
        known=torch.from_numpy(np.stack(known)) if in_batch else None,
    )
    plain.backward()
    torch.testing.assert_close(loss, plain, atol=1e-10, rtol=0)
    expected = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-9, rtol=1e-7)


def test_tokens_that_do_not_occur_cost_nothing_and_stay(tmp_path, monkeypatch):
    """A static table without weight decay: the same weights, to the bit, from its used rows."""
    config, base = changed(CONFIG, weight_decay=0.0), Encoder.load(STATIC).backbone.weight.data
    sizes, adam = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        sizes.append(max(len(weight) for weight in self.param_groups[0]["params"]))
        return adam(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    tables = []
    for way in ("used", "whole"):
        if way == "whole":
            monkeypatch.setattr(finetuning, "_occurring", lambda _, batches: nullcontext(batches))
        run(tmp_path / way, config=config)
        tables.append(Encoder.load(tmp_path / way).backbone.weight.data)
    assert torch.equal(*tables)
    moved = (tables[0] != base).any(1)
    assert 0 < moved.sum() <= min(sizes) < max(sizes) == len(base)


def student(base, dataset, dropout, device="cpu", dtype=torch.float64, **changes):
    """A student in training mode and its collator, which makes many small groups."""
    config = changed(CONFIG, temperature=0.1, **changes)
    encoder = Encoder.load(base, dropout=dropout, device=device).to(dtype).train()
    pairs = Examples.of(dataset, mined(dataset, skip={2}))
    batches = Collator.of(encoder, dataset, pairs, config, False)
    batches = replace(batches, budget=40, slack=4)
    return trainer.Student(encoder, config, batches.mask), batches


def to(device, batch):
    if isinstance(batch, dict):
        return {name: to(device, value) for name, value in batch.items()}
    return [to(device, item) for item in batch] if isinstance(batch, list) else batch.to(device)


def loss_and_gradients(model, batch, chunk_tokens, scale=1.0, precision=None):
    """With the random state of seed 3; also the random state that is left."""
    device = model.encoder.device.type
    model.settings = changed(model.settings, chunk_tokens=chunk_tokens)
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast(device, dtype=precision, enabled=precision is not None):
        loss = model(**batch)["loss"]
    (loss * scale).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, torch.rand(1, device=device).item()


@pytest.mark.parametrize(
    ("dropout", "in_batch", "scale"),
    [(0.0, False, 1.0), (0.3, True, 1.0), (0.3, False, 0.25), (0.0, True, 0.25)],
)
def test_chunks_give_the_loss_and_gradients_of_the_whole_batch(base, dropout, in_batch, scale):
    """In float64. Queries, positives and negatives are shared between the pairs of the batch."""
    model, batches = student(base, toy(passages=20), dropout, in_batch_negatives=in_batch)
    batch = batches([0, 1, 2, 9, 10, 17])
    groups = [*batch["query_batches"], *batch["passage_batches"]]
    assert len(groups) > 5
    listed = torch.cat([batch["positives"], batch["negatives"].flatten()])
    assert len(batch["passage_order"]) < (listed >= 0).sum()
    loss, expected, after = loss_and_gradients(model, batch, sys.maxsize, scale)
    for most in (1, 80, 200):
        found_loss, found, found_after = loss_and_gradients(model, batch, most, scale)
        torch.testing.assert_close(found_loss, loss, atol=1e-12, rtol=0)
        assert found_after == after
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-12, rtol=1e-9)


def test_chunked_gradients_add_up_over_batches(tiny_bert):
    model, batches = student(tiny_bert, toy(), 0.0)
    first, second = (loss_and_gradients(model, batches(c), 50)[1] for c in ([0, 1], [7, 8, 9]))
    model.zero_grad()
    sum(model(**batches(chosen))["loss"] for chosen in ([0, 1], [7, 8, 9])).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, first[name] + second[name])


@pytest.mark.parametrize("within", [False, True])  # backward too, though it should not be
def test_chunks_under_autocast(tiny_bert, within):
    """Casts of the weights without a graph must not be used again: every weight has a gradient."""
    model, batches = student(tiny_bert, toy(), 0.1, dtype=torch.float32)
    batch = batches(range(8))
    exact = loss_and_gradients(model, batch, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=within):
        found = loss_and_gradients(model, batch, 80, precision=torch.bfloat16)
        plain = loss_and_gradients(model, batch, sys.maxsize, precision=torch.bfloat16)
    torch.testing.assert_close(found[0], plain[0])
    assert found[1].keys() == exact[1].keys()
    assert all(gradient.any() for gradient in found[1].values())
    flat = [
        torch.cat([result[1][n].flatten() for n in exact[1]]) for result in (exact, plain, found)
    ]
    errors = [(vector - flat[0]).norm() / flat[0].norm() for vector in flat[1:]]
    assert 0 < errors[1] < 1.2 * errors[0]  # in autocast as well, and no less exact


class Held:
    """Bytes that autograd holds for the backward pass, weights left out, and the most of them."""

    def __init__(self, model):
        self.now = self.most = 0
        self.counts = {}
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(self, tensor):
        return Saved(self, tensor)

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda s: s.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


class Saved:
    def __init__(self, held, tensor):
        self.held, self.tensor = held, tensor
        self.place = tensor.untyped_storage().data_ptr()
        if self.place not in held.weights:
            held.counts[self.place] = held.counts.get(self.place, 0) + 1
            if held.counts[self.place] == 1:  # a storage that several operators keep counts once
                held.now += tensor.untyped_storage().nbytes()
                held.most = max(held.most, held.now)

    def __del__(self):
        if self.place not in self.held.weights:
            self.held.counts[self.place] -= 1
            if self.held.counts[self.place] == 0:
                self.held.now -= self.tensor.untyped_storage().nbytes()


def test_chunks_bound_the_activations_that_are_held(tiny_bert):
    model, batches = student(tiny_bert, toy(), 0.1, dtype=torch.float32)
    small, large = batches(range(8)), batches(range(32))

    def most(batch, chunk_tokens):
        with Held(model) as held:
            loss_and_gradients(model, batch, chunk_tokens)
        assert held.now == 0
        return held.most

    plain = most(large, sys.maxsize)
    groups = [*large["query_batches"], *large["passage_batches"]]
    tokens = sum(group["input_ids"].numel() for group in groups)
    chunk = 80
    assert most(large, chunk) < 1.5 * plain * chunk / tokens + 8 * 32 * 4 * tokens
    assert most(large, chunk) < plain / 4
    assert most(small, sys.maxsize) < plain / 2  # as the count would have it


def test_a_run_in_chunks_ends_with_the_weights_of_the_plain_run(base, tmp_path):
    dataset = toy(24)
    config = fitting(base, dropout=0.0, precision="float32", in_batch_negatives=True)
    plain = run(tmp_path / "plain", dataset, base=base, config=config)
    config = changed(config, chunk_tokens=60)
    chunked = run(tmp_path / "chunked", dataset, base=base, config=config)
    np.testing.assert_allclose(chunked["loss"], plain["loss"], atol=1e-5)
    np.testing.assert_allclose(chunked["grad_norm"], plain["grad_norm"], rtol=1e-3)
    assert_same(tmp_path / "plain", tmp_path / "chunked", atol=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_chunks_on_cuda(tiny_bert, precision):
    """The dropout is drawn by the device's own generator, in a thread of ``backward``."""
    model, batches = student(tiny_bert, toy(), 0.3, device="cuda", dtype=torch.float32)
    batch = to("cuda", batches(range(8)))
    loss, expected, after = loss_and_gradients(model, batch, sys.maxsize, 0.5, precision)
    found_loss, found, found_after = loss_and_gradients(model, batch, 80, 0.5, precision)
    tolerance = 1e-5 if precision is None else 2e-3
    torch.testing.assert_close(found_loss, loss, atol=tolerance, rtol=tolerance)
    assert found_after == after
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=tolerance, rtol=25 * tolerance, msg=name
        )


def test_one_of_several_gpus_is_used(tmp_path, caplog):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 2  # as where two are visible
    assert trainer.on_one_device(arguments).n_gpu == 1
    assert arguments.train_batch_size == arguments.per_device_train_batch_size
    assert "2 GPUs are visible, one is used" in caplog.text


def test_the_order_is_that_of_the_seed_alone():
    first, again, other = (trainer.Shuffle(50, seed) for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)
    assert sorted(first) == list(range(50))
    again.set_epoch(1)
    assert list(first) != list(again)


def test_equal_runs_end_with_equal_weights(base, tmp_path):
    dataset = toy(16)
    config = fitting(base)  # with BERT's own dropout
    for name in ("a", "b"):
        run(tmp_path / name, dataset, base=base, config=config)
    assert_same(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "c", dataset, base=base, config=config, seed=2)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(("precision", "in_batch"), [("float32", False), ("bfloat16", True)])
def test_training_lowers_the_loss(base, tmp_path, precision, in_batch):
    config = fitting(base, epochs=8, precision=precision, in_batch_negatives=in_batch)
    log = run(tmp_path / "model", base=base, config=config)
    assert log.column_names == ["step", "epoch", "loss", "learning_rate", "grad_norm"]
    loss = log["loss"].to_pylist()
    assert loss[-1] < 0.75 * loss[0]
    assert log["step"][-1].as_py() == 8 * -(-len(toy().pairs[0]) // 8)
    assert log["epoch"][-1].as_py() == pytest.approx(8)


@pytest.mark.parametrize("base", [POTION, BERT])
def test_the_folder_loads_elsewhere_with_the_same_vectors(base, tmp_path):
    from sentence_transformers import SentenceTransformer

    dataset = toy(16)
    run(
        tmp_path / "model",
        dataset,
        base=base,
        config=changed(CONFIG, learning_rate=0.1 if base == POTION else 1e-4),
    )
    ours = Encoder.load(tmp_path / "model").encode(dataset.passages, progress=False)
    before = Encoder.load(base).encode(dataset.passages, progress=False)
    assert np.abs(ours - before).max() > 1e-3
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(
        ours, theirs.encode(dataset.passages, show_progress_bar=False), atol=1e-5
    )
    if base == BERT:
        from transformers import AutoConfig, AutoModel

        AutoModel.from_pretrained(tmp_path / "model")
        assert AutoConfig.from_pretrained(tmp_path / "model").hidden_dropout_prob == 0.1
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"training_log.parquet", "training.json", "model.safetensors"} <= files
    assert "checkpoints" not in files


def test_a_complete_run_is_not_repeated_and_not_mistaken_for_another(tmp_path):
    log = run(tmp_path / "model")
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(tmp_path / "model").equals(log)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(NvretError, match="holds a run with other inputs"):
        run(tmp_path / "model", seed=9)


def test_dropout_is_the_configs_own_or_the_given_one():
    def rates(**options):
        modules = Encoder.load(BERT, **options).modules()
        return {module.p for module in modules if isinstance(module, torch.nn.Dropout)}

    assert rates() == {0.1}
    assert rates(dropout=0.0) == {0.0}


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers import training as t
base = Path({base!r})
t.run(Path({output!r}), t.toy(64), base=base, config=t.fitting(base, **{changes!r}))
"""


@pytest.mark.xdist_group("processes")
def test_killed_and_resumed_is_the_same_as_uninterrupted(tiny_bert, tmp_path):
    """With dropout and chunks, so that the random state and the gradients are put together."""
    output = tmp_path / "killed"
    changes = {"checkpoint_steps": 3, "chunk_tokens": 60}
    code = SCRIPT.format(
        tests=os.path.dirname(__file__), output=str(output), base=str(tiny_bert), changes=changes
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    partial = tmp_path / ".killed.partial" / "checkpoints"
    deadline = time.monotonic() + 600
    while not list(partial.glob(f"checkpoint-*/{trainer.COMPLETE}")):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    cut_off = partial / "checkpoint-999"  # as if the kill had come in the middle of a checkpoint
    cut_off.mkdir()
    (cut_off / "model.safetensors").write_bytes(b"half")
    config, dataset = fitting(tiny_bert, **changes), toy(64)
    resumed = run(output, dataset, base=tiny_bert, config=config)
    whole = run(tmp_path / "whole", dataset, base=tiny_bert, config=config)
    assert resumed["step"].equals(whole["step"])
    np.testing.assert_allclose(resumed["loss"], whole["loss"], atol=1e-5)
    assert_same(output, tmp_path / "whole", atol=1e-6)
    assert not (output / "checkpoints").exists()


def test_stopped_and_resumed_is_the_same_as_uninterrupted(base, tmp_path, monkeypatch):
    """By an error, after a checkpoint that waited for its row of the log."""
    config, dataset = fitting(base, checkpoint_steps=3), toy(64)
    with stopped_at(monkeypatch, 6):
        run(tmp_path / "stopped", dataset, base=base, config=config)
    assert checkpoints(tmp_path / ".stopped.partial") == [4]
    resumed = run(tmp_path / "stopped", dataset, base=base, config=config)
    whole = run(tmp_path / "whole", dataset, base=base, config=config)
    assert resumed["step"].equals(whole["step"])
    np.testing.assert_allclose(resumed["loss"], whole["loss"], atol=1e-5)
    assert_same(tmp_path / "stopped", tmp_path / "whole", atol=1e-6)


def checkpoints(folder):
    """Steps of the complete checkpoints that are there, or were until the run was complete."""
    kept = [path for path in store.KEPT if path.parent == folder / "checkpoints"]
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in kept)


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        (300.0, None, []),  # a run of seconds writes none
        (0.0, None, [2, 4, 6, 8]),
        (0.0, 0, []),
        (300.0, 3, [4, 6]),
        (300.0, 1, [2, 4, 6, 8]),
    ],
)
def test_checkpoints_come_by_the_clock_or_by_steps_and_change_nothing(
    tmp_path, monkeypatch, seconds, steps, expected
):
    dataset = toy(64)
    plain = run(tmp_path / "plain", dataset)
    monkeypatch.setattr(trainer, "INTERVAL", seconds)
    log = run(tmp_path / "model", dataset, config=changed(CONFIG, checkpoint_steps=steps))
    assert log.equals(plain)
    assert log["step"].to_pylist() == [2, 4, 6, 8, 9]
    assert_same(tmp_path / "model", tmp_path / "plain")
    assert checkpoints(tmp_path / ".model.partial") == expected
    assert run(tmp_path / "model", dataset).equals(plain)  # is the same run, and not repeated


@pytest.mark.parametrize("kept", [b"{}", b"[1]", b"half of \xff"])
def test_an_interrupted_run_with_other_inputs_is_not_continued(tmp_path, caplog, kept):
    (tmp_path / ".model.partial" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / ".model.partial" / "training.json").write_bytes(kept)
    run(tmp_path / "model")
    assert "had other inputs, starting anew" in caplog.text
    run(tmp_path / "fresh")
    assert_same(tmp_path / "model", tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size\n +Input should be greater than 0"),
        ({"temperature": float("nan")}, "temperature\n +Input should be a finite number"),
        ({"warmup_ratio": 1.0}, "warmup_ratio\n +Input should be less than 1"),
        ({"precision": "fp8"}, "precision\n +Input should be 'float32' or 'bfloat16'"),
        ({"schedule": "step"}, "schedule\n +Input should be 'linear', "),
        ({"dropout": 1.5}, "dropout\n +Input should be less than 1"),
        ({"chunk_tokens": 0}, "chunk_tokens\n +Input should be greater than 0"),
        ({"memory_bank": -1}, "memory_bank\n +Input should be greater than or equal to 0"),
        ({"lora_rank": 0}, "lora_rank\n +Input should be greater than 0"),
        ({"lora_alpha": 0}, "lora_alpha\n +Input should be greater than 0"),
        ({"lora_dropout": 1.0}, "lora_dropout\n +Input should be less than 1"),
        ({"pooling": "max"}, "pooling\n +Input should be 'mean', 'cls' or 'last'"),
        ({"mask_margin": 0.0}, r"mask_margin is 0\.0, expected none without in_batch_negatives"),
        (
            {"mask_margin": float("nan"), "in_batch_negatives": True},
            "mask_margin\n +Input should be a finite number",
        ),
    ],
)
def test_a_bad_configuration_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        TrainingConfig(**change)


def test_weights_that_blow_up_are_not_saved(tmp_path):
    with pytest.raises(NvretError, match="not finite"):
        run(tmp_path / "model", config=changed(CONFIG, learning_rate=1e38, max_grad_norm=0))
    assert not (tmp_path / "model").exists()
