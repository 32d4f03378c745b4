"""Time and memory of a search and of an encoder on this machine: what the cost model is fitted on.

Each size is run once to warm up, which also gives its memory, and then in rounds: all sizes, then
all of them again. The least of a size's times is kept, since other processes can only add to it;
and because the repeats of a size lie far apart, a busy minute does not spoil all of them.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
import torch
from torch.nn.functional import normalize

from nvret import search
from nvret.cost import work
from nvret.cost.work import Search
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

MEBIBYTE, GIBIBYTE = 2**20, 2**30
WORDS = (8, 24, 72, None)  # words that texts are cut to, to see what length costs; None: all
Run = Callable[[], Any]


def clock(run: Run, device: torch.device) -> float:
    """Seconds of a run; a GPU is waited for before the clock starts and before it stops."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def extra_memory(run: Run, device: torch.device) -> float:
    """Most mebibytes that a run adds to what was held before it: in the process, or on the GPU.

    The first run in a process counts: one after it finds memory that the allocator has kept.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> int:
        most = before
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)
        return max(most, process.memory_info().rss)

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            held = run()
        finally:
            done.set()
        most = watcher.result()
        del held  # not before it was counted
    return (most - before) / MEBIBYTE


def sizes(dimension: int, k: int = 64, *, rough: bool = False) -> list[Search]:
    """Searches to fit on, about half a minute on two cores at 384 dimensions; the last to hold out.

    That one has more passages than one tile of scores holds. A large k needs more passages, since
    the search reads the scores of a small corpus in another way (``nvret.search``).

    Args:
        rough: an eighth of the passages and half of the queries: seconds, and little trust.

    >>> *fitted, held_out = sizes(384)
    >>> len(fitted), held_out.products / max(size.products for size in fitted)
    (15, 4.5)
    """
    queries, passages = 256, 1 << 15
    while passages < 256 * (k + 1):
        passages *= 2
    if rough:
        queries, passages = queries // 2, passages // 8
    fitted = [
        Search(many * queries, long * passages, part)
        for part in dict.fromkeys(max(1, dimension // divisor) for divisor in (4, 2, 1))
        for many, long in [(1, 1), (4, 1), (2, 2), (1, 4), (4, 4)]
    ]
    return [*fitted, Search(6 * queries, 12 * passages, dimension)]


def measure_search(
    sizes: Sequence[Search],
    k: int = 64,
    device: str | torch.device = "cpu",
    *,
    rounds: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """Time `nvret.search.top_k` as mining calls it, on unit vectors drawn at random.

    A query is a noisy copy of a passage, its positive, which is excluded; the ceiling is 95 % of
    the positive's score. A GPU's time holds the transfer of the vectors to it.

    Returns:
        a row for each size: queries, passages, dimension; seconds (the least of the rounds);
        slowest (the most, for the spread); mebibytes (most extra memory: of the process, or
        allocated on the GPU).
    Raises:
        NvretError: the vectors and scores would not fit into the memory that is free.
    """
    longest = {size.dimension: size for size in sorted(sizes, key=lambda size: size.passages)}
    numbers = sum(size.passages * size.dimension for size in longest.values())
    numbers += sum(size.queries * size.dimension for size in sizes)
    needed = work.FLOAT * numbers + max(size.memory(k) for size in sizes)
    if needed > (free := psutil.virtual_memory().available):
        raise NvretError(
            f"timing searches with {k} candidates takes {needed / GIBIBYTE:,.1f} GiB of memory, "
            f"{free / GIBIBYTE:,.1f} are free; expected fewer candidates"
        )
    target, generator = torch.device(device), torch.Generator().manual_seed(0)

    def vectors(rows: int, dimension: int) -> torch.Tensor:
        return normalize(torch.randn(rows, dimension, generator=generator))

    # Sizes of one dimension share their vectors
    corpora = {size.dimension: vectors(size.passages, size.dimension) for size in longest.values()}

    def prepare(size: Search) -> Run:
        corpus = corpora[size.dimension][: size.passages]
        rows = torch.arange(size.queries) % size.passages
        positives = corpus[rows]
        queries = normalize(positives + 0.5 * vectors(size.queries, size.dimension))
        ceiling, exclude = 0.95 * (queries * positives).sum(1), rows[:, None].numpy()
        return lambda: search.top_k(
            queries, corpus, k, ceiling=ceiling, exclude=exclude, device=target,
            buffer_mb=work.BUFFER_MB,
        )  # fmt: skip

    runs = [prepare(size) for size in sizes]
    runs[0]()  # threads and libraries start here, and not in the first size's memory
    memory = [extra_memory(run, target) for run in runs]
    times = _rounds(runs, rounds, target, "search", progress)
    return pd.DataFrame(sizes).assign(**times, mebibytes=memory)


def measure_encoding(
    encoder: Encoder,
    texts: Sequence[str],
    max_length: int | None = None,
    *,
    seconds: float = 0.5,
    progress: bool = True,
) -> pd.DataFrame:
    """Time an encoder, tokenizer included, on passages cut to several lengths.

    Args:
        texts: a sample of those to encode. Half of them are kept for the last row.
        seconds: about how long one length takes; how many texts that is, a short run says.
    Returns:
        a row for each length, and a last one of other texts in full and three times as long:
        texts; tokens; squares (sum of the squared token counts); seconds and slowest.
    Raises:
        NvretError: fewer than four different texts.
    """
    different = list(dict.fromkeys(texts))
    if len(different) < 4:
        raise NvretError(f"{len(different)} different texts, expected at least 4 to time a model")
    shuffled = [different[row] for row in np.random.default_rng(0).permutation(len(different))]
    half = len(shuffled) // 2
    options = {"max_length": max_length, "progress": False}
    budget = seconds * _token_rate(encoder, shuffled[: min(half, 64)], **options)
    cuts = [
        list(dict.fromkeys(" ".join(text.split()[:words]) for text in shuffled[:half]))
        for words in WORDS
    ]
    rows, runs = [], []
    for cut, most in [*((cut, budget) for cut in cuts), (shuffled[half:], 3 * budget)]:
        lengths = encoder.tokenize(cut, **options).lengths
        number = int(np.searchsorted(np.cumsum(lengths), most)) + 1
        sample, lengths = cut[:number], lengths[:number]
        rows.append({"texts": len(sample), "tokens": lengths.sum(), "squares": (lengths**2).sum()})
        runs.append(lambda sample=sample: encoder.encode(sample, **options))
    return pd.DataFrame(rows).assign(**_rounds(runs, 4, encoder.device, "encode", progress))


def measure_rate(encoder: Encoder, texts: list[str]) -> float:
    """Operations a second of a transformer's device, in 10^12, timed on a few hundred texts."""
    table = encoder.backbone.get_input_embeddings().weight.numel()  # looked up, not multiplied
    parameters = sum(part.numel() for part in encoder.parameters()) - table
    return work.forward_operations(parameters, _token_rate(encoder, texts, progress=False)) / 1e12


def _token_rate(encoder: Encoder, texts: list[str], **options: Any) -> float:
    """Tokens a second; the first run of a process is slower and does not count."""
    encoder.encode(texts, **options)
    seconds = clock(lambda: encoder.encode(texts, **options), encoder.device)
    return encoder.tokenize(texts, **options).lengths.sum() / seconds


def _rounds(
    runs: Sequence[Run], rounds: int, device: torch.device, name: str, progress: bool
) -> dict[str, np.ndarray]:
    """Least and most seconds of each run, each once a round."""
    seconds = np.empty((rounds, len(runs)))
    gc.collect()  # not before each run: it takes longer than a small search
    for place in progress_bar(range(seconds.size), desc=name, show=progress):
        seconds.flat[place] = clock(runs[place % len(runs)], device)
    return {"seconds": seconds.min(0), "slowest": seconds.max(0)}
