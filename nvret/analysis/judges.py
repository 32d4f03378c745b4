"""Judges of mined negatives: the costly ways to find those that are positives in truth.

A judge reads a query and a passage (some also the pair's labelled positive) and gives a score; from
its ``threshold`` on, the passage counts as relevant. Where a positive-aware ceiling uses scores
that mining has computed anyway, a judge reads every pair again.

Source: the cross-encoder that RocketQA denoises with (arXiv 2010.08191), the language model that
judges NQ's negatives in arXiv 2407.15831, and the vote of a second embedding model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from nvret.analysis import pair_models
from nvret.models.batching import Ragged, check_texts
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
Texts = Sequence[str]


class Scores(NamedTuple):
    """values: (P,) float32, a score for each pair. tokens: how many were read for them."""

    values: np.ndarray
    tokens: int


class Judge(Protocol):
    """name: for tables. threshold: the score from which a passage counts as relevant."""

    name: str
    threshold: float

    def scores(
        self, queries: Texts, passages: Texts, positives: Texts, *, progress: bool = True
    ) -> Scores:
        """Of P pairs; ``positives`` are the labelled positives of the pairs' queries."""


class BiEncoderJudge:
    """A second embedding model's vote: relevant where it places the passage near the positive.

    The score is the passage's cosine as a share of the positive's.

    Args:
        model: a name of ``nvret.assets`` or a folder.
        share: of the positive's score, from which a passage counts as relevant.
        max_length: tokens that are read of each text.
    """

    def __init__(
        self, model: str | Path, share: float = 0.95, *, max_length: int = 128, device: str = "cpu"
    ) -> None:
        from nvret.assets import model_folder
        from nvret.encode import Encoder

        self.name, self.threshold, self.max_length = Path(model).name, share, max_length
        self.encoder = Encoder.load(model_folder(str(model)), device=device)

    def scores(
        self, queries: Texts, passages: Texts, positives: Texts, *, progress: bool = True
    ) -> Scores:
        size = _check(queries, passages, positives)
        vectors, tokens = [], 0
        for texts, kind in ((queries, "query"), ([*passages, *positives], "passage")):
            options = {"max_length": self.max_length, "progress": progress}
            vectors.append(self.encoder.encode(texts, kind, **options))
            distinct = list(dict.fromkeys(texts))  # equal texts are encoded once
            read = self.encoder.tokenize(distinct, kind, **options | {"progress": False})
            tokens += len(read.ids)
        asked, read = vectors
        theirs, mine = (np.einsum("pd,pd->p", asked, part) for part in (read[size:], read[:size]))
        return Scores(shares(mine, theirs), tokens)


def shares(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Scores as shares of their positives': what TopK-PercPos compares with its percentage.

    Where the positive's is below 0, a score above it still has a share above 1.

    >>> shares(np.array([0.4, -0.6]), np.array([0.8, -0.5]))
    array([0.5, 0.8])
    """
    size = np.maximum(np.abs(positives), np.finfo(np.float32).tiny)
    return 1 + (scores - positives) / size


class LanguageModelJudge:
    """A language model that is asked for Yes or No: P(Yes) / (P(Yes) + P(No)) as the next token.

    Args:
        model: a name of ``nvret.assets`` or a folder.
        ask: the question, with {passage} and {query}; put into the tokenizer's chat template.
        max_length: tokens that are read of a passage.
    Raises:
        NvretError: a folder without its weights, a question without its two places.
    """

    threshold = 0.5

    def __init__(
        self,
        model: str | Path = "smollm2-135m",
        *,
        ask: str = ASK,
        max_length: int = 256,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModelForCausalLM

        if ask.count("{passage}") != 1 or ask.count("{query}") != 1:
            raise NvretError(f"ask is {ask!r}, expected {{passage}} and {{query}} once each")
        self.name, self.max_length = Path(model).name, max_length
        self.model, self.tokenizer = pair_models.load(AutoModelForCausalLM, model, device)
        self.parts, answers = _prompt(self.tokenizer, ask)
        yes, no = (ids[0] for ids in self._ids(answers))
        if yes == no:
            raise NvretError(f"{model}: its tokenizer begins Yes and No with the same token")
        self.head = self.model.get_output_embeddings().weight[[yes, no]].detach()

    def _ids(self, texts: Texts, most: int | None = None) -> list[list[int]]:
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [ids[:most] for ids in found]

    def scores(
        self, queries: Texts, passages: Texts, positives: Texts = (), *, progress: bool = True
    ) -> Scores:
        size = _check(queries, passages)
        places = {"{passage}": self._ids(passages, self.max_length), "{query}": self._ids(queries)}
        pieces = [
            places[part] if part in places else self._ids([part]) * size for part in self.parts
        ]
        prompts = Ragged.of([list(itertools.chain(*row)) for row in zip(*pieces, strict=True)])

        def forward(batch: dict[str, Tensor]) -> Tensor:
            hidden = self.model.base_model(**batch, use_cache=False).last_hidden_state
            last = batch["attention_mask"].sum(1) - 1
            # of the vocabulary's logits only the two that are asked for
            logits = hidden[torch.arange(len(last), device=last.device), last] @ self.head.T
            return logits.softmax(-1)[:, 0]

        found = pair_models.run(
            self.model, self.tokenizer, forward, prompts, name=self.name, progress=progress
        )
        return Scores(found, len(prompts.ids))


class CrossEncoderJudge:
    """A model that reads query and passage together and gives their relevance.

    Args:
        folder: a transformers folder with safetensors and a head of one output (whose sigmoid is
            the score) or two (the second's share).
        max_length: tokens that are read of a pair; the passage is cut.
    Raises:
        NvretError: a folder without its head's weights, or with another head.
    """

    threshold = 0.5

    def __init__(self, folder: str | Path, *, max_length: int = 256, device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification as Auto

        self.name, self.max_length = Path(folder).name, max_length
        self.model, self.tokenizer = pair_models.load(Auto, folder, device)
        if self.model.config.num_labels > 2:
            raise NvretError(f"{folder}: {self.model.config.num_labels} outputs, expected 1 or 2")

    def scores(
        self, queries: Texts, passages: Texts, positives: Texts = (), *, progress: bool = True
    ) -> Scores:
        _check(queries, passages)
        read = self.tokenizer(
            list(queries), list(passages), truncation="only_second", max_length=self.max_length
        )
        kinds = Ragged.of(read["token_type_ids"]) if "token_type_ids" in read else None

        def forward(batch: dict[str, Tensor]) -> Tensor:
            logits = self.model(**batch).logits
            return logits.softmax(-1)[:, 1] if logits.shape[1] == 2 else logits[:, 0].sigmoid()

        pairs = Ragged.of(read["input_ids"])
        found = pair_models.run(
            self.model, self.tokenizer, forward, pairs,
            kinds=kinds, name=self.name, progress=progress,
        )  # fmt: skip
        return Scores(found, len(pairs.ids))


def load(name: str, *, max_length: int = 128, device: str = "cpu") -> Judge:
    """The judge that a model makes, by its architecture.

    Args:
        name: a name of ``nvret.assets`` or a folder.
        max_length: tokens that are read of a passage.
    """
    from nvret.assets import model_folder
    from nvret.models import layout

    folder = model_folder(name)
    options = {"max_length": max_length, "device": device}
    if layout.read(folder).static:
        return BiEncoderJudge(name, **options)
    config = _architecture(folder)
    if config.endswith("ForSequenceClassification"):
        return CrossEncoderJudge(folder, **options)
    if config.startswith("Llama") or config.endswith("ForCausalLM"):
        return LanguageModelJudge(name, **options)
    return BiEncoderJudge(name, **options)


def _architecture(folder: Path) -> str:
    import json

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (config.get("architectures") or [""])[0]


def _check(*texts: Texts) -> int:
    """How many pairs there are; `NvretError` where a list is longer or holds no text."""
    for name, part in zip(("queries", "passages", "positives"), texts, strict=False):
        check_texts(part, name)
        if len(part) != len(texts[0]):
            raise NvretError(f"{len(texts[0])} queries and {len(part)} {name}, expected as many")
    return len(texts[0])


def _prompt(tokenizer: Any, ask: str) -> tuple[list[str], tuple[str, str]]:
    """The prompt, cut before and after {passage} and {query}; how Yes and No follow it."""
    template = tokenizer.chat_template
    if template is None and "<|im_start|>" in tokenizer.get_vocab():
        template = CHATML
    text, answers = f"{ask}\nAnswer:", (" Yes", " No")
    if template is not None:
        message = [{"role": "user", "content": ask}]
        text = tokenizer.apply_chat_template(
            message, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        answers = ("Yes", "No")
    for place in ("{passage}", "{query}"):
        text = text.replace(place, f"\0{place}\0")
    return [part for part in text.split("\0") if part], answers
