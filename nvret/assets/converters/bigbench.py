"""The public data sets that BIG-bench carries as tasks: a converter for each.

A converter's file options name the JSON files below ``source``. Passages and questions are brought
onto one line each; `tables.assemble` does the rest.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from nvret.assets.converters.tables import Converted, Judgement, assemble, one_line, step
from nvret.utils.errors import NvretError
from nvret.utils.near_duplicates import normalise

# of single sentences (VitaminC, QASC); at half, stock phrases chain thousands together
SENTENCE_THRESHOLD = 0.7


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# Natural Questions

NQ_MIN_WORDS = 20
_NQ = re.compile(r"\s*Question: (.*?)\nContext: (.*)", re.DOTALL)


class Entry(NamedTuple):
    """A question and its restored passage, in which the swapped name stood in so many places."""

    question: str
    text: str
    places: int


def restore(example: dict[str, Any]) -> Entry:
    """Put the original answer back.

    >>> restore({"input": "Question: who wrote emma?\\nContext: Emma , by Bo Li .",
    ...          "target": "Bo Li", "target_scores": {"Bo Li": 1, "Jane Austen": 0}})
    Entry(question='who wrote emma?', text='Emma , by Jane Austen .', places=1)
    """
    question, context = _NQ.fullmatch(example["input"]).groups()  # type: ignore[union-attr]
    swapped = example["target"]
    (original,) = (name for name, score in example["target_scores"].items() if score == 0)
    text = one_line(context.replace(swapped, original))
    return Entry(one_line(question), text, context.count(swapped))


def whole_entries(entries: list[Entry]) -> list[Entry]:
    """Those whose swapped name stood there once, or whose text is equal to such a passage.

    (In that one another answer was swapped, so the names in question were never touched.)
    """
    untouched = {normalise(entry.text) for entry in entries if entry.places == 1}
    return [entry for entry in entries if entry.places == 1 or normalise(entry.text) in untouched]


def nq(source: Path, name: str, *, file: str) -> Converted:
    """Natural Questions, from a task that tests what a model does when a passage was changed.

    In every passage the answer was swapped for another name: ``target``; the original is the other
    key of ``target_scores``. If the swapped name stands there more than once, it may have replaced
    several different names, and what it replaced where is lost.
    Source: Kwiatkowski et al., TACL 2019; Longpre et al., arXiv 2109.05052 (the swaps).
    """
    entries = [restore(example) for example in _json(source / file)["examples"]]
    whole = whole_entries(entries)
    long = [entry for entry in whole if len(entry.text.split()) >= NQ_MIN_WORDS]
    read = "a question, its passage with one answer swapped, and the original answer"
    swapped = "the swapped name stands in several places and may have replaced different names"
    short = f"fewer than {NQ_MIN_WORDS} words: captions, cast lists and table rows"
    cleaning = [
        step("read", "entries", entries, entries, read),
        step("restore the answer", "entries", entries, whole, swapped),
        step("short passages", "entries", whole, long, short),
    ]
    return assemble(name, [Judgement(entry.question, entry.text) for entry in long], cleaning)


# SQuAD and VitaminC


def squad(source: Path, name: str, *, file: str, titles: bool) -> Converted:
    """SQuAD 1.1 and SQuADShifts: a question and the paragraph that it was asked about.

    Wikipedia's ``titles`` say what an article is about; those of SQuADShifts' other parts are web
    addresses or running numbers, and would be noise.
    Source: Rajpurkar et al., arXiv 1606.05250; Miller et al., arXiv 2004.14444.
    """
    judgements = [
        Judgement(
            question=one_line(question["question"]),
            text=one_line(paragraph["context"]),
            title=one_line(article["title"].replace("_", " ")) if titles else "",
        )
        for article in _json(source / file)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    cleaning = [step("read", "questions", judgements, judgements)]
    return assemble(name, judgements, cleaning)


VITAMINC_MIN_WORDS = 5


def vitaminc(source: Path, name: str, *, file: str) -> Converted:
    """VitaminC (test part): a claim and sentences of Wikipedia, judged by people.

    Supporting and refuting evidence is relevant (score 1); "neither" is judged 0. Several sentences
    are judged per claim, also ones that differ by a number only.
    Source: Schuster, Fisch and Barzilay, arXiv 2103.08541.
    """
    judgements = []
    for example in _json(source / file)["examples"]:
        # U+FFFD stands where the source had a no-break space
        evidence, _, claim = example["input"].replace("\ufffd", " ").rpartition("\nClaim:")
        title, _, text = evidence.partition(":")
        label = next(key for key, value in example["target_scores"].items() if value)
        relevant = int(label in ("True", "False"))
        judgements.append(Judgement(one_line(claim), one_line(text), one_line(title), relevant))
    kept = [j for j in judgements if len(j.text.split()) >= VITAMINC_MIN_WORDS]
    why = f"fewer than {VITAMINC_MIN_WORDS} words"
    cleaning = [
        step("read", "judgements", judgements, judgements),
        step("short evidence", "judgements", judgements, kept, why),
    ]
    return assemble(name, kept, cleaning, cluster_threshold=SENTENCE_THRESHOLD)


# Quoref and QASC, from Natural Instructions (Mishra et al., arXiv 2104.08773)

_PASSAGE = re.compile(r"Passage:(.*)", re.DOTALL)
_RELATED = re.compile(r"Fact: (.*?)\s*\nTopic: (.*)", re.DOTALL)
_COMBINED = re.compile(r"Fact 1: (.*?)\s*\nFact 2: (.*)", re.DOTALL)
_ASKED = re.compile(r"Fact: (.*)", re.DOTALL)
_ANSWERED = re.compile(r"Fact: (.*?)\s*\nQuestion: (.*)", re.DOTALL)


def instructions(path: Path, pattern: re.Pattern[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """The groups of ``pattern`` in each input, which it must match whole, and its targets."""
    rows = []
    for row, example in enumerate(_json(path)["examples"]):
        match = pattern.fullmatch(example["input"])
        if match is None:
            start = example["input"][:60]
            raise NvretError(
                f"{path.name}: example {row} is {start!r}…; expected {pattern.pattern!r}"
            )
        targets = [one_line(target) for target in example["target"]]
        rows.append((tuple(map(one_line, match.groups())), targets))
    return rows


def quoref(source: Path, name: str, *, file: str) -> Converted:
    """Quoref: long passages of Wikipedia, and questions that need their references resolved.

    The task that asks for questions holds every passage with all of its questions. There are no
    titles. Some questions make sense beside their passage alone ("Who is Stan?").
    Source: Dasigi et al., arXiv 1908.05803.
    """
    judgements = [
        Judgement(question, text)
        for (text,), questions in instructions(source / file, _PASSAGE)
        for question in questions
    ]
    cleaning = [step("read", "questions", judgements, judgements)]
    return assemble(name, judgements, cleaning)


def qasc(
    source: Path, name: str, *, related: str, combined: str, asked: str, answered: str
) -> Converted:
    """QASC: questions about science, each with the two facts that must be joined to answer it.

    BIG-bench's tasks are steps of the set's making: a fact and a topic gave a second fact
    (``related``), the two were ``combined`` into a third, and that was turned into a question
    (``asked``; or ``answered``, whose answers are not used). So a question is followed back to its
    combined fact, and from there to the two; both are relevant.
    Source: Khot et al., arXiv 1910.11473.
    """
    sources = defaultdict(list)
    for facts, conclusions in instructions(source / combined, _COMBINED):
        for conclusion in conclusions:
            sources[conclusion].extend(facts)
    questions = [
        (question, fact)
        for (fact,), targets in instructions(source / asked, _ASKED)
        for question in targets
    ]
    questions += [
        (question, fact) for (fact, question), _ in instructions(source / answered, _ANSWERED)
    ]
    questions = list(dict.fromkeys(questions))
    traced = [(question, fact) for question, fact in questions if fact in sources]
    lost = "BIG-bench holds a part of each step: the two facts behind the question are not in it"
    cleaning = [
        step("read", "questions", questions, questions, "with the fact they ask for"),
        step("follow back to two facts", "questions", questions, traced, lost),
    ]
    others = [
        text
        for (fact, _), targets in instructions(source / related, _RELATED)
        for text in (fact, *targets)
    ]
    others += [text for facts in sources.values() for text in facts]
    return assemble(
        name,
        [Judgement(question, text) for question, fact in traced for text in sources[fact]],
        cleaning,
        others=others,
        cluster_threshold=SENTENCE_THRESHOLD,
    )
