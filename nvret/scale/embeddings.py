"""Vectors of texts, encoded by the processes of ``torchrun`` together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nvret.utils import processes, store
from nvret.utils.errors import NvretError


def encode_together(
    encode: Callable[..., np.ndarray],
    texts: Sequence[str],
    dimension: int,
    folder: Path,
    shard: int,
) -> None:
    """Each process writes its part of the distinct texts' vectors to a file of its own; the first
    one puts them together.

    The parts are whole shards of `Encoder.encode`, which forms its batches within a shard, so that
    the vectors are those of a single process, bit for bit.

    Args:
        encode: `Encoder.encode` with its other arguments given; takes texts and ``out``.
        texts: N strings.
        dimension: D.
        folder: gets ``vectors.npy``, (N, D) float32; all processes must see it.
        shard: texts of a shard.
    Raises:
        NvretError: the first process reads other vectors than another one wrote.
    """
    distinct = list(dict.fromkeys(texts))
    part = processes.shard(len(distinct), shard)
    rank, size = processes.world()
    own = folder / f"part-{rank}.npy"
    checksum = None
    if part.stop > part.start:
        with store.new_array(own, (part.stop - part.start, dimension)) as vectors:
            encode(distinct[part], out=vectors)
            checksum = _checksum(vectors, shard)
    checksums = processes.gather_objects(checksum)  # all have written
    if rank == 0:
        place = {text: row for row, text in enumerate(distinct)}
        rows = np.fromiter((place[text] for text in texts), np.int64, len(texts))
        parts = [number for number in range(size) if checksums[number] is not None]
        with store.new_array(folder / "vectors.npy", (len(texts), dimension)) as out:
            start = 0
            for number in parts:
                path = folder / f"part-{number}.npy"
                vectors = np.load(path, mmap_mode="r", allow_pickle=False)
                if _checksum(vectors, shard) != checksums[number]:
                    raise NvretError(f"{path}: differs from what process {number} wrote")
                targets = np.flatnonzero((rows >= start) & (rows < start + len(vectors)))
                for block in range(0, len(targets), shard):
                    chosen = targets[block : block + shard]
                    out[chosen] = vectors[rows[chosen] - start]
                start += len(vectors)
                path.unlink()


def encode_gathered(
    encode: Callable[..., np.ndarray], texts: Sequence[str], shard: int
) -> np.ndarray:
    """(N, D) vectors in the memory of every process; each encodes a part, as above."""
    distinct = list(dict.fromkeys(texts))
    parts = processes.gather_objects(encode(distinct[processes.shard(len(distinct), shard)]))
    place = {text: row for row, text in enumerate(distinct)}
    return np.concatenate(parts)[[place[text] for text in texts]]


def _checksum(vectors: np.ndarray, step: int) -> int:
    value = 0
    for start in range(0, len(vectors), step):
        value = zlib.crc32(np.ascontiguousarray(vectors[start : start + step]).data, value)
    return value
