"""What a profile will take before it is run: downloads, encoding, mining, training, evaluation.

The work (`nvret.cost.work`) is counted in operations; a device's rate, measured
(`nvret.cost.calibration.measure_rate`) or given, turns them into hours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from nvret import data
from nvret.assets import registry, resolve
from nvret.cost import work
from nvret.study import notebooks, paths
from nvret.study.arms import Arm, arms, by_student
from nvret.study.config import Settings, TeacherSettings
from nvret.training.config import TrainingConfig

GIGA = 1e9
COLUMNS = ["stage", "what", "number", "device_hours", "done", "memory_gb", "disk_gb"]
Sizes = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Assumed(work.Positive):
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

    def tokens(
        self, limits: TeacherSettings | TrainingConfig, queries: int, passages: int
    ) -> float:
        """Of so many texts, cut where a teacher or a student cuts them."""
        of_queries = queries * min(limits.query_max_length, self.query_tokens)
        return of_queries + passages * min(limits.passage_max_length, self.passage_tokens)


def size(name: str) -> tuple[int, int]:
    """Questions and passages of a data set as it is published; of a packaged one, as it is.

    A set that says nothing of its passages counts as one passage for each question.
    """
    name = name.partition(":")[0]  # of one with hidden labels, the whole
    entry = registry.datasets()[name]
    if entry.converter is not None:
        dataset = data.load(name, progress=False)
        return dataset.queries.num_rows, dataset.corpus.num_rows
    queries = entry.queries or 0
    return queries, entry.passages or queries


def downloads(settings: Settings) -> pd.DataFrame:
    """A row for each data set and model: its source, gigabytes if known, and whether it is here."""
    rows = []
    for name in notebooks.assets_of(settings):
        kind, entry = registry.kind(name), registry.entry(name)
        source, gigabytes = entry.hub.id if entry.hub else "a local copy", None
        if entry.converter is not None:
            archive = getattr(entry, "archive", None)
            packages = registry.archive(archive) if archive else entry.packages
            source = f"package {archive or packages[0].requirement}"
            gigabytes = sum(package.megabytes for package in packages) / 1000
        elif kind == "models":
            gigabytes = 2 * entry.parameters / GIGA  # as published, in half precision
        rows.append((kind, name, source, gigabytes, resolve.is_available(name)))
    return pd.DataFrame(rows, columns=["kind", "name", "from", "GB", "here"])


def stages(settings: Settings, assumed: Assumed, sizes: Sizes = size) -> pd.DataFrame:
    """A row for each stage and model or study; ``sizes`` gives a set's questions and passages.

    Returns:
        stage, what, number, device_hours (of all devices together), done (whether the study's
        scores are there), memory_gb (of one device: weights, and in training their gradients and
        AdamW's two moments; activations and the search's buffer come on top), disk_gb.
    """
    rows: list[dict] = []
    encoded: set[tuple[str, str]] = set()
    for name in settings.studies:
        trained = [arm for arm in arms(settings, name) if arm.trained]
        searches = {  # one answers all methods of a study
            (teacher, train, arm.sampling)
            for arm in trained
            for teacher in arm.teachers
            for train in arm.sets
        }
        sources = {(teacher, train) for teacher, train, _ in searches}
        steps = [
            _encode(settings, assumed, teacher, train, sizes(train))
            for teacher, train in sorted(sources - encoded)
        ]
        encoded |= sources
        operations = 2 * sum(
            work.Search(*sizes(train), registry.models()[teacher].dimension).products
            for teacher, train, _ in searches
            if teacher != "bm25"
        )
        mine = {"stage": "mine", "what": name, "number": len(searches), "operations": operations}
        steps.append(mine)
        for student, own in by_student(trained).items():
            for step in _train(settings, assumed, name, own, sizes):
                steps.append(step | {"what": f"{name}, {student}"})
        done = paths.scores_path(settings, name).exists()
        rows += [step | {"done": done} for step in steps]
    table = pd.DataFrame(rows)
    table["device_hours"] = table["operations"].astype(float) / (assumed.tflops * 1e12) / 3600
    return table.reindex(columns=COLUMNS)


def _encode(
    settings: Settings, assumed: Assumed, teacher: str, train: str, sizes: tuple[int, int]
) -> dict:
    row = {"stage": "encode", "what": f"{train} by {teacher}", "number": 1, "operations": 0.0}
    if teacher == "bm25":
        return row
    chosen, model = settings.teacher_named(teacher, "teacher"), registry.models()[teacher]
    tokens = assumed.tokens(chosen, *sizes)
    return row | {
        "operations": work.forward_operations(model.parameters, tokens),
        "memory_gb": model.parameters * (2 if chosen.dtype.endswith("16") else 4) / GIGA,
        "disk_gb": work.vector_bytes(sum(sizes), model.dimension) / GIGA,
    }


def _train(
    settings: Settings, assumed: Assumed, name: str, trained: list[Arm], sizes: Sizes
) -> list[dict]:
    """Training and evaluation of one student's arms in the study of that name."""
    study, student = settings.studies[name], settings.students[trained[0].student]
    tests = [train for arm in trained for train in arm.sets]
    for corpus in study.corpora or list(settings.data.corpora)[:1]:
        tests += settings.data.corpora[corpus].others
    tests += student.out_of_domain if study.out_of_domain else []
    parameters, training = registry.models()[student.model].parameters, student.training
    tokens = 0.0
    for arm in trained:
        whole = sum(sizes(train)[0] for train in arm.sets)
        pairs = min(arm.queries or student.queries or whole, whole)
        for negatives in filter(None, (arm.num_negatives, arm.stage_two)):
            tokens += assumed.tokens(training, pairs, pairs * (1 + negatives)) * arm.epochs
    tested = sum(assumed.tokens(training, *sizes(test)) for test in dict.fromkeys(tests))
    seeds = len(settings.seeds_of(trained[0].student, name))
    runs, weights = seeds * len(trained), parameters * work.FLOAT / GIGA
    if student.head:  # each text is read once, and a head takes next to nothing
        sets = {train for arm in trained for train in arm.train}
        read = sum(assumed.tokens(training, *sizes(train)) for train in sets)
        train = {"operations": work.forward_operations(parameters, read), "memory_gb": weights}
        test = {"operations": work.forward_operations(parameters, tested)}
    else:
        # With LoRA the gradients and AdamW's two moments are small
        memory = weights * (1 if training.lora_rank else 4)
        operations = work.training_operations(parameters, tokens, training) * seeds
        train = {"operations": operations, "memory_gb": memory, "disk_gb": runs * weights}
        test = {"operations": work.forward_operations(parameters, tested) * runs}
    return [
        {"stage": "train", "number": runs} | train,
        {"stage": "evaluate", "number": runs, "memory_gb": weights} | test,
    ]


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
    tables = [part.to_string(**show) for part in (wanted, table, by_stage.reset_index())]
    told = (
        f"To fetch: {fetched:,.1f} GB and what has no size above. To compute: {hours:,.1f} "
        f"device hours, {hours / assumed.devices:,.1f} hours on {assumed.devices} of "
        f"{assumed.tflops:,.3g} TFLOP/s, for passages of {assumed.passage_tokens:g} tokens and "
        f"queries of {assumed.query_tokens:g}."
    )
    return "\n\n".join([*tables, told])
