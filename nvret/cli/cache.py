"""``nvret cache``: what the cache holds, what of it may go, and whether it can be read."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Literal

from nvret.cli.options import spelled
from nvret.utils import cache as contents
from nvret.utils import store
from nvret.utils.cache import Entry
from nvret.utils.errors import NvretError, hint

OWNERS = {"kind": "prune", "older_than": "prune", "dry_run": "prune", "remove": "verify"}
MEGABYTE = 1e6


def cache(
    action: Literal["show", "prune", "verify"] = "show",
    /,
    *,
    kind: list[str] | None = None,
    older_than: timedelta | None = None,
    dry_run: bool = False,
    remove: bool = False,
) -> int:
    """Show what the cache folder holds, remove what is not needed, or check that it can be read.

    `show` gives results, size and last use of each kind, and what killed runs left. `prune` removes
    what killed runs left more than a day ago, and with --kind or --older-than results; what is
    needed again is computed again. It leaves what a running process has locked, and asks nothing.
    `verify` names the results that cannot be read, and then exits with status 1.

    Args:
        kind: of `prune`: only results of this kind; may be repeated
        older_than: of `prune`: only results that were last used before 30d, 12h, 2w
        dry_run: of `prune`: say what would be removed
        remove: of `verify`: remove what cannot be read
    """
    given = {"kind": kind, "older_than": older_than, "dry_run": dry_run, "remove": remove}
    for name, owner in OWNERS.items():
        if given[name] not in (None, False) and action != owner:
            raise NvretError(f"{spelled(name)} is of nvret cache {owner}, not of {action}")
    if older_than is not None and older_than <= timedelta(0):
        raise NvretError(f"--older-than is {older_than}, expected a time above 0 such as 30d")
    held = list(contents.entries())
    if action == "show":
        _show(held)
        return 0
    if action == "verify":
        return _verify(held, remove)
    kinds = {entry.kind for entry in held}
    for name in (one for one in kind or () if one not in kinds):
        known = ", ".join(sorted(kinds)) or "nothing"
        raise NvretError(f"--kind is {name!r}{hint(name, kinds) or ','} the cache has {known}")
    chosen = [entry for entry in held if entry.leftover and entry.age >= contents.DAY]
    if kind or older_than:
        age = (older_than or timedelta(0)).total_seconds()
        results = [entry for entry in held if not entry.leftover and entry.age >= age]
        chosen += [entry for entry in results if entry.kind in (kind or kinds)]
    _remove(chosen, dry_run)
    return 0


def _show(held: list[Entry]) -> None:
    print(store.cache_dir())
    line = "{:<16}{:>8}{:>14}{:>13}{:>13}{:>11}{:>14}".format
    print(line("kind", "results", "MB", "oldest use", "newest use", "leftovers", "MB"))
    for kind in [*dict.fromkeys(entry.kind for entry in held), "total"]:
        parts = [[], []]  # results, leftovers
        for entry in held:
            if kind in (entry.kind, "total"):
                parts[entry.leftover].append(entry)
        sizes = [f"{sum(entry.size for entry in part) / MEGABYTE:,.1f}" for part in parts]
        uses = sorted(entry.used for entry in parts[0])
        days = [time.strftime("%Y-%m-%d", time.localtime(use)) for use in (*uses[:1], *uses[-1:])]
        print(line(kind, len(parts[0]), sizes[0], *(days or "--"), len(parts[1]), sizes[1]))


def _verify(held: list[Entry], remove: bool) -> int:
    results = [entry for entry in held if not entry.leftover]
    faults = {entry: fault for entry in results if (fault := contents.fault(entry))}
    for fault in faults.values():
        print(fault)
    print(f"{len(results)} results, {len(faults)} cannot be read")
    if remove:
        _remove(list(faults), dry_run=False)
    return int(bool(faults))


def _remove(chosen: list[Entry], dry_run: bool) -> None:
    removed = []
    for entry in chosen:
        if dry_run or contents.remove(entry):
            print(f"{entry.path}: {entry.size:,} bytes")
            removed.append(entry.size)
        else:
            print(f"{entry.path}: is in use, or gone already")
    verb = "would be removed" if dry_run else "removed"
    print(f"{len(removed)} results and leftovers, {sum(removed):,} bytes {verb}")
