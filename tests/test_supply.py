"""What is installed and run: lock files, extras, environments, code that comes with a model."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nvret.encode import Encoder
from nvret.utils.errors import NvretError

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
LOCK, STUDY = "requirements.lock", "requirements-study.lock"
FAISS = {"faiss-cpu", "faiss-gpu"}
PLATFORMS = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]
PYTHONS = ["3.11", "3.12", "3.13"]


def locked(name: str) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a lock file, with its hashes."""
    text = re.sub(r"#.*", "", (ROOT / name).read_text(encoding="utf-8")).replace("\\\n", " ")
    rows = [line.split("--hash=") for line in text.splitlines() if line.strip()]
    return [(Requirement(first.strip()), [h.strip() for h in hashes]) for first, *hashes in rows]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda p: "-".join(p.values()))
def test_the_locks_hold_each_dependency_once_and_in_a_version_that_fits(platform, python):
    environment = {
        **platform,
        "os_name": "posix",
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    pins = {}
    for requirement, _ in locked(LOCK) + locked("requirements-torch.lock"):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is locked twice"
            ((pin),) = requirement.specifier
            assert pin.operator == "=="
            pins[name] = pin.version
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for line in itertools.chain(
        wanted, *(lines for extra, lines in EXTRAS.items() if extra != "gpu")
    ):
        requirement = Requirement(line)
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{line}: not locked; `make lock`"
        assert version in requirement.specifier, f"{line}: locked as {version}; `make lock`"


def test_all_but_torch_is_locked_with_hashes():
    for requirement, hashes in locked(LOCK):
        assert hashes, f"{requirement}: no hash"
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), requirement
    ((torch, hashes),) = locked("requirements-torch.lock")
    assert (torch.name, hashes) == ("torch", [])


def test_what_a_study_needs_is_a_part_of_the_lock():
    study, whole = (
        {(canonicalize_name(r.name), str(r.specifier), *hashes) for r, hashes in locked(name)}
        for name in (STUDY, LOCK)
    )
    assert study < whole, "`make lock`"
    found = {name for name, *_ in study}
    needed = names([*PYPROJECT["project"]["dependencies"], *EXTRAS["packaged"], *EXTRAS["build"]])
    assert needed - {"torch"} <= found
    others = itertools.chain(*(EXTRAS[extra] for extra in EXTRAS.keys() - {"packaged", "build"}))
    assert not names(list(others)) & found


def test_the_lock_brings_no_cuda_and_names_no_index():
    """A machine without a GPU takes CPU wheels; CUDA comes with the PyTorch that needs it."""
    text = (ROOT / LOCK).read_text(encoding="utf-8")
    cuda = re.findall(r"^(?:torch|triton|cuda-|nvidia-).*?==", text, re.M)
    assert not cuda, f"{cuda}: to be added to CUDA in the Makefile"
    assert "://" not in text
    assert "index" not in re.sub(r"^\S+==.*", "", text, flags=re.M)


def test_the_hashes_are_of_other_platforms_too():
    """numpy has a wheel for each platform and Python: no lock of one machine."""
    (numpy,) = [hashes for requirement, hashes in locked(LOCK)
                if requirement.name == "numpy"]  # fmt: skip
    assert len(numpy) > len(PLATFORMS) * len(PYTHONS)


def blocks(lock):
    """A requirement and its hashes each, without comments."""
    return re.findall(r"^[^ #\n].*\n(?: .*\n)*", lock, re.MULTILINE)


@pytest.mark.parametrize(("stamp", "lock"), [(".installed", LOCK), (".study", STUDY)])
def test_make_checks_the_hashes(tmp_path, stamp, lock):
    command = ["make", "-n", f"{tmp_path}/{stamp}", f"VENV={tmp_path}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in shown.splitlines() if " install " in line]
    (cut,) = [line for line in shown.splitlines() if line.startswith("awk ")]
    subprocess.run(cut, shell=True, cwd=ROOT, check=True)
    halves = [tmp_path / f".half{number}.lock" for number in range(2)]
    for half in halves:
        assert any(f"--require-hashes --no-deps -r {half}" in line for line in installs)
    found = [block for half in halves for block in blocks(half.read_text())]
    assert sorted(found) == sorted(blocks((ROOT / lock).read_text()))
    # Built with the locked hatchling, not with what an index serves that day
    assert any("--no-build-isolation --editable ." in line for line in installs)


def test_a_study_needs_nothing_more_where_all_is_installed(tmp_path):
    def first_line():
        command = ["make", "--no-print-directory", "-n", "reproduce", f"VENV={tmp_path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    run = f"{tmp_path}/bin/nvret run params/quick.yaml"
    assert first_line() != run
    (tmp_path / ".study").touch()
    assert first_line() == run
    (tmp_path / ".study").unlink()
    (tmp_path / ".installed").touch()
    assert first_line() == run


def test_one_extra_alone_brings_each_faiss():
    """faiss-cpu and faiss-gpu install the same module, so that every other extra goes with both."""
    brought = {extra: names(lines) & FAISS for extra, lines in EXTRAS.items()}
    assert brought.pop("faiss") == {"faiss-cpu"}
    assert brought.pop("gpu") == {"faiss-gpu"}
    assert not any(brought.values()), brought
    assert not names(PYPROJECT["project"]["dependencies"]) & FAISS


@pytest.mark.parametrize(
    ("file", "expected"), [("environment.yml", "faiss-cpu"), ("environment-gpu.yml", "faiss-gpu")]
)
def test_an_environment_brings_one_faiss(file, expected):
    content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["dependencies"]
    (inner,) = [part["pip"] for part in content if isinstance(part, dict)]
    lines = [part.replace("=3.12", "==3.12") for part in content if isinstance(part, str)]
    (own,) = [line for line in inner if line.startswith("-e ")]
    for extra in re.fullmatch(r"-e \.\[(.+)\]", own)[1].split(","):
        lines += EXTRAS[extra]
    brought = names(lines + [line for line in inner if line != own])
    assert brought & FAISS == {expected}
    assert brought >= {
        "jupyterlab", "papermill", "torch", "transformers", "rank-bm25", "matplotlib", "mteb",
    }  # fmt: skip


SOURCES = [
    path
    for folder in ("nvret", "benchmarks", "tests/helpers")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
LOADERS = {"SentenceTransformer", "CrossEncoder"}
NO_CODE = {"nn.EmbeddingBag"}  # their `from_pretrained` reads no model folder


def loads(source: str) -> list[tuple[int, str | None]]:
    """Line of each call that loads a model folder, and what it says of ``trust_remote_code``.

    >>> loads("a = AutoModel.from_pretrained(f)")
    [(1, None)]
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, name = ast.unparse(node.func).rpartition(".")
        from_folder = name in ("from_pretrained", "from_config") and owner not in NO_CODE
        if from_folder or name in LOADERS:
            said = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
            found.append((node.lineno, ast.unparse(said[0]) if said else None))
    return found


def test_no_model_folder_runs_its_code_unasked():
    said = {
        (str(path.relative_to(ROOT)), line): value
        for path in SOURCES
        for line, value in loads(path.read_text(encoding="utf-8"))
    }
    assert len(said) > 10
    # The one place that may say yes, where `Encoder.load` has asked for a pinned revision
    passed_on = {where for where, value in said.items() if value == "trust_remote_code"}
    assert {file for file, _ in passed_on} == {"nvret/models/backbones.py"}
    faults = {where: said[where] for where in said.keys() - passed_on if said[where] != "False"}
    assert not faults


def test_code_beside_a_model_is_not_run_and_not_asked_about(tmp_path):
    """transformers left to itself asks on the terminal."""
    mark = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NvretError, match=r"config\.json: .*custom code"):
        Encoder.load(tmp_path)
    assert not mark.exists()


def test_a_files_tests_stay_on_one_worker(request):
    """pytest 9.2 with pytest-xdist 3.8 ignores the groups without a word."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not run by pytest -n 2 --dist loadgroup, as `make test` runs it")
    assert request.node.nodeid.endswith("@test_supply")
