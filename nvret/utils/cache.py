"""What the cache holds, what of it may go, and whether its files can be read.

A result and what a killed run leaves are known by their names, so that a cache folder which holds
other things too loses none of them. What a running process has locked stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from nvret.utils import store
from nvret.utils.errors import NvretError

_NAME = r"(?:[0-9a-f]{64}|[\w.-]+-[0-9a-f]{16})"  # <hash>, or <name>-<the begin of one>
RESULT = re.compile(_NAME)
LEFTOVER = re.compile(rf"\.({_NAME})(?:\.[0-9a-f]{{32}})?\.(?:partial|lock)")
MANIFEST = "manifest.json"  # of a converted folder: its files' sizes
DAY = 24 * 60 * 60


class Entry(NamedTuple):
    """A result, or a leftover of a run: its bytes, and when it was last used (seconds, as time).

    A leftover is used as long as something below it changes.
    """

    path: Path
    size: int
    used: float
    leftover: bool

    @property
    def kind(self) -> str:
        """The stage, or "models", "datasets", "sources"."""
        return self.path.parent.name

    @property
    def age(self) -> float:
        """Seconds since its last use."""
        return time.time() - self.used


def entries() -> Iterator[Entry]:
    """All results and leftovers, kind by kind; `NvretError` where the cache is no folder."""
    root = store.cache_dir()
    if root.exists() and not root.is_dir():
        raise NvretError(f"{root}: expected a folder ($NVRET_CACHE)")
    for path in sorted(root.glob("*/*")):
        leftover = LEFTOVER.fullmatch(path.name) is not None
        if leftover or RESULT.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # a run has just removed it
                yield _entry(path, leftover)


def _entry(path: Path, leftover: bool) -> Entry:
    facts = [path.lstat(), *(file.lstat() for file in path.rglob("*"))]
    size = sum(each.st_size for each in facts if not stat.S_ISDIR(each.st_mode))
    used = max(each.st_mtime for each in facts) if leftover else facts[0].st_mtime
    return Entry(path, size, used, leftover)


def remove(entry: Entry) -> bool:
    """Remove it at once, so that nobody finds a part; False where a process has locked it."""
    path = entry.path
    name = LEFTOVER.fullmatch(path.name)[1] if entry.leftover else path.name
    try:
        with store.locked(path.with_name(name), timeout=0):
            if path.suffix != ".lock":  # a lock's file goes with the lock
                hidden = store.scratch(path.with_name(name))
                os.replace(path, hidden)
                shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    except (Timeout, FileNotFoundError):  # the second: another process has removed it
        return False
    return True


def fault(entry: Entry) -> str | None:
    """What is wrong with a result: the file and why it cannot be read; None: nothing.

    Read are the headers of arrays and weights, the footers of Parquet, and all JSON. The inputs
    must have the hash that the folder is named by, a manifest's files the sizes that it gives.
    """
    for file in sorted(entry.path.rglob("*")):
        if file.is_dir():
            continue
        try:
            _check(file)
        except Exception as error:  # each reader has its own kinds
            return f"{file}: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None


def write_manifest(folder: Path, recipe: dict[str, Any]) -> None:
    """Write down the sizes of a folder's files, and what they were made by."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    store.write_json(folder / MANIFEST, {"files": files, "recipe": recipe})


def check_manifest(file: Path) -> None:
    """`NvretError` unless each file is there, as long as it was written."""
    for name, known in json.loads(file.read_text(encoding="utf-8"))["files"].items():
        path = file.parent / name
        if not path.is_file():
            raise NvretError(f"{path}: missing")
        if (size := path.stat().st_size) != known["bytes"]:
            raise NvretError(f"{path}: {size} bytes, expected {known['bytes']}")


def _check(file: Path) -> None:
    if file.suffix == ".npy":
        import numpy as np

        np.load(file, mmap_mode="r", allow_pickle=False)  # finds that a file is too short
    elif file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "numpy"):
            pass
    elif file.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.read_metadata(file)
    elif file.suffix == ".json":
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "inputs.json" and store.fingerprint(content) != file.parent.name:
            raise NvretError("are not the inputs that its folder is named by")
        if file.name == MANIFEST:
            check_manifest(file)
    else:
        file.stat()  # a link may lead nowhere
