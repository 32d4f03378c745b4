"""``nvret cost`` and ``nvret plan``: what mining, or a whole profile, will take."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nvret.cli.options import Count, Profile
from nvret.utils.errors import NvretError

Measured = Annotated[str, Parameter(help="to measure: cpu or cuda")]
Devices = Annotated[int, Parameter(help="devices like it that share the work")]


def cost(
    *,
    passages: int,
    queries: int,
    teacher: str,
    data: str = "nq",
    passage_tokens: float | None = None,
    query_tokens: float | None = None,
    num_candidates: Count = 64,
    device: Measured = "cpu",
    devices: Devices = 1,
    rough: bool = False,
) -> None:
    """Measure this machine, and say what mining will cost.

    Args:
        passages: in the corpus to mine
        queries: or labelled pairs, if more
        teacher: a name (minilm-l6), a folder (./mine), or of the hub owner/name@revision
        data: set or folder to sample texts from
        passage_tokens: mean, after cutting (as the sample)
        query_tokens: mean, after cutting (as the sample)
        num_candidates: kept of each search
        rough: measure small sizes, in seconds
    """
    from nvret import assets
    from nvret import data as sets
    from nvret.cost import estimate
    from nvret.utils import machine

    workload = estimate.Workload(passages=passages, queries=queries, passage_tokens=passage_tokens,
                                 query_tokens=query_tokens, devices=devices)  # fmt: skip
    torch_device = machine.check_device(device)
    if teacher == "bm25":
        raise NvretError("teacher bm25 makes no vectors, expected an embedding model")
    encoder = assets.load_encoder(teacher, torch_device)
    sample = sets.load(data)
    measured = estimate.calibrate(
        encoder, sample.passages, sample.query_texts, k=num_candidates, rough=rough
    )
    print(estimate.describe(measured, workload))


def plan(
    params: Profile,
    /,
    *,
    tflops: float | None = None,
    device: Measured = "cpu",
    devices: Devices = 1,
    passage_tokens: float = 128,
    query_tokens: float = 16,
) -> None:
    """Say what a profile will take, before it is run.

    Args:
        tflops: of a device (measured on --device)
        passage_tokens: mean, assumed
        query_tokens: mean, assumed
    """
    from nvret import assets
    from nvret import data as sets
    from nvret.cost import calibration
    from nvret.encode import Encoder
    from nvret.study import config
    from nvret.study import plan as plans
    from nvret.utils import machine

    settings = config.load(params)
    if tflops is None:
        torch_device = machine.check_device(device)
        encoder = Encoder.load(assets.model_path("minilm-l6"), device=torch_device)
        tflops = calibration.measure_rate(encoder, sets.load("nq").passages[:512])
    assumed = plans.Assumed(tflops=tflops, passage_tokens=passage_tokens,
                            query_tokens=query_tokens, devices=devices)  # fmt: skip
    print(plans.describe(settings, assumed))
