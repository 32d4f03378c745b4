"""``nvret mine`` for queries and a corpus of one's own: its options, and what they do."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvret.errors import NvretError

if TYPE_CHECKING:
    import pyarrow as pa

    from nvret.dataset import RetrievalDataset

ENSEMBLES = ("cross-sample", "intra-sample", "intra-sample-no-dedup")
SAMPLINGS = ("top-k", "sampled", "top-1+sampled")
FORMATS = (
    "parquet", "triplet", "n-tuple", "labeled-pair", "labeled-list", "flagembedding", "tevatron",
)  # fmt: skip
TABLE = ".jsonl, .parquet, .csv (quoted) or .tsv (unquoted)"


def add_options(mine: argparse.ArgumentParser) -> None:
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
    """Options that are not for a profile and were given all the same."""
    names = ("data", "pairs", "corpus", "queries", "qrels", "teacher", "method", "output")
    return [name for name in names if getattr(chosen, name) is not None]


def run(chosen: argparse.Namespace) -> None:
    """Mine, and write the negatives; everything that can be checked is checked before."""
    _check(chosen)
    from nvret import export, mining, processes

    export.check(chosen.format, chosen.output)
    check_output(chosen.output, overwrite=chosen.overwrite)
    method, sampling = _method(chosen), _sampling(chosen)
    teachers = [_teacher(name, chosen) for name in chosen.teacher]
    judge = _judge(chosen)
    dataset = _load(chosen)
    if chosen.num_negatives >= dataset.corpus.num_rows:
        raise NvretError(
            f"--num-negatives is {chosen.num_negatives}, the corpus has only "
            f"{dataset.corpus.num_rows} passages, positives among them"
        )
    exclude = mining.forbidden(dataset, chosen.near_duplicates)
    tables = [
        mining.mine(
            dataset, teacher, method, chosen.num_negatives, sampling, chosen.seed,
            anchor="lowest" if chosen.positives == "lowest" else "pair",
            near_duplicates=chosen.near_duplicates, exclude=exclude,
        )
        for teacher in teachers
    ]  # fmt: skip
    table = tables[0]
    if chosen.ensemble:
        table = _joined(dataset, tables, chosen)
    if judge is not None and table.num_rows:
        table = second_opinion(dataset, table, judge)
    if not processes.first():
        return
    records, without = export.write(dataset, table, chosen.output, chosen.format)
    facts = mining.provenance(table)
    said = [
        f"{chosen.output}: {table.num_rows} negatives for {facts['pairs']} pairs of query and "
        f"positive; {facts['pairs_short']} pairs have fewer than {chosen.num_negatives}"
    ]
    if "second_opinion" in facts:
        dropped = facts["second_opinion"]["dropped"]
        said.append(f"{dropped} were dropped, which {judge.name} calls relevant")
    if chosen.format != "parquet":
        said.append(f"{records} records, {without} pairs in none of them")
    print("; ".join(said))


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """`NvretError` if a file cannot be written there, or is there and may not be replaced."""
    if path.is_dir():
        raise NvretError(f"--output {path} is a folder, expected a file")
    if path.exists() and not overwrite:
        raise NvretError(f"--output {path} is there already; --overwrite replaces it")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NvretError(f"--output {path}: cannot write to {folder}: {error.strerror}") from error


def second_opinion(dataset: RetrievalDataset, table: pa.Table, judge: Any) -> pa.Table:
    """Without the negatives that a judge of `nvret.judges` calls relevant; says how many."""
    import pyarrow as pa

    from nvret import judging, mining

    judged = judging.judge(judge, dataset, table)
    relevant = judged.table["judged"].to_numpy() >= judge.threshold
    facts = mining.provenance(table)
    said = {"judge": judge.name, "threshold": judge.threshold, "dropped": int(relevant.sum())}
    return _with_facts(table.filter(pa.array(~relevant)), facts | {"second_opinion": said})


def _check(chosen: argparse.Namespace) -> None:
    """Options that are missing, or not for each other."""
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
            raise NvretError(f"{_option(option)} is of {_option(needed)}, which is not given")
    if len(chosen.teacher) > 1 and not chosen.ensemble:
        raise NvretError(f"{len(chosen.teacher)} teachers need --ensemble {'|'.join(ENSEMBLES)}")
    if len(chosen.teacher) == 1 and chosen.ensemble:
        raise NvretError("--ensemble needs --teacher several times")
    if twice := [name for name in chosen.teacher if chosen.teacher.count(name) > 1]:
        raise NvretError(f"--teacher {twice[0]} is given more than once")
    files = ("query_vectors", "corpus_vectors")
    for name in files:
        if ("vectors" in chosen.teacher) != (getattr(chosen, name) is not None):
            raise NvretError(f"{_option(name)} and --teacher vectors need each other")
    if chosen.no_normalise and "vectors" not in chosen.teacher:
        raise NvretError("--no-normalise is of --teacher vectors, which is not given")
    if chosen.k is not None and chosen.sampling == "top-k":
        raise NvretError("--k is of --sampling sampled and top-1+sampled; `top-k` takes the first")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _method(chosen: argparse.Namespace) -> Any:
    from nvret.methods import build_method

    names = ("n", "threshold", "margin", "perc")
    return build_method(chosen.method, **{name: getattr(chosen, name) for name in names})


def _sampling(chosen: argparse.Namespace) -> Any:
    from nvret.sampling import SampledTopK, Top1PlusSampled, TopK

    if chosen.num_negatives < 1:
        raise NvretError(f"--num-negatives is {chosen.num_negatives}, expected at least 1")
    if chosen.sampling == "top-k":
        return TopK()
    kind = SampledTopK if chosen.sampling == "sampled" else Top1PlusSampled
    sampling = kind(10 if chosen.k is None else chosen.k)
    sampling.depth(chosen.num_negatives)
    return sampling


def _teacher(name: str, chosen: argparse.Namespace) -> Any:
    from nvret import approximate, assets, calibration, teachers, vectors

    if name == "bm25":
        if chosen.index:
            raise NvretError("--index is for embedding models, teacher bm25 has an exact search")
        return teachers.BM25Teacher()
    index = approximate.Index(chosen.index, chosen.probes) if chosen.index else None
    calibration.check_device(chosen.device)
    options = {"device": chosen.device, "index": index}
    if name == "vectors":
        files = chosen.query_vectors, chosen.corpus_vectors
        return vectors.VectorTeacher(*files, not chosen.no_normalise, **options)
    if not Path(name).is_dir() and name not in assets.models():
        known = ", ".join(("bm25", "vectors", *sorted(assets.models())))
        raise NvretError(f"no teacher {name!r}, expected a model's folder or one of {known}")
    for option in ("max_query_length", "max_passage_length"):
        if (value := getattr(chosen, option)) is not None:
            if value < 1:
                raise NvretError(f"{_option(option)} is {value}, expected at least 1")
            kind = option.split("_")[1]
            options[f"{kind}_max_length"] = value
    return teachers.DenseTeacher(name, **options)


def _judge(chosen: argparse.Namespace) -> Any:
    if chosen.second_opinion is None:
        return None
    from nvret import judges

    judge = judges.load(chosen.second_opinion, device=chosen.device)
    if chosen.second_threshold is not None:
        judge.threshold = chosen.second_threshold
    return judge


def _load(chosen: argparse.Namespace) -> RetrievalDataset:
    from nvret import data, inputs

    columns = data.Columns(chosen.id_column, chosen.text_column or "text", chosen.title_column)
    if chosen.pairs is not None:
        return data.load_pairs(
            chosen.pairs,
            query_column=chosen.query_column,
            positive_columns=chosen.positive_column or (),
            corpus=chosen.corpus,
            columns=columns,
        )
    # Rows of given vectors are those of the file of queries
    keep = "vectors" in chosen.teacher
    if chosen.data is not None:
        dataset = data.load(chosen.data, split=chosen.split, keep_unjudged=keep)
        where = chosen.data
    else:
        files = chosen.corpus, chosen.queries, chosen.qrels
        dataset = data.load_files(*files, columns=columns, keep_unjudged=keep)
        where = str(chosen.qrels)
    inputs.check_positives({"qrels": dataset.qrels}, where)
    return dataset


def _joined(
    dataset: RetrievalDataset, tables: list[pa.Table], chosen: argparse.Namespace
) -> pa.Table:
    from nvret import ensembles, mining

    if chosen.ensemble == "cross-sample":
        table = ensembles.cross_sample(dataset, tables, chosen.num_negatives, chosen.seed)
    else:
        dedup = chosen.ensemble == "intra-sample"
        table = ensembles.intra_sample(dataset, tables, chosen.num_negatives, dedup=dedup)
    facts = [mining.provenance(table) for table in tables]
    own = ("teacher", "teacher_fingerprint", "positives_below_zero", "search")
    shared = {key: value for key, value in facts[0].items() if key not in own}
    said = [{key: fact[key] for key in own if key in fact} for fact in facts]
    return _with_facts(table, shared | {"ensemble": chosen.ensemble, "teachers": said})


def _with_facts(table: pa.Table, facts: dict[str, Any]) -> pa.Table:
    """The table with its provenance, whose counts are of the rows that it has now."""
    counts = table.group_by(["query_id", "positive_id"]).aggregate([([], "count_all")])
    found, wanted = counts["count_all"].to_numpy(), facts["num_negatives"]
    facts = facts | {
        "pairs_empty": facts["pairs"] - len(found),
        "pairs_short": facts["pairs"] - int((found >= wanted).sum()),
        "negatives_missing": facts["pairs"] * wanted - int(found.sum()),
    }
    return table.replace_schema_metadata({"nvret": json.dumps(facts, sort_keys=True)})


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
