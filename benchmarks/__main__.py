"""``python -m benchmarks``: run the comparisons, one process each, and write what came out."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import harness, page
from benchmarks.table import BENCHMARKS
from nvret.study.config import project_root
from nvret.utils import machine


def main() -> None:
    """Each benchmark has a process of its own, so that none finds another's memory or threads."""
    known = ", ".join(BENCHMARKS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {known}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--output", type=Path, help="of this machine; results/benchmarks/PROCESSOR")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    everything = project_root() / "results" / "benchmarks"
    folder = chosen.output or everything / page.of_machine(machine.hardware())
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}; expected {known}")
    if chosen.alone:
        harness.run(BENCHMARKS[chosen.names[0]], folder, chosen.smoke)
        return
    timed = [name for name, one in BENCHMARKS.items() if one.timed]
    for name in chosen.names or timed:
        print(f"{name} …", flush=True)
        command = [sys.executable, "-m", "benchmarks", name, "--alone", "--output", folder]
        subprocess.run([*map(str, command), *["--smoke"] * chosen.smoke], check=True)
    page.write(folder)
    if chosen.output is None and not chosen.smoke:
        page.publish(everything, project_root())


if __name__ == "__main__":
    main()
