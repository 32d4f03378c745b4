"""Texts to vectors: one class for transformer encoders, decoders and static token tables.

Texts are tokenized once, encoded in batches of near-equal length under a token budget, pooled,
and L2-normalised, so that a dot product is a cosine. The order of the result is that of the texts,
and a text's vector does not depend on its neighbours in the batch beyond float rounding.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nvret import backbones, batching, latent, layout, network, threads
from nvret.batching import Ragged
from nvret.errors import NvretError
from nvret.layout import Layout
from nvret.network import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, and of its padding: a CPU's batch should stay within its caches, and a GPU's
# be large. The padding is what a further batch costs.
BUDGETS = {"cpu": (1024, 64), "cuda": (65536, 4096)}
SHARD = 16384  # texts that are tokenized, and sorted by length, at a time


MODULES = (
    sys.modules[__name__],
    backbones,
    batching,
    latent,
    layout,
    network,
    threads,
)  # what a vector rests on


class Encoder(Network):
    """A sentence encoder: tokenizer, backbone, pooling, prompts.

    Attributes:
        backbone: a transformers model, or an ``nn.EmbeddingBag`` for a static model.
        layout: pooling, prompts, length limit.
        dimension: D, of the vectors.

    Source: mean pooling and prefixes as in arXiv 2212.03533 (E5); pooling without the
    instruction's tokens as in arXiv 2407.15831 (NV-Retriever).
    """

    def __init__(
        self, backbone: nn.Module, tokenizer: Any, layout: Layout, pooler: nn.Module | None = None
    ) -> None:
        pad = getattr(tokenizer, "pad_token_id", None) or 0
        super().__init__(backbone, layout, pad, pooler)
        if not layout.include_prompt and layout.pooling == "cls":
            raise NvretError("include_prompt=False leaves no token to pooling 'cls'")
        self._tokenizer = tokenizer  # what is saved: transformers' for a transformer
        self.tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(self.tokenizer, "encode_batch_fast"):
            raise NvretError(f"{type(tokenizer).__name__} is not a fast tokenizer")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        pooling: str | None = None,
        prompts: dict[str, str] | None = None,
        include_prompt: bool | None = None,
        bidirectional: bool | None = None,
        dropout: float | None = None,
    ) -> Encoder:
        """Load a model folder, or the hub repository of that name.

        Args:
            path: a sentence-transformers folder (transformer or static), a model2vec folder, a
                plain transformers folder, or a hub id.
            device: of the weights.
            dtype: "float32", "bfloat16" or "float16".
            revision: of the hub repository; must be a commit hash with ``trust_remote_code``.
            trust_remote_code: run Python code that comes with the model.
            pooling: "mean", "cls" or "last", instead of what the folder says (nothing: "mean").
            prompts: {"query": ..., "passage": ...}, instead of what the folder says.
            include_prompt: whether the prompt's tokens are pooled, instead of what the folder says.
            bidirectional: whether each token of a decoder sees those after it (arXiv 2407.15831,
                section 4). Saved as ``is_causal`` in config.json; transformers itself follows it
                in padded batches only.
            dropout: in training, instead of the rates in the model's configuration.
        Raises:
            NvretError: no such model, an unknown dtype or pooling, weights that are missing.
        """
        if dtype not in DTYPES:
            raise NvretError(f"dtype {dtype!r}, expected one of {list(DTYPES)}")
        if pooling is not None and pooling not in layout.POOLINGS:
            raise NvretError(f"pooling {pooling!r}, expected one of {list(layout.POOLINGS)}")
        if prompts is not None and (unknown := set(prompts) - {"query", "passage"}):
            raise NvretError(f"prompts for {sorted(unknown)}, expected 'query' and 'passage'")
        pinned = revision is not None and len(revision) == 40
        if trust_remote_code and not pinned:
            raise NvretError("trust_remote_code needs a revision that is a commit hash")
        folder = layout.resolve(path, revision=revision)
        shape = layout.read(folder)
        shape = replace(
            shape,
            pooling="mean" if shape.static or shape.latent else pooling or shape.pooling or "mean",
            prompts=shape.prompts if prompts is None else {"query": "", "passage": ""} | prompts,
            include_prompt=shape.include_prompt if include_prompt is None else include_prompt,
        )
        pooler = None
        if shape.static:
            backbone, tokenizer = backbones.load_static(folder, DTYPES[dtype])
        elif shape.latent:
            backbone, pooler, tokenizer = latent.load(folder, DTYPES[dtype])
        else:
            backbone, tokenizer = backbones.load_transformer(
                folder, DTYPES[dtype], bidirectional, dropout, trust_remote_code
            )
        return cls(backbone, tokenizer, shape, pooler).to(device).eval()

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, configuration, tokenizer and layout; not of any name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        config = {} if self.layout.static else self.backbone.config.to_diff_dict()
        names = ("_name_or_path", "transformers_version", "dtype")
        config = {key: value for key, value in config.items() if key not in names}
        said = [config, repr(self.layout), self.tokenizer.to_str()]
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    def limit(self, max_length: int | None) -> int | None:
        """Tokens after which a text is cut; `NvretError` when the model has fewer positions."""
        if self.layout.static:
            return max_length
        positions = getattr(self.backbone.config, "max_position_embeddings", None) or sys.maxsize
        most = min(positions, getattr(self._tokenizer, "model_max_length", sys.maxsize))
        if max_length is not None and not 0 < max_length <= most:
            raise NvretError(f"max_length {max_length}, the model takes 1 to {most} tokens")
        chosen = max_length or self.layout.max_length or most
        return min(chosen, most) if chosen < sys.maxsize else None

    def prompt_tokens(self, kind: str) -> int:
        """Leading tokens that the pooling leaves out; 0 when the prompt is pooled."""
        prompt = self._prompt(kind)
        if self.layout.include_prompt or not prompt:
            return 0
        self.tokenizer.no_truncation()
        special = self.tokenizer.encode(prompt).special_tokens_mask
        while special and special[-1]:  # those that close the text come after its own tokens
            special = special[:-1]
        return len(special)

    @cached_property
    def _tokenizer_key(self) -> str:
        """Hash of the tokenizer's content, whatever it was last asked to cut or fill."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def _prompt(self, kind: str) -> str:
        if kind not in ("query", "passage"):
            raise NvretError(f"kind {kind!r}, expected 'query' or 'passage'")
        return self.layout.prompts.get(kind, "")

    def tokenize(
        self,
        texts: Sequence[str],
        kind: str = "passage",
        *,
        max_length: int | None = None,
        rows: np.ndarray | None = None,
        progress: bool = True,
    ) -> Ragged:
        """Token ids of the texts with their prompt, cut to ``max_length``.

        ``rows`` are the texts' places in a longer list, which messages name.
        """
        tokens = batching.tokenize(
            self.tokenizer,
            texts,
            prompt=self._prompt(kind),
            max_length=self.limit(max_length),
            special_tokens=not self.layout.static,
            rows=rows,
            key=self._tokenizer_key,
            progress=progress,
        )
        skip = self.prompt_tokens(kind)
        if skip and len(texts) and tokens.lengths.min() <= skip:
            row = int(tokens.lengths.argmin())
            said = f"{tokens.lengths[row]} tokens, {skip} of them of the prompt"
            raise NvretError(f"texts[{row if rows is None else rows[row]}] has {said}")
        return tokens

    def encode(
        self,
        texts: Sequence[str],
        kind: str = "passage",
        *,
        max_length: int | None = None,
        token_budget: int | None = None,
        progress: bool = True,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Vectors of the texts, in their order. Equal texts are encoded once.

        Args:
            texts: N strings.
            kind: "query" or "passage"; says which prompt goes before each text.
            max_length: tokens after which a text is cut, prompt and special tokens included.
            token_budget: most tokens of a batch, padding included; None: by device.
            out: (N, D) float32 array to write into, for example a memory map.
        Returns:
            (N, D) float32, L2-normalised.
        Raises:
            NvretError: a row is not a string, has no token, or its vector is not finite.
        """
        batching.check_texts(texts)
        if out is None:
            out = np.empty((len(texts), self.dimension), np.float32)
        first: dict[str, int] = {}
        position = np.fromiter((first.setdefault(t, len(first)) for t in texts), np.int64)
        distinct, places = list(first), np.unique(position, return_index=True)[1]
        vectors = out if len(distinct) == len(texts) else np.empty((len(first), out.shape[1]), "f4")
        training, skip = self.training, self.prompt_tokens(kind)
        self.eval()
        bar = tqdm(total=len(distinct), desc=f"encode {kind}", unit="text", disable=not progress)
        try:
            with bar:
                for start, tokens in self._tokenized(distinct, places, kind, max_length):
                    for rows, result in self._run(tokens, token_budget, skip):
                        vectors[start + rows] = result
                        bar.update(len(rows))
        finally:
            self.train(training)
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            row = places[finite.argmin()]
            raise NvretError(f"texts[{row}] = {texts[row][:60]!r}: its vector is not finite")
        if vectors is not out:
            np.take(vectors, position, 0, out=out)
        return out

    def _tokenized(
        self, texts: Sequence[str], places: np.ndarray, kind: str, max_length: int | None
    ) -> Iterator[tuple[int, Ragged]]:
        """The texts' tokens shard by shard, each with its first row.

        The next shard is tokenized while the model runs on this one.
        """

        def tokenize(start: int) -> Ragged:
            shard = slice(start, start + SHARD)
            return self.tokenize(
                texts[shard], kind, max_length=max_length, rows=places[shard], progress=False
            )

        with ThreadPoolExecutor(1, "nvret-tokenize") as ahead:
            upcoming = ahead.submit(tokenize, 0)
            for start in range(0, len(texts), SHARD):
                tokens = upcoming.result()
                if start + SHARD < len(texts):
                    upcoming = ahead.submit(tokenize, start + SHARD)
                yield start, tokens

    def _run(
        self, tokens: Ragged, token_budget: int | None, skip: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their vectors. A CPU's threads take a batch each; a GPU takes one at a time and
        is waited for once in many."""
        cpu, cuda = self.device.type == "cpu", self.device.type == "cuda"
        budget, slack = BUDGETS["cpu" if cpu else "cuda"]
        budget, slack = token_budget or budget, min(slack, token_budget or budget)
        batches = batching.token_budget_batches(tokens.lengths, budget, slack=slack)

        def forward(rows: np.ndarray) -> Tensor:
            batch = self.collate(tokens, rows)
            if cuda:
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            batch = {k: v.to(self.device, non_blocking=cuda) for k, v in batch.items()}
            with torch.inference_mode():
                return self(**batch, prompt_tokens=skip)

        if cpu:
            for rows, vectors in threads.each(forward, batches):
                yield rows, vectors.numpy()
            return
        while some := list(itertools.islice(batches, 32)):
            vectors = torch.cat([forward(rows) for rows in some])
            yield np.concatenate(some), vectors.cpu().numpy()

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers' ``AutoModel`` (not for a static model) and
        ``SentenceTransformer`` load as it is, with the same vectors. (A model with NV-Embed's
        latent attention is written in NV-Embed's layout, which needs its own code there.)"""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.layout.static:
            from safetensors.torch import save_file

            weight = self.backbone.weight.detach().cpu().contiguous()
            save_file({"embedding.weight": weight}, folder / "model.safetensors")
            self.tokenizer.save(str(folder / "tokenizer.json"))
        elif self.layout.latent:
            latent.save(folder, self.backbone, self.pooler, self._tokenizer)
        else:
            with backbones.quiet():
                self.backbone.save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)
        layout.write(folder, self.layout, self.dimension)
