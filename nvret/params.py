"""The schema of ``params/*.yaml``: one file describes one run, and an unknown key is an error.

papermill injects a file's top-level keys into a notebook as variables, and runs on without a word
where a key is misspelt. So every notebook starts with ``params.notebook(globals())``, which reads
the variables that the parameters cells left, and checks them like a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nvret import methods
from nvret.errors import NvretError

Positive = Field(gt=0)


class Section(BaseModel):
    """Keys are checked strictly: ``1e-5`` without a point is a string in YAML, and an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Lengths(Section):
    """Tokens that are read of each text."""

    query_max_length: int = Positive
    passage_max_length: int = Positive


class TeacherSettings(Lengths):
    name: str


class MiningSettings(Section):
    num_negatives: int = Positive
    anchor: Literal["pair", "lowest"]
    negative_positives: Literal["literal", "safe"]
    near_duplicates: float | None = Field(gt=0, le=1)


class MethodSettings(Section):
    """A name of ``nvret.methods.BY_NAME``, and that method's parameter (default: the paper's)."""

    name: str
    n: int | None = None
    threshold: float | None = None
    margin: float | None = None
    perc: float | None = None

    def build(self) -> methods.Method:
        return methods.build_method(**self.model_dump())

    @model_validator(mode="after")
    def _check(self) -> MethodSettings:
        self.build()
        return self


class TrainingSettings(Lengths):
    """How a student is fine-tuned; see ``nvret.training.TrainingConfig``."""

    epochs: int = Positive
    batch_size: int = Positive
    learning_rate: float = Positive
    warmup_ratio: float = Field(ge=0, le=1)
    weight_decay: float = Field(ge=0)
    temperature: float = Positive
    in_batch_negatives: bool
    dropout: float | None = Field(ge=0, lt=1)


class StudentSettings(Section):
    """A model to fine-tune, on how many questions of the training part (null: all of them), and
    the sets that it is tested on beside the held-out part of the training set."""

    name: str
    queries: int | None = Field(gt=0)
    out_of_domain: list[str]
    training: TrainingSettings


class DataSettings(Section):
    train: str
    dev_fraction: float = Field(gt=0, lt=0.5)
    test_fraction: float = Field(gt=0, lt=0.5)
    test_queries: int | None = Field(gt=0)
    test_corpus: Literal["full", "own"]
    leak_threshold: float = Field(gt=0, le=1)


class Settings(Section):
    """Everything that a profile says. No key has a default: a file is read without this one."""

    profile: str
    seeds: list[int] = Field(min_length=1)
    device: Literal["cpu", "cuda"]
    data: DataSettings
    teacher: TeacherSettings
    mining: MiningSettings
    methods: list[MethodSettings] = Field(min_length=1)
    students: list[StudentSettings] = Field(min_length=1)
    notebooks: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        for name, values in {
            "seeds": self.seeds,
            "methods": [str(method.build()) for method in self.methods],
            "students": [student.name for student in self.students],
        }.items():
            twice = {str(value) for value in values if values.count(value) > 1}
            if twice:
                raise NvretError(f"{name} names {', '.join(sorted(twice))} more than once")
        return self


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
    if not path.is_file():
        raise NvretError(f"{path}: no such file, expected a YAML file such as params/quick.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
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
        lines = [f"{source}: {_explain(problem)}" for problem in error.errors()]
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
    path = project_root() / "params" / f"{given['profile']}.yaml"
    defaults = read(path) if path.is_file() else {}
    return check({**defaults, **given}, f"parameters of profile {given['profile']!r}")


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(_section(problem["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        return f"{where}: unknown key, {hint}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    return f"{where}: {problem['msg']}, found {problem['input']!r}"


def _section(location: tuple[str | int, ...]) -> type[Section]:
    """The model that describes a place in the file."""
    section: type[Section] = Settings
    for part in location:
        if isinstance(part, int):
            continue
        kind = section.model_fields[part].annotation
        section = next((a for a in getattr(kind, "__args__", ()) if isinstance(a, type)), kind)
    return section
