"""``nvret cache`` on a real small cache; what is locked, or is not ours, stays."""

import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from nvret import cli
from nvret.utils import cache as contents
from nvret.utils import store

DAY = contents.DAY
HEX = "0123456789abcdef" * 4


def build(folder):
    np.save(folder / "vectors.npy", np.ones((4, 3), np.float32))
    np.save(folder / "none.npy", np.ones((0, 3), np.float32))
    pq.write_table(pa.table({"a": [1, 2]}), folder / "table.parquet")
    save_file({"w": np.ones(8, np.float32)}, folder / "model.safetensors")


def age(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Two stages, one last used 40 days ago; leftovers, old and new; a folder of the user."""
    root = tmp_path / "cache"
    monkeypatch.setenv("NVRET_CACHE", str(root))
    old = store.stage("encode", {"a": 1}, build)
    store.stage("train", {"b": [1, None, 0.5]}, build)
    age(old, 40)
    for name, days in (("old", 2), ("new", 0)):
        left = root / "train" / f".{HEX[:-3]}{'abc' if days else 'def'}.partial"
        left.mkdir()
        (left / "half").write_text(name)
        age(left / "half", days)
        age(left, days)
    (root / "train" / f".{HEX}.lock").touch()
    age(root / "train" / f".{HEX}.lock", 2)
    own = root / "documents" / "letter"
    own.mkdir(parents=True)
    (own / "text").write_text("mine")
    age(own, 400)
    return root


def results(root):
    return sorted(path.parent.name for path in root.glob("*/" + "[0-9a-f]" * 64))


def left(root):
    return sorted(path.name[-11:] for path in root.glob("*/.*"))


def test_the_cache_is_shown(cache, capsys):
    assert cli.main(["cache"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[2:]}
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - 40 * DAY))
    assert rows["encode"][1] == "1"
    assert rows["encode"][3] == day
    assert rows["train"][5] == "3"
    assert rows["total"][1] == "2"
    assert "documents" not in rows


def test_prune_without_a_choice_takes_old_leftovers_alone(cache, capsys):
    assert cli.main(["cache", "prune", "--dry-run"]) == 0
    assert "2 results and leftovers" in capsys.readouterr().out
    assert len(left(cache)) == 3
    assert cli.main(["cache", "prune"]) == 0
    assert left(cache) == ["def.partial"]
    assert results(cache) == ["encode", "train"]


def test_prune_by_age_and_kind(cache, capsys):
    assert cli.main(["cache", "prune", "--older-than", "30d", "--kind", "train"]) == 0
    assert results(cache) == ["encode", "train"]
    assert cli.main(["cache", "prune", "--older-than", "30d"]) == 0
    assert results(cache) == ["train"]
    assert cli.main(["cache", "prune", "--kind", "train"]) == 0
    assert results(cache) == []
    assert " bytes removed" in capsys.readouterr().out.splitlines()[-1]
    assert (cache / "documents" / "letter" / "text").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--older-than=-3d"], "expected a time above 0"),
        (["prune", "--older-than", "0d"], "expected a time above 0"),
        (["prune", "--older-than", "30"], "unable to convert"),
        (["prune", "--kind", "trian"], "did you mean 'train'?"),
        (["show", "--kind", "train"], "--kind is of nvret cache prune"),
        (["prune", "--remove"], "--remove is of nvret cache verify"),
        (["verify", "--dry-run"], "--dry-run is of nvret cache prune"),
    ],
)
def test_a_wrong_choice_removes_nothing(cache, capsys, arguments, message):
    before = sorted(cache.rglob("*"))
    assert cli.main(["cache", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(cache.rglob("*")) == before


def test_use_makes_a_result_young(cache):
    store.stage("encode", {"a": 1}, build)
    assert cli.main(["cache", "prune", "--older-than", "30d"]) == 0
    assert results(cache) == ["encode", "train"]


def test_what_is_locked_stays(cache, capsys):
    target = next((cache / "encode").iterdir())
    with store.locked(target):
        assert cli.main(["cache", "prune", "--older-than", "30d"]) == 0
        assert "in use" in capsys.readouterr().out
        assert target.exists()
    assert cli.main(["cache", "prune", "--older-than", "30d"]) == 0
    assert not target.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


BREAKS = {
    "vectors.npy": cut,
    "table.parquet": cut,
    "model.safetensors": cut,
    "inputs.json": lambda path: path.write_text('{"a": 2}'),
    "weights.bin": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_verify_names_what_cannot_be_read(cache, capsys, name):
    assert cli.main(["cache", "verify"]) == 0
    folder = next((cache / "encode").iterdir())
    BREAKS[name](folder / name)
    capsys.readouterr()
    assert cli.main(["cache", "verify"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(str(folder / name))
    assert printed[-1] == "2 results, 1 cannot be read"
    assert cli.main(["cache", "verify", "--remove"]) == 1
    assert results(cache) == ["train"]
    assert cli.main(["cache", "verify"]) == 0


def test_a_cache_that_is_a_file_is_said(cache, capsys, monkeypatch):
    shutil.rmtree(cache)
    assert cli.main(["cache"]) == 0
    cache.write_text("file")
    assert cli.main(["cache"]) == 2
    assert "expected a folder ($NVRET_CACHE)" in capsys.readouterr().err
