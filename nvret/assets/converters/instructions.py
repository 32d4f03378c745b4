"""BIG-bench's copy of Natural Instructions: a task file is a list of inputs with their targets.

Source: Mishra et al., arXiv 2104.08773.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from nvret.assets.converters.tables import one_line
from nvret.utils.errors import NvretError


def read(path: Path, pattern: re.Pattern[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """The groups of ``pattern`` in each input, and the input's targets; all on one line each.

    Raises:
        NvretError: an input that the pattern does not match whole.
    """
    rows = []
    for row, example in enumerate(json.loads(path.read_text(encoding="utf-8"))["examples"]):
        found = pattern.fullmatch(example["input"])
        if found is None:
            said = example["input"][:60]
            raise NvretError(
                f"{path.name}: example {row} is {said!r}…; expected {pattern.pattern!r}"
            )
        targets = [one_line(target) for target in example["target"]]
        rows.append((tuple(map(one_line, found.groups())), targets))
    return rows
