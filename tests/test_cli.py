"""The command line on files of a user's own."""

import json
import subprocess
import sys

import pandas as pd
import pytest

from nvret import cli, mining


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
    return cli.main(
        [
            "mine",
            *("--corpus", str(folder / "corpus.jsonl")),
            *("--queries", str(folder / "queries.jsonl")),
            *("--qrels", str(folder / "qrels.tsv")),
            *("--teacher", teacher, "--output", str(folder / "negatives.parquet")),
            *more,
        ]
    )


@pytest.mark.parametrize("teacher", ["bm25", "potion-base-8m"])
def test_mine(files, capsys, teacher):
    more = ("--method", "perc-pos", "--perc", "0.95", "--num-negatives", "2")
    assert command(files, *more, teacher=teacher) == 0
    table = mining.load(files / "negatives.parquet")
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
    from test_paper_scale import beir_folder

    from nvret import data, mixtures

    dataset = mixtures.sample_passages(mixtures.sample(data.load("squadshifts-nyt"), 80), 300)
    beir_folder(tmp_path / "own", dataset)
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
        (["train"], "train needs a profile, or --corpus"),
        (["train", "params/smoke.yaml", "--student", "x"], "--student is not for a profile"),
        (["mine", "params/smoke.yaml", "--teacher", "x"], "--teacher is not for a profile"),
        (["encode", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_profile_and_own_data_are_two_things(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_completion_script_is_one_that_bash_reads():
    script = subprocess.run([sys.executable, "-m", "nvret", "--print-completion", "bash"],
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "--num-negatives" in script
