"""Disks that are full or read-only, as the cache and as the folder of the output."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from campaign import commands
from campaign.commands import Outcome
from helpers.files import write_rows
from nvret import data

ATTEMPTS = 3  # of each command, on a disk of a size of its own


class Job(NamedTuple):
    """A command that writes to one disk: its arguments, and where its results lie there."""

    name: str
    arguments: Callable[[Path], list[object]]
    cache: bool  # whether the disk holds the cache, or else the output


def full(folder: Path, share: float) -> Outcome:
    """Too small a disk: one message; after more room is made the same command ends well."""
    outcome = Outcome("a command on a disk that is full before it ends, then with more room")
    fitted, failed = 0, {}
    rng = np.random.default_rng(3)
    for job, expected, needed in _jobs(folder, outcome):
        for _ in range(max(2, round(share * ATTEMPTS))):
            size = int(rng.uniform(0.02, 0.98) * needed) // 4096 * 4096 + 4096
            what = f"{job.name} on {size} bytes of {needed}"
            with commands.disk(folder / "disk", str(size)) as disk:
                outcome.times += 1
                ended = commands.run(*job.arguments(disk), env=_env(folder, disk, job))
                fitted += ended.status == 0
                failed[job.name] = failed.get(job.name, 0) + (ended.status == 2)
                outcome.took(ended, (0, 2), what)
                _half(outcome, disk, expected, what)
                commands.remount(disk, "size=1g")
                _right(outcome, folder, disk, job, expected, what)
    each = ", ".join(f"{name} {count}" for name, count in failed.items())
    outcome.notes.append(f"the disk was full: {each}; {fitted} fitted all the same")
    return outcome


def read_only(folder: Path, share: float) -> Outcome:
    """The same where nothing can be written; a complete cache is read all the same."""
    outcome = Outcome("a command on a read-only disk, then on the same disk, writable")
    for job, expected, _ in _jobs(folder, outcome):
        with commands.disk(folder / "disk", "1g") as disk:
            env = _env(folder, disk, job)
            commands.remount(disk, "ro")
            outcome.times += 1
            what = f"{job.name}, read-only"
            ended = commands.run(*job.arguments(disk), env=env)
            outcome.took(ended, (2,), what)
            _half(outcome, disk, expected, what)
            commands.remount(disk, "rw")
            _right(outcome, folder, disk, job, expected, what)
            if job.cache:  # all is there: nothing needs to be written
                commands.remount(disk, "ro")
                outcome.times += 1
                ended = commands.run(*job.arguments(disk), env=env)
                outcome.took(ended, (0,), f"{job.name}, complete and read-only")
    return outcome


def _env(folder: Path, disk: Path, job: Job) -> dict[str, str]:
    """The disk is the cache; or it takes the output, and the cache lies elsewhere."""
    if job.cache:
        return commands.places(folder, disk)
    return commands.places(folder, folder / "cache", disk / "results")


def _half(outcome: Outcome, disk: Path, expected: dict[str, str], what: str) -> None:
    """What is there is complete, or it is training's own checkpoint."""
    if names := commands.wrong(commands.contents(disk), expected, all_of_it=False):
        outcome.differs(f"{what}: half written: {', '.join(names)}")
    for path in commands.partial(disk):
        if not list(path.rglob("checkpoints")) and not (path / "inputs.json").exists():
            outcome.differs(f"{what}: left {path}")


def _right(
    outcome: Outcome, folder: Path, disk: Path, job: Job, expected: dict[str, str], what: str
) -> None:
    ended = commands.run(*job.arguments(disk), *_replace(disk, job), env=_env(folder, disk, job))
    if outcome.took(ended, (0,), f"{what}, again"):
        if names := commands.wrong(commands.contents(disk), expected):
            outcome.differs(f"{what}, again: {', '.join(names)}")
        if left := commands.partial(disk):
            outcome.differs(f"{what}, again: left {left}")


def _replace(disk: Path, job: Job) -> list[str]:
    return ["--overwrite"] if (disk / "negatives.parquet").exists() else []


def _jobs(folder: Path, outcome: Outcome) -> Iterator[tuple[Job, dict[str, str], int]]:
    """Each job with its results on a large disk, and the bytes that they take there."""
    profile = commands.small_profile(folder / "profile.yaml")
    pairs, own = _own_data(folder)
    jobs = [
        Job("encode to the cache", lambda _: ["encode", profile], True),
        Job("mine to the cache", lambda _: ["mine", profile], True),
        Job("train to the cache", lambda _: ["train", profile], True),
        Job("run to the results", lambda _: ["run", profile], False),
        Job("mine to a file", lambda disk: ["mine", *own, "--teacher", "bm25", "--method", "naive",
            "--output", disk / "negatives.parquet"], False),
        Job("train to a folder", lambda disk: ["train", *own, "--negatives", pairs, "--student",
            "potion-base-8m", "--output", disk / "model", "--device", "cpu"], False),
    ]  # fmt: skip
    mined = ["mine", *own, "--teacher", "bm25", "--method", "naive", "--output", pairs]
    ended = commands.run(*mined, env=commands.places(folder))
    outcome.took(ended, (0,), "negatives")
    for job in jobs:
        try:
            with commands.disk(folder / "disk", "1g") as disk:
                ended = commands.run(*job.arguments(disk), env=_env(folder, disk, job))
                outcome.took(ended, (0,), f"{job.name}, with room")
                expected, needed = commands.contents(disk), 0
                needed = shutil.disk_usage(disk).used
        except PermissionError as error:
            outcome.notes.append(f"skipped: a disk cannot be mounted ({error})")
            return
        yield job, expected, needed


def _own_data(folder: Path) -> tuple[Path, list[object]]:
    """Some questions of a real set: the file of their negatives, and the options that name it."""
    source = data.load("nq")
    texts = source.passages
    rows = [{"query": source.query_texts[query], "positive": texts[passage]}
            for query, passage in zip(*source.pairs, strict=True)][:200]  # fmt: skip
    path = write_rows(folder / "pairs.jsonl", rows)
    return folder / "negatives.parquet", ["--pairs", path]
