"""The folder layout of sentence-transformers: what it says about pooling, prompts and lengths.

Folders written here load in ``AutoModel`` and ``SentenceTransformer`` as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvret.utils.errors import NvretError

# sentence-transformers' ``pooling_mode_<key>``, and ``pooling_mode`` of newer folders
POOLINGS = {
    "mean": ("mean_tokens", "mean"),
    "cls": ("cls_token", "cls"),
    "last": ("lasttoken", "lasttoken"),
}
_MODES = (
    "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
    "lasttoken",
)  # fmt: skip
_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
_STATIC_MODULES = {"": "StaticEmbedding", "1_Normalize": "Normalize"}


@dataclass(frozen=True)
class Layout:
    """What a model folder says about how its token vectors become one vector.

    A ``static`` model is a table of token vectors (``StaticEmbedding``, model2vec); a ``latent``
    one a decoder with NV-Embed's latent attention before the mean.
    """

    static: bool = False
    latent: bool = field(default=False, repr=False)  # the weights tell these models apart
    pooling: str | None = None  # "mean", "cls" or "last"; None: the folder does not say
    prompts: dict[str, str] = field(default_factory=dict)  # before a "query" or a "passage"
    include_prompt: bool = True  # whether the prompt's tokens take part in the pooling
    max_length: int | None = None  # in tokens; None: the tokenizer's own limit


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What libraries raise for damaged files becomes an `NvretError` that names the folder."""
    try:
        yield
    except (NvretError, MemoryError):
        raise
    except Exception as error:  # tokenizers has no kind of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise NvretError(f"{folder}: cannot be read as a model: {reason}") from error


def read_json(path: Path) -> Any:
    """The file's JSON; None when there is no such file. `NvretError` when it is not JSON."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NvretError(f"{path} is not JSON: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a model's JSON: keys in the order that they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _pooling(config: dict[str, Any], path: Path) -> str:
    prefix = "pooling_mode_"
    flags = [
        key.removeprefix(prefix) for key, on in config.items() if on and key.startswith(prefix)
    ]
    modes = config.get("pooling_mode") or flags
    modes = [modes] if isinstance(modes, str) else list(modes)
    for name, spellings in POOLINGS.items():
        if len(modes) == 1 and modes[0] in spellings:
            return name
    raise NvretError(f"{path}: pooling {modes} is not supported, expected one of {list(POOLINGS)}")


def read(folder: Path) -> Layout:
    """Read a folder's layout; a plain transformers folder gives the defaults."""
    config = read_json(folder / "config.json") or {}
    latent = config.get("model_type") == "nvembed"
    modules = read_json(folder / "modules.json") or []
    kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    known = {*_MODULES.values(), *_STATIC_MODULES.values()}
    if not latent and (unknown := sorted(set(kinds) - known)):
        raise NvretError(
            f"{folder / 'modules.json'}: {unknown} not supported, only {sorted(known)}"
        )
    general = read_json(folder / "config_sentence_transformers.json") or {}
    bert = read_json(folder / "sentence_bert_config.json") or {}
    named = general.get("prompts") or {}
    if not all(isinstance(prompt, str) for prompt in named.values()):
        raise NvretError(f"{folder}: its prompts are {named}, expected texts")
    passage = next((named[key] for key in ("passage", "document", "corpus") if named.get(key)), "")
    pooling, include_prompt = None, not latent  # NV-Embed masks the instruction's tokens
    if "Pooling" in kinds and not latent:
        path = folder / kinds["Pooling"] / "config.json"
        settings = read_json(path) or {}
        pooling, include_prompt = _pooling(settings, path), settings.get("include_prompt", True)
    return Layout(
        static="StaticEmbedding" in kinds or config.get("model_type") == "model2vec",
        latent=latent,
        pooling=pooling,
        prompts={"query": named.get("query") or "", "passage": passage},
        include_prompt=bool(include_prompt),
        max_length=bert.get("max_seq_length"),
    )


def write(folder: Path, layout: Layout, dimension: int) -> None:
    """Write what `read` reads, next to weights and tokenizer that are in ``folder`` already."""
    query, passage = layout.prompts.get("query", ""), layout.prompts.get("passage", "")
    general = {
        "model_type": "SentenceTransformer",
        "prompts": {"query": query, "passage": passage, "document": passage},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", general)
    if layout.latent:  # is no module of sentence-transformers
        return
    modules = _STATIC_MODULES if layout.static else _MODULES
    if not layout.static:
        chosen, _ = POOLINGS[layout.pooling or "mean"]
        pooling = {
            "word_embedding_dimension": dimension,
            **{f"pooling_mode_{mode}": mode == chosen for mode in _MODES},
            "include_prompt": layout.include_prompt,
        }
        write_json(folder / "1_Pooling" / "config.json", pooling)
        limits = {"max_seq_length": layout.max_length, "do_lower_case": False}
        write_json(folder / "sentence_bert_config.json", limits)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules.items())
    ]
    write_json(folder / "modules.json", listed)
    write_json(folder / list(modules)[-1] / "config.json", {})


def resolve(path: str | Path, *, revision: str | None = None) -> Path:
    """A local model folder: ``path`` itself, or a snapshot of the hub repository of that name."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) or str(path).startswith("."):
        raise NvretError(f"{path}: no such model folder")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NvretError(
            f"{path}: no such folder, and not to be had from the hub ({reason})"
        ) from None
