"""The notebooks end to end on the smoke profile: in a kernel, by papermill, killed and resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import yaml

from helpers import kernel
from nvret import assets, cli
from nvret.study import config, notebooks
from nvret.study.verdicts import VERDICTS
from nvret.utils import store

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"
ALONE = "05_rq3_sampling"  # a study that takes little
CLAIMS = "10_claims"  # what comes after all studies
WAIT = 1800  # seconds, for what takes one minute on an idle machine
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks" / "study").glob("*.ipynb"))
EXECUTED = sorted(path.stem for path in (ROOT / "results/quick/notebooks").glob("*.ipynb"))
COST = "11_cost"  # measures this machine, which takes long: test_costs.py executes it
WARM = [name for name in NOTEBOOKS if name not in (ALONE, CLAIMS, COST)]


def environment(folder):
    """The fetched assets, and nothing that was computed from them."""
    cache = folder / "cache"
    cache.mkdir(parents=True)
    for kind in ("models", "datasets"):
        (store.cache_dir() / kind).mkdir(parents=True, exist_ok=True)
        (cache / kind).symlink_to(store.cache_dir() / kind)
    return places(folder)


def places(folder):
    own = {"NVRET_CACHE": str(folder / "cache"), "NVRET_RESULTS": str(folder / "results")}
    return os.environ | own


def nvret(*arguments, env, **options):
    command = [sys.executable, "-m", "nvret", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, **options)


def tables(folder):
    found = (folder / "results" / "smoke" / "tables").glob("*.csv")
    return {path.name: path.read_text() for path in sorted(found)}


@pytest.fixture(scope="session")
def fetched():
    """The assets of the profile, in the real cache."""
    return assets.fetch(notebooks.assets_of(config.load(SMOKE)))


@pytest.fixture(scope="session")
def smoke(shared, fetched):
    """A folder with the cache and the results of the notebooks ``WARM``, from one kernel."""

    def build(folder):
        output = folder / "results" / "smoke" / "notebooks"
        env = environment(folder)
        failures = kernel.execute(WARM, ROOT, output, config.read(SMOKE), env)
        (folder / "failures.json").write_text(json.dumps(failures))

    return shared("smoke", build)


@pytest.fixture(scope="module")
def printed(smoke):
    """What the command says that executes the two notebooks which ``smoke`` leaves out."""
    command = ["run", SMOKE, "--only", ALONE, "--only", CLAIMS]
    done = nvret(*command, env=places(smoke), stdout=subprocess.PIPE, text=True)
    said, _ = done.communicate(timeout=WAIT)
    assert done.returncode == 0
    return said


@pytest.fixture(scope="session")
def alone(shared, fetched):
    """A folder with what plain papermill made of one notebook, which computed all it needs."""

    def build(folder):
        command = ["papermill", f"notebooks/study/{ALONE}.ipynb", str(folder / "out.ipynb")]
        done = subprocess.run(
            [sys.executable, "-m", *command, "-f", SMOKE, "-k", "python3", "--no-progress-bar"],
            cwd=ROOT, env=environment(folder), timeout=WAIT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    return shared("alone", build)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_sources_hold_no_output_and_no_function(name):
    notebook = nbformat.read(ROOT / "notebooks" / "study" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert not any(line.startswith("def ") for cell in code for line in cell.source.splitlines())
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


@pytest.mark.parametrize("name", EXECUTED)
def test_the_executed_copy_is_what_the_source_says(name):
    """Cell by cell, with the profile's name as the only thing that papermill puts in."""
    executed = nbformat.read(ROOT / "results/quick/notebooks" / f"{name}.ipynb", as_version=4)
    source = nbformat.read(ROOT / "notebooks" / "study" / f"{name}.ipynb", as_version=4)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert [cell.source for cell in injected] == ['# Parameters\nprofile = "quick"\n']
    cells = [cell for cell in executed.cells if cell not in injected]
    assert [(c.cell_type, c.source) for c in cells] == [
        (c.cell_type, c.source) for c in source.cells
    ]
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error"
        plain = output.get("data", {}).get("text/plain", "")
        assert "Styler at 0x" not in plain or "text/html" in output["data"]
        assert output.get("name") != "stderr" or "%|" not in output.get("text", "")


def test_tables_are_shown_escaped():
    """pandas' own style puts texts into the page as they are."""
    for path in [*(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "nvret").rglob("*.py")]:
        text = path.read_text(encoding="utf-8").replace("``frame.style``", "")
        assert not re.search(r"(?<!row)(?<!formats)\.style\b", text), path


@pytest.mark.notebook
@pytest.mark.xdist_group("notebooks")
@pytest.mark.parametrize("name", WARM)
def test_a_notebook_runs_to_its_end(smoke, name):
    failures = json.loads((smoke / "failures.json").read_text())
    assert name not in failures, failures[name]
    path = smoke / "results" / "smoke" / "notebooks" / f"{name}.ipynb"
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    text = path.read_text()
    assert str(Path.home()) not in text
    assert str(smoke) not in text
    if name in config.load(SMOKE).notebooks:
        assert any(table.startswith(name[:2]) for table in tables(smoke))


@pytest.mark.notebook
@pytest.mark.xdist_group("notebooks")
def test_the_command_ends_the_study_and_gives_the_tables_of_plain_papermill(smoke, printed, alone):
    results = smoke / "results" / "smoke"
    for name in (ALONE, CLAIMS):
        assert f"{name}.ipynb" in printed
        executed = nbformat.read(results / "notebooks" / f"{name}.ipynb", as_version=4)
        assert executed.metadata["papermill"]["input_path"] == f"notebooks/study/{name}.ipynb"
        text = (results / "notebooks" / f"{name}.ipynb").read_text()
        assert str(Path.home()) not in text
        assert str(smoke) not in text
    (facts,) = json.loads((results / "provenance.json").read_text())["runs"]
    assert facts["notebooks"] == [ALONE, CLAIMS]
    assert set(facts["seconds_by_stage"]) >= {"training", "testing"}
    assert sum(facts["seconds_by_stage"].values()) <= facts["seconds"] + 10  # each is rounded
    assert {"train: nq-train", "data: nq", "model: potion-base-8m"} <= set(facts["fingerprints"])
    assert len(list((results / "figures").glob("*.png"))) >= 20
    assert {path.stem for path in (results / "scores").iterdir()} == set(config.load(SMOKE).studies)
    ledger = pd.read_csv(results / "tables" / "10_claims.csv")
    assert set(ledger["verdict"]) <= set(VERDICTS)
    assert (~ledger["verdict"].isin(["not run", "not testable here"])).sum() > 20
    own = {name: text for name, text in tables(smoke).items() if name.startswith(ALONE[:2])}
    assert own
    assert tables(alone) == own


@pytest.mark.notebook
@pytest.mark.xdist_group("notebooks")
def test_a_second_run_copies_what_it_would_execute(smoke, printed):
    """To the byte, with the times that papermill noted."""
    results = smoke / "results" / "smoke"
    own = [path for name in (ALONE, CLAIMS) for path in results.glob(f"*/{name[:2]}_*.*")]
    own += [results / "claims.json", results / "provenance.json"]
    before = {path: path.read_bytes() for path in own}
    assert {path.parent.name for path in before} >= {"notebooks", "tables", "figures", "scores"}
    for path in own[:-1]:
        path.unlink()
    command = ["run", SMOKE, "--only", ALONE, "--only", CLAIMS]
    assert nvret(*command, env=places(smoke), stdout=subprocess.DEVNULL).wait(WAIT) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_what_an_executed_notebook_rests_on_is_in_its_key(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "02_teachers.csv").write_text("a")
    rest = notebooks._rests_on(ROOT, {"seeds": [0]}, {"data: nq": "1"})
    assert "nvret/mining.py" in rest["files"]
    assert "params/claims.yaml" in rest["files"]
    name = "03_rq2_ensembles"
    first = notebooks._key(name, tmp_path, rest)
    assert notebooks._key(name, tmp_path, rest) == first
    others = [rest | {"values": {}}, rest | {"assets": {}}, rest | {"files": {}}]
    keys = [notebooks._key(name, tmp_path, other) for other in others]
    keys += [notebooks._key(other, tmp_path, rest) for other in (CLAIMS, ALONE)]
    (tables / "02_teachers.csv").write_text("b")
    keys.append(notebooks._key(name, tmp_path, rest))
    assert len({first, *keys}) == 1 + len(keys)
    assert notebooks._reads(CLAIMS)
    assert notebooks._reads("06_rq3_methods") == []


def test_a_notebook_that_waits_for_another_lets_the_next_one_pass():
    names = ["03_rq2_ensembles", "04_rq3_thresholds", CLAIMS, ALONE]
    teachers, other = Future(), Future()
    todo = {"02_rq1_teachers": teachers, "00_the_method": other}
    assert notebooks._next(names, {}) == names[0]
    assert notebooks._next(names, todo) == names[1]
    assert notebooks._next([names[0], *names[2:]], todo) == names[0]  # none comes before the claims
    teachers.set_result(None)
    assert notebooks._next(names, todo) == names[0]
    assert notebooks._before(CLAIMS, todo) == [teachers, other]
    assert notebooks._next(names[2:], todo) == CLAIMS


@pytest.mark.notebook
@pytest.mark.xdist_group("processes")
def test_stopped_three_times_the_command_ends_with_the_same_tables(alone, fetched, tmp_path):
    """Killed while it trains, and while it executes the notebook; then interrupted there."""
    values = config.read(SMOKE)
    values |= {"studies": {ALONE: values["studies"][ALONE]}, "notebooks": [ALONE]}
    profile = tmp_path / "small.yaml"
    profile.write_text(yaml.safe_dump(values))
    env = environment(tmp_path)
    tested = tmp_path / "cache" / "scores"
    notebook = tmp_path / "results" / "smoke" / "notebooks" / f"{ALONE}.ipynb"

    def executes():
        return tables(tmp_path)

    def heard():  # also where whoever runs the tests ignores it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    moments = [(lambda: len(list(tested.glob("[!.]*"))) >= 2, signal.SIGKILL)]
    moments += [(executes, signal.SIGKILL), (executes, signal.SIGINT)]
    for reached, kind in moments:
        for path in (tmp_path / "results").rglob("*.csv"):
            path.unlink()
        own = {"start_new_session": True, "preexec_fn": heard}
        quiet = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        process = nvret("run", profile, env=env, **own, **quiet)
        end = time.monotonic() + WAIT
        while not reached():
            assert process.poll() is None, "ended before it could be stopped"
            assert time.monotonic() < end
            time.sleep(0.01)
        begun = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, kind)
        assert process.wait(WAIT) == (130 if kind == signal.SIGINT else -kind)
        assert not psutil.wait_procs(begun, timeout=60)[1]  # neither helper nor kernel
        assert not notebook.exists()
    assert nvret("run", profile, env=env, stdout=subprocess.DEVNULL).wait(WAIT) == 0
    assert notebook.exists()
    assert tables(tmp_path) == tables(alone)


def test_a_misspelt_key_stops_the_command_in_one_line(tmp_path, capsys):
    text = SMOKE.read_text().replace("near_duplicates:", "near_duplicate:")
    (tmp_path / "bad.yaml").write_text(text)
    assert cli.main(["run", str(tmp_path / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert "mining.near_duplicate: unknown key, did you mean 'near_duplicates'?" in error
    assert "Traceback" not in error
