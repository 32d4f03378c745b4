"""The options of ``nvret mine`` on data of one's own, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.cli import own_data
from nvret.cli.own_data import spelled
from nvret.utils.errors import NvretError

ENSEMBLES = ("cross-sample", "intra-sample", "intra-sample-no-dedup")
SAMPLINGS = ("top-k", "sampled", "top-1+sampled")
FORMATS = (
    "parquet", "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron",
)  # fmt: skip


def add(mine: argparse.ArgumentParser) -> None:
    """The options, in the groups that ``nvret mine --help`` shows."""
    mine.add_argument("params", type=Path, nargs="?", help="a profile; takes --only and no other")
    mine.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")

    own_data.add(mine)
    teacher = mine.add_argument_group("teacher", "what scores the passages of each query")
    teacher.add_argument(
        "--teacher", metavar="NAME", action="append",
        help="bm25, vectors, a model's name, or a model's folder; several times with --ensemble",
    )  # fmt: skip
    teacher.add_argument("--ensemble", choices=ENSEMBLES, help="how several teachers are joined")
    teacher.add_argument(
        "--query-vectors", type=Path, metavar="FILE",
        help="of --teacher vectors: a .npy, a row for each query in the order of its file",
    )  # fmt: skip
    teacher.add_argument("--corpus-vectors", type=Path, metavar="FILE", help="likewise, passages")
    teacher.add_argument(
        "--no-normalise", action="store_true", help="do not bring given vectors to length 1"
    )
    teacher.add_argument("--max-query-length", type=int, metavar="N", help="tokens read (64)")
    teacher.add_argument("--max-passage-length", type=int, metavar="N", help="tokens read (128)")
    teacher.add_argument("--device", default="cpu", help="of models and search: cpu or cuda (cpu)")
    teacher.add_argument("--index", help="search approximately: faiss's name of an index (HNSW32)")
    teacher.add_argument("--probes", type=int, default=64, help="lists or candidates seen (64)")

    method = mine.add_argument_group("method", "which candidates may be negatives")
    method.add_argument("--method", help="naive, shifted, abs, margin-pos, perc-pos or random")
    method.add_argument("--n", type=int, help="ranks that `shifted` drops (10)")
    method.add_argument("--threshold", type=float, help="of `abs`: a negative scores less (0.7)")
    method.add_argument("--margin", type=float, help="of `margin-pos`: below the positive (0.05)")
    method.add_argument("--perc", type=float, help="of `perc-pos`: of the positive's score (0.95)")
    method.add_argument(
        "--ceiling-positive", choices=("own", "lowest"), default="own",
        help="whose score counts for a query of several: the pair's own, or the lowest (own)",
    )  # fmt: skip
    method.add_argument(
        "--near-duplicates", type=_similarity, default=0.8, metavar="SHARE|none",
        help="similarity from which a passage is a copy of a positive and no negative (0.8)",
    )  # fmt: skip
    method.add_argument(
        "--second-opinion", metavar="MODEL",
        help="drop the negatives that this model calls relevant: a cross-encoder, an embedding "
        "model or a language model, by name or folder",
    )  # fmt: skip
    method.add_argument(
        "--second-threshold", type=float, metavar="SCORE",
        help="from which they are relevant: a probability (0.5), or of an embedding model a share "
        "of the positive's score (0.95)",
    )  # fmt: skip

    sampling = mine.add_argument_group("sampling", "which of them are taken")
    sampling.add_argument("--num-negatives", type=int, default=4, metavar="N", help="a pair (4)")
    sampling.add_argument(
        "--sampling", choices=SAMPLINGS, default="top-k", help="the first, drawn, or both (top-k)"
    )
    sampling.add_argument("--k", type=int, help="candidates that are drawn from (10)")
    sampling.add_argument("--seed", type=int, default=0, help="of the draws (0)")

    output = mine.add_argument_group("output")
    output.add_argument("--output", type=Path, metavar="FILE", help="file to write")
    output.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    output.add_argument(
        "--format", choices=FORMATS, default="parquet",
        help="parquet: ids, ranks and scores; triplet to labeled-list: sentence-transformers' "
        "(Parquet); flagembedding, tevatron: JSON Lines (parquet)",
    )  # fmt: skip


def given(chosen: argparse.Namespace) -> list[str]:
    """Options that differ from their defaults, which a profile would not heed."""
    parser = argparse.ArgumentParser()
    add(parser)
    defaults = vars(parser.parse_args([]))
    names = [name for name in defaults if name not in ("params", "only")]
    return [spelled(name) for name in names if getattr(chosen, name) != defaults[name]]


def check(chosen: argparse.Namespace) -> None:
    """`NvretError` for options that are missing, or not for each other."""
    if missing := [f"--{n}" for n in ("teacher", "method", "output") if not getattr(chosen, n)]:
        raise NvretError(f"mine needs a profile, or your data and {', '.join(missing)}")
    own_data.check(chosen, "mine needs a profile, or")
    if chosen.second_threshold is not None and chosen.second_opinion is None:
        raise NvretError("--second-threshold is of --second-opinion, which is not given")
    if len(chosen.teacher) > 1 and not chosen.ensemble:
        raise NvretError(f"{len(chosen.teacher)} teachers need --ensemble {'|'.join(ENSEMBLES)}")
    if len(chosen.teacher) == 1 and chosen.ensemble:
        raise NvretError("--ensemble needs --teacher several times")
    if twice := [name for name in chosen.teacher if chosen.teacher.count(name) > 1]:
        raise NvretError(f"--teacher {twice[0]} is given more than once")
    files = ("query_vectors", "corpus_vectors")
    for name in files:
        if ("vectors" in chosen.teacher) != (getattr(chosen, name) is not None):
            raise NvretError(f"{spelled(name)} and --teacher vectors need each other")
    if chosen.no_normalise and "vectors" not in chosen.teacher:
        raise NvretError("--no-normalise is of --teacher vectors, which is not given")
    if chosen.k is not None and chosen.sampling == "top-k":
        raise NvretError("--k is of --sampling sampled and top-1+sampled; `top-k` takes the first")


def _similarity(text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share above 0 and up to 1, or none")
    return value
