"""The book, built from a copy of ``docs/`` beside links to what it reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers import results

ROOT = Path(__file__).resolve().parents[2]
GENERATED = shutil.ignore_patterns("_build", "api", "results", "*.ipynb", "__pycache__")


def build(folder: Path) -> Path:
    """Write the book into ``folder/html`` and return that.

    What stands for `cpu` is the last notebook of `quick`; the ledgers are of synthetic results.
    """
    for name in ("nvret", "params", "examples", "notebooks"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=GENERATED)
    ours, theirs = folder / "results", ROOT / "results"
    (ours / "cpu" / "notebooks").mkdir(parents=True)
    (ours / "quick").mkdir()
    for name in ("benchmarks", "course", "quick/notebooks"):
        (ours / name).symlink_to(theirs / name)
    for profile in ("quick", "cpu"):
        for name in ("figures", "provenance.json"):
            (ours / profile / name).symlink_to(theirs / "quick" / name)
    last = max((theirs / "quick" / "notebooks").glob("*.ipynb"))
    shutil.copy(last, ours / "cpu" / "notebooks")
    results.save_ledger(ours, "quick", {"static: TopK-PercPos 95%": 0.1}, draw=0)
    results.save_ledger(ours, "cpu", {"static: TopK-PercPos 95%": -0.1}, draw=1)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", folder / "docs", folder / "html"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"the book cannot be built:\n{done.stdout}{done.stderr}")
    return folder / "html"
