"""Notebooks executed one after the other in a single warm kernel, as papermill would in many."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

# What one notebook leaves behind, the next does not see; what it imported stays loaded
FORGET = """
import matplotlib.pyplot, pandas, warnings
with warnings.catch_warnings(action="ignore"):
    pandas.reset_option("all")
matplotlib.pyplot.close("all")
%reset -f
"""


def execute(
    names: Iterable[str], root: Path, output: Path, values: dict[str, Any], env: dict[str, str]
) -> dict[str, str]:
    """Execute notebooks with a profile's values and write each, whole or as far as it came.

    Args:
        names: of studies, or with their folder below ``notebooks``; without ``.ipynb``.
        root: of the project; the kernel's working directory.
        output: folder of the executed notebooks.
        values: what papermill would inject.
        env: the kernel's environment.
    Returns:
        for each notebook that failed, the number of the cell, its source and its error.
    Raises:
        AssertionError: the kernel died; the notebook is named.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)  # keys that a notebook does not repeat
    return asyncio.run(_execute(names, root, output, values, env))


async def _execute(
    names: Iterable[str], root: Path, output: Path, values: dict[str, Any], env: dict[str, str]
) -> dict[str, str]:
    # The asynchronous manager, as nbclient waits for ever for a dead kernel of the other one
    failures, manager = {}, AsyncKernelManager(kernel_name="python3")
    options = ["--IPKernelApp.log_level=40"]  # errors only
    await manager.start_kernel(env=env, cwd=str(root), extra_arguments=options)
    try:
        for name in names:
            path = name if "/" in name else f"study/{name}"
            source = load_notebook_node(str(root / "notebooks" / f"{path}.ipynb"))
            notebook = parameterize_notebook(source, values)
            try:
                await NotebookClient(notebook, km=manager, timeout=1800).async_execute()
            except CellExecutionError as error:
                failures[name] = f"{name}: cell {_failed(notebook)}: {error}"
            except DeadKernelError as error:
                raise AssertionError(f"{name}: {error}") from error
            target = output / f"{name}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, target)
            forget = new_notebook(cells=[new_code_cell(FORGET)])
            await NotebookClient(forget, km=manager, timeout=600).async_execute()
    finally:
        await manager.shutdown_kernel(now=True)
    return failures


def _failed(notebook: nbformat.NotebookNode) -> int:
    """Number of the cell, code and text alike, from 1, whose output is an error."""
    for number, cell in enumerate(notebook.cells, 1):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return number
    return 0
