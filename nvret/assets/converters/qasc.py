"""QASC: questions about science, each with the two facts that must be joined to answer it.

The tasks of BIG-bench are steps of the set's making: a fact and a topic gave a second fact, the
two were combined into a third, and that was turned into a question. So a question is followed back
to its combined fact, and from there to the two; both are relevant. They are labelled passages that
share few words, the nearest thing here to HotpotQA: for the audit of false negatives.
Source: Khot et al., arXiv 1910.11473.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from nvret.assets.converters import instructions
from nvret.assets.converters.tables import Cleaning, Converted, Judgement, assemble

CLUSTER_THRESHOLD = 0.7  # of one sentence, as in VitaminC
_RELATED = re.compile(r"Fact: (.*?)\s*\nTopic: (.*)", re.DOTALL)
_COMBINED = re.compile(r"Fact 1: (.*?)\s*\nFact 2: (.*)", re.DOTALL)
_ASKED = re.compile(r"Fact: (.*)", re.DOTALL)
_ANSWERED = re.compile(r"Fact: (.*?)\s*\nQuestion: (.*)", re.DOTALL)


def convert(
    source: Path, name: str, *, related: str, combined: str, asked: str, answered: str
) -> Converted:
    """
    Args:
        related: file of facts and the facts that topics led to; they are passages.
        combined: file of two facts and what follows from both.
        asked: file of combined facts and their questions.
        answered: file of combined facts with a question each, and its answers, which are not used.
    """
    pairs = defaultdict(list)
    for facts, conclusions in instructions.read(source / combined, _COMBINED):
        for conclusion in conclusions:
            pairs[conclusion].extend(facts)
    questions = [
        (question, fact)
        for (fact,), targets in instructions.read(source / asked, _ASKED)
        for question in targets
    ]
    questions += [
        (question, fact) for (fact, question), _ in instructions.read(source / answered, _ANSWERED)
    ]
    questions = list(dict.fromkeys(questions))
    traced = [(question, fact) for question, fact in questions if fact in pairs]
    cleaning = Cleaning()
    cleaning.add("read", "questions", len(questions), len(questions), "with the fact they ask for")
    cleaning.add(
        "follow back to two facts",
        "questions",
        len(questions),
        len(traced),
        "BIG-bench holds a part of each step: the two facts behind the question are not in it",
    )
    judgements = [Judgement(question, text) for question, fact in traced for text in pairs[fact]]
    others = [
        text
        for (fact, _), found in instructions.read(source / related, _RELATED)
        for text in (fact, *found)
    ]
    others += [text for facts in pairs.values() for text in facts]
    return assemble(name, judgements, cleaning, others=others, cluster_threshold=CLUSTER_THRESHOLD)
