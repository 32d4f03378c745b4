"""Settings that are declared once: names, types, ranges, defaults and help.

A profile, the command line and Python share the same classes. Types are checked strictly: YAML
reads ``1e-5`` without a point as a string, and that is an error rather than a guess.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nvret.utils.errors import hint


class Section(BaseModel):
    """A group of settings; the string below a field is its help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @classmethod
    def known_keys(cls) -> list[str]:
        """What may be set; named where a key is unknown."""
        return list(cls.model_fields)


def explain(error: ValidationError, root: type[Section]) -> list[str]:
    """A line for each problem with the class ``root``: the key, what it holds, what was expected.

    >>> class Run(Section):
    ...     seed: int
    >>> try:
    ...     Run.model_validate({"sede": 1})
    ... except ValidationError as error:
    ...     explain(error, Run)
    ['seed: missing', "sede: unknown key, did you mean 'seed'?"]
    """
    return [
        line(
            problem,
            ".".join(str(part) for part in problem["loc"] if part != "[key]"),
            _section(root, problem["loc"][:-1]),
        )
        for problem in error.errors()
    ]


def line(problem: Any, where: str, section: type[Section]) -> str:
    """One problem at a place in the file, which ``section`` describes."""
    if problem["type"] == "extra_forbidden":
        known = section.known_keys()
        meant = hint(str(problem["loc"][-1]), known) or f", expected one of {', '.join(known)}"
        return f"{where}: unknown key{meant}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    if problem["type"] == "value_error":
        return f"{where}: {problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    return f"{where}: {problem['msg']}, found {problem['input']!r}"


def _section(root: type[Section], location: tuple[str | int, ...]) -> type[Section]:
    """The class that describes a place in the file."""
    section: Any = root
    for part in location:
        fields = getattr(section, "model_fields", {})
        if isinstance(part, int) or part not in fields:  # the key of a dict
            continue
        kind = fields[part].annotation
        inner = [a for a in getattr(kind, "__args__", ()) if isinstance(a, type)]
        section = next((a for a in inner if issubclass(a, Section)), kind)
    return section
