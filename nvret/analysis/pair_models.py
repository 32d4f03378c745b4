"""Models that read a query and a passage in one sequence: loading them whole, running them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvret.models.backbones import quiet
from nvret.models.batching import Ragged, in_threads, token_budget_batches
from nvret.utils.errors import NvretError

TOKENS = 2048  # of a batch, padding included
SLACK = 128  # padding tokens of a batch


def load(kind: Any, model: str | Path, device: str) -> tuple[Any, Any]:
    """A model with its head, and its fast tokenizer.

    Args:
        kind: a class of transformers' Auto classes.
        model: a name of ``nvret.assets`` or a folder.
    Raises:
        NvretError: no safetensors, or weights that the folder lacks: transformers would go on with
            random ones, and a judge whose head is random guesses.
    """
    from transformers import AutoTokenizer

    from nvret.assets import model_folder

    folder = model_folder(str(model))
    if not list(folder.glob("*.safetensors")):
        raise NvretError(f"{folder}: has no safetensors")
    with quiet():
        loaded, info = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
    if missing := sorted(info["missing_keys"]):
        some = ", ".join(missing[:4])
        raise NvretError(f"{folder}: {len(missing)} weights are missing: {some}")
    return loaded.to(device).eval(), tokenizer


def run(
    model: Any,
    tokenizer: Any,
    forward: Callable[[dict[str, Tensor]], Tensor],
    tokens: Ragged,
    *,
    kinds: Ragged | None = None,
    name: str = "",
    progress: bool = True,
) -> np.ndarray:
    """A number for each sequence, in batches of near-equal length, padded on the right.

    That is exact for a decoder, where no token sees those after it, and an encoder has the mask.

    Args:
        forward: batch of tensors -> (B,) numbers.
        tokens: P sequences.
        kinds: their token types, where the model has any.
    Returns:
        (P,) float32.
    """
    fill = tokenizer.pad_token_id or 0

    def one(rows: np.ndarray) -> Tensor:
        ids, lengths = tokens.padded(rows, fill)
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        batch = {"input_ids": ids, "attention_mask": mask}
        if kinds is not None:
            batch["token_type_ids"] = kinds.padded(rows)[0]
        with torch.inference_mode():
            on_device = {k: torch.from_numpy(v).to(model.device) for k, v in batch.items()}
            return forward(on_device).cpu()

    batches = token_budget_batches(tokens.lengths, TOKENS, slack=SLACK)
    cpu = model.device.type == "cpu"  # whose threads take a batch each
    found = in_threads(one, batches) if cpu else ((rows, one(rows)) for rows in batches)
    out = np.empty(len(tokens), np.float32)
    with tqdm(total=len(tokens), desc=name, unit="pair", disable=not progress) as bar:
        for rows, values in found:
            out[rows] = values.numpy()
            bar.update(len(rows))
    return out
