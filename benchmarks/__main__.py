"""``python -m benchmarks``: run the comparisons, one process each, and write what came out."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from benchmarks import harness, page
from nvret.study.config import project_root

NAMES = ["imports", "search", "bm25", "encoding", "mining", "training"]


def main() -> None:
    """Each benchmark has a process of its own, so that none finds another's memory or threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--output", type=Path, default=project_root() / "results" / "benchmarks")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; expected {', '.join(NAMES)}")
    names = chosen.names or NAMES
    if chosen.alone:
        run(names[0], chosen.output, chosen.smoke)
        return
    for name in names:
        print(f"{name} …", flush=True)
        command = [sys.executable, "-m", "benchmarks", name, "--alone", "--output", chosen.output]
        subprocess.run([*map(str, command), *["--smoke"] * chosen.smoke], check=True)
    page.write(chosen.output, None if chosen.smoke else project_root() / "README.md")


def run(name: str, output: Path, smoke: bool) -> None:
    """One benchmark in this process."""
    benchmark = importlib.import_module(f"benchmarks.{name}")
    load = harness.load()
    cases = benchmark.cases(smoke)
    harness.save(output / f"{name}.json", benchmark.TITLE, cases, benchmark.PACKAGES, load)


if __name__ == "__main__":
    main()
