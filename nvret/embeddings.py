"""Vectors that are computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvret import batching, encode, store
from nvret.encode import Encoder


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
        store.code_version(*encode.MODULES),
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
