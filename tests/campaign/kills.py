"""SIGKILL at random moments; the same command, started again, ends with the same results."""

from __future__ import annotations

import itertools
import subprocess
import time
from pathlib import Path

import numpy as np

from campaign import commands
from campaign.commands import Outcome

KILLS = 50  # that hit a running process
EACH = 5  # of them at most on the way from an empty cache to the end
MINUTES = 10  # after which nothing more is killed: a busy machine gets fewer kills


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
    rng = np.random.default_rng(50)
    left = rounds = 0
    wanted = max(2, round(share * KILLS))
    while outcome.times < wanted and time.monotonic() < end:
        rounds += 1
        with commands.scratch(folder / f"round-{rounds}") as place:
            env = commands.places(place)
            for start in itertools.count():
                command = commands.start("run", profile, env=env)
                if start < EACH and outcome.times < wanted and time.monotonic() < end:
                    try:  # a run that finds some results takes less than the first one
                        command.process.wait(rng.uniform(0, 0.75 * seconds))
                    except subprocess.TimeoutExpired:
                        command.kill()
                        outcome.times += 1
                        left += _spoil(place, rng)
                        continue
                if outcome.took(command.end(), (0,), f"round {rounds}, start {start}"):
                    found = commands.contents(place / "cache", place / "results")
                    if names := commands.wrong(found, expected):
                        outcome.differs(f"round {rounds}: {', '.join(names)}")
                break
    outcome.notes.append(
        f"{rounds} times from an empty cache to the end; {left} half-written files left by kills"
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
