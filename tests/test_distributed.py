"""Several processes under torchrun give what a single one gives, bit for bit."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nvret import encode, evaluation, mining, negatives, search, teachers, training
from nvret.assets import dataset_path, datasets, model_path
from nvret.data import load
from nvret.encode import Encoder, embed
from nvret.scale import distributed
from nvret.search import PRODUCT
from nvret.study import config, mixtures, runs, workspace
from nvret.training import head
from nvret.utils import processes, store

pytestmark = pytest.mark.xdist_group("processes")
SIZES = (1, 2, 63, 64, 65, 640, 1001)  # passages, in blocks of 64: fewer than processes, even, odd
LARGE = 2 * PRODUCT + 77  # in blocks of the usual size
TEXTS = 300
BLOCK = 64


def torchrun(script, *arguments, processes=2, env=None):
    """Run a file of this folder's project under torchrun; its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, "--standalone", script, *map(str, arguments)],
        env=(env or os.environ) | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def vectors(passages):
    """Queries and passages; some passages are equal, so that scores tie across parts."""
    rng = np.random.default_rng(passages)
    corpus = rng.standard_normal((passages, 24), np.float32)
    corpus[passages // 2 :] = corpus[: passages - passages // 2]
    queries = rng.standard_normal((37, 24), np.float32)
    ceiling = np.where(np.arange(37) % 3, 4.0, np.inf).astype(np.float32)
    exclude = [np.unique(rng.integers(0, passages, 3)) for _ in queries]
    return {"queries": queries, "corpus": corpus, "ceiling": ceiling, "exclude": exclude}


def texts():
    passages = load("squadshifts-nyt").passages[: TEXTS - 40]
    return [*passages, *passages[:40]]  # some twice


def dataset():
    return mixtures.sample_passages(mixtures.sample(load("squadshifts-nyt"), 61), 400)


def trained(folder, model, **config):
    """A run whose every fourth mined negative is another pair's positive, so that pools overlap.

    The last batch has a single pair, and so the second process none.
    """
    data = dataset()
    table = mining.mine(data, "bm25", mining.NaiveTopK(), 3, progress=False)
    settings = {
        "learning_rate": 1e-3,
        "dropout": 0.0,
        "temperature": 0.05,
        "epochs": 2,
        "batch_size": 10,
    }
    config = training.TrainingConfig(**settings | config)
    training.finetune(
        model_path(model), data, table, folder, config, seed=3, device="cpu", progress=False
    )


def headed(folder):
    """A head on static vectors: the first process trains it, all read its log."""
    data, base = dataset(), Encoder.load(model_path("potion-base-8m"))
    table = mining.mine(data, "bm25", mining.NaiveTopK(), 3, progress=False)
    vectors = (
        embed(base, texts, kind, progress=False)
        for texts, kind in ((data.query_texts, "query"), (data.passages, "passage"))
    )
    config = training.TrainingConfig(
        batch_size=10, learning_rate=1e-2, temperature=0.05, in_batch_negatives=True,
        memory_bank=16,
    )  # fmt: skip
    log = head.train_head(data, table, *vectors, folder, config, seed=3, progress=False)
    return log, head.HeadEncoder(base, folder)


def evaluated(encoder):
    lengths = {"query_max_length": 32, "passage_max_length": 32}
    return evaluation.evaluate(encoder, dataset(), **lengths, progress=False).scores


RUNS = {
    "mined": {"model": "potion-base-8m"},
    "in-batch": {"model": "potion-base-8m", "in_batch_negatives": True},
    "bank": {"model": "potion-base-8m", "in_batch_negatives": True, "memory_bank": 64},
    "transformer": {"model": "paraphrase-minilm-l3", "in_batch_negatives": True},
}


def work(folder: Path) -> None:
    """What each process does; the first writes it down."""
    encode.SHARD = BLOCK
    for passages in (*SIZES, LARGE):
        unit = PRODUCT if passages == LARGE else BLOCK
        found = distributed.top_k(**vectors(passages), k=5, unit=unit)
        if processes.is_main_process():
            np.savez(folder / f"{passages}.npz", ids=found.ids, scores=found.scores)
    encoder = Encoder.load(model_path("paraphrase-minilm-l3"))
    encoded = embed(encoder, texts(), max_length=32, progress=False)
    assert len(list((store.cache_dir() / "embeddings").glob("[!.]*"))) == 1
    processes.barrier()
    for teacher in ("bm25", teachers.DenseTeacher("potion-base-8m")):
        table = mining.mine(dataset(), teacher, mining.TopKPercPos(0.9), progress=False)
        if processes.is_main_process():
            negatives.save(table, folder / f"{getattr(teacher, 'name', teacher)}.parquet")
    if processes.is_main_process():
        np.save(folder / "encoded.npy", encoded)
    scores = evaluated(encoder)
    if processes.is_main_process():
        pq.write_table(scores, folder / "scores.parquet")
    for name, run in RUNS.items():
        trained(folder / name, **run)
    log, encoder = headed(folder / "head")
    assert len(processes.gather_objects(log)) == 2
    assert all(one.equals(log) for one in processes.gather_objects(log))
    scores = evaluated(encoder)
    if processes.is_main_process():
        pq.write_table(scores, folder / "head.parquet")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder of what two processes computed with a cache of their own."""
    folder, cache = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("cache")
    for name in ("paraphrase-minilm-l3", "potion-base-8m"):
        model_path(name)
    dataset()
    for kind in ("models", "datasets"):
        (cache / kind).symlink_to(store.cache_dir() / kind)
    torchrun(__file__, folder, env=os.environ | {"NVRET_CACHE": str(cache)})
    return folder


@pytest.mark.parametrize("passages", [*SIZES, LARGE])
def test_the_parts_of_a_search_are_merged_exactly(together, passages):
    whole = search.top_k(**vectors(passages), k=5)
    with np.load(together / f"{passages}.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["ids"], whole.ids)
        if passages == LARGE:  # products of the same shapes: not a bit differs
            np.testing.assert_array_equal(found["scores"], whole.scores)
        np.testing.assert_allclose(found["scores"], whole.scores, rtol=1e-6)


def test_the_vectors_are_those_of_one_process(together, monkeypatch):
    monkeypatch.setattr(encode, "SHARD", BLOCK)
    encoder = Encoder.load(model_path("paraphrase-minilm-l3"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = encoder.encode(texts(), max_length=32, progress=False)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(np.load(together / "encoded.npy"), alone)


def test_the_scores_are_those_of_one_process(together, monkeypatch):
    monkeypatch.setattr(encode, "SHARD", BLOCK)
    alone = evaluated(Encoder.load(model_path("paraphrase-minilm-l3")))
    assert pq.read_table(together / "scores.parquet").equals(alone)


@pytest.mark.parametrize("teacher", ["bm25", "potion-base-8m"])
def test_the_negatives_are_those_of_one_process(together, teacher):
    chosen = teacher if teacher == "bm25" else teachers.DenseTeacher(teacher)
    alone = mining.mine(dataset(), chosen, mining.TopKPercPos(0.9), progress=False)
    found = negatives.load(together / f"{teacher}.parquet")
    assert found.num_rows > 100
    ids = ["query_id", "positive_id", "negative_id", "rank"]
    assert found.select(ids).equals(alone.select(ids))
    assert negatives.provenance(found) == negatives.provenance(alone)


def test_a_head_is_that_of_one_process(together, tmp_path):
    log, encoder = headed(tmp_path / "head")
    found = pq.read_table(together / "head" / "training_log.parquet")
    np.testing.assert_allclose(found["loss"], log["loss"], rtol=1e-5)
    weights = [head.load(folder / "head") for folder in (together, tmp_path)]
    np.testing.assert_allclose(*weights, atol=1e-4)
    scores, alone = pq.read_table(together / "head.parquet"), evaluated(encoder)
    means = [np.mean(table["ndcg_at_10"]) for table in (scores, alone)]
    assert means[0] == pytest.approx(means[1], abs=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_the_steps_are_those_of_one_process_with_the_joined_batch(together, name, tmp_path):
    trained(tmp_path / name, **RUNS[name])
    logs = [pq.read_table(folder / name / "training_log.parquet").to_pandas()
            for folder in (together, tmp_path)]  # fmt: skip
    assert len(logs[0]) == len(logs[1]) == 14
    for column in ("loss", "grad_norm"):  # of each step, so that the gradients are the same
        np.testing.assert_allclose(logs[0][column], logs[1][column], rtol=2e-3)
    models = [Encoder.load(folder / name).state_dict() for folder in (together, tmp_path)]
    base = Encoder.load(model_path(RUNS[name]["model"])).state_dict()
    for key, weight in models[0].items():
        if key.endswith("key.bias"):  # softmax cancels it: its gradient is rounding, made large
            continue
        moved = (models[1][key] - base[key]).norm()
        assert (weight - models[1][key]).norm() <= 0.01 * moved + 1e-6, key


def test_the_stages_of_a_profile_are_found_by_a_single_process(tmp_path, monkeypatch):
    values = config.read(Path(__file__).parents[1] / "params" / "smoke.yaml")
    name = "06_rq3_methods"
    values |= {"seeds": [0], "notebooks": [name]}
    methods = {"student": "static", "method": ["naive", "perc-pos"], "teacher": "potion-base-8m"}
    values["studies"] = {
        "06_rq3_methods": values["studies"]["06_rq3_methods"] | {"runs": [methods]}
    }
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump(values))
    for asset in ("nq", "squadshifts-reddit", "smollm2-135m", "potion-base-8m"):
        (dataset_path if asset in datasets() else model_path)(asset)
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("models", "datasets"):
        (cache / kind).symlink_to(store.cache_dir() / kind)
    monkeypatch.setenv("NVRET_CACHE", str(cache))
    for stage in ("encode", "train"):  # which mines too
        said = torchrun("--module", "nvret", stage, profile)
        assert said.count("arms are in the store") == 1
    study = runs.Study(workspace.Workspace(config.load(profile), progress=False), name)
    monkeypatch.setattr(encode.Encoder, "encode", None)
    monkeypatch.setattr(mining, "sweep", None)
    monkeypatch.setattr(training, "finetune", None)
    for arm in study.arms:
        assert study.model(arm, 0).is_dir()


JOB = """
import sys, time, numpy as np
from pathlib import Path
from nvret.scale.distributed import encode_together
from nvret.utils import processes, store

def encode(texts, out):
    time.sleep(1)  # so that the other job comes meanwhile
    out[:] = np.array([[float(text)] * 8 for text in texts])

def build(folder):
    processes.barrier()
    encode_together(encode, [str(n % 90) for n in range(100)], 8, folder, 16)

with processes.group():
    target = store.cache_dir() / "vectors"
    with store.shared_folder(target) as folder:
        if folder is not None:
            build(folder)
    vectors = np.load(target / "vectors.npy", mmap_mode="r")
    assert (vectors == np.arange(100)[:, None] % 90).all()
    assert [path.name for path in target.iterdir()] == ["vectors.npy"]
    store.stage("toy", {}, lambda folder: processes.barrier())
"""


def test_two_jobs_on_one_cache_wait_for_each_other(tmp_path):
    """They neither cut each other's files off nor wait for ever."""
    (tmp_path / "job.py").write_text(JOB)
    env = os.environ | {"NVRET_CACHE": str(tmp_path / "cache")}
    with ThreadPoolExecutor() as jobs:
        list(jobs.map(lambda _: torchrun(tmp_path / "job.py", env=env), range(2)))
    assert not list((tmp_path / "cache").rglob(".*"))


def test_a_single_process_does_everything():
    assert processes.world() == (0, 1)
    assert processes.shard(7, 4) == slice(0, 7)


if __name__ == "__main__":
    with processes.group():
        work(Path(sys.argv[1]))
