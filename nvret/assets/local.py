"""Models and data sets that are in no package: from a local copy, or from the hub.

A local copy is a folder ``<root>/models/<name>`` or ``<root>/datasets/<name>``, where the root is
``$NVRET_LOCAL`` or ``local`` in the cache folder. A model is a folder of safetensors and tokenizer
as the hub has it; a data set lies in BEIR's layout or in that of a hub repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from nvret.assets import registry
from nvret.assets.registry import Data, Hub, Model
from nvret.models import layout
from nvret.utils import store
from nvret.utils.errors import NvretError

OURS = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"}
PATIENCE = 3  # seconds for the hub to answer


def local_path(kind: str, name: str) -> Path:
    """Where a local copy belongs; ``kind`` is "models" or "datasets"."""
    root = os.environ.get("NVRET_LOCAL") or store.cache_dir() / "local"
    return Path(root).expanduser().absolute() / kind / name


def kind(name: str) -> str:
    """The registry's list that a name stands in: "models" or "datasets"."""
    return "models" if name in registry.models() else "datasets"


def is_available(name: str) -> bool:
    """Whether nothing has to be fetched for a model or data set of the registry."""
    entry = getattr(registry, kind(name))()[name]
    if entry.converter is not None:
        return any((store.cache_dir() / kind(name)).glob(f"{name}-*"))
    return copy(kind(name), name) is not None or (
        entry.hub is not None and _kept(entry.hub, kind(name))
    )


def copy(kind: str, name: str) -> Path | None:
    """The local copy, if there is one."""
    folder = local_path(kind, name)
    return folder if folder.is_dir() else None


def dressed(name: str, entry: Model, source: Path) -> Path:
    """A folder of links to a model's files, with the pooling, prompts and length of the registry.

    What a repository itself says of them is often incomplete: E5's prefixes stand in its card only.
    """
    said = layout.Layout(
        latent=entry.pooling == "latent",
        pooling=entry.pooling,
        prompts={"query": "", "passage": ""} | dict(entry.prompts),
        include_prompt=entry.include_prompt,
        max_length=entry.max_seq_length,
    )
    files = {path.relative_to(source): path.resolve() for path in sorted(source.rglob("*"))
             if path.is_file()}  # fmt: skip
    if not any(path.suffix == ".safetensors" for path in files):
        raise NvretError(f"{source}: has no .safetensors file, expected the weights of {name}")
    key = store.fingerprint([str(path) for path in files.values()], repr(said), entry.dimension)
    target = store.cache_dir() / "models" / f"{name}-{key[:16]}"
    if not target.exists():
        with store.atomic_folder(target) as partial:
            for path, real in files.items() if partial else ():
                if path.name not in OURS and path.parts[0] != "1_Pooling":
                    (partial / path).parent.mkdir(parents=True, exist_ok=True)
                    (partial / path).symlink_to(real)
            if partial:
                layout.write(partial, said, entry.dimension)
    return target


def check(names: Iterable[str]) -> None:
    """Say at once which of these cannot be had, before anything is downloaded.

    Raises:
        NvretError: one message for all of them: what is missing, and where a local copy belongs.
    """
    missing = []
    for name in dict.fromkeys(names):
        entry: Model | Data | None = getattr(registry, kind(name))().get(name)
        if entry is not None and entry.converter is None and not is_available(name):
            missing.append((name, entry.hub))
    lost = [row for row in missing if row[1] is None]
    if any(hub for _, hub in missing) and not reachable():
        lost = missing
    if lost:
        lines = [
            f"  {name}: {f'{hub.id} at {hub.revision}' if hub else 'on no hub'}; a copy belongs in "
            f"{local_path(kind(name), name)}"
            for name, hub in lost
        ]
        said = f"{len(lost)} models and data sets cannot be had: the hub does not answer, or has no"
        raise NvretError("\n".join([f"{said} such thing, and there is no local copy.", *lines]))


def _kept(hub: Hub, kind: str) -> bool:
    """Whether the hub's own cache holds the repository at that revision."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(hub.id, revision=hub.revision, repo_type=kind[:-1], local_files_only=True)
    except Exception:  # the hub client raises many kinds; all mean "not there"
        return False
    return True


def reachable() -> bool:
    """Whether the hub answers within seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # whatever its transport raises
        return False
    return True
