"""What mining a corpus will cost, before it starts: seconds, memory and disk by stage.

A minute of measuring (`calibration`) gives each term of the work its price on this machine
(`prices`). The prices are checked on a larger run that the fit has not seen, and multiplied
by the work of what is to be mined.

Not in the model: the check for near-duplicates, reading and hashing the corpus, the scores of the
positives, writing the negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nvret.cost import calibration
from nvret.cost.calibration import measure_encoding, measure_search
from nvret.cost.prices import (
    ENCODING_TERMS,
    FLOAT,
    GIBIBYTE,
    MEBIBYTE,
    SEARCH_TERMS,
    Lengths,
    Prices,
    duration,
    encoding_terms,
    search_bytes,
    search_terms,
)
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

__all__ = [
    "ENCODING_TERMS",
    "SEARCH_TERMS",
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

SAMPLE = 2048  # texts whose lengths are counted


@dataclass(frozen=True)
class Workload:
    """What is to be mined.

    Attributes:
        passages, queries: N and Q (of queries, as many as there are labelled pairs).
        passage_tokens, query_tokens: mean tokens of a text, after it is cut; None: as the sample.
            The memory of texts is reckoned as if little of them were cut.
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
class Calibration:
    """What was measured, and the prices that were fitted to it.

    Attributes:
        searches, encodings: the measured runs with their predictions; see `calibrate`.
        search, encoding: prices of the terms.
        k, buffer_mb, device, dimension: what was measured.
        passage_lengths, query_lengths: tokens per text of the sample.
        text_bytes, token_bytes: "passage" and "query" -> memory while texts are encoded, for each
            text like those of the sample, and for each token of it before it is cut.
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
    text_bytes: dict[str, float]
    token_bytes: dict[str, float]
    weight_bytes: int

    def reach(self, workload: Workload) -> tuple[float, float]:
        """How many times the largest measured search and encoding a workload is."""
        largest = self.searches[["queries", "passages", "dimension"]].prod(axis=1).max()
        products = workload.queries * workload.passages * self.dimension
        tokens = workload.passages * self.passage_lengths.scaled(workload.passage_tokens).mean
        return products / largest, tokens / self.encodings["tokens"].max()


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
    most_tokens = {"passage": passage_max_length, "query": query_max_length}
    encodings = measure_encoding(
        encoder,
        passages,
        max_length=passage_max_length,
        seconds=0.1 if rough else 0.5,
        progress=progress,
    )
    encoding, encodings = _fitted(encodings, encodings[["texts", "tokens", "squares"]].to_numpy())
    lengths, text_bytes, token_bytes = {}, {}, {}
    for kind, texts in some.items():
        cut, whole = (
            Lengths.of(encoder.tokenize(texts, kind, max_length=most, progress=False).lengths)
            for most in (most_tokens[kind], None)
        )
        lengths[kind] = cut
        text_bytes[kind] = calibration.measure_text_memory(texts)
        token_bytes[kind] = text_bytes[kind] / whole.mean
    weights = sum(part.numel() * part.element_size() for part in encoder.parameters())
    return Calibration(
        searches, encodings, search, encoding, k, buffer_mb, device, encoder.dimension,
        lengths["passage"], lengths["query"], text_bytes, token_bytes, weights,
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
    shard = -(-n // workload.devices)
    rows = {}
    for kind, stage, count, lengths, tokens in (
        ("passage", "encode passages", n, measured.passage_lengths, workload.passage_tokens),
        ("query", "encode queries", q, measured.query_lengths, workload.query_tokens),
    ):
        part = -(-count // workload.devices)
        held = tokens * measured.token_bytes[kind] if tokens else measured.text_bytes[kind]
        rows[stage] = {
            "seconds": measured.encoding.of(encoding_terms(part, lengths.scaled(tokens))),
            "memory_gib": part * held + measured.weight_bytes,
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
    free = calibration.free_memory() / GIBIBYTE
    encode = table.iloc[0]["memory_gib"]
    if encode > free:
        lines.append(
            f"Too little memory here: {free:.1f} GiB are free, and encoding takes {encode:.1f}, "
            "most of it to hold the texts. Encode the corpus in parts."
        )
    mapped, held = table.iloc[2][["mapped_gib", "memory_gib"]]
    if mapped + held > free:
        lines.append(
            f"Too little memory here: {free:.1f} GiB are free, and the search reads the corpus's "
            f"{mapped:.1f} GiB of vectors twice, to check and to compare them, from disk if memory "
            "cannot hold them. Its time above is for a machine that can."
        )
    return "\n".join(lines)


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
