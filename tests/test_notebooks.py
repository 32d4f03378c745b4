"""The notebooks end to end on the smoke profile: by papermill, by the command, and killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from nvret import assets
from nvret.study import config, notebooks
from nvret.utils import store

pytestmark = pytest.mark.notebook
ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"
ALONE = "05_rq3_sampling"  # a study that takes little
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def fetched():
    """The assets of the profile, in the real cache."""
    assets.fetch(notebooks.assets_of(config.load(SMOKE)))
    return store.cache_dir()


@pytest.fixture
def fresh(fetched, tmp_path):
    """An environment with the fetched assets and nothing that was computed from them."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for kind in ("models", "datasets"):
        (cache / kind).symlink_to(fetched / kind)
    return os.environ | {"NVRET_CACHE": str(cache), "NVRET_RESULTS": str(tmp_path / "results")}


def nvret(*arguments, env, **options):
    command = [sys.executable, "-m", "nvret", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, **options)


def tables(env):
    folder = Path(env["NVRET_RESULTS"]) / "smoke" / "tables"
    return {path.name: path.read_text() for path in sorted(folder.glob("*.csv"))}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_sources_hold_no_output_and_no_function(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert not any(line.startswith("def ") for cell in code for line in cell.source.splitlines())
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


@pytest.fixture
def small(tmp_path):
    """The smoke profile with a single study, which is enough to be killed in the middle of."""
    values = config.read(SMOKE)
    values["studies"] = {ALONE: values["studies"][ALONE]}
    values["notebooks"] = [ALONE, "10_claims"]
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_command_and_plain_papermill_give_the_same_tables(fresh, tmp_path):
    done = nvret("run", SMOKE, env=fresh, stdout=subprocess.PIPE, text=True)
    printed, _ = done.communicate(timeout=1500)
    assert done.returncode == 0
    settings = config.load(SMOKE)
    results = Path(fresh["NVRET_RESULTS"]) / "smoke"
    for name in settings.notebooks:
        assert f"{name}.ipynb" in printed
        text = (results / "notebooks" / f"{name}.ipynb").read_text()
        assert str(Path.home()) not in text
        assert str(tmp_path) not in text
        assert any(path.name.startswith(name[:2]) for path in (results / "tables").iterdir())
    facts = json.loads((results / "provenance.json").read_text())
    assert {"train: nq-train", "data: nq", "model: potion-base-8m"} <= set(facts["fingerprints"])
    assert len(list((results / "figures").glob("*.png"))) >= 20
    assert {path.stem for path in (results / "scores").iterdir()} == set(settings.studies)
    ledger = pd.read_csv(results / "tables" / "10_claims.csv")
    verdicts = {"reproduced", "not reproduced", "undecided", "not testable here", "not run"}
    assert set(ledger["verdict"]) <= verdicts
    assert (ledger["verdict"].isin(verdicts - {"not run", "not testable here"})).sum() > 20
    first = tables(fresh)

    alone = fresh | {"NVRET_CACHE": str(tmp_path / "other"), "NVRET_RESULTS": str(tmp_path / "own")}
    (tmp_path / "other").mkdir()
    for kind in ("models", "datasets"):
        (tmp_path / "other" / kind).symlink_to(Path(fresh["NVRET_CACHE"]) / kind)
    command = ["papermill", f"notebooks/{ALONE}.ipynb", str(tmp_path / "out.ipynb")]
    subprocess.run(
        [sys.executable, "-m", *command, "-f", str(SMOKE), "-k", "python3", "--no-progress-bar"],
        cwd=ROOT, env=alone, check=True, timeout=600, capture_output=True,
    )  # fmt: skip
    second = tables(alone)
    assert second == {name: text for name, text in first.items() if name.startswith(ALONE[:2])}


def test_killed_at_any_moment_it_ends_with_the_same_tables(fresh, small, tmp_path):
    whole = fresh | {"NVRET_RESULTS": str(tmp_path / "whole")}
    started = time.monotonic()
    assert nvret("run", small, env=whole, stdout=subprocess.DEVNULL).wait(600) == 0
    length = time.monotonic() - started

    cache = tmp_path / "killed"
    cache.mkdir()
    for kind in ("models", "datasets"):
        (cache / kind).symlink_to(Path(fresh["NVRET_CACHE"]) / kind)
    killed = fresh | {"NVRET_CACHE": str(cache), "NVRET_RESULTS": str(tmp_path / "resumed")}
    moments = random.Random(0)
    for _ in range(2):
        process = nvret(
            "run", small, env=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        time.sleep(length * moments.uniform(0.2, 0.7))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert nvret("run", small, env=killed, stdout=subprocess.DEVNULL).wait(600) == 0
    assert tables(killed) == tables(whole)


def test_a_misspelt_key_stops_the_command_in_one_line(tmp_path):
    text = SMOKE.read_text().replace("near_duplicates:", "near_duplicate:")
    (tmp_path / "bad.yaml").write_text(text)
    done = nvret("run", tmp_path / "bad.yaml", env=os.environ, stderr=subprocess.PIPE, text=True)
    _, error = done.communicate(timeout=60)
    assert done.returncode == 2
    assert "mining.near_duplicate: unknown key, did you mean 'near_duplicates'?" in error
    assert "Traceback" not in error
