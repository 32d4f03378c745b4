"""LoRA: adapters alone are trained and kept in checkpoints, and end up in an ordinary folder."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainerCallback

from helpers.training import STATIC, assert_same, changed, mined, toy, weights
from nvret.encode import Encoder
from nvret.models import layout
from nvret.training import finetune, lora, trainer
from nvret.training.batches import Collator, Examples
from nvret.training.config import TrainingConfig
from nvret.utils.errors import NvretError

TEXTS = ["the moon", "river stone and the law of the tide", "salt"]
CONFIG = TrainingConfig(
    batch_size=8, learning_rate=1e-2, checkpoint_steps=2, lora_rank=4, lora_dropout=0.1
)


@pytest.fixture(scope="module")
def decoder(tiny_llama):
    return tiny_llama


def run(base, output, config=CONFIG, seed=1, queries=16):
    dataset = toy(queries)
    return finetune(
        base, dataset, mined(dataset), output, config, seed=seed, device="cpu", progress=False
    )


def student(base, config=CONFIG, seed=1, trained=False):
    """The model that is trained, a batch for it; with ``trained`` its adapters do something."""
    encoder = Encoder.load(base, pooling=config.pooling, bidirectional=config.bidirectional)
    lora.add(encoder, config.lora_rank, config.lora_alpha, config.lora_dropout, seed)
    if trained:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for weight in encoder.parameters():
                if weight.requires_grad:
                    weight.normal_(0, 0.1)
    dataset = toy(16)
    pairs = Examples.of(dataset, mined(dataset))
    batches = Collator.of(encoder, dataset, pairs, config, False)
    return trainer.Student(encoder, config, batches.mask), batches(range(8))


def test_adapters_begin_without_effect_and_from_the_seed(decoder):
    before = Encoder.load(decoder).encode(TEXTS, progress=False)
    state = torch.get_rng_state()
    first, again, other = (student(decoder, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.encoder.encode(TEXTS, progress=False), before)
    kept = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    assert not any(torch.equal(kept[0][n], kept[2][n]) for n in kept[0] if "lora_A" in n)
    layers = sum(isinstance(m, torch.nn.Linear) for m in Encoder.load(decoder).modules())
    assert layers == 2 * 7
    assert len(kept[0]) == 2 * layers  # checkpoints hold A and B of every linear layer, no more


@pytest.mark.parametrize("chunk_tokens", [None, 60])
def test_adapters_alone_have_gradients(decoder, chunk_tokens):
    """In chunks, too, and with the same dropout: the table of words is looked up and frozen."""
    model, batch = student(decoder, trained=True)
    chunked, _ = student(decoder, changed(CONFIG, chunk_tokens=chunk_tokens), trained=True)
    found = []
    for each in (model, chunked):
        each.train()
        torch.manual_seed(0)
        each(**batch)["loss"].backward()
        found.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == model.state_dict().keys()
    assert all(gradient.any() for gradient in found[0].values())
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_merged_is_the_same_as_applied(decoder, bidirectional):
    config = changed(CONFIG, pooling="mean", bidirectional=bidirectional)
    model, _ = student(decoder, config, trained=True)
    encoder, base = model.encoder, Encoder.load(decoder, bidirectional=bidirectional)
    untrained = base.encode(TEXTS, progress=False)
    applied = encoder.encode(TEXTS, progress=False)
    assert np.abs(applied - untrained).max() > 1e-2
    lora.merge(encoder)
    np.testing.assert_allclose(encoder.encode(TEXTS, progress=False), applied, atol=1e-5)
    assert encoder.state_dict().keys() == base.state_dict().keys()
    assert all(weight.requires_grad for weight in encoder.parameters())


def test_the_base_is_not_trained(decoder):
    """Its weights have no gradient and no place in the optimizer, and stay as they were."""
    model, batch = student(decoder)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    for _ in range(3):
        model.train()(**batch)["loss"].backward()
        optimizer.step()
    kept = dict(model.encoder.backbone.named_parameters())
    base = Encoder.load(decoder).backbone.named_parameters()
    for name, weight in base:
        stem, _, leaf = name.rpartition(".")
        wrapped = f"base_model.model.{stem}.base_layer.{leaf}"
        plain = f"base_model.model.{name}"
        torch.testing.assert_close(kept.get(wrapped, kept.get(plain)), weight, atol=0, rtol=0)
    assert any("lora_B" in name and weight.any() for name, weight in kept.items())


def test_resumed_is_the_same_as_uninterrupted(decoder, tmp_path, monkeypatch):
    """With chunks, dropout and a memory bank, all of which the checkpoint must bring back."""
    config = changed(CONFIG, chunk_tokens=60, memory_bank=16)

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:  # one step after the checkpoint
                raise KeyboardInterrupt

    plain = trainer.make_trainer

    def interrupted(*arguments):
        made = plain(*arguments)
        made.add_callback(Stop())
        return made

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_trainer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(decoder, tmp_path / "resumed", config, queries=24)
    checkpoint = tmp_path / ".resumed.partial" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / trainer.COMPLETE).exists()
    kept = {name for name in weights(checkpoint) if not name.startswith("memory.")}
    assert all(".lora_" in name for name in kept)
    resumed = run(decoder, tmp_path / "resumed", config, queries=24)
    whole = run(decoder, tmp_path / "whole", config, queries=24)
    assert resumed["step"].equals(whole["step"])
    assert len(whole) > 3
    assert_same(tmp_path / "resumed", tmp_path / "whole", atol=1e-6)


def test_a_checkpoint_that_lacks_an_adapter_is_refused(decoder):
    model, _ = student(decoder)
    state = model.state_dict()
    del state[next(iter(state))]
    with pytest.raises(RuntimeError, match="lora_A"):
        model.load_state_dict(state)


def test_equal_seeds_give_equal_weights(decoder, tmp_path):
    for name in ("a", "b"):
        run(decoder, tmp_path / name)
    assert_same(tmp_path / "a", tmp_path / "b")
    a, before = weights(tmp_path / "a"), weights(decoder)
    assert a.keys() == before.keys()
    same = {name for name in a if torch.equal(a[name], before[name])}
    assert same == {name for name in a if "embed" in name or "norm" in name}


def test_training_lowers_the_loss(decoder, tmp_path):
    loss = run(decoder, tmp_path / "model", changed(CONFIG, epochs=4))["loss"].to_pylist()
    assert loss[-1] < 0.5 * loss[0]


@pytest.mark.parametrize(("pooling", "bidirectional"), [("mean", True), ("last", False)])
def test_the_folder_carries_pooling_and_attention(decoder, tmp_path, pooling, bidirectional):
    from sentence_transformers import SentenceTransformer

    config = changed(CONFIG, pooling=pooling, bidirectional=bidirectional)
    run(decoder, tmp_path / "model", config)
    saved = Encoder.load(tmp_path / "model")
    assert layout.read(tmp_path / "model").pooling == saved.layout.pooling == pooling
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert getattr(model.config, "is_causal", True) != bidirectional
    assert not [path.name for path in (tmp_path / "model").iterdir() if "adapter" in path.name]
    ours = saved.encode(TEXTS, progress=False)
    other = Encoder.load(tmp_path / "model", bidirectional=not bidirectional)
    assert np.abs(ours - other.encode(TEXTS, progress=False)).max() > 1e-3
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    # in one padded batch: without padding transformers would not look ahead
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": 4}, "lora_rank is for transformers: a static model has no linear layer"),
        ({"pooling": "last"}, "static model has neither pooling nor attention to choose"),
        ({"bidirectional": True}, "static model has neither pooling nor attention to choose"),
    ],
)
def test_a_static_model_is_refused(tmp_path, change, message):
    with pytest.raises(NvretError, match=message):
        run(STATIC, tmp_path / "model", TrainingConfig(**change))
    assert not list(tmp_path.iterdir())
