"""The benchmarks run, agree with their peers, and end in a table, a figure and a page."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from benchmarks import gpu_check, harness, page
from benchmarks.table import BENCHMARKS, Benchmark, Target
from nvret.study.config import project_root
from nvret.utils.errors import NvretError

RESULTS = project_root() / "results" / "benchmarks"


def test_sides_take_turns_and_the_warm_up_is_not_kept():
    calls = []
    seconds = harness.interleaved({n: lambda n=n: calls.append(n) for n in "ab"}, 4)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}
    rounds = ["".join(calls[i : i + 2]) for i in range(0, 10, 2)]
    assert sorted(set(rounds)) == ["ab", "ba"]
    assert len(rounds) == 5


def test_memory_is_what_a_run_adds():
    """In a process of its own, which has no memory that was let go of before."""
    program = (
        "import numpy, torch\n"
        "from nvret.cost.calibration import extra_memory\n"
        "held = []\n"
        "run = lambda: held.append(numpy.ones(50 * 2**20, numpy.uint8))\n"
        "print(extra_memory(run, torch.device('cpu')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 45 < float(done.stdout) < 120, done.stderr


def test_ratios_are_taken_round_by_round(tmp_path):
    targets = [Target("ours", "theirs", 0.9), Target("ours", "theirs", 1.5)]
    benchmark = Benchmark("search", "Search", "", ["numpy"], {"key": targets})
    case = harness.Case("key", "work", {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 2.0]})
    harness.save(benchmark, [case], tmp_path, harness.load())
    rows = page.table(tmp_path)
    assert rows["ratio"].tolist() == [1.0, 1.0]
    assert rows["low"].tolist() == [0.75, 0.75]
    assert rows["high"].tolist() == [1.5, 1.5]
    assert rows["fastest"].tolist() == [0.5, 0.5]
    assert rows["met"].tolist() == [False, True]
    text = page.section(tmp_path, rows)
    processor, threads = (harness.machine.hardware()[key] for key in ("processor", "threads"))
    assert text.startswith(f"## {threads} threads of {processor}")
    assert "| work | theirs | 1 [0.75, 1.5] | 0.5 | ≤ 0.9 | **missed** |" in text
    assert "| work | theirs | 1 [0.75, 1.5] | 0.5 | ≤ 1.5 | met |" in text


def test_the_page_is_that_of_the_committed_results(tmp_path):
    """Results as they lie in the repository are read, and what is written from them is there."""
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/benchmarks.md"):
        shutil.copy(project_root() / name, tmp_path / name)
    shutil.copytree(RESULTS, tmp_path / "results")
    titles, found = {benchmark.title for benchmark in BENCHMARKS.values()}, set()
    for folder in (tmp_path / "results").iterdir():
        page.write(folder)
        kept = (RESULTS / folder.name / "table.csv").read_text()
        assert (folder / "table.csv").read_text() == kept
        found |= {benchmark["title"] for benchmark in page.results(folder).values()}
    assert found == titles - {BENCHMARKS["gpu"].title}  # a machine may have some of them
    page.publish(tmp_path / "results", tmp_path)
    for name in ("README.md", "docs/benchmarks.md"):
        assert (tmp_path / name).read_text() == (project_root() / name).read_text()
    with pytest.raises(NvretError, match="no results"):
        page.publish(tmp_path / "docs", tmp_path)


def test_machines_stand_side_by_side(tmp_path):
    """A second machine's results leave those of the first where they are."""
    known = sorted(folder.name for folder in RESULTS.iterdir())
    first = next(RESULTS.glob("*/bm25.json")).parent
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    shutil.copytree(first, tmp_path / "other")
    for path in (tmp_path / "other").glob("*.json"):
        facts = json.loads(path.read_text())
        facts["taken"] = "2999-01-01"
        facts["hardware"] |= {"processor": "Some Processor", "features": ["AVX2"]}
        for case in facts["cases"]:
            case["seconds"] = {side: [2.0] for side in case["seconds"]}
        path.write_text(json.dumps(facts))
    page.write(tmp_path / "other")
    tables = page.machines(tmp_path)
    assert next(iter(tables)).name == "other"  # the latest
    assert sorted(folder.name for folder in tables) == sorted([*known, "other"])
    text = page.text(tables)
    assert text.index("Some Processor (AVX2)") < text.index("Xeon")
    summary = page.summary(tables)
    assert f"targets met on {len(known) + 1} kinds of machine" in summary
    rows = pd.concat(tables.values())
    ratios = rows.loc[(rows["benchmark"] == "BM25") & (rows["quantity"] == "time"), "ratio"]
    assert f"BM25 {ratios.min():.2g} to {ratios.max():.2g}" in summary


@pytest.mark.parametrize(
    ("chosen", "ratios"),
    [
        (["search"], 12),
        pytest.param(["imports", "bm25", "search", "gpu"], 21, marks=pytest.mark.thorough),
    ],
)
def test_tiny_benchmarks_end_to_end(tmp_path, chosen, ratios):
    pages = [project_root() / "README.md", project_root() / "docs" / "benchmarks.md"]
    before = [path.read_bytes() for path in pages]
    command = [sys.executable, "-m", "benchmarks", *chosen, "--smoke"]
    subprocess.run(
        [*command, "--output", tmp_path], cwd=project_root(), check=True, capture_output=True
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(["ratios.png", "table.csv", *(f"{name}.json" for name in chosen)])
    found = json.loads((tmp_path / "search.json").read_text())
    assert found["versions"]["faiss-cpu"]
    assert "nvret" in found["cases"][0]["seconds"]
    assert len(pd.read_csv(tmp_path / "table.csv")) == ratios
    assert [path.read_bytes() for path in pages] == before


def test_the_check_of_a_gpu_compares_two_devices(monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.PATHS, "broken", (0.1, lambda device: 1 / 0))
    monkeypatch.setitem(gpu_check.PATHS, "far", (0.1, lambda device: 0.2))
    table = gpu_check.check("cpu", ["exact search under a ceiling", "broken", "far"])
    assert table["ok"].tolist() == [True, False, False]
    assert table["difference"].iloc[0] == 0
    assert "ZeroDivisionError" in capsys.readouterr().err
