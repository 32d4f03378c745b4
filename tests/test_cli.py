"""The command line on files of a user's own."""

import json
import os
import subprocess
import sys
import typing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from helpers import examples
from helpers.files import write_beir, write_rows
from nvret import assets, cli, data, ensembles, methods, mining, negatives, teachers
from nvret.analysis import judges
from nvret.cli import mine as command_line
from nvret.io import export, inputs
from nvret.sampling import SampledTopK, Top1PlusSampled, TopK
from nvret.utils import store


@pytest.fixture
def files(tmp_path):
    passages = [
        "Paris is the capital of France",
        "Lyon is a large city of France",
        "Berlin is the capital of Germany",
        "Bananas grow in bunches in warm countries",
    ]
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(passages)]
    queries = [{"_id": "q0", "text": "what is the capital of France"}]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    return tmp_path


def command(folder, *more, teacher="bm25"):
    """nvret mine on ``files``; writes negatives.parquet unless ``more`` says otherwise."""
    given = ["--corpus", folder / "corpus.jsonl", "--queries", folder / "queries.jsonl"]
    given += ["--qrels", folder / "qrels.tsv", "--teacher", teacher]
    if "--output" not in more:
        given += ["--output", folder / "negatives.parquet"]
    return cli.main(["mine", *map(str, given), *more])


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP says how it was set")
@pytest.mark.parametrize(
    ("own", "spins"), [({}, "3000"), ({cli.SPIN: "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")]
)
def test_threads_that_wait_for_each_other_sleep_soon(own, spins):
    """Where nobody has said what they should do."""
    inherited = {k: v for k, v in os.environ.items() if k not in (cli.SPIN, "OMP_WAIT_POLICY")}
    script = "from nvret import cli; cli.main(['cache', '--help']); import torch"
    done = subprocess.run(
        [sys.executable, "-c", script], env=inherited | own | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if cli.SPIN in line]
    assert said
    assert (f"'{spins}'" in said[0]) == bool(spins)
    assert ("'3000'" in said[0]) == (spins == "3000")


@pytest.mark.parametrize("teacher", ["bm25", "potion-base-8m"])
def test_mine(files, capsys, teacher):
    more = ("--method", "perc-pos", "--perc", "0.95", "--num-negatives", "2")
    assert command(files, *more, teacher=teacher) == 0
    table = negatives.load(files / "negatives.parquet")
    assert "d0" not in table["negative_id"].to_pylist()
    assert table["negative_id"][0].as_py() in {"d1", "d2"}
    assert (table["score"].to_numpy() < 0.95 * table["positive_score"].to_numpy() + 1e-6).all()
    assert "2 negatives for 1 pairs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "qrels.tsv").unlink(), "qrels.tsv"),
        (lambda f: (f / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td0\t1\n"), "q9"),
        (lambda f: (f / "queries.jsonl").write_text("{oops"), "queries.jsonl"),
        (
            lambda f: (f / "corpus.jsonl").write_text(
                '{"_id": "d0", "text": "a"}\n{"_id": "d0", "text": "b"}\n'
            ),
            "d0",
        ),
        (
            lambda f: (f / "corpus.jsonl").write_text(
                '{"_id": "d0", "text": "a"}\n{"_id": "d1", "text": " "}\n'
            ),
            "d1",
        ),
    ],
)
def test_bad_files_end_in_one_message(files, capsys, break_it, message):
    break_it(files)
    assert command(files, "--method", "naive") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) < 10
    assert not (files / "negatives.parquet").exists()


def test_a_method_does_not_take_anothers_parameter(files, capsys):
    assert command(files, "--method", "naive", "--perc", "0.9") == 2
    assert "perc" in capsys.readouterr().err


# own data in its other forms


@pytest.fixture
def real(tmp_path):
    """Some questions of a real set as three files; the set."""
    whole = data.load("squadshifts-nyt", progress=False)
    dataset = whole.select(whole.queries["id"].to_pylist()[:30])
    pq.write_table(dataset.corpus, tmp_path / "corpus.parquet")
    pq.write_table(dataset.queries, tmp_path / "queries.parquet")
    pq.write_table(dataset.qrels, tmp_path / "qrels.parquet")
    return tmp_path, dataset


def mine(folder, *more, output="negatives.parquet"):
    """nvret mine on the files of ``real``."""
    files = [
        ("--" + name, str(folder / f"{name}.parquet")) for name in ("corpus", "queries", "qrels")
    ]
    given = [part for pair in files for part in pair]
    return cli.main(["mine", *given, "--output", str(folder / output), *more])


PERC = ("--method", "perc-pos", "--perc", "0.9")


def test_a_folder_is_mined_as_its_files(files, capsys):
    assert command(files, "--method", "naive", "--num-negatives", "2") == 0
    (files / "qrels").mkdir()
    (files / "qrels.tsv").rename(files / "qrels" / "train.tsv")
    more = ("--teacher", "bm25", "--method", "naive", "--num-negatives", "2")
    output = ("--output", str(files / "again.parquet"))
    assert cli.main(["mine", "--data", str(files), "--split", "train", *more, *output]) == 0
    found = [negatives.load(files / name) for name in ("negatives.parquet", "again.parquet")]
    assert found[0].equals(found[1])


def test_pairs_are_mined(files, capsys):
    rows = "anchor,positive\nwhat is the capital of France,Paris is the capital of France\n"
    (files / "pairs.csv").write_text(rows)
    given = ("--pairs", str(files / "pairs.csv"), "--corpus", str(files / "corpus.jsonl"))
    more = ("--teacher", "bm25", "--method", "naive", "--num-negatives", "2")
    output = ("--format", "n-tuple", "--output", str(files / "tuples.parquet"))
    assert cli.main(["mine", *given, *more, *output]) == 0
    (row,) = pq.read_table(files / "tuples.parquet").to_pylist()
    assert row["anchor"] == "what is the capital of France"
    assert row["positive"] == "Paris is the capital of France"
    assert row["negative_1"] == "Berlin is the capital of Germany"
    assert "1 records, 0 pairs in none of them" in capsys.readouterr().out


def test_the_options_of_mining(real, capsys):
    folder, dataset = real
    options = ("--teacher", "potion-base-8m", *PERC, "--sampling", "top-1+sampled", "--k", "7")
    options += ("--ceiling-positive", "lowest", "--near-duplicates", "none", "--seed", "3")
    options += ("--skip", "1", "--min-score", "0.2", "--distinct", "0.7")
    options += (
        "--dtype",
        "bfloat16",
        "--max-query-length",
        "20",
        "--max-passage-length",
        "40",
        "--num-negatives",
        "3",
    )
    assert mine(folder, *options) == 0
    wanted = mining.mine(
        dataset,
        teachers.DenseTeacher("potion-base-8m", 20, 40, dtype="bfloat16"),
        mining.TopKPercPos(0.9),
        3,
        mining.Top1PlusSampled(7),
        3,
        ceiling_positive="lowest",
        near_duplicates=None,
        skip=1,
        min_score=0.2,
        distinct=0.7,
        progress=False,
    )
    found = negatives.load(folder / "negatives.parquet")
    assert found.equals(wanted)
    facts, other = negatives.provenance(found), negatives.provenance(wanted)
    precision = facts.pop("precision")
    assert precision["dtype"] == "bfloat16"
    assert 0 < precision["largest_difference"] < 0.02
    assert "from float32's" in capsys.readouterr().out
    own = {"dataset": "", "dataset_fingerprint": ""}  # a name, and the clusters of the original
    assert facts | own == other | own


def test_a_gpu_reads_in_bfloat16_if_nothing_is_said(monkeypatch):
    monkeypatch.setattr("nvret.utils.machine.check_device", lambda device: device)
    options = command_line.TeacherOptions(teacher=["minilm-l6"], device="cuda")
    assert options.build("minilm-l6").dtype == "bfloat16"
    assert replace(options, device="cpu").build("minilm-l6").dtype == "float32"
    assert replace(options, dtype="float16").build("minilm-l6").dtype == "float16"


def test_vectors_are_a_teacher(real, capsys):
    folder, dataset = real
    made = teachers.prepare("potion-base-8m", dataset, progress=False)
    np.save(folder / "q.npy", made.queries)
    np.save(folder / "c.npy", made.corpus)
    given = ("--query-vectors", str(folder / "q.npy"), "--corpus-vectors", str(folder / "c.npy"))
    assert mine(folder, "--teacher", "vectors", *given, *PERC) == 0
    wanted = mining.mine(dataset, made, mining.TopKPercPos(0.9), progress=False)
    found = negatives.load(folder / "negatives.parquet")
    assert found["negative_id"].equals(wanted["negative_id"])
    np.save(folder / "c.npy", made.corpus[1:])
    assert mine(folder, "--teacher", "vectors", *given, *PERC, "--overwrite") == 2
    assert "c.npy has" in capsys.readouterr().err


def test_vectors_of_queries_that_nothing_judges(real):
    """They keep their rows, so that those of the others are the right ones."""
    folder, dataset = real
    made = teachers.prepare("potion-base-8m", dataset, progress=False)
    np.save(folder / "q.npy", made.queries)
    np.save(folder / "c.npy", made.corpus)
    last = dataset.queries["id"].to_pylist()[-1]
    pq.write_table(dataset.select([last]).qrels, folder / "qrels.parquet")
    given = ("--query-vectors", str(folder / "q.npy"), "--corpus-vectors", str(folder / "c.npy"))
    assert mine(folder, "--teacher", "vectors", *given, *PERC) == 0
    wanted = mining.mine(dataset.select([last]), "potion-base-8m", mining.TopKPercPos(0.9))
    found = negatives.load(folder / "negatives.parquet")
    assert found.num_rows
    assert found["negative_id"].equals(wanted["negative_id"])


@pytest.mark.parametrize("ensemble", ["cross-sample", "intra-sample", "intra-sample-no-dedup"])
def test_teachers_together(real, ensemble):
    folder, dataset = real
    names = ("bm25", "potion-base-8m")
    given = [part for name in names for part in ("--teacher", name)]
    assert mine(folder, *given, "--ensemble", ensemble, *PERC) == 0
    method = mining.TopKPercPos(0.9)
    tables = [mining.mine(dataset, name, method, progress=False) for name in names]
    if ensemble == "cross-sample":
        wanted = ensembles.cross_sample(dataset, tables, 4)
    else:
        dedup = ensemble == "intra-sample"
        wanted = ensembles.intra_sample(dataset, tables, 4, dedup=dedup)
    found = negatives.load(folder / "negatives.parquet")
    assert found.equals(wanted)
    facts = negatives.provenance(found)
    assert facts["ensemble"] == ensemble
    assert [teacher["teacher"] for teacher in facts["teachers"]] == list(names)
    sizes = found.group_by(["query_id", "positive_id"]).aggregate([([], "count_all")])
    assert facts["negatives_missing"] == 4 * facts["pairs"] - found.num_rows
    assert facts["pairs_empty"] == facts["pairs"] - sizes.num_rows


def test_a_second_opinion_drops_and_the_next_take_the_places(real, capsys):
    folder, dataset = real
    given = ("--teacher", "bm25", "--method", "naive", "--num-negatives", "2")
    labels = folder / "more.tsv"
    more = ("--second-opinion", "potion-base-8m", "--second-threshold", "0.85")
    assert mine(folder, *given, *more, "--relabel", str(labels)) == 0
    found = negatives.load(folder / "negatives.parquet")
    asked = dict(zip(dataset.queries["id"].to_pylist(), dataset.query_texts, strict=True))
    read = dict(zip(dataset.corpus["id"].to_pylist(), dataset.passages, strict=True))

    def relevant(pairs):
        """Which negatives a judge of its own calls relevant."""
        texts = [
            [known[ident] for ident in pairs[column].to_pylist()]
            for column, known in (("query_id", asked), ("negative_id", read), ("positive_id", read))
        ]
        judge = judges.BiEncoderJudge("potion-base-8m")
        return judge.scores(*texts, progress=False).values >= 0.85

    assert not relevant(found).any()
    judged = inputs.qrels(labels)[0]
    assert judged.slice(0, dataset.qrels.num_rows).equals(dataset.qrels.cast(judged.schema))
    new = judged.slice(dataset.qrels.num_rows)
    assert new.num_rows > 0
    # What is left is what mining gives where these are no candidates
    rows = {
        name: {ident: row for row, ident in enumerate(table["id"].to_pylist())}
        for name, table in (("query", dataset.queries), ("passage", dataset.corpus))
    }
    banned = mining.exclusions(dataset)
    for one in new.to_pylist():
        row = rows["query"][one["query_id"]]
        banned[row] = np.union1d(banned[row], [rows["passage"][one["corpus_id"]]])
    options = {"exclude": banned, "distinct": 0.8, "progress": False}
    expected = mining.mine(dataset, "bm25", mining.NaiveTopK(), 2, **options)
    assert found.equals(expected)
    facts = negatives.provenance(found)
    assert facts["second_opinion"]["dropped"] == new.num_rows
    assert facts["negatives_missing"] == 2 * facts["pairs"] - found.num_rows
    assert f"calls {new.num_rows} of them relevant" in capsys.readouterr().out


def test_a_card_is_written_and_pushed(files, capsys, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return f"https://hub/datasets/{name}"

        def upload_file(self, path_or_fileobj, path_in_repo, **options):
            calls.append((path_in_repo, path_or_fileobj))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    card = files / "card.md"
    more = ("--method", "perc-pos", "--num-negatives", "1", "--card", str(card))
    assert command(files, *more, "--push-to-hub", "me/mined") == 0
    text = card.read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"license": "other", "tags": ["hard-negatives", "nvret"]}
    assert "| rule | `perc-pos` perc 0.95 |" in text
    assert "| teacher | `bm25` |" in text
    assert calls[0] == (
        "me/mined", {"repo_type": "dataset", "private": True, "exist_ok": True}
    )  # fmt: skip
    uploaded = dict(calls[1:])
    assert uploaded["README.md"].decode() == text
    assert uploaded["data/train.parquet"] == files / "negatives.parquet"
    assert json.loads(uploaded["provenance.json"])["method"]["name"] == "perc-pos"
    assert "https://hub/datasets/me/mined" in capsys.readouterr().out


def test_a_hub_that_refuses_leaves_the_file(files, capsys, monkeypatch):
    class Hub:
        def create_repo(self, name, **options):
            raise OSError("401 Unauthorized\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    more = ("--method", "naive", "--num-negatives", "1", "--push-to-hub", "me/mined")
    assert command(files, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--push-to-hub me/mined: 401 Unauthorized;" in line
    assert (files / "negatives.parquet").exists()
    assert command(files, *more[:-1], "mined", "--overwrite") == 2
    assert "expected owner/name" in capsys.readouterr().err


def test_pairs_of_the_hub(tmp_path, capsys, monkeypatch):
    """A data set with columns of its own, in shards."""
    name = f"owner/questions@{'a' * 40}"
    texts = [f"passage number {n} about topic {n * 7}" for n in range(6)]
    (tmp_path / "data").mkdir()
    for place in range(2):
        rows = [
            {"ask": f"topic {n * 7}?", "reply": texts[n]} for n in (place, place + 2, place + 4)
        ]
        shard = tmp_path / "data" / f"train-{place:05}-of-00002.parquet"
        pd.DataFrame(rows).to_parquet(shard)
    pd.DataFrame([{"ask": "x", "reply": "y"}]).to_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options["revision"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    options = ["--teacher", "bm25", "--method", "naive", "--num-negatives", "2"]
    mine = ["mine", "--data", name, *options, "--output", str(tmp_path / "n.parquet")]
    columns = ["--query-column", "ask", "--positive-column", "reply"]
    assert cli.main([*mine, *columns]) == 2
    assert "split is None, expected one of its files: test, train" in capsys.readouterr().err
    assert cli.main([*mine, *columns, "--split", "train"]) == 0
    facts = negatives.provenance(negatives.load(tmp_path / "n.parquet"))
    assert facts["pairs"] == 6
    assert asked[0] == ("owner/questions", "a" * 40)


@pytest.mark.parametrize("name", ["triplet", "labeled-list", "flagembedding", "tevatron"])
def test_other_formats(files, name):
    suffix = "jsonl" if name in ("flagembedding", "tevatron") else "parquet"
    output = files / f"export.{suffix}"
    more = ("--method", "naive", "--num-negatives", "2", "--format", name)
    assert command(files, *more, "--output", str(output)) == 0
    if suffix == "parquet":
        rows = pq.read_table(output).to_pylist()
    else:
        rows = list(map(json.loads, output.read_text().splitlines()))
    assert len(rows) == (2 if name == "triplet" else 1)


BAD = {
    "teacher": (
        ("--teacher", "no-such"),
        "no model is named 'no-such', expected a folder, owner/name@rev",
    ),
    "two teachers": (("--teacher", "potion-base-8m"), "2 teachers need --ensemble cross-sample|"),
    "ensemble of one": (("--ensemble", "intra-sample"), "--ensemble needs --teacher several times"),
    "vectors": (("--query-vectors", "q.npy"), "--query-vectors and --teacher vectors need each"),
    "normalise": (("--no-normalise",), "--no-normalise is of --teacher vectors"),
    "k": (("--k", "9"), "--k is of --sampling"),
    "small k": (("--sampling", "sampled", "--k", "1"), "cannot give 2 negatives: k is smaller"),
    "negatives": (("--num-negatives", "4"), "--num-negatives is 4, the corpus has only 4 passages"),
    "no negatives": (
        ("--num-negatives", "0"),
        '"0" for --num-negatives. Must be >= 1',
    ),
    "threshold": (("--second-threshold", "0.5"), "--second-threshold is of --second-opinion"),
    "judge": (("--second-opinion", "no-such"), "no model is named 'no-such'"),
    "two inputs": (("--data", "nq"), "given: only --corpus, --data, --qrels, --queries"),
    "split": (("--split", "train"), "--split is of --data, which is not given"),
    "column": (("--text-column", "body"), "no column 'body'; it has _id, title, text"),
    "suffix": (("--format", "tevatron"), "format tevatron is written as .jsonl, not as .parquet"),
    "index": (("--index", "Flat"), "--index is for embedding models"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_end_in_one_line(files, capsys, case):
    more, message = BAD[case]
    options = ("--method", "naive")
    if "--num-negatives" not in more:
        options += ("--num-negatives", "2")
    teacher = more[1] if case == "teacher" else "bm25"
    assert command(files, *options, *(() if case == "teacher" else more), teacher=teacher) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("nvret: ")
    assert message in error
    if case == "teacher":
        assert all(name in error for name in assets.models())
    assert not list(files.glob("*negatives*"))


def test_a_query_without_a_positive_is_named(files, capsys):
    (files / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t0\n")
    assert command(files, "--method", "naive", "--num-negatives", "2") == 2
    assert "qrels.tsv: query 'q0' has no positive" in capsys.readouterr().err


def test_an_output_that_is_there_is_not_replaced(files, capsys):
    (files / "negatives.parquet").write_text("mine")
    options = ("--method", "naive", "--num-negatives", "2")
    assert command(files, *options) == 2
    assert "negatives.parquet is there already; --overwrite" in capsys.readouterr().err
    assert (files / "negatives.parquet").read_text() == "mine"
    assert command(files, *options, "--overwrite") == 0
    assert negatives.load(files / "negatives.parquet").num_rows == 2


def test_an_output_that_cannot_be_written_is_refused_before_the_data_are_read(files, capsys):
    (files / "corpus.jsonl").unlink()
    for output, message in (
        (files / "qrels.tsv" / "x.parquet", "cannot write to"),
        (files, "is a folder"),
    ):
        assert command(files, "--method", "naive", "--output", str(output)) == 2
        assert message in capsys.readouterr().err


def test_the_output_folder_is_made(files):
    output = files / "new" / "deep" / "negatives.parquet"
    options = ("--method", "naive", "--num-negatives", "2", "--output", str(output))
    assert command(files, *options) == 0
    assert negatives.load(output).num_rows == 2


@pytest.mark.parametrize("option", [("--teacher", "bm25"), ("--format", "triplet"), ("--k", "3")])
def test_a_profile_takes_no_option_of_own_data(capsys, option):
    assert cli.main(["mine", "params/quick.yaml", *option]) == 2
    assert f"nvret: {option[0]} is not for a profile" in capsys.readouterr().err


def test_the_choices_are_those_of_the_library():
    assert typing.get_args(command_line.Format) == ("parquet", *export.FORMATS)
    samplings = tuple(kind.name for kind in (TopK, SampledTopK, Top1PlusSampled))
    assert typing.get_args(command_line.Sampling) == samplings


def test_folders_that_hold_no_model(files, capsys):
    (files / "empty").mkdir()
    options = ("--method", "naive", "--num-negatives", "2")
    assert command(files, *options, teacher=str(files / "empty")) == 2
    assert "empty" in capsys.readouterr().err
    assert command(files, *options, "--second-opinion", str(files / "empty")) == 2
    assert "empty" in capsys.readouterr().err


# malformed files

TEXTS = [{"_id": f"d{row}", "title": "", "text": f"passage {row}, “so”"} for row in range(6)]
ASKED = [{"_id": "q0", "text": "passage 1?"}, {"_id": "q1", "text": "so"}]
JUDGED = [{"query-id": f"q{row}", "corpus-id": f"d{row}", "score": 1} for row in range(2)]
PAIRED = [{"query": row["text"], "positive": row["text"]} for row in TEXTS]
INPUTS = {"corpus": TEXTS, "queries": ASKED, "qrels": JUDGED, "pairs": PAIRED}
SUFFIXES = (".jsonl", ".parquet", ".csv", ".tsv")


TOKENS = st.sampled_from(
    [b"", b"\n", b'"', b",", b"\t", b"\0", b"\xff", b"null", b"1e999", b"-1", b"[]", b"{}", b"{",
     b"\\ud800", b"\xef\xbb\xbf", b"\r", b"true", b"score", b" ", b"9" * 5000, b"[" * 3000]
)  # fmt: skip


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    broken=st.sampled_from(sorted(INPUTS)),
    suffix=st.sampled_from(SUFFIXES),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 40), TOKENS | st.binary(max_size=8)),
        min_size=1,
        max_size=3,
    ),
    whole=st.none() | st.binary(max_size=40),
)
def test_malformed_files_never_end_in_a_traceback(tmp_path, broken, suffix, edits, whole, capsys):
    content = write_rows(tmp_path / f"{broken}{suffix}", INPUTS[broken]).read_bytes()
    for place, cut, token in edits:
        at = int(place * len(content))
        content = content[:at] + token + content[at + cut :]
    given = []
    for name in ("pairs",) if broken == "pairs" else ("corpus", "queries", "qrels"):
        path = tmp_path / f"{name}{suffix if name == broken else '.jsonl'}"
        if name == broken:
            path.write_bytes(content if whole is None else whole)
        else:
            write_rows(path, INPUTS[name])
        given += [f"--{name}", str(path)]
    output = tmp_path / "negatives.parquet"
    output.unlink(missing_ok=True)
    options = ("--teacher", "bm25", "--method", "naive", "--num-negatives", "1")
    status = cli.main(["mine", *given, *options, "--output", str(output)])
    assert status in (0, 2)
    assert output.exists() == (status == 0)
    assert not list(Path(tmp_path).glob(".*partial"))
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nvret:")]
    assert len(error) == (status == 2)


@pytest.fixture
def sample(files):
    """A folder in BEIR's layout, with enough texts to time a model on."""
    (files / "qrels").mkdir()
    (files / "qrels.tsv").rename(files / "qrels" / "test.tsv")
    lines = [{"_id": f"d{i}", "text": f"Passage {i} of the river " * 9} for i in range(40)]
    (files / "corpus.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return files


def cost(folder, *more, passages="8841823", teacher="potion-base-8m"):
    given = ("--passages", passages, "--queries", "502939", "--data", str(folder), "--rough")
    return cli.main(["cost", "--teacher", teacher, *given, *more])


def test_cost(sample, capsys):
    more = ("--num-candidates", "8", "--passage-tokens", "80", "--devices", "2")
    assert cost(sample, *more) == 0
    printed = capsys.readouterr().out
    for words in ("8,841,823 passages of 80 tokens", "encode passages", "search", "total"):
        assert words in printed
    assert "Held out" in printed
    assert "2 devices share the work without any loss" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"passages": "0"}, "passages is 0, expected a number above 0"),
        ({"teacher": "bm25"}, "bm25 makes no vectors"),
        ({"teacher": "no-such-model"}, "no-such-model"),
    ],
)
def test_cost_of_nonsense_ends_in_one_message(sample, capsys, more, message):
    assert cost(sample, **more) == 2
    assert message in capsys.readouterr().err


def test_cost_on_a_device_that_is_not_there(sample, capsys):
    assert cost(sample, "--device", "cuda:99") == 2
    assert "cuda:99" in capsys.readouterr().err


def own(folder):
    """Options for a real set in BEIR's layout."""
    named = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels/test.tsv"}
    return [part for key, name in named.items() for part in (f"--{key}", str(folder / name))]


def test_mine_train_and_evaluate_own_data(tmp_path, capsys):
    from nvret import data
    from nvret.study import mixtures

    dataset = mixtures.sample_passages(mixtures.sample(data.load("squadshifts-nyt"), 80), 300)
    write_beir(tmp_path / "own", dataset)
    files, mined, model = own(tmp_path / "own"), tmp_path / "n.parquet", tmp_path / "model"
    mine = ["--teacher", "bm25", "--method", "perc-pos", "--perc", "0.9", "--output", str(mined)]
    assert cli.main(["mine", *files, *mine]) == 0
    train = ["--negatives", str(mined), "--student", "potion-base-8m", "--output", str(model)]
    rate = ["--learning-rate", "0.01", "--batch-size", "8", "--in-batch-negatives"]
    assert cli.main(["train", *files, *train, *rate]) == 0
    assert "trained on 80 pairs" in capsys.readouterr().out
    said = json.loads((model / "training.json").read_text())["config"]
    assert (said["learning_rate"], said["in_batch_negatives"], said["epochs"]) == (0.01, True, 1)
    table = tmp_path / "table.csv"
    models = ["--model", str(model), "--before", "potion-base-8m", "--output", str(table)]
    assert cli.main(["evaluate", *files, *models]) == 0
    rows = pd.read_csv(table).set_index("metric")
    row = rows.loc["ndcg_at_10"]
    assert row["difference"] == pytest.approx(row["after"] - row["before"])
    assert row["low"] < row["difference"] < row["high"]
    assert row["after"] > row["before"]  # on the very queries that it was trained on
    assert cli.main(["evaluate", *files, "--model", "bm25"]) == 0
    assert "ndcg_at_10" in capsys.readouterr().out
    assert cli.main(["evaluate", *files, *models]) == 2  # the table is there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "train needs a profile, or your data and --negatives"),
        (["train", "params/smoke.yaml", "--student", "x"], "--student is not for a profile"),
        (["mine", "params/smoke.yaml", "--teacher", "x"], "--teacher is not for a profile"),
        (["train", "params/smoke.yaml", "--epochs", "2"], "--epochs is not for a profile"),
        (["encode", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_profile_and_own_data_are_two_things(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


WRONG = {
    "an unknown option": (["mine", "--pair", "x"], "Unknown option: --pair. Did you mean --pairs?"),
    "an unknown command": (["min"], 'Unknown command "min". Did you mean "mine"?'),
    "no whole number": (["mine", "--k", "x"], "--k: 'x' is no whole number"),
    "no choice": (
        ["mine", "--format", "x"],
        'Invalid value "x" for --format. Choose from: "parquet"',
    ),
    "no share": (["mine", "--near-duplicates", "2"], '"2.0" for --near-duplicates. Must be <= 1'),
    "no method": (
        ["mine", "--method", "x"],
        'Invalid value "x" for --method. Choose from: "random"',
    ),
    "no value": (["cost", "--passages"], "--passages requires an argument"),
    "nothing": (["fetch"], "requires an argument"),
}
TRAIN = ["train", "--data", "nq", "--negatives", "n", "--student", "s", "--output", "o"]
WRONG |= {
    "out of range": (
        [*TRAIN, "--epochs", "0"],
        "--epochs: Input should be greater than 0, found 0",
    ),
    "not for each other": ([*TRAIN, "--mask-margin", "0.1"], "mask_margin is 0.1, expected none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_end_in_one_line(case, capsys):
    arguments, message = WRONG[case]
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nvret: ")
    assert message in line


def test_a_registered_method_is_an_option(files, monkeypatch, capsys):
    monkeypatch.setattr(methods, "BY_NAME", dict(methods.BY_NAME))
    monkeypatch.setattr(command_line, "BY_NAME", methods.BY_NAME)

    @dataclass(frozen=True)
    class TopKQuota(methods.Method):
        """Drop a share.

        Attributes:
            quota: ranks that are dropped.
            threshold: not used.
        """

        name = "quota"
        quota: int = 1
        threshold: float = 0.5

        @property
        def skip(self):
            return self.quota

    more = ("--num-negatives", "1")
    assert command(files, "--method", "quota", "--quota", "2", *more) == 0
    shifted = ("--method", "shifted", "--n", "2", "--output", str(files / "shifted.parquet"))
    assert command(files, *shifted, *more) == 0
    found, wanted = (negatives.load(files / f"{x}.parquet") for x in ("negatives", "shifted"))
    assert found["negative_id"].equals(wanted["negative_id"])
    record = negatives.provenance(found)["method"]
    assert record == {"name": "quota", "parameters": {"quota": 2, "threshold": 0.5}}
    capsys.readouterr()
    assert cli.main(["mine", "--help"]) == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "of quota: ranks that are dropped (1)" in words
    assert "of abs: a negative scores less (0.7); of quota: not used (0.5)" in words


def test_version_and_help_are_quick(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("nvret")
    code = "import sys, nvret.cli; nvret.cli.main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hard negatives" in done.stdout
    assert not {"torch", "pandas", "pyarrow"} & set(done.stdout.replace("'", " ").split())


def test_an_interruption_is_said(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("nvret.study.config.load", interrupt)
    for kept, message in (({Path("x")}, "the same command continues"), (set(), "nothing was")):
        monkeypatch.setattr(store, "KEPT", kept)
        assert cli.main(["run", "params/smoke.yaml"]) == 130
        assert f"nvret: interrupted; {message}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run"], ["report"]])
def test_what_needs_the_checkout_says_so(command, monkeypatch, tmp_path, capsys):
    profile = Path("params/smoke.yaml").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NVRET_RESULTS", raising=False)
    assert cli.main([*command, str(profile)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not inside the repository" in line


def test_the_completion_script_is_one_that_bash_reads():
    script = subprocess.run([sys.executable, "-m", "nvret", "--print-completion", "bash"],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "--num-negatives" in script


def test_a_set_of_the_hub_is_asked_for_by_its_revision(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = tmp_path / "n.parquet"
    more = ["--teacher", "bm25", "--method", "naive", "--output", str(output)]
    name = f"owner/name@{'a' * 40}"
    assert cli.main(["mine", "--data", name, *more]) == 2
    assert "dataset owner/name at aaaaaaaaaaaa could not be fetched" in capsys.readouterr().err
    assert cli.main(["mine", "--data", "owner/name@main", *more]) == 2
    assert "40 hex digits" in capsys.readouterr().err
    assert not output.exists()
