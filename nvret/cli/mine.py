"""``nvret mine`` for queries and a corpus of one's own."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvret.cli import mine_options, own_data, profile
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import pyarrow as pa

    from nvret.data import RetrievalDataset


def add(commands: argparse._SubParsersAction) -> None:
    """The command, on a profile or on own data."""
    mine = commands.add_parser(
        "mine", help="mine hard negatives: of a profile, or for your own queries and corpus"
    )
    mine_options.add(mine)
    mine.set_defaults(command=run, stage="mine")


def run(chosen: argparse.Namespace) -> None:
    """Mine for a profile, or for own data."""
    if chosen.params is None:
        return own(chosen)
    if found := mine_options.given(chosen):
        raise NvretError(f"{found[0]} is not for a profile: {chosen.params} says it")
    profile.stage(chosen)


def own(chosen: argparse.Namespace) -> None:
    """Mine, and write the negatives; everything that can be checked is checked before."""
    mine_options.check(chosen)
    from nvret import mining, negatives
    from nvret.io import export
    from nvret.utils import processes

    export.check(chosen.format, chosen.output)
    check_output(chosen.output, overwrite=chosen.overwrite)
    method, sampling = _method(chosen), _sampling(chosen)
    teachers = [_teacher(name, chosen) for name in chosen.teacher]
    judge = _judge(chosen)
    # Rows of given vectors are those of the file of queries
    dataset = own_data.load(chosen, keep_unjudged="vectors" in chosen.teacher)
    if chosen.num_negatives >= dataset.corpus.num_rows:
        raise NvretError(
            f"--num-negatives is {chosen.num_negatives}, the corpus has only "
            f"{dataset.corpus.num_rows} passages, positives among them"
        )
    exclude = mining.exclusions(dataset, chosen.near_duplicates)
    tables = [
        mining.mine(
            dataset, teacher, method, chosen.num_negatives, sampling, chosen.seed,
            ceiling_positive=chosen.ceiling_positive,
            near_duplicates=chosen.near_duplicates, exclude=exclude,
        )
        for teacher in teachers
    ]  # fmt: skip
    table = tables[0]
    if chosen.ensemble:
        table = _joined(dataset, tables, chosen)
    if judge is not None and table.num_rows:
        table = second_opinion(dataset, table, judge)
    if not processes.is_main_process():
        return
    records, without = export.write(dataset, table, chosen.output, chosen.format)
    facts = negatives.provenance(table)
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
    """Without the negatives that a judge calls relevant; says how many."""
    import pyarrow as pa

    from nvret import negatives
    from nvret.analysis import judge_quality

    judged = judge_quality.judge(judge, dataset, table)
    relevant = judged.table["judged"].to_numpy() >= judge.threshold
    facts = negatives.provenance(table)
    said = {"judge": judge.name, "threshold": judge.threshold, "dropped": int(relevant.sum())}
    return _with_facts(table.filter(pa.array(~relevant)), facts | {"second_opinion": said})


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
    from nvret import assets, teachers
    from nvret.cost import calibration
    from nvret.io import vectors
    from nvret.scale import faiss_index

    if name == "bm25":
        if chosen.index:
            raise NvretError("--index is for embedding models, teacher bm25 has an exact search")
        return teachers.BM25Teacher()
    index = faiss_index.Index(chosen.index, chosen.probes) if chosen.index else None
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
                raise NvretError(f"{own_data.spelled(option)} is {value}, expected at least 1")
            kind = option.split("_")[1]
            options[f"{kind}_max_length"] = value
    return teachers.DenseTeacher(name, **options)


def _judge(chosen: argparse.Namespace) -> Any:
    if chosen.second_opinion is None:
        return None
    from nvret.analysis import judges

    name = chosen.second_opinion
    try:
        judge = judges.load(name, device=chosen.device)
    except NvretError:
        raise
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise NvretError(f"--second-opinion {name} cannot be loaded: {said}") from error
    if chosen.second_threshold is not None:
        judge.threshold = chosen.second_threshold
    return judge


def _joined(
    dataset: RetrievalDataset, tables: list[pa.Table], chosen: argparse.Namespace
) -> pa.Table:
    from nvret import ensembles, negatives

    if chosen.ensemble == "cross-sample":
        table = ensembles.cross_sample(dataset, tables, chosen.num_negatives, chosen.seed)
    else:
        dedup = chosen.ensemble == "intra-sample"
        table = ensembles.intra_sample(dataset, tables, chosen.num_negatives, dedup=dedup)
    facts = [negatives.provenance(table) for table in tables]
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
