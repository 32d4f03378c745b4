"""Time and memory of a search and of an encoder on this machine: what the cost model is fitted on.

Each size is run once to warm up, which also gives its memory, and then in rounds: all sizes, then
all of them again. The least of a size's times is kept, since other processes can only add to it;
and because the repeats of a size lie far apart, a busy minute does not spoil all of them.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch
from tqdm.auto import tqdm

from nvret import search
from nvret.cost.measure import clock, extra_memory
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

WORDS = (8, 24, 72, None)  # words that texts are cut to, to see what length costs; None: all


class Size(NamedTuple):
    queries: int
    passages: int
    dimension: int

    @property
    def products(self) -> int:
        """Multiply-adds of the search."""
        return self.queries * self.passages * self.dimension


def sizes(dimension: int, k: int = 64) -> tuple[list[Size], Size]:
    """Sizes to fit on, about half a minute on two cores at 384 dimensions, and one to hold out.

    The one held out takes 4.5 times the multiply-adds of the largest other, and more passages than
    one tile of scores holds. A large k needs more passages, since the search reads the scores of a
    small corpus in another way (``nvret.search``).

    >>> fitted, held_out = sizes(384)
    >>> len(fitted), held_out.products / max(size.products for size in fitted)
    (15, 4.5)
    """
    passages = [1 << 15, 1 << 16, 1 << 17]
    while passages[0] < 256 * (k + 1):
        passages = [2 * number for number in passages]
    few, some, many = passages
    cells = [(256, few), (1024, few), (512, some), (256, many), (1024, many)]
    dimensions = dict.fromkeys(max(1, dimension // part) for part in (4, 2, 1))
    fitted = [Size(*cell, d) for d in dimensions for cell in cells]
    return fitted, Size(1536, 3 * many, dimension)


def rough_sizes(dimension: int, k: int = 64) -> tuple[list[Size], Size]:
    """As `sizes`, an eighth of the passages and half of the queries: seconds, and little trust."""
    fitted, held_out = sizes(dimension, k)
    return [_shrink(size) for size in fitted], _shrink(held_out)


def _shrink(size: Size) -> Size:
    return Size(size.queries // 2, size.passages // 8, size.dimension)


def measure_search(
    sizes: Sequence[Size],
    *,
    k: int = 64,
    device: str = "cpu",
    buffer_mb: int = 256,
    rounds: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Time `nvret.search.top_k` as mining calls it, on unit vectors drawn at random.

    A query is a noisy copy of a passage, its positive, which is excluded; the ceiling is 95 % of
    the positive's score. Vectors start in the host's memory, so a GPU's time holds their transfer.

    Args:
        sizes: what to run.
        k, device, buffer_mb: as for ``top_k``.
        rounds: timed runs of each size.
        seed: of the vectors.
    Returns:
        a row for each size: queries, passages, dimension; seconds (the least of the rounds);
        slowest (the most, for the spread); mebibytes (most extra memory: of the process, or
        allocated on the GPU).
    Raises:
        NvretError: no size, a size below 1, no such device.

    >>> measure_search([Size(4, 100, 8)], k=2, rounds=1, progress=False).columns.tolist()
    ['queries', 'passages', 'dimension', 'seconds', 'slowest', 'mebibytes']
    """
    sizes = [Size(*size) for size in sizes]
    if not sizes or min(min(size) for size in sizes) < 1 or rounds < 1:
        raise NvretError(f"sizes {sizes} in {rounds} rounds, expected sizes and rounds from 1 up")
    target = check_device(device)
    runs = _searches(sizes, k, target, buffer_mb, seed)
    with tqdm(total=len(runs) * (rounds + 1), desc="search", disable=not progress) as bar:
        runs[0]()  # threads and libraries start here, and not in the first size's memory
        memory = []
        for run in runs:
            memory.append(extra_memory(run, target))
            bar.update()
        seconds = _rounds(runs, rounds, target, bar)
    table = pd.DataFrame(sizes)
    return table.assign(seconds=seconds.min(0), slowest=seconds.max(0), mebibytes=memory)


def measure_encoding(
    encoder: Encoder,
    texts: Sequence[str],
    *,
    kind: str = "passage",
    max_length: int | None = None,
    seconds: float = 0.5,
    rounds: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Time an encoder, tokenizer included, on texts cut to several lengths.

    Args:
        encoder: the model, on its device.
        texts: a sample of those to encode. Half of them are kept for the last row.
        kind, max_length: as for ``Encoder.encode``.
        seconds: about how long one length takes; how many texts that is, a short run says.
        rounds: timed runs of each length.
        seed: of the choice of texts.
    Returns:
        a row for each length, and a last one (``held_out``) of other texts in full and three times
        as long: texts; tokens; squares (sum of the squared token counts, to which attention is
        proportional); seconds (the least of the rounds); slowest; held_out.
    Raises:
        NvretError: fewer than four different texts.
    """
    different = list(dict.fromkeys(texts))
    if len(different) < 4:
        raise NvretError(f"{len(different)} different texts, expected at least 4 to time a model")
    order = np.random.default_rng(seed).permutation(len(different))
    shuffled = [different[row] for row in order]
    half = len(shuffled) // 2
    device = encoder.device

    def encode(some: list[str]) -> Any:
        return encoder.encode(some, kind, max_length=max_length, progress=False)

    def lengths(some: list[str]) -> np.ndarray:
        return encoder.tokenize(some, kind, max_length=max_length, progress=False).lengths

    probe = shuffled[: min(half, 64)]
    encode(probe)  # the first run of a process is slower
    rate = lengths(probe).sum() / clock(lambda: encode(probe), device)
    samples = []
    for words in WORDS:
        cut = list(dict.fromkeys(" ".join(text.split()[:words]) for text in shuffled[:half]))
        samples.append(_take(cut, lengths(cut), rate * seconds))
    others = shuffled[half:]
    samples.append(_take(others, lengths(others), 3 * rate * seconds))
    runs = [lambda sample=sample: encode(sample) for sample in samples]
    with tqdm(total=len(runs) * rounds, desc=f"encode {kind}", disable=not progress) as bar:
        times = _rounds(runs, rounds, device, bar)
    counts = [lengths(sample) for sample in samples]
    return pd.DataFrame(
        {
            "texts": [len(sample) for sample in samples],
            "tokens": [int(count.sum()) for count in counts],
            "squares": [int((count**2).sum()) for count in counts],
            "seconds": times.min(0),
            "slowest": times.max(0),
            "held_out": [False] * len(WORDS) + [True],
        }
    )


def measure_text_memory(texts: Sequence[str]) -> float:
    """Bytes of memory per text while `nvret.encode.embed` turns many texts into vectors.

    The texts themselves, and the table that finds equal ones. (They are hashed some thousand at a
    time, for the name of the file of vectors, and tokenized some ten thousand at a time: nothing,
    for a corpus that is large.) Measured with ``tracemalloc``, which sees what Python and NumPy
    allocate.
    """
    texts = list(texts)
    table = _traced(lambda: list({text: number for number, text in enumerate(texts, 1 << 10)}))
    rows = 4 * 8 * len(texts)  # positions of the distinct ones, and their sorting
    held = sum(map(sys.getsizeof, texts)) + 8 * len(texts)
    return (held + table + rows) / len(texts)


def check_device(name: str) -> torch.device:
    """The device of that name, once it has held a number; `NvretError` when it cannot.

    >>> check_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NvretError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def free_memory() -> float:
    """Bytes of memory that processes could take now without swapping; files it caches included.

    >>> free_memory() > 0
    True
    """
    return float(psutil.virtual_memory().available)


def _searches(
    sizes: Sequence[Size], k: int, device: torch.device, buffer_mb: int, seed: int
) -> list[Callable[[], Any]]:
    """A search for each size. Sizes of one dimension share their vectors."""
    generator = torch.Generator().manual_seed(seed)
    corpora = {}
    for dimension in dict.fromkeys(size.dimension for size in sizes):
        rows = max(size.passages for size in sizes if size.dimension == dimension)
        corpora[dimension] = _unit(torch.randn(rows, dimension, generator=generator))

    def prepare(size: Size) -> Callable[[], Any]:
        corpus = corpora[size.dimension][: size.passages]
        positive = torch.arange(size.queries) % size.passages
        noise = _unit(torch.randn(size.queries, size.dimension, generator=generator))
        queries = _unit(corpus[positive] + 0.5 * noise)
        options = {
            "ceiling": 0.95 * (queries * corpus[positive]).sum(1),
            "exclude": positive[:, None].numpy(),
            "device": device,
            "buffer_mb": buffer_mb,
        }
        return lambda: search.top_k(queries, corpus, k, **options)

    return [prepare(size) for size in sizes]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _take(texts: list[str], lengths: np.ndarray, tokens: float) -> list[str]:
    """The first texts that hold this many tokens together, or all."""
    return texts[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]


def _rounds(
    runs: Sequence[Callable[[], Any]], rounds: int, device: torch.device, bar: tqdm
) -> np.ndarray:
    """(rounds, runs) seconds; every run once a round, and each round starts at another one."""
    seconds = np.zeros((rounds, len(runs)))
    for number in range(rounds):
        gc.collect()  # not before each run: it takes longer than a small search
        first = number * len(runs) // rounds
        for place in [*range(first, len(runs)), *range(first)]:
            seconds[number, place] = clock(runs[place], device)
            bar.update()
    return seconds


def _traced(run: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy hold during a run, beyond those before it."""
    gc.collect()
    tracemalloc.start()
    try:
        result = run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    del result
    return peak
