"""The schema of ``params/*.yaml``: one file describes one run, and an unknown key is an error.

papermill injects a file's top-level keys into a notebook as variables, and runs on without a word
where a key is misspelt. So every notebook starts with ``config.notebook(globals())``, which reads
the variables that the parameters cells left, and checks them like a file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from nvret import methods
from nvret.training.config import TrainingConfig
from nvret.utils.errors import NvretError, check_file, check_name
from nvret.utils.settings import Section, explain

Positive = Field(gt=0)
Name = Annotated[str, AfterValidator(check_name)]  # which a path is made of
Value = TypeVar("Value")
Swept = Value | list[Value]  # one value, or several to run through
Ensemble = Literal["cross-sample", "intra-sample", "intra-sample-no-dedup"]
Treatment = Literal["oracle", "placebo", "dose-25", "dose-50"]


class TeacherSettings(Section):
    name: str
    """A name that ``nvret.assets`` knows, a folder, or "bm25", which reads all of each text."""

    query_max_length: int = Positive
    """Tokens that are read of a question."""

    passage_max_length: int = Positive
    """Tokens that are read of a passage."""

    index: str | None = None
    """How passages are searched: null, exactly; "screen", exactly too, but most of it in bfloat16
    where a CPU has AMX, and on a GPU; or approximately, by faiss's name of an index
    ("HNSW32", "IVF4096,Flat")."""

    probes: int = Field(default=64, gt=0)
    """Cells or neighbours that the approximate index looks at."""

    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Precision of the model's forward pass."""


class MiningSettings(Section):
    """As the arguments of `nvret.mining.mine`."""

    ceiling_positive: Literal["own", "lowest"]
    negative_positives: Literal["literal", "safe"]
    near_duplicates: float | None = Field(gt=0, le=1)


class Parametrised(Section):
    """A section that names mining methods and may set any parameter of theirs beside its own keys.

    A parameter is a field of a class in ``nvret.methods.BY_NAME``, so a method that is registered
    there is known here. A list of values is swept.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    @classmethod
    def known_keys(cls) -> list[str]:
        return [*cls.model_fields, *_parameters(*methods.BY_NAME.values()).model_fields]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that are set, by name."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _check_parameters(self) -> Parametrised:
        given = _parameters(*methods.BY_NAME.values()).model_validate(self.parameters)
        self.model_extra.update(given.model_dump(include=given.model_fields_set))
        return self


@cache
def _parameters(*kinds: type[methods.Method]) -> type[Section]:
    """A section with every parameter of these methods, one value or a list of values."""
    types: dict[str, Any] = {}
    for kind in kinds:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            types[field.name] = types.get(field.name, hints[field.name]) | hints[field.name]
    fields = {name: (Swept[kind] | None, None) for name, kind in types.items()}
    return create_model("Parameters", __base__=Section, **fields)


class MethodSettings(Parametrised):
    """A method and its parameters (default: the paper's); a list stands for as many methods."""

    name: str
    """A name of ``nvret.methods.BY_NAME``."""

    def build(self) -> list[methods.Method]:
        return [methods.build_method(**choice) for choice in expand(self)]

    @model_validator(mode="after")
    def _check(self) -> MethodSettings:
        self.build()
        return self


class StudentSettings(Section):
    """A model to fine-tune."""

    model: str

    queries: int | None = Field(gt=0)
    """Questions of the training part that it learns from; null: all."""

    num_negatives: int = Positive
    """Mined negatives of each pair."""

    out_of_domain: list[str]
    """Sets that it is tested on beside the held-out part of the training set."""

    corpora: list[str] | None = Field(default=None, min_length=1)
    """Those of a study's corpora that its held-out questions search in; null: all of them."""

    test_queries: int | None = Field(default=None, gt=0)
    """Questions of each test set; null: as ``data`` says."""

    test_passages: int | None = Field(default=None, gt=0)
    """Passages of each test set; null: all."""

    head: bool = False
    """Train a linear head on the frozen model's vectors."""

    seeds: int | None = Field(default=None, gt=0)
    """As many of the profile's seeds, the first ones; null: all."""

    training: TrainingConfig


class GridSettings(Parametrised):
    """Runs of a study: every combination of the values that are lists.

    What is not said is the student's own value (``num_negatives``, ``in_batch_negatives``,
    ``temperature``, ``queries``, ``epochs``, ``learning_rate``, ``pooling``, ``bidirectional``) or
    the profile's (``teacher``, ``train``). Names joined by "+" are several: teachers of an
    ensemble, sets of a mixture.
    """

    student: Swept[str]

    method: Swept[str]
    """A name of ``nvret.methods.BY_NAME``, "none" (in-batch negatives alone) or "base" (not
    trained)."""

    teacher: Swept[str] | None = None
    ensemble: Swept[Ensemble] | None = None
    sampling: Swept[Literal["top-k", "sampled", "top-1+sampled"]] = "top-k"

    k: Swept[int] | None = None
    """Candidates that a sampling draws from."""

    num_negatives: Swept[int] | None = None
    in_batch_negatives: Swept[bool] | None = None
    mask_margin: Swept[float] | None = None
    memory_bank: Swept[int] = 0
    temperature: Swept[float] | None = None
    queries: Swept[int] | None = None
    epochs: Swept[float] | None = None
    learning_rate: Swept[float] | None = None
    pooling: Swept[Literal["mean", "last"]] | None = None
    bidirectional: Swept[bool] | None = None

    train: Swept[str] | None = None
    """A set; "nq:clusters" and "vitaminc:hidden" are its questions with hidden positives, whose
    labels are hidden (`nvret.study.workspace.HIDING`)."""

    treatment: Swept[Treatment] | None = None
    """What becomes of naive mining's hidden positives, see `nvret.study.treatments`."""

    mixture_temperature: Swept[float] = 1.0
    """Shares of a mixture's sets: 1 keeps their proportions, 0 takes the same of each."""

    stage_two: Swept[int] | None = None
    """Negatives of a second stage of training; null: one stage."""


class StudySettings(Section):
    """What one notebook trains and compares."""

    corpora: list[str] | None = Field(default=None, min_length=1)
    """What its held-out questions search in: names of ``data.corpora``, the first of those among
    them; null: that one alone."""

    seeds: int | None = Field(default=None, gt=0)
    """As many of a student's seeds, the first ones; null: all."""

    dev: bool
    """Also evaluate on the development split, where a value is chosen."""

    out_of_domain: bool
    """Also evaluate on the students' sets of other domains."""

    reference: str
    """What each student's other runs are compared with: a label after the student."""

    runs: list[GridSettings] = Field(min_length=1)


class AuditSettings(Section):
    """What ``09_false_negatives`` counts."""

    datasets: list[str] = Field(min_length=1)
    """Sets whose labels are hidden."""

    queries: int | None = Field(gt=0)
    """Of each set; null: all."""

    passages: int | None = Field(gt=0)
    """Of each set, and all relevant ones, hidden or not; null: all."""

    teacher: str
    num_negatives: int = Positive
    methods: list[MethodSettings] = Field(min_length=1)

    judges: list[str]
    """Models that read ``judged_pairs`` of the negatives."""

    judged_pairs: int = Positive


class CorpusSettings(Section):
    """What held-out questions search in; see `nvret.study.splits.with_corpus`."""

    base: Literal["own", "full"]
    """The passages of the held-out part's own groups; or all of its set, those seen in training
    among them, as in BEIR."""

    others: list[str] = Field(default_factory=list)
    """Sets whose passages are added."""

    passages: int | None = Field(default=None, gt=0)
    """At most so many, those of the part itself first; null: all."""


class DataSettings(Section):
    train: str
    """The set that is trained on and tested on; a study may name others."""

    split_seed: int = Field(default=0, ge=0)
    """Another one holds out other questions."""

    dev_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=0.5)

    test_queries: int | None = Field(gt=0)
    """Questions of each test set; null: all."""

    corpora: dict[Name, CorpusSettings] = Field(min_length=1)
    """What held-out questions search in; the first is the primary one, which averages count."""

    leak_threshold: float | None = Field(gt=0, le=1)
    """Share of word trigrams from which a training passage leaks; null: leaks stay."""


class Settings(Section):
    """Everything that a profile says; hardly a key has a default, so that a file says it all."""

    profile: Name
    seeds: list[int] = Field(min_length=1)
    device: Literal["cpu", "cuda"]
    data: DataSettings

    teachers: list[TeacherSettings] = Field(min_length=1)
    """From weak to strong."""

    teacher: str
    """The one of ``teachers`` that is meant where a study says nothing."""

    mining: MiningSettings

    methods: list[MethodSettings] = Field(min_length=1)
    """The methods that ``00_the_method`` shows."""

    students: dict[Name, StudentSettings] = Field(min_length=1)

    studies: dict[Name, StudySettings]
    """By the name of their notebook."""

    audit: AuditSettings
    notebooks: list[Name] = Field(min_length=1)

    keep_models: bool = False
    """Trained models stay in the cache after they have been tested."""

    @model_validator(mode="after")
    def _check(self) -> Settings:
        for name, values in {
            "seeds": self.seeds,
            "teachers": [teacher.name for teacher in self.teachers],
            "methods": [str(method) for one in self.methods for method in one.build()],
        }.items():
            twice = {str(value) for value in values if values.count(value) > 1}
            if twice:
                raise NvretError(f"{name} names {', '.join(sorted(twice))} more than once")
        self.teacher_named(self.teacher, "teacher")
        self.teacher_named(self.audit.teacher, "audit.teacher")
        known = list(self.data.corpora)
        sections = {f"studies.{name}": study for name, study in self.studies.items()}
        sections |= {f"students.{name}": student for name, student in self.students.items()}
        for section, chosen in sections.items():
            names, where = chosen.corpora or known[:1], f"{section}.corpora"
            if unknown := [name for name in names if name not in known]:
                raise NvretError(f"{where}: {unknown[0]!r} is not among {', '.join(known)}")
            if known[0] not in names or len(set(names)) < len(names):
                raise NvretError(f"{where}: expected each name once, {known[0]!r} among them")
        return self

    def seeds_of(self, student: str, study: str) -> list[int]:
        """The seeds that a student is trained with in a study."""
        return self.seeds[: self.students[student].seeds][: self.studies[study].seeds]

    def teacher_named(self, name: str, where: str) -> TeacherSettings:
        """The teacher of that name; ``where`` is the key that names it."""
        known = {teacher.name: teacher for teacher in self.teachers}
        if name not in known:
            raise NvretError(f"{where}: {name!r} is not among teachers: {', '.join(known)}")
        return known[name]


def expand(section: Parametrised) -> list[dict[str, Any]]:
    """Every combination of a section's values that are lists; the last key turns fastest.

    Keys stand in the order of the class, the parameters of a method behind the method.

    >>> [method["perc"] for method in expand(MethodSettings(name="perc-pos", perc=[0.9, 0.95]))]
    [0.9, 0.95]
    """
    first = [key for key in ("student", "method", "name") if key in type(section).model_fields]
    values = {key: getattr(section, key) for key in first} | section.parameters | dict(section)
    lists = [value if isinstance(value, list) else [value] for value in values.values()]
    return [dict(zip(values, choice, strict=True)) for choice in itertools.product(*lists)]


def project_root() -> Path:
    """The checkout, which holds ``params/`` and ``notebooks/``: this folder or one above it."""
    for folder in [Path.cwd(), *Path.cwd().parents]:
        if (folder / "params").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise NvretError(
        f"{Path.cwd()} is not inside the repository: expected params/ and notebooks/ here or above"
    )


def read(path: Path | str) -> dict[str, Any]:
    """The values of a YAML file, unchecked."""
    path = Path(path)
    check_file(path, "a YAML file such as params/quick.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NvretError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise NvretError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise NvretError(f"{path} holds {type(values).__name__}, expected keys and values")
    return values


def load(path: Path | str) -> Settings:
    """Read and check a profile."""
    return check(read(path), str(path))


def check(values: Mapping[str, Any], source: str) -> Settings:
    """Check values that came from ``source``.

    Raises:
        NvretError: one line for each unknown key, wrong type or missing value.
    """
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{source}: {line}" for line in explain(error, Settings)]
        raise NvretError("\n".join(lines)) from None


def notebook(namespace: Mapping[str, Any]) -> Settings:
    """The checked settings of a running notebook.

    Args:
        namespace: ``globals()`` of the notebook after its parameters cells and before anything
            but this module is imported. ``profile`` names the file in ``params/`` that gives what
            the namespace does not; every other public variable must be a key of ``Settings``.
    """
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and isinstance(value, (str, int, float, list, dict, type(None)))
        and name not in {"In", "Out"}
    }
    if not isinstance(given.get("profile"), str):
        raise NvretError("the parameters cell sets no profile, expected a name such as 'quick'")
    path = project_root() / "params" / f"{check_name(given['profile'])}.yaml"
    defaults = read(path) if path.is_file() else {}
    return check({**defaults, **given}, f"parameters of profile {given['profile']!r}")
