"""Judges of mined negatives: the costly ways to find those that are positives in truth.

A positive-aware ceiling uses scores that mining has computed anyway; a judge reads each pair again.
Source: RocketQA's cross-encoder (arXiv 2010.08191), the language model that judges the negatives of
NQ in arXiv 2407.15831, and the vote of a second embedding model.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from nvret.assets import load_encoder, model_folder
from nvret.models import layout
from nvret.models.backbones import quiet
from nvret.models.batching import Ragged, in_threads, token_budget_batches
from nvret.utils import products, store
from nvret.utils.bars import are_shown, progress_bar
from nvret.utils.errors import NvretError

ASK = (
    "Passage: {passage}\n\nQuery: {query}\n\n"
    "Is the passage relevant to the query? Answer with Yes or No."
)
# For a copy of a model that has lost its template; its tokenizer still knows the marks
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS, SLACK = 2048, 128  # of a batch of prompts: most tokens, and most of them padding
Texts = Sequence[str]


class Scores(NamedTuple):
    """What a judge says of P pairs."""

    values: np.ndarray  # (P,) float32
    tokens: int  # read for all of them


class Judge(Protocol):
    """What reads pairs."""

    name: str  # for tables
    threshold: float  # the score from which a passage counts as relevant

    def scores(
        self, queries: Texts, passages: Texts, positives: Texts, *, progress: bool = True
    ) -> Scores:
        """Of P pairs; ``positives`` are the labelled positives of the pairs' queries."""


class BiEncoderJudge:
    """A second embedding model's vote: the passage's cosine as a share of the positive's.

    Args:
        model: a name of ``nvret.assets`` or a folder.
        max_length: tokens that are read of each text.
    """

    threshold = 0.95

    def __init__(self, model: str | Path, *, max_length: int = 128, device: str = "cpu") -> None:
        self.name, self.max_length = Path(model).name, max_length
        self.encoder = load_encoder(str(model), device)

    def scores(self, queries, passages, positives, *, progress=True) -> Scores:
        vectors, tokens, limit = {}, 0, {"max_length": self.max_length}
        for texts, kind in ((queries, "query"), ([*passages, *positives], "passage")):
            vectors[kind] = self.encoder.encode(texts, kind, progress=progress, **limit)
            distinct = list(dict.fromkeys(texts))  # equal texts are encoded once
            tokens += len(self.encoder.tokenize(distinct, kind, progress=False, **limit).ids)
        parts = np.split(vectors["passage"], 2)
        own, labelled = (np.einsum("pd,pd->p", vectors["query"], part) for part in parts)
        return Scores(shares(own, labelled), tokens)


def shares(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Scores as shares of their positives'; above 1 for a score above a positive of negative score.

    >>> shares(np.array([0.4, -0.6]), np.array([0.8, -0.5]))
    array([0.5, 0.8])
    """
    size = np.maximum(np.abs(positives), np.finfo(np.float32).tiny)
    return 1 + (scores - positives) / size


class LanguageModelJudge:
    """A language model that is asked for Yes or No: P(Yes) / (P(Yes) + P(No)) as the next token.

    Args:
        model: a name of ``nvret.assets`` or a folder; `NvretError` if weights are missing.
        max_length: tokens that are read of a passage.
    """

    threshold = 0.5

    def __init__(self, model: str | Path, *, max_length: int = 256, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.name, self.max_length = Path(model).name, max_length
        folder = _checked_folder(AutoModelForCausalLM, model)
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False
            )
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, use_fast=True, trust_remote_code=False
            )
        products.use(loaded)
        self.model = loaded.to(device).eval()
        self.parts, answers = _prompt(self.tokenizer)
        yes, no = (ids[0] for ids in self._ids(answers))
        if yes == no:
            raise NvretError(f"{model}: its tokenizer begins Yes and No with the same token")
        self.head = self.model.get_output_embeddings().weight[[yes, no]].detach()

    def scores(self, queries, passages, positives=(), *, progress=True) -> Scores:
        fields = {"{passage}": self._ids(passages, self.max_length), "{query}": self._ids(queries)}
        pieces = [fields.get(part) or self._ids([part]) * len(queries) for part in self.parts]
        prompts = Ragged.of([list(itertools.chain(*row)) for row in zip(*pieces, strict=True)])
        batches = token_budget_batches(prompts.lengths, TOKENS, slack=SLACK)
        forward = functools.partial(self._forward, prompts)
        if self.model.device.type == "cpu":  # whose threads take a batch each
            results = in_threads(forward, batches)
        else:
            results = ((rows, forward(rows)) for rows in batches)
        values = np.empty(len(queries), np.float32)
        bar = progress_bar(total=len(queries), desc=self.name, unit="pair", show=progress)
        with bar, products.laid_out(self.model, len(prompts.ids)):
            for rows, probabilities in results:
                values[rows] = probabilities
                bar.update(len(rows))
        return Scores(values, len(prompts.ids))

    def _ids(self, texts: Texts, most: int | None = None) -> list[list[int]]:
        tokens = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [ids[:most] for ids in tokens]

    @torch.inference_mode()
    def _forward(self, prompts: Ragged, rows: np.ndarray) -> np.ndarray:
        """(B,) P(Yes) of some prompts, padded on the right: no token sees those after it."""
        ids, lengths = prompts.padded(rows, self.tokenizer.pad_token_id or 0)
        ids = torch.from_numpy(ids).to(self.model.device)
        states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        last = states[torch.arange(len(rows)), torch.from_numpy(lengths - 1)]
        # Of the vocabulary's logits only the two that are asked for
        return (last @ self.head.T).softmax(-1)[:, 0].cpu().numpy()


class CrossEncoderJudge:
    """A model that reads query and passage together: sentence-transformers' ``CrossEncoder``.

    Args:
        folder: with a head of one output (whose sigmoid is the score) or two (the second's share);
            `NvretError` for another head, or if weights are missing.
        max_length: tokens that are read of a pair; the passage is cut.
    """

    threshold = 0.5

    def __init__(self, folder: str | Path, *, max_length: int = 256, device: str = "cpu") -> None:
        from sentence_transformers import CrossEncoder
        from transformers import AutoModelForSequenceClassification

        self.name, self.max_length = Path(folder).name, max_length
        folder = _checked_folder(AutoModelForSequenceClassification, folder)
        with quiet():
            self.model = CrossEncoder(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},
            )
        products.use(self.model.model)
        if self.model.num_labels > 2:
            raise NvretError(f"{folder}: {self.model.num_labels} outputs, expected 1 or 2")

    def scores(self, queries, passages, positives=(), *, progress=True) -> Scores:
        cut = {"truncation": "only_second", "max_length": self.max_length}
        two = self.model.num_labels == 2
        values = self.model.predict(
            list(zip(queries, passages, strict=True)),
            show_progress_bar=progress and are_shown(),
            activation_fn=torch.nn.Softmax(-1) if two else torch.nn.Sigmoid(),
            processing_kwargs={"text": cut},
        )
        tokens = self.model.tokenizer(list(queries), list(passages), **cut)["input_ids"]
        return Scores(values[:, 1] if two else values, sum(map(len, tokens)))


def load(name: str, *, max_length: int = 128, device: str = "cpu") -> Judge:
    """The judge that a model makes, by its architecture; arguments as of the classes."""
    folder = model_folder(name)
    options = {"max_length": max_length, "device": device}
    if not layout.read(folder).static:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = (config.get("architectures") or [""])[0]
        if architecture.endswith("ForSequenceClassification"):
            return CrossEncoderJudge(folder, **options)
        if architecture.startswith("Llama") or architecture.endswith("ForCausalLM"):
            return LanguageModelJudge(name, **options)
    return BiEncoderJudge(name, **options)


def fingerprint(name: str, max_length: int) -> str:
    """What a judge's scores rest on beside the code: files of the model, name and length."""
    folder = model_folder(name)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return store.fingerprint(*files, name, max_length)


def _checked_folder(kind: Any, model: str | Path) -> Path:
    """The model's folder, if it holds all weights of this class of transformers.

    transformers would go on with random ones, and a judge whose head is random guesses.
    """
    folder = model_folder(str(model))
    if not list(folder.glob("*.safetensors")):
        raise NvretError(f"{folder}: has no safetensors")
    with quiet():  # names alone: no weight is read
        _, report = kind.from_pretrained(
            folder, device_map="meta", output_loading_info=True, trust_remote_code=False
        )
    if missing := sorted(report["missing_keys"]):
        raise NvretError(f"{folder}: {len(missing)} weights are missing: {', '.join(missing[:4])}")
    return folder


def _prompt(tokenizer: Any) -> tuple[list[str], tuple[str, str]]:
    """The prompt, cut before and after {passage} and {query}; how Yes and No follow it."""
    template = tokenizer.chat_template
    if template is None and "<|im_start|>" in tokenizer.get_vocab():
        template = CHATML
    text, answers = f"{ASK}\nAnswer:", (" Yes", " No")
    if template is not None:
        message = [{"role": "user", "content": ASK}]
        text = tokenizer.apply_chat_template(
            message, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        answers = ("Yes", "No")
    return [part for part in re.split(r"(\{passage\}|\{query\})", text) if part], answers
