"""The sets that come as tasks of Natural Instructions: Quoref and QASC."""

import json

import pytest

from nvret import data
from nvret.assets.converters import bigbench
from nvret.utils.errors import NvretError


def write(folder, name, examples):
    rows = [{"input": text, "target": targets} for text, targets in examples]
    (folder / name).write_text(json.dumps({"examples": rows}))
    return name


def pairs(converted):
    """{question: the texts that answer it}"""
    text = dict(zip(*converted.corpus.select(["id", "text"]).to_pydict().values(), strict=True))
    asked = dict(zip(*converted.queries.to_pydict().values(), strict=True))
    found = {}
    for row in converted.qrels.to_pylist():
        found.setdefault(asked[row["query_id"]], []).append(text[row["corpus_id"]])
    return found


def test_quoref(tmp_path):
    examples = [
        ("Passage: Ann  met\nBo. ", ["Who met Bo?", "Who left? "]),
        ("Passage: Bo left, and Cy wept.", ["who left"]),
    ]
    file = write(tmp_path, "task.json", examples)
    converted = bigbench.quoref(tmp_path, "quoref", file=file)
    assert pairs(converted) == {
        "Who met Bo?": ["Ann met Bo."],
        "Who left?": ["Ann met Bo.", "Bo left, and Cy wept."],  # one query, asked twice
    }
    assert converted.cleaning[0]["kept"] == 3


def qasc_folder(tmp_path):
    return {
        "related": write(
            tmp_path, "related.json", [("Fact: Ice floats. \nTopic: water.", ["Ships float."])]
        ),
        "combined": write(
            tmp_path,
            "combined.json",
            [
                ("Fact 1: Fire is hot. \nFact 2: Heat melts ice.", ["Fire melts ice."]),
                ("Fact 1: Fire is hot. \nFact 2: Heat melts ice.", ["Ice melts."]),
                ("Fact 1: The sun is hot.\nFact 2: heat melts ICE", ["Ice melts."]),
            ],
        ),
        "asked": write(
            tmp_path,
            "asked.json",
            [("Fact: Fire melts ice.", ["What melts ice?"]), ("Fact: Cows moo.", ["What moos?"])],
        ),
        "answered": write(
            tmp_path,
            "answered.json",
            [
                ("Fact: Fire melts ice. \nQuestion: What melts ice?", ["fire."]),
                ("Fact: Ice melts. \nQuestion: What does ice do?", ["melt."]),
            ],
        ),
    }  # fmt: skip


def test_qasc_follows_a_question_back_to_its_facts(tmp_path):
    converted = bigbench.qasc(tmp_path, "qasc", **qasc_folder(tmp_path))
    assert pairs(converted) == {
        "What melts ice?": ["Fire is hot.", "Heat melts ice."],
        "What does ice do?": ["Fire is hot.", "Heat melts ice.", "The sun is hot."],
    }
    # facts without a question are passages all the same
    assert {"Ice floats.", "Ships float."} < set(converted.corpus["text"].to_pylist())
    read, traced = converted.cleaning[:2]
    assert (read["kept"], traced["kept"], traced["dropped"]) == (3, 2, 1)
    assert all(step["dropped"] >= 0 for step in converted.cleaning)


def test_an_example_of_another_form_is_named(tmp_path):
    files = qasc_folder(tmp_path)
    write(tmp_path, "combined.json", [("Fact 1: a\nFact 2: b", ["c"]), ("Fact: a", ["c"])])
    with pytest.raises(NvretError, match=r"combined.json: example 1 is 'Fact: a'…; expected"):
        bigbench.qasc(tmp_path, "qasc", **files)
    assert bigbench.instructions(tmp_path / "asked.json", bigbench._ASKED)[1] == (
        ("Cows moo.",),
        ["What moos?"],
    )


def test_the_packaged_sets():
    facts = data.load("qasc")
    assert len(facts.queries) > 6_000
    assert min(len(rows) for rows in facts.positives) == 2
    passages = data.load("quoref")
    assert len(passages.queries) > 21_000
    assert min(len(rows) for rows in passages.positives) == 1
    assert sum(len(text.split()) for text in passages.passages) > 300 * len(passages.passages)
