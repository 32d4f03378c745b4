"""A result is there whole, or it is not there."""

import errno
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from helpers import examples
from nvret.utils import store
from nvret.utils.errors import NvretError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVRET_CACHE", str(tmp_path))
    return tmp_path


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_stage_is_computed_once():
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "value").write_text("42")

    first = store.stage("toy", {"a": 1}, build)
    assert store.stage("toy", {"a": 1}, build) == first
    assert len(calls) == 1
    assert (first / "value").read_text() == "42"
    assert json.loads((first / "inputs.json").read_text()) == {"a": 1}
    assert store.stage("toy", {"a": 2}, build) != first


def test_the_time_of_a_stage_is_less_that_of_stages_within_it(monkeypatch):
    monkeypatch.setattr(store, "SPENT", store.Counter())
    clock = iter([0.0, 1.0, 5.0, 7.0, 10.0, 13.0])
    monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
    with store.timed("outer"):
        with store.timed("inner"):  # 1 to 5
            pass
        with pytest.raises(RuntimeError), store.timed("inner"):  # 7 to 10
            raise RuntimeError
    assert store.SPENT == {"inner": 7.0, "outer": 6.0}


def test_the_stages_that_are_computed_are_timed(monkeypatch):
    monkeypatch.setattr(store, "SPENT", store.Counter())

    def build(folder):
        store.stage("inner", {}, lambda folder: time.sleep(0.2))

    store.stage("outer", {}, build)
    assert set(store.SPENT) == {"outer", "inner"}
    assert store.SPENT["inner"] >= 0.2
    spent = store.SPENT.copy()
    store.stage("outer", {}, build)  # found
    assert spent == store.SPENT


def test_a_stage_that_fails_leaves_nothing(cache):
    def build(folder):
        (folder / "half").write_text("written")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        store.stage("toy", {"a": 1}, build)
    assert visible(cache / "toy") == []
    assert not list((cache / "toy").glob(".*.partial"))


def test_a_partial_folder_is_kept_for_the_next_call(tmp_path):
    def write():
        with store.atomic_folder(tmp_path / "run", keep_partial=True) as folder:
            if not (folder / "step").exists():
                (folder / "step").write_text("1")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert visible(tmp_path) == []
    write()
    assert (tmp_path / "run" / "step").read_text() == "1"


@pytest.mark.xdist_group("processes")
def test_killed_while_writing(cache):
    program = textwrap.dedent("""
        import sys, time
        from nvret.utils import store
        def build(folder):
            (folder / "half").write_text("written")
            print("started", flush=True)
            time.sleep(60)
        store.stage("toy", {}, build)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert visible(cache / "toy") == []
    folder = store.stage("toy", {}, lambda folder: (folder / "whole").write_text("x"))
    assert visible(folder) == ["inputs.json", "whole"]
    assert not list((cache / "toy").glob(".*"))  # nor what the killed process had written


@pytest.mark.xdist_group("processes")
def test_two_processes_compute_a_stage_once(cache):
    program = textwrap.dedent("""
        import time
        from nvret.utils import store
        def build(folder):
            time.sleep(1)
            print("built", flush=True)
        store.stage("toy", {}, build)
    """)
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert sorted(outputs) == [b"", b"built\n"]


def test_no_lock_file_and_no_partial_file_stays(cache):
    store.stage("toy", {}, lambda folder: (folder / "value").write_text("42"))
    store.write_json(cache / "value.json", {})
    assert [path for path in cache.rglob(".*")] == []


def test_two_writers_of_a_file_do_not_share_a_partial_one(cache, monkeypatch):
    """As processes of two containers, which have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with store.atomic_file(cache / "x") as one, store.atomic_file(cache / "x") as other:
        one.write_text("one")
        other.write_text("other")
    assert (cache / "x").read_text() == "one"  # the last to end, and whole


def test_a_folder_that_another_machine_made_meanwhile_is_kept(cache):
    """One that does not see this machine's locks."""
    with store.atomic_folder(cache / "x") as partial:
        (partial / "value").write_text("own")
        (cache / "x").mkdir()
        (cache / "x" / "value").write_text("other")
    assert (cache / "x" / "value").read_text() == "other"
    assert visible(cache) == ["x"]
    assert not list(cache.glob(".*"))


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_before_the_array_is_written(cache, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", full)

    def build(folder):
        with store.new_array(folder / "vectors.npy", (1 << 20, 384)) as array:
            array[:] = 1

    with pytest.raises(NvretError, match="No space left on device"):
        store.stage("toy", {}, build)
    assert visible(cache / "toy") == []
    assert not list((cache / "toy").glob(".*"))


def test_a_file_that_did_not_reach_the_disk_is_not_a_result(cache, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NvretError, match=r"value.json: No space left on device"):
        store.write_json(cache / "value.json", {})
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_said_whatever_the_library_calls_it(cache):
    def build(folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(NvretError, match="No space left on device"):
        store.stage("toy", {}, build)


def test_a_cache_that_cannot_be_written_is_named(cache, monkeypatch):
    (cache / "file").touch()
    monkeypatch.setenv("NVRET_CACHE", str(cache / "file"))
    with pytest.raises(NvretError, match=r"file/toy: Not a directory"):
        store.stage("toy", {}, lambda folder: None)


def test_an_array_takes_its_place_on_the_disk_at_once(cache):
    with store.new_array(cache / "x.npy", (1000, 100)) as array:
        assert (cache / "x.npy").stat().st_blocks * 512 >= array.nbytes
        array[:] = 1
    assert np.load(cache / "x.npy").sum() == 1000 * 100


def test_a_file_that_is_cut_off_keeps_the_old_one(tmp_path):
    target = tmp_path / "value.json"
    store.write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        store.write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": 1}
    assert visible(tmp_path) == ["value.json"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (("ab", "c"), ("a", "bc")),
        ((1,), ("1",)),
        ((b"x",), ("x",)),
        ((np.zeros(2, np.float32),), (np.zeros(2, np.int32),)),
        ((np.zeros((1, 2)),), (np.zeros((2, 1)),)),
        ((pa.table({"x": ["ab", "c"]}),), (pa.table({"x": ["a", "bc"]}),)),
    ],
)
def test_different_content_has_different_fingerprints(a, b):
    assert store.fingerprint(*a) != store.fingerprint(*b)


COLUMNS = st.sampled_from([
    (pa.string(), st.text()), (pa.large_string(), st.text()), (pa.int32(), st.integers(-9, 9)),
    (pa.float32(), st.floats(width=32, allow_nan=False)), (pa.bool_(), st.booleans()),
    (pa.string(), st.none() | st.text()), (pa.list_(pa.int64()), st.lists(st.integers(-9, 9))),
])  # fmt: skip


@examples(200)
@given(COLUMNS, st.data())
def test_the_layout_of_a_table_does_not_matter_and_its_content_does(column, data):
    kind, values = column
    some, other = (data.draw(st.lists(values, max_size=9)) for _ in range(2))
    whole = pa.table({"x": pa.array(some, kind)})
    ends = sorted({0, len(some), *data.draw(st.lists(st.integers(0, len(some)), max_size=3))})
    # Each chunk is a part of a longer array, so that its values do not begin with the memory's
    parts = [whole.slice(i, j - i) for i, j in itertools.pairwise(ends)] or [whole]
    parts.insert(data.draw(st.integers(0, len(parts))), whole.slice(0, 0))
    assert store.fingerprint(whole) == store.fingerprint(pa.concat_tables(parts))
    same = repr(some) == repr(other)  # 0.0 is not -0.0
    hashed = store.fingerprint(pa.table({"x": pa.array(other, kind)}))
    assert (store.fingerprint(whole) == hashed) == same


def test_texts_are_the_same_in_large_and_in_usual_strings():
    usual = pa.table({"x": ["a", "bc"]})
    large = usual.cast(pa.schema({"x": pa.large_string()}))
    assert store.fingerprint(usual) == store.fingerprint(large)


def test_a_files_content_is_what_counts(tmp_path):
    (tmp_path / "a").write_text("same")
    (tmp_path / "b").write_text("same")
    assert store.fingerprint(tmp_path / "a") == store.fingerprint(tmp_path / "b")


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=()))), st.sampled_from([1, 2000]))
def test_a_list_of_texts_is_hashed_as_the_json_of_the_whole(texts, times):
    texts = texts * times  # longer than what is hashed at once
    whole = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    said = f"json:{len(whole)}:".encode() + whole.encode("utf-8", "surrogatepass")
    assert store.fingerprint(texts) == hashlib.sha256(said).hexdigest()
