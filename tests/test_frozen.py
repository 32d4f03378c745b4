"""Layers that stay as they are, and what they give, kept for each text."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.architectures import ARCHITECTURES
from helpers.training import CONFIG, STATIC, assert_same, changed, fitting, run, stopped_at, toy
from nvret.encode import Encoder
from nvret.training import finetuning, frozen
from nvret.utils.errors import NvretError


def test_frozen_layers_stay_and_the_others_have_the_gradients_of_a_whole_run(tiny_bert, tmp_path):
    """After one step of AdamW, which depends on a weight's own gradient alone."""
    options = {"max_grad_norm": 0.0, "dropout": 0.0, "batch_size": 1024, "schedule": "constant"}
    before = Encoder.load(tiny_bert).backbone.state_dict()
    weights = {}
    for number in (0, 1):
        config = fitting(tiny_bert, freeze_layers=number, **options)
        run(tmp_path / str(number), config=config, base=tiny_bert)
        weights[number] = Encoder.load(tmp_path / str(number)).backbone.state_dict()
    frozen = {name for name in before if "embeddings" in name or "layer.0." in name}
    assert 0 < len(frozen) < len(before)
    for name, weight in before.items():
        assert torch.equal(weights[1][name], weight if name in frozen else weights[0][name]), name
    assert not all(torch.equal(weights[0][name], before[name]) for name in frozen)


@pytest.mark.parametrize("chunk", [None, 64])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_frozen_layers_give_may_be_kept(name, chunk, tmp_path):
    """The same weights as where it is computed in each batch, for each architecture.

    With dropout in the layers above, for which the same random numbers are drawn."""
    write, pooling = ARCHITECTURES[name]
    write(tmp_path / "base", pooling)
    options = {"freeze_layers": 1, "chunk_tokens": chunk, "epochs": 2, "learning_rate": 1e-3,
               "query_max_length": 64}  # fmt: skip
    weights, logs = {}, {}
    for kept in (False, True):
        folder = tmp_path / f"kept {kept}"
        config = changed(CONFIG, keep_frozen=kept, dropout=0.0 if chunk else 0.1, **options)
        logs[kept] = run(folder, config=config, base=tmp_path / "base").to_pandas()
        weights[kept] = Encoder.load(folder).state_dict()
        assert not (folder / "states.npy").exists()
    pd.testing.assert_frame_equal(logs[True], logs[False], rtol=1e-3)
    base = Encoder.load(tmp_path / "base").state_dict()
    assert weights[True].keys() == base.keys()
    changes = [name for name in base if not torch.equal(weights[True][name], base[name])]
    assert changes
    below = "backbone.embed", "backbone.encoder.layer.0.", "backbone.layers.0."
    assert not [name for name in changes if name.startswith(below)]
    for name, weight in weights[True].items():
        if name.endswith("key.bias"):  # without a gradient: AdamW makes rounding large
            continue
        torch.testing.assert_close(weight, weights[False][name], atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("rank", [None, 2])
def test_what_is_frozen_has_no_dropout(tiny_bert, rank):
    """As long as it is frozen: adapters train what they are put into."""
    encoder = Encoder.load(tiny_bert, dropout=0.5)
    finetuning.prepare(encoder, changed(CONFIG, freeze_layers=1, lora_rank=rank), 0)
    encoder.eval().train()
    backbone = encoder.backbone.base_model.model if rank else encoder.backbone
    below, above = backbone.encoder.layer
    assert below.attention.self.dropout.training is bool(rank)
    assert not backbone.embeddings.dropout.training
    assert above.attention.self.dropout.training
    assert not encoder.eval().backbone.training


def test_a_run_that_keeps_them_is_resumed(tiny_bert, tmp_path, monkeypatch):
    config = fitting(tiny_bert, checkpoint_steps=3, freeze_layers=1, keep_frozen=True)
    dataset = toy(64)
    with stopped_at(monkeypatch, 6):
        run(tmp_path / "stopped", dataset, base=tiny_bert, config=config)
    assert list((tmp_path / ".stopped.partial" / "checkpoints").glob("checkpoint-*"))
    resumed = run(tmp_path / "stopped", dataset, base=tiny_bert, config=config)
    whole = run(tmp_path / "whole", dataset, base=tiny_bert, config=config)
    np.testing.assert_allclose(resumed["loss"], whole["loss"], atol=1e-5)
    assert_same(tmp_path / "stopped", tmp_path / "whole", atol=1e-6)


@pytest.mark.parametrize("change", [{"freeze_layers": 0}, {"freeze_layers": 1, "lora_rank": 2}])
def test_what_is_kept_must_be_frozen(change, tmp_path):
    with pytest.raises(NvretError, match="keep_frozen is True, expected freeze_layers"):
        run(tmp_path / "run", config=changed(CONFIG, keep_frozen=True, **change))


@pytest.mark.parametrize(("base", "layers"), [("static", 0), ("bert", 2)])
def test_more_frozen_layers_than_there_are_is_an_error(base, layers, tiny_bert, tmp_path):
    base = STATIC if base == "static" else tiny_bert
    with pytest.raises(NvretError, match=f"freeze_layers is 2, .* layers, {layers}"):
        run(tmp_path / "run", config=fitting(base, freeze_layers=2), base=base)


def test_layers_that_cannot_be_run_apart_are_refused(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(
        frozen._Passed, "forward", lambda self, states, *_, **__: states + 1
    )  # as a layer that needs more of those below
    with pytest.raises(NvretError, match="layers of BertModel cannot be run by themselves"):
        run(
            tmp_path / "run",
            base=tiny_bert,
            config=fitting(tiny_bert, freeze_layers=1, keep_frozen=True),
        )
