"""The campaign's own machinery, and a few cases of each trial that takes no time."""

import json

import numpy as np
import pytest

from campaign import __main__ as campaign
from campaign import commands, fuzz, mined
from nvret import cli
from nvret.methods import TopKMarginPos
from nvret.study.config import project_root

RESULTS = project_root() / "results" / "reliability"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Valid files of every kind."""
    folder = tmp_path_factory.mktemp("fuzz") / "base"
    fuzz.write(folder)
    return folder


def test_mining_equals_the_oracle(tmp_path):
    outcome = mined.trial(tmp_path, 0.02)
    assert outcome.times >= 20_000
    assert outcome.differences == 0, outcome.notes


def test_the_oracle_sees_a_ceiling_that_is_one_step_too_high(tmp_path, monkeypatch):
    right = TopKMarginPos.ceiling
    above = np.float32(np.inf)
    monkeypatch.setattr(
        TopKMarginPos, "ceiling", lambda *a, **k: np.nextafter(right(*a, **k), above)
    )
    assert mined.trial(tmp_path, 0.01).differences > 0


def test_malformed_inputs_end_in_a_status(base, tmp_path):
    seen, faults = fuzz.block(base, tmp_path, 412, 12)
    assert seen.total() == 12
    assert seen["status 2"] >= 6
    assert not [fault for fault in faults if fault.kind != "traceback"], faults


@pytest.mark.parametrize(
    ("main", "kind"),
    [
        (lambda _: 1 / 0, "traceback"),
        (lambda _: 3, "status"),
        (lambda _: 2, "message"),
        (lambda _: print("half", file=open("out.csv", "w")) or 2, "half"),  # noqa: SIM115
    ],
)
def test_a_fault_of_a_command_is_seen(main, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "main", main)
    _, faults = fuzz.attempt(tmp_path, ["mine"])
    assert kind in [one for one, _ in faults]


def test_a_full_and_a_read_only_disk_give_one_message(base, tmp_path):
    arguments = ["mine", "--data", base / "beir", "--teacher", "bm25", "--method", "naive",
                 "--num-negatives", 2, "--output", tmp_path / "disk" / "out.parquet"]  # fmt: skip
    env = commands.places(tmp_path)
    outcome = commands.Outcome("")
    try:
        with commands.disk(tmp_path / "disk", "4096") as disk:
            filler = disk / "filler"
            filler.write_bytes(bytes(4096))
            assert outcome.took(commands.run(*arguments, env=env), (2,), "full"), outcome.notes
            assert list(disk.iterdir()) == [filler]
            commands.remount(disk, "size=1m,ro")
            assert outcome.took(commands.run(*arguments, env=env), (2,), "ro"), outcome.notes
            commands.remount(disk, "rw")
            assert outcome.took(commands.run(*arguments, env=env), (0,), "rw"), outcome.notes
    except PermissionError as error:
        pytest.skip(f"a disk cannot be mounted: {error}")


def test_the_book_shows_the_committed_table(tmp_path):
    assert (RESULTS / "table.csv").exists()
    for file in RESULTS.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    campaign.write(tmp_path, None)
    assert (tmp_path / "table.csv").read_bytes() == (RESULTS / "table.csv").read_bytes()
    facts = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    page = (project_root() / "docs" / "reliability.md").read_text(encoding="utf-8")
    for name, row in facts.items():
        assert f"| {name} | {row['done']} | {row['times']:,} | {row['differences']:,} |" in page


def test_a_command_of_which_nothing_is_left_is_a_case(tmp_path):
    status, faults = fuzz.attempt(tmp_path, [])
    assert (status, faults) == ("status 0", [])
    rng = np.random.default_rng(0)
    assert all(len(fuzz._options(rng, [])) <= 1 for _ in range(50))
