"""What `import nvret` costs: torch and transformers are loaded when they are needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import Case, Target, interleaved

TITLE = "Import"
PACKAGES = ["nvret", "torch", "sentence-transformers"]


def cases(smoke: bool) -> list[Case]:
    """Each import in a fresh interpreter, against a second of waiting: the ratio is in seconds."""
    sides = {
        "one second": _starting("import time; time.sleep(1)"),
        "nvret": _starting("import nvret"),
        "nvret.mining": _starting("import nvret.mining"),
        "sentence_transformers": _starting("import sentence_transformers"),
    }
    seconds = interleaved(sides, 1 if smoke else 5)
    return [
        Case(
            "import in a fresh interpreter",
            seconds,
            [Target("nvret", "one second", 0.3)],
        )
    ]


def _starting(code: str) -> Callable[[], None]:
    def run() -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    return run
