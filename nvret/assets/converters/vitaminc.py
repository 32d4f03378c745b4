"""VitaminC (test part): a claim and sentences of Wikipedia that support it, refute it, or neither.

Several sentences are judged per claim by people, also ones that differ by a number only: known
relevant passages, and known irrelevant ones, for the audit of false negatives.
Source: Schuster, Fisch and Barzilay, arXiv 2103.08541.
"""

from __future__ import annotations

import json
from pathlib import Path

from nvret.assets.converters.tables import Cleaning, Converted, Judgement, assemble, one_line

MIN_WORDS = 5
CLUSTER_THRESHOLD = 0.7  # of one sentence; at half, stock phrases chain thousands together


def convert(source: Path, name: str, *, file: str) -> Converted:
    """Supporting and refuting evidence is relevant (score 1); "neither" is judged 0."""
    examples = json.loads((source / file).read_text(encoding="utf-8"))["examples"]
    cleaning = Cleaning()
    cleaning.add("read", "judgements", len(examples), len(examples), "")
    judgements = []
    for example in examples:
        evidence, _, claim = example["input"].rpartition("\nClaim:")
        # U+FFFD stands where the source had a no-break space
        title, _, text = evidence.replace("\ufffd", " ").partition(":")
        label = next(key for key, value in example["target_scores"].items() if value)
        judgements.append(
            Judgement(
                one_line(claim.replace("\ufffd", " ")),
                one_line(text),
                one_line(title),
                int(label in ("True", "False")),
            )
        )
    kept = [j for j in judgements if len(j.text.split()) >= MIN_WORDS]
    cleaning.add(
        "short evidence", "judgements", len(judgements), len(kept), f"fewer than {MIN_WORDS} words"
    )
    return assemble(name, kept, cleaning, cluster_threshold=CLUSTER_THRESHOLD)
