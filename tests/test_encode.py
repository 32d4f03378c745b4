"""Vectors against sentence-transformers and transformers, on real pretrained models."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from nvret import assets
from nvret.encode import Encoder, embed
from nvret.models import batching
from nvret.models.batching import token_budget_batches
from nvret.utils import store
from nvret.utils.errors import NvretError

TEXTS = [
    "who wrote the origin of species",
    "On the Origin of Species is a work of scientific literature by Charles Darwin.",
    "Paris",
    "The Eiffel Tower was finished in 1889. " * 12,
    "who wrote the origin of species",
    "¿Qué es esto? — 日本語 text, with Ünïcode",
]


@pytest.fixture(scope="module", params=["potion-base-8m", "paraphrase-minilm-l3"])
def folder(request):
    return assets.model_path(request.param)


@pytest.fixture(scope="module")
def transformer():
    return assets.model_path("paraphrase-minilm-l3")


def test_equals_sentence_transformers(folder):
    theirs = SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    ours = Encoder.load(folder)
    length = None if ours.layout.static else theirs.max_seq_length
    got = ours.encode(TEXTS, max_length=length, progress=False)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert got.shape == (len(TEXTS), ours.dimension)


def test_a_vector_does_not_depend_on_the_batch(folder):
    encoder = Encoder.load(folder)
    whole = encoder.encode(TEXTS, progress=False)
    alone = np.concatenate([encoder.encode([text], progress=False) for text in TEXTS])
    small = encoder.encode(TEXTS, token_budget=8, progress=False)
    np.testing.assert_allclose(whole, alone, atol=2e-6)
    np.testing.assert_allclose(whole, small, atol=2e-6)
    if encoder.layout.static:  # no padding and no product: to the bit
        np.testing.assert_array_equal(whole, small)
    np.testing.assert_array_equal(whole[0], whole[4])
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("causal", [False, True])
def test_pooling_of_encoders_and_decoders(tiny_llama, transformer, pooling, causal):
    path = tiny_llama if causal else transformer
    encoder = Encoder.load(path, pooling=pooling)
    got = encoder.encode(TEXTS, max_length=40, progress=False)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    for text, vector in zip(TEXTS, got, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")})[0][0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        expected = torch.nn.functional.normalize(pooled, dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=5e-6)


def test_prompts_and_instructions(transformer):
    prompt = "search query: "
    pooled = Encoder.load(transformer, prompts={"query": prompt})
    plain = Encoder.load(transformer)
    np.testing.assert_allclose(
        pooled.encode(TEXTS[:3], "query", progress=False),
        plain.encode([prompt + text for text in TEXTS[:3]], progress=False),
        atol=2e-6,
    )
    np.testing.assert_array_equal(
        pooled.encode(TEXTS[:3], "passage", progress=False),
        plain.encode(TEXTS[:3], progress=False),
    )
    left_out = Encoder.load(transformer, prompts={"query": prompt}, include_prompt=False)
    got = left_out.encode(TEXTS[2:3], "query", progress=False)[0]
    model, tokenizer = AutoModel.from_pretrained(transformer), left_out.tokenizer
    ids = tokenizer.encode(prompt + TEXTS[2]).ids
    skip = len(tokenizer.encode(prompt).ids) - 1  # [CLS] and the prompt, without [SEP]
    with torch.no_grad():
        hidden = model.eval()(torch.tensor([ids]))[0][0, skip:]
    expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(folder, dtype):
    exact = Encoder.load(folder).encode(TEXTS, progress=False)
    half = Encoder.load(folder, dtype=dtype).encode(TEXTS, progress=False)
    assert half.dtype == np.float32
    assert (exact * half).sum(1).min() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_stays_near(folder):
    exact = Encoder.load(folder).encode(TEXTS, progress=False)
    other = Encoder.load(folder, device="cuda").encode(TEXTS, progress=False)
    np.testing.assert_allclose(exact, other, atol=1e-4)


def test_a_saved_folder_gives_the_same_vectors(folder, tmp_path):
    encoder = Encoder.load(folder)
    encoder.save(tmp_path)
    expected = encoder.encode(TEXTS, progress=False)
    back = Encoder.load(tmp_path)
    assert back.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(back.encode(TEXTS, progress=False), expected)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(theirs.encode(TEXTS, show_progress_bar=False), expected, atol=2e-6)


def test_the_fingerprint_is_the_content(folder):
    encoder = Encoder.load(folder)
    before = encoder.fingerprint
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert encoder.fingerprint != before
    assert Encoder.load(folder).fingerprint == before


def test_embed_keeps_vectors_by_content(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    encoder = Encoder.load(folder)
    first = embed(encoder, TEXTS, "passage", max_length=32, progress=False)
    assert isinstance(first, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", None)  # a second call may not encode
        again = embed(encoder, TEXTS, "passage", max_length=32, progress=False)
    np.testing.assert_array_equal(first, again)
    embed(encoder, TEXTS, "passage", max_length=8, progress=False)
    embed(encoder, TEXTS[::-1], "passage", max_length=32, progress=False)
    assert len(list((tmp_path / "embeddings").glob("[!.]*"))) == 3


def test_embed_reads_a_list_whole_of_which_most_is_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    encoder, read = Encoder.load(folder), []
    whole, other = (
        ["moon", "sun", "stars", "tides"],
        ["rain", "snow", "hail", "fog", "frost", "dew"],
    )
    encode = Encoder.encode

    def listened(self, texts, *arguments, **options):
        read.append(list(texts))
        return encode(self, texts, *arguments, **options)

    monkeypatch.setattr(Encoder, "encode", listened)
    options = {"wholes": [whole, other], "progress": False}
    asked = ["dew", "tides", "moon", "tides", "cloud"]
    first = embed(encoder, asked, **options)
    assert read == [whole, ["dew", "cloud"]]  # a sixth of the other is not worth the rest
    np.testing.assert_allclose(first, encode(encoder, asked, progress=False), atol=2e-6)
    again = embed(encoder, ["stars", "snow", *other, "sun"], **options)
    assert read[2:] == [other]
    np.testing.assert_allclose(
        again, encode(encoder, ["stars", "snow", *other, "sun"], progress=False), atol=2e-6
    )
    assert isinstance(embed(encoder, whole, **options), np.memmap)
    assert len(read) == 3
    # What is stored does not depend on what was asked before
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path / "new"))
    np.testing.assert_array_equal(embed(encoder, asked, **options), first)


@given(st.lists(st.text("abc", max_size=2), max_size=12), st.data())
def test_each_text_is_of_one_part(texts, data):
    lists = st.lists(st.text("abc", max_size=2), max_size=9, unique=True)
    wholes = data.draw(st.lists(lists, max_size=4))
    parts = batching.parts_of(wholes, texts)
    if parts:
        rows = np.concatenate([part.rows for part in parts])
        assert sorted(rows.tolist()) == list(range(len(texts)))
        for part in parts:
            assert [texts[row] for row in part.rows] == [part.texts[p] for p in part.places]
            assert batching.OF_WHOLE * len(set(part.places.tolist())) >= len(part.texts)
    out = np.empty((len(texts), 1), np.float32)
    number = {text: row for row, text in enumerate(dict.fromkeys(itertools.chain(texts, *wholes)))}
    vectors = [np.array([[number[t]] for t in part.texts], np.float32) for part in parts]
    batching.gather(parts, vectors, out)
    assert not parts or out[:, 0].tolist() == [number[text] for text in texts]


def test_repeated_texts_take_no_second_matrix(tmp_path):
    """The result may be a file that is larger than the memory."""
    static = Encoder.load(assets.model_path("potion-base-8m"))
    texts = [f"number {n}" for n in range(20000)] + ["number 7"]
    with store.new_array(tmp_path / "vectors.npy", (len(texts), static.dimension)) as out:
        tracemalloc.start()
        try:
            static.encode(texts, progress=False, out=out)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 0.6 * out.nbytes
    np.testing.assert_array_equal(out[-1], out[7])
    np.testing.assert_allclose(out[:3], static.encode(texts[:3], progress=False), atol=1e-6)


def test_no_text(folder):
    encoder = Encoder.load(folder)
    assert encoder.encode([], progress=False).shape == (0, encoder.dimension)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: Encoder.load(f).encode(["a", float("nan")], progress=False), r"texts\[1\]"),
        (lambda f: Encoder.load(f).encode("one text", progress=False), "a list of strings"),
        (lambda f: Encoder.load(f).encode(["a"], "question", progress=False), "kind is 'question'"),
        (lambda f: Encoder.load(f, dtype="int8"), "dtype is 'int8'"),
        (lambda f: Encoder.load(f, pooling="max"), "pooling is 'max'"),
        (lambda f: Encoder.load(f, trust_remote_code=True), "needs a revision"),
        (lambda f: Encoder.load(f / "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_named(folder, call, message):
    with pytest.raises(NvretError, match=message):
        call(folder)


def test_weights_that_are_not_finite_are_named(transformer):
    encoder = Encoder.load(transformer)
    with torch.no_grad():
        encoder.backbone.get_input_embeddings().weight[encoder.tokenizer.token_to_id("paris")] = (
            torch.nan
        )
    with pytest.raises(NvretError, match=r"texts\[2\] = 'Paris': its vector is not finite"):
        encoder.encode(TEXTS, progress=False)


def test_batches_cover_every_row_once_within_the_budget():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 500)
    batches = list(token_budget_batches(lengths, 256))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(rows) * lengths[rows].max() <= 256 for rows in batches)


def test_shards_and_threads_change_nothing_but_rounding(folder, monkeypatch):
    texts = [f"number {n} of {n % 7} texts" for n in range(50)] + TEXTS + TEXTS
    encoder = Encoder.load(folder)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(encoder.encode(texts, max_length=32, progress=False))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    monkeypatch.setattr("nvret.encode.SHARD", 16)
    shards = encoder.encode(texts, max_length=32, progress=False)
    np.testing.assert_allclose(shards, found[0], atol=1e-6)


def test_a_message_names_the_row_of_the_list_that_was_given(monkeypatch):
    static = Encoder.load(assets.model_path("potion-base-8m"))
    monkeypatch.setattr("nvret.encode.SHARD", 4)
    texts = ["same", "same", "other", "same", "a", "b", "c", "\n", "d"]
    with pytest.raises(NvretError, match=r"texts\[7\] = '\\n' has no token"):
        static.encode(texts, progress=False)
