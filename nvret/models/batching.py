"""Token ids of many texts, batches that waste little on padding, and a thread for each batch."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor, nn

from nvret.utils import products
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK = 2048  # texts handed to the tokenizer at a time: enough for its threads, little to hold
WORDS_CHUNK = 4 * CHUNK  # whose words are looked up at a time: most of them are in each chunk
MOST_WORDS = 2**20  # whose tokens are kept: some 200 MB at most
OF_WHOLE = 5  # where one in so many of a list's texts is asked for, others will follow
MOST_WORKERS = 8  # Python's part of the work runs in one thread at a time
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ragged:
    """Token ids of N texts: a million are two arrays, and no Python list stands between.

    ``ids`` (T,) int32 are the rows one after another; row i is ``ids[offsets[i]:offsets[i + 1]]``.

    >>> Ragged.of([[5, 6], [7]]).padded([1, 0])
    (array([[7, 0],
           [5, 6]]), array([1, 2]))
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return cls.parted(np.concatenate([np.empty(0, np.int32), *rows]), lengths)

    @classmethod
    def parted(cls, ids: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Rows of these (N,) lengths, out of the ids of all."""
        return cls(ids.astype(np.int32, copy=False), np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def of_encodings(cls, encodings: Sequence[Encoding]) -> Ragged:
        """What a tokenizer returned."""
        rows = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        chained = itertools.chain.from_iterable(rows)
        return cls.parted(np.fromiter(chained, np.int32, int(lengths.sum())), lengths)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts."""
        lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
        return cls.parted(np.concatenate([np.empty(0, np.int32), *(p.ids for p in parts)]), lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64, tokens of each row."""
        return np.diff(self.offsets)

    def flat(self, rows: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The rows' ids one after another, and their lengths; int64."""
        rows = np.asarray(rows, np.int64)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return self.ids[np.repeat(starts, lengths) + within].astype(np.int64), lengths

    def padded(
        self, rows: np.ndarray | Sequence[int], fill: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, longest) int64 ids, padded on the right with ``fill``; (B,) int64 lengths."""
        flat, lengths = self.flat(rows)
        padded = np.full((len(lengths), int(lengths.max(initial=0))), fill, np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
        return padded, lengths


def check_texts(texts: Sequence[str]) -> None:
    """Raise `NvretError` naming the first row that is not a string.

    >>> check_texts(["a", float("nan")])
    Traceback (most recent call last):
    nvret.utils.errors.NvretError: texts[1] is nan (float), expected a string
    """
    if isinstance(texts, str | bytes):
        raise NvretError(f"texts is one {type(texts).__name__}, expected a list of strings")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise NvretError(f"texts[{row}] is {text!r} ({kind}), expected a string")


class WordTokens:
    """Token ids of texts from those of their words: a word is tokenized where it is new.

    For tokenizers of BERT's kind, whose blanks end every word: characters are cleaned and words
    are cut into pieces one by one, so that a text's tokens are those of its words one after
    another. A corpus repeats its words dozens of times.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int], after: list[int]) -> None:
        self.tokenizer = tokenizer
        self._around = before, after  # special tokens of every text
        self._codes: dict[str, int] = {}
        self._tokens = Ragged.of([])  # of each code
        self._lock = threading.Lock()

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordTokens | None:
        """Those of a tokenizer of this kind; None of another."""
        parts = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model
        kinds = normalizers.BertNormalizer, pre_tokenizers.BertPreTokenizer, models.WordPiece
        added = tokenizer.get_added_tokens_decoder().values()
        split = any(token.normalized or " " in token.content for token in added)
        if split or not all(map(isinstance, parts, kinds)):
            return None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        one = tokenizer.encode("a")
        own = [place for place, special in enumerate(one.special_tokens_mask) if not special]
        return cls(tokenizer, one.ids[: own[0]], one.ids[own[-1] + 1 :]) if own else None

    def tokenize(self, texts: Sequence[str], max_length: int | None, special: bool) -> Ragged:
        """The tokens that the tokenizer itself gives the texts; the arguments of `tokenize`."""
        split = pc.split_pattern(pa.array(texts, pa.large_string()), " ")
        words = split.values.dictionary_encode()
        codes, tokens = self._known(words.dictionary.to_pylist())
        ids, lengths = tokens.flat(codes[words.indices.to_numpy()])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        whole = Ragged(ids.astype(np.int32), ends[split.offsets.to_numpy()])
        before, after = self._around if special else ([], [])
        most = sys.maxsize if max_length is None else max_length - len(before) - len(after)
        return _closed(_cut(whole, max(most, 0)), before, after)

    def _known(self, words: list[str]) -> tuple[np.ndarray, Ragged]:
        """The words' codes, and the tokens of all codes."""
        with self._lock:
            if len(self._codes) + len(words) > MOST_WORDS:
                self._codes, self._tokens = {}, Ragged.of([])
            if new := [word for word in words if word not in self._codes]:
                self._tokens = Ragged.joined([self._tokens, self._of_words(new)])
                self._codes.update(zip(new, itertools.count(len(self._codes))))
            return np.fromiter(map(self._codes.__getitem__, words), np.int64), self._tokens

    def _of_words(self, words: list[str]) -> Ragged:
        """Their tokens, by the tokenizer: an encoding costs more than a word, and holds many."""
        parts = [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
        found = self.tokenizer.encode_batch(parts, is_pretokenized=True, add_special_tokens=False)
        ids = [np.array(encoding.ids, np.int32) for encoding in found]
        lengths = [
            np.bincount(np.array(encoding.word_ids, np.int64), minlength=len(part))
            for encoding, part in zip(found, parts, strict=True)
        ]
        return Ragged.parted(np.concatenate(ids), np.concatenate(lengths))


def _cut(tokens: Ragged, most: int) -> Ragged:
    """Each row's first tokens, at most ``most``."""
    lengths = tokens.lengths
    if lengths.max(initial=0) <= most:
        return tokens
    place = np.arange(len(tokens.ids)) - np.repeat(tokens.offsets[:-1], lengths)
    return Ragged.parted(tokens.ids[place < most], np.minimum(lengths, most))


def _closed(tokens: Ragged, before: list[int], after: list[int]) -> Ragged:
    """Each row between these tokens."""
    if not before and not after:
        return tokens
    around = len(before) + len(after)
    offsets = tokens.offsets + around * np.arange(len(tokens.offsets))
    ids, own = np.empty(offsets[-1], np.int32), np.ones(offsets[-1], bool)
    first = offsets[:-1, None] + np.arange(len(before))
    last = offsets[1:, None] - np.arange(len(after), 0, -1)
    ids[first], own[first] = before, False
    ids[last], own[last] = after, False
    ids[own] = tokens.ids
    return Ragged(ids, offsets)


_remembered: dict[Any, dict[str, np.ndarray]] | None = None


@contextlib.contextmanager
def remember_tokens() -> Iterator[None]:
    """Within it, a text is tokenized once for each tokenizer, prompt and length.

    For many models on the same texts, whose tokens would take a small student most of its time.
    All tokens stay in memory until the end of the block.
    """
    global _remembered
    before, _remembered = _remembered, {} if _remembered is None else _remembered
    try:
        yield
    finally:
        _remembered = before


def tokenize(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    prompt: str = "",
    max_length: int | None = None,
    special_tokens: bool = True,
    rows: np.ndarray | None = None,
    key: str | None = None,
    words: WordTokens | None = None,
    progress: bool = True,
) -> Ragged:
    """Token ids of the texts, each after ``prompt``, at most ``max_length`` tokens.

    ``rows`` are the texts' places in a longer list, which messages name. ``key`` stands for the
    content of the tokenizer; with it, `remember_tokens` has an effect. With ``words`` only new
    words are tokenized, to the same tokens. `NvretError` where a row is not a string, or leaves no
    token.
    """
    check_texts(texts)
    tokenizer.no_padding()
    if max_length is None or words is not None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    known: dict[str, np.ndarray] | None = None
    if _remembered is not None and key is not None:
        known = _remembered.setdefault((key, prompt, max_length, special_tokens), {})
    missing = [text for text in dict.fromkeys(texts) if known is None or text not in known]
    parts = []
    size = CHUNK if words is None else WORDS_CHUNK
    bar = {"desc": "tokenize", "unit": "text", "unit_scale": size, "leave": False}
    for start in progress_bar(range(0, len(missing), size), show=progress, **bar):
        chunk = [prompt + text for text in missing[start : start + size]]
        if words is not None:
            parts.append(words.tokenize(chunk, max_length, special_tokens))
        else:
            found = tokenizer.encode_batch_fast(chunk, add_special_tokens=special_tokens)
            parts.append(Ragged.of_encodings(found))
    tokens = Ragged.joined(parts)
    if known is not None:
        ends = itertools.pairwise(tokens.offsets.tolist())
        known |= {text: tokens.ids[i:j] for text, (i, j) in zip(missing, ends, strict=True)}
        tokens = Ragged.of([known[text] for text in texts])
    elif len(missing) < len(texts):
        place = {text: row for row, text in enumerate(missing)}
        tokens = Ragged.parted(*tokens.flat([place[text] for text in texts]))
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        row = int(empty[0])
        place = row if rows is None else rows[row]
        raise NvretError(f"texts[{place}] = {texts[row][:60]!r} has no token the model knows")
    return tokens


class Part(NamedTuple):
    """Some of a list's texts: the rows at which they stand in it, and in ``texts``."""

    texts: Sequence[str]
    rows: np.ndarray
    places: np.ndarray


def parts_of(wholes: Sequence[Sequence[str]], texts: Sequence[str]) -> list[Part]:
    """The texts by the list that each is read with, and one part for those without.

    A list counts where one in `OF_WHOLE` of its texts is asked for. A text of several lists goes
    with the first. Nothing where no list counts, or the texts are one of them.

    >>> [part.texts for part in parts_of([["a", "b"], [*"cdefgh"]], ["x", "a", "c"])]
    [['a', 'b'], ['x', 'c']]
    """
    parts, left = [], np.arange(len(texts))
    large = [whole for whole in wholes if 0 < len(whole) <= OF_WHOLE * len(texts)]
    alike = (whole for whole in large if len(whole) == len(texts))
    if not large or any(list(whole) == list(texts) for whole in alike):
        return []
    asked = pa.array(texts, pa.large_string())
    for whole in large:
        found = pc.index_in(asked.take(pa.array(left)), pa.array(whole, pa.large_string()))
        inside = found.is_valid().to_numpy(zero_copy_only=False)
        places = found.drop_null().to_numpy()
        if OF_WHOLE * len(np.unique(places)) >= len(whole):
            parts.append(Part(whole, left[inside], places))
            left = left[~inside]
    if parts and len(left):
        parts.append(Part([texts[row] for row in left], left, np.arange(len(left))))
    return parts


def gather(parts: Sequence[Part], vectors: Sequence[np.ndarray], out: np.ndarray) -> None:
    """Fill (N, D) ``out`` from the vectors of each part's list."""
    for part, own in zip(parts, vectors, strict=True):
        for start in range(0, len(part.rows), CHUNK):  # ``out`` may be larger than the memory
            block = slice(start, start + CHUNK)
            out[part.rows[block]] = own[part.places[block]]


def token_budget_batches(
    lengths: np.ndarray, budget: int, *, slack: int = 0
) -> Iterator[np.ndarray]:
    """Rows in batches of near-equal length: rows × longest stays within ``budget`` tokens.

    A batch ends where its padding would exceed ``slack`` tokens, which is what a further batch
    costs. The longest come first, so what does not fit into memory fails at once. A single row
    longer than the budget is a batch of its own. ``lengths`` (N,) are the rows' tokens.

    >>> [batch.tolist() for batch in token_budget_batches(np.array([3, 9, 4, 1]), 9, slack=1)]
    [[1], [2, 0], [3]]
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    total = np.concatenate([[0], np.cumsum(ordered)])
    start = 0
    while start < len(order):
        longest = max(1, int(ordered[start]))
        ends = np.arange(start + 1, min(start + max(1, budget // longest), len(order)) + 1)
        padding = (ends - start) * longest - (total[ends] - total[start])
        end = start + int(np.searchsorted(padding, slack, side="right"))  # it grows with the size
        yield order[start:end]
        start = end


def in_threads(
    work: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[tuple[Task, Result]]:
    """Tasks and their results, in the order of the tasks: one task a thread.

    An operator that is split over threads waits for the slowest of them, hundreds of times a batch;
    threads that each have a batch of their own wait for each other once, at the end. torch's
    threads are shared out among at most ``MOST_WORKERS`` workers until the end. Few tasks are under
    way at a time, so that neither tasks nor results pile up. A thread has its own grad and autocast
    modes: ``work`` must set them.

    >>> list(in_threads(lambda n: n * n, range(3)))
    [(0, 0), (1, 1), (2, 4)]
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST_WORKERS)
    if workers == 1:
        for task in tasks:
            yield task, work(task)
        return
    pending: deque[tuple[Task, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, "nvret", torch.set_num_threads, (threads // workers,))
    try:
        for task in tasks:
            pending.append((task, pool.submit(work, task)))
            if len(pending) > 2 * workers:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class InBatches(nn.Module):
    """What reads several batches at once, as training does; `nvret.encode.Encoder` is one."""

    def word_vectors(self, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """(B, L, H) word vectors of each batch, in one look-up. Not for a static model.

        The gradient of the word table is dense, so each look-up would clear and add up a table of
        tens of megabytes of its own.
        """
        shapes = [batch["input_ids"].shape for batch in batches]
        flat = torch.cat([batch["input_ids"].reshape(-1) for batch in batches])
        parts = self.backbone.get_input_embeddings()(flat).split([s.numel() for s in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def forward_all(
        self,
        batches: Sequence[dict[str, Tensor]],
        prompt_tokens: Sequence[int],
        words: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """`forward` of several batches, the arguments of each, for training.

        ``words`` are the batches' `word_vectors`, if looked up already.
        """
        if self.layout.static:
            starts = np.cumsum([0, *(len(batch["input_ids"]) for batch in batches)])
            vectors = self(
                torch.cat([batch["input_ids"] for batch in batches]),
                offsets=torch.cat(
                    [b["offsets"] + int(start) for b, start in zip(batches, starts, strict=False)]
                ),
            )
            return list(vectors.split([len(batch["offsets"]) for batch in batches]))
        with products.laid_out(self, sum(batch["input_ids"].numel() for batch in batches)):
            return [
                self(**batch, inputs_embeds=part, prompt_tokens=skip)
                for batch, part, skip in zip(
                    batches, words or self.word_vectors(batches), prompt_tokens, strict=True
                )
            ]
