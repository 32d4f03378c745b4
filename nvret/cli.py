"""nvret: hard-negative mining for text-embedding models, and its reproduction in notebooks."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import shtab

from nvret.commands import evaluate, train
from nvret.errors import NvretError

STAGES = {"encode": "vectors", "mine": "negatives", "train": "models"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; bad input ends in one message and exit status 2, not in a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Every notebook gets the whole profile, and papermill warns of each key that a notebook's
    # parameters cell does not repeat; nvret.params checks the keys instead
    logging.getLogger("papermill").setLevel(logging.ERROR)
    chosen = _parser().parse_args(arguments)
    from nvret import processes

    try:
        with processes.group():
            chosen.command(chosen)
    except NvretError as error:
        print(f"nvret: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nvret: interrupted; the same command continues where this stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvret", description=__doc__)
    shtab.add_argument_to(parser, "--print-completion", help="a completion script for your shell")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download and convert data sets and models")
    fetch.add_argument("names", nargs="+", help="names of nvret/registry/*.yaml")
    fetch.set_defaults(command=_fetch)

    run = commands.add_parser("run", help="compute a profile and execute its notebooks")
    run.add_argument("params", type=Path, help="for example params/quick.yaml")
    run.add_argument("--only", action="append", metavar="NOTEBOOK", help="only this notebook")
    run.set_defaults(command=_run)

    encode = commands.add_parser("encode", help="vectors of a profile, also under torchrun")
    encode.add_argument("params", type=Path, help="for example params/gpu.yaml")
    encode.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")
    encode.set_defaults(command=_stage, stage="encode")
    train.add(commands).set_defaults(command=_train, stage="train")
    evaluate.add(commands).set_defaults(command=evaluate.run)

    plan = commands.add_parser("plan", help="what a profile will take, before it is run")
    plan.add_argument("params", type=Path, help="for example params/paper.yaml")
    plan.add_argument("--tflops", type=float, help="of a device (default: measured on --device)")
    plan.add_argument("--device", default="cpu", help="to measure: cpu or cuda")
    plan.add_argument("--devices", type=int, default=1, help="that share the work (1)")
    plan.add_argument("--passage-tokens", type=float, default=128, help="mean, assumed (128)")
    plan.add_argument("--query-tokens", type=float, default=16, help="mean, assumed (16)")
    plan.set_defaults(command=_plan)

    report = commands.add_parser("report", help="tables, ledger and README from a profile's scores")
    report.add_argument("params", type=Path, help="for example params/quick.yaml")
    report.set_defaults(command=_report)

    mine = commands.add_parser(
        "mine", help="mine hard negatives: of a profile, or for your own queries and corpus"
    )
    mine.add_argument("params", type=Path, nargs="?", help="a profile; takes --only and no other")
    mine.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")
    mine.add_argument("--corpus", type=Path, help="BEIR's corpus.jsonl")
    mine.add_argument("--queries", type=Path, help="BEIR's queries.jsonl")
    mine.add_argument("--qrels", type=Path, help="a .tsv of labelled positives")
    mine.add_argument("--teacher", help="bm25, a model's name, or a model's folder")
    mine.add_argument("--method", help="naive, shifted, abs, margin-pos, perc-pos")
    mine.add_argument("--n", type=int, help="ranks that `shifted` drops")
    mine.add_argument("--threshold", type=float, help="of `abs`")
    mine.add_argument("--margin", type=float, help="of `margin-pos`")
    mine.add_argument("--perc", type=float, help="of `perc-pos`")
    mine.add_argument("--index", help="search approximately: faiss's name of an index (HNSW32)")
    mine.add_argument("--probes", type=int, default=64, help="lists or candidates looked at (64)")
    mine.add_argument("--num-negatives", type=int, default=4)
    mine.add_argument("--seed", type=int, default=0)
    mine.add_argument("--output", type=Path, help="a Parquet file")
    mine.set_defaults(command=_mine, stage="mine")

    cost = commands.add_parser("cost", help="measure this machine; say what mining will cost")
    cost.add_argument("--passages", type=int, required=True, help="in the corpus to mine")
    cost.add_argument("--queries", type=int, required=True, help="or labelled pairs, if more")
    cost.add_argument("--teacher", required=True, help="a model's name, or a model's folder")
    cost.add_argument("--data", default="nq", help="set or folder to sample texts from (nq)")
    cost.add_argument("--passage-tokens", type=float, help="mean, after cutting (as the sample)")
    cost.add_argument("--query-tokens", type=float, help="mean, after cutting (as the sample)")
    cost.add_argument("--num-candidates", type=int, default=64, help="kept of each search")
    cost.add_argument("--device", default="cpu", help="to measure: cpu or cuda")
    cost.add_argument("--devices", type=int, default=1, help="like it, each with a part (1)")
    cost.add_argument("--rough", action="store_true", help="measure small sizes, in seconds")
    cost.set_defaults(command=_cost)
    _add_inspect(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser("inspect", help="an HTML report on mined negatives")
    inspect.add_argument("negatives", type=Path, help="the Parquet file that `mine` wrote")
    inspect.add_argument("--data", help="a folder in BEIR's layout, or a packaged set's name")
    inspect.add_argument("--split", help="of the folder's qrels, where there are several")
    inspect.add_argument("--corpus", type=Path, help="BEIR's corpus.jsonl")
    inspect.add_argument("--queries", type=Path, help="BEIR's queries.jsonl")
    inspect.add_argument("--qrels", type=Path, help="the .tsv of labelled positives")
    inspect.add_argument("--hidden", type=Path, help="a .tsv of labels that mining did not see")
    inspect.add_argument("--teacher", help="the table's own; adds scores of random passages")
    inspect.add_argument("--output", type=Path, required=True, help="an HTML file")
    inspect.add_argument("--overwrite", action="store_true", help="replace the output")
    inspect.set_defaults(command=_inspect)


def _fetch(chosen: argparse.Namespace) -> None:
    from nvret import assets

    for name, folder in assets.fetch(chosen.names).items():
        print(f"{name}: {folder}")


def _mine(chosen: argparse.Namespace) -> None:
    from nvret import approximate, data, mining, processes, teachers
    from nvret.methods import build_method

    needed = ("corpus", "queries", "qrels", "teacher", "method", "output")
    found = [name for name in needed if getattr(chosen, name) is not None]
    if chosen.params is not None:
        if found:
            raise NvretError(f"--{found[0]} is not for a profile: {chosen.params} says it")
        return _stage(chosen)
    if missing := [f"--{name}" for name in needed if name not in found]:
        raise NvretError(f"mine needs a profile, or {', '.join(missing)}")
    names = ("n", "threshold", "margin", "perc")
    given = {name: getattr(chosen, name) for name in names}
    method = build_method(chosen.method, **given)
    dataset = data.load_files(chosen.corpus, chosen.queries, chosen.qrels)
    teacher = chosen.teacher
    if chosen.index:
        if teacher == "bm25":
            raise NvretError("--index is for embedding models, teacher bm25 has an exact search")
        index = approximate.Index(chosen.index, chosen.probes)
        teacher = teachers.DenseTeacher(teacher, index=index)
    table = mining.mine(dataset, teacher, method, chosen.num_negatives, seed=chosen.seed)
    if not processes.first():
        return
    mining.save(table, chosen.output)
    facts = mining.provenance(table)
    print(
        f"{chosen.output}: {table.num_rows} negatives for {facts['pairs']} pairs of query and "
        f"positive; {facts['pairs_short']} pairs have fewer than {chosen.num_negatives}"
    )


def _inspect(chosen: argparse.Namespace) -> None:
    from nvret import beir, data, inspection

    files = {name: getattr(chosen, name) for name in ("corpus", "queries", "qrels")}
    given = [name for name, path in files.items() if path is not None]
    if chosen.data is not None and given:
        raise NvretError(f"--{given[0]} is not for --data {chosen.data}, which holds it")
    if chosen.data is None and len(given) < len(files):
        missing = [f"--{name}" for name in files if name not in given]
        raise NvretError(f"inspect needs --data, or {', '.join(missing)}")
    if chosen.split is not None and chosen.data is None:
        raise NvretError("--split is for --data, expected --qrels to name the file")
    # Before the work, and again when the report is written
    if chosen.output.is_dir() or (chosen.output.exists() and not chosen.overwrite):
        raise NvretError(f"{chosen.output} exists, expected a new file or --overwrite")
    table = inspection.read(chosen.negatives)
    hidden = None if chosen.hidden is None else beir.read_qrels(chosen.hidden)
    dataset = data.load_files(**files) if given else data.load(chosen.data, split=chosen.split)
    found = inspection.inspect(table, dataset, hidden=hidden, teacher=chosen.teacher)
    found.save_html(chosen.output, overwrite=chosen.overwrite)
    counts = found.counts
    print(
        f"{chosen.output}: {counts['negatives']} negatives for {counts['pairs']} pairs of query "
        f"and positive; {counts['suspects']} are suspicious by text or label, {counts['above']} "
        "score at or above their positive"
    )


def _cost(chosen: argparse.Namespace) -> None:
    from nvret import calibration, costs, data, teachers
    from nvret.encode import Encoder

    names = ("passages", "queries", "passage_tokens", "query_tokens", "devices")
    workload = costs.Workload(**{name: getattr(chosen, name) for name in names})
    device = calibration.check_device(chosen.device)
    if chosen.teacher == "bm25":
        raise NvretError("teacher bm25 makes no vectors, expected an embedding model")
    encoder = Encoder.load(teachers.model_folder(chosen.teacher), device=device)
    sample = data.load(chosen.data)
    measured = costs.calibrate(
        encoder,
        sample.passages,
        sample.query_texts,
        k=chosen.num_candidates,
        rough=chosen.rough,
    )
    print(costs.describe(measured, workload))


def _plan(chosen: argparse.Namespace) -> None:
    from nvret import assets, calibration, data, params, plan
    from nvret.encode import Encoder

    settings = params.load(chosen.params)
    tflops = chosen.tflops
    if tflops is None:
        device = calibration.check_device(chosen.device)
        encoder = Encoder.load(assets.model_path("minilm-l6"), device=device)
        tflops = plan.rate(encoder, data.load("nq").passages[:512])
    names = ("passage_tokens", "query_tokens", "devices")
    assumed = plan.Assumed(tflops=tflops, **{name: getattr(chosen, name) for name in names})
    print(plan.describe(settings, assumed))


def _run(chosen: argparse.Namespace) -> None:
    from nvret import notebooks, params

    settings = params.load(chosen.params)
    notebooks.run(settings, params.read(chosen.params), chosen.only or settings.notebooks)


def _train(chosen: argparse.Namespace) -> None:
    if chosen.params is None:
        return train.run(chosen)
    for name in train.NEEDED:
        if getattr(chosen, name) is not None:
            raise NvretError(f"--{name} is not for a profile: {chosen.params} says it")
    return _stage(chosen)


def _stage(chosen: argparse.Namespace) -> None:
    from nvret import params, processes, stages

    settings = params.load(chosen.params)
    number = stages.run(settings, getattr(stages, chosen.stage), chosen.only)
    if processes.first():
        print(f"the {STAGES[chosen.stage]} of {number} arms are in the store")


def _report(chosen: argparse.Namespace) -> None:
    from nvret import ledger, params, readme, report

    settings = params.load(chosen.params)
    table = ledger.write(settings)
    for verdict, count in table["verdict"].value_counts().items():
        print(f"{verdict}: {count}")
    folder, root = report.results_folder(settings), params.project_root()
    # The README shows the checkout's own results, and those of the large profiles only
    if settings.profile in readme.PROFILES and folder.parent == root / "results":
        readme.update(root / "README.md", folder.parent)
