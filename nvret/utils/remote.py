"""Results on an object store, so that several machines share them.

``$NVRET_REMOTE`` names a place that fsspec can open: ``s3://bucket/nvret``, ``gs://...``,
``file:///mnt/shared``. A result counts as soon as its list of files is there, which is written
last: an object store has no rename. `nvret.utils.store` asks here for what is not in its cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")


class Place(NamedTuple):
    """Where a result lies: fsspec's filesystem, and the path there."""

    system: Any
    path: str


@lru_cache
def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or its package is missing
        raise NvretError(f"$NVRET_REMOTE is {url!r}: {error}") from error


def of(target: Path, root: Path) -> Place | None:
    """The place of a folder below ``root``; None without ``$NVRET_REMOTE``."""
    url = os.environ.get("NVRET_REMOTE")
    if not url:
        return None
    system, top = _open(url)
    return Place(system, f"{top.rstrip('/')}/{target.relative_to(root).as_posix()}")


def listed(place: Place) -> dict[str, str] | None:
    """Names and SHA-256 of a result's files; None: not there.

    `NvretError` where the list is none, or names a file outside of the result.
    """
    path = f"{place.path}.json"
    if not place.system.exists(path):
        return None
    try:
        files = json.loads(place.system.cat_file(path))
    except ValueError as error:
        raise NvretError(f"{path}: expected a list of files in JSON ({error})") from error
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise NvretError(f"{path}: expected an object of file names and their SHA-256")
    for name in files:
        plain = PurePosixPath(name)
        odd = name != plain.as_posix() or "\\" in name or {"/", ".."} & set(plain.parts)
        if odd or not plain.parts:
            raise NvretError(f"{path}: names {name!r}, expected a file inside of the result")
    return files


def fetch(place: Place, files: dict[str, str], folder: Path) -> None:
    """Copy the listed files into a folder.

    `NvretError` where a file is missing there, or is not what its list says.
    """
    for name, expected in files.items():
        source, target = f"{place.path}/{name}", folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.system.get_file(source, str(target))
        except FileNotFoundError as error:
            raise NvretError(f"{source}: is listed, but is not there") from error
        if (found := _sha256(target)) != expected:
            raise NvretError(f"{source}: has SHA-256 {found}, its list says {expected}")
    log.info("%s: from %s", place.path, os.environ["NVRET_REMOTE"])


def send(place: Place, folder: Path) -> None:
    """Copy a complete folder there, unless it is there already."""
    if listed(place) is not None:
        return
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        target = f"{place.path}/{name}"
        place.system.makedirs(target.rpartition("/")[0], exist_ok=True)
        place.system.put_file(str(file), target)
        files[name] = _sha256(file)
    place.system.pipe_file(f"{place.path}.json", json.dumps(files, sort_keys=True).encode())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
