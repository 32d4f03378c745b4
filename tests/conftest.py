"""What several test files share: how deep and in which order they run, folders built once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; what a test starts inherits it

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import helpers

# `helpers.examples` scales the number that a test states: 100 here is all of it
hypothesis.settings.register_profile("ci", max_examples=20, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=100, deadline=None)
hypothesis.settings.load_profile("ci")  # another one: --hypothesis-profile=thorough

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# What takes longest starts first, so that no worker is left with it at the end
FIRST = ["notebooks", "processes", "browser"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of what is shared; workers and what they start find it by its name.

    One that is named before pytest starts is used and kept.
    """
    if helpers.SHARED not in os.environ:
        os.environ[helpers.SHARED] = tempfile.mkdtemp(prefix="nvret-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(helpers.SHARED)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="record results of new recipe versions")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests on one worker, unless a test names a group of its own."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            in_browser = "browser" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("browser" if in_browser else item.path.stem))

    def place(item: pytest.Item) -> int:
        group = item.get_closest_marker("xdist_group").args[0]
        return FIRST.index(group) if group in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Callable[..., Path]:
    """``shared(name, build)``: a folder that the first worker builds and all workers only read."""
    return helpers.shared


@pytest.fixture(scope="session")
def tiny_bert(shared: Callable[..., Path]) -> Path:
    """An untrained BERT of two narrow layers, with dropout and a real tokenizer."""
    from helpers import models

    return shared("tiny-bert", models.write_bert)


@pytest.fixture(scope="session")
def tiny_llama(shared: Callable[..., Path]) -> Path:
    """An untrained Llama of two narrow layers with a real tokenizer."""
    from helpers import models

    return shared("tiny-llama", models.write_llama)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Chromium with an empty profile: Debian's packages ``chromium`` and ``chromium-driver``."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver on the path")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*FLAGS, "--disable-dev-shm-usage", f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()
