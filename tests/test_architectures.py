"""The paper's architectures, tiny and random: pooling against a reference, then every stage.

BERT with CLS and mean pooling (Arctic-embed, E5), Mistral with the last token (E5-Mistral) and with
the mean of what follows the instruction (NV-Retriever), and NV-Embed's latent attention.
"""

import math

import numpy as np
import pytest
import torch

from helpers.architectures import ARCHITECTURES, write_nv_embed
from nvret import evaluation, mining, teachers
from nvret.data import load
from nvret.encode import Encoder
from nvret.study import mixtures
from nvret.training import finetune
from nvret.training.config import TrainingConfig
from nvret.utils.errors import NvretError

TEXTS = ["The moon moves the sea.", "salt", "A river carries stones to the sea, and salt too."]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    build, pooling = ARCHITECTURES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build(folder, pooling)
    return request.param, folder


def layer_norm(x, norm):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return x * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def latent_attention(hidden, pooler):
    """NV-Embed's equations (arXiv 2405.17428, section 3.1) head by head, in NumPy."""
    attention, feed = pooler.cross_attend_blocks
    weight = {name: value.detach().numpy() for name, value in pooler.state_dict().items()}
    table = layer_norm(weight["latents"], attention.norm_context)
    query = layer_norm(hidden, attention.norm) @ weight["cross_attend_blocks.0.fn.to_q.weight"].T
    both = table @ weight["cross_attend_blocks.0.fn.to_kv.weight"].T
    key, value = np.split(both, 2, axis=-1)
    width, mixed = pooler.config.cross_dim_head, []
    for head in range(pooler.config.num_cross_heads):
        part = slice(head * width, (head + 1) * width)
        logits = query[:, part] @ key[:, part].T / math.sqrt(width)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(odds / odds.sum(-1, keepdims=True) @ value[:, part])
    out = weight["cross_attend_blocks.0.fn.to_out.weight"]
    hidden = hidden + np.concatenate(mixed, -1) @ out.T
    first, last = "cross_attend_blocks.1.fn.net.0", "cross_attend_blocks.1.fn.net.2"
    inner = layer_norm(hidden, feed.norm) @ weight[f"{first}.weight"].T + weight[f"{first}.bias"]
    value, gate = np.split(inner, 2, axis=-1)
    return hidden + value * gelu(gate) @ weight[f"{last}.weight"].T + weight[f"{last}.bias"]


def reference(name, encoder, text, kind):
    """One text alone, without padding, pooled by hand."""
    prompt = encoder.layout.prompts[kind]
    ids = encoder.tokenizer.encode(prompt + text).ids
    if "mistral-last" in name or name == "nv-embed":
        assert (ids[0], ids[-1]) == (1, 2)  # begins with <s>, ends with </s>
    inputs = {"input_ids": torch.tensor([ids])}
    if name == "nv-embed":  # every token sees every other
        inputs["attention_mask"] = torch.zeros(1, 1, len(ids), len(ids))
    backbone = encoder.backbone
    with torch.no_grad():
        hidden = backbone(**inputs).last_hidden_state[0].numpy()
    if name == "bert-cls":
        pooled = hidden[0]
    elif name == "mistral-last":
        pooled = hidden[-1]
    else:
        skip = 0
        if prompt and not encoder.layout.include_prompt:
            skip = len(encoder.tokenizer.encode(prompt).ids) - (name == "nv-embed")
            assert skip > 5
        if name == "nv-embed":
            hidden = latent_attention(hidden.astype(np.float64), encoder.pooler)
        pooled = hidden[skip:].mean(0)
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_pooling_and_masking_are_those_of_the_reference(model, kind):
    name, folder = model
    encoder = Encoder.load(folder)
    found = encoder.encode(TEXTS, kind, progress=False)
    expected = [reference(name, encoder, text, kind) for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_decoder_sees_in_the_direction_that_is_asked_for(model):
    name, folder = model
    if "mistral" not in name:
        pytest.skip("an encoder, or a decoder that always sees both ways")
    causal, both = (
        Encoder.load(folder, bidirectional=both).encode(TEXTS, progress=False)
        for both in (False, True)
    )
    assert np.abs(causal - both).max() > 1e-3


def test_every_stage_runs(model, tmp_path):
    name, folder = model
    data = mixtures.sample_passages(mixtures.sample(load("squadshifts-nyt"), 24), 80)
    teacher = teachers.DenseTeacher(str(folder), 64, 48)
    table = mining.mine(data, teacher, mining.TopKPercPos(0.95), 2, progress=False)
    assert set(table["query_id"].to_pylist()) <= set(data.queries["id"].to_pylist())
    config = TrainingConfig(
        batch_size=8,
        learning_rate=1e-2,
        query_max_length=64,
        passage_max_length=48,
        lora_rank=None if "bert" in name else 4,
        in_batch_negatives=True,
        temperature=0.05,
        gradient_checkpointing=True,
    )
    log = finetune(folder, data, table, tmp_path / "model", config, seed=0, progress=False)
    assert np.isfinite(log["loss"].to_numpy()).all()
    trained = Encoder.load(tmp_path / "model")
    assert trained.layout == Encoder.load(folder).layout
    assert np.abs(trained.encode(TEXTS, progress=False)
                  - Encoder.load(folder).encode(TEXTS, progress=False)).max() > 1e-4  # fmt: skip
    scores = evaluation.evaluate(
        trained, data, query_max_length=64, passage_max_length=48, progress=False
    )
    assert 0 < scores.summary["ndcg_at_10"] < 1


def test_a_weight_without_a_place_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    write_nv_embed(tmp_path, "latent")
    weights = load_file(tmp_path / "model.safetensors")
    weights["latent_attention_model.odd"] = weights.pop("latent_attention_model.latents")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(NvretError, match=r"latents, odd"):
        Encoder.load(tmp_path)
