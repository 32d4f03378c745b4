"""The arms of a study: one model each for a seed, with everything that makes it different.

A profile writes a grid down in few lines; here it becomes a list of arms, each with a label that
names what differs from the student's and the profile's own settings, and nothing else.
"""

from __future__ import annotations

import dataclasses
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
    """One way to train a student; see ``nvret.study.config.GridSettings`` for the words.

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
    pooling: str | None
    bidirectional: bool | None
    train: tuple[str, ...]
    mixture_temperature: float
    stage_two: int | None
    changed: tuple[str, ...] = ()

    @property
    def method_name(self) -> str:
        return BASE if not self.trained else NONE if self.method is None else str(self.method)

    @property
    def label(self) -> str:
        """``student: method, what is changed``; unique within a profile."""
        return f"{self.student}: " + ", ".join([self.method_name, *self.changed])

    @property
    def row(self) -> dict[str, Any]:
        """The arm as a row of a table: names and numbers, to select and to plot by."""
        values = dataclasses.asdict(self)
        parameter = list(vars(self.method).values()) if self.method is not None else []
        values |= {
            "method": self.method_name,
            "family": _family(self),
            "parameter": float(parameter[0]) if parameter else None,
            "teacher": "+".join(self.teachers) or None,
            "sampling": self.sampling.name,
            "k": getattr(self.sampling, "k", None),
            "train": "+".join(self.train),
        }
        return {key: values[key] for key in values if key not in ("teachers", "changed", "trained")}


def arms(settings: config.Settings, name: str) -> list[Arm]:
    """The arms of one study: each student's base model first, no arm twice.

    Raises:
        NvretError: no such study, or a grid that names something unknown or impossible.
    """
    if name not in settings.studies:
        known = ", ".join(settings.studies) or "none"
        raise NvretError(f"profile {settings.profile} has no study {name!r}, only {known}")
    found: dict[str, Arm] = {}
    for number, grid in enumerate(settings.studies[name].runs):
        where = f"studies.{name}.runs.{number}"
        for values in config.expand(grid):
            base = _arm(settings, where, {**_NOTHING, "student": values["student"]})
            arm = _arm(settings, where, values)
            found |= {base.label: found.get(base.label, base)}
            if found.setdefault(arm.label, arm) != arm:
                raise NvretError(f"{where}: two different arms are labelled {arm.label!r}")
    return list(found.values())


_NOTHING = {name: f.default for name, f in config.GridSettings.model_fields.items()} | {
    "method": "base"
}


def _family(arm: Arm) -> str:
    if arm.method is None:
        return "none" if arm.trained else "base"
    return next(name for name, kind in methods.BY_NAME.items() if type(arm.method) is kind)


def _arm(settings: config.Settings, where: str, values: dict[str, Any]) -> Arm:
    name = values["student"]
    if name not in settings.students:
        raise NvretError(f"{where}: no student {name!r}, only {', '.join(settings.students)}")
    student = settings.students[name]
    trained = values["method"] != "base"
    method = None
    if values["method"] not in ("base", "none"):
        parameters = {key: values[key] for key in ("n", "threshold", "margin", "perc")}
        method = methods.build_method(values["method"], **parameters)
    default = {
        "num_negatives": student.num_negatives if method is not None else 0,
        "in_batch_negatives": student.training.in_batch_negatives or values["method"] == "none",
        "temperature": student.training.temperature,
        "queries": student.queries,
        "pooling": student.training.pooling,
        "bidirectional": student.training.bidirectional,
        "train": settings.data.train,
        "teacher": settings.teacher,
        "mixture_temperature": 1.0,
        "memory_bank": 0,
    }
    told = {key: value for key, value in values.items() if value is not None}
    chosen = {**dict.fromkeys(values), **default, **told}
    needs = method is not None or chosen["mask_margin"] is not None
    teachers = tuple(chosen["teacher"].split("+")) if needs else ()
    for teacher in teachers:
        settings.teacher_named(teacher, where)
    if (len(teachers) > 1) != (chosen["ensemble"] is not None):
        raise NvretError(f"{where}: {len(teachers)} teachers with ensemble {chosen['ensemble']!r}")
    if not trained:
        chosen |= {"num_negatives": 0, "in_batch_negatives": False}
        default |= {"num_negatives": 0, "in_batch_negatives": False}
    sampling = _sampling(where, chosen["sampling"], chosen["k"])
    keep = ("num_negatives", "in_batch_negatives", "mask_margin", "memory_bank", "temperature",
            "queries", "pooling", "bidirectional", "mixture_temperature", "stage_two",
            "ensemble")  # fmt: skip
    return Arm(
        student=name,
        method=method,
        trained=trained,
        teachers=teachers,
        sampling=sampling,
        train=tuple(chosen["train"].split("+")),
        changed=tuple(_changes(chosen, default, needs)),
        **{key: chosen[key] for key in keep},
    )


def _sampling(where: str, kind: str, k: int | None) -> Sampling:
    if (kind == "top-k") != (k is None):
        raise NvretError(f"{where}: sampling {kind!r} with k {k}")
    return TopK() if k is None else (SampledTopK if kind == "sampled" else Top1PlusSampled)(k)


def _changes(chosen: dict[str, Any], default: dict[str, Any], needs: bool) -> list[str]:
    """What differs from the settings of the student and the profile, in words."""
    said = []
    if needs and chosen["teacher"] != default["teacher"]:
        said.append(f"teacher {chosen['teacher']}")
    if chosen["ensemble"]:
        said.append(chosen["ensemble"])
    if chosen["k"] is not None:
        said.append(f"{chosen['sampling']} from {chosen['k']}")
    words = {
        "num_negatives": "{} negatives" if chosen["num_negatives"] != 1 else "{} negative",
        "temperature": "temperature {:g}",
        "queries": "{} queries",
        "pooling": "{} pooling",
        "train": "trained on {}",
        "mixture_temperature": "mixture temperature {:g}",
        "memory_bank": "memory bank of {}",
    }
    sets = chosen["train"].count("+") + 1
    shown = chosen | ({"train": f"{sets} sets"} if sets > 4 else {})
    for key, form in words.items():
        if chosen[key] != default[key]:
            said.append(form.format(shown[key]))
    if chosen["bidirectional"] != default["bidirectional"]:
        said.append("bidirectional" if chosen["bidirectional"] else "causal")
    if chosen["in_batch_negatives"] != default["in_batch_negatives"]:
        said.append("in-batch" if chosen["in_batch_negatives"] else "not in-batch")
    if chosen["mask_margin"] is not None:
        said.append(f"masked above the positive + {chosen['mask_margin']:g}")
    if chosen["stage_two"] is not None:
        said.append(f"then {chosen['stage_two']} negatives")
    return said
