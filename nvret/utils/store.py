"""Content-addressed results: the same inputs give the same folder, and it is there or it is not.

A heavy stage (encode, mine, train, evaluate) is a pure function of its inputs. Its result lies in
``<cache>/<stage>/<key>/``, where the key is a hash of everything that the result depends on: texts,
weights, parameters, and the version of the recipe (``nvret.utils.recipes``). Nothing is keyed by a
name, and nothing by where code lies. A folder is written under a temporary name and renamed when
it is complete, so a process that is killed leaves nothing that a later run would trust.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from nvret.utils import processes, remote
from nvret.utils.errors import NvretError

SMALL = 2**26  # bytes of a column that is written as JSON once, and not for its length first
FULL = 2**16  # free bytes of a disk on which nothing more can be written
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
}  # fmt: skip

KEPT: set[Path] = set()  # what this process has completed, and would find if it began again
SPENT: Counter[str] = Counter()  # seconds of this process by stage, each less those within it


def cache_dir() -> Path:
    """Folder of every downloaded, converted or computed thing.

    ``$NVRET_CACHE`` when set, else the platform's user cache folder.
    """
    root = os.environ.get("NVRET_CACHE") or platformdirs.user_cache_dir("nvret")
    return Path(root).expanduser().absolute()


def _feed(digest: Any, part: Any) -> None:
    """Add one part with its type and length, so that ("ab", "c") and ("a", "bc") differ."""
    import numpy as np
    import pyarrow as pa

    if isinstance(part, Path):
        digest.update(b"file:")
        with part.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    elif isinstance(part, bytes):
        digest.update(b"bytes:%d:" % len(part) + part)
    elif isinstance(part, np.ndarray):
        digest.update(f"array:{part.dtype.str}:{part.shape}:".encode())
        digest.update(np.ascontiguousarray(part).data)
    elif isinstance(part, pa.Table):
        digest.update(f"table:{part.num_rows}:{part.column_names}:".encode())
        for column in part.columns:
            _feed(digest, column)
    elif isinstance(part, pa.ChunkedArray) and (kind := _kind(part)):
        digest.update(f"column:{kind}:{len(part)}:".encode())
        for piece in _pieces(part, kind):
            digest.update(piece)
    elif isinstance(part, (list, pa.ChunkedArray)):
        # Some values at a time, to the same bytes as below: a large corpus is not copied whole
        size, texts = 0, []
        for text in _joined(part):
            size += len(text)
            if size < SMALL:
                texts.append(text)
        digest.update(f"json:{size + 2}:[".encode())
        for text in texts if size < SMALL else _joined(part):
            digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"]")
    else:
        text = _json(part)
        digest.update(f"json:{len(text)}:".encode() + text.encode("utf-8", "surrogatepass"))


def _kind(column: Any) -> str | None:
    """What `_pieces` reads a column of Arrow as; None: its values are written as JSON."""
    from pyarrow import types

    kind = column.type
    if column.null_count:
        return None
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    return str(kind) if plain else None


def _pieces(column: Any, kind: str) -> Iterator[Any]:
    """A column's values as they lie in memory, whatever chunks it has: texts after their lengths.

    JSON takes twenty times as long, and a study hashes hundreds of tables.
    """
    import numpy as np

    if kind != "text":
        for chunk in column.chunks:
            yield np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).data
        return
    contents = []
    for chunk in filter(len, column.chunks):
        _, offsets, content = chunk.buffers()
        width = np.int64 if str(chunk.type) == "large_string" else np.int32
        ends = np.frombuffer(offsets, width)[chunk.offset :][: len(chunk) + 1]
        contents.append(memoryview(content or b"")[ends[0] : ends[-1]])
        yield np.diff(ends).astype(np.int64).data
    yield from contents


def _joined(values: Any, number: int = 512) -> Iterator[str]:
    """The JSON of a list or Arrow column, less its brackets, in pieces of so many values."""
    for start in range(0, len(values), number):
        part = values[start : start + number]
        part = part if isinstance(part, list) else part.to_pylist()
        yield ("," if start else "") + _json(part)[1:-1]


_json = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def fingerprint(*parts: Any) -> str:
    """SHA-256 (hex) over the content of the parts.

    Args:
        parts: a ``Path`` stands for that file's content; bytes, NumPy arrays, Arrow tables and
            anything that JSON can hold stand for themselves.

    >>> fingerprint("ab", "c") == fingerprint("a", "bc")
    False
    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def hashed(name: str) -> bytes:
    """A key that looks random and depends on the name alone: to draw the same sample everywhere."""
    return hashlib.sha256(name.encode()).digest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk: a rename may otherwise outlive what it renames."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some filesystems cannot sync a folder; a file that was not written is an error
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """A disk that is full or may not be written to is said in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise NvretError(f"{error.filename or target}: {error.strerror}") from error
    except Exception as error:  # safetensors and torch raise kinds of their own
        full = os.strerror(errno.ENOSPC)
        if full not in str(error) and shutil.disk_usage(target.parent).free > FULL:
            raise
        raise NvretError(f"{target}: {full}") from error


def scratch(target: Path) -> Path:
    """A name that no other process takes, of this machine or of another that sees the folder."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def locked(target: Path, timeout: float = -1) -> Iterator[None]:
    """Keep others from making ``target`` meanwhile; no lock file stays.

    `filelock.Timeout` where another process still works after so many seconds; -1: wait for it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock"), timeout) as lock:
        try:
            yield
        finally:  # those who wait see that the file is gone, and lock a new one
            Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the time of a block to ``SPENT``; what stages within it take counts as theirs alone."""
    began, within = time.monotonic(), SPENT.total()
    try:
        yield
    finally:
        SPENT[stage] += time.monotonic() - began - (SPENT.total() - within)


@contextlib.contextmanager
def atomic_folder(target: Path, *, keep_partial: bool = False) -> Iterator[Path | None]:
    """Write a folder under a temporary name; rename it to ``target`` when the block succeeds.

    Yields the temporary folder, or None when ``target`` exists already (another process made it).
    With ``keep_partial`` a block that fails leaves it in place, for a stage that resumes from its
    own checkpoints. `NvretError` where the disk is full, or may not be written to.
    """
    with _writing(target), locked(target):
        if target.exists():
            yield None
            return
        partial = target.with_name(f".{target.name}.partial") if keep_partial else scratch(target)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            shutil.rmtree(left)  # by a process that was killed, since none other has the lock
        partial.mkdir(exist_ok=keep_partial)
        try:
            with timed(target.parent.name):
                yield partial
            for path in (*partial.rglob("*"), partial):
                _sync(path)
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        try:
            os.replace(partial, target)
        except OSError:
            if not target.is_dir():
                raise
            shutil.rmtree(partial)  # a machine that does not see this lock made the same result
        _sync(target.parent)
        KEPT.add(target)


@contextlib.contextmanager
def shared_folder(target: Path, *, keep_partial: bool = False) -> Iterator[Path | None]:
    """``atomic_folder`` of the first process under ``torchrun``, for all of them.

    The first process waits for the lock and decides; all get the same temporary folder, or None.
    Two processes must not write the same file there.
    """
    if not processes.is_main_process():
        yield processes.broadcast_object(None)
        processes.barrier()  # the folder is renamed when all have left it
        processes.barrier()
        return
    with atomic_folder(target, keep_partial=keep_partial) as partial:
        yield processes.broadcast_object(partial)
        processes.barrier()
    processes.barrier()


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """The same of a file."""
    partial = scratch(target)
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            os.replace(partial, target)
            if not any(folder.name.endswith(".partial") for folder in target.parents):
                KEPT.add(target)
        finally:
            with contextlib.suppress(OSError):  # an unwritable folder has been said already
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_array(path: Path, shape: tuple[int, ...]) -> Iterator[Any]:
    """A ``.npy`` file of float32 to fill in: a memory map whose place on the disk is taken.

    A map of a sparse file would end the process with SIGBUS when the disk is full; this raises
    `OSError` at once.
    """
    import numpy as np

    if 0 in shape:  # an empty file cannot be mapped
        np.save(path, np.empty(shape, np.float32))
        yield np.empty(shape, np.float32)
        return
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    yield array
    array.flush()


def write_json(target: Path, value: Any) -> None:
    """Write JSON (sorted keys, UTF-8, no NaN) in one step."""
    with atomic_file(target) as partial:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def mark_used(target: Path) -> None:
    """Give a folder of the cache the time of now: `nvret.utils.cache` calls it the last use."""
    with contextlib.suppress(OSError):  # of another user, or on a disk that is only read
        os.utime(target)


def find(target: Path) -> bool:
    """Whether a result is in the cache, copied there now from ``$NVRET_REMOTE`` if need be.

    The same for all processes of a job; the first one copies. What is found counts as used now.
    `NvretError` where a file is missing at the remote place, or is not what its list says.
    """
    found = target.exists()
    place = None if found else remote.of(target, cache_dir())
    if place and processes.is_main_process() and (files := remote.listed(place)):
        with atomic_folder(target) as partial:
            if partial is not None:
                remote.fetch(place, files, partial)
        found = True
    if found:
        mark_used(target)
    return processes.broadcast_object(found)


def publish(target: Path) -> None:
    """Copy a complete result of the cache to ``$NVRET_REMOTE``, where one is named."""
    if processes.is_main_process() and (place := remote.of(target, cache_dir())):
        remote.send(place, target)


def stage(name: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of a stage's result: computed now, or found from an earlier run.

    Args:
        name: of the stage; the sub-folder of the cache.
        inputs: everything that the result depends on (JSON); hashed, and kept as ``inputs.json``.
        build: writes the result into the folder that it is given. Under ``torchrun`` all processes
            call it, and the folder of the first is kept; they must see the same cache folder.
    Raises:
        NvretError: the disk is full, or may not be written to.
    """
    target = cache_dir() / name / fingerprint(inputs)
    if find(target):
        return target
    with shared_folder(target) as partial, tempfile.TemporaryDirectory(prefix="nvret-") as scratch:
        if partial is not None and processes.is_main_process():
            write_json(partial / "inputs.json", inputs)
            build(partial)
        elif partial is not None:  # takes part in the work; what the first process writes counts
            build(Path(scratch))
    publish(target)
    return target
