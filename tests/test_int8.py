"""Passages in int8: near float32's vectors, under a key of their own, and nothing is reported."""

import json
import logging
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.training import STATIC
from nvret import assets, cli, data, negatives, teachers
from nvret.encode import Encoder, embed
from nvret.scale import int8
from nvret.study import mixtures
from nvret.utils.errors import NvretError

pytest.importorskip("openvino")
LENGTH = {"max_length": 64, "progress": False}


@pytest.fixture(scope="module")
def questions():
    return mixtures.sample(data.load("squadshifts-nyt"), 40)


@pytest.fixture(scope="module")
def folder():
    return assets.model_path("paraphrase-minilm-l3")


def test_passages_are_near_and_queries_are_those_of_float32(folder, questions, caplog, capsys):
    texts = questions.passages[:150]
    texts = [*texts, texts[3], texts[0]]  # equal texts have one vector
    exact, rounded = Encoder.load(folder), int8.load(folder)
    with caplog.at_level(logging.WARNING):  # the libraries set levels for the whole process
        found = rounded.encode(texts, **LENGTH)
        logging.getLogger("nvret").warning("still heard")
    assert "still heard" in caplog.text
    assert capsys.readouterr().out == ""
    assert found.dtype == np.float32
    cosines = (found * exact.encode(texts, **LENGTH)).sum(1)
    assert 0.97 < cosines.min() < 0.99999
    assert np.array_equal(found[-2:], found[[3, 0]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert np.array_equal(int8.load(folder).encode(texts, **LENGTH), found)
    asked = questions.query_texts
    assert np.array_equal(
        rounded.encode(asked, "query", **LENGTH), exact.encode(asked, "query", **LENGTH)
    )


def test_vectors_are_kept_apart_from_those_of_float32(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    texts = [f"the {number}th passage of a few" for number in range(12)]
    first = embed(int8.load(folder), texts, progress=False)
    second = embed(Encoder.load(folder), texts, progress=False)
    assert not np.array_equal(first, second)
    assert len(list((tmp_path / "embeddings").iterdir())) == 2


def test_a_teacher_mines_in_it_and_says_how_far_it_is(folder, questions, tmp_path, capsys):
    lines = [
        json.dumps({"query": query, "positive": questions.passages[rows[0]]})
        for query, rows in zip(questions.query_texts, questions.positives, strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    command = ["mine", "--pairs", tmp_path / "pairs.jsonl", "--teacher", "paraphrase-minilm-l3"]
    command += ["--dtype", "int8", "--method", "naive", "--output", tmp_path / "out.parquet"]
    assert cli.main([*map(str, command)]) == 0
    found = negatives.provenance(pq.read_table(tmp_path / "out.parquet"))["precision"]
    assert found["dtype"] == "int8"
    assert 0 < found["mean_difference"] < found["largest_difference"] < 0.1
    assert "in int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda: int8.load(STATIC), "not for a static model"),
        (lambda: int8.load(STATIC, dtype="int4"), "dtype"),
    ],
)
def test_what_has_no_int8_is_named(prepare, message):
    with pytest.raises(NvretError, match=message):
        prepare()


def test_it_is_for_one_process(folder, monkeypatch):
    monkeypatch.setattr(int8.processes, "world", lambda: (0, 2))
    with pytest.raises(NvretError, match="one process"):
        int8.load(folder)


def test_a_missing_extra_is_named(folder, questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    teacher = teachers.DenseTeacher("paraphrase-minilm-l3", dtype="int8")
    with pytest.raises(NvretError, match=r"pip install 'nvret\[int8\]'"):
        teachers.prepare(teacher, questions, progress=False)


def test_no_use_of_it_is_reported():
    """In a fresh process: the module that would send is not there, and no socket is opened."""
    script = (
        "import socket, sys\n"
        "def refuse(*arguments, **_): raise AssertionError(arguments)\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from nvret.scale import int8\n"
        "int8._import()\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "assert type(telemetry).__name__ != 'NNCFTelemetry'\n"
        "import logging\n"
        "assert logging.getLoggerClass() is logging.Logger\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
