"""The processes of one job, as ``torchrun`` starts them: who is the first, who does which part.

Every process runs the same program. Only what is heavy is divided, by whole blocks whose results do
not depend on who computes them (``nvret.scale.distributed``), and the first process writes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from nvret.utils.errors import NvretError


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Join the other processes, if ``torchrun`` started this one; leave them at the end.

    Each takes the GPU of its local rank. `NvretError` where a variable of torchrun's is missing or
    wrong, or the others are not reached.
    """
    size = _variable("WORLD_SIZE", "1", "the number of processes")
    if size <= 1:
        yield
        return
    import torch

    rank = _variable("RANK", "", f"0 to {size - 1}, as torchrun sets it", size)
    gpus = torch.cuda.device_count()
    own = f"a number below {gpus or size}, as torchrun sets it"
    local = _variable("LOCAL_RANK", "" if gpus else str(rank), own, gpus or size)
    if gpus:
        torch.cuda.set_device(local)
    try:
        # The others wait while the first process downloads, or waits for another job's result
        torch.distributed.init_process_group(timeout=timedelta(days=7))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise NvretError(f"$WORLD_SIZE is {size}, the others are not reached: {reason}") from None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _variable(name: str, default: str, expected: str, end: int = sys.maxsize) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal() or int(text) >= end:
        raise NvretError(f"${name} is {text!r}, expected {expected}")
    return int(text)


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process works as if it were the only one, on what is too small to divide."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> tuple[int, int]:
    """The number of this process, and of how many; (0, 1) for a single one.

    >>> world()
    (0, 1)
    """
    if _alone:
        return 0, 1
    torch = sys.modules.get("torch")  # without it nobody has joined a group
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    return world()[0] == 0


def barrier() -> None:
    """Until all processes have come here."""
    if world()[1] > 1:
        sys.modules["torch"].distributed.barrier()


def broadcast_object(value: Any) -> Any:
    """The first process's value, for all of them."""
    if world()[1] == 1:
        return value
    box = [value]
    sys.modules["torch"].distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Each process's value, in their order, for all of them."""
    values = [value] * world()[1]
    if len(values) > 1:
        sys.modules["torch"].distributed.all_gather_object(values, value)
    return values


def shard(number: int, unit: int = 1) -> slice:
    """This process's part of ``number`` things, by whole units; the parts stand in order.

    >>> shard(10)
    slice(0, 10, None)
    """
    rank, size = world()
    units = -(-number // unit)
    start, stop = units * rank // size, units * (rank + 1) // size
    return slice(min(start * unit, number), min(stop * unit, number))


def serve(environment: Mapping[str, str] | None = None) -> None:
    """What a process of a pool begins with: Ctrl-C is its parent's, without which it ends.

    A parent that is killed says nothing, and its children would wait for ever.

    Args:
        environment: the parent's, where a server that began earlier has forked this process.
    """
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="nvret-serve", daemon=True).start()
