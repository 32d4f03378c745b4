"""The mining methods of the paper: each is a ceiling and a skip.

| method | ceiling for the pair (q, p) | skip |
|---|---|---|
| ``NaiveTopK()`` | none | 0 |
| ``TopKShifted(n)`` | none | n |
| ``TopKAbs(threshold)`` | threshold | 0 |
| ``TopKMarginPos(margin)`` | score(q, p) - margin | 0 |
| ``TopKPercPos(perc)`` | score(q, p) * perc | 0 |

Source: NV-Retriever, arXiv 2407.15831, section 3.1. A negative scores strictly below its ceiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nvret.utils.errors import NvretError

BY_NAME: dict[str, type[Method]] = {}  # what profiles, commands and provenance call a method


@dataclass(frozen=True)
class Method:
    """Which candidates may be negatives: those below ``ceiling``, after ``skip`` leading ranks.

    A subclass with a ``name`` is known by it to profiles, to ``nvret mine`` and to
    ``nvret inspect``; its fields are the method's parameters.
    """

    name: ClassVar[str]
    scales_with_positive: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            if cls.name in BY_NAME and BY_NAME[cls.name].__qualname__ != cls.__qualname__:
                raise NvretError(f"two mining methods are named {cls.name!r}")
            BY_NAME[cls.name] = cls

    @property
    def record(self) -> dict[str, Any]:
        """Name and parameters, as provenance keeps them; `build_method` reads it.

        >>> TopKPercPos(0.975).record
        {'name': 'perc-pos', 'parameters': {'perc': 0.975}}
        """
        return {"name": self.name, "parameters": vars(self).copy()}

    @property
    def skip(self) -> int:
        """Leading ranks of the candidates that are dropped."""
        return 0

    def ceiling(self, pos_scores: np.ndarray, *, safe: bool = False) -> np.ndarray:
        """Score that a negative must stay below.

        Args:
            pos_scores: (B,) teacher scores of the query and its positive.
            safe: keep the ceiling below a positive of negative score; see ``TopKPercPos``.
        Returns:
            (B,) ceilings in the unit of ``pos_scores``; +inf where there is none.
        """
        return np.full(len(pos_scores), np.inf, np.float32)


@dataclass(frozen=True)
class RandomNegatives(Method):
    """Passages drawn uniformly from the corpus: the control that needs no teacher."""

    name: ClassVar[str] = "random"

    def __str__(self) -> str:
        return "Random"


@dataclass(frozen=True)
class NaiveTopK(Method):
    """The first candidates as they come."""

    name: ClassVar[str] = "naive"

    def __str__(self) -> str:
        return "Naive Top-K"


@dataclass(frozen=True)
class TopKShifted(Method):
    """Drop the first candidates, whatever they score.

    Attributes:
        n: leading ranks that are dropped.
    """

    name: ClassVar[str] = "shifted"
    n: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise NvretError(f"TopKShifted: n is {self.n!r}, expected a whole number from 0 on")

    @property
    def skip(self) -> int:
        return self.n

    def __str__(self) -> str:
        return f"Top-K shifted by {self.n}"


@dataclass(frozen=True)
class TopKAbs(Method):
    """One ceiling for all queries.

    Attributes:
        threshold: a negative scores less.

    >>> TopKAbs(0.7).ceiling(np.array([0.9, 0.5]))
    array([0.7, 0.7], dtype=float32)
    """

    name: ClassVar[str] = "abs"
    threshold: float = 0.7

    def __post_init__(self) -> None:
        _finite("TopKAbs: threshold", self.threshold)

    def ceiling(self, pos_scores: np.ndarray, *, safe: bool = False) -> np.ndarray:
        return np.full(len(pos_scores), self.threshold, np.float32)

    def __str__(self) -> str:
        return f"TopK-Abs {self.threshold:g}"


@dataclass(frozen=True)
class TopKMarginPos(Method):
    """The positive's score less a margin.

    Attributes:
        margin: how far below the positive a negative must score.

    >>> TopKMarginPos(0.05).ceiling(np.array([0.8, 0.4]))
    array([0.75, 0.35], dtype=float32)
    """

    name: ClassVar[str] = "margin-pos"
    margin: float = 0.05

    def __post_init__(self) -> None:
        _finite("TopKMarginPos: margin", self.margin)

    def ceiling(self, pos_scores: np.ndarray, *, safe: bool = False) -> np.ndarray:
        return (np.asarray(pos_scores, np.float64) - self.margin).astype(np.float32)

    def __str__(self) -> str:
        return f"TopK-MarginPos {self.margin:g}"


@dataclass(frozen=True)
class TopKPercPos(Method):
    """A share of the positive's score.

    Attributes:
        perc: that share; a negative scores less.

    Where the positive scores below 0, ``score * perc`` lies above it, so that candidates better
    than the positive pass. That is what the paper's formula says; ``safe`` lowers the ceiling by
    the same share of the score's size instead, and changes nothing for scores above 0.

    >>> TopKPercPos(0.95).ceiling(np.array([0.8, -0.2]))
    array([ 0.76, -0.19], dtype=float32)
    >>> TopKPercPos(0.95).ceiling(np.array([0.8, -0.2]), safe=True)
    array([ 0.76, -0.21], dtype=float32)
    """

    name: ClassVar[str] = "perc-pos"
    perc: float = 0.95
    scales_with_positive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _finite("TopKPercPos: perc", self.perc)
        if not 0 <= self.perc <= 2:
            raise NvretError(f"TopKPercPos: perc is {self.perc!r}, expected a share such as 0.95")

    def ceiling(self, pos_scores: np.ndarray, *, safe: bool = False) -> np.ndarray:
        exact = np.asarray(pos_scores, np.float64)
        scaled = exact - np.abs(exact) * (1 - self.perc) if safe else exact * self.perc
        return scaled.astype(np.float32)

    def __str__(self) -> str:
        return f"TopK-PercPos {100 * self.perc:g}%"


def build_method(name: str, **parameters: float | None) -> Method:
    """A method by its short name.

    Args:
        name: a key of ``BY_NAME``.
        **parameters: of the method; those that are None are left at the paper's best setting.

    Raises:
        NvretError: no such method, a parameter that it does not have, or one out of its range.

    >>> build_method("perc-pos", perc=0.9, n=None)
    TopKPercPos(perc=0.9)
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    if name not in BY_NAME:
        raise NvretError(f"no mining method {name!r}, expected one of {', '.join(BY_NAME)}")
    try:
        return BY_NAME[name](**given)
    except TypeError:
        raise NvretError(f"method {name!r} does not take {', '.join(given)}") from None


def _finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise NvretError(f"{name} is {value!r}, expected a finite number")
