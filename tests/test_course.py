"""The course: what a notebook promises, its folded solutions, and all of it executed."""

import os
import re

import nbformat
import pytest

from helpers import kernel
from nvret import assets
from nvret.study.config import project_root

COURSE = project_root() / "notebooks" / "course"
NAMES = sorted(path.stem for path in COURSE.glob("*.ipynb"))
LESSONS = [name for name in NAMES if not name.startswith("A0")]  # A0 is the map
ASSETS = ["nq", "potion-base-8m"]
LINES = 12  # of a cell; the first one holds imports and what figures need
SLOW = ["A6_train_in_a_minute"]  # takes longer than all others together


def read(name):
    return nbformat.read(COURSE / f"{name}.ipynb", as_version=4)


def sources(notebook, kind):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


@pytest.mark.parametrize("name", NAMES + [f"solutions/{name}" for name in LESSONS])
def test_sources_hold_no_output_and_short_cells(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    if "/" not in name:
        assert max(len(cell.source.splitlines()) for cell in code[1:]) <= LINES


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_asks_before_it_shows_and_ends_in_the_package_and_three_exercises(name):
    text = "\n".join(sources(read(name), "markdown"))
    for promise in ("**Question.**", "**You need.**", "**Time.**", "## What to keep"):
        assert promise in text
    assert text.count("**Predict before you run:**") >= 5
    assert "## The same in nvret" in text
    assert len(re.findall(r"^### Exercise \d", text, re.MULTILINE)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_is_divided_into_slides(name):
    """A question and its prediction on one, the code with its output below."""
    cells = read(name).cells
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in cells]
    exercises = [place for place, cell in enumerate(cells) if "## Exercises" in cell.source]
    shown = exercises[0] if exercises else len(cells)
    assert set(kinds[shown:]) <= {"skip"}
    for cell, kind in zip(cells[2:shown], kinds[2:shown], strict=True):
        heads = cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE)
        assert kind in (("slide",) if heads else ("subslide", "fragment"))


@pytest.mark.parametrize("name", LESSONS)
def test_folded_solutions_are_those_that_are_executed(name):
    text = "\n".join(sources(read(name), "markdown")).split("## Exercises", 1)[1]
    folded = re.findall(r"<details>.*?</details>", text, re.DOTALL)
    assert len(folded) >= 3
    blocks = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert blocks
    solutions = sources(read(f"solutions/{name}"), "code")
    for block in blocks:
        place = solutions.index(block)
        assert "assert" in solutions[place + 1]


@pytest.mark.parametrize("path", sorted((project_root() / "results/course").glob("*.ipynb")))
def test_what_the_book_shows_is_what_the_source_says(path):
    executed, source = nbformat.read(path, as_version=4), read(path.stem)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in source.cells]
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert outputs
    assert all(output.output_type != "error" for output in outputs)
    assert str(project_root()) not in path.read_text(encoding="utf-8")


@pytest.mark.notebook
@pytest.mark.parametrize(
    "names",
    [
        [name for name in NAMES if name not in SLOW],
        [f"solutions/{name}" for name in LESSONS if name not in SLOW],
        pytest.param([*SLOW, *(f"solutions/{name}" for name in SLOW)], marks=pytest.mark.thorough),
    ],
    ids=["lessons", "solutions", "slow"],
)
def test_the_course_runs_to_its_end(names, tmp_path):
    assets.fetch(ASSETS)
    paths = [f"course/{name}" for name in names]
    assert kernel.execute(paths, project_root(), tmp_path, {}, dict(os.environ)) == {}
