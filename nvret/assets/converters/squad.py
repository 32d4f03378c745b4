"""SQuAD's JSON (SQuAD 1.1 and SQuADShifts): a question and the paragraph that it was asked about.

Source: Rajpurkar et al., arXiv 1606.05250; Miller et al., arXiv 2004.14444.
"""

from __future__ import annotations

import json
from pathlib import Path

from nvret.assets.converters.tables import Cleaning, Converted, Judgement, assemble, one_line


def convert(source: Path, name: str, *, file: str, titles: bool) -> Converted:
    """
    Args:
        file: the JSON file below ``source``.
        titles: keep the article's title. Wikipedia's say what the article is about; those of
            SQuADShifts' other parts are web addresses or running numbers, and would be noise.
    """
    data = json.loads((source / file).read_text(encoding="utf-8"))["data"]
    judgements = [
        Judgement(
            question=one_line(question["question"]),
            text=one_line(paragraph["context"]),
            title=one_line(article["title"].replace("_", " ")) if titles else "",
        )
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    cleaning = Cleaning()
    cleaning.add("read", "questions", len(judgements), len(judgements), "")
    return assemble(name, judgements, cleaning)
