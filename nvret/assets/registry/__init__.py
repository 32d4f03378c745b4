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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nvret.assets.pip_packages import Package
from nvret.utils.errors import NvretError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hub(_Strict):
    """A hub repository at one commit."""

    id: str
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class Model(_Strict):
    """An entry of ``models.yaml``."""

    packages: tuple[Package, ...] = ()
    converter: str | None = None
    tokenizer_from: str | None = None
    fingerprint: str | None = None
    hub: Hub | None = None
    upstream: str
    licence: str
    trained_on: str
    note: str = ""
    parameters: int
    dimension: int
    max_seq_length: int
    pooling: Literal["mean", "cls", "last", "static", "latent"]
    include_prompt: bool = True
    prompts: dict[Literal["query", "passage"], str] = {"query": "", "passage": ""}


class Archive(_Strict):
    """A package that several data sets share; unpacked once."""

    packages: tuple[Package, ...]


class Data(_Strict):
    """A data set of ``datasets.yaml``; ``queries`` and ``passages`` are its published sizes."""

    archive: str | None = None
    converter: str | None = None
    options: dict[str, Any] = {}
    fingerprint: str | None = None
    hub: Hub | None = None
    split: str | None = None
    queries: int | None = None
    passages: int | None = None
    title: str
    licence: str
    citation: str = ""
    note: str = ""


class DataRegistry(_Strict):
    archives: dict[str, Archive] = {}
    datasets: dict[str, Data]

    @model_validator(mode="after")
    def _archives_exist(self) -> DataRegistry:
        for name, entry in self.datasets.items():
            if entry.archive is not None and entry.archive not in self.archives:
                raise ValueError(f"{name}: no archive is named {entry.archive!r}")
        return self


class ModelRegistry(_Strict):
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
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise NvretError(f"{path}: {key}: {first['msg']}") from error


def models() -> dict[str, Model]:
    """All entries of ``models.yaml``.

    >>> models()["minilm-l6"].dimension
    384
    """
    return _read("models", os.environ.get("NVRET_REGISTRY")).models


def datasets() -> dict[str, Data]:
    """All entries of ``datasets.yaml``.

    >>> "nq" in datasets()
    True
    """
    return _read("datasets", os.environ.get("NVRET_REGISTRY")).datasets


def archive(name: str) -> Archive:
    """An archive that data sets share."""
    return _read("datasets", os.environ.get("NVRET_REGISTRY")).archives[name]
