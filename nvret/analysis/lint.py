"""A lint for anybody's mined negatives: what a trainer would take without a word.

Each record is looked at once, by several processes; of a negative 40 bytes stay, so that a file may
be larger than the memory. Texts are compared after `near_duplicates.normalise`.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import html
import math
import multiprocessing
import os
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvret.analysis.suspects import hub_limit
from nvret.io import mined
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import normalise

CHECKS = {  # name -> what it says of a negative, or of a record
    "unreadable": "the record is no JSON object, or lacks a column",
    "empty": "an empty text",
    "positive": "the positive itself",
    "near-positive": "nearly the positive's text: at least 80 % of the word trigrams",
    "other-positive": "a positive of the same query in another record",
    "query": "the query itself",
    "repeated": "stands among the pair's negatives already",
    "not-finite": "a score that is no finite number",
    "unknown-id": "an id that the corpus does not have",
    "above-positive": "scores at or above the positive",
    "short": "fewer negatives than most records have",
    "hub": "the same negative for many queries",
    "script": "another script than the positive's",
    "length": "fewer than three words, or twenty times as long or short as the positive",
    "cut": "texts that all end at one length, as if cut",
}
MISTAKES = list(CHECKS)[:9]  # of which a trainer knows nothing good; the others are reasons to look
DROPPED = ["empty", "positive", "near-positive", "other-positive", "query", "repeated",
           "not-finite", "unknown-id"]  # fmt: skip
OF_RECORDS = ("unreadable", "short", "cut")  # counted in records, not in negatives
EXAMPLES = 5
NEAR, PROBE = 0.8, 5  # similarity; words of a run that a near copy shares


class Example(NamedTuple):
    """Where something was found: record, from 1, the negative's place in it, from 0, and a text."""

    record: int
    place: int
    text: str


@dataclass
class Found:
    """What is wrong in a file, or in a piece of one.

    Attributes:
        counts: by the names of ``CHECKS``; of negatives, or of records.
        excess: by how much each negative does that scores at or above its lowest positive.
        dropped: record, place and number in ``DROPPED`` of the negatives that `clean` drops.
        judged: of `judge`.
    """

    layout: str = ""
    records: int = 0
    negatives: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    excess: list[float] = field(default_factory=list)
    dropped: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.int64))
    judged: dict[str, Any] | None = None

    def add(self, check: str, example: Example) -> None:
        self.counts[check] += 1
        if len(self.examples[check]) < EXAMPLES:
            self.examples[check].append(example)

    @property
    def mistakes(self) -> float:
        """The share of the negatives, or records, that the worst of ``MISTAKES`` concerns."""
        return max((self.share(check) for check in MISTAKES), default=0.0)

    def share(self, check: str) -> float:
        of = self.records if check in OF_RECORDS else self.negatives
        return self.counts[check] / of if of else 0.0


@dataclass
class _Part:
    """What a process finds in a piece, and what is compared with the others' afterwards.

    Flat arrays of whole numbers, since there may be millions.
    """

    found: Found
    negatives: array = field(default_factory=lambda: array("Q"))  # query, text, pair, record, place
    positives: array = field(default_factory=lambda: array("Q"))  # query, passage
    widths: array = field(default_factory=lambda: array("Q"))  # record, negatives
    dropped: array = field(default_factory=lambda: array("Q"))  # record, place, check
    lengths: Counter = field(default_factory=Counter)  # characters of a text


def lint(path: Path, *, corpus: Iterable[str] | None = None, progress: bool = True) -> Found:
    """Look at every record of a file of mined negatives.

    Args:
        corpus: its ids, for a layout of ids.
    Returns:
        what was found; never an error for what a record holds.
    Raises:
        NvretError: the file cannot be opened, or has the columns of no known layout.
    """
    layout = mined.layout_of(path)
    todo = mined.pieces(path)
    known = frozenset(corpus) if corpus is not None and layout.ids else None
    look = partial(_piece, ids=known)
    total, parts = Found(layout.name), []
    with _processes(len(todo)) as run:
        for part in progress_bar(run(look, todo), total=len(todo), desc=path.name, unit="piece",
                                 show=progress):  # fmt: skip
            _join(total, part.found)
            parts.append(part)
    _across(total, parts, layout)
    return total


@contextlib.contextmanager
def _processes(pieces: int) -> Iterator[Any]:
    """A ``map`` over processes, or within this one where there is little to do."""
    workers = min(pieces, os.cpu_count() or 1)
    if workers < 2:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _piece(piece: mined.Piece, ids: frozenset[str] | None) -> _Part:
    layout, part = mined.layout_of(piece.path), _Part(Found())
    found = part.found
    for number, record in mined.records(piece):
        found.records += 1
        row = _row(layout, record)
        if isinstance(row, str):
            found.add("unreadable", Example(number + 1, 0, row))
            continue
        found.negatives += len(row.negatives)
        _look(part, number + 1, row, layout, ids)
    return part


def _row(layout: mined.Layout, record: dict[str, Any] | str) -> mined.Row | str:
    """The record's row, or why it has none."""
    if isinstance(record, str):
        return record
    try:
        row = layout.row(record)
        if not all(isinstance(part, list | tuple) for part in row[1:]):
            return "expected lists of texts and of scores"
        texts = row.query, *row.positives, *row.negatives
        if not all(isinstance(text, str | None) for text in texts):
            return "expected texts"
    except KeyError as error:
        return f"no column {error}"
    except (TypeError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"[:80]
    return row


def hashed(text: str) -> int:
    """64 bits that stand for a text, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _look(
    part: _Part, number: int, row: mined.Row, layout: mined.Layout, ids: frozenset[str] | None
) -> None:
    """The checks that need one record alone."""
    plain = str if layout.ids else normalise
    query, *positives = (plain(text or "") for text in (row.query, *row.positives))
    own = hashed(query)
    for text in positives:
        part.positives.extend((own, hashed(text)))
    if not row.negatives and layout.grouped:
        return
    part.widths.extend((number, len(row.negatives)))
    pair = own if not (layout.grouped and positives) else hashed(f"{own} {positives[0]}")
    seen, limit = set(), _smallest(row.positive_scores)
    scored = len(row.negative_scores) == len(row.negatives)
    for place, raw in enumerate(row.negatives):
        text, example = plain(raw or ""), Example(number, place, _shown(raw))
        reasons = set(_reasons(text, raw or "", query, positives, row, layout, ids))
        if text and text in seen:
            reasons.add("repeated")
        seen.add(text)
        score = row.negative_scores[place] if scored else 0.0
        if not isinstance(score, int | float) or not math.isfinite(score):
            reasons.add("not-finite")
        elif scored and limit is not None and score >= limit:
            reasons.add("above-positive")
            part.found.excess.append(score - limit)
        for check in sorted(reasons):
            part.found.add(check, example)
            if check in DROPPED:
                part.dropped.extend((number, place, DROPPED.index(check)))
        known = bool(reasons & {"positive", "empty", "repeated"})
        part.negatives.extend((0 if known else own, hashed(text), pair, number, place))
        if not layout.ids:
            part.lengths[len(raw or "")] += 1


def _shown(text: str | None) -> str:
    """The beginning of a text, of characters that any file can hold."""
    return (text or "")[:200].encode("utf-8", "replace").decode()


def _smallest(scores: Iterable[Any]) -> float | None:
    """Of the positives' scores; None where one is no finite number."""
    numbers = [score for score in scores if isinstance(score, int | float)]
    return min(numbers) if numbers and all(map(math.isfinite, numbers)) else None


def _reasons(
    text: str, raw: str, query: str, positives: list[str], row: mined.Row,
    layout: mined.Layout, ids: frozenset[str] | None,
) -> Iterator[str]:  # fmt: skip
    """What a negative's text gives away."""
    if not text:
        yield "empty"
        return
    if text in positives:
        yield "positive"
    elif text == query:
        yield "query"
    elif not layout.ids and any(near(text, positive) for positive in positives):
        yield "near-positive"
    if layout.ids:
        if ids is not None and text not in ids:
            yield "unknown-id"
        return
    longest = max(map(len, positives), default=0)
    if text.count(" ") < 2 or (longest and not 1 / 20 <= len(text) / longest <= 20):
        yield "length"
    if not raw.isascii() and row.positives and script(raw) != script(row.positives[0] or ""):
        yield "script"


def near(a: str, b: str) -> bool:
    """Whether two normalised texts share 80 % of their word trigrams (Jaccard).

    Only texts of about one length with one of three runs of words in common are compared in full.

    >>> near("the old king of the north died in the war", "the old king of the north died in a war")
    False
    >>> text = " ".join(map(str, range(40)))
    >>> near(text, text + " 40")
    True
    """
    if not 0.75 <= len(a) / len(b) <= 1.34 if b else True:
        return False
    words = a.split()
    last = max(len(words) - PROBE, 0)
    probes = {0, last // 2, last}
    if not any(" ".join(words[at : at + PROBE]) in b for at in probes):
        return False
    one, two = (set(zip(w, w[1:], w[2:], strict=False)) for w in (words, b.split()))
    return len(one & two) >= NEAR * len(one | two) if one | two else words == b.split()


def script(text: str) -> str:
    """The script of most of a text's first letters, by their Unicode names.

    >>> script("Москва, Moscow"), script("東京"), script("42")
    ('CYRILLIC', 'CJK', '')
    """
    letters = [c for c in text[:200] if c.isalpha()][:50]
    names = Counter(unicodedata.name(c, "?").split(" ")[0].split("-")[0] for c in letters)
    return names.most_common(1)[0][0] if names else ""


def _join(total: Found, found: Found) -> None:
    """Add what a piece holds; its records count from where the pieces before have ended."""
    for check, examples in found.examples.items():
        room = EXAMPLES - len(total.examples[check])
        moved = [one._replace(record=one.record + total.records) for one in examples]
        total.examples[check] += moved[:room]
    total.records += found.records
    total.negatives += found.negatives
    total.counts += found.counts
    total.excess += found.excess


def _across(total: Found, parts: list[_Part], layout: mined.Layout) -> None:
    """What only all records together show."""
    starts = np.cumsum([0, *(part.found.records for part in parts)])[:-1]

    def joined(name: str, width: int, record: int | None = None) -> np.ndarray:
        arrays = []
        for part, start in zip(parts, starts, strict=True):
            own = np.frombuffer(getattr(part, name), np.uint64).reshape(-1, width).copy()
            if record is not None:
                own[:, record] += np.uint64(start)
            arrays.append(own)
        return np.concatenate(arrays)

    own, passage, pair, record, place = joined("negatives", 5, 3).T
    labels, widths = joined("positives", 2), joined("widths", 2, 0)
    dropped = [joined("dropped", 3, 0)]

    def add(check: str, chosen: np.ndarray) -> None:
        for row in np.flatnonzero(chosen):
            total.add(check, Example(int(record[row]), int(place[row]), ""))
        if check in DROPPED:
            checks = np.full(chosen.sum(), DROPPED.index(check), np.uint64)
            dropped.append(np.stack([record[chosen], place[chosen], checks], 1))

    known = own == 0
    other = np.isin(_mixed(own, passage), _mixed(*labels.T)) & ~known
    add("other-positive", other)
    if layout.grouped:  # a row is a text, so that a pair's are in several
        _, first = np.unique(_mixed(pair, passage), return_index=True)
        again = np.ones(len(pair), bool)
        again[first] = False
        add("repeated", again & ~known & ~other)
    queries = len(np.unique(labels[:, 0]))
    distinct = np.unique(_mixed(own, passage), return_index=True)[1]
    _, at, number = np.unique(passage[distinct], return_index=True, return_counts=True)
    for row in np.flatnonzero(number >= max(hub_limit(queries), EXAMPLES)):
        where = distinct[at[row]]
        text = f"for {number[row]} queries"
        total.add("hub", Example(int(record[where]), int(place[where]), text))
        total.counts["hub"] += int(number[row]) - 1
    if not layout.grouped and len(widths):
        usual = np.bincount(widths[:, 1].astype(np.int64)).argmax()
        for number, width in widths[widths[:, 1] < usual].tolist():
            total.add("short", Example(number, 0, f"{width} of {usual}"))
    lengths = sum((part.lengths for part in parts), Counter())
    longest = max(lengths, default=0)
    if longest >= 100 and lengths[longest] >= max(10, 0.01 * sum(lengths.values())):
        text = f"{lengths[longest]} texts have {longest} characters, and none more"
        total.add("cut", Example(0, 0, text))
    total.dropped = np.unique(np.concatenate(dropped), axis=0).astype(np.int64)


def _mixed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """64 bits for each pair of them."""
    return a * np.uint64(0x9E3779B97F4A7C15) ^ b


def clean(path: Path, found: Found, output: Path) -> dict[str, int]:
    """Write the records without the negatives of ``DROPPED``, and a list of those beside it.

    A record without any negative is left out, as one that cannot be read is; so is one of fixed
    columns that would lack one.

    Returns:
        records, negatives dropped, and records left out.
    """
    layout, places = mined.layout_of(path), defaultdict(set)
    for record, place, _ in found.dropped.tolist():
        places[record].add(place)
    counts = Counter(records=0, dropped=0, left_out=0)

    def kept() -> Iterator[dict[str, Any]]:
        number = 0
        for piece in mined.pieces(path):
            for _, record in mined.records(piece):
                number += 1
                if isinstance(_row(layout, record), str):
                    counts["left_out"] += 1
                    continue
                left = layout.without(record, places[number]) if number in places else record
                counts["dropped"] += len(places.get(number, ()))
                counts["left_out" if left is None else "records"] += 1
                if left is not None:
                    yield left

    mined.write(kept(), path, output)
    names = ({"record": r, "place": p, "check": DROPPED[c]} for r, p, c in found.dropped.tolist())
    mined.write(names, Path("list.jsonl"), output.with_name(f"{output.stem}.dropped.jsonl"))
    return dict(counts)


def judge(path: Path, model: str, number: int, *, device: str = "cpu") -> dict[str, Any]:
    """The share of likely answers among negatives drawn at random, one of a record, by a model.

    Raises:
        NvretError: a layout of ids, which has no texts to read; no such model.
    """
    import pandas as pd

    from nvret.analysis import judges, statistics

    layout = mined.layout_of(path)
    if layout.ids:
        raise NvretError(f"{path}: layout {layout.name} has ids and no texts for a model to read")
    found = (_row(layout, record) for piece in mined.pieces(path)
             for _, record in mined.records(piece))  # fmt: skip
    whole = (row for row in found if not isinstance(row, str) and row.negatives and row.positives)
    drawn = heapq.nsmallest(number, ((hashed(f"{i} {row.query}"), i, row)
                                     for i, row in enumerate(whole)))  # fmt: skip
    if not drawn:
        raise NvretError(f"{path}: no record has a positive and a negative")
    rows = [row for *_, row in drawn]
    chosen = [row.negatives[key % len(row.negatives)] for key, _, row in drawn]
    reader = judges.load(model, device=device)
    scores = reader.scores([row.query for row in rows], chosen, [row.positives[0] for row in rows])
    false = (scores.values >= reader.threshold).astype(int)
    counts = pd.DataFrame({"query_id": [row.query for row in rows], "mined": 1, "false": false})
    value, low, high = statistics.rate(counts.groupby("query_id", as_index=False).sum())
    return {"name": reader.name, "number": len(rows), "rate": value, "low": low, "high": high}


def rows(found: Found) -> list[dict[str, Any]]:
    """A row for each check: name, what it says, count, share, and whether it is a mistake."""
    return [
        {"check": check, "what": what, "count": found.counts[check], "share": found.share(check),
         "mistake": check in MISTAKES,
         "examples": [example._asdict() for example in found.examples[check]]}
        for check, what in CHECKS.items()
    ]  # fmt: skip


def report(found: Found, path: Path) -> str:
    """For a terminal."""
    lines = [f"{path}: {found.layout}, {found.records} records, {found.negatives} negatives"]
    for row in rows(found):
        if row["count"]:
            mark = "!" if row["mistake"] else " "
            lines.append(
                f"{mark} {row['check']:15} {row['count']:8} {row['share']:8.2%}  {row['what']}"
            )
            for one in row["examples"][:2]:
                lines.append(f"      record {one['record']}: {one['text'][:90]!r}")
    if found.excess:
        lines.append(f"  above their positive by {np.median(found.excess):.3f} in the median, "
                     f"at most {max(found.excess):.3f}")  # fmt: skip
    if found.judged:
        lines.append(
            "  {name}: {rate:.1%} [{low:.1%}, {high:.1%}] of {number} sampled negatives look like "
            "answers".format(**found.judged)
        )
    if len(lines) == 1:
        lines.append("  nothing found")
    return "\n".join(lines)


def page(found: Found, path: Path) -> str:
    """A page in HTML that needs no network."""
    cells = "".join(
        f"<tr{' class=mistake' if row['mistake'] and row['count'] else ''}><td>{row['check']}</td>"
        f"<td>{row['what']}</td><td>{row['count']:,}</td><td>{row['share']:.2%}</td><td>"
        + "<br>".join(
            f"record {one['record']}: {html.escape(one['text'][:160])}" for one in row["examples"]
        )
        + "</td></tr>"
        for row in rows(found)
    )
    style = (
        "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;"
        "vertical-align:top;border-bottom:1px solid #ccc}.mistake td{background:#fde8dc}"
    )
    title = html.escape(path.name)
    text = html.escape(report(found, path).splitlines()[0])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{style}</style><h1>{title}</h1><p>{text}</p><table><tr><th>check</th>"
        f"<th>what</th><th>number</th><th>share</th><th>where</th></tr>{cells}</table></html>\n"
    )
