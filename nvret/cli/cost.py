"""``nvret cost`` and ``nvret plan``: what mining, or a whole profile, will take."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvret.utils.errors import NvretError


def add(commands: argparse._SubParsersAction) -> None:
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

    plan = commands.add_parser("plan", help="what a profile will take, before it is run")
    plan.add_argument("params", type=Path, help="for example params/paper.yaml")
    plan.add_argument("--tflops", type=float, help="of a device (default: measured on --device)")
    plan.add_argument("--device", default="cpu", help="to measure: cpu or cuda")
    plan.add_argument("--devices", type=int, default=1, help="that share the work (1)")
    plan.add_argument("--passage-tokens", type=float, default=128, help="mean, assumed (128)")
    plan.add_argument("--query-tokens", type=float, default=16, help="mean, assumed (16)")
    plan.set_defaults(command=_plan)


def _cost(chosen: argparse.Namespace) -> None:
    from nvret import assets, data
    from nvret.cost import calibration, estimate
    from nvret.encode import Encoder

    names = ("passages", "queries", "passage_tokens", "query_tokens", "devices")
    workload = estimate.Workload(**{name: getattr(chosen, name) for name in names})
    device = calibration.check_device(chosen.device)
    if chosen.teacher == "bm25":
        raise NvretError("teacher bm25 makes no vectors, expected an embedding model")
    encoder = Encoder.load(assets.model_folder(chosen.teacher), device=device)
    sample = data.load(chosen.data)
    measured = estimate.calibrate(
        encoder,
        sample.passages,
        sample.query_texts,
        k=chosen.num_candidates,
        rough=chosen.rough,
    )
    print(estimate.describe(measured, workload))


def _plan(chosen: argparse.Namespace) -> None:
    from nvret import assets, data
    from nvret.cost import calibration
    from nvret.encode import Encoder
    from nvret.study import config, plan

    settings = config.load(chosen.params)
    tflops = chosen.tflops
    if tflops is None:
        device = calibration.check_device(chosen.device)
        encoder = Encoder.load(assets.model_path("minilm-l6"), device=device)
        tflops = calibration.measure_rate(encoder, data.load("nq").passages[:512])
    names = ("passage_tokens", "query_tokens", "devices")
    assumed = plan.Assumed(tflops=tflops, **{name: getattr(chosen, name) for name in names})
    print(plan.describe(settings, assumed))
