"""Token ids of many texts, batches that waste little on padding, and a thread for each batch."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 2048  # texts handed to the tokenizer at a time: enough for its threads, little to hold
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
        ids = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32, copy=False)
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]))

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
    progress: bool = True,
) -> Ragged:
    """Token ids of the texts, each after ``prompt``, at most ``max_length`` tokens.

    ``rows`` are the texts' places in a longer list, which messages name. ``key`` stands for the
    content of the tokenizer; with it, `remember_tokens` has an effect. `NvretError` where a row is
    not a string, or leaves no token.
    """
    check_texts(texts)
    tokenizer.no_padding()
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length)
    known: dict[str, np.ndarray] = {}
    if _remembered is not None and key is not None:
        known = _remembered.setdefault((key, prompt, max_length, special_tokens), known)
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    bar = {"desc": "tokenize", "unit": "text", "unit_scale": CHUNK, "leave": False}
    for start in progress_bar(range(0, len(missing), CHUNK), show=progress, **bar):
        chunk = missing[start : start + CHUNK]
        encoded = tokenizer.encode_batch_fast(
            [prompt + text for text in chunk], add_special_tokens=special_tokens
        )
        for text, encoding in zip(chunk, encoded, strict=True):
            known[text] = np.array(encoding.ids, np.int32)
    tokens = Ragged.of([known[text] for text in texts])
    if (empty := np.flatnonzero(tokens.lengths == 0)).size:
        row = int(empty[0])
        place = row if rows is None else rows[row]
        raise NvretError(f"texts[{place}] = {texts[row][:60]!r} has no token the model knows")
    return tokens


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
        return [
            self(**batch, inputs_embeds=part, prompt_tokens=skip)
            for batch, part, skip in zip(
                batches, words or self.word_vectors(batches), prompt_tokens, strict=True
            )
        ]
