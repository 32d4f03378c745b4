"""The options of ``nvret mine`` on data of one's own, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.errors import NvretError

ENSEMBLES = ("cross-sample", "intra-sample", "intra-sample-no-dedup")
SAMPLINGS = ("top-k", "sampled", "top-1+sampled")
FORMATS = (
    "parquet", "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron",
)  # fmt: skip
TABLE = ".jsonl, .parquet, .csv (quoted) or .tsv (unquoted)"


def add(mine: argparse.ArgumentParser) -> None:
    """The options, in the groups that ``nvret mine --help`` shows."""
    mine.add_argument("params", type=Path, nargs="?", help="a profile; takes --only and no other")
    mine.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")

    data = mine.add_argument_group(
        "your data", "--data; or --corpus, --queries and --qrels; or --pairs, and --corpus or not"
    )
    data.add_argument("--data", metavar="NAME", help="a folder in BEIR's layout, or a known set")
    data.add_argument("--split", help="of --data: which of its qrels (the only one, or test)")
    data.add_argument("--corpus", type=Path, metavar="FILE", help=f"passages: {TABLE}")
    data.add_argument("--queries", type=Path, metavar="FILE", help=f"queries: {TABLE}")
    data.add_argument(
        "--qrels", type=Path, metavar="FILE",
        help="labelled positives: query-id, corpus-id and score, above 0 if relevant",
    )  # fmt: skip
    data.add_argument(
        "--pairs", type=Path, metavar="FILE",
        help=f"a query's text and its positives' in each row: {TABLE}",
    )  # fmt: skip
    data.add_argument("--id-column", metavar="NAME", help="of corpus and queries (_id or id)")
    data.add_argument("--text-column", metavar="NAME", help="of corpus and queries (text)")
    data.add_argument("--title-column", metavar="NAME", help="of the corpus (title, if there)")
    data.add_argument(
        "--query-column", metavar="NAME", help="of --pairs (query, anchor, question; or the first)"
    )
    data.add_argument(
        "--positive-column", metavar="NAME", action="append",
        help="of --pairs; several times for several (positive, positive_1, answer, …)",
    )  # fmt: skip

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
        "--positives", choices=("each", "lowest"), default="each",
        help="whose score counts for a query of several: the pair's own, or the lowest (each)",
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
    alone = ("data", "pairs", "queries", "qrels")
    found = {name for name in (*alone, "corpus") if getattr(chosen, name) is not None}
    sets = ({"data"}, {"pairs"}, {"pairs", "corpus"}, {"corpus", "queries", "qrels"})
    if found not in sets:
        said = f"only {', '.join(f'--{n}' for n in sorted(found))}" if found else "none"
        raise NvretError(
            "mine needs a profile, or as data --data alone, --pairs with or without --corpus, or "
            f"--corpus, --queries and --qrels together; given: {said}"
        )
    for option, needed in (
        ("split", "data"), ("query_column", "pairs"), ("positive_column", "pairs"),
        ("id_column", "corpus"), ("text_column", "corpus"), ("title_column", "corpus"),
        ("second_threshold", "second_opinion"),
    ):  # fmt: skip
        if getattr(chosen, option) is not None and getattr(chosen, needed) is None:
            raise NvretError(f"{spelled(option)} is of {spelled(needed)}, which is not given")
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


def spelled(name: str) -> str:
    """An option as it is typed.

    >>> spelled("second_opinion")
    '--second-opinion'
    """
    return f"--{name.replace('_', '-')}"


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
