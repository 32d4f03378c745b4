"""Compute a profile's stages, and execute its notebooks with papermill.

Each stage leaves its results in the store, where the next stage and the notebooks find them,
whoever computed them. (A notebook that is executed alone computes what it needs by itself.)
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from tqdm import tqdm

from nvret import assets
from nvret.study import claims, kernels, paths
from nvret.study.arms import Arm, arms
from nvret.study.config import Settings, project_root, read
from nvret.study.runs import Study, join, studies
from nvret.study.workspace import Workspace
from nvret.utils import machine, processes, store
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError, check_choice

CLAIMS = "10_claims"  # the notebook that reads what all others write
TEACHERS = "02_rq1_teachers"  # what says which teacher is the best
FOR_TWO = 7 << 30  # bytes that two processes need which train transformers
VERSIONS = [*paths.PACKAGES, "matplotlib", "pandas", "papermill", "scipy"]
# What several processes of ``torchrun`` share; evaluation is the notebooks' own
STAGES: dict[str, Callable[[Study, Arm, int], object]] = {
    "encode": Study.encode,
    "mine": Study.negatives,
    "train": Study.model,
}


def compute(settings: Settings, stage: str, names: Sequence[str] | None = None) -> int:
    """Do one stage for every arm and seed of these notebooks' studies, or of all.

    Args:
        stage: a key of ``STAGES``.
        names: notebooks, without ``.ipynb``; None: the profile's.
    Returns:
        the number of arms to train, times seeds. What is in the store is not done again.
    """
    names = settings.notebooks if names is None else names
    first = processes.is_main_process()
    if first:  # one process downloads and converts
        assets.fetch(assets_of(settings, names))
    processes.barrier()
    chosen = studies(Workspace(settings, progress=first), names)
    todo = [(study, arm, seed) for seed in settings.seeds for study in chosen
            for arm in study.arms
            if arm.trained and seed in settings.seeds_of(arm.student, study.name)]  # fmt: skip
    for study, arm, seed in progress_bar(todo, desc=stage, unit="arm", show=first):
        STAGES[stage](study, arm, seed)
    return len(todo)


def run(
    settings: Settings, values: dict[str, Any], names: Sequence[str], *, again: bool = False
) -> None:
    """Execute notebooks into ``results/<profile>/notebooks``.

    Each study runs here, under progress bars with the time left. Its notebook is then executed in
    a kernel, while the next study runs. On a CPU with memory enough a study has a helper
    (`nvret.study.runs.Study.run`), and two notebooks are executed at a time. An executed notebook
    is kept in the store with the tables and figures that it wrote; where nothing has changed that
    it rests on, it is copied.

    Args:
        values: the file that ``settings`` was read from; injected into every notebook, or where
            it is ``params/<profile>.yaml``, the profile's name alone.
        names: notebooks, without ``.ipynb``.
        again: execute all of them.
    Raises:
        NvretError: no such notebook; a notebook that failed, with the last line of its error.
    """
    root, folder = project_root(), paths.results_folder(settings)
    known = sorted(path.stem for path in (root / "notebooks" / "study").glob("*.ipynb"))
    for name in names:
        check_choice("notebook", name, known)
    usual = root / "params" / f"{settings.profile}.yaml"
    if usual.is_file() and read(usual) == values:
        values = {"profile": settings.profile}
    started, began = time.monotonic(), time.time()
    before = set(psutil.Process().children(recursive=True))
    kernels.use()
    workspace, needed = Workspace(settings), assets_of(settings, names)
    assets.fetch(needed)
    hashes = workspace.fingerprints(needed)
    rest = _rests_on(root, values, hashes)
    by_name = {study.name: study for study in studies(workspace, names)}
    # torch's threads do not survive a fork of this process
    of_helper = settings, dict(os.environ)
    beside = ProcessPoolExecutor(1, kernels.context(), join, of_helper)  # begins when it is asked
    shared = settings.device == "cpu" and torch.get_num_threads() > 1
    shared &= psutil.virtual_memory().available > FOR_TWO
    with ThreadPoolExecutor(1 + shared) as pool, beside:
        todo: dict[str, Future[Path]] = {}
        try:
            left = list(names)
            while left:
                left.remove(name := _next(left, todo))
                for one in _before(name, todo):
                    one.result()
                kept = store.cache_dir() / "notebooks" / _key(name, folder, rest)
                if not again and store.find(kept):
                    _copy(filter(Path.is_file, kept.rglob("*")), kept, folder)
                    _say(started, folder / "notebooks" / f"{name}.ipynb")
                    continue
                if name in by_name:
                    by_name[name].run(beside if shared else None)
                todo[name] = pool.submit(_execute, name, root, folder, values, kept, began)
                todo[name].add_done_callback(partial(_executed, started))
                for one in filter(Future.done, todo.values()):  # an error ends the others
                    one.result()
            for one in todo.values():
                one.result()
        except BaseException:
            for one in (pool, beside):
                one.shutdown(wait=False, cancel_futures=True)
            while True:  # a thread ends with its kernel, which may begin only now
                for child in set(psutil.Process().children(recursive=True)) - before:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.terminate()
                if all(one.done() for one in todo.values()):
                    raise
                time.sleep(0.1)
    # A notebook outside of the profile's own, or one that was copied, has not made its results
    known = paths.provenance_path(settings).is_file()
    if made := [name for name in settings.notebooks if name in (todo if known else names)]:
        paths.save_provenance(settings, made, hashes, time.monotonic() - started)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    for kind in ("figures", "tables"):
        print(f"  {kind}: {os.path.relpath(folder / kind)}{os.sep}")
        for path in sorted((folder / kind).glob("*.*")):
            print(f"    {path.name}")


def _rests_on(root: Path, values: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """What every executed notebook rests on, beside its own source."""
    files = [*(root / "nvret").rglob("*.py"), *(root / "results" / "paper").glob("*.csv")]
    files.append(root / "params" / "claims.yaml")
    return {
        "values": values,
        "assets": hashes,
        "files": {path.relative_to(root).as_posix(): store.fingerprint(path) for path in files},
        "versions": machine.versions(VERSIONS),
        "hardware": machine.hardware(),
    }


def _reads(name: str) -> list[str]:
    """The results of other notebooks that a notebook reads, as patterns within a profile's."""
    if name == CLAIMS:
        return ["scores/*", "tables/*"]
    own = [one for one in claims.load().claims if getattr(one, "study", None) == name]
    best = any("'best'" in str(one.model_dump()) for one in own)  # of teachers, by their own scores
    return ["tables/02_teachers.csv"] * (best and name != TEACHERS)


def _before(name: str, todo: dict[str, Future[Path]]) -> list[Future[Path]]:
    """What is being executed and writes what a notebook reads."""
    if not _reads(name):
        return []
    return [one for other, one in todo.items() if name == CLAIMS or other == TEACHERS]


def _next(left: Sequence[str], todo: dict[str, Future[Path]]) -> str:
    """The first of the notebooks left that waits for none; ``CLAIMS`` comes after all before it."""
    early = itertools.takewhile(lambda name: name != CLAIMS, left)
    ready = (name for name in early if all(one.done() for one in _before(name, todo)))
    return next(ready, left[0])


def _key(name: str, folder: Path, rest: dict[str, Any]) -> str:
    """Of an executed notebook in the store."""
    found = sorted(path for pattern in _reads(name) for path in folder.glob(pattern))
    others = {path.name: store.fingerprint(path) for path in found if path.name[:2] != name[:2]}
    source = project_root() / "notebooks" / "study" / f"{name}.ipynb"
    return store.fingerprint(source, rest, others)


def _execute(
    name: str, root: Path, folder: Path, values: dict[str, Any], kept: Path, began: float
) -> Path:
    """`execute`, and keep what was written for the notebook since the time ``began``."""
    target = execute(name, root, folder, values)
    own = [f"notebooks/{name}.ipynb", f"scores/{name}.parquet", f"*/{name[:2]}_*.*"]
    own += ["claims.json"] * (name == CLAIMS)
    found = {path for pattern in own for path in folder.glob(pattern)}
    with store.atomic_folder(kept) as new:
        if new is not None:
            _copy((path for path in found if path.stat().st_mtime >= began), folder, new)
    return target


def _copy(files: Iterable[Path], source: Path, target: Path) -> None:
    """Files below one folder to the same places below another."""
    for path in files:
        with store.atomic_file(target / path.relative_to(source)) as partial:
            shutil.copyfile(path, partial)


def _executed(started: float, notebook: Future[Path]) -> None:
    if not notebook.cancelled() and not notebook.exception():
        _say(started, notebook.result())


def _say(started: float, target: Path) -> None:
    """Where an executed notebook lies."""
    minutes = (time.monotonic() - started) / 60
    tqdm.write(f"{os.path.relpath(target)}, after {minutes:.1f} minutes")


def execute(name: str, root: Path, results: Path, values: dict[str, Any]) -> Path:
    """Execute one notebook; its output appears under its name only when it ran to the end."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # Every notebook gets the whole profile, and papermill warns of each key that a notebook's
    # parameters cell does not repeat; `nvret.study.config` checks the keys instead
    logging.getLogger("papermill").setLevel(logging.ERROR)
    target = results / "notebooks" / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    output = target.with_name(f".{name}.partial.ipynb")  # papermill insists on the suffix
    source = Path("notebooks") / "study" / f"{name}.ipynb"
    try:
        papermill.execute_notebook(
            str(root / source),
            str(output.absolute()),
            parameters=values,
            kernel_name="python3",
            request_save_on_cell_execute=False,
            progress_bar=False,  # it would write over the study's
            extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
            # The kernel's folder; papermill's own way moves this process, of which this is a thread
            resources={"metadata": {"path": str(root)}},
        )
        executed = nbformat.read(output, as_version=4)
    except PapermillExecutionError as error:
        raise NvretError(f"{source}: {error.ename}: {error.evalue}") from error
    finally:
        output.unlink(missing_ok=True)
    # papermill records absolute paths, which are of no use on another machine
    executed.metadata["papermill"] |= {"input_path": source.as_posix(), "output_path": target.name}
    with store.atomic_file(target) as partial:
        nbformat.write(executed, partial)
    return target


def assets_of(settings: Settings, names: Sequence[str] | None = None) -> list[str]:
    """Names of the data sets and models that these notebooks of a profile need, or all do."""
    names = settings.notebooks if names is None else names
    needed = [settings.data.train, settings.teacher]
    for student in settings.students.values():  # what is tested on is kept out of all training
        needed += student.out_of_domain
    for corpus in settings.data.corpora.values():
        needed += corpus.others
    for name in names:
        for arm in arms(settings, name) if name in settings.studies else []:
            needed += [settings.students[arm.student].model, *arm.teachers, *arm.sets]
        if name == "01_data":
            needed += [teacher.name for teacher in settings.teachers]
        if name in ("09_false_negatives", "13_hardness"):
            needed += [*settings.audit.datasets, settings.audit.teacher, *settings.audit.judges]
        if name == "12_inspect":
            needed += ["squadshifts-nyt", "potion-base-8m"]
    return [name for name in dict.fromkeys(needed) if name != "bm25"]
