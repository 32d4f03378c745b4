"""One cache for several: four jobs at once, a symbolic link, an object store."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from campaign import commands
from campaign.commands import Outcome

STAGES = ("encode", "mine", "train")
ROUNDS = 2


def jobs(folder: Path, share: float) -> Outcome:
    """Two processes and two jobs of two under torchrun, at once on one empty cache."""
    outcome = Outcome("two processes and two torchrun jobs of two at once on one cache, by stage")
    profile = commands.small_profile(folder / "profile.yaml")
    again = 0
    with commands.scratch(folder / "alone") as alone:
        for stage in STAGES:
            ended = commands.run(stage, profile, env=commands.places(alone))
            outcome.took(ended, (0,), f"{stage} alone")
        expected = commands.contents(alone / "cache")
    for number in range(max(1, round(share * ROUNDS))):
        with commands.scratch(folder / f"round-{number}") as place:
            env = commands.places(place)
            for stage in STAGES:
                started = [commands.start(stage, profile, env=env, processes=processes)
                           for processes in (1, 2, 1, 2)]  # fmt: skip
                for place_of_it, command in enumerate(started):
                    outcome.times += 1
                    what = f"round {number}, {stage}, job {place_of_it}"
                    outcome.took(command.end(), (0,), what)
            found = commands.contents(place / "cache")
            if names := commands.wrong(found, expected):
                outcome.differs(f"round {number}: {', '.join(names)}")
            if left := commands.partial(place):
                outcome.differs(f"round {number}: left {left}")
            again += sum(count - 1 for count in Counter(commands.made(place)).values())
    outcome.notes.append(f"{again} results made by more than one job")
    return outcome


def links(folder: Path, share: float) -> Outcome:
    """The cache through a symbolic link, then by its own path."""
    outcome = Outcome("`nvret run` on a cache that is a symbolic link, then on its real path")
    profile = commands.small_profile(folder / "profile.yaml")
    expected = _plain(folder, profile, outcome)
    (folder / "disk").mkdir()
    (folder / "link").symlink_to(folder / "disk")
    for cache in (folder / "link", folder / "disk"):
        before = commands.made(folder)
        outcome.times += 1
        ended = commands.run("run", profile, env=commands.places(folder, cache))
        if outcome.took(ended, (0,), cache.name):
            found = commands.contents(folder / "disk", folder / "results")
            if names := commands.wrong(found, expected):
                outcome.differs(f"{cache.name}: {', '.join(names)}")
        if again := set(commands.made(folder)[len(before) :]) & set(before):
            outcome.differs(f"computed again: {', '.join(again)}")
    outcome.notes.append(f"{len(before)} results made by the first run")
    return outcome


def remote(folder: Path, share: float) -> Outcome:
    """A second, empty cache gets all its results from the first one's remote place.

    Each result there is marked with a file of its own, so that what was copied can be told from
    what was computed.
    """
    outcome = Outcome("`nvret run` with a remote place, then on an empty cache with the same place")
    profile = commands.small_profile(folder / "profile.yaml")
    expected = _plain(folder, profile, outcome)
    marked: set[str] = set()
    for turn in (folder / "first", folder / "second"):
        env = commands.places(turn) | {"NVRET_REMOTE": f"file://{folder / 'there'}"}
        outcome.times += 1
        if outcome.took(commands.run("run", profile, env=env), (0,), turn.name):
            found = commands.contents(turn / "cache", turn / "results")
            marks = {name for name in found if name.endswith("/marked")}
            rest = {name: found[name] for name in found.keys() - marks}
            copied = {name.rpartition("/")[0] for name in marks}
            # What others are made of is not asked for where they are there: models of scores, a
            # set's vectors of a corpus's. A model that is trained, tested and removed leaves the
            # folder of models behind
            again = {
                one
                for one in marked - copied
                if (turn / "cache" / one).exists()
                or (one.startswith("models/") and (turn / "cache" / "models").exists())
            }
            spared = marked - copied - again
            wanted = {name: file for name, file in expected.items()
                      if name.rpartition("/")[0] not in spared}  # fmt: skip
            if names := commands.wrong(rest, wanted):
                outcome.differs(f"{turn.name}: {', '.join(names)}")
            if again or (marked and not copied):
                outcome.differs(f"computed again: {sorted(again or marked)}")
        marked = marked or _mark(folder / "there")
    outcome.notes.append(f"{len(marked)} results at the remote place")
    return outcome


def _plain(folder: Path, profile: Path, outcome: Outcome) -> dict[str, str]:
    with commands.scratch(folder / "plain") as plain:
        outcome.took(commands.run("run", profile, env=commands.places(plain)), (0,), "plain")
        return commands.contents(plain / "cache", plain / "results")


def _mark(there: Path) -> set[str]:
    """Add a file to each result at the remote place; the results' names."""
    names = set()
    for listing in there.rglob("*.json"):
        result = listing.with_suffix("")
        if result.is_dir() and len(result.name) == 64:
            (result / "marked").write_text("from there")
            files = json.loads(listing.read_text())
            files["marked"] = hashlib.sha256(b"from there").hexdigest()
            listing.write_text(json.dumps(files))
            names.add(result.relative_to(there).as_posix())
    return names
