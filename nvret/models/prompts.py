"""What stands before a query and before a passage: asked for, of the folder, or of the family.

A model that was trained with prompts is a worse teacher without them, and its folder often does not
hold them: E5's stand in its card alone. So a name that says the family is warned about.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from nvret.models.layout import read_json
from nvret.utils.errors import NvretError, hint

log = logging.getLogger("nvret")
KINDS = ("query", "passage")
_ASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
_SEARCH = "Represent this sentence for searching relevant passages: "
# Of a model's name: the family, its prompt of queries and of passages, as its card has them
FAMILIES = (
    (r"e5-mistral|e5-\w+-instruct", "E5 with instructions", _ASK + "Query: ", ""),
    (r"e5-(small|base|large)", "E5", "query: ", "passage: "),
    (r"bge-(small|base|large)-zh", "BGE", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"bge-(small|base|large)-en", "BGE", _SEARCH, ""),
    (r"gte-qwen", "GTE with instructions", _ASK + "Query: ", ""),
    (r"arctic-embed-[a-z]+-v2", "Arctic-Embed 2", "query: ", ""),
    (r"arctic-embed", "Arctic-Embed", _SEARCH, ""),
    (r"mxbai-embed", "mxbai-embed", _SEARCH, ""),
    (r"nomic-embed-text", "Nomic", "search_query: ", "search_document: "),
    (r"qwen3-embedding", "Qwen3-Embedding", _ASK + "Query:", ""),
    (r"embeddinggemma", "EmbeddingGemma", "task: search result | query: ", "title: none | text: "),
)


def chosen(folder: Path, own: Mapping[str, str], asked: Mapping[str, str] | None) -> dict[str, str]:
    r"""The prompts of queries and passages.

    Args:
        folder: of the model.
        own: {"query": ..., "passage": ...}, what the folder says.
        asked: likewise, instead of that: a text, or the name of one of the folder's prompts. One
            word alone is a name. "" is none, and what is left out or None is the folder's.
    Raises:
        NvretError: a kind that is neither, or a name that the folder does not have.

    >>> chosen(Path("."), {"query": "query: ", "passage": ""}, {"passage": "a text: "})
    {'query': 'query: ', 'passage': 'a text: '}
    """
    asked = {kind: text for kind, text in (asked or {}).items() if text is not None}
    if unknown := sorted(set(asked) - set(KINDS)):
        raise NvretError(f"prompts for {unknown}, expected {' and '.join(map(repr, KINDS))}")
    prompts = {kind: own.get(kind, "") for kind in KINDS}
    if not asked and not any(prompts.values()):
        _warn_of_family(folder)
    return prompts | {kind: _text(folder, text) for kind, text in asked.items()}


def _text(folder: Path, text: str) -> str:
    named = (read_json(folder / "config_sentence_transformers.json") or {}).get("prompts") or {}
    if text in named:
        return named[text]
    if re.fullmatch(r"[\w-]+", text):
        known = ", ".join(map(repr, named)) or "none"
        raise NvretError(
            f"{folder}: no prompt is named {text!r}{hint(text, named) or ','} it has {known}; a "
            "prompt that is a text ends in a blank or a sign"
        )
    return text


def family(folder: Path) -> tuple[str, str, str] | None:
    """Family, prompt of queries and of passages, by a folder's own name or what its config says.

    >>> family(Path("models/e5-base-v2"))
    ('E5', 'query: ', 'passage: ')
    """
    config = read_json(folder / "config.json") or {}
    # A snapshot of the hub: models--owner--name/snapshots/revision
    names = [folder.absolute().name, str(config.get("_name_or_path") or "")]
    names += [part for part in folder.absolute().parts if part.startswith("models--")]
    for pattern, *found in FAMILIES:
        if any(re.search(rf"(?<![a-z0-9]){pattern}", name.lower()) for name in names):
            return tuple(found)
    return None


def _warn_of_family(folder: Path) -> None:
    if found := family(folder):
        name, query, passage = found
        parts = ((query, "a query", "--query-prompt"), (passage, "a passage", "--passage-prompt"))
        log.warning(
            "%s: %s models are trained with %s, and the folder says no prompt: %s gives them, "
            "--query-prompt '' is none",
            folder,
            name,
            " and ".join(f"{text!r} before {what}" for text, what, _ in parts if text),
            " ".join(f"{option} {text!r}" for text, _, option in parts if text),
        )
