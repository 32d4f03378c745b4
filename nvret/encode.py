"""Texts to vectors: one class for transformer encoders, decoders and static token tables.

Texts are tokenized once, encoded in batches of near-equal length under a token budget, pooled,
and L2-normalised, so that a dot product is a cosine. The order of the result is that of the texts,
and a text's vector does not depend on its neighbours in the batch beyond float rounding.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nvret import backbones, batching, layout, network, store
from nvret.batching import Ragged
from nvret.errors import NvretError
from nvret.layout import Layout
from nvret.network import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, and of its padding: a CPU's batch should stay within its caches, and a GPU's
# be large. The padding is what a further batch costs.
BUDGETS = {"cpu": (1024, 64), "cuda": (65536, 4096)}


MODULES = (sys.modules[__name__], backbones, batching, layout, network)  # what a vector rests on


class Encoder(Network):
    """A sentence encoder: tokenizer, backbone, pooling, prompts.

    Attributes:
        backbone: a transformers model, or an ``nn.EmbeddingBag`` for a static model.
        layout: pooling, prompts, length limit.
        dimension: D, of the vectors.

    Source: mean pooling and prefixes as in arXiv 2212.03533 (E5); pooling without the
    instruction's tokens as in arXiv 2407.15831 (NV-Retriever).
    """

    def __init__(self, backbone: nn.Module, tokenizer: Any, layout: Layout) -> None:
        super().__init__(backbone, layout, getattr(tokenizer, "pad_token_id", None) or 0)
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
            pooling="mean" if shape.static else pooling or shape.pooling or "mean",
            prompts=shape.prompts if prompts is None else {"query": "", "passage": ""} | prompts,
            include_prompt=shape.include_prompt if include_prompt is None else include_prompt,
        )
        if shape.static:
            backbone, tokenizer = backbones.load_static(folder, DTYPES[dtype])
        else:
            backbone, tokenizer = backbones.load_transformer(
                folder, DTYPES[dtype], bidirectional, dropout, trust_remote_code
            )
        return cls(backbone, tokenizer, shape).to(device).eval()

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
        progress: bool = True,
    ) -> Ragged:
        """Token ids of the texts with their prompt, cut to ``max_length``."""
        tokens = batching.tokenize(
            self.tokenizer,
            texts,
            prompt=self._prompt(kind),
            max_length=self.limit(max_length),
            special_tokens=not self.layout.static,
            progress=progress,
        )
        skip = self.prompt_tokens(kind)
        if skip and len(texts) and tokens.lengths.min() <= skip:
            row = int(tokens.lengths.argmin())
            raise NvretError(
                f"texts[{row}] has {tokens.lengths[row]} tokens, {skip} of them of the prompt"
            )
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
        tokens = self.tokenize(list(first), kind, max_length=max_length, progress=progress)
        vectors = out if len(first) == len(texts) else np.empty((len(first), self.dimension), "f4")
        budget, slack = BUDGETS["cpu" if self.device.type == "cpu" else "cuda"]
        budget, slack = token_budget or budget, min(slack, token_budget or budget)
        skip, training = self.prompt_tokens(kind), self.training
        self.eval()
        bar = tqdm(total=len(first), desc=f"encode {kind}", unit="text", disable=not progress)
        try:
            with bar, torch.inference_mode():
                for rows, result in self._run(tokens, budget, slack, skip):
                    vectors[rows] = result
                    bar.update(len(rows))
        finally:
            self.train(training)
        finite = np.isfinite(vectors).all(1)
        if not finite.all():
            text = list(first)[int(finite.argmin())]
            row = list(texts).index(text)
            raise NvretError(f"texts[{row}] = {text[:60]!r}: its vector is not finite")
        if vectors is not out:
            np.take(vectors, position, 0, out=out)
        return out

    def _run(
        self, tokens: Ragged, budget: int, slack: int, skip: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and their vectors. An accelerator is waited for once in many batches."""
        cuda = self.device.type == "cuda"
        pending: list[tuple[np.ndarray, Tensor]] = []

        def drain() -> tuple[np.ndarray, np.ndarray]:
            rows, results = zip(*pending, strict=True)
            pending.clear()
            return np.concatenate(rows), torch.cat(results).cpu().numpy()

        for rows in batching.token_budget_batches(tokens.lengths, budget, slack=slack):
            batch = self.collate(tokens, rows)
            if cuda:
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            batch = {k: v.to(self.device, non_blocking=cuda) for k, v in batch.items()}
            pending.append((rows, self(**batch, prompt_tokens=skip)))
            if len(pending) == 32:
                yield drain()
        if pending:
            yield drain()

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers' ``AutoModel`` (not for a static model) and
        ``SentenceTransformer`` load as it is, with the same vectors."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.layout.static:
            from safetensors.torch import save_file

            weight = self.backbone.weight.detach().cpu().contiguous()
            save_file({"embedding.weight": weight}, folder / "model.safetensors")
            self.tokenizer.save(str(folder / "tokenizer.json"))
        else:
            with backbones.quiet():
                self.backbone.save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)
        layout.write(folder, self.layout, self.dimension)


def embed(
    encoder: Encoder,
    texts: Sequence[str],
    kind: str = "passage",
    *,
    max_length: int | None = None,
    cache: bool = True,
    progress: bool = True,
) -> np.ndarray:
    """`Encoder.encode` with its result kept: a read-only memory map of a ``.npy`` file.

    The file's name is a hash of texts, weights, prompt, pooling, length, dtype and code, so two
    checkpoints never share one, and equal inputs are encoded once, whoever asks.
    """
    if not cache:
        return encoder.encode(texts, kind, max_length=max_length, progress=progress)
    batching.check_texts(texts)
    key = store.fingerprint(
        list(texts),
        encoder.fingerprint,
        encoder._prompt(kind),
        encoder.limit(max_length),
        str(encoder.dtype),
        store.code_version(*MODULES),
    )
    target = store.cache_dir() / "embeddings" / f"{key}.npy"
    if not target.exists():
        shape = (len(texts), encoder.dimension)
        with store.atomic_file(target) as partial:
            if len(texts):
                out = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
                encoder.encode(texts, kind, max_length=max_length, progress=progress, out=out)
                out.flush()
            else:  # an empty file cannot be mapped
                with partial.open("wb") as stream:
                    np.save(stream, np.empty(shape, np.float32))
    return np.load(target, mmap_mode="r" if len(texts) else None, allow_pickle=False)
