"""The work of encoding, search and training, counted in one place: tokens, operations, bytes.

``nvret cost`` gives each term of the work its price on this machine (`nvret.cost.estimate`);
``nvret plan`` divides its floating-point operations by a device's rate (`nvret.study.plan`).

The terms of a search of N passages of D dimensions for Q queries: the call; each visit of a query
to a tile of scores, where its k best are picked; each score; each multiply-add; each value of the
corpus, which is checked once. Those of encoding: each text, each token, and each token times the
length of its text (attention).

Operations are 2 for each parameter and token of a forward pass, 3 times as many with a backward
pass, and 2 for each dimension of a compared pair of vectors.

Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (operations of a pass).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nvret import search
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.training.config import TrainingConfig

VISIT = "visit of a query to a tile"
SEARCH_TERMS = ("call", VISIT, "score", "multiply-add", "value of the corpus")
ENCODING_TERMS = ("text", "token", "token times length")
BUFFER_MB = 256  # of a search's scores, as in mining
LARGEST = 1e18  # what is counted still has a product in floats
FLOAT, RESULT = 4, 12  # bytes of a float32; of a result, int64 id and float32 score


class Positive:
    """A base of dataclasses whose numbers are above 0 or None; `NvretError` names another."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < LARGEST:
                raise NvretError(
                    f"{name} is {value}, expected a number above 0 and below {LARGEST:.0e}"
                )


class Texts(NamedTuple):
    """Means over texts: tokens, after a text is cut; their squares; bytes while it is encoded."""

    tokens: float
    squares: float
    memory: float

    def scaled(self, tokens: float | None) -> Texts:
        """Texts of another mean length, spread as these are; None: these.

        >>> Texts(10, 120, 500).scaled(20)
        Texts(tokens=20, squares=480.0, memory=1000.0)
        """
        times = 1 if tokens is None else tokens / self.tokens
        return Texts(tokens or self.tokens, self.squares * times**2, self.memory * times)

    def terms(self, number: float) -> np.ndarray:
        """(3,) how much the encoding of so many texts holds of each of ``ENCODING_TERMS``."""
        return number * np.array([1, self.tokens, self.squares], float)


class Search(NamedTuple):
    """One exact search: Q, N, D."""

    queries: int
    passages: int
    dimension: int

    @property
    def products(self) -> int:
        """Multiply-adds."""
        return self.queries * self.passages * self.dimension

    def terms(self) -> np.ndarray:
        """(5,) how much of each of ``SEARCH_TERMS`` it holds.

        >>> Search(1000, 300_000, 2).terms().astype(int).tolist()  # a tile holds 262,144 passages
        [1, 2000, 300000000, 600000000, 600000]
        """
        columns = search.shape(self.queries, self.passages, BUFFER_MB)[1]
        visits = self.queries * -(-self.passages // columns)
        scores = self.queries * self.passages
        return np.array([1, visits, scores, self.products, self.passages * self.dimension], float)

    def memory(self, k: int) -> int:
        """Bytes beside the vectors: a tile of scores, its best, the results.

        >>> Search(1024, 1 << 20, 384).memory(64) / 2**20 < 256 + 12
        True
        """
        rows, columns = search.shape(self.queries, self.passages, BUFFER_MB)
        scores = rows * columns * FLOAT
        read_again = rows * min(k * search.BLOCK, columns) * FLOAT
        return scores + scores // search.BLOCK + read_again + self.queries * k * RESULT


def forward_operations(parameters: int, tokens: float) -> float:
    """Operations of a forward pass."""
    return 2 * parameters * tokens


def training_operations(parameters: int, tokens: float, training: TrainingConfig) -> float:
    """Operations of forward and backward passes.

    A backward pass is as much again for the activations' gradients and, without LoRA, for the
    weights'; checkpointing repeats the forward pass.
    """
    passes = (2 if training.lora_rank else 3) + training.gradient_checkpointing
    return forward_operations(parameters, tokens) * passes


def vector_bytes(number: int, dimension: int) -> int:
    """Memory or disk of float32 vectors."""
    return number * dimension * FLOAT
