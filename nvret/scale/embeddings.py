"""Vectors of a corpus, encoded by the processes of ``torchrun`` together into one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nvret.utils import processes, store


def encode_together(
    encode: Callable[..., np.ndarray],
    texts: Sequence[str],
    dimension: int,
    target: Path,
    shard: int,
) -> None:
    """Each process writes its part of the distinct texts' vectors; the first one assembles them.

    The parts are whole shards of `Encoder.encode`, which forms its batches within a shard, so that
    the vectors are those of a single process, bit for bit.

    Args:
        encode: `Encoder.encode` with its other arguments given; takes texts and ``out``.
        texts: N strings.
        dimension: D.
        target: (N, D) float32 ``.npy`` file to write; all processes must see its folder.
        shard: texts of a shard.
    """
    distinct = list(dict.fromkeys(texts))
    part = processes.shard(len(distinct), shard)
    main = processes.is_main_process()
    scratch = target.with_name(f".{target.stem}.distinct.npy")
    try:
        if main:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            shape = (len(distinct), dimension)
            np.lib.format.open_memmap(scratch, "w+", np.float32, shape).flush()
        processes.barrier()
        vectors = np.lib.format.open_memmap(scratch, "r+")
        if part.stop > part.start:
            encode(distinct[part], out=vectors[part])
            vectors.flush()
        processes.barrier()
        if main:
            with store.atomic_file(target) as unfinished:
                shape = (len(texts), dimension)
                out = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
                place = {text: row for row, text in enumerate(distinct)}
                rows = np.fromiter((place[text] for text in texts), np.int64, len(texts))
                for start in range(0, len(rows), shard):
                    block = slice(start, start + shard)
                    out[block] = vectors[rows[block]]
                out.flush()
        processes.barrier()
    finally:
        if main:
            scratch.unlink(missing_ok=True)
