"""Results on an object store: found there, complete or not at all."""

import json
import os

import pytest

from nvret.utils import store
from nvret.utils.errors import NvretError


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Two caches and a remote that both see; the fixture's value switches between the caches."""

    def use(name):
        monkeypatch.setenv("NVRET_CACHE", str(tmp_path / name))
        return tmp_path / name

    monkeypatch.setenv("NVRET_REMOTE", f"file://{tmp_path / 'remote'}")
    use("one")
    return use


def build(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "value.txt").write_text("42")


def forbidden(folder):
    raise AssertionError("computed again")


def test_another_machine_finds_a_stage(machines, tmp_path):
    store.stage("toy", {"a": 1}, build)
    other = machines("two")
    found = store.stage("toy", {"a": 1}, forbidden)
    assert found.is_relative_to(other)
    assert (found / "inner" / "value.txt").read_text() == "42"
    assert sorted(path.name for path in found.iterdir()) == ["inner", "inputs.json"]
    with pytest.raises(AssertionError, match="computed again"):
        store.stage("toy", {"a": 2}, forbidden)


def test_what_is_not_listed_is_not_there(machines, tmp_path):
    found = store.stage("toy", {"a": 1}, build)
    listing = tmp_path / "remote" / "toy" / f"{found.name}.json"
    listing.unlink()  # as if the upload had been cut off before its last step
    machines("two")
    with pytest.raises(AssertionError, match="computed again"):
        store.stage("toy", {"a": 1}, forbidden)


def test_a_file_that_is_cut_off_is_named(machines, tmp_path):
    found = store.stage("toy", {"a": 1}, build)
    (tmp_path / "remote" / "toy" / found.name / "inner" / "value.txt").write_text("4")
    other = machines("two")
    with pytest.raises(NvretError, match=r"value.txt: has SHA-256 4b.*, its list says 73"):
        store.stage("toy", {"a": 1}, forbidden)
    assert not (other / "toy" / found.name).exists()


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "a/../../../evil", "..", "", "./inner", "a\\..\\evil"]
)
def test_a_list_names_nothing_outside_of_the_result(machines, tmp_path, name):
    found = store.stage("toy", {"a": 1}, build)
    listing = tmp_path / "remote" / "toy" / f"{found.name}.json"
    listing.write_text(json.dumps({name: "0" * 64}))
    (tmp_path / "remote" / "evil").write_text("evil")
    machines("two")
    with pytest.raises(NvretError, match="expected a file inside of the result"):
        store.stage("toy", {"a": 1}, forbidden)
    assert not list(tmp_path.glob("**/two/**/evil"))


@pytest.mark.parametrize("text", ["{", "[]", '{"inputs.json": 3}'])
def test_a_list_that_is_none_is_named(machines, tmp_path, text):
    found = store.stage("toy", {"a": 1}, build)
    (tmp_path / "remote" / "toy" / f"{found.name}.json").write_text(text)
    machines("two")
    with pytest.raises(NvretError, match=rf"{found.name}.json: expected"):
        store.stage("toy", {"a": 1}, forbidden)


def test_without_a_remote_nothing_happens(machines, monkeypatch):
    monkeypatch.delenv("NVRET_REMOTE")
    assert not store.find(store.cache_dir() / "toy" / "x")
    store.stage("toy", {}, build)


def test_an_unknown_protocol_is_named(machines, monkeypatch):
    monkeypatch.setitem(os.environ, "NVRET_REMOTE", "abc://x")
    with pytest.raises(NvretError, match=r"NVRET_REMOTE is 'abc://x'"):
        store.stage("toy", {}, build)
