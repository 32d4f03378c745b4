"""``nvret inspect`` and ``nvret evaluate``: what mined negatives and a trained model are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nvret.cli.options import Count, Device, OwnData
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import pandas as pd

    from nvret.evaluation import Evaluation


def inspect(
    negatives: Path,
    /,
    *,
    data: OwnData = OwnData(),
    output: Path,
    hidden: Path | None = None,
    teacher: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write an HTML report on mined negatives.

    Args:
        negatives: the Parquet file that `nvret mine` wrote
        output: an HTML file
        hidden: a .tsv of labels that mining did not see
        teacher: bm25 or a model, the table's own; adds scores of random passages
        overwrite: replace the output
    """
    from nvret import negatives as tables
    from nvret.analysis import inspection, inspection_report
    from nvret.io import inputs

    data.check("inspect needs")
    # Before the work, and again when the report is written
    if output.is_dir() or (output.exists() and not overwrite):
        raise NvretError(f"{output} exists, expected a new file or --overwrite")
    table = tables.load(negatives)
    labels = None if hidden is None else inputs.qrels(hidden)[0]
    report = inspection.inspect(table, data.load(), hidden=labels, teacher=teacher)
    inspection_report.save_html(report, output, overwrite=overwrite)
    counts = report.counts
    print(
        f"{output}: {counts['negatives']} negatives for {counts['pairs']} pairs of query "
        f"and positive; {counts['suspects']} are suspicious by text or label, {counts['above']} "
        "score at or above their positive"
    )


def evaluate(
    *,
    model: str,
    before: str | None = None,
    data: OwnData = OwnData(),
    k: Annotated[list[Count], Parameter(consume_multiple=True, json_list=False)] = [10, 100],  # noqa: B006
    query_max_length: Count | None = None,
    passage_max_length: Count | None = None,
    device: Device = "cpu",
    output: Path | None = None,
) -> None:
    """Score a model on your own labelled queries: NDCG@10 and more, by mteb.

    With --before, what has changed since, with a 95% interval over the queries.

    Args:
        model: a name (minilm-l6), a folder (./mine), or of the hub owner/name@revision; or bm25
        before: another, to compare with
        k: ranks
        query_max_length: tokens (the model's own limit)
        passage_max_length: tokens (the model's own limit)
        output: a .csv of the table
    """
    from nvret import assets, evaluation, teachers
    from nvret.encode import Encoder
    from nvret.utils import machine, store

    data.check("evaluate needs")
    if not k:
        raise NvretError("--k is empty, expected one or more ranks")
    machine.check_device(device)
    names = [name for name in (before, model) if name is not None]
    for name in names:
        if name != "bm25":
            assets.check_model(name, others=("bm25",))
    if output and output.exists():
        raise NvretError(f"{output} exists; name another file")
    dataset = data.load()
    results = {}
    for name in names:
        if name == "bm25":
            scorer = teachers.prepare(name, dataset)
            ranked = scorer.top_k(range(dataset.queries.num_rows), max(k))
            results[name] = evaluation.evaluate_ranking(
                ranked.ids.numpy(), ranked.scores.numpy(), dataset, k=k
            )
        else:
            encoder = Encoder.load(assets.model_folder(name), device=device)
            results[name] = evaluation.evaluate(
                encoder, dataset, k=k,
                query_max_length=query_max_length, passage_max_length=passage_max_length,
            )  # fmt: skip
    table = compare(*results.values())
    if output:
        with store.atomic_file(output) as partial:
            table.to_csv(partial, index=False)
    print(table.to_string(index=False, float_format="{:.4f}".format))


def compare(*evaluations: Evaluation) -> pd.DataFrame:
    """A row for each metric of one evaluation, or of two on the same queries, the earlier first.

    Returns:
        metric and score; or metric, before, after, difference and the interval of the difference
        over the queries (paired), low and high.
    """
    import pandas as pd

    from nvret.analysis.statistics import paired_difference

    if len(evaluations) == 1:
        return pd.DataFrame(evaluations[0].summary.items(), columns=["metric", "score"])
    rows = []
    for metric in evaluations[0].metrics:
        before, after = (one.values(metric) for one in evaluations)
        change = paired_difference(after[None], before[None])
        rows.append((metric, before.mean(), after.mean(), *change))
    columns = ["metric", "before", "after", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
