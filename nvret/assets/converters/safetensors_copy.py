"""Weights that are safetensors already: a transformers folder, copied without its odds and ends."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from nvret.assets.converters import layout
from nvret.utils.errors import NvretError

FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
_SPECIAL = ("bos_token", "eos_token", *layout.BERT_TOKENS)


def join_parts(source: Path) -> None:
    """Where the folder came as pieces of a zip (``part.1``, …), put them together and unpack it."""
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
        for file in FILES:
            if file not in names:
                raise NvretError(f"the joined zip holds no {file}")
            with archive.open(names[file]) as stream, (source / file).open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
    joined.unlink()


def convert(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    join_parts(source)
    (source / "model.safetensors").rename(target / "model.safetensors")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "transformers_version", "gradient_checkpointing"):
        config.pop(key, None)
    config["architectures"] = [
        name.replace("ForMaskedLM", "Model") for name in config["architectures"]
    ]
    layout.write_json(target / "config.json", config)
    known = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {key: known[key] for key in _SPECIAL if key in known}
    layout.save_tokenizer(
        target, layout.read_tokenizer(source), max_length=known["model_max_length"], **special
    )
