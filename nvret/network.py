"""Token ids to L2-normalised vectors: backbone and pooling, the part that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nvret.batching import Ragged
from nvret.layout import Layout


class Network(nn.Module):
    """A backbone and its pooling.

    Attributes:
        backbone: a transformers model, or an ``nn.EmbeddingBag`` for a static model.
        layout: which of the two, and the pooling.
        pad: id that fills short rows; never looked at.
        pooler: what pooling "latent" does before the mean (`nvret.latent`); None for the others.
    """

    def __init__(
        self, backbone: nn.Module, layout: Layout, pad: int = 0, pooler: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooler = pooler
        self.layout = layout
        self.pad = pad

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
            hidden = self.backbone(
                **words, attention_mask=attention_mask, **self._call
            ).last_hidden_state
            if self.pooler is not None:
                hidden = self.pooler(hidden)
            with torch.autocast(hidden.device.type, enabled=False):
                pooled = self._pool(hidden, attention_mask, prompt_tokens)
        if pooled.dtype in (torch.float16, torch.bfloat16):
            pooled = pooled.float()
        return nn.functional.normalize(pooled, dim=-1)

    def words(self, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """(B, L, H) word vectors of each batch, in one look-up. Not for a static model.

        The gradient of the word table is dense, so each look-up would clear and add up a table of
        tens of megabytes of its own.
        """
        shapes = [batch["input_ids"].shape for batch in batches]
        flat = torch.cat([batch["input_ids"].reshape(-1) for batch in batches])
        parts = self.backbone.get_input_embeddings()(flat).split([s.numel() for s in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def forward_all(
        self,
        batches: Sequence[dict[str, Tensor]],
        prompt_tokens: Sequence[int],
        words: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """`forward` of several batches, for training.

        Args:
            batches: arguments of `forward`.
            prompt_tokens: of each batch.
            words: `words` of the batches, if looked up already.
        """
        if self.layout.static:
            starts = np.cumsum([0, *(len(batch["input_ids"]) for batch in batches)])
            vectors = self(
                torch.cat([batch["input_ids"] for batch in batches]),
                offsets=torch.cat(
                    [b["offsets"] + int(start) for b, start in zip(batches, starts, strict=False)]
                ),
            )
            return list(vectors.split([len(batch["offsets"]) for batch in batches]))
        return [
            self(**batch, inputs_embeds=part, prompt_tokens=skip)
            for batch, part, skip in zip(
                batches, words or self.words(batches), prompt_tokens, strict=True
            )
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
