"""The paper's profile without a hub: what is missing is said at once, local copies are used."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from helpers.architectures import write_bert
from nvret import assets, data, evaluation, search
from nvret.assets import registry, resolve
from nvret.cost import calibration
from nvret.encode import Encoder
from nvret.io import mteb_task
from nvret.study import config, notebooks, plan
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "params" / "paper.yaml"
ABSENT = {"HF_HUB_OFFLINE": "1"}


def beir_folder(folder, dataset, split="test"):
    """A data set in BEIR's layout, as its users have it."""
    (folder / "qrels").mkdir(parents=True)
    corpus = dataset.corpus.rename_columns({"id": "_id"}).to_pylist()
    queries = dataset.queries.select(["id", "text"]).rename_columns({"id": "_id"}).to_pylist()
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["\t".join(map(str, row.values())) for row in dataset.qrels.to_pylist()]
    (folder / "qrels" / f"{split}.tsv").write_text(
        "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n"
    )


def test_the_profile_and_all_that_it_names_are_there():
    settings = config.load(PAPER)
    needed = notebooks.assets_of(settings)
    assert len(needed) > 40
    for name in needed:
        assert name in registry.models() or name in registry.datasets(), name


def test_what_cannot_be_had_is_said_in_one_message_within_seconds(tmp_path):
    environment = os.environ | ABSENT | {"NVRET_CACHE": str(tmp_path)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "nvret", "run", str(PAPER)], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert time.monotonic() - started < 30
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for name, entry in registry.models().items():
        if entry.converter is None:
            place = tmp_path / "local" / "models" / name
            assert f"{name}: {entry.hub.id} at {entry.hub.revision}; a copy belongs in {place}" in (
                done.stderr
            )
    assert f"nq-train: on no hub; a copy belongs in {tmp_path}/local/datasets/nq-train" in (
        done.stderr
    )
    assert not list((tmp_path).glob("models/*"))  # nothing was fetched before


def test_local_copies_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_LOCAL", str(tmp_path))
    (tmp_path / "models" / "snowflake-arctic-embed-l").mkdir(parents=True)
    write_bert(
        tmp_path / "models" / "snowflake-arctic-embed-l", "mean"
    )  # says mean, the card says CLS
    beir_folder(tmp_path / "datasets" / "nq-train", data.load("squadshifts-nyt"), "train")
    found = assets.fetch(["snowflake-arctic-embed-l", "nq-train"], progress=False)
    encoder = Encoder.load(found["snowflake-arctic-embed-l"])
    assert encoder.layout.pooling == "cls"
    assert encoder.layout.prompts["query"].startswith("Represent this sentence")
    loaded = data.load("nq-train", progress=False)
    assert loaded.corpus.num_rows == data.load("squadshifts-nyt").corpus.num_rows
    (tmp_path / "models" / "e5-large-v2").mkdir()
    with pytest.raises(NvretError, match=r"has no .safetensors file"):
        assets.model_path("e5-large-v2")


def test_a_set_on_no_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_LOCAL", str(tmp_path))
    with pytest.raises(NvretError, match=r"squad-train: on no hub; a copy belongs in"):
        resolve.check(["squad-train"])


def test_a_beir_folder_gives_mtebs_own_figures(tmp_path):
    """Through mteb's retrieval classes and its own exact search, and through ours."""
    import mteb
    from mteb.models import SearchEncoderWrapper  # its search over any sentence-transformers model

    beir_folder(tmp_path / "nyt", data.load("squadshifts-nyt"))
    dataset = data.load(tmp_path / "nyt", progress=False)
    folder = assets.model_path("potion-base-8m")
    ours = evaluation.evaluate(
        Encoder.load(folder), dataset, query_max_length=None, passage_max_length=None,
        progress=False,
    )  # fmt: skip
    from sentence_transformers import SentenceTransformer

    with mteb_task.isolated():
        model = SearchEncoderWrapper(
            mteb.models.SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder)))
        )
        task = mteb_task.local_task(dataset, mteb_task.judgements(dataset), [10, 100])
        theirs = task.evaluate(model, "test", ["default"], encode_kwargs={})["default"]
    assert ours.summary["ndcg_at_10"] == pytest.approx(theirs["ndcg_at_10"], abs=2e-5)  # 5 digits


def test_the_plans_arithmetic():
    settings = config.load(PAPER)
    assumed = plan.Assumed(passage_tokens=100, query_tokens=10, tflops=100, devices=8)
    table = plan.stages(settings, assumed, sizes=lambda name: (1000, 50_000))
    encode = table[(table["stage"] == "encode") & table["what"].str.endswith("by e5-large-v2")]
    assert len(encode) == 3  # NQ, SQuAD, StackExchange, each once
    operations = 2 * 335141888 * (1000 * 10 + 50_000 * 100)
    np.testing.assert_allclose(encode["device_hours"], operations / 1e14 / 3600)
    np.testing.assert_allclose(encode["disk_gb"], 51_000 * 1024 * 4 / 1e9)
    train = table[(table["stage"] == "train") & table["what"].str.startswith("06")].iloc[0]
    assert train["number"] == 6 * 3
    tokens = 3000 * (10 + 5 * 100) * 3  # pairs, a query and five passages, epochs
    np.testing.assert_allclose(train["device_hours"], 18 * 2 * 335141888 * tokens * 3 / 1e14 / 3600)
    decoder = table[table["what"] == "07_rq3_decoder, decoder"].iloc[0]
    tokens = 3000 * (10 + 2 * 100)
    np.testing.assert_allclose(  # LoRA and checkpointing: two passes and one
        decoder["device_hours"], 15 * 2 * 7110660096 * tokens * 3 / 1e14 / 3600
    )
    assert decoder["memory_gb"] == pytest.approx(28.4, abs=0.1)


def test_the_plan_of_a_head_reads_each_text_once_and_an_arm_has_its_epochs():
    values = config.load(PAPER).model_dump()
    student = next(iter(values["studies"]["06_rq3_methods"]["runs"]))["student"]
    values["studies"] = {"06_rq3_methods": values["studies"]["06_rq3_methods"]}
    assumed = plan.Assumed(passage_tokens=100, query_tokens=10, tflops=100)

    def hours(head, **grid):
        values["students"][student]["head"] = head
        values["studies"]["06_rq3_methods"]["runs"] = [{"student": student, **grid}]
        table = plan.stages(config.check(values, "test"), assumed, lambda name: (1000, 50_000))
        return table[table["stage"] == "train"].iloc[0]["device_hours"]

    one, more = ({"method": methods, "epochs": 1.0} for methods in ("naive", ["naive", "random"]))
    assert hours(False, **more) == pytest.approx(2 * hours(False, **one))
    assert hours(False, **one | {"epochs": 2.5}) == pytest.approx(2.5 * hours(False, **one))
    assert hours(True, **more) == pytest.approx(hours(True, **one))
    operations = 2 * 335141888 * len(values["data"]["train"].split("+")) * (10_000 + 5_000_000)
    assert hours(True, **one) == pytest.approx(operations / 1e14 / 3600)


def test_the_plan_of_a_profile_that_is_here(capsys):
    from nvret.cli import main

    assert main(["plan", str(ROOT / "params" / "smoke.yaml"), "--tflops", "1"]) == 0
    said = capsys.readouterr().out
    assert "package bigbench" in said
    assert "06_rq3_methods, static" in said
    assert main(["plan", str(PAPER), "--tflops", "300", "--devices", "8"]) == 0
    assert "e5-mistral-7b-instruct" in capsys.readouterr().out
    assert main(["plan", str(PAPER), "--tflops", "-1"]) == 2


def test_the_measured_rate_is_that_of_this_machine():
    encoder = Encoder.load(assets.model_path("paraphrase-minilm-l3"))
    assert (
        1e-4 < calibration.measure_rate(encoder, data.load("squadshifts-nyt").passages[:64]) < 1e4
    )


def test_downloads_say_what_is_here(tmp_path, monkeypatch):
    settings = config.load(PAPER)
    monkeypatch.setenv("NVRET_LOCAL", str(tmp_path))
    (tmp_path / "datasets" / "squad-train").mkdir(parents=True)
    table = plan.downloads(settings).set_index("name")
    assert table.loc["squad-train", "here"]
    assert not table.loc["nq-train", "here"]
    assert table.loc["mistral-7b", "GB"] == pytest.approx(14.2, abs=0.1)
    assert isinstance(table, pd.DataFrame)


def test_memory_stays_flat_from_ten_thousand_to_a_million_passages(tmp_path):
    """What a search adds beside the memory-mapped vectors, of which it holds a tile at a time."""
    queries = np.random.default_rng(0).standard_normal((300, 16), np.float32)
    added = {}
    for passages in (10_000, 1_000_000):
        shape = (passages, 16)
        made = np.lib.format.open_memmap(tmp_path / f"{passages}.npy", "w+", np.float32, shape)
        rng = np.random.default_rng(1)
        for start in range(0, passages, 10_000):
            made[start : start + 10_000] = rng.standard_normal((10_000, 16), np.float32)
        made.flush()
        corpus = np.load(tmp_path / f"{passages}.npy", mmap_mode="r")
        added[passages] = most_added(lambda c=corpus: search.top_k(queries, c, 10, buffer_mb=16))
    assert added[1_000_000] < added[10_000] + 40  # MiB: the vectors are 61, all scores 1144


def most_added(run):
    """Mebibytes that a run adds at most, pages of mapped files not counted."""
    process, done, seen = psutil.Process(), threading.Event(), []

    def held():
        memory = process.memory_info()
        return (memory.rss - memory.shared) / 2**20

    def watch():
        while not done.wait(0.005):
            seen.append(held())

    gc.collect()
    before = held()
    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(seen, default=before) - before
