"""What stands before queries and passages: given, named, of the folder, or warned about."""

import json
import logging
import shutil

import numpy as np
import pytest

from helpers.models import write_static
from nvret import cli, data, negatives, teachers
from nvret.encode import Encoder
from nvret.models import prompts
from nvret.utils.errors import NvretError

PASSAGES = ["Paris is the capital of France", "bananas grow in bunches", "Berlin is old"]


@pytest.fixture
def e5(tmp_path):
    """A folder that is named as an E5 model is, and says no prompt."""
    write_static(tmp_path / "e5-small-v2")
    return tmp_path / "e5-small-v2"


def named(folder, **texts):
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": texts}), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "family", "query"),
    [
        ("e5-base", "E5", "query: "),
        ("multilingual-e5-large-instruct", "E5 with instructions", "Instruct: "),
        ("models--intfloat--e5-mistral-7b-instruct", "E5 with instructions", "Instruct: "),
        ("bge-small-en-v1.5", "BGE", "Represent this sentence"),
        ("snowflake-arctic-embed-m-v2.0", "Arctic-Embed 2", "query: "),
        ("snowflake-arctic-embed-m", "Arctic-Embed", "Represent this sentence"),
        ("Qwen3-Embedding-0.6B", "Qwen3-Embedding", "Instruct: "),
        ("gte-Qwen2-1.5B-instruct", "GTE with instructions", "Instruct: "),
        ("nomic-embed-text-v1.5", "Nomic", "search_query: "),
        ("bge-m3", None, None),
        ("gte-base", None, None),
        ("all-minilm-l6-v2", None, None),
        ("the5-small", None, None),
    ],
)
def test_a_family_is_known_by_its_name(tmp_path, name, family, query):
    for folder in (tmp_path / name, tmp_path / "plain"):
        folder.mkdir()
    config = {"_name_or_path": f"owner/{name}"}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    for folder in (tmp_path / name, tmp_path / "plain"):
        found = prompts.family(folder)
        assert (found and found[0]) == family
        assert query is None or found[1].startswith(query)


def test_a_family_without_its_prompts_is_warned_about(e5, caplog):
    Encoder.load(e5)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "E5 models are trained with 'query: ' before a query and 'passage: '" in message
    assert "--query-prompt 'query: ' --passage-prompt 'passage: '" in message
    caplog.clear()
    Encoder.load(e5, prompts={"query": ""})  # as it is, on purpose
    named(e5, query="query: ")
    Encoder.load(e5)
    assert not caplog.records


def test_a_prompt_is_a_text_or_a_name(e5):
    named(e5, query="query: ", document="passage: ", fact="a fact: ")
    own = {"query": "query: ", "passage": "passage: "}
    for asked, expected in (
        (None, own),
        ({}, own),
        ({"query": None}, own),
        ({"query": "find: "}, own | {"query": "find: "}),
        ({"passage": "fact"}, own | {"passage": "a fact: "}),
        ({"query": "", "passage": ""}, {"query": "", "passage": ""}),
    ):
        assert Encoder.load(e5, prompts=asked).layout.prompts == expected
    with pytest.raises(NvretError, match=r"no prompt is named 'fcat', did you mean 'fact'\?"):
        Encoder.load(e5, prompts={"query": "fcat"})
    with pytest.raises(NvretError, match="prompts for \\['querry'\\]"):
        Encoder.load(e5, prompts={"querry": "x: "})


def test_a_teacher_reads_with_its_prompts(e5):
    dataset = data.from_texts("toy", PASSAGES, ["capital of France"], [[0]])
    spelled = data.from_texts(
        "spelled", [f"grow: {text}" for text in PASSAGES], ["bananas: capital of France"], [[0]]
    )
    plain = teachers.DenseTeacher(str(e5), prompts={"query": ""})
    given = teachers.DenseTeacher(str(e5), prompts={"query": "bananas: ", "passage": "grow: "})
    found, expected = (
        teacher.prepare(some, progress=False)
        for teacher, some in ((given, dataset), (plain, spelled))
    )
    np.testing.assert_array_equal(found.queries, expected.queries)
    np.testing.assert_array_equal(found.corpus, expected.corpus)
    assert found.fingerprint != plain.prepare(dataset, progress=False).fingerprint


def own_files(folder):
    rows = [{"query": f"{text[:6]}?", "positive": text} for text in PASSAGES]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--pairs", str(folder / "pairs.jsonl")]


def test_commands_take_prompts(e5, tmp_path, capsys):
    own, table = own_files(tmp_path), tmp_path / "mined.parquet"
    mine = ["mine", *own, "--teacher", str(e5), "--method", "naive", "--num-negatives", "1"]
    asked = ["--query-prompt", r"bananas\n", "--passage-prompt", "grow: "]
    assert cli.main([*mine, "--output", str(table), *asked]) == 0
    facts = negatives.provenance(negatives.load(table))
    assert facts["prompts"] == {"query": "bananas\n", "passage": "grow: "}
    report = ["inspect", str(table), *own, "--output", str(tmp_path / "report.html")]
    assert cli.main([*report, "--teacher", str(e5)]) == 0  # read as it was when it mined
    model = tmp_path / "model"
    train = ["train", *own, "--negatives", str(table), "--student", str(e5), "--output", str(model)]
    assert cli.main([*train, *asked]) == 0
    assert Encoder.load(model).layout.prompts == facts["prompts"]
    shutil.rmtree(model)
    evaluate = ["evaluate", *own, "--model", str(e5), "--k", "1"]
    capsys.readouterr()
    tables = []
    for some in ([], asked):
        assert cli.main([*evaluate, *some]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] != tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "bm25", "--query-prompt", "x: "], "--query-prompt is of an embedding model"),
        (["--teacher", "E5", "--passage-prompt", "fact"], "no prompt is named 'fact'"),
    ],
)
def test_a_prompt_for_nothing_is_refused(e5, tmp_path, capsys, arguments, message):
    arguments = [str(e5) if one == "E5" else one for one in arguments]
    output = tmp_path / "n.parquet"
    options = ["--method", "naive", "--num-negatives", "1", "--output", str(output)]
    assert cli.main(["mine", *own_files(tmp_path), *arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
