"""A notebook opened and run in JupyterLab, in a real browser."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from nvret.study.config import project_root

NOTEBOOK = "00_the_method.ipynb"
# The command behind the menu's "Run All Cells"; it ends when the last cell has
RUN = """
const done = arguments[arguments.length - 1];
const app = window.jupyterapp;
const panel = app.shell.currentWidget;
panel.context.ready
  .then(() => panel.sessionContext.ready)
  .then(() => app.commands.execute("notebook:run-all-cells"))
  .then(() => app.commands.execute("docmanager:save"))
  .then(() => done("done"), (error) => done(String(error)));
"""
OPEN = """
const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
return Boolean(widget && widget.sessionContext && widget.sessionContext.session);
"""


def _wait(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not after {seconds} seconds"
        time.sleep(0.2)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """A server's address, its token, and the folder of notebooks that it shows."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path / "checkout" / "notebooks"
    folder.mkdir(parents=True)
    notebook = nbformat.read(project_root() / "notebooks" / "study" / NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    first.source = 'profile = "smoke"'  # as a reader chooses another profile
    nbformat.write(notebook, folder / NOTEBOOK)
    shutil.copytree(project_root() / "params", folder.with_name("params"))
    token = secrets.token_hex(16)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": token,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": None,
    }
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    places = {name: str(tmp_path / name) for name in (*folders, "JUPYTERLAB_WORKSPACES_DIR")}
    results = {"NVRET_RESULTS": str(tmp_path / "results")}
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser"]
            + [f"--{name}={value}" for name, value in options.items()],
            env=os.environ | places | results,
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(lambda: server.poll() is not None or _answers(f"{address}/api"), 240)
            assert server.poll() is None, (tmp_path / "lab.log").read_text(errors="replace")
            yield address, token, folder
        finally:
            server.terminate()  # which ends its kernels
            server.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.notebook
@pytest.mark.xdist_group("browser")
def test_notebook_opens_and_runs_in_jupyterlab(browser, lab):
    address, token, folder = lab
    browser.set_script_timeout(240)
    browser.get(f"{address}/lab/tree/{NOTEBOOK}?token={token}&reset")
    _wait(lambda: browser.execute_script(OPEN), 240)
    assert browser.execute_async_script(RUN) == "done"

    executed = nbformat.read(folder / NOTEBOOK, as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert all(cell.execution_count for cell in cells)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    _wait(lambda: browser.execute_script(FIGURES), 30)


# JupyterLab draws the cells in view only
FIGURES = """
const panel = window.jupyterapp.shell.currentWidget.content;
panel.activeCellIndex = panel.widgets.findIndex(
  (cell) => cell.model.type === "code" &&
    cell.model.toJSON().outputs.some((output) => "image/png" in (output.data || {}))
);
panel.scrollToItem(panel.activeCellIndex);
return [...document.querySelectorAll(".jp-OutputArea img")].some((one) => one.naturalWidth > 0);
"""
