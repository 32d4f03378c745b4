"""Unpacked files of a package -> the layout that nvret reads; a function for each source format.

One of a model has ``(source, target, entry)``: it writes weights, tokenizer and, for a transformer,
``config.json``. One of a data set has ``(source, name, **options)`` and gives `tables.Converted`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from nvret.utils.errors import NvretError

_MODULES = {  # the registry's name, and the name of the function -> where it is
    "nq": "bigbench",
    "squad": "bigbench",
    "vitaminc": "bigbench",
    "quoref": "bigbench",
    "qasc": "bigbench",
    "static_embedding": "exports",
    "safetensors_copy": "exports",
    "bert_onnx": "exports",
    "e5_4bit": "e5_4bit",
    "llama_gguf": "llama_gguf",
}


def converter(name: str) -> Callable[..., Any]:
    """The converter that the registry names; its module is imported now."""
    if name not in _MODULES:
        raise NvretError(f"no converter is named {name!r}; known: {', '.join(sorted(_MODULES))}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
