"""What a profile will take before it is run: downloads, encoding, mining, training, evaluation.

The work is counted in floating-point operations: 2 for each parameter and token of a forward pass,
3 times as many with a backward pass (2 times with LoRA, which needs no gradients of the weights,
and one more with checkpointing), and 2 for each dimension of a compared pair of vectors. A device's
rate turns them into hours; it is measured (``rate``) or given.

Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1 (operations of a pass).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from nvret.assets import local, registry
from nvret.cost import measure
from nvret.study import notebooks, paths
from nvret.study.arms import Arm, arms
from nvret.study.config import Settings
from nvret.training_config import TrainingConfig
from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    from nvret.encode import Encoder

GIGA, TERA, HOUR = 1e9, 1e12, 3600
Sizes = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Assumed:
    """What cannot be known before the texts are there.

    Attributes:
        passage_tokens, query_tokens: mean tokens of a text, if the profile does not cut it shorter.
        tflops: operations a second of a device, in 10^12.
        devices: that share the work without any loss.
    """

    passage_tokens: float = 128
    query_tokens: float = 16
    tflops: float = 100
    devices: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise NvretError(f"{name} is {value}, expected a number above 0")

    def hours(self, operations: float) -> float:
        """Device hours, of all devices together.

        >>> Assumed(tflops=2, devices=8).hours(7.2e15)
        1.0
        """
        return operations / (self.tflops * TERA) / HOUR


def rate(encoder: Encoder, texts: list[str]) -> float:
    """Measured operations a second of the device that a transformer lies on, in 10^12.

    Args:
        texts: a few hundred; encoded twice, and the second time counts.
    """
    table = encoder.backbone.get_input_embeddings().weight.numel()  # looked up, not multiplied
    parameters = sum(part.numel() for part in encoder.parameters()) - table
    tokens = int(encoder.tokenize(texts, progress=False).lengths.sum())

    def run() -> None:
        encoder.encode(texts, progress=False)

    run()
    return 2 * parameters * tokens / measure.clock(run, encoder.device) / TERA


def size(name: str) -> tuple[int, int]:
    """Questions and passages of a data set as it is published; of a packaged one, as it is.

    A set that says nothing of its passages counts as one passage for each question.
    """
    from nvret import data

    entry = registry.datasets()[name]
    if entry.converter is not None:
        found = data.load(name, progress=False)
        return found.queries.num_rows, found.corpus.num_rows
    queries = entry.queries or 0
    return queries, entry.passages or queries


def downloads(settings: Settings) -> pd.DataFrame:
    """A row for each data set and model: its source, gigabytes if known, and whether it is here."""
    rows = []
    for name in notebooks.assets_of(settings):
        kind = local.kind(name)
        entry = getattr(registry, kind)()[name]
        source, gigabytes = entry.hub.id if entry.hub else "a local copy", None
        if entry.converter is not None:
            archive = getattr(entry, "archive", None)
            packages = registry.archive(archive).packages if archive else entry.packages
            source = f"package {archive or packages[0].requirement}"
            gigabytes = sum(package.megabytes for package in packages) / 1000
        elif kind == "models":
            gigabytes = 2 * entry.parameters / GIGA  # as published, in half precision
        rows.append((kind, name, source, gigabytes, local.is_available(name)))
    return pd.DataFrame(rows, columns=["kind", "name", "from", "GB", "here"])


def stages(settings: Settings, assumed: Assumed, sizes: Sizes = size) -> pd.DataFrame:
    """A row for each stage and model or study: how often, device hours, memory and disk.

    Args:
        sizes: name of a data set -> its questions and passages.
    Returns:
        stage, what, number, device_hours (of all devices together), memory_gb (of one device:
        weights, and in training their gradients and AdamW's two moments; activations and the
        search's buffer come on top), disk_gb, done (whether the study's scores are there).
    """
    rows = []
    encoded: set[tuple[str, str]] = set()
    tests = {student: [settings.data.train, *chosen.out_of_domain]
             for student, chosen in settings.students.items()}  # fmt: skip
    for name, study in settings.studies.items():
        done = paths.scores_path(settings, name).exists()
        found = [arm for arm in arms(settings, name) if arm.trained]
        pairs = {(t, s) for arm in found for t in arm.teachers for s in arm.train}
        for teacher, train in sorted(pairs - encoded):
            rows.append(_encoding(settings, assumed, teacher, train, sizes) | {"done": done})
        encoded |= pairs
        searched = {(t, s, arm.sampling) for arm in found for t in arm.teachers for s in arm.train}
        hours = sum(_searched(settings, assumed, t, s, sizes) for t, s, _ in searched)
        rows.append({"stage": "mine", "what": name, "number": len(searched),
                     "device_hours": hours, "done": done})  # fmt: skip
        for student in dict.fromkeys(arm.student for arm in found):
            mine = [arm for arm in found if arm.student == student]
            domains = tests[student] if study.out_of_domain else tests[student][:1]
            rows += [row | {"what": f"{name}, {student}", "done": done}
                     for row in _trained(settings, assumed, mine, domains, sizes)]  # fmt: skip
    return pd.DataFrame(rows)


def _encoding(settings: Settings, assumed: Assumed, teacher: str, train: str, sizes: Sizes) -> dict:
    row = {"stage": "encode", "what": f"{train} by {teacher}", "number": 1}
    if teacher == "bm25":
        return row | {"device_hours": 0.0}
    chosen, model = settings.teacher_named(teacher, "teacher"), registry.models()[teacher]
    queries, passages = sizes(train)
    tokens = queries * min(chosen.query_max_length, assumed.query_tokens)
    tokens += passages * min(chosen.passage_max_length, assumed.passage_tokens)
    bytes_each = 4 if chosen.dtype == "float32" else 2
    return row | {
        "device_hours": assumed.hours(2 * model.parameters * tokens),
        "memory_gb": model.parameters * bytes_each / GIGA,
        "disk_gb": (queries + passages) * model.dimension * 4 / GIGA,
    }


def _searched(
    settings: Settings, assumed: Assumed, teacher: str, train: str, sizes: Sizes
) -> float:
    """Hours of one search of a training set, which answers all methods of a study."""
    if teacher == "bm25":
        return 0.0
    queries, passages = sizes(train)
    return assumed.hours(2 * queries * passages * registry.models()[teacher].dimension)


def _trained(
    settings: Settings, assumed: Assumed, found: list[Arm], tests: list[str], sizes: Sizes
) -> list[dict]:
    student = settings.students[found[0].student]
    model, training = registry.models()[student.model], student.training
    queries = min(training.query_max_length, assumed.query_tokens)
    passages = min(training.passage_max_length, assumed.passage_tokens)
    passes = _passes(training)
    operations = 0.0
    for arm in found:
        whole = sum(sizes(name)[0] for name in arm.train)
        pairs = min(arm.queries or student.queries or whole, whole)
        for negatives in filter(None, (arm.num_negatives, arm.stage_two)):
            tokens = pairs * (queries + (1 + negatives) * passages) * training.epochs
            operations += 2 * model.parameters * tokens * passes
    tested = sum(q * queries + n * passages for q, n in map(sizes, tests))
    runs = len(settings.seeds) * len(found)
    # weights in float32; with full fine-tuning as much again for gradients and twice for AdamW
    held = model.parameters * (4 if training.lora_rank else 16) / GIGA
    return [
        {
            "stage": "train",
            "number": runs,
            "device_hours": assumed.hours(operations * len(settings.seeds)),
            "memory_gb": held,
            "disk_gb": runs * model.parameters * 4 / GIGA,
        },
        {
            "stage": "evaluate",
            "number": runs,
            "device_hours": assumed.hours(2 * model.parameters * tested * runs),
            "memory_gb": model.parameters * 4 / GIGA,
        },
    ]


def _passes(training: TrainingConfig) -> int:
    """A step's cost in forward passes."""
    return (2 if training.lora_rank else 3) + training.gradient_checkpointing


def describe(settings: Settings, assumed: Assumed) -> str:
    """The plan in words and tables."""
    wanted, table = downloads(settings), stages(settings, assumed)
    left = table[~table["done"]]
    hours = left["device_hours"].sum()
    fetched = wanted.loc[~wanted["here"], "GB"].sum()
    by_stage = table.groupby("stage", sort=False).agg(
        number=("number", "sum"), device_hours=("device_hours", "sum"),
        memory_gb=("memory_gb", "max"), disk_gb=("disk_gb", "sum"),
    )  # fmt: skip
    show = {"index": False, "na_rep": "-", "float_format": "{:,.2f}".format}
    return "\n".join(
        [
            wanted.to_string(**show),
            "",
            table.to_string(**show),
            "",
            by_stage.reset_index().to_string(**show),
            "",
            f"To fetch: {fetched:,.1f} GB and what has no size above. To compute: {hours:,.1f} "
            f"device hours, {hours / assumed.devices:,.1f} hours on {assumed.devices} of "
            f"{assumed.tflops:,.3g} TFLOP/s, for passages of {assumed.passage_tokens:g} tokens and "
            f"queries of {assumed.query_tokens:g}.",
        ]
    )
