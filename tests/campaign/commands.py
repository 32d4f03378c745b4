"""The command line as a user starts it, in processes of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from nvret.study import config
from nvret.utils import store

ROOT = config.project_root()
STUDY = "05_rq3_sampling"
LONGEST = 240  # seconds, for what takes twenty: what takes longer hangs
VARYING = {".ipynb", "provenance.json"}  # hold times
# Python imports this module at its start; it writes down which results a process completes
WATCH = """
import os, sys
def watch(event, arguments):
    if event == "os.rename" and str(arguments[0]).endswith(".partial"):
        if os.path.isdir(arguments[0]):
            with open(os.environ["CAMPAIGN_MADE"], "a") as stream:
                stream.write(os.path.basename(arguments[1]) + "\\n")
sys.addaudithook(watch)
"""


@dataclass
class Outcome:
    """Of one kind of trial.

    Attributes:
        done: what was done.
        times: how often.
        differences, tracebacks, hangs: how many of them ended so.
        notes: what else there is to say; a ``skipped`` trial says why.
    """

    done: str
    times: int = 0
    differences: int = 0
    tracebacks: int = 0
    hangs: int = 0
    notes: list[str] = field(default_factory=list)

    def differs(self, note: str) -> None:
        self.differences += 1
        self.notes.append(note)

    def took(self, ended: Ended, statuses: tuple[int, ...], what: str) -> bool:
        """Count how a command ended; whether it was as expected.

        Args:
            statuses: that are right; with 2 there is one message.
        """
        if ended.status is None:
            self.hangs += 1
        elif "Traceback" in ended.errors:
            self.tracebacks += 1
        elif ended.status not in statuses or (ended.status == 2 and len(ended.messages) != 1):
            self.differences += 1
        else:
            return True
        self.notes.append(f"{what}: status {ended.status}\n  {ended.last}")
        return False


class Ended(NamedTuple):
    """status: None if it was stopped, because it took too long."""

    status: int | None
    errors: str

    @property
    def last(self) -> str:
        """The innermost line of nvret in a traceback, without the folder, and the error."""
        frames = re.findall(r'File ".*/nvret/(\S+)", line (\d+)', self.errors)
        errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", self.errors, re.MULTILINE)
        place = [":".join(frames[-1])] if frames else []
        return ": ".join([*place, *errors[-1:]]) or self.errors[-200:]

    @property
    def messages(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("nvret: ")]


@dataclass
class Command:
    """``nvret`` with some arguments, in a process or under torchrun."""

    process: subprocess.Popen
    errors: tempfile._TemporaryFileWrapper

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self, longest: float = LONGEST) -> Ended:
        try:
            status = self.process.wait(longest)
        except subprocess.TimeoutExpired:
            self.kill()
            status = None
        self.errors.seek(0)
        return Ended(status, self.errors.read())


def start(*arguments: object, env: dict[str, str], processes: int = 1) -> Command:
    errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read at the end)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "nvret"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
    )  # fmt: skip
    return Command(process, errors)


def run(*arguments: object, env: dict[str, str]) -> Ended:
    return start(*arguments, env=env).end()


def small_profile(path: Path) -> Path:
    """One study of the smoke profile: two arms, one seed, one teacher."""
    values = config.read(ROOT / "params" / "smoke.yaml")
    study = values["studies"][STUDY] | {
        "runs": [
            {"student": "static", "method": "perc-pos"},
            {"student": "static", "method": "perc-pos", "sampling": "sampled", "k": 4},
        ]
    }
    student = values["students"]["static"] | {"queries": 64, "out_of_domain": []}
    teachers = [one for one in values["teachers"] if one["name"] == values["teacher"]]
    values |= {"seeds": [0], "teachers": teachers, "students": {"static": student},
               "studies": {STUDY: study}, "notebooks": [STUDY]}  # fmt: skip
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def places(folder: Path, cache: Path | None = None, results: Path | None = None) -> dict[str, str]:
    """An environment with a cache of its own, in which only the fetched assets are."""
    cache, results = cache or folder / "cache", results or folder / "results"
    cache.mkdir(parents=True, exist_ok=True)
    for kind in ("models", "datasets"):
        if not (cache / kind).exists():
            (cache / kind).symlink_to(store.cache_dir() / kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join(filter(None, [str(folder), str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "NVRET_CACHE": str(cache),
        "NVRET_RESULTS": str(results),
        "CAMPAIGN_MADE": str(folder / "made"),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def made(folder: Path) -> list[str]:
    """The results that commands with `places` computed or copied, one for each time."""
    path = folder / "made"
    return path.read_text().splitlines() if path.exists() else []


def contents(*folders: Path) -> dict[str, str]:
    """SHA-256 of all results below some folders; of what is hidden, nothing."""
    found = {}
    for folder in folders:
        for path in _files(folder):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden and not {path.name, path.suffix} & VARYING:
                found[name.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def partial(folder: Path) -> list[Path]:
    """What was left half written."""
    return [path for path in folder.rglob(".*") if ".partial" in path.name]


def _files(folder: Path) -> Iterator[Path]:
    """Not those of the assets, which are links to folders elsewhere."""
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def wrong(found: dict[str, str], expected: dict[str, str], *, all_of_it: bool = True) -> list[str]:
    """Names of the results that differ; of those that are missing too, where all are expected."""
    names = set(found) | (set(expected) if all_of_it else set())
    return sorted(name for name in names if found.get(name) != expected.get(name))


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of so many bytes, in memory.

    Raises:
        PermissionError: it cannot be mounted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PermissionError(str(error)) from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield folder
    finally:
        for _ in range(50):  # until a notebook's kernel has left it
            if not subprocess.run(["umount", str(folder)], capture_output=True).returncode:
                break
            time.sleep(0.2)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder that goes with what is in it."""
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
