"""``nvret cache``: what the cache holds, what of it may go, and whether it can be read."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from nvret.cli.options import spelled
from nvret.utils.errors import NvretError, hint

Age = Annotated[timedelta | None, Parameter(validator=validators.Number(gte=timedelta(0)))]
MEGABYTE = 1e6


def cache(
    action: Literal["show", "prune", "verify"] = "show",
    /,
    *,
    kind: list[str] | None = None,
    older_than: Age = None,
    dry_run: bool = False,
    remove: bool = False,
) -> int | None:
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
    from nvret.utils import cache as contents

    for name, given, owner in (("kind", kind, "prune"), ("older_than", older_than, "prune"),
                               ("dry_run", dry_run, "prune"), ("remove", remove, "verify")):  # fmt: skip
        if given not in (None, False) and owner != action:
            raise NvretError(f"{spelled(name)} is of nvret cache {owner}, not of {action}")
    held = list(contents.entries())
    if action == "show":
        return _show(held)
    if action == "verify":
        return _verify(held, remove)
    kinds = {entry.kind for entry in held}
    for name in kind or ():
        if name not in kinds:
            known = ", ".join(sorted(kinds)) or "none, it is empty"
            raise NvretError(f"--kind is {name!r}{hint(name, kinds) or ','} the cache has {known}")
    chosen = [entry for entry in held if contents.old(entry, contents.DAY) if entry.leftover]
    if kind or older_than is not None:
        age = (older_than or timedelta(0)).total_seconds()
        chosen += [entry for entry in held if not entry.leftover and contents.old(entry, age)
                   and entry.kind in (kind or kinds)]  # fmt: skip
    _remove(chosen, dry_run)
    return None


def _show(held: list) -> None:
    from nvret.utils import store

    print(store.cache_dir())
    line = "{:<16}{:>8}{:>14}{:>13}{:>13}{:>11}{:>14}".format
    print(line("kind", "results", "MB", "oldest use", "newest use", "leftovers", "MB"))
    for kind in [*dict.fromkeys(entry.kind for entry in held), "total"]:
        mine = [entry for entry in held if kind in (entry.kind, "total")]
        results = [entry for entry in mine if not entry.leftover]
        uses = sorted(entry.used for entry in results)
        days = [time.strftime("%Y-%m-%d", time.localtime(use)) for use in (*uses[:1], *uses[-1:])]
        left = [entry for entry in mine if entry.leftover]
        sizes = [f"{sum(entry.size for entry in part) / MEGABYTE:,.1f}" for part in (results, left)]
        print(line(kind, len(results), sizes[0], *(days or "--"), len(left), sizes[1]))


def _verify(held: list, remove: bool) -> int:
    from nvret.utils import cache as contents

    results = [entry for entry in held if not entry.leftover]
    faults = {entry: fault for entry in results if (fault := contents.fault(entry))}
    for fault in faults.values():
        print(fault)
    print(f"{len(results)} results, {len(faults)} cannot be read")
    if remove:
        _remove(list(faults), False)
    return int(bool(faults))


def _remove(chosen: list, dry_run: bool) -> None:
    from nvret.utils import cache as contents

    removed = 0, 0
    for entry in chosen:
        if dry_run or contents.remove(entry):
            print(f"{entry.path}: {entry.size:,} bytes")
            removed = removed[0] + 1, removed[1] + entry.size
        else:
            print(f"{entry.path}: is in use, and stays")
    verb = "would be removed" if dry_run else "removed"
    print(f"{removed[0]} results and leftovers, {removed[1]:,} bytes {verb}")
