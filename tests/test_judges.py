"""Judges of negatives: batches that change nothing, heads that are there, and what is caught."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from nvret import mining
from nvret.analysis import audit, judge_quality, judges
from nvret.analysis.judges import BiEncoderJudge, CrossEncoderJudge, LanguageModelJudge, Scores
from nvret.data import from_texts
from nvret.utils.errors import NvretError

TEXT = "yes no is it the a red blue fox dog sat ran passage query relevant to answer with or"
WORDS = TEXT.split()


def tokenizer(folder, **special):
    """A word tokenizer as transformers saves one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, "[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", **special
    )
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture
def language_model(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4 + len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.5,
        tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer(tmp_path)
    return tmp_path


def cross_encoder(folder, labels):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4 + len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer(folder, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    return folder


PASSAGES = ["the red fox ran", "a dog", "the blue dog sat with the red fox", "fox", "it is a dog"]
QUERIES = ["is it red", "the dog", "query", "blue or red fox", "is it"]


def test_language_model_is_that_of_one_full_forward_pass_each(language_model):
    judge = LanguageModelJudge(language_model, max_length=5)
    found = judge.scores(QUERIES, PASSAGES, progress=False)
    tokens = 0
    for row, (query, passage) in enumerate(zip(QUERIES, PASSAGES, strict=True)):
        cut = " ".join(passage.split()[:5])
        prompt = judges.ASK.format(passage=cut, query=query) + "\nAnswer:"
        ids = judge.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tokens += len(ids)
        with torch.no_grad():
            logits = judge.model(torch.tensor([ids])).logits[0, -1]
        yes, no = (4 + WORDS.index(word) for word in ("yes", "no"))
        expected = logits[[yes, no]].softmax(-1)[0].item()
        assert found.values[row] == pytest.approx(expected, abs=1e-5)
    assert found.tokens == tokens
    assert found.values.std() > 0.01


def test_language_model_uses_the_chat_template(language_model):
    config = language_model / "tokenizer_config.json"
    said = json.loads(config.read_text())
    said["chat_template"] = "it is {{ messages[0]['content'] }} the {{ messages[0]['role'] }}"
    config.write_text(json.dumps(said))
    parts = LanguageModelJudge(language_model).parts
    assert parts[:4] == ["it is Passage: ", "{passage}", "\n\nQuery: ", "{query}"]
    assert "".join(parts) == f"it is {judges.ASK} the user"


@pytest.mark.parametrize("labels", [1, 2])
def test_cross_encoder_is_that_of_one_pair_each(tmp_path, labels):
    judge = CrossEncoderJudge(cross_encoder(tmp_path, labels), max_length=9)
    found = judge.scores(QUERIES, PASSAGES, progress=False)
    tokens = 0
    for row, pair in enumerate(zip(QUERIES, PASSAGES, strict=True)):
        read = judge.model.tokenizer(
            *pair, truncation="only_second", max_length=9, return_tensors="pt"
        )
        assert read["token_type_ids"].max() == 1
        with torch.no_grad():
            logits = judge.model.model(**read).logits[0]
        expected = logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]
        assert found.values[row] == pytest.approx(expected.item(), abs=1e-5)
        tokens += read["input_ids"].numel()
    assert found.tokens == tokens
    assert found.values.std() > 0.01


def test_a_folder_without_its_head_is_refused(tmp_path, language_model):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "cross"
    cross_encoder(folder, 1)
    file = folder / "model.safetensors"
    weights = load_file(file)
    body = {name: w for name, w in weights.items() if not name.startswith("classifier")}
    save_file(body, file, metadata={"format": "pt"})
    with pytest.raises(NvretError, match=r"2 weights are missing: classifier\.bias"):
        CrossEncoderJudge(folder)
    file.unlink()
    with pytest.raises(NvretError, match="has no safetensors"):
        CrossEncoderJudge(folder)
    with pytest.raises(NvretError, match="3 outputs, expected 1 or 2"):
        CrossEncoderJudge(cross_encoder(tmp_path / "three", 3))


def test_bi_encoder_compares_with_the_positive():
    judge = judges.load("potion-base-8m")
    assert isinstance(judge, BiEncoderJudge)
    queries = ["who wrote the origin of species"] * 2
    passages = ["Darwin wrote the Origin of Species.", "Bananas are rich in potassium."]
    positives = ["The Origin of Species is a book by Charles Darwin."] * 2
    found = judge.scores(queries, passages, positives, progress=False)
    assert found.values[0] > judge.threshold > found.values[1]
    assert judge.scores(queries, positives, positives, progress=False).values == pytest.approx(1)


def test_the_kind_of_judge_follows_the_architecture(tmp_path, language_model):
    assert isinstance(judges.load(str(language_model)), LanguageModelJudge)
    folder = cross_encoder(tmp_path / "cross", 1)
    assert isinstance(judges.load(str(folder)), CrossEncoderJudge)


# a judge at work


class WordJudge:
    """Relevant passages say so."""

    name, threshold = "words", 0.5

    def scores(self, queries, passages, positives, *, progress=True):
        values = np.array(["relevant" in text for text in passages], np.float32)
        return Scores(values, sum(len(text.split()) for text in passages))


@pytest.fixture
def mined():
    """Query i has two positives; the one is hidden, and says in two of three cases what it is."""
    texts = [
        f"word{i} says {'relevant' if i % 3 and twin else 'this'}"
        for i in range(30)
        for twin in (0, 1)
    ]
    queries = [f"word{i}" for i in range(30)]
    dataset = from_texts("toy", texts, queries, [[2 * i, 2 * i + 1] for i in range(30)])
    hidden = audit.hide(dataset)
    table = mining.mine(
        hidden.dataset, "bm25", mining.RandomNegatives(), 4, near_duplicates=None, progress=False
    )
    twins = pa.table(
        {"query_id": hidden.pairs["query_id"], "negative_id": hidden.pairs["corpus_id"]}
    ).join(table.drop_columns("negative_id"), "query_id", join_type="inner")
    return hidden, pa.concat_tables([table, twins.select(table.column_names).cast(table.schema)])


def test_what_a_judge_catches(mined):
    hidden, table = mined
    judged = judge_quality.judge(WordJudge(), hidden.dataset, table, hidden, progress=False)
    quality = judge_quality.quality(judged)
    known = judged.table["known"].to_numpy()
    flagged = judged.table["judged"].to_numpy() > 0
    assert quality["known"] == known.sum() > 0
    assert quality["precision"] == pytest.approx((known & flagged).sum() / flagged.sum())
    assert quality["recall"] == pytest.approx((known & flagged).sum() / known.sum())
    assert quality["low"] <= quality["AUC"] <= quality["high"]
    assert judged.seconds > 0
    assert 2 < judged.tokens < 4
    curve = judge_quality.curve(judged)
    assert curve["recall"].tolist() == [pytest.approx(quality["recall"]), 1]
    assert curve["removed"].iloc[0] == pytest.approx((flagged & ~known).sum() / (~known).sum())

    with pytest.raises(NvretError, match="words was run without hidden labels"):
        judge_quality.quality(
            judge_quality.judge(WordJudge(), hidden.dataset, table, progress=False)
        )
    with pytest.raises(NvretError, match="holds no negative"):
        judge_quality.judge(WordJudge(), hidden.dataset, table.slice(0, 0), hidden)
    strange = table.slice(0, 1).set_column(0, "query_id", pa.array(["x"]))
    with pytest.raises(NvretError, match=r"negatives row 0: query_id 'x' is not in toy"):
        judge_quality.judge(WordJudge(), hidden.dataset, strange, hidden)


def test_the_ceiling_is_a_judge(mined):
    hidden, table = mined
    judged = judge_quality.by_ceiling(table, hidden, perc=0.9)
    flagged = judged.table["judged"] >= 0.9
    ceiling = mining.TopKPercPos(0.9).ceiling(judged.table["positive_score"].to_numpy())
    assert (flagged == (judged.table["score"] >= ceiling)).all()
    assert judged.seconds == 0


def test_a_sample_knows_nothing_of_what_is_hidden():
    """Both are chosen by hashes of the same ids."""
    size = 3000
    dataset = from_texts(
        "many", [f"p {i}" for i in range(2 * size)], [f"q {i}" for i in range(size)],
        [[2 * i, 2 * i + 1] for i in range(size)],
    )  # fmt: skip
    hidden = audit.hide(dataset)
    rows = dataset.qrels.select(["query_id", "corpus_id"]).rename_columns(
        ["query_id", "negative_id"]
    )
    both = rows.append_column("positive_id", rows["negative_id"])
    chosen = judge_quality.sample(both, 1000)
    assert len(chosen) == 1000
    assert audit.known(chosen, hidden).mean() == pytest.approx(0.5, abs=0.06)
    assert set(judge_quality.sample(both, 10)["negative_id"].to_pylist()) < set(
        chosen["negative_id"].to_pylist()
    )


def test_known_positives_are_sampled_more_often_and_weighted_back(mined):
    hidden, table = mined
    half = judge_quality.sample(table, 120, hidden=hidden)
    assert len(half) == 120
    assert audit.known(half, hidden).sum() == 60
    most = judge_quality.sample(table, len(table) - 2, hidden=hidden)  # there are no more others
    assert audit.known(most, hidden).sum() == audit.known(table, hidden).sum() - 2

    share = audit.known(table, hidden).mean()
    every, part = (
        judge_quality.judge(WordJudge(), hidden.dataset, rows, hidden, progress=False)
        for rows in (table, half)
    )
    whole, weighted = judge_quality.quality(every), judge_quality.quality(part, share)
    assert weighted["flagged"] == pytest.approx(whole["flagged"], abs=0.15)
    assert weighted["precision"] == pytest.approx(whole["precision"], abs=0.15)


def test_area_without_two_kinds_is_nothing():
    nothing = judge_quality.auc_interval(np.zeros(3, bool), np.arange(3), np.arange(3))
    assert np.isnan(nothing).all()
    rng = np.random.default_rng(0)
    known = rng.random(400) < 0.2
    value, low, high = judge_quality.auc_interval(
        known, known + rng.normal(size=400), np.arange(400)
    )
    assert 0.6 < low < value < high < 0.9
    assert isinstance(pd.Series([value]).iloc[0], float)
