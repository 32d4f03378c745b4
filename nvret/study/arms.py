"""The arms of a study: one model each for a seed, with everything that makes it different.

A profile writes a grid down in few lines; here it becomes a list of arms, each with a label that
names what differs from the student's and the profile's own settings, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nvret import methods
from nvret.sampling import SampledTopK, Sampling, Top1PlusSampled, TopK
from nvret.study import config
from nvret.utils.errors import NvretError

BASE = "Base model"  # the student before any fine-tuning
NONE = "No mined negatives"  # in-batch negatives or a memory bank alone


@dataclass(frozen=True)
class Arm:
    """One way to train a student; see `nvret.study.config.GridSettings` for the words.

    Attributes:
        method: None where nothing is mined.
        trained: False for the student as it came.
        teachers: names; none where the method needs none.
        train: names of the training sets.
        changed: what differs from the student's and the profile's settings, in words.
    """

    student: str
    method: methods.Method | None
    trained: bool
    teachers: tuple[str, ...]
    ensemble: str | None
    sampling: Sampling
    num_negatives: int
    in_batch_negatives: bool
    mask_margin: float | None
    memory_bank: int
    temperature: float
    queries: int | None
    epochs: float
    learning_rate: float
    pooling: str | None
    bidirectional: bool | None
    train: tuple[str, ...]
    treatment: str | None
    mixture_temperature: float
    stage_two: int | None
    changed: tuple[str, ...] = ()

    @property
    def method_name(self) -> str:
        return BASE if not self.trained else NONE if self.method is None else str(self.method)

    @property
    def sets(self) -> list[str]:
        """Names of the training sets as they are published, whatever labels are hidden."""
        return [name.partition(":")[0] for name in self.train]

    @property
    def label(self) -> str:
        """``student: method, what is changed``; unique within a profile."""
        return f"{self.student}: " + ", ".join([self.method_name, *self.changed])

    @property
    def row(self) -> dict[str, Any]:
        """The arm as a row of a table: names and numbers, to select and to plot by."""
        values = dataclasses.asdict(self)
        parameter = list(vars(self.method).values()) if self.method is not None else []
        family = "none" if self.trained else "base"
        values |= {
            "method": self.method_name,
            "family": family if self.method is None else self.method.name,
            "parameter": float(parameter[0]) if parameter else None,
            "teacher": "+".join(self.teachers) or None,
            "sampling": self.sampling.name,
            "k": getattr(self.sampling, "k", None),
            "train": "+".join(self.train),
        }
        left_out = ("teachers", "changed", "trained")
        return {key: value for key, value in values.items() if key not in left_out}


def arms(settings: config.Settings, name: str) -> list[Arm]:
    """The arms of one study: each student's base model first, no arm twice.

    Raises:
        NvretError: no such study, or a grid that names something unknown or impossible.
    """
    if name not in settings.studies:
        known = ", ".join(settings.studies) or "none"
        raise NvretError(f"profile {settings.profile} has no study {name!r}, only {known}")
    by_label: dict[str, Arm] = {}
    for number, grid in enumerate(settings.studies[name].runs):
        where = f"studies.{name}.runs.{number}"
        for values in config.expand(grid):
            base = _arm(settings, where, {"student": values["student"], "method": "base"})
            arm = _arm(settings, where, values)
            by_label.setdefault(base.label, base)
            if by_label.setdefault(arm.label, arm) != arm:
                raise NvretError(f"{where}: two different arms are labelled {arm.label!r}")
    return list(by_label.values())


def by_student(chosen: Iterable[Arm]) -> dict[str, list[Arm]]:
    """The arms of each student, in their order."""
    students: dict[str, list[Arm]] = {}
    for arm in chosen:
        students.setdefault(arm.student, []).append(arm)
    return students


def _arm(settings: config.Settings, where: str, values: dict[str, Any]) -> Arm:
    """One combination of a grid's values; ``where`` is the grid's place in the profile."""
    name, kind = values["student"], values["method"]
    if name not in settings.students:
        raise NvretError(f"{where}: no student {name!r}, only {', '.join(settings.students)}")
    method = None
    if kind not in ("base", "none"):
        own = config.GridSettings.model_fields
        parameters = {key: value for key, value in values.items() if key not in own}
        method = methods.build_method(kind, **parameters)
    default = defaults(settings, settings.students[name], kind)
    chosen = default | {key: value for key, value in values.items() if value is not None}
    chosen["sampling"] = _sampling(where, chosen["sampling"], chosen.pop("k"))
    if kind == "base":
        chosen |= {key: default[key] for key in ("num_negatives", "in_batch_negatives")}
    if method is None and chosen["mask_margin"] is None:  # nothing to ask a teacher
        chosen["teacher"] = default["teacher"]
        teachers = ()
    else:
        teachers = tuple(chosen["teacher"].split("+"))
    for teacher in teachers:
        settings.teacher_named(teacher, where)
    if (len(teachers) > 1) != (chosen["ensemble"] is not None):
        raise NvretError(f"{where}: {len(teachers)} teachers with ensemble {chosen['ensemble']!r}")
    for key in ("stage_two", "pooling", "bidirectional") if settings.students[name].head else ():
        if chosen[key] is not None:
            raise NvretError(f"{where}: {key} is {chosen[key]!r}, but student {name!r} is a head")
    if chosen["treatment"] is not None:
        shown = all(":" in name for name in chosen["train"].split("+"))
        if kind != "naive" or chosen["sampling"] != TopK() or chosen["ensemble"] or not shown:
            raise NvretError(
                f"{where}: treatment {chosen['treatment']!r} of {kind} on {chosen['train']}, "
                "expected naive negatives of one teacher, not sampled, and a training set with "
                "hidden labels such as 'nq:clusters'"
            )
    default["sampling"] = TopK()
    changed = [word(chosen[key]) for key, word in WORDS.items() if chosen[key] != default[key]]
    chosen |= {"method": method, "teachers": teachers, "trained": kind != "base"}
    chosen |= {"changed": tuple(changed), "train": tuple(chosen["train"].split("+"))}
    return Arm(**{field.name: chosen[field.name] for field in dataclasses.fields(Arm)})


def defaults(
    settings: config.Settings, student: config.StudentSettings, kind: str
) -> dict[str, Any]:
    """What an arm of this method has where its grid says nothing."""
    mined, training = kind not in ("base", "none"), student.training
    fields = config.GridSettings.model_fields.items()
    grid = {key: field.default for key, field in fields if not field.is_required()}
    shared = {"temperature", "epochs", "learning_rate", "pooling", "bidirectional"}
    return grid | training.model_dump(include=shared) | {
        "teacher": settings.teacher,
        "train": settings.data.train,
        "queries": student.queries,
        "num_negatives": student.num_negatives if mined else 0,
        "in_batch_negatives": kind != "base" and (training.in_batch_negatives or kind == "none"),
    }  # fmt: skip


def _sampling(where: str, kind: str, k: int | None) -> Sampling:
    if (kind == "top-k") != (k is None):
        raise NvretError(f"{where}: sampling {kind!r} with k {k}")
    return TopK() if k is None else (SampledTopK if kind == "sampled" else Top1PlusSampled)(k)


def _sets(train: str) -> str:
    number = train.count("+") + 1
    return f"trained on {train if number <= 4 else f'{number} sets'}"


# How a label says that a value is not the default one, in the order of the label
WORDS: dict[str, Callable[[Any], str]] = {
    "treatment": str,
    "teacher": "teacher {}".format,
    "ensemble": str,
    "sampling": lambda sampling: f"{sampling.name} from {sampling.k}",
    "num_negatives": lambda number: f"{number} negative{'s' * (number != 1)}",
    "temperature": "temperature {:g}".format,
    "queries": "{} queries".format,
    "epochs": "{:g} epochs".format,
    "learning_rate": "learning rate {:g}".format,
    "pooling": "{} pooling".format,
    "train": _sets,
    "mixture_temperature": "mixture temperature {:g}".format,
    "memory_bank": "memory bank of {}".format,
    "bidirectional": lambda value: "bidirectional" if value else "causal",
    "in_batch_negatives": lambda value: "in-batch" if value else "not in-batch",
    "mask_margin": "masked above the positive + {:g}".format,
    "stage_two": "then {} negatives".format,
}
