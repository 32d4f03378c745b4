"""Natural Questions, from a task that tests what a model does when a passage was changed.

In every passage the answer was swapped for another name ("Question: …\\nContext: …", the swapped
name is ``target``, the original is the other key of ``target_scores``). Putting the original back
restores the passage, if the swapped name stands in it once. If it stands there more often, it may
have replaced several different names, and what it replaced where is lost.
Source: Kwiatkowski et al., TACL 2019; Longpre et al., arXiv 2109.05052 (the swaps).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nvret.assets.converters.tables import Cleaning, Converted, Judgement, assemble, one_line
from nvret.utils.near_duplicates import normalise

MIN_WORDS = 20
_ENTRY = re.compile(r"\s*Question: (.*?)\nContext: (.*)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A question and its restored passage, in which the swapped name stood in so many places."""

    question: str
    text: str
    places: int


def restore(example: dict) -> Entry:
    """Put the original answer back.

    >>> restore({"input": "Question: who wrote emma?\\nContext: Emma , by Bo Li .",
    ...          "target": "Bo Li", "target_scores": {"Bo Li": 1, "Jane Austen": 0}})
    Entry(question='who wrote emma?', text='Emma , by Jane Austen .', places=1)
    """
    question, context = _ENTRY.fullmatch(example["input"]).groups()  # type: ignore[union-attr]
    swapped = example["target"]
    (original,) = (name for name, score in example["target_scores"].items() if score == 0)
    text = one_line(context.replace(swapped, original))
    return Entry(one_line(question), text, context.count(swapped))


def whole_entries(entries: list[Entry]) -> list[Entry]:
    """Those whose passage is known to be whole.

    The swapped name stood there once, or the restored text is equal to a passage of which that is
    true (there another answer was swapped, so the names in question were never touched).
    """
    untouched = {normalise(entry.text) for entry in entries if entry.places == 1}
    return [entry for entry in entries if entry.places == 1 or normalise(entry.text) in untouched]


def convert(source: Path, name: str, *, file: str) -> Converted:
    examples = json.loads((source / file).read_text(encoding="utf-8"))["examples"]
    entries = [restore(example) for example in examples]
    cleaning = Cleaning()
    cleaning.add(
        "read",
        "entries",
        len(entries),
        len(entries),
        "a question, its passage with one answer swapped, and the original answer",
    )
    whole = whole_entries(entries)
    cleaning.add(
        "restore the answer",
        "entries",
        len(entries),
        len(whole),
        "the swapped name stands in several places and may have replaced different names",
    )
    long = [entry for entry in whole if len(entry.text.split()) >= MIN_WORDS]
    cleaning.add(
        "short passages",
        "entries",
        len(whole),
        len(long),
        f"fewer than {MIN_WORDS} words: captions, cast lists and table rows",
    )
    return assemble(name, [Judgement(e.question, e.text) for e in long], cleaning)
