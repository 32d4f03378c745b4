"""SIGKILL at random moments; the same command, started again, ends with the same results."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from campaign import commands
from campaign.commands import Outcome

KILLS = 50  # that hit a running process
EACH = 5  # of them at most on the way from an empty cache to the end
TOGETHER = 2  # ways at once, each with a cache of its own: a command computes with one thread
MINUTES = 9  # after which nothing more is killed: a busy machine gets fewer kills


def trial(folder: Path, share: float) -> Outcome:
    """From an empty cache to the end, killed on the way, again and again.

    What a kill leaves half written, except the checkpoints and inputs that training resumes from,
    is filled with noise before the next start: a command that trusted it would end otherwise.
    """
    outcome = Outcome("SIGKILL at a random moment of `nvret run`, then the same command again")
    profile = commands.small_profile(folder / "profile.yaml")
    started = time.monotonic()
    with commands.scratch(folder / "whole") as whole:
        ended = commands.run("run", profile, env=commands.places(whole))
        if not outcome.took(ended, (0,), "not killed"):
            return outcome
        expected = commands.contents(whole / "cache", whole / "results")
    seconds = time.monotonic() - started
    end = started + 60 * MINUTES
    wanted = max(2, round(share * KILLS))
    numbers, lock = itertools.count(1), threading.Lock()
    left: list[int] = []  # by kill

    def killed() -> bool:
        """Whether one more kill is wanted; it is counted then."""
        with lock:
            more = outcome.times < wanted and time.monotonic() < end
            outcome.times += more
        return more

    def way(number: int) -> None:
        rng = np.random.default_rng([50, number])
        with commands.scratch(folder / f"round-{number}") as place:
            env = commands.places(place)
            for start in itertools.count():
                command = commands.start("run", profile, env=env)
                if start < EACH:
                    try:  # a run that finds some results takes less than the first one
                        command.process.wait(rng.uniform(0, 0.75 * seconds))
                    except subprocess.TimeoutExpired:
                        if killed():
                            command.kill()
                            left.append(_spoil(place, rng))
                            continue
                ended = command.end()
                with lock:
                    if outcome.took(ended, (0,), f"round {number}, start {start}"):
                        found = commands.contents(place / "cache", place / "results")
                        if names := commands.wrong(found, expected):
                            outcome.differs(f"round {number}: {', '.join(names)}")
                return

    def ways() -> None:
        while outcome.times < wanted and time.monotonic() < end:
            way(next(numbers))

    with ThreadPoolExecutor(TOGETHER) as pool:
        for worker in [pool.submit(ways) for _ in range(TOGETHER)]:
            worker.result()
    outcome.notes.append(
        f"{next(numbers) - 1} times from an empty cache to the end; "
        f"{sum(left)} half-written files left by kills"
    )
    return outcome


def _spoil(place: Path, rng: np.random.Generator) -> int:
    """Fill what no command may trust with noise."""
    number = 0
    for path in commands.partial(place):
        for file in [path] if path.is_file() else path.rglob("*"):
            trusted = "checkpoints" in file.parts or file.name == "training.json"
            if file.is_file() and not trusted:
                file.write_bytes(rng.bytes(min(file.stat().st_size, 2**20)))
                number += 1
    return number
