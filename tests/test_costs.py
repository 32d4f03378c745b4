"""The cost model: exact on times made of its own terms, monotone, and right about memory."""

import dataclasses
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvret import assets
from nvret.cost import calibration, estimate
from nvret.cost.estimate import Calibration, Workload
from nvret.cost.work import Search, Texts
from nvret.encode import Encoder
from nvret.study import config, notebooks
from nvret.utils import machine
from nvret.utils.errors import NvretError

ROOT = Path(__file__).parents[1]
TRUE = np.array([2e-3, 3e-5, 2e-10, 1e-11, 4e-10])
WORDS = ["red", "blue", "river", "stone", "house", "light", "winter", "paper", "music", "bridge"]


def made_up(search=TRUE, encoding=(1e-4, 1e-4, 1e-7), **changes):
    """A calibration whose prices are known; only its tables are left small."""
    table = pd.DataFrame({"queries": [10], "passages": [100], "dimension": [8], "tokens": [1000]})
    known = Calibration(
        searches=table, encodings=table, search_prices=np.array(search),
        encoding_prices=np.array(encoding), k=64, device="cpu", dimension=384,
        weight_bytes=10**8, passage=Texts(80, 7000, 2000.0), query=Texts(10, 110, 300.0),
    )  # fmt: skip
    return dataclasses.replace(known, **changes)


def texts(number, words, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join([str(row), *rng.choice(WORDS, words)]) for row in range(number)]


def test_known_prices_come_back_from_the_times_that_they_make():
    *fitted, held_out = calibration.sizes(384)
    terms = np.array([size.terms() for size in fitted])
    prices = estimate.fit(terms, terms @ TRUE)
    np.testing.assert_allclose(prices, TRUE, rtol=1e-6)
    beyond = held_out.terms()
    np.testing.assert_allclose(beyond @ prices, beyond @ TRUE, rtol=1e-9)


def test_no_price_is_negative_and_relative_errors_count():
    rng = np.random.default_rng(0)
    terms = np.array([size.terms() for size in calibration.sizes(384)[:-1]])
    seconds = terms @ TRUE * rng.uniform(0.7, 1.4, len(terms))
    prices = estimate.fit(terms, seconds)
    assert (prices >= 0).all()
    # Times in other units give the same prices in those units: nothing depends on the scale
    np.testing.assert_allclose(estimate.fit(terms, 1e6 * seconds), 1e6 * prices)
    error = terms @ prices / seconds - 1
    dearer = terms @ prices * 1.01 / seconds - 1
    assert (error**2).sum() <= (dearer**2).sum()


@given(
    st.integers(1, 10**7), st.integers(1, 10**6), st.integers(1, 2000),
    st.integers(1, 10**6), st.integers(1, 10**5), st.integers(1, 2000),
)  # fmt: skip
def test_a_larger_search_never_costs_less(passages, queries, dimension, more_n, more_q, more_d):
    base = Search(queries, passages, dimension).terms()
    for grown in [
        (queries + more_q, passages, dimension),
        (queries, passages + more_n, dimension),
        (queries, passages, dimension + more_d),
    ]:
        assert (Search(*grown).terms() >= base).all()
    assert Search(queries + more_q, passages, dimension).memory(64) > 0


@settings(deadline=None)
@given(st.integers(1, 10**8), st.integers(1, 10**6), st.integers(1, 300), st.integers(2, 64))
def test_prediction_grows_with_the_work_and_shrinks_with_devices(passages, queries, tokens, many):
    known = made_up()
    one = Workload(passages, queries, tokens, 10)

    def seconds(workload):
        return estimate.predict(known, workload)["seconds"].to_numpy()

    base = seconds(one)
    assert (base > 0).all()
    assert base[-1] == pytest.approx(base[:-1].sum())
    for change in ({"passages": 2 * passages}, {"queries": 2 * queries}, {"passage_tokens": 400}):
        assert (seconds(dataclasses.replace(one, **change)) >= base * (1 - 1e-12)).all()
    assert (seconds(dataclasses.replace(one, devices=many)) <= base * (1 + 1e-12)).all()


def test_devices_divide_what_grows_with_the_corpus():
    known = made_up(search=[0, 0, 1e-10, 1e-11, 1e-10])
    one, four = (estimate.predict(known, Workload(10**6, 1000, devices=n)) for n in (1, 4))
    np.testing.assert_allclose(one["seconds"], 4 * four["seconds"])
    np.testing.assert_allclose(one["disk_gib"], four["disk_gib"])
    np.testing.assert_allclose(one["mapped_gib"].iloc[0], 4 * four["mapped_gib"].iloc[0])


def test_disk_and_mapped_bytes_are_those_of_the_arrays():
    table = estimate.predict(made_up(), Workload(3000, 200)).set_index("stage")
    corpus, queries = np.empty((3000, 384), "f4"), np.empty((200, 384), "f4")
    assert table["disk_gib"]["encode passages"] == corpus.nbytes / 2**30
    assert table["disk_gib"]["total"] == (corpus.nbytes + queries.nbytes) / 2**30
    assert table["mapped_gib"]["search"] == corpus.nbytes / 2**30
    expected = Search(200, 3000, 384).memory(64) + queries.nbytes
    assert table["memory_gib"]["search"] == expected / 2**30


def test_memory_of_a_search_is_what_it_takes():
    """In a process of its own, which has no memory that was let go of before."""
    program = (
        "from nvret.cost import calibration\n"
        "from nvret.cost.work import Search\n"
        "size = Search(512, 131_072, 16)\n"
        "rows = calibration.measure_search([size], rounds=1, progress=False)\n"
        "print(rows['mebibytes'][0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    predicted = Search(512, 131_072, 16).memory(64) / 2**20
    assert float(done.stdout) == pytest.approx(predicted, rel=0.15), done.stderr


def test_memory_of_texts_is_what_their_encoding_takes(monkeypatch):
    # The tokens of a shard are not in the price; they are nothing beside a large corpus
    monkeypatch.setattr("nvret.encode.SHARD", 128)
    monkeypatch.setattr("nvret.models.batching.CHUNK", 128)
    sample = texts(6000, 40)
    encoder = Encoder.load(assets.model_path("potion-base-8m"))
    predicted = estimate.sampled(encoder, sample, "passage", None).memory
    out = np.empty((len(sample), encoder.dimension), np.float32)
    encoder.encode(sample[:10], progress=False)
    tracemalloc.start()
    encoder.encode(sample, progress=False, out=out)
    peak = tracemalloc.get_traced_memory()[1] / len(sample)
    tracemalloc.stop()
    held = sum(map(sys.getsizeof, sample)) / len(sample)  # before the encoding began
    checked = encoder.dimension  # a byte for each value, which is not in the price
    assert held + peak - checked < predicted < 1.3 * (held + peak)


def test_crossover_is_where_both_take_as_long():
    workload = Workload(8_000_000, 500_000, 80, 10)
    passages = round(estimate.crossover(made_up(), workload))
    queries = round(passages * workload.queries / workload.passages)
    there = dataclasses.replace(workload, passages=passages, queries=queries)
    table = estimate.predict(made_up(), there).set_index("stage")["seconds"]
    encoding = table["encode passages"] + table["encode queries"]
    assert table["search"] == pytest.approx(encoding, rel=0.01)


def test_a_real_calibration_predicts_what_it_has_not_seen():
    encoder = Encoder.load(assets.model_path("potion-base-8m"))
    measured = estimate.calibrate(
        encoder, texts(300, 60), texts(50, 6, seed=1), k=8, rough=True, progress=False
    )
    for table in (measured.searches, measured.encodings):
        assert table["held_out"].sum() == 1
        assert np.isfinite(table["predicted"]).all()
        assert (table[["seconds", "predicted"]] > 0).all(None)
        assert (table["slowest"] >= table["seconds"]).all()
    workload = Workload(10**6, 10**4)
    table = estimate.predict(measured, workload)
    numbers = table.drop(columns=["stage", "duration"]).to_numpy(float)
    assert np.isfinite(numbers).all()
    assert (numbers >= 0).all()
    said = estimate.describe(measured, workload)
    assert "Held out: a search of 768 queries in 49,152 passages" in said
    largest = measured.searches.iloc[-1][["queries", "passages", "dimension"]].prod()
    beyond = re.search(r"reaches ([\d,]+) times .* search and ([\d,]+) times", said).groups()
    beyond_search, beyond_encoding = (int(number.replace(",", "")) for number in beyond)
    assert beyond_search == pytest.approx(10**10 * encoder.dimension / largest, abs=1)
    assert beyond_encoding > 1


@pytest.mark.notebook
def test_the_notebook_runs_and_leaves_the_profile_s_provenance_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_RESULTS", str(tmp_path))
    kept = tmp_path / "smoke" / "provenance.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    smoke = ROOT / "params" / "smoke.yaml"
    notebooks.run(config.load(smoke), config.read(smoke), ["11_cost"])
    assert kept.read_text() == "{}"
    table = pd.read_csv(tmp_path / "smoke" / "tables" / "11_prediction.csv")
    assert table["stage"].tolist() == ["encode passages", "encode queries", "search", "total"]
    assert len(list((tmp_path / "smoke" / "figures").glob("11_*.png"))) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_search_is_measured_on_a_gpu():
    table = calibration.measure_search(
        [Search(512, 131_072, 64)], device="cuda", rounds=1, progress=False
    )
    assert table["mebibytes"][0] > 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Workload(0, 10), "passages is 0"),
        (lambda: Workload(10, 10, passage_tokens=float("nan")), "passage_tokens is nan"),
        (lambda: Workload(10, 10, devices=0), "devices is 0"),
        (lambda: machine.check_device("no-such-device"), "no-such-device"),
        (lambda: calibration.measure_encoding(None, ["a", "a", "b"]), "2 different texts"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(NvretError, match=message):
        call()
