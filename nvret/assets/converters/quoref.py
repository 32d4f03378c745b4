"""Quoref: long passages of Wikipedia, and questions that need their references resolved.

The task that asks for questions holds every passage with all of its questions; the one that asks
for answers repeats a part of them and is not read. There are no titles. Some questions make sense
beside their passage alone ("Who is Stan?").
Source: Dasigi et al., arXiv 1908.05803.
"""

from __future__ import annotations

import re
from pathlib import Path

from nvret.assets.converters import instructions
from nvret.assets.converters.tables import Cleaning, Converted, Judgement, assemble

_PASSAGE = re.compile(r"Passage:(.*)", re.DOTALL)


def convert(source: Path, name: str, *, file: str) -> Converted:
    entries = instructions.read(source / file, _PASSAGE)
    judgements = [Judgement(question, text) for (text,), targets in entries for question in targets]
    cleaning = Cleaning()
    cleaning.add("read", "questions", len(judgements), len(judgements), "")
    return assemble(name, judgements, cleaning)
