"""Results on an object store, so that several machines share them.

``$NVRET_REMOTE`` names a place that fsspec can open: ``s3://bucket/nvret``, ``gs://...``,
``file:///mnt/shared``. A result counts as soon as its list of files is there, which is written
last: an object store has no rename. `nvret.utils.store` asks here for what is not in its cache.
"""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from pathlib import Path
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
    """The place of a file or folder below ``root``; None without ``$NVRET_REMOTE``."""
    url = os.environ.get("NVRET_REMOTE")
    if not url:
        return None
    system, top = _open(url)
    return Place(system, f"{top.rstrip('/')}/{target.relative_to(root).as_posix()}")


def listed(place: Place) -> dict[str, int] | None:
    """Names and bytes of a result's files, "" for a result that is one file; None: not there."""
    if not place.system.exists(f"{place.path}.json"):
        return None
    return json.loads(place.system.cat_file(f"{place.path}.json"))


def fetch(place: Place, files: dict[str, int], local: Path) -> None:
    """Copy the listed files.

    Args:
        local: the folder to copy into, or the file to write.
    Raises:
        NvretError: a file is missing there or has another size than its list says.
    """
    for name, size in files.items():
        source, target = (f"{place.path}/{name}", local / name) if name else (place.path, local)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.system.get_file(source, str(target))
        except FileNotFoundError as error:
            raise NvretError(f"{source}: is listed, but is not there") from error
        if (found := target.stat().st_size) != size:
            raise NvretError(f"{source}: has {found} bytes, its list says {size}")
    log.info("%s: from %s", place.path, os.environ["NVRET_REMOTE"])


def send(place: Place, local: Path) -> None:
    """Copy a complete file or folder there, unless it is there already."""
    if listed(place) is not None:
        return
    files = {"": local} if local.is_file() else {
        file.relative_to(local).as_posix(): file
        for file in sorted(local.rglob("*"))
        if file.is_file()
    }  # fmt: skip
    for name, file in files.items():
        target = f"{place.path}/{name}" if name else place.path
        place.system.makedirs(target.rpartition("/")[0], exist_ok=True)
        place.system.put_file(str(file), target)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    place.system.pipe_file(f"{place.path}.json", json.dumps(sizes, sort_keys=True).encode())
