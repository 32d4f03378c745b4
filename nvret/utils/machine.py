"""What a result was computed on: processor, memory, threads, versions, commit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nvret.utils.errors import NvretError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
FEATURES = {  # the instructions that decide how fast products of matrices are
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16"},
    "AMX": {"amx_tile"},
}


def hardware() -> dict[str, Any]:
    """Processor, what it can do beyond the usual, GPU, and the threads that torch uses.

    >>> sorted(hardware())
    ['cores', 'features', 'gpu', 'machine', 'processor', 'threads']
    """
    import torch

    processor = _cpuinfo()
    flags = set(processor.get("flags", "").split())
    return {
        "machine": platform.machine(),
        "processor": processor.get("model name") or platform.processor(),
        "features": [name for name, own in FEATURES.items() if own & flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def vendor() -> str | None:
    """The maker of the processor, as the processor says it: "GenuineIntel"; None where unknown."""
    return _cpuinfo().get("vendor_id")


def check_device(name: str | torch.device) -> torch.device:
    """The device of that name, once it has held a number; `NvretError` when it cannot."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise NvretError(f"device {str(name)!r}: {str(error).splitlines()[0]}") from None
    return device


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed versions, of Python too; None for a package that is not installed.

    >>> versions(["no-such-package"])["no-such-package"] is None
    True
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def free_memory() -> None:
    """Give back what is no longer used, on a GPU or here.

    glibc and Arrow keep what is freed: after a transformer's training, more than a gigabyte.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # a trainer and its model refer to each other
        torch.cuda.empty_cache()
    if arrow := sys.modules.get("pyarrow"):
        arrow.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@contextlib.contextmanager
def half_the_threads() -> Iterator[None]:
    """Within it torch uses half of its threads: the others are for another process."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def beside(work: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Start a call in a thread of its own, for which neither an error nor Ctrl-C waits.

    >>> beside(sum, [1, 2]).result()
    3
    """
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(work(*arguments))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="nvret-beside", daemon=True).start()
    return found


def git(checkout: Path, *arguments: str) -> str | None:
    """Output of git in a checkout; None outside of one."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    if sys.platform != "linux":
        return {}
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    facts = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in facts}
