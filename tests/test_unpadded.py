"""Batches without padding: the vectors and gradients of padded ones, for every kind of model."""

import copy
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention import varlen

from helpers import examples
from helpers.architectures import ARCHITECTURES
from helpers.training import CONFIG, changed, run
from nvret.encode import Encoder
from nvret.models import backbones, unpadded

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.3, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
SIZE_OF_KIND = {
    "distilbert": {"vocab_size": 300, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "gemma3_text": SIZES | GROUPED | {"num_hidden_layers": 7, "sliding_window": 5},
    "llama": SIZES | GROUPED,
    "mistral": SIZES | GROUPED | {"sliding_window": 5},
    "modernbert": SIZES | {"num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 0,
                           "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1,
                           "eos_token_id": 2},
    "qwen2": SIZES | {"num_key_value_heads": 2},
    "qwen3": SIZES | GROUPED,
}  # fmt: skip
DECODERS = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="module", params=[*unpadded.KINDS, *(f"{kind}, both" for kind in DECODERS)])
def model(request):
    """A backbone that reads padded batches."""
    kind, _, both = request.param.partition(", ")
    config = transformers.AutoConfig.for_model(kind, **SIZE_OF_KIND.get(kind, SIZES))
    if both:
        config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = transformers.AutoModel.from_config(config).eval()
    if both:
        backbones.see_both_ways(backbone)
    return backbone


def batch(lengths, seed=0):
    """Ids and mask of random texts."""
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(5, 300, mask.shape, generator=draw) * mask, mask


def both(backbone, ids, mask, kernel=None):
    """Token vectors of the padded way, and of this one (by a stand-in for torch's kernel)."""
    options = {"use_cache": False} if hasattr(backbone.config, "use_cache") else {}
    other = copy.deepcopy(backbone)
    assert unpadded.use(other)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        padded = backbone(input_ids=ids, attention_mask=mask, **options).last_hidden_state
        if kernel is not None:
            patch.setattr(unpadded, "is_fast", lambda device, dtype: True)
            patch.setattr(unpadded, "_kernel", lambda: kernel)
        found = unpadded.run(other, {"input_ids": ids, **options}, mask)
    if mask is not None:
        assert not found[mask == 0].any()
        padded = padded * mask[:, :, None]
    return padded, found


def test_the_same_token_vectors(model):
    """Longer together than one text may be; texts of one token; more than a window."""
    ids, mask = batch([80, 1, 3, 20, 77, 9, 5, 31, 64])
    padded, found = both(model, ids, mask)
    torch.testing.assert_close(found, padded, atol=1e-5, rtol=1e-5)
    padded, found = both(model, ids[:1], None)
    torch.testing.assert_close(found, padded, atol=1e-5, rtol=1e-5)


def reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options):
    """``varlen_attn`` as torch documents it, text by text."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    (left, right), found = options["window_size"], []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        parts = [part[start:end].transpose(0, 1)[None] for part in (query, key, value)]
        ahead = torch.arange(end - start) - torch.arange(end - start)[:, None]
        seen = torch.ones_like(ahead, dtype=torch.bool)
        seen &= (-ahead <= left) | (left < 0)
        seen &= (ahead <= right) | (right < 0)
        found.append(
            functional.scaled_dot_product_attention(
                *parts, seen, scale=options["scale"], enable_gqa=options["enable_gqa"]
            )[0].transpose(0, 1)
        )
    return torch.cat(found)


def test_torchs_kernel_is_called_as_it_asks_to_be(model):
    """A stand-in with the kernel's own signature, since the kernel itself needs a GPU."""
    kernel = mock.create_autospec(varlen.varlen_attn, side_effect=reference)
    padded, found = both(model, *batch([80, 1, 3, 20]), kernel)
    torch.testing.assert_close(found, padded, atol=1e-5, rtol=1e-5)
    assert kernel.call_count == model.config.num_hidden_layers


@examples(60)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([(-1, -1), (-1, 0), (3, 0), (2, 2)]),
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.integers(0, 99),
)
def test_attention_is_that_of_each_text_alone(lengths, window, heads, seed):
    draw = torch.Generator().manual_seed(seed)
    total, ends = sum(lengths), torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    query, key, value = (
        torch.randn(total, number, 8, generator=draw) for number in (heads[0], heads[1], heads[1])
    )
    options = {"scale": 0.3, "window_size": window, "enable_gqa": heads[0] != heads[1]}
    alone = reference(query, key, value, ends, ends, 20, 20, **options)
    found = unpadded._padded(query, key, value, ends.long(), 20, window, 0.3, 0.0)
    torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-5)


def test_other_kinds_stay_as_they_are():
    config = transformers.AutoConfig.for_model("mpnet", **SIZES)
    backbone = transformers.AutoModel.from_config(config)
    assert not unpadded.use(backbone)
    assert not unpadded.used(backbone)


def test_it_is_for_half_precision_on_a_gpu(monkeypatch):
    assert not unpadded.is_fast("cpu", torch.bfloat16)
    assert not unpadded.is_fast("cuda", torch.float32)
    for capability, expected in (((7, 5), False), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert unpadded.is_fast("cuda", torch.bfloat16) == expected


def switched_on(monkeypatch, dtype=torch.float32):
    """As on a GPU: what reads in ``dtype`` has no padding, and takes torch's kernel; its calls."""
    kernel = mock.create_autospec(varlen.varlen_attn, side_effect=reference)
    monkeypatch.setattr(unpadded, "is_fast", lambda device, asked: asked == dtype)
    monkeypatch.setattr(unpadded, "_kernel", lambda: kernel)
    return kernel


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_vectors_of_texts_and_the_same_files(name, tmp_path, monkeypatch):
    write, pooling = ARCHITECTURES[name]
    write(tmp_path / "base", pooling)
    texts = ["The moon moves the sea.", "salt", "A river carries stones to the sea."] * 3
    texts += [f"{text} {number}" for number, text in enumerate(texts)]
    plain = Encoder.load(tmp_path / "base")
    kernel = switched_on(monkeypatch)
    other = Encoder.load(tmp_path / "base")
    for kind in ("query", "passage"):
        vectors = [encoder.encode(texts, kind, progress=False) for encoder in (plain, other)]
        np.testing.assert_allclose(*vectors, atol=1e-5)
    assert kernel.called
    assert plain.fingerprint == other.fingerprint
    other.save(tmp_path / "saved")
    monkeypatch.undo()
    assert not unpadded.used(Encoder.load(tmp_path / "saved").backbone)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        *((name, None) for name in ARCHITECTURES),
        ("bert-cls", 64),
        *(pytest.param(name, 64, marks=pytest.mark.thorough) for name in ARCHITECTURES),
    ],
)
def test_the_same_training(name, chunk, tmp_path, monkeypatch):
    """With adapters and recomputed activations for a decoder; chunks with a gradient cache."""
    write, pooling = ARCHITECTURES[name]
    write(tmp_path / "base", pooling)
    options = {"chunk_tokens": chunk, "epochs": 2, "learning_rate": 1e-3, "query_max_length": 64}
    if "bert" not in name:
        options |= {"lora_rank": 4, "gradient_checkpointing": True}
    config, logs, weights = changed(CONFIG, dropout=0.0, **options), {}, {}
    for padded in (True, False):
        kernel = None if padded else switched_on(monkeypatch)
        logs[padded] = run(tmp_path / f"{padded}", config=config, base=tmp_path / "base")
        weights[padded] = Encoder.load(tmp_path / f"{padded}").state_dict()
    assert kernel.called
    frames = [logs[padded].to_pandas() for padded in (True, False)]
    pd.testing.assert_frame_equal(*frames, rtol=1e-3)
    for key, weight in weights[True].items():
        if not key.endswith("key.bias"):  # without a gradient: AdamW makes rounding large
            torch.testing.assert_close(weight, weights[False][key], atol=2e-4, rtol=1e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_in_bfloat16_has_no_padding(name, precision, tmp_path, monkeypatch):
    """Of encoders and decoders, whose rotated queries autocast leaves in float32."""
    write, pooling = ARCHITECTURES[name]
    write(tmp_path / "base", pooling)
    kernel = switched_on(monkeypatch, torch.bfloat16)
    config = changed(CONFIG, precision=precision, dropout=0.0, query_max_length=64)
    log = run(tmp_path / "model", config=config, base=tmp_path / "base")
    assert np.isfinite(log["loss"].to_numpy()).all()
    assert kernel.called == (precision == "bfloat16")
    for call in kernel.call_args_list:
        assert {part.dtype for part in call.args[:3]} == {torch.bfloat16}


def test_dropout_of_attention_is_not_left_out(monkeypatch):
    """torch's kernel has none."""
    monkeypatch.setattr(unpadded, "is_fast", lambda device, dtype: True)
    monkeypatch.setattr(unpadded, "_kernel", mock.Mock(side_effect=AssertionError))
    config = transformers.AutoConfig.for_model(
        "bert", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0, **SIZES
    )
    backbone = transformers.AutoModel.from_config(config).train()
    unpadded.use(backbone)
    ids, mask = batch([9, 4])
    drawn = [unpadded.run(backbone, {"input_ids": ids}, mask) for _ in range(2)]
    assert not torch.allclose(*drawn)
