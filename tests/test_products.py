"""Float32 products by the other library are the same products, with the same gradients."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nvret import assets, search
from nvret.encode import Encoder
from nvret.utils import machine, products

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN"
)


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(products, "by_onednn", lambda: True)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    width=st.integers(1, 70),
    bias=st.booleans(),
    wanted=st.tuples(st.booleans(), st.booleans()),
    turned=st.booleans(),
)
def test_values_and_gradients_are_those_of_torch(sizes, width, bias, wanted, turned):
    generator = torch.Generator().manual_seed(0)
    *rows, depth = sizes
    x = torch.randn(*rows, depth, generator=generator).requires_grad_(wanted[0])
    weight = torch.randn(depth, width, generator=generator).T if turned else (
        torch.randn(width, depth, generator=generator)
    )  # fmt: skip
    weight = weight.detach().requires_grad_(wanted[1])
    added = torch.randn(width, generator=generator).requires_grad_() if bias else None
    inputs = [each for each in (x, weight, added) if each is not None and each.requires_grad]
    found = []
    for product in (nn.functional.linear, products.linear):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "by_onednn", lambda: True)
            result = product(x, weight, added)
        gradients = torch.autograd.grad(result.square().sum(), inputs) if inputs else ()
        found.append([result, *gradients])
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        close(one, other)


def test_a_vector_alone_an_empty_batch_and_another_precision_are_torchs(onednn):
    weight = torch.randn(3, 4)
    close(products.linear(torch.ones(4), weight), weight.sum(1))
    assert products.linear(torch.empty(0, 4), weight).shape == (0, 3)
    double = products.linear(torch.ones(2, 4, dtype=torch.float64), weight.double())
    assert double.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(torch.ones(2, 4), weight).dtype == torch.bfloat16
    torch.jit.trace(lambda x: products.linear(x, weight), torch.ones(2, 4))


def test_rows_may_lie_in_any_order_in_memory(onednn):
    whole, weight = torch.randn(3, 8, 5, 4), torch.randn(6, 4)
    for x in (whole.transpose(0, 2), whole[:, ::2], whole[:1, :1, :1].expand(2, 3, 4, 4)):
        close(products.linear(x, weight), x @ weight.T)
    some = torch.randn(4, 9).T.requires_grad_()  # neither side of the product is contiguous
    products.linear(some, weight).sum().backward()
    close(some.grad, weight.sum(0).expand(9, 4))


@pytest.mark.parametrize("passages", [1, 70, 2 * products.COLUMNS + 5])
def test_scores_are_written_where_they_belong(onednn, passages):
    queries, corpus = torch.randn(5, 16), torch.randn(passages, 16)
    whole = torch.full((5, passages + 3), torch.nan)
    products.scores(queries, corpus, whole[:, :passages])
    close(whole[:, :passages], queries @ corpus.T)
    assert whole[:, passages:].isnan().all()


def test_search_finds_the_same(onednn, monkeypatch):
    queries, corpus = (nn.functional.normalize(torch.randn(n, 24), dim=1) for n in (40, 20_000))
    one = search.top_k(queries, corpus, 10)
    monkeypatch.setattr(products, "by_onednn", lambda: False)
    other = search.top_k(queries, corpus, 10)
    close(one.scores, other.scores)
    assert (one.ids == other.ids).double().mean() > 0.99


def test_an_encoders_vectors_and_weights_stay(onednn, tmp_path):
    path, texts = assets.model_path("paraphrase-minilm-l3"), ["a house", "a boat on the lake"]
    encoder = Encoder.load(path)
    layers = [part for part in encoder.modules() if isinstance(part, nn.Linear)]
    assert {type(part) for part in layers} == {products.Linear}
    encoder.save(tmp_path / "saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "by_onednn", lambda: False)
        plain, again = Encoder.load(path), Encoder.load(tmp_path / "saved")
        assert {type(p) for p in plain.modules() if isinstance(p, nn.Linear)} == {nn.Linear}
        expected = plain.encode(texts, progress=False)
    np.testing.assert_allclose(encoder.encode(texts, progress=False), expected, atol=1e-6)
    assert plain.fingerprint == encoder.fingerprint == again.fingerprint


@given(
    rows=st.integers(1, 300), width=st.integers(1, 70), depth=st.integers(1, 70), bias=st.booleans()
)
def test_a_weight_that_is_laid_out_gives_the_same(rows, width, depth, bias):
    layer, x = nn.Linear(width, depth, bias=bias), torch.randn(rows, width, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "by_onednn", lambda: True)
        products.use(layer)
        inputs = x, *layer.parameters()
        found = []
        for enough in (products.FEW, products.FEW - 1):
            with products.laid_out(layer, enough):
                assert (layer.laid_out is None) is (enough < products.FEW)
                result = layer(x)
                with torch.no_grad():
                    close(layer(x), result)
            found.append([result, *torch.autograd.grad(result.square().sum(), inputs)])
    for one, other in zip(*found, strict=True):
        close(one, other)


def test_a_weight_is_laid_out_for_a_while_alone(onednn):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    products.use(model)
    names = set(model.state_dict())
    with contextlib.suppress(ZeroDivisionError), products.laid_out(model, products.FEW):
        assert all(layer.laid_out is not None for layer in model)
        assert set(model.state_dict()) == names
        raise ZeroDivisionError
    assert all(layer.laid_out is None for layer in model)
    x = torch.ones(1, 3)
    for value in (1.0, 2.0):  # training changes it between two batches
        model[1].weight.data.fill_(value)
        model[1].bias.data.zero_()
        with products.laid_out(model, products.FEW):
            close(model[1](x), torch.full((1, 2), 3 * value))
    with products.laid_out(model.double(), products.FEW):
        assert model[1].laid_out is None  # oneDNN is asked for float32 alone


def test_long_texts_are_encoded_and_read_in_training_with_weights_laid_out(onednn, monkeypatch):
    asked = []

    def listen(module, rows):
        asked.append(rows)
        return laid_out(module, rows)

    laid_out = products.laid_out
    monkeypatch.setattr(products, "laid_out", listen)
    encoder = Encoder.load(assets.model_path("paraphrase-minilm-l3"))
    texts = [f"a boat of number {n} on the lake" for n in range(600)]
    vectors = encoder.encode(texts, progress=False)
    tokens = encoder.tokenize(texts, "passage", progress=False)
    batches = [encoder.collate(tokens, np.arange(600))]
    trained = encoder.forward_all(batches, [0])[0].detach().numpy()
    monkeypatch.setattr(products, "FEW", 1 << 60)
    np.testing.assert_allclose(encoder.encode(texts, progress=False), vectors, atol=1e-6)
    np.testing.assert_allclose(trained, vectors, atol=1e-6)
    assert len(asked) == 3
    assert min(asked) > 4096


@pytest.mark.parametrize(("maker", "chosen"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processors_maker_decides(monkeypatch, maker, chosen):
    monkeypatch.setattr(machine, "vendor", lambda: maker)
    assert products.by_onednn.__wrapped__() is (chosen and torch.backends.mkl.is_available())


def test_float32_is_float32_on_a_gpu():
    """Nothing in the package lets torch round a product's factors (TF32)."""
    program = (
        "import pkgutil, torch, nvret\n"
        "for module in pkgutil.walk_packages(nvret.__path__, 'nvret.'):\n"
        "    if '__main__' not in module.name: __import__(module.name)\n"
        "assert torch.get_float32_matmul_precision() == 'highest'\n"
        "assert not torch.backends.cuda.matmul.allow_tf32\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
