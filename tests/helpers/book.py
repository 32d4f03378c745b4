"""The book, built from a copy of ``docs/`` beside links to what it reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = shutil.ignore_patterns("_build", "api", "results", "__pycache__")


def build(folder: Path) -> Path:
    """Write the book into ``folder/html`` and return that; of `cpu` only its last notebook."""
    for name in ("nvret", "params", "examples"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=GENERATED)
    (folder / "results" / "cpu" / "notebooks").mkdir(parents=True)
    for name in ("quick", "benchmarks", "cpu/figures", "cpu/claims.json", "cpu/provenance.json"):
        (folder / "results" / name).symlink_to(ROOT / "results" / name)
    last = max((ROOT / "results" / "cpu" / "notebooks").glob("*.ipynb"))
    shutil.copy(last, folder / "results" / "cpu" / "notebooks")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", folder / "docs", folder / "html"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"the book cannot be built:\n{done.stdout}{done.stderr}")
    return folder / "html"
