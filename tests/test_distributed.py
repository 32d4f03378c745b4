"""Several processes under torchrun give what a single one gives, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nvret import distributed, encode, mining, mixtures, search, store, teachers
from nvret.assets import model_path
from nvret.data import load
from nvret.embeddings import embed
from nvret.encode import Encoder
from nvret.tile import PRODUCT

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
    return mixtures.sample_passages(mixtures.sample(load("squadshifts-nyt"), 60), 400)


def work(folder: Path) -> None:
    """What each process does; the first writes it down."""
    encode.SHARD = BLOCK
    for passages in (*SIZES, LARGE):
        unit = PRODUCT if passages == LARGE else BLOCK
        found = distributed.top_k(**vectors(passages), k=5, unit=unit)
        if distributed.first():
            np.savez(folder / f"{passages}.npz", ids=found.ids, scores=found.scores)
    encoder = Encoder.load(model_path("paraphrase-minilm-l3"))
    encoded = embed(encoder, texts(), max_length=32, progress=False)
    assert len(list((store.cache_dir() / "embeddings").glob("[!.]*.npy"))) == 1
    distributed.wait()
    for teacher in ("bm25", teachers.DenseTeacher("potion-base-8m")):
        table = mining.mine(dataset(), teacher, mining.TopKPercPos(0.9), progress=False)
        if distributed.first():
            mining.save(table, folder / f"{getattr(teacher, 'name', teacher)}.parquet")
    if distributed.first():
        np.save(folder / "encoded.npy", encoded)


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


@pytest.mark.parametrize("teacher", ["bm25", "potion-base-8m"])
def test_the_negatives_are_those_of_one_process(together, teacher):
    chosen = teacher if teacher == "bm25" else teachers.DenseTeacher(teacher)
    alone = mining.mine(dataset(), chosen, mining.TopKPercPos(0.9), progress=False)
    found = mining.load(together / f"{teacher}.parquet")
    assert found.num_rows > 100
    ids = ["query_id", "positive_id", "negative_id", "rank"]
    assert found.select(ids).equals(alone.select(ids))
    assert mining.provenance(found) == mining.provenance(alone)


def test_a_single_process_does_everything():
    assert distributed.world() == (0, 1)
    assert distributed.share(7, 4) == slice(0, 7)


if __name__ == "__main__":
    with distributed.group():
        work(Path(sys.argv[1]))
