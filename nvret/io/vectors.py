"""A teacher whose vectors somebody has computed already: two ``.npy`` files."""

from __future__ import annotations

import tokenize
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvret.data import RetrievalDataset
from nvret.teachers import DenseScorer, dense_scorer
from nvret.utils.errors import NvretError, check_file

STEP = 1 << 14  # rows that are checked at a time
UNIT = 1e-5  # a norm is 1 to so much where a float32 vector was normalised


@dataclass(frozen=True)
class VectorTeacher:
    """Scores are dot products of given vectors: cosines, unless ``normalise`` is off.

    Args:
        queries: a .npy file of (Q, D) floats, in the order of the data set's queries.
        corpus: a .npy file of (N, D) floats, in the order of its corpus.
        normalise: bring all vectors to length 1. A file whose vectors have it is not copied, but
            stays a memory map.
        device, index: as of `nvret.teachers.DenseTeacher`.
    """

    queries: Path
    corpus: Path
    normalise: bool = True
    device: str = "cpu"
    index: Any = None
    name: str = "vectors"

    def prepare(self, dataset: RetrievalDataset, *, progress: bool = True) -> DenseScorer:
        """Read both files and check them against the set; `NvretError` names file and row."""
        queries = read(self.queries, len(dataset.queries), "queries", normalise=self.normalise)
        corpus = read(self.corpus, len(dataset.corpus), "passages", normalise=self.normalise)
        if queries.shape[1] != corpus.shape[1]:
            raise NvretError(
                f"{self.queries} has vectors of {queries.shape[1]} numbers and {self.corpus} of "
                f"{corpus.shape[1]}, expected as many"
            )
        key = ["vectors", Path(self.queries), Path(self.corpus), self.normalise]
        return dense_scorer(self.name, key, queries, corpus, self.device, self.index)


def read(path: Path, count: int, what: str, *, normalise: bool = True) -> np.ndarray:
    """(count, D) float32 vectors of a .npy file, checked; ``what`` they stand for, messages say."""
    array = _open(path)
    if array.ndim != 2 or not array.shape[1]:
        raise NvretError(f"{path} has the shape {array.shape}, expected a row for each vector")
    if not np.issubdtype(array.dtype, np.floating):
        raise NvretError(f"{path} holds {array.dtype}, expected floats")
    if len(array) != count:
        raise NvretError(f"{path} has {len(array)} rows, expected {count}: one for each of {what}")
    lengths = np.empty(count)
    steps = [slice(start, start + STEP) for start in range(0, count, STEP)]
    for step in steps:
        with np.errstate(over="ignore"):  # the largest of a float64 are infinite in float32
            part = np.asarray(array[step], np.float32)
        lengths[step] = np.linalg.norm(part.astype(np.float64), axis=1)
        for wrong, fault in (
            (~np.isfinite(part).all(1), "is not finite"),
            ((lengths[step] == 0) & normalise, "is zero, which no length can be brought to 1"),
        ):
            if wrong.any():
                raise NvretError(f"{path}: row {step.start + int(wrong.argmax()) + 1} {fault}")
    if not normalise:
        lengths[:] = 1
    if array.dtype == np.float32 and (abs(lengths - 1) <= UNIT).all():
        return array
    out = np.empty(array.shape, np.float32)
    for step in steps:
        out[step] = array[step]
        out[step] /= lengths[step, None]
    return out


def _open(path: Path) -> np.ndarray:
    check_file(Path(path), "an array of NumPy (.npy)")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, tokenize.TokenError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else "empty"
        raise NvretError(f"{path}: no array of NumPy (.npy): {reason}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise NvretError(f"{path}: an archive of arrays, expected one array (.npy)")
    return array
