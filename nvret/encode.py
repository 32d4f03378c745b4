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
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nvret.models import backbones, batching, layout, nv_embed, unpadded
from nvret.models.backbones import pool
from nvret.models.batching import Ragged
from nvret.models.layout import Layout
from nvret.models.prompts import chosen
from nvret.utils import machine, processes, products, recipes, store
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError, check_choice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, and of its padding: a CPU's batch should stay within its caches, and a GPU's
# be large. The padding is what a further batch costs. A static model's batch has none.
BUDGETS = {"cpu": (1024, 64), "cuda": (65536, 4096), "static": (16384, 16384)}
SHARD = 16384  # texts that are tokenized, and sorted by length, at a time


class Encoder(batching.InBatches):
    """A sentence encoder: tokenizer, backbone, pooling, prompts.

    Args:
        backbone: a transformers model, or an ``nn.EmbeddingBag`` for a static model.
        tokenizer: transformers' fast tokenizer; that of ``tokenizers`` for a static model.
        layout: which of the two; pooling, prompts, length limit.
        pooler: NV-Embed's latent attention before the mean (`nv_embed`); None for other models.

    Source: mean pooling and prefixes as in arXiv 2212.03533 (E5); pooling without the
    instruction's tokens as in arXiv 2407.15831 (NV-Retriever).
    """

    def __init__(
        self, backbone: nn.Module, tokenizer: Any, layout: Layout, pooler: nn.Module | None = None
    ) -> None:
        super().__init__()
        if not layout.include_prompt and layout.pooling == "cls":
            raise NvretError("include_prompt=False leaves no token to pooling 'cls'")
        self.backbone, self.pooler, self.layout = backbone, pooler, layout
        self.pad = getattr(tokenizer, "pad_token_id", None) or 0  # fills short rows; never read
        self._tokenizer = tokenizer  # what is saved: transformers' for a transformer
        self.tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(self.tokenizer, "encode_batch_fast"):
            raise NvretError(f"{type(tokenizer).__name__} is not a fast tokenizer")
        self._words = batching.WordTokens.of(self.tokenizer)

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
            prompts: {"query": ..., "passage": ...}, texts or names; see `nvret.models.prompts`.
            include_prompt: whether the prompt's tokens are pooled, instead of what the folder says.
            bidirectional: whether each token of a decoder sees those after it (arXiv 2407.15831,
                section 4). Saved as ``is_causal`` in config.json; transformers itself follows it
                in padded batches only.
            dropout: in training, instead of the rates in the model's configuration.
        Raises:
            NvretError: no such model or device, an unknown dtype or pooling, missing weights.
        """
        check_choice("dtype", dtype, DTYPES)
        if pooling is not None:
            check_choice("pooling", pooling, layout.POOLINGS)
        pinned = revision is not None and len(revision) == 40
        if trust_remote_code and not pinned:
            raise NvretError("trust_remote_code needs a revision that is a commit hash")
        folder = layout.resolve(path, revision=revision)
        pooler = None
        with layout.reading(folder):
            own = layout.read(folder)
            shape = replace(
                own,
                pooling="mean" if own.static or own.latent else pooling or own.pooling or "mean",
                prompts=chosen(folder, own.prompts, prompts),
                include_prompt=own.include_prompt if include_prompt is None else include_prompt,
            )
            if shape.static:
                backbone, tokenizer = backbones.load_static(folder, DTYPES[dtype])
            elif shape.latent:
                backbone, pooler, tokenizer = nv_embed.load(folder, DTYPES[dtype])
            else:
                backbone, tokenizer = backbones.load_transformer(
                    folder, DTYPES[dtype], bidirectional, dropout, trust_remote_code
                )
        device = machine.check_device(device)
        if unpadded.is_fast(device, DTYPES[dtype]) and not shape.static:
            unpadded.use(backbone)
        return cls(backbone, tokenizer, shape, pooler).to(device).eval()

    @property
    def dimension(self) -> int:
        """D, of the vectors."""
        if self.layout.static:
            return self.backbone.embedding_dim
        return self.backbone.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def precision(self) -> str:
        """What the same weights may be read in; for keys."""
        return str(self.dtype)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, configuration, tokenizer and layout; not of any name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        config = {} if self.layout.static else self.backbone.config.to_diff_dict()
        names = ("_name_or_path", "transformers_version", "dtype")
        config = {key: value for key, value in config.items() if key not in names}
        parts = [config, repr(self.layout), self._plain_tokenizer().to_str()]
        digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
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
        special = self._plain_tokenizer().encode(prompt).special_tokens_mask
        while special and special[-1]:  # those that close the text come after its own tokens
            special = special[:-1]
        return len(special)

    @cached_property
    def _tokenizer_key(self) -> str:
        return hashlib.sha256(self._plain_tokenizer().to_str().encode()).hexdigest()

    def _plain_tokenizer(self) -> Any:
        """The tokenizer as it is saved, whatever it was last asked to cut or fill."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        return self.tokenizer

    def _prompt(self, kind: str) -> str:
        check_choice("kind", kind, ("query", "passage"))
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
            words=self._words,
            progress=progress,
        )
        skip = self.prompt_tokens(kind)
        if skip and len(texts) and tokens.lengths.min() <= skip:
            row = int(tokens.lengths.argmin())
            raise NvretError(
                f"texts[{row if rows is None else rows[row]}] has {tokens.lengths[row]} tokens, "
                f"{skip} of them of the prompt"
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
        distinct, places = list(first), np.unique(position, return_index=True)[1]
        training, skip = self.training, self.prompt_tokens(kind)
        self.eval()
        bar = progress_bar(total=len(distinct), desc=f"encode {kind}", unit="text", show=progress)
        try:
            with bar:
                for start, tokens in self._tokenized(distinct, places, kind, max_length):
                    for rows, vectors in self._run(tokens, token_budget, skip):
                        chosen = places[start + rows]
                        finite = np.isfinite(vectors).all(1)
                        if not finite.all():
                            row = chosen[finite.argmin()]
                            text = texts[row][:60]
                            raise NvretError(f"texts[{row}] = {text!r}: its vector is not finite")
                        out[chosen] = vectors
                        bar.update(len(rows))
        finally:
            self.train(training)
        sources = places[position]  # row by row, where an equal text stands first
        repeats = np.flatnonzero(sources != np.arange(len(texts)))
        for block in range(0, len(repeats), SHARD):  # ``out`` may be larger than the memory
            rows = repeats[block : block + SHARD]
            out[rows] = out[sources[rows]]
        return out

    def _tokenized(
        self, texts: Sequence[str], places: np.ndarray, kind: str, max_length: int | None
    ) -> Iterator[tuple[int, Ragged]]:
        """The texts' tokens shard by shard, each with its first row.

        The next shard is tokenized while the model runs on this one.
        """

        def tokenize(start: int) -> Ragged:
            shard = slice(start, start + SHARD)
            options = {"max_length": max_length, "rows": places[shard], "progress": False}
            return self.tokenize(texts[shard], kind, **options)

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
        budget, slack = BUDGETS["static" if self.layout.static else "cpu" if cpu else "cuda"]
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
            with products.laid_out(self.backbone, int(tokens.lengths.sum())):
                for rows, vectors in batching.in_threads(forward, batches):
                    yield rows, vectors.numpy()
            return
        while group := list(itertools.islice(batches, 32)):
            vectors = torch.cat([forward(rows) for rows in group])
            yield np.concatenate(group), vectors.cpu().numpy()

    def collate(self, tokens: Ragged, rows: np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """Arguments of `forward` for some rows; no mask where no row is padded."""
        if self.layout.static:
            flat, lengths = tokens.flat(rows)
            offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            return {"input_ids": torch.from_numpy(flat), "offsets": torch.from_numpy(offsets)}
        ids, lengths = tokens.padded(rows, self.pad)
        batch = {"input_ids": torch.from_numpy(ids)}
        if lengths.min() < ids.shape[1]:
            mask = np.arange(ids.shape[1]) < lengths[:, None]
            batch["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return batch

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        offsets: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        prompt_tokens: int = 0,
    ) -> Tensor:
        """Vectors of one batch.

        Args:
            input_ids: (B, L) padded on the right; for a static model (T,), the texts' ids one
                after another.
            attention_mask: (B, L), 1 for a token and 0 for padding; None: no padding.
            offsets: (B,) where each text starts; static models only.
            inputs_embeds: (B, L, H) word vectors of ``input_ids``, if looked up already.
            prompt_tokens: leading tokens that the mean leaves out.
        Returns:
            (B, D) L2-normalised, float32 (float64 for a float64 model).
        """
        if self.layout.static:
            pooled = self.backbone(input_ids, offsets)
        else:
            words = {"input_ids": input_ids}
            if inputs_embeds is not None:
                words = {"inputs_embeds": inputs_embeds}
            hidden = backbones.run(self.backbone, words, attention_mask)
            if self.pooler is not None:
                hidden = self.pooler(hidden)
            with torch.autocast(hidden.device.type, enabled=False):
                pooled = pool(hidden, attention_mask, self.layout.pooling, prompt_tokens)
        if pooled.dtype in (torch.float16, torch.bfloat16):
            pooled = pooled.float()
        return nn.functional.normalize(pooled, dim=-1)

    def save(self, path: str | Path) -> None:
        """Write a folder that transformers' ``AutoModel`` (not for a static model) and
        ``SentenceTransformer`` load as it is, with the same vectors. (A model with NV-Embed's
        latent attention is written in NV-Embed's layout, which needs its own code there.)"""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._plain_tokenizer()
        if self.layout.latent:
            nv_embed.save(folder, self.backbone, self.pooler, self._tokenizer)
        else:
            backbones.save(folder, self.backbone, self._tokenizer)
        layout.write(folder, self.layout, self.dimension)


def embed(
    encoder: Encoder,
    texts: Sequence[str],
    kind: str = "passage",
    *,
    max_length: int | None = None,
    wholes: Sequence[Sequence[str]] = (),
    progress: bool = True,
) -> np.ndarray:
    """`Encoder.encode` with its result kept: a read-only memory map of a ``.npy`` file.

    The file's folder is a hash of texts, weights, prompt, pooling, length, dtype and recipe, so two
    checkpoints never share one, and equal inputs are encoded once, whoever asks. Under ``torchrun``
    each process encodes a part of the texts; all of them must see the same cache folder.

    ``wholes`` are lists that other calls ask parts of: where a fifth of one is asked for,
    it is encoded whole, and kept, so that its texts are encoded once.

    Raises:
        NvretError: as `Encoder.encode`; the disk is full, or may not be written to.
    """
    batching.check_texts(texts)
    parts = batching.parts_of(wholes, texts)
    key = store.fingerprint(
        list(texts), encoder.fingerprint, encoder._prompt(kind), encoder.limit(max_length),
        encoder.precision, recipes.versions("vectors"),
        *(store.fingerprint(list(part.texts)) for part in parts),
    )  # fmt: skip
    target = store.cache_dir() / "embeddings" / key
    if not store.find(target):
        rank, size = processes.world()
        options = {"kind": kind, "max_length": max_length, "progress": progress and rank == 0}
        encode, shape = partial(encoder.encode, **options), (len(texts), encoder.dimension)
        vectors = [embed(encoder, part.texts, **options) for part in parts]
        with store.shared_folder(target) as folder:
            if folder is not None and texts and size > 1 and not parts:
                from nvret.scale.distributed import encode_together

                encode_together(encode, texts, encoder.dimension, folder, SHARD)
            elif folder is not None and rank == 0:
                with store.new_array(folder / "vectors.npy", shape) as out:
                    batching.gather(parts, vectors, out) if parts else encode(texts, out=out)
        store.publish(target)
    mode = "r" if texts else None  # an empty file cannot be mapped
    return np.load(target / "vectors.npy", mmap_mode=mode, allow_pickle=False)
