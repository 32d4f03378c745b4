"""What `import nvret` costs: torch and transformers are loaded when they are needed."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.harness import Case, interleaved
from nvret.cost.calibration import Run


def cases(smoke: bool) -> list[Case]:
    """Each import in a fresh interpreter, against a second of waiting: the ratio is in seconds."""
    sides = {
        "one second": _python("import time; time.sleep(1)"),
        "nvret": _python("import nvret"),
        "nvret.mining": _python("import nvret.mining"),
        "sentence_transformers": _python("import sentence_transformers"),
    }
    seconds = interleaved(sides, 1 if smoke else 3)
    return [Case("import", "import in a fresh interpreter", seconds)]


def _python(code: str) -> Run:
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)
