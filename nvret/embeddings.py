"""Vectors that are computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from nvret import batching, encode, processes, remote, store
from nvret.encode import Encoder

Encode = Callable[..., np.ndarray]  # `Encoder.encode` of some texts, the other choices made


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
    checkpoints never share one, and equal inputs are encoded once, whoever asks. Under ``torchrun``
    each process encodes a part of the texts; all of them must see the same cache folder.
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
    if not remote.there(target):
        encode_some = partial(
            encoder.encode,
            kind=kind,
            max_length=max_length,
            progress=progress and processes.first(),
        )
        together = processes.world()[1] > 1 and len(texts)
        (_together if together else _alone)(encode_some, texts, encoder.dimension, target)
        remote.send(target)
    return np.load(target, mmap_mode="r" if len(texts) else None, allow_pickle=False)


def _alone(encode_some: Encode, texts: Sequence[str], dimension: int, target: Path) -> None:
    shape = (len(texts), dimension)
    with store.atomic_file(target) as unfinished:
        if len(texts):
            out = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
            encode_some(texts, out=out)
            out.flush()
        else:  # an empty file cannot be mapped
            with unfinished.open("wb") as stream:
                np.save(stream, np.empty(shape, np.float32))


def _together(encode_some: Encode, texts: Sequence[str], dimension: int, target: Path) -> None:
    """Each process writes its part of the distinct texts' vectors into one file.

    The parts are whole shards of `Encoder.encode`, which forms its batches within a shard, so that
    the vectors are those of a single process, bit for bit.
    """
    distinct = list(dict.fromkeys(texts))
    part = processes.share(len(distinct), encode.SHARD)
    first = processes.first()
    scratch = target.with_name(f".{target.stem}.distinct.npy")
    try:
        if first:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            shape = (len(distinct), dimension)
            np.lib.format.open_memmap(scratch, "w+", np.float32, shape).flush()
        processes.wait()
        vectors = np.lib.format.open_memmap(scratch, "r+")
        if part.stop > part.start:
            encode_some(distinct[part], out=vectors[part])
            vectors.flush()
        processes.wait()
        if first:
            with store.atomic_file(target) as unfinished:
                shape = (len(texts), dimension)
                out = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
                place = {text: row for row, text in enumerate(distinct)}
                rows = np.fromiter((place[text] for text in texts), np.int64, len(texts))
                for start in range(0, len(rows), encode.SHARD):
                    some = slice(start, start + encode.SHARD)
                    out[some] = vectors[rows[some]]
                out.flush()
        processes.wait()
    finally:
        if first:
            scratch.unlink(missing_ok=True)
