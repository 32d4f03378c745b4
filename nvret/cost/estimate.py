"""What mining a corpus will cost, before it starts: seconds, memory and disk by stage.

A minute of measuring (`nvret.cost.calibration`) gives each term of the work (`nvret.cost.work`) its
price on this machine. The prices are checked on a larger run that the fit has not seen, and
multiplied by the work of what is to be mined.

Not in the model: the check for near-duplicates, reading and hashing the corpus, the scores of the
positives, writing the negatives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
from scipy.optimize import nnls

from nvret.cost import calibration
from nvret.cost.calibration import GIBIBYTE
from nvret.cost.work import Positive, Search, Texts, vector_bytes

if TYPE_CHECKING:
    from nvret.encode import Encoder

SAMPLE = 2048  # texts whose lengths are counted
# Bytes that `Encoder.encode` holds for a text beside the string: its place in the list, and in the
# table that finds equal ones (at its fullest, with the positions of the distinct ones). Tokens and
# hashes, made for some thousand texts at a time, are nothing for a corpus that is large.
TABLE_BYTES = 8 + 128


@dataclass(frozen=True)
class Workload(Positive):
    """What is to be mined.

    Attributes:
        passages, queries: N and Q (of queries, as many as there are labelled pairs).
        passage_tokens, query_tokens: mean tokens of a text, after it is cut; None: as the sample.
        devices: machines or GPUs like the measured one, each with its part of the corpus.
    """

    passages: int
    queries: int
    passage_tokens: float | None = None
    query_tokens: float | None = None
    devices: int = 1


@dataclass(frozen=True)
class Calibration:
    """What was measured, and the prices that were fitted to it.

    Attributes:
        searches, encodings: the measured runs, seconds ``predicted`` for each, its ``error``
            (predicted / measured - 1) and whether it was ``held_out`` of the fit, as the last one;
            of searches the predicted memory too (``predicted_mebibytes``).
        search_prices, encoding_prices: seconds of each of ``work.SEARCH_TERMS`` and
            ``work.ENCODING_TERMS``.
        passage, query: of the sample.
    """

    searches: pd.DataFrame
    encodings: pd.DataFrame
    search_prices: np.ndarray
    encoding_prices: np.ndarray
    k: int
    device: str
    dimension: int
    weight_bytes: int
    passage: Texts
    query: Texts


def calibrate(
    encoder: Encoder,
    passages: Sequence[str],
    queries: Sequence[str],
    *,
    passage_max_length: int | None = 128,
    query_max_length: int | None = 64,
    k: int = 64,
    rough: bool = False,
    progress: bool = True,
) -> Calibration:
    """Measure the teacher's device, about a minute on two cores, and fit the prices.

    Args:
        passages, queries: texts like those to mine; a few thousand are plenty.
        k: candidates of a search.
        rough: small sizes, in seconds.
    """
    sizes = calibration.sizes(encoder.dimension, k, rough=rough)
    searches = calibration.measure_search(sizes, k, encoder.device, progress=progress)
    encodings = calibration.measure_encoding(
        encoder, passages, passage_max_length, seconds=0.1 if rough else 0.5, progress=progress
    )
    search_prices = _fit_table(searches, np.array([size.terms() for size in sizes]))
    searches["predicted_mebibytes"] = [size.memory(k) / calibration.MEBIBYTE for size in sizes]
    return Calibration(
        searches=searches,
        encodings=encodings,
        search_prices=search_prices,
        encoding_prices=_fit_table(encodings, encodings[["texts", "tokens", "squares"]].to_numpy()),
        k=k,
        device=str(encoder.device),
        dimension=encoder.dimension,
        weight_bytes=sum(part.nbytes for part in encoder.parameters()),
        passage=sampled(encoder, passages, "passage", passage_max_length),
        query=sampled(encoder, queries, "query", query_max_length),
    )


def fit(terms: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Prices of terms, none below zero, by least squares on the relative error.

    Args:
        terms: (R, T) how much of each term a run holds.
        seconds: (R,) of the runs, above 0.
    Returns:
        (T,) seconds of one of each term: ``terms @ prices`` are the predicted seconds.

    >>> fit(np.array([[1.0, 10], [1, 20], [1, 40]]), np.array([7.0, 12, 22])).round(6).tolist()
    [2.0, 0.5]
    """
    shares = terms / seconds[:, None]
    size = np.maximum(np.linalg.norm(shares, axis=0), np.finfo(float).tiny)  # for conditioning
    return nnls(shares / size, np.ones(len(seconds)))[0] / size


def _fit_table(table: pd.DataFrame, terms: np.ndarray) -> np.ndarray:
    """Prices from all rows but the last, which is held out; adds their predictions to the table."""
    prices = fit(terms[:-1], table["seconds"].to_numpy()[:-1])
    table["held_out"] = np.arange(len(table)) == len(table) - 1
    table["predicted"] = terms @ prices
    table["error"] = table["predicted"] / table["seconds"] - 1
    return prices


def sampled(encoder: Encoder, texts: Sequence[str], kind: str, max_length: int | None) -> Texts:
    """Lengths and memory of texts from all over the list."""
    sample = list(texts[:: max(1, -(-len(texts) // SAMPLE))])
    lengths = encoder.tokenize(sample, kind, max_length=max_length, progress=False).lengths
    memory = TABLE_BYTES + sum(map(sys.getsizeof, sample)) / len(sample)
    return Texts(float(lengths.mean()), float((lengths.astype(float) ** 2).mean()), memory)


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
    dimension, devices, rows = measured.dimension, workload.devices, {}
    for kind, number, texts in (
        ("passages", workload.passages, measured.passage.scaled(workload.passage_tokens)),
        ("queries", workload.queries, measured.query.scaled(workload.query_tokens)),
    ):
        part = -(-number // devices)
        rows[f"encode {kind}"] = {
            "seconds": texts.terms(part) @ measured.encoding_prices,
            "memory_gib": part * texts.memory + measured.weight_bytes,
            "mapped_gib": vector_bytes(part, dimension),
            "disk_gib": vector_bytes(number, dimension),
        }
    search = Search(workload.queries, -(-workload.passages // devices), dimension)
    copied = vector_bytes(workload.queries, dimension)  # mining copies the vectors of its pairs
    rows["search"] = {
        "seconds": search.terms() @ measured.search_prices,
        "memory_gib": search.memory(measured.k) + copied,
        "mapped_gib": vector_bytes(search.passages, dimension),
        "disk_gib": 0,
    }
    table = pd.DataFrame(rows).T.astype(float)
    table.loc["total"] = table.agg(
        {"seconds": "sum", "memory_gib": "max", "mapped_gib": "max", "disk_gib": "sum"}
    )
    table[["memory_gib", "mapped_gib", "disk_gib"]] /= GIBIBYTE
    table.insert(1, "duration", table["seconds"].map(duration))
    table.insert(2, "share", table["seconds"] / table["seconds"]["total"])
    return table.rename_axis("stage").reset_index()


def crossover(measured: Calibration, workload: Workload) -> float:
    """Passages at which the search takes as long as the encoding, if queries grow with them.

    (With the queries fixed both grow in proportion to the passages: the longer one stays it.)
    """
    ratio = workload.queries / workload.passages
    low, high = 1.0, 1e12
    while high / low > 1.0001:
        middle = (low * high) ** 0.5
        queries = max(1, round(middle * ratio))
        sized = replace(workload, passages=round(middle), queries=queries)
        of_passages, of_queries, search, _ = predict(measured, sized)["seconds"]
        low, high = (middle, high) if search < of_passages + of_queries else (low, middle)
    return low


def describe(measured: Calibration, workload: Workload) -> str:
    """A prediction in words: the table, how right the model was on what it had not seen, how far
    it reaches beyond what was measured, and what would make it wrong here."""
    table = predict(measured, workload)
    search, encoding = measured.searches.iloc[-1], measured.encodings.iloc[-1]
    passage_tokens = workload.passage_tokens or measured.passage.tokens
    query_tokens = workload.query_tokens or measured.query.tokens
    tokens = workload.passages * passage_tokens
    products = Search(workload.queries, workload.passages, measured.dimension).products
    largest = measured.searches[["queries", "passages", "dimension"]].prod(axis=1).max()
    lines = [
        f"{workload.passages:,} passages of {passage_tokens:.0f} tokens, {workload.queries:,} "
        f"queries of {query_tokens:.0f}, {measured.dimension} dimensions, {measured.k} "
        f"candidates, on {workload.devices} x {measured.device}:",
        "",
        table.drop(columns="seconds").to_string(
            index=False, formatters={"share": "{:.1%}".format}, float_format="{:,.2f}".format
        ),
        "",
        f"Held out: a search of {search.queries:,} queries in {search.passages:,} passages took "
        f"{search.seconds:.2f} s, predicted {search.predicted:.2f} s ({search.error:+.1%});",
        f"encoding {encoding.texts:,} other texts took {encoding.seconds:.2f} s, predicted "
        f"{encoding.predicted:.2f} s ({encoding.error:+.1%}).",
        f"The prediction reaches {products / largest:,.0f} times beyond the largest measured "
        f"search and {tokens / measured.encodings['tokens'].max():,.0f} times beyond the largest "
        "measured encoding.",
    ]
    if workload.devices > 1:
        lines.append(f"Assumed: {workload.devices} devices share the work without any loss.")
    free = psutil.virtual_memory().available / GIBIBYTE  # without swapping; cached files make room
    lacking = f"Too little memory here: {free:.1f} GiB are free, and"
    if (encode := table["memory_gib"][0]) > free:
        lines.append(
            f"{lacking} encoding takes {encode:.1f}, most of it to hold the texts. Encode the "
            "corpus in parts."
        )
    mapped, held = table.iloc[2][["mapped_gib", "memory_gib"]]
    if mapped + held > free:
        lines.append(
            f"{lacking} the search reads the corpus's {mapped:.1f} GiB of vectors twice, to check "
            "and to compare them, from disk if memory cannot hold them. Its time above is for a "
            "machine that can."
        )
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> [duration(s) for s in (0.25, 59.7, 3700, 200_000)]
    ['0.2 s', '1 min 0 s', '1 h 2 min', '2 d 8 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    units = ("d", 24, "h", 3600), ("h", 60, "min", 60), ("min", 60, "s", 1)
    for large, most, small, least in units:
        whole, rest = divmod(round(seconds / least), most)
        if whole:
            return f"{whole:,} {large} {rest} {small}"
    return f"{seconds:.0f} s"
