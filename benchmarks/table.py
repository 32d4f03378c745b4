"""The benchmarks: what each compares, and the ratios that it should reach.

The command line, the results and the page read this table; ``benchmarks/NAME.py`` holds the sides
and their checks, as ``cases(smoke)``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What a ratio of two sides should be.

    Attributes:
        side, other: the ratio is ``side`` over ``other``, of times or of memory.
        most: the ratio that is allowed; a target "n times faster" is ``1 / n``.
        quantity: "seconds" or "mebibytes".
    """

    side: str
    other: str
    most: float
    quantity: str = "seconds"


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder.

    Attributes:
        name: of the module, and of its file of results.
        title, compares: for people; ``compares`` is a sentence.
        packages: whose versions are kept with the results.
        targets: key of a case -> what its ratios should be.
        timed: whether it says how long something takes here; others run on request alone.
    """

    name: str
    title: str
    compares: str
    packages: list[str]
    targets: dict[str, list[Target]]
    timed: bool = True


PEER = "sentence-transformers"
FEW_AT_ONCE = f"{PEER}, faiss_batch_size=256"
OTHER_SEARCHES = [Target("nvret", "faiss-cpu", 1 / 3), Target("nvret", "matmul + topk", 1.0)]

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "imports",
            "Import",
            "`import nvret` in a fresh interpreter, against a second of waiting.",
            ["nvret", "torch", PEER],
            {"import": [Target("nvret", "one second", 0.3)]},
        ),
        Benchmark(
            "search",
            "Exact search",
            "`nvret.search.top_k` and `nvret.scale.screen.top_k`, with and without a ceiling, "
            "against the bare matrix product of the same vectors, a product with `topk`, and "
            "faiss's flat index.",
            ["torch", "numpy", "faiss-cpu"],
            {
                "384": [Target("nvret", "product", 1.15)],
                "384, ceiling": [Target("nvret, ceiling", "product", 1.3)],
                "384, screen": [Target("nvret, screen", "product", 0.6)],
                "384, screen, ceiling": [Target("nvret, screen, ceiling", "product", 0.6)],
                "384, others": OTHER_SEARCHES,
                "768": [Target("nvret", "product", 1.08)],
                "768, ceiling": [Target("nvret, ceiling", "product", 1.15)],
                "768, screen": [Target("nvret, screen", "product", 0.6)],
                "768, screen, ceiling": [Target("nvret, screen, ceiling", "product", 0.6)],
                "768, others": OTHER_SEARCHES,
            },
        ),
        Benchmark(
            "bm25",
            "BM25",
            "Real passages and questions, against bm25s (whole batches) and rank_bm25 (one "
            "question at a time); indices and tokens are there before.",
            ["torch", "scipy", "numba", "bm25s", "rank-bm25"],
            {
                "batch": [
                    Target("nvret", "bm25s, numpy", 1.0),
                    Target("nvret", "bm25s, numba", 1.0),
                ],
                "one": [Target("nvret", "rank_bm25", 0.01)],
            },
        ),
        Benchmark(
            "encoding",
            "Encoding",
            "NQ's passages, against sentence-transformers' `encode` in float32; tokenization is a "
            "part of the time on both sides, what int8 prepares once for a corpus is not.",
            ["torch", "transformers", "tokenizers", "openvino", "nncf", PEER],
            {
                "minilm-l6": [Target("nvret", PEER, 1 / 1.3)],
                "potion-base-8m": [Target("nvret", PEER, 1.0)],
                "minilm-l6, rounded": [Target("nvret, int8", PEER, 1 / 4)],
            },
        ),
        Benchmark(
            "mining",
            "Mining after encoding",
            "Search, rule, exclusion of the positives and the table of negatives, against "
            "sentence-transformers' `mine_hard_negatives`, vectors being there on both sides; "
            "the table alone, against a microsecond a negative; and both as commands, from files "
            "to a file.",
            ["torch", "pyarrow", PEER, "datasets"],
            {
                "mine": [
                    Target("nvret", PEER, 1 / 3),
                    Target("nvret", PEER, 1 / 5, "mebibytes"),
                    Target("nvret", FEW_AT_ONCE, 1 / 3),
                    Target("nvret", FEW_AT_ONCE, 1.0, "mebibytes"),
                ],
                "whole": [
                    Target("nvret", PEER, 1 / 3),
                    Target("nvret", FEW_AT_ONCE, 1 / 3),
                    Target("nvret", PEER, 1.0, "mebibytes"),
                    Target("nvret", FEW_AT_ONCE, 1.0, "mebibytes"),
                ],
                "assembly": [Target("assembly", "1 µs a negative", 1.0)],
            },
        ),
        Benchmark(
            "training",
            "Training steps",
            "Steps with their tokenization, against sentence-transformers' trainer with the same "
            "model, texts, batches and loss.",
            ["torch", "transformers", "accelerate", PEER],
            {
                "paraphrase-minilm-l3": [Target("nvret", PEER, 0.65)],
                "potion-base-8m": [Target("nvret", PEER, 0.45)],
                "frozen": [Target("nvret, 2 layers frozen", "nvret", 0.6)],
                "kept": [Target("nvret, 2 layers frozen and kept", "nvret", 0.5)],
                "chunks": [],
            },
        ),
        Benchmark(
            "effects",
            "What a faster way costs",
            "No times: other negatives, and points of a student's NDCG@10 with their 95 % interval "
            "where passages are rounded, copies passed over or layers frozen; on request, with "
            "`python -m benchmarks effects`.",
            ["torch", "transformers", "openvino", "nncf"],
            {"rounded": [], "distinct": [], "frozen": []},
            timed=False,
        ),
        Benchmark(
            "gpu",
            "On a GPU",
            "Search of a million passages against a product with `topk`, encoding and training in "
            "bfloat16 against the bare product of as many operations; where there is a GPU, with "
            "`python -m benchmarks gpu`.",
            ["torch", "triton", "transformers", PEER],
            {
                "search": [
                    Target(side, "matmul + topk", 1.0)
                    for side in ("nvret", "nvret, screen", "nvret, screen, ceiling")
                ],
                "encoding": [Target("nvret", side, 1.0) for side in ("nvret, padded", PEER)],
                "training": [],
            },
            timed=False,
        ),
    )
}
