"""Stage results on an object store, so that several machines share them.

``$NVRET_REMOTE`` names a place that fsspec can open: ``s3://bucket/nvret``, ``gs://...``,
``file:///mnt/shared``. What is not in the local cache is looked for there before it is computed,
and what has been computed is put there. A result counts as soon as its list of files is there,
which is written last: an object store has no rename.
"""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from nvret import processes, store
from nvret.errors import NvretError

log = logging.getLogger("nvret")


@lru_cache
def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or its package is missing
        raise NvretError(f"$NVRET_REMOTE is {url!r}: {error}") from error


def _place(target: Path) -> tuple[Any, str] | None:
    """The filesystem and the path there of a file or folder of the cache; None without a remote."""
    url = os.environ.get("NVRET_REMOTE")
    if not url:
        return None
    system, root = _open(url)
    return system, f"{root.rstrip('/')}/{target.relative_to(store.cache_dir()).as_posix()}"


def there(target: Path) -> bool:
    """Whether a result is in the cache, copied there now if need be; the same for all processes."""
    return processes.agreed(target.exists() or fetch(target))


def fetch(target: Path) -> bool:
    """Copy a result to its place in the cache; False if it is not there.

    Under ``torchrun`` the first process copies, and to the others it is not there.

    Args:
        target: the file or folder of the cache; not there yet.
    Raises:
        NvretError: a file is missing there or has another size than its list says.
    """
    place = _place(target) if processes.first() else None
    if place is None or not place[0].exists(f"{place[1]}.json"):
        return False
    system, path = place
    listed: dict[str, int] = json.loads(system.cat_file(f"{path}.json"))
    if "" in listed:
        with store.atomic_file(target) as partial:
            _copy(system, path, partial, listed[""])
    else:
        with store.atomic_folder(target) as partial:
            for name, size in listed.items() if partial else ():
                _copy(system, f"{path}/{name}", partial / name, size)
    log.info("%s: from %s", target.name, os.environ["NVRET_REMOTE"])
    return True


def _copy(system: Any, source: str, local: Path, size: int) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        system.get_file(source, str(local))
    except FileNotFoundError as error:
        raise NvretError(f"{source}: is listed, but is not there") from error
    if (found := local.stat().st_size) != size:
        raise NvretError(f"{source}: has {found} bytes, its list says {size}")


def send(target: Path) -> None:
    """Copy a complete result of the cache there; nothing without ``$NVRET_REMOTE``."""
    place = _place(target) if processes.first() else None
    if place is None or place[0].exists(f"{place[1]}.json"):
        return
    system, path = place
    files = {"": target} if target.is_file() else {
        file.relative_to(target).as_posix(): file
        for file in sorted(target.rglob("*"))
        if file.is_file()
    }  # fmt: skip
    for name, file in files.items():
        there = f"{path}/{name}" if name else path
        system.makedirs(there.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), there)
    sizes = {name: file.stat().st_size for name, file in files.items()}
    system.pipe_file(f"{path}.json", json.dumps(sizes, sort_keys=True).encode())
