"""The card of a data set of mined negatives, and its way to the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nvret import __version__
from nvret.utils.errors import NvretError

HEAD = """---
# The licence is that of your queries and passages; only you know it
license: other
tags:
- hard-negatives
- nvret
---
"""


def card(name: str, facts: dict[str, Any], records: int, layout: str) -> str:
    """Markdown with the hub's head: what mined the negatives, and how many there are.

    Args:
        name: of the data set.
        facts: the table's provenance.
        records: of the file.
        layout: its format.
    """
    method, teachers = facts["method"], facts.get("teachers", [facts])
    parameters = ", ".join(f"{key} {value:g}" for key, value in method["parameters"].items())
    rows = {
        "rule": f"`{method['name']}` {parameters}".strip(),
        "teacher": ", ".join(f"`{one['teacher']}`" for one in teachers),
        "prompts": json.dumps(facts.get("prompts"), ensure_ascii=False),
        "negatives of each pair": facts["num_negatives"],
        "pairs of query and positive": f"{facts['pairs']:,}",
        "pairs with fewer": f"{facts['pairs_short']:,}, {facts['pairs_empty']:,} with none",
        "copies of a positive from a similarity of": facts["near_duplicates"],
        "copies of another negative from": facts.get("distinct"),
        "rate of false negatives": "not measured; see `nvret inspect` and `nvret calibrate`",
        "layout": f"{layout}, {records:,} records",
    }
    if opinion := facts.get("second_opinion"):
        rows["second opinion"] = f"`{opinion['judge']}`, {opinion['dropped']:,} called relevant"
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return (
        f"{HEAD}\n# Hard negatives: {name}\n\nMined by nvret {__version__} with positive-aware "
        "rules (NV-Retriever, arXiv 2407.15831).\n\n| | |\n|---|---|\n" + "\n".join(lines)
        + "\n\nThe exact provenance is in `provenance.json`.\n"
    )  # fmt: skip


def push(path: Path, repository: str, text: str, facts: dict[str, Any]) -> str:
    """Upload a file with its card to a data set of the hub, which is private if it is made now.

    Returns:
        its address.
    Raises:
        NvretError: the hub refuses.
    """
    from huggingface_hub import HfApi

    files = {
        f"data/train{Path(path).suffix}": path,
        "README.md": text.encode(),
        "provenance.json": json.dumps(facts, indent=1, sort_keys=True).encode(),
    }
    try:
        api = HfApi()
        address = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        for name, content in files.items():
            api.upload_file(
                path_or_fileobj=content, path_in_repo=name, repo_id=repository, repo_type="dataset"
            )
    except Exception as error:  # the hub client raises many kinds
        reason = str(error).splitlines()[0]
        raise NvretError(f"--push-to-hub {repository}: {reason}; {path} is written") from error
    return str(address)
