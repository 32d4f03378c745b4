"""``nvret evaluate``: a model on labelled queries, before and after its training."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from nvret.cli import own_data
from nvret.utils.errors import NvretError


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate", help="NDCG@10 and more of a model on your own labelled queries",
        description="Score a model on labelled queries with mteb's metrics; with --before, what "
        "has changed since, with a 95%% interval over the queries.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="a model's name, folder or hub id; or bm25")
    parser.add_argument("--before", help="another, to compare with")
    own_data.add(parser)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100], help="ranks (10 100)")
    parser.add_argument("--query-max-length", type=int, help="tokens (the model's own limit)")
    parser.add_argument("--passage-max-length", type=int, help="tokens (the model's own limit)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--output", type=Path, help="a .csv of the table")
    parser.set_defaults(command=run)


def run(chosen: argparse.Namespace) -> None:
    """Print the table, and write it if asked to.

    Raises:
        NvretError: ``--output`` exists, or what ``nvret.evaluation`` says.
    """
    from nvret import assets, evaluation, teachers
    from nvret.encode import Encoder
    from nvret.utils import store

    own_data.check(chosen, "evaluate needs")
    if chosen.output and chosen.output.exists():
        raise NvretError(f"{chosen.output} exists; name another file")
    dataset = own_data.load(chosen)
    lengths = {name: getattr(chosen, name) for name in ("query_max_length", "passage_max_length")}
    found = {}
    for name in filter(None, (chosen.before, chosen.model)):
        if name == "bm25":
            scorer = teachers.prepare(name, dataset)
            ranked = scorer.top_k(range(dataset.queries.num_rows), max(chosen.k))
            result = evaluation.evaluate_ranking(
                ranked.ids.numpy(), ranked.scores.numpy(), dataset, k=chosen.k
            )
        else:
            encoder = Encoder.load(assets.model_folder(name), device=chosen.device)
            result = evaluation.evaluate(encoder, dataset, k=chosen.k, **lengths)
        found[name] = result
    table = compare(*found.values())
    if chosen.output:
        with store.atomic_file(chosen.output) as partial:
            table.to_csv(partial, index=False)
    print(table.to_string(index=False, float_format="{:.4f}".format))


def compare(*evaluations) -> pd.DataFrame:
    """A row for each metric of one evaluation, or of two on the same queries.

    Args:
        evaluations: ``nvret.evaluation.Evaluation``, one or two; the earlier system first.
    Returns:
        metric and score; or metric, before, after, difference and the interval of the difference
        over the queries (paired), low and high.
    """
    from nvret.analysis.statistics import paired_difference

    rows = []
    for metric in evaluations[0].metrics:
        values = [one.values(metric) for one in evaluations]
        if len(values) == 1:
            rows.append({"metric": metric, "score": values[0].mean()})
            continue
        before, after = values
        interval = paired_difference(after[None], before[None])
        rows.append({"metric": metric, "before": before.mean(), "after": after.mean(),
                     "difference": interval.value, "low": interval.low,
                     "high": interval.high})  # fmt: skip
    return pd.DataFrame(rows)
