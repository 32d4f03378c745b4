"""Decoders that see later tokens, and word vectors that are looked up once for several batches."""

import numpy as np
import pytest
import torch

from nvret import assets
from nvret.encode import Encoder

TEXTS = ["the moon", "the moon and the sun", "tides", "a much longer text about moon and sun"]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_sight_of_later_tokens_does_not_depend_on_padding(tiny_llama, tmp_path, bidirectional):
    encoder = Encoder.load(tiny_llama, pooling="mean", bidirectional=bidirectional)
    alone = encoder.encode(TEXTS, token_budget=1, progress=False)  # no row is padded
    padded = encoder.tokenize(TEXTS, progress=False)
    with torch.inference_mode():
        together = encoder(**encoder.collate(padded, range(len(TEXTS)))).numpy()
    np.testing.assert_allclose(alone, together, atol=1e-5)

    encoder.save(tmp_path / "saved")
    saved = Encoder.load(tmp_path / "saved")
    np.testing.assert_array_equal(
        saved.encode(TEXTS, progress=False), encoder.encode(TEXTS, progress=False)
    )

    pair = encoder.tokenize(["the moon and sun", "the moon and cat"], progress=False)
    with torch.inference_mode():
        ids = encoder.collate(pair, [0, 1])["input_ids"]
        first = encoder.backbone(ids, use_cache=False).last_hidden_state[:, 1]
    assert torch.allclose(first[0], first[1], atol=1e-6) != bidirectional


@pytest.mark.parametrize("name", ["paraphrase-minilm-l3", "potion-base-8m"])
def test_several_batches_are_the_same_as_each_alone(name):
    encoder = Encoder.load(assets.model_path(name)).double()
    tokens = encoder.tokenize(TEXTS, progress=False)
    batches = [encoder.collate(tokens, rows) for rows in ([0, 1], [2], [3, 0])]

    def gradients(vectors):
        encoder.zero_grad()
        torch.cat(vectors).pow(3).sum().backward()
        return {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}

    alone = [encoder(**batch) for batch in batches]
    together = encoder.forward_all(batches, [0] * len(batches))
    torch.testing.assert_close(together, alone)
    expected, found = gradients(alone), gradients(together)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])
