"""The pre-registration: what is claimed, and which arms of which study decide it.

``params/claims.yaml`` names no result, neither the paper's nor ours: the paper's are looked up in
``results/paper``, ours in the studies' scores. What was known when it was written stands in it.
What it leaves open (the best of several values) is chosen on the development split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from nvret import methods
from nvret.study import config
from nvret.study.config import Ensemble
from nvret.study.paper import PaperDifference, PaperMean, PaperRows
from nvret.utils import settings
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section

Wild = Literal["any", "other"]  # every value, or all but the default
Number = float | list[float] | Wild | Literal["largest"] | None
Sampling = Literal["top-k", "sampled", "top-1+sampled"]
TABLES = {
    "paper": "The paper's claims",
    "design": "Design choices that the paper never compared",
    "field": "Findings of the field",
}
Share = Annotated[float, Field(gt=0, lt=1)]


class ArmFilter(Section):
    """Arms of a study, by the columns of ``Results.arms``.

    What is not said has the value that an arm has when its grid says nothing: the student's or
    the profile's own, and for ``parameter`` the paper's best. "any" stands for every value,
    "other" for all but that one, "largest" for the end of what the rest leaves. A ``*`` in a text
    stands for any part of it: ``*+*`` is any ensemble or mixture. The teacher "best" is the one
    whose own NDCG@10 on the development split is highest, the student's own base model left out.
    """

    family: str | list[str]
    parameter: Number = None
    teacher: str | list[str] | None = None
    ensemble: Ensemble | list[Ensemble] | Wild | None = None
    sampling: Sampling | list[Sampling] | Wild | None = None
    k: Number = None
    num_negatives: Number = None
    in_batch_negatives: bool | Wild | None = None
    mask_margin: Number = None
    memory_bank: Number = None
    temperature: Number = None
    queries: Number = None
    pooling: str | None = None
    bidirectional: bool | Wild | None = None
    train: str | list[str] | None = None
    treatment: str | list[str] | Wild | None = None
    mixture_temperature: Number = None
    stage_two: Number = None
    epochs: Number = None

    @model_validator(mode="after")
    def _check(self) -> ArmFilter:
        families = self.family if isinstance(self.family, list) else [self.family]
        known = [*methods.BY_NAME, "none", "base"]
        if unknown := set(families) - set(known):
            raise NvretError(f"no family {min(unknown)!r}, expected one of {', '.join(known)}")
        return self


class Claim(Section):
    """A sentence that is true or false; the ledger's rows are grouped by table and section.

    ``paper`` is there only where the paper's figure is of the same contrast. The primary claims are
    adjusted among themselves, one row each; all others are exploratory.
    """

    id: str
    claim: str
    table: Literal["paper", "design", "field"]
    section: str
    note: str = ""
    primary: bool = False
    paper: PaperDifference | PaperRows | PaperMean | None = None

    @model_validator(mode="after")
    def _check_place(self) -> Claim:
        if self.primary and len(getattr(self, "students", [])) != 1:
            raise NvretError(f"{self.id}: a primary claim names one student, as in students: [x]")
        if self.paper and self.table != "paper":
            raise NvretError(f"{self.id}: a figure of the paper in the table {self.table!r}")
        return self


class Trained(Claim):
    """A claim that the scores of a study decide, a row for each of these students that it has."""

    study: str
    students: list[str] = Field(default=["static", "head", "transformer"], min_length=1)


class Pair(Trained):
    """One arm against another. Where several arms fit a side, the best on the development split.

    ``difference``: better less worse is above 0. ``not-worse``: it is above minus the margin.
    ``no-gain``: it is below the margin.
    """

    kind: Literal["difference", "not-worse", "no-gain"]
    better: ArmFilter
    worse: ArmFilter


class Group(Trained):
    """A group of arms that ``by`` tells apart; where several share a value, the best on dev."""

    arms: ArmFilter
    by: str

    @model_validator(mode="after")
    def _check_by(self) -> Group:
        if self.by not in ArmFilter.model_fields:
            raise NvretError(f"by: no column {self.by!r}, only {', '.join(ArmFilter.model_fields)}")
        return self


class Worst(Group):
    """Each other arm of the group is better than the one whose ``by`` has this value.

    Of teachers, the student's own base model is left out.
    """

    kind: Literal["worst"]
    worst: str


class Order(Group):
    """A chain, the best first: each link is a difference above 0."""

    kind: Literal["order"]
    order: list[str] = Field(min_length=2)


class InnerOptimum(Group):
    """The inner value that is best on the development split beats both ends of the sweep."""

    kind: Literal["inner-optimum"]
    by: Literal["parameter"] = "parameter"


class Slope(Group):
    """The better the teacher's own retrieval, the better the student.

    The student's own base model is not among the teachers.
    """

    kind: Literal["slope"]
    by: Literal["teacher"] = "teacher"


class ShareHalved(Claim):
    """A method mines at least this share fewer false negatives than naive mining."""

    kind: Literal["share-halved"]
    study: str
    method: str
    at_least: Share


class LowJaccard(Claim):
    """Two teachers' negatives overlap less than this, on average over the pairs of teachers."""

    kind: Literal["low-jaccard"]
    study: str
    below: Share


class NotTestable(Claim):
    """What no profile that fits this project's machines can decide, and why."""

    kind: Literal["not-testable"]
    reason: str


AnyClaim = Pair | Worst | Order | InnerOptimum | Slope | ShareHalved | LowJaccard | NotTestable
KINDS = {
    kind: model
    for model in AnyClaim.__args__
    for kind in model.model_fields["kind"].annotation.__args__
}


class Claims(Section):
    """The whole file; ``margin`` is the smallest difference of NDCG@10 that matters."""

    margin: float = Field(gt=0)
    claims: list[Annotated[AnyClaim, Field(discriminator="kind")]] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Claims:
        names = [claim.id for claim in self.claims]
        if twice := {name for name in names if names.count(name) > 1}:
            raise NvretError(f"claims name {', '.join(sorted(twice))} more than once")
        return self


def load(path: Path | str | None = None) -> Claims:
    """Read a file of claims, ``params/claims.yaml`` by default; an error names all its mistakes."""
    path = Path(path or config.project_root() / "params" / "claims.yaml")
    try:
        return Claims.model_validate(config.read(path))
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise NvretError(f"{path}: " + "; ".join(lines)) from None


def _explain(problem: Any) -> str:
    """One problem of the file in a line; pydantic puts the kind of a claim into the place."""
    place = [part for part in problem["loc"] if part not in KINDS]
    where = ".".join(map(str, place))
    if problem["type"].startswith("union_tag"):
        return f"{where}: kind must be one of {', '.join(KINDS)}"
    kind = next((KINDS[part] for part in problem["loc"] if part in KINDS), Claims)
    inside = {"better", "worse", "arms"} & set(place[:-1])
    return settings.line(problem, where, ArmFilter if inside else kind)
