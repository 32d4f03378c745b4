"""What the processes of ``torchrun`` do together: a search, vectors of texts, a training batch.

Each process does its part, the results are exchanged, and what every process then has is what a
single one would have computed.

Source of the collectives: torch.distributed (gloo on a CPU, NCCL on GPUs).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from nvret import search as single
from nvret.search import PRODUCT, SearchResult
from nvret.utils import processes, store
from nvret.utils.errors import NvretError

GATHERED = 65536  # queries whose results are exchanged at a time


# a search


def top_k(
    queries: Tensor | np.ndarray,
    corpus: Tensor | np.ndarray,
    k: int,
    *,
    ceiling: Tensor | np.ndarray | None = None,
    exclude: Sequence[Sequence[int]] | None = None,
    unit: int = PRODUCT,
    search: Callable[..., SearchResult] = single.top_k,
    **options: Any,
) -> SearchResult:
    """``nvret.search.top_k``, each process searching its part of the corpus.

    Each returns the whole result, which is that of a single process: the order is (-score, id), and
    the scores of a block of ``unit`` passages come from a product of the same shape.

    Args:
        queries, corpus, k, ceiling, exclude, options: as ``nvret.search.top_k``; the same in all
            processes. A memory-mapped corpus is read by each process in its own part only.
        unit: passages that stay together; one process searches a corpus of fewer.
        search: what each process does.
    """
    if processes.world()[1] == 1:
        return search(queries, corpus, k, ceiling=ceiling, exclude=exclude, **options)
    part = processes.shard(len(corpus), unit)
    if exclude is not None:
        exclude = [_inside(np.asarray(ids, np.int64), part) for ids in exclude]
    ids, scores = search(queries, corpus[part], k, ceiling=ceiling, exclude=exclude, **options)
    ids = torch.where(ids < 0, -1, ids + part.start)
    for start in range(0, len(ids), GATHERED):
        rows = slice(start, start + GATHERED)
        ids[rows], scores[rows] = _merged(ids[rows], scores[rows], k)
    return SearchResult(ids, scores)


def by_query(queries: int, search_rows: Callable[[slice], SearchResult]) -> SearchResult:
    """A search of which each process does some queries: ``search_rows`` takes a slice of all."""
    parts = processes.gather_objects(search_rows(processes.shard(queries)))
    return SearchResult(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _inside(ids: np.ndarray, part: slice) -> np.ndarray:
    return ids[(ids >= part.start) & (ids < part.stop)] - part.start


def _merged(ids: Tensor, scores: Tensor, k: int) -> SearchResult:
    """The k best of all processes' results, whose ids rise with the process's rank."""
    parts = map(SearchResult, _gathered(ids), _gathered(scores))
    return functools.reduce(lambda best, part: single.merge(best, part, k), parts)


def _gathered(part: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(part) for _ in range(processes.world()[1])]
    dist.all_gather(parts, part.contiguous())
    return parts


# vectors of texts


def encode_together(
    encode: Callable[..., np.ndarray],
    texts: Sequence[str],
    dimension: int,
    folder: Path,
    shard: int,
) -> None:
    """Each process writes a part of the distinct texts' vectors; the first puts them together.

    A part is whole shards of `Encoder.encode`, which forms its batches within a shard, so that the
    vectors are those of a single process, bit for bit.

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
    """(N, D) vectors of distinct texts, in the memory of every process; each encodes a part."""
    part = processes.shard(len(texts), shard)
    return np.concatenate(processes.gather_objects(encode(texts[part])))


def _checksum(vectors: np.ndarray, step: int) -> int:
    value = 0
    for start in range(0, len(vectors), step):
        value = zlib.crc32(np.ascontiguousarray(vectors[start : start + step]).data, value)
    return value


# a training batch


def pool(vectors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """The passages of all processes: a batch's (U, D) vectors and (U,) corpus rows are exchanged.

    U may differ between processes. ``DistributedDataParallel`` averages the processes' gradients,
    which gives the gradient of one process with all of the pairs in its batch.

    Returns:
        (V, D) vectors, with gradient; (V,) corpus rows, -1 where a process had fewer passages than
        another, and where the passage is in the pool already; where this process's own passages
        begin, in their order.
    """
    from torch.distributed.nn.functional import all_gather

    longest = int(max(_gathered(torch.tensor(len(rows), device=rows.device))))
    missing = longest - len(rows)
    all_rows = torch.cat(_gathered(pad(rows, (0, missing), value=-1)))
    all_vectors = torch.cat(all_gather(pad(vectors, (0, 0, 0, missing))))
    return all_vectors, _first_only(all_rows), processes.world()[0] * longest


def _first_only(rows: Tensor) -> Tensor:
    """Replace each repetition of a row by -1.

    >>> _first_only(torch.tensor([3, 5, -1, 5, 4])).tolist()
    [3, 5, -1, -1, 4]
    """
    order = rows.argsort(stable=True)
    ordered = rows[order]
    repeated = torch.zeros_like(rows, dtype=torch.bool)
    repeated[order[1:]] = ordered[1:] == ordered[:-1]
    return rows.masked_fill(repeated, -1)


def per_pair(padding: Tensor) -> Tensor:
    """What turns the processes' mean losses into the mean over the pairs of all of them.

    ``padding`` (B,) bool, as many in each process, has loss 0, yet counts in each process's mean.
    """
    pairs = (~padding).sum()
    dist.all_reduce(pairs)
    return len(padding) * processes.world()[1] / pairs
