"""The command line: ``nvret fetch | encode | mine | train | cost | plan | run | report | site``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download and convert data sets and models")
    fetch.add_argument("names", nargs="+", help="names of nvret/registry/*.yaml")
    fetch.set_defaults(command=_fetch)

    run = commands.add_parser("run", help="compute a profile and execute its notebooks")
    run.add_argument("params", type=Path, help="for example params/quick.yaml")
    run.add_argument("--only", action="append", metavar="NOTEBOOK", help="only this notebook")
    run.set_defaults(command=_run)

    for name, done in STAGES.items():
        if name != "mine":  # which has more to choose, below
            stage = commands.add_parser(name, help=f"{done} of a profile, also under torchrun")
            stage.add_argument("params", type=Path, help="for example params/gpu.yaml")
            stage.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")
            stage.set_defaults(command=_stage, stage=name)

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

    _add_site(commands)
    return parser


def _add_site(commands: argparse._SubParsersAction) -> None:
    site = commands.add_parser("site", help="notebooks, ledger and benchmarks as a folder of pages")
    site.add_argument("--results", type=Path, help="folder of the profiles' results (results)")
    site.add_argument("--output", type=Path, default=Path("site"), help="folder to write (site)")
    site.set_defaults(command=_site)


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


def _site(chosen: argparse.Namespace) -> None:
    try:
        from nvret import site
    except ModuleNotFoundError as error:
        package = (error.name or "more").partition(".")[0]
        raise NvretError(f"site needs {package}: pip install 'nvret[site]'") from error
    from nvret.params import project_root

    pages = site.build(chosen.results or project_root() / "results", chosen.output)
    print(f"{chosen.output / 'index.html'}: {len(pages)} pages")
