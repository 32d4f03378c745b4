"""A lint for anybody's mined negatives: what a trainer would take without a word.

Each record is looked at once, by several processes; of a negative 48 bytes stay, so that a file may
be larger than the memory. Texts are compared after `near_duplicates.normalise`.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
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

from nvret.analysis import looks
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
    "not-finite": "a score that is missing, or no finite number",
    "unknown-id": "an id that the corpus does not have",
    "query-id": "an id of a query that an earlier record has",
    "corpus": "a corpus that the file does not name, or that is not where it says",
    "positive-score": "no finite score of a positive, where negatives have scores",
    "above-positive": "scores at or above the positive",
    "short": "fewer negatives than are needed, or than most records have",
    "hub": "the same negative for many queries",
    "script": "another script than the positive's",
    "length": "fewer than three words, or twenty times as long or short as the positive",
    "cut": "texts that all end at one length, as if cut",
}
MISTAKES = list(CHECKS)[:12]  # of which no good comes; the others are reasons to look
DROPPED = MISTAKES[1:9]  # by `clean`
# Counted in records, not in negatives
OF_RECORDS = ("unreadable", "query-id", "corpus", "positive-score", "short", "cut")
EXAMPLES = 5
NEAR, PROBE = 0.8, 5  # similarity; words of a run that a near copy shares
# What stays of a negative (texts as hashes, checks as bits), of a label, of a record and of its id
ROW, LABEL, WIDTH, KEY = (
    np.dtype([(name, np.uint64) for name in names.split()])
    for names in (
        "query text pair record place checks", "query text", "record number distinct", "key record"
    )
)  # fmt: skip


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
        dropped: record, place and checks (a bit for each of ``DROPPED``) of what `clean` drops.
        judged: of `judge`.
    """

    layout: str = ""
    records: int = 0
    negatives: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    excess: list[float] = field(default_factory=list)
    dropped: np.ndarray = field(default_factory=lambda: np.empty(0, ROW))
    judged: dict[str, Any] | None = None

    def add(self, check: str, example: Example) -> None:
        self.counts[check] += 1
        if len(self.examples[check]) < EXAMPLES:
            text = example.text[:200].encode("utf-8", "replace").decode()
            self.examples[check].append(example._replace(text=text))

    @property
    def mistakes(self) -> float:
        """The share of the negatives, or records, that the worst of ``MISTAKES`` concerns."""
        return max((self.share(check) for check in MISTAKES), default=0.0)

    def share(self, check: str) -> float:
        of = self.records if check in OF_RECORDS else self.negatives
        return self.counts[check] / of if of else 0.0


@dataclass
class _Part(Found):
    """What a process finds in a piece; flat arrays, since of ``ROW`` there may be millions."""

    rows: array = field(default_factory=lambda: array("Q"))
    labels: array = field(default_factory=lambda: array("Q"))
    widths: array = field(default_factory=lambda: array("Q"))
    keys: array = field(default_factory=lambda: array("Q"))
    lengths: Counter = field(default_factory=Counter)  # characters of a text


def lint(
    path: Path,
    *,
    corpus: Iterable[str] | None = None,
    needed: int | None = None,
    progress: bool = True,
) -> Found:
    """Look at every record of a file of mined negatives.

    Args:
        corpus: its ids, for a layout of ids.
        needed: distinct negatives of a record; None: as many as most records have.
    Returns:
        what was found; never an error for what a record holds.
    Raises:
        NvretError: the file cannot be opened, or has the columns of no known layout.
    """
    layout, todo = mined.layout_of(path), mined.pieces(path)
    ids = frozenset(corpus) if corpus is not None and layout.ids else None
    folders = mined.corpora(path)
    look = partial(_piece, ids=ids, known=None if folders is None else _names(folders))
    workers = min(len(todo), os.cpu_count() or 1)
    with contextlib.ExitStack() as stack:
        run = map  # within this process, where there is little to do
        if workers > 1:
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            run = stack.enter_context(pool).map
        options = {"total": len(todo), "desc": path.name, "unit": "piece", "show": progress}
        found = _together(list(progress_bar(run(look, todo), **options)), layout, needed)
    for folder in folders or ():
        if not os.path.exists(folder):  # False for a name that no file can have, too
            found.add("corpus", Example(0, 0, f"{folder} is not there"))
    return found


def _names(folders: Iterable[Path]) -> frozenset[str]:
    """What records may call these corpora: what a corpus calls itself, or its folder's name."""
    names = set()
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            facts = json.loads((folder / "merlin_metadata.json").read_text(encoding="utf-8"))
            names.add(str(facts.get("corpus_id", folder.name)))
            continue
        names.add(folder.name)
    return frozenset(names)


def _piece(
    piece: mined.Piece, ids: frozenset[str] | None, known: frozenset[str] | None = None
) -> _Part:
    layout, part = mined.layout_of(piece.path), _Part()
    for number, record in enumerate(mined.records(piece), 1):
        part.records += 1
        row = layout.read(record)
        if isinstance(row, str):
            part.add("unreadable", Example(number, 0, row))
        else:
            _look(part, number, row, layout, ids)
            if row.key is not None:
                part.keys.extend((hashed(row.key), number))
            if known is not None and row.corpus is not None and row.corpus not in known:
                part.add("corpus", Example(number, 0, row.corpus))
    return part


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
    part.negatives += len(row.negatives)
    for text in positives:
        part.labels.extend((own, hashed(text)))
    if not row.negatives and layout.grouped:
        return
    pair = hashed(f"{own} {positives[0]}") if layout.grouped and positives else own
    seen, limit = set(), _smallest(row.positive_scores)
    scored = len(row.negative_scores) == len(row.negatives) > 0
    own_scores = row.positive_scores if len(row.positive_scores) == len(positives) else [None]
    if scored and positives and not all(map(_is_finite, own_scores)):
        part.add("positive-score", Example(number, 0, row.positives[0] or ""))
    longest = max(map(len, positives), default=0)
    for place, raw in enumerate(text or "" for text in row.negatives):
        text, score = plain(raw), row.negative_scores[place] if scored else 0.0
        finite = _is_finite(score)
        worded = bool(text) and not layout.ids
        reasons = {
            "empty": not text,
            "positive": text and text in positives,
            "near-positive": worded and text != query and text not in positives
            and any(near(text, one) for one in positives),
            "query": text and text == query and text not in positives,
            "repeated": text and text in seen,
            "not-finite": not finite,
            "unknown-id": text and ids is not None and text not in ids,
            "above-positive": finite and scored and limit is not None and score >= limit,
            "script": worded and not raw.isascii() and row.positives
            and script(raw) != script(row.positives[0] or ""),
            "length": worded and (
                text.count(" ") < 2 or (longest and not 1 / 20 <= len(text) / longest <= 20)
            ),
        }  # fmt: skip
        seen.add(text)
        if reasons["above-positive"]:
            part.excess.append(score - limit)
        found = [check for check, holds in reasons.items() if holds]
        for check in found:
            part.add(check, Example(number, place, raw))
        bits = sum(1 << DROPPED.index(check) for check in found if check in DROPPED)
        known = not text or reasons["positive"] or reasons["repeated"]
        part.rows.extend((0 if known else own, hashed(text), pair, number, place, bits))
        if not layout.ids:
            part.lengths[len(raw)] += 1
    part.widths.extend((number, len(row.negatives), len(seen - {""})))


def _is_finite(score: Any) -> bool:
    return mined.is_number(score) and math.isfinite(score)


def _smallest(scores: Iterable[Any]) -> float | None:
    """Of the positives' scores; None where one is no finite number."""
    numbers = [score for score in scores if mined.is_number(score)]
    return min(numbers) if numbers and all(map(_is_finite, numbers)) else None


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


def _together(parts: list[_Part], layout: mined.Layout, needed: int | None = None) -> Found:
    """What the pieces hold, whose records count on, and what only all records together show."""
    total, joined = Found(layout.name), defaultdict(list)
    lengths: Counter[int] = Counter()
    for part in parts:
        kinds = {"rows": ROW, "labels": LABEL, "widths": WIDTH, "keys": KEY}
        for name, kind in kinds.items():
            values = np.frombuffer(getattr(part, name), kind).copy()
            if "record" in kind.names:
                values["record"] += np.uint64(total.records)
            joined[name].append(values)
        for check, examples in part.examples.items():
            moved = [one._replace(record=one.record + total.records) for one in examples]
            total.examples[check] = (total.examples[check] + moved)[:EXAMPLES]
        total.records += part.records
        total.negatives += part.negatives
        total.counts += part.counts
        total.excess += part.excess
        lengths += part.lengths
    rows, labels, widths, keyed = (np.concatenate(arrays) for arrays in joined.values())

    def add(check: str, chosen: np.ndarray) -> None:
        for row in rows[chosen]:
            total.add(check, Example(int(row["record"]), int(row["place"]), ""))
        rows["checks"][chosen] |= np.uint64(1 << DROPPED.index(check))

    known = rows["query"] == 0
    keys = _mixed(rows["query"], rows["text"])
    other = np.isin(keys, _mixed(labels["query"], labels["text"])) & ~known
    add("other-positive", other)
    if layout.grouped:  # a row is a text, so that a pair's are in several
        again = np.ones(len(rows), bool)
        again[np.unique(_mixed(rows["pair"], rows["text"]), return_index=True)[1]] = False
        add("repeated", again & ~known & ~other)
    least = max(hub_limit(len(np.unique(labels["query"]))), EXAMPLES)
    own = np.flatnonzero(~known)  # what is a mistake already counts for no query
    distinct = rows[own[np.unique(keys[own], return_index=True)[1]]]
    _, first, numbers = np.unique(distinct["text"], return_index=True, return_counts=True)
    for at in np.flatnonzero(numbers >= least):
        row, number = distinct[first[at]], int(numbers[at])
        example = Example(int(row["record"]), int(row["place"]), f"for {number} queries")
        total.add("hub", example)
        total.counts["hub"] += number - 1
    if not layout.grouped and len(widths):
        number = widths["number" if needed is None else "distinct"]
        usual = needed or np.bincount(number.astype(np.int64)).argmax()
        few = number < usual
        for record, width in zip(widths["record"][few].tolist(), number[few].tolist(), strict=True):
            total.add("short", Example(record, 0, f"{width} of {usual}"))
    again = np.ones(len(keyed), bool)
    again[np.unique(keyed["key"], return_index=True)[1]] = False
    for record in keyed["record"][again].tolist():
        total.add("query-id", Example(record, 0, ""))
    longest = max(lengths, default=0)
    if longest >= 100 and lengths[longest] >= max(10, 0.01 * sum(lengths.values())):
        text = f"{lengths[longest]} texts have {longest} characters, and none more"
        total.add("cut", Example(0, 0, text))
    total.dropped = rows[rows["checks"] > 0][["record", "place", "checks"]]
    return total


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
    counts = Counter(records=0, dropped=len(found.dropped), left_out=0)

    def kept() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(mined.read(path), 1):
            left = None
            if not isinstance(layout.read(record), str):
                left = layout.without(record, places[number]) if number in places else record
            counts["left_out" if left is None else "records"] += 1
            if left is not None:
                yield left

    mined.write(kept(), path, output)
    names = (
        {"record": record, "place": place, "check": check}
        for record, place, bits in found.dropped.tolist()
        for number, check in enumerate(DROPPED)
        if bits >> number & 1
    )
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
    found = (layout.read(record) for record in mined.read(path))
    whole = (row for row in found if not isinstance(row, str) and row.negatives and row.positives)
    keyed = ((hashed(f"{i} {row.query}"), i, row) for i, row in enumerate(whole))
    drawn = heapq.nsmallest(number, keyed)
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
            lines.append("{} {check:15} {count:8} {share:8.2%}  {what}".format(mark, **row))
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
    summary = report(found, path).splitlines()[0]
    return looks.page("lint.html", path=path, summary=summary, rows=rows(found))
