"""``nvret inspect``, ``lint`` and ``evaluate``: what negatives and a trained model are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from nvret.cli import options
from nvret.cli.options import Count, Device, OwnData, PassagePrompt, QueryPrompt, prompts
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
        negatives: what `nvret mine` wrote, or a file of any layout that `nvret lint` reads; with
            texts in it, it needs no other data
        output: an HTML file
        hidden: a .tsv of labels that mining did not see
        teacher: bm25 or a model, the table's own; adds scores of random passages, and all scores
            where the file has none
        overwrite: replace the output
    """
    from nvret import negatives as tables
    from nvret import teachers
    from nvret.analysis import inspection, inspection_report
    from nvret.io import adopted, inputs

    own, described = tables.is_own(negatives), bool(options.given(data))
    if own or described:
        data.check("inspect needs")
    # Before the work, and again when the report is written
    options.check_output("output", output, overwrite=overwrite)
    labels = None if hidden is None else inputs.qrels(hidden)[0]
    dataset = data.load() if own or described else adopted.load_dataset(negatives)
    if teacher and not own:
        teacher = teachers.prepare(teacher, dataset)
    table = tables.load(negatives) if own else adopted.table(negatives, dataset, teacher)
    report = inspection.inspect(table, dataset, hidden=labels, teacher=teacher)
    inspection_report.save_html(report, output, overwrite=overwrite)
    counts = report.counts
    print(
        f"{output}: {counts['negatives']} negatives for {counts['pairs']} pairs of query "
        f"and positive; {counts['suspects']} are suspicious by text or label, {counts['above']} "
        "score at or above their positive"
    )


def lint(
    file: Path,
    /,
    *,
    corpus: Path | None = None,
    needed: Count | None = None,
    model: str | None = None,
    sample: Count = 1000,
    device: Device = "cpu",
    output: Path | None = None,
    limit: Annotated[float | None, Parameter(validator=validators.Number(gte=0, lt=1))] = None,
    fix: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Look for mistakes in anybody's mined negatives.

    Reads what sentence-transformers (triplets, tuples, labelled pairs and lists), FlagEmbedding,
    Tevatron, NeMo Automodel, PyLate (scored lists) and nvret write. It needs no model, and calls
    nothing an error but a file that it cannot open: what a record holds is reported.

    Args:
        file: a .parquet, .jsonl or .json of mined negatives
        corpus: passages with their ids, where the file has ids
        needed: distinct negatives that your trainer takes of each record (as many as most have)
        model: counts likely answers among some negatives, with an interval: as --second-opinion
        sample: negatives that the model reads
        output: the report as .json or .html
        limit: exit status 1 if a mistake concerns a larger share (0.01)
        fix: write a copy without the mistakes, and beside it a list of what was dropped
        overwrite: replace files
    """
    import json

    from nvret.analysis import lint as checks
    from nvret.io import inputs

    options.check_output("output", output, ".json", ".html", overwrite=overwrite)
    options.check_output("fix", fix, file.suffix, overwrite=overwrite)
    if file in (output, fix):
        raise NvretError(f"{file} is what is looked at, expected another file to write")
    ids = None if corpus is None else inputs.texts(corpus, title=True)["id"].to_pylist()
    found = checks.lint(file, corpus=ids, needed=needed)
    if model:
        found.judged = checks.judge(file, model, sample, device=device)
    print(checks.report(found, file))
    if output:
        facts = {"layout": found.layout, "records": found.records, "negatives": found.negatives}
        whole = facts | {"checks": checks.rows(found), "judged": found.judged}
        text = checks.page(found, file) if output.suffix == ".html" else json.dumps(whole, indent=1)
        options.write_text(output, text)
    if fix:
        done = checks.clean(file, found, fix)
        print(
            f"{fix}: {done['records']} records, {done['dropped']} negatives dropped, "
            f"{done['left_out']} records left out"
        )
    return int(limit is not None and found.mistakes > limit)


def evaluate(
    *,
    model: str,
    before: str | None = None,
    data: OwnData = OwnData(),
    k: Annotated[list[Count], Parameter(consume_multiple=True, json_list=False)] = [10, 100],  # noqa: B006
    query_max_length: Count | None = None,
    passage_max_length: Count | None = None,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
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
    from nvret.utils import machine, store

    data.check("evaluate needs")
    if not k:
        raise NvretError("--k is empty, expected one or more ranks")
    machine.check_device(device)
    names = [name for name in (before, model) if name is not None]
    for name in names:
        if name != "bm25":
            assets.check_model(name, others=("bm25",))
    options.check_output("output", output)
    dataset = data.load()
    asked = prompts(query_prompt, passage_prompt)
    lengths = {"query_max_length": query_max_length, "passage_max_length": passage_max_length}
    results = {}
    for name in names:
        if name == "bm25":
            ranked = teachers.prepare(name, dataset).top_k(range(len(dataset.queries)), max(k))
            arrays = ranked.ids.numpy(), ranked.scores.numpy()
            results[name] = evaluation.evaluate_ranking(*arrays, dataset, k=k)
        else:
            encoder = assets.load_encoder(name, device, prompts=asked)
            results[name] = evaluation.evaluate(encoder, dataset, k=k, **lengths)
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
    return pd.DataFrame(rows, columns=["metric", "before", "after", "difference", "low", "high"])
