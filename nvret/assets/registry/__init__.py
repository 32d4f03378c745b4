"""What there is: the models of ``models.yaml`` and the data sets of ``datasets.yaml``.

An entry says which archives hold the thing, how it is converted and what the result must be.
``$NVRET_REGISTRY`` names another folder with two such files.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from nvret.assets.pip_packages import Package
from nvret.models.layout import Layout
from nvret.utils import settings
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section


class Hub(Section):
    """A hub repository at one commit."""

    id: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class _Entry(Section):
    converter: str | None = None
    """the function of `nvret.assets.converters`; none: from a local copy or the hub"""
    fingerprint: str | None = None
    """SHA-256 of what the conversion must give"""
    hub: Hub | None = None
    licence: str
    note: str = ""


class Model(_Entry):
    packages: list[Package] = Field(default_factory=list)
    tokenizer_from: str | None = None
    """the model whose ``tokenizer.json`` this one shares"""
    upstream: str
    trained_on: str
    parameters: int
    dimension: int
    max_seq_length: int
    pooling: Literal["mean", "cls", "last", "static", "latent"]
    include_prompt: bool = True
    prompts: dict[Literal["query", "passage"], str] = Field(
        default_factory=lambda: {"query": "", "passage": ""}
    )

    @property
    def layout(self) -> Layout:
        return Layout(
            static=self.pooling == "static",
            latent=self.pooling == "latent",
            pooling=self.pooling,
            prompts={"query": "", "passage": ""} | dict(self.prompts),
            include_prompt=self.include_prompt,
            max_length=self.max_seq_length,
        )


class Archive(Section):
    packages: list[Package]


class Data(_Entry):
    """An entry of ``datasets.yaml``; ``queries`` and ``passages`` are its published sizes."""

    archive: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    """arguments of the converter"""
    split: str | None = None
    queries: int | None = None
    passages: int | None = None
    title: str
    citation: str = ""


class DataRegistry(Section):
    archives: dict[str, Archive] = Field(default_factory=dict)
    datasets: dict[str, Data]

    @model_validator(mode="after")
    def _archives_exist(self) -> DataRegistry:
        for name, entry in self.datasets.items():
            if entry.archive is not None and entry.archive not in self.archives:
                raise ValueError(f"{name}: no archive is named {entry.archive!r}")
        return self


class ModelRegistry(Section):
    models: dict[str, Model]


@lru_cache
def _read(kind: str, folder: str | None) -> Any:
    schema = {"models": ModelRegistry, "datasets": DataRegistry}[kind]
    path = (Path(folder) if folder else resources.files(__name__)) / f"{kind}.yaml"
    try:
        return schema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise NvretError(f"{path}: {error}") from error
    except ValidationError as error:
        raise NvretError(f"{path}: {settings.explain(error, schema)[0]}") from error


def models() -> dict[str, Model]:
    """All entries of ``models.yaml``.

    >>> models()["minilm-l6"].dimension
    384
    """
    return _read("models", os.environ.get("NVRET_REGISTRY")).models


def datasets() -> dict[str, Data]:
    """All entries of ``datasets.yaml``."""
    return _read("datasets", os.environ.get("NVRET_REGISTRY")).datasets


def archive(name: str | None) -> list[Package]:
    """The packages of an archive that data sets share."""
    return _read("datasets", os.environ.get("NVRET_REGISTRY")).archives[name].packages


def kind(name: str) -> str:
    """The list that a name stands in: "models" or "datasets"."""
    return "models" if name in models() else "datasets"


def entry(name: str) -> Model | Data:
    """What the lists say of a name.

    >>> entry("nq").converter
    'nq'
    """
    return models().get(name) or datasets()[name]
