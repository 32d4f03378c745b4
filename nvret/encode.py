"""Texts to vectors: one class for transformer encoders, decoders and static token tables.

Texts are tokenized once, encoded in batches of near-equal length under a token budget, pooled,
and L2-normalised, so that a dot product is a cosine. The order of the result is that of the texts,
and a text's vector does not depend on its neighbours in the batch beyond float rounding.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nvret import batching, layout, store
from nvret.batching import Ragged
from nvret.errors import NvretError
from nvret.layout import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, and of its padding: a CPU's batch should stay within its caches, and a GPU's
# be large. The padding is what a further batch costs. Measured, see benchmarks.
BUDGETS = {"cpu": (2048, 64), "cuda": (65536, 4096)}


class Encoder(nn.Module):
    """A sentence encoder: tokenizer, backbone, pooling, prompts.

    Attributes:
        backbone: a transformers model, or an ``nn.EmbeddingBag`` for a static model.
        layout: pooling, prompts, length limit.
        dimension: D, of the vectors.

    Source: mean pooling and prefixes as in arXiv 2212.03533 (E5); pooling without the
    instruction's tokens as in arXiv 2407.15831 (NV-Retriever).
    """

    def __init__(self, backbone: nn.Module, tokenizer: Any, layout: Layout) -> None:
        super().__init__()
        if not layout.include_prompt and layout.pooling == "cls":
            raise NvretError("include_prompt=False leaves no token to pooling 'cls'")
        self.backbone = backbone
        self._tokenizer = tokenizer  # what is saved: transformers' for a transformer
        self.tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not hasattr(self.tokenizer, "encode_batch_fast"):
            raise NvretError(f"{type(tokenizer).__name__} is not a fast tokenizer")
        self.layout = layout
        self._fingerprint: tuple[Any, str] = (None, "")

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
            bidirectional: whether each token of a decoder sees those after it.
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
            backbone, tokenizer = _load_static(folder, DTYPES[dtype])
        else:
            settings = {} if bidirectional is None else {"is_causal": not bidirectional}
            backbone, tokenizer = _load_transformer(
                folder, DTYPES[dtype], settings, dropout, trust_remote_code
            )
        return cls(backbone, tokenizer, shape).to(device).eval()

    @property
    def dimension(self) -> int:
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
    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, configuration, tokenizer and layout; not of any name."""
        state = tuple((id(p), p._version) for p in self.parameters())
        if self._fingerprint[0] != state:
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
            self._fingerprint = (state, digest.hexdigest())
        return self._fingerprint[1]

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

    def collate(self, tokens: Ragged, rows: np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """Arguments of `forward` for some rows; no mask where no row is padded."""
        if self.layout.static:
            flat, lengths = tokens.flat(rows)
            offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            return {"input_ids": torch.from_numpy(flat), "offsets": torch.from_numpy(offsets)}
        ids, lengths = tokens.padded(rows, getattr(self._tokenizer, "pad_token_id", None) or 0)
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
            hidden = self.backbone(
                **words, attention_mask=attention_mask, **self._call
            ).last_hidden_state
            with torch.autocast(hidden.device.type, enabled=False):
                pooled = self._pool(hidden, attention_mask, prompt_tokens)
        if pooled.dtype in (torch.float16, torch.bfloat16):
            pooled = pooled.float()
        return nn.functional.normalize(pooled, dim=-1)

    def forward_all(
        self, batches: Sequence[dict[str, Tensor]], prompt_tokens: Sequence[int]
    ) -> list[Tensor]:
        """`forward` of several batches, for training.

        The words of all batches are looked up at once. The gradient of the word table is dense, so
        each look-up would clear and add up a table of tens of megabytes of its own.
        """
        if self.layout.static:
            return [self(**batch) for batch in batches]
        shapes = [batch["input_ids"].shape for batch in batches]
        flat = torch.cat([batch["input_ids"].reshape(-1) for batch in batches])
        words = self.backbone.get_input_embeddings()(flat)
        parts = words.split([shape.numel() for shape in shapes])
        return [
            self(**batch, inputs_embeds=part.view(*shape, -1), prompt_tokens=skip)
            for batch, part, shape, skip in zip(batches, parts, shapes, prompt_tokens, strict=True)
        ]

    @property
    def _call(self) -> dict[str, Any]:
        """A decoder keeps keys and values for generation unless told not to."""
        return {"use_cache": False} if hasattr(self.backbone.config, "use_cache") else {}

    def _pool(self, hidden: Tensor, mask: Tensor | None, skip: int) -> Tensor:
        if self.layout.pooling == "cls":
            return hidden[:, 0]
        if self.layout.pooling == "last":
            if mask is None:
                return hidden[:, -1]
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        if hidden.dtype in (torch.float16, torch.bfloat16):
            hidden = hidden.float()
        hidden = hidden[:, skip:]
        if mask is None:
            return hidden.mean(1)
        weights = mask[:, skip:].to(hidden.dtype)
        # a batched matrix product: no (B, L, H) intermediate, unlike multiply and sum
        summed = torch.bmm(weights.unsqueeze(1), hidden).squeeze(1)
        return summed / weights.sum(1, keepdim=True)

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
                batch = {k: v.pin_memory().to(self.device, non_blocking=True) for k, v in batch.items()}
            else:
                batch = {k: v.to(self.device) for k, v in batch.items()}
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
            with _quiet():
                self.backbone.save_pretrained(folder)
                self._tokenizer.save_pretrained(folder)
        layout.write(folder, self.layout, self.dimension)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_static(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The token table of a StaticEmbedding or model2vec folder, and its tokenizer."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    for name in ("model.safetensors", "tokenizer.json"):
        if not (folder / name).exists():
            raise NvretError(f"{folder}: has no {name}")
    weights = load_file(folder / "model.safetensors")
    table = weights.get("embedding.weight", weights.get("embeddings"))
    if table is None:
        raise NvretError(f"{folder / 'model.safetensors'}: no 'embedding.weight' or 'embeddings'")
    if "mapping" in weights:  # model2vec: a token's row, where several tokens share one
        table = table[weights["mapping"].long()]
    if "weights" in weights:
        table = table.float() * weights["weights"].float()[:, None]
    bag = nn.EmbeddingBag.from_pretrained(table.to(dtype), freeze=False, mode="mean")
    return bag, Tokenizer.from_file(str(folder / "tokenizer.json"))


def _load_transformer(
    folder: Path,
    dtype: torch.dtype,
    settings: dict[str, Any],
    dropout: float | None,
    trust_remote_code: bool,
) -> tuple[nn.Module, Any]:
    """A transformers backbone without its task head, and its fast tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if not (folder / "config.json").exists():
        raise NvretError(f"{folder}: has no config.json, so it is not a model folder")
    trust = {"trust_remote_code": trust_remote_code}
    with _quiet():
        config = AutoConfig.from_pretrained(folder, **settings, **trust)
        rates = {}
        if dropout is not None:  # all of its names end so, from BERT's to GPT-2's
            rates = {k: v for k, v in vars(config).items() if k.endswith(("dropout", "dropout_prob", "pdrop"))}
            vars(config).update(dict.fromkeys(rates, dropout))
        extra = {}
        kind = MODEL_MAPPING.get(type(config), None)
        if kind is not None and "add_pooling_layer" in inspect.signature(kind).parameters:
            extra = {"add_pooling_layer": False}  # BERT's own pooler is not used
        backbone, info = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True,
            output_loading_info=True, **extra, **trust,
        )
        vars(backbone.config).update(rates)  # built with `dropout`, saved with its own
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **trust)
    if missing := sorted(info["missing_keys"]):
        raise NvretError(f"{folder}: weights missing: {', '.join(missing[:4])} ({len(missing)} in all)")
    return backbone, tokenizer


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
        store.code_version(sys.modules[__name__], batching, layout),
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
