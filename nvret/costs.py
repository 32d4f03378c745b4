"""What mining a corpus will cost, before it starts: seconds, memory and disk by stage.

The time of a search is a sum of terms that its algorithm has, each with the machine's own price:

    seconds = c0 + c1 Q visits + c2 Q N + c3 Q N D + c4 N D

for a call; each visit of a query to a tile of scores (its k best are picked there); each score;
each multiply-add; each value of the corpus, which is checked once. Encoding costs for each text,
each token, and each token times the length of its text (attention). The prices are fitted to
measured runs (``nvret.calibration``) by least squares on the *relative* error, none below zero, and
checked on a larger run that the fit has not seen.

Not in the model: the check for near-duplicates, reading the corpus, writing the negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from nvret import calibration, tile
from nvret.calibration import MEBIBYTE, measure_encoding, measure_search
from nvret.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

__all__ = [
    "Calibration",
    "Lengths",
    "Prices",
    "Workload",
    "calibrate",
    "crossover",
    "describe",
    "duration",
    "encoding_terms",
    "measure_encoding",
    "measure_search",
    "predict",
    "search_bytes",
    "search_terms",
]

SEARCH_TERMS = (
    "call",
    "visit of a query to a tile",
    "score",
    "multiply-add",
    "value of the corpus",
)
ENCODING_TERMS = ("text", "token", "token times length")
GIBIBYTE = 2**30
SAMPLE = 2048  # texts whose lengths are counted
FLOAT, RESULT = 4, 12  # bytes of a float32; of a result, int64 id and float32 score


class Lengths(NamedTuple):
    """Tokens per text: mean, and mean of the square."""

    mean: float
    mean_square: float

    @classmethod
    def of(cls, lengths: np.ndarray) -> Lengths:
        return cls(float(lengths.mean()), float((lengths.astype(float) ** 2).mean()))

    def scaled(self, mean: float | None) -> Lengths:
        """Lengths of another mean, spread as these are; None: these.

        >>> Lengths(10, 120).scaled(20)
        Lengths(mean=20, mean_square=480.0)
        """
        return self if mean is None else Lengths(mean, self.mean_square * (mean / self.mean) ** 2)


@dataclass(frozen=True)
class Workload:
    """What is to be mined.

    Attributes:
        passages, queries: N and Q (of queries, as many as there are labelled pairs).
        passage_tokens, query_tokens: mean tokens of a text, after it is cut; None: as the sample.
        devices: machines or GPUs like the measured one, each with its part of the corpus.
    Raises:
        NvretError: a number that is not positive.
    """

    passages: int
    queries: int
    passage_tokens: float | None = None
    query_tokens: float | None = None
    devices: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise NvretError(f"{name} is {value}, expected a number above 0")


@dataclass(frozen=True)
class Prices:
    """Seconds of each term.

    >>> prices = Prices.fit(np.array([[1.0, 10], [1, 20], [1, 40]]), np.array([7.0, 12, 22]))
    >>> prices.seconds.round(6).tolist(), float(prices.of(np.array([1, 100])).round(6))
    ([2.0, 0.5], 52.0)
    """

    seconds: np.ndarray

    @classmethod
    def fit(cls, terms: np.ndarray, seconds: np.ndarray) -> Prices:
        """Non-negative least squares on the relative error.

        Args:
            terms: (R, T) how much of each term a run holds.
            seconds: (R,) of the runs, above 0.
        """
        terms, seconds = np.asarray(terms, float), np.asarray(seconds, float)
        if terms.ndim != 2 or terms.shape[:1] != seconds.shape or not len(seconds):
            raise NvretError(f"terms {terms.shape} for seconds {seconds.shape}, expected (R, T), R")
        if not np.isfinite(terms).all() or not (np.isfinite(seconds) & (seconds > 0)).all():
            raise NvretError("a measured time or term is not finite, or a time is not above 0")
        shares = terms / seconds[:, None]
        size = np.maximum(np.linalg.norm(shares, axis=0), np.finfo(float).tiny)  # for conditioning
        return cls(nnls(shares / size, np.ones(len(seconds)))[0] / size)

    def of(self, terms: np.ndarray) -> np.ndarray:
        """Seconds of (..., T) terms."""
        return np.asarray(terms, float) @ self.seconds


@dataclass(frozen=True)
class Calibration:
    """What was measured, and the prices that were fitted to it.

    Attributes:
        searches, encodings: the measured runs with their predictions; see `calibrate`.
        search, encoding: prices of the terms.
        k, buffer_mb, device, dimension: what was measured.
        passage_lengths, query_lengths: tokens per text of the sample.
        passage_bytes, query_bytes: memory per text while it is encoded.
        weight_bytes: of the model.
    """

    searches: pd.DataFrame
    encodings: pd.DataFrame
    search: Prices
    encoding: Prices
    k: int
    buffer_mb: int
    device: str
    dimension: int
    passage_lengths: Lengths
    query_lengths: Lengths
    passage_bytes: float
    query_bytes: float
    weight_bytes: int

    def reach(self, workload: Workload) -> tuple[float, float]:
        """How many times the largest measured search and encoding a workload is."""
        largest = self.searches[["queries", "passages", "dimension"]].prod(axis=1).max()
        products = workload.queries * workload.passages * self.dimension
        tokens = workload.passages * self.passage_lengths.scaled(workload.passage_tokens).mean
        return products / largest, tokens / self.encodings["tokens"].max()


def search_terms(queries: int, passages: int, dimension: int, buffer_mb: int = 256) -> np.ndarray:
    """(5,) how much a search holds of each of ``SEARCH_TERMS``.

    >>> search_terms(1000, 300_000, 2).astype(int).tolist()  # a tile holds 262,144 passages
    [1, 2000, 300000000, 600000000, 600000]
    """
    visits = queries * -(-passages // _tile(queries, passages, buffer_mb)[1])
    scores = queries * passages
    return np.array([1, visits, scores, scores * dimension, passages * dimension], float)


def encoding_terms(texts: float, lengths: Lengths) -> np.ndarray:
    """(3,) how much an encoding holds of each of ``ENCODING_TERMS``."""
    return texts * np.array([1, lengths.mean, lengths.mean_square], float)


def search_bytes(queries: int, passages: int, k: int, *, buffer_mb: int = 256) -> int:
    """Memory that a search takes beside its vectors: a tile of scores, its best, the results.

    >>> search_bytes(1024, 1 << 20, 64) / MEBIBYTE < 256 + 12
    True
    """
    rows, columns = _tile(queries, passages, buffer_mb)
    scores = rows * columns * FLOAT
    read_again = rows * min(k * tile.BLOCK, columns) * FLOAT
    return scores + scores // tile.BLOCK + read_again + queries * k * RESULT


def passes(queries: int) -> int:
    """How often a search reads the whole corpus: once for each tile of queries.

    >>> passes(257)
    2
    """
    return -(-queries // tile.QUERY_TILE)


def _tile(queries: int, passages: int, buffer_mb: int) -> tuple[int, int]:
    """Queries and passages of the search's tile of scores, as ``nvret.tile.Tile`` lays it out."""
    rows = min(tile.QUERY_TILE, queries)
    most = max(1, buffer_mb * MEBIBYTE // (FLOAT * rows * tile.BLOCK))
    return rows, min(most, -(-passages // tile.BLOCK)) * tile.BLOCK


def calibrate(
    encoder: Encoder,
    passages: Sequence[str],
    queries: Sequence[str],
    *,
    passage_max_length: int | None = 128,
    query_max_length: int | None = 64,
    k: int = 64,
    buffer_mb: int = 256,
    rough: bool = False,
    progress: bool = True,
) -> Calibration:
    """Measure this machine, about a minute on two cores, and fit the prices.

    Args:
        encoder: the teacher, on the device to measure.
        passages, queries: texts like those to mine; a few thousand are plenty.
        passage_max_length, query_max_length: tokens after which a text is cut.
        k, buffer_mb: of the search.
        rough: small sizes, in seconds.
    Returns:
        with ``searches`` and ``encodings``: the measured runs, seconds ``predicted`` for each,
        its ``error`` (predicted / measured - 1) and whether it was ``held_out`` of the fit.
        ``searches`` has the predicted memory too (``predicted_mebibytes``).
    """
    device = str(encoder.device)
    make = calibration.rough_sizes if rough else calibration.sizes
    fitted, held_out = make(encoder.dimension, k)
    options = {"k": k, "device": device, "buffer_mb": buffer_mb, "progress": progress}
    searches = measure_search([*fitted, held_out], **options)
    searches["held_out"] = [False] * len(fitted) + [True]
    shapes = list(
        zip(searches["queries"], searches["passages"], searches["dimension"], strict=True)
    )
    search, searches = _fitted(searches, [search_terms(*shape, buffer_mb) for shape in shapes])
    memory = [search_bytes(q, n, k, buffer_mb=buffer_mb) for q, n, _ in shapes]
    searches["predicted_mebibytes"] = np.array(memory) / MEBIBYTE

    some = {"passage": _sample(passages), "query": _sample(queries)}
    most = {"passage": passage_max_length, "query": query_max_length}
    encodings = measure_encoding(
        encoder,
        passages,
        max_length=passage_max_length,
        seconds=0.1 if rough else 0.5,
        progress=progress,
    )
    encoding, encodings = _fitted(encodings, encodings[["texts", "tokens", "squares"]].to_numpy())
    lengths, text_bytes = {}, {}
    for kind, texts in some.items():
        options = {"kind": kind, "max_length": most[kind]}
        lengths[kind] = Lengths.of(encoder.tokenize(texts, **options, progress=False).lengths)
        text_bytes[kind] = calibration.measure_text_memory(encoder, texts, **options)
    weights = sum(part.numel() * part.element_size() for part in encoder.parameters())
    return Calibration(
        searches, encodings, search, encoding, k, buffer_mb, device, encoder.dimension,
        lengths["passage"], lengths["query"], text_bytes["passage"], text_bytes["query"], weights,
    )  # fmt: skip


def predict(measured: Calibration, workload: Workload) -> pd.DataFrame:
    """Cost of mining a workload on machines like the measured one.

    Several devices are assumed to scale perfectly: each encodes its part of the texts and searches
    its part of the corpus for all queries, at the same time; merging their results is not counted.

    Returns:
        a row for each stage and their total: seconds; duration, for people; share of the total;
        memory_gib, which a device's process must hold (total: the most of any stage; on a GPU the
        search's buffer lies there); mapped_gib, vectors that it reads or writes through a memory
        map, at full speed only while memory that is otherwise free holds them; disk_gib, vectors
        that are kept, of all devices together.
    """
    n, q, dimension = workload.passages, workload.queries, measured.dimension
    shard, some = -(-n // workload.devices), -(-q // workload.devices)
    rows = {}
    for stage, count, part, lengths, tokens, text_bytes in (
        ("encode passages", n, shard, measured.passage_lengths, workload.passage_tokens,
         measured.passage_bytes),
        ("encode queries", q, some, measured.query_lengths, workload.query_tokens,
         measured.query_bytes),
    ):  # fmt: skip
        wanted = lengths.scaled(tokens)
        rows[stage] = {
            "seconds": measured.encoding.of(encoding_terms(part, wanted)),
            "memory_gib": part * text_bytes * wanted.mean / lengths.mean + measured.weight_bytes,
            "mapped_gib": part * dimension * FLOAT,
            "disk_gib": count * dimension * FLOAT,
        }
    buffer = search_bytes(q, shard, measured.k, buffer_mb=measured.buffer_mb)
    terms = search_terms(q, shard, dimension, measured.buffer_mb)
    rows["search"] = {
        "seconds": measured.search.of(terms),
        "memory_gib": buffer + q * dimension * FLOAT,  # mining copies the vectors of its pairs
        "mapped_gib": shard * dimension * FLOAT,
        "disk_gib": 0,
    }
    table = pd.DataFrame(rows).T.astype(float)
    total = table.max()
    total[["seconds", "disk_gib"]] = table[["seconds", "disk_gib"]].sum()
    table.loc["total"] = total
    table[["memory_gib", "mapped_gib", "disk_gib"]] /= GIBIBYTE
    table.insert(1, "duration", table["seconds"].map(duration))
    table.insert(2, "share", table["seconds"] / total["seconds"])
    return table.rename_axis("stage").reset_index()


def crossover(measured: Calibration, workload: Workload) -> float:
    """Passages at which the search takes as long as the encoding, if queries grow with them.

    With the queries fixed both grow in proportion to the passages, and the longer one stays it. So
    the ratio of queries to passages is what is held here.
    """
    ratio = workload.queries / workload.passages

    def stages(passages: float) -> np.ndarray:
        sizes = {"passages": round(passages), "queries": max(1, round(passages * ratio))}
        return predict(measured, replace(workload, **sizes))["seconds"].to_numpy()

    low, high = 1.0, 1e12
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        passages, queries, search, _ = stages(middle)
        low, high = (middle, high) if search < passages + queries else (low, middle)
    return low


def describe(measured: Calibration, workload: Workload) -> str:
    """A prediction in words: the table, how right the model was on what it had not seen, how far
    it reaches beyond what was measured, and what would make it wrong here."""
    table = predict(measured, workload)
    search = measured.searches[measured.searches["held_out"]].iloc[0]
    encoding = measured.encodings[measured.encodings["held_out"]].iloc[0]
    products, tokens = measured.reach(workload)
    shown = table.drop(columns="seconds").to_string(
        index=False, formatters={"share": "{:.1%}".format}, float_format="{:,.2f}".format
    )
    lengths = [
        measured.passage_lengths.scaled(workload.passage_tokens).mean,
        measured.query_lengths.scaled(workload.query_tokens).mean,
    ]
    lines = [
        f"{workload.passages:,} passages of {lengths[0]:.0f} tokens, {workload.queries:,} queries "
        f"of {lengths[1]:.0f}, {measured.dimension} dimensions, {measured.k} candidates, on "
        f"{workload.devices} x {measured.device}:",
        "",
        shown,
        "",
        f"Held out: a search of {search.queries:,} queries in {search.passages:,} passages took "
        f"{search.seconds:.2f} s, predicted {search.predicted:.2f} s ({search.error:+.1%});",
        f"encoding {encoding.texts:,} other texts took {encoding.seconds:.2f} s, predicted "
        f"{encoding.predicted:.2f} s ({encoding.error:+.1%}).",
        f"The prediction reaches {products:,.0f} times beyond the largest measured search and "
        f"{tokens:,.0f} times beyond the largest measured encoding.",
    ]
    if workload.devices > 1:
        lines.append(f"Assumed: {workload.devices} devices share the work without any loss.")
    mapped, held = table.iloc[2][["mapped_gib", "memory_gib"]]
    free = calibration.free_memory() / GIBIBYTE
    if mapped + held > free:
        lines.append(
            f"Too little memory here: {free:.1f} GiB are free, and the search reads the corpus's "
            f"{mapped:.1f} GiB of vectors {passes(workload.queries):,} times, from disk if memory "
            "cannot hold them. Its time above is for a machine that can."
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> [duration(s) for s in (0.25, 59.7, 3700, 200_000)]
    ['0.2 s', '1 min 0 s', '1 h 2 min', '2 d 8 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (large, most), (small, least) in pairwise(units):
        if round(seconds / least) * least >= most:
            whole, rest = divmod(round(seconds / least), most // least)
            return f"{whole:,} {large} {rest} {small}"
    return f"{seconds:.0f} s"


def _fitted(
    table: pd.DataFrame, terms: Sequence[np.ndarray] | np.ndarray
) -> tuple[Prices, pd.DataFrame]:
    """Prices from the rows that are not held out; the table with predictions for all of them."""
    terms, seen = np.asarray(terms), ~table["held_out"].to_numpy()
    prices = Prices.fit(terms[seen], table["seconds"].to_numpy()[seen])
    predicted = prices.of(terms)
    return prices, table.assign(predicted=predicted, error=predicted / table["seconds"] - 1)


def _sample(texts: Sequence[str]) -> list[str]:
    """Some of the texts, from all over the list."""
    return list(texts[:: -(-len(texts) // SAMPLE)]) if len(texts) else []
