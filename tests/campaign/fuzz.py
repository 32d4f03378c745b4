"""Malformed files and options for every command: one message and status 2, or none and status 0."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from campaign import commands
from campaign.commands import Outcome
from helpers.files import write_beir, write_rows
from helpers.models import write_static
from nvret import cli, data, negatives

CASES = 10_000
BLOCK = 100  # cases of one worker at a time
LONGEST = 30  # seconds of a case
MEMORY = 6 * 2**30  # bytes of a worker
RANKED = ["ranked.parquet", "ranked.run", "parts", "mined.jsonl"]
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
ODD = [
    "", " ", "0", "-1", "1", "2", "nan", "inf", "-inf", "1e309", "1e-320", str(10**18), "9" * 400,
    "1.5", "x" * 5000, "é中", "\udcff", ".", "..", "no/such/folder", "corpus", "none", "null",
    "true", "[]", "{}", "--", "-", "--no-such", "--help", "--overwrite", "bm25", "vectors",
    "a@b", "HNSW32", "\n", "'", '"',
]  # fmt: skip
TOKENS = [
    b"NaN", b"Infinity", b"1e999", b"-1", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"',
    b"9" * 40, b"\xff\xfe", b"\x00", b"\r\n", b"\xef\xbb\xbf", b'"', b"\t", b"," * 3,
    b"[" * 100_000, b"0.5", b"2147483648", b"&a", b"*a", b"!!python/object:os.system", b"- ", b": ",
]  # fmt: skip


class Case(NamedTuple):
    """A command and what it reads, all of it valid."""

    arguments: list[str]
    files: list[str]  # files and folders that it names


class Fault(NamedTuple):
    """kind: traceback, hang, status, message or half; where: to tell one fault from another."""

    kind: str
    where: str
    input: str


def trial(folder: Path, share: float) -> Outcome:
    outcome = Outcome("malformed files and options, in every command")
    base = folder / "base"
    write(base)
    number = max(BLOCK, round(share * CASES))
    faults: list[Fault] = []
    statuses: Counter[str] = Counter()
    starts = list(range(0, number, BLOCK))
    while starts:
        spawn = multiprocessing.get_context("spawn")
        env = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with (
            _environment(env),
            ProcessPoolExecutor(2, mp_context=spawn, initializer=_bound) as pool,
        ):
            jobs = {start: pool.submit(block, base, folder, start) for start in starts}
            for start, job in jobs.items():
                try:
                    seen, found = job.result()
                except BrokenProcessPool:
                    continue
                starts.remove(start)
                statuses.update(seen)
                faults += found
        if starts and len(starts) == len(jobs):  # each of them ends the process: take it apart
            faults.append(Fault("traceback", "the process died", f"cases from {starts[0]} on"))
            starts.pop(0)
    outcome.times = number
    for fault in faults:
        if fault.kind == "traceback":
            outcome.tracebacks += 1
        elif fault.kind == "hang":
            outcome.hangs += 1
        else:
            outcome.differences += 1
    for key in dict.fromkeys((fault.kind, fault.where) for fault in faults):
        same = [fault for fault in faults if (fault.kind, fault.where) == key]
        shortest = min((fault.input for fault in same), key=len)
        outcome.notes.append(f"{len(same)} × {key[0]}: {key[1]}\n  {shortest}")
    each = ", ".join(f"{count:,} {name}" for name, count in sorted(statuses.items()))
    outcome.notes.append(f"{each}; {len(outcome.notes)} different faults")
    return outcome


@contextlib.contextmanager
def _environment(values: dict[str, str]):
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def write(base: Path) -> None:
    """Valid files of every kind."""
    base.mkdir(parents=True)
    texts = ["Paris is the capital of France", "Lyon is a city of France",
             "Bananas grow in bunches", "Berlin is the capital of Germany", "Rome is old",
             "Tea is drunk hot"]  # fmt: skip
    corpus = [{"_id": f"d{n}", "title": "" if n % 2 else "A title", "text": text}
              for n, text in enumerate(texts)]  # fmt: skip
    asked = ["what is the capital of France", "what is drunk hot", "where"]
    queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(asked)]
    qrels = [{"query-id": f"q{n}", "corpus-id": f"d{row}", "score": 1}
             for n, row in ((0, 0), (1, 5), (2, 1), (2, 3))]  # fmt: skip
    pairs = [{"query": queries[int(row["query-id"][1:])]["text"],
              "positive": texts[int(row["corpus-id"][1:])]} for row in qrels]  # fmt: skip
    for suffix in SUFFIXES:
        for name, rows in (("corpus", corpus), ("queries", queries), ("qrels", qrels),
                           ("pairs", pairs)):  # fmt: skip
            write_rows(base / f"{name}{suffix}", rows)
    positives = [[0], [5], [1, 3]]
    write_beir(base / "beir", data.from_texts("beir", texts, asked, positives))
    write_rows(base / "hidden.tsv", [{"query-id": "q0", "corpus-id": "p1", "score": 1}])
    rng = np.random.default_rng(0)
    np.save(base / "q.npy", rng.standard_normal((3, 8), np.float32))
    np.save(base / "c.npy", rng.standard_normal((6, 8), np.float32))
    (base / "model").mkdir()
    write_static(base / "model")
    profile = commands.small_profile(base / "profile.yaml")
    values = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(values | {"notebooks": []}))
    mined = ["mine", "--data", base / "beir", "--teacher", "bm25", "--method", "naive",
             "--num-negatives", "2", "--output", base / "negatives.parquet"]  # fmt: skip
    flag = [*mined[:-1], base / "mined.jsonl", "--format", "flagembedding"]
    ranked = [
        ["rank", "--data", base / "beir", "--teacher", "bm25", "--depth", "3", "--format",
         "trec" if name.endswith("run") else "three-part" if name == "parts" else "scored-lists",
         "--output", base / name]
        for name in RANKED[:3]
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for command in (mined, flag, *ranked):
            assert cli.main([str(part) for part in command]) == 0


def _case(rng: np.random.Generator) -> Case:
    """A valid command; those of a profile stop before they compute anything."""
    kind = rng.choice(
        ["files", "pairs", "beir", "vectors", "model", "ranked", "rank", "calibrate", "inspect",
         "adopted", "lint", "evaluate", "train", "profile", "plan", "fetch", "cost"],
        p=[0.17, 0.08, 0.05, 0.07, 0.04, 0.1, 0.06, 0.05, 0.06, 0.04, 0.08, 0.03, 0.02, 0.08, 0.03,
           0.02, 0.02],
    )  # fmt: skip
    one, two, three = (str(suffix) for suffix in rng.choice(SUFFIXES, 3))
    method = rng.choice(["naive", "random", "shifted --n 1", "abs --threshold 0.7",
                         "margin-pos --margin 0.05", "perc-pos --perc 0.95"])  # fmt: skip
    draws = rng.choice(["top-k", "sampled --k 3", "top-1+sampled --k 2"])
    mined = f"--method {method} --num-negatives 2 --sampling {draws} --output out.parquet"
    line, files = {
        "files": (
            f"mine --corpus corpus{one} --queries queries{two} --qrels qrels{three} "
            f"--teacher bm25 {mined}",
            [f"corpus{one}", f"queries{two}", f"qrels{three}"],
        ),
        "pairs": (
            f"mine --pairs pairs{one} --corpus corpus{two} --teacher bm25 {mined} --format triplet",
            [f"pairs{one}", f"corpus{two}"],
        ),
        "beir": (f"mine --data beir --split test --teacher bm25 {mined}", ["beir"]),
        "vectors": (
            f"mine --data beir --teacher vectors --query-vectors q.npy --corpus-vectors c.npy "
            f"{mined}",
            ["beir", "q.npy", "c.npy"],
        ),
        "model": (f"mine --data beir --teacher model {mined}", ["beir", "model"]),
        "ranked": (
            f"mine --data beir --candidates {(ranked := rng.choice(RANKED))} {mined}",
            ["beir", str(ranked)],
        ),
        "rank": (
            f"rank --data beir --teacher bm25 --depth 3 --output out.{two[1:]} "
            f"--format {rng.choice(['scored-lists', 'trec', 'labeled-list'])}",
            ["beir"],
        ),
        "calibrate": (
            "calibrate --data beir --teacher bm25 --target 5% --output out.json"
            + rng.choice(["", " --labels hidden.tsv", " --sample out.html"]),
            ["beir", "hidden.tsv"],
        ),
        "adopted": ("inspect mined.jsonl --output out.html", ["mined.jsonl"]),
        "inspect": (
            "inspect negatives.parquet --data beir --hidden hidden.tsv --output out.html",
            ["negatives.parquet", "beir", "hidden.tsv"],
        ),
        "lint": (
            "lint mined.jsonl --limit 0.5 --output out.html --fix out.jsonl"
            if rng.random() < 0.5
            else "lint negatives.parquet --corpus corpus.jsonl --output out.json --fix out.parquet",
            ["mined.jsonl", "negatives.parquet", "corpus.jsonl"],
        ),
        "evaluate": (
            f"evaluate --model {rng.choice(['bm25', 'model'])} --data beir --k 1 --output out.csv",
            ["beir", "model"],
        ),
        "train": (
            "train --data beir --negatives negatives.parquet --student model --output out "
            "--batch-size 2 --epochs 1 --device cpu",
            ["beir", "negatives.parquet", "model"],
        ),
        "profile": (
            f"{rng.choice(['run', 'encode', 'mine', 'train', 'report'])} profile.yaml",
            ["profile.yaml"],
        ),
        "plan": ("plan profile.yaml --tflops 1", ["profile.yaml"]),
        "fetch": ("fetch no-such-set", []),
        "cost": ("cost --passages 10 --queries 2 --teacher no-such-model --rough", []),
    }[kind]
    arguments = line.split()
    if kind == "profile" and arguments[0] != "report":
        arguments += ["--only", "no_such_notebook"]
    return Case(arguments, files)


def _bound() -> None:
    """A worker may not take all of the memory, and does not print warnings."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    logging.disable(logging.ERROR)


def block(
    base: Path, folder: Path, start: int, count: int = BLOCK
) -> tuple[Counter[str], list[Fault]]:
    """Some cases, one after another; how they ended, and what was wrong."""
    statuses: Counter[str] = Counter()
    faults = []
    for number in range(start, start + count):
        rng = np.random.default_rng([6, number])
        case = _case(rng)
        place = folder / f"case-{number}"
        shutil.rmtree(place, ignore_errors=True)  # of a worker that died
        place.mkdir()
        for name in case.files:
            copy = shutil.copytree if (base / name).is_dir() else shutil.copy
            copy(base / name, place / name)
        faulty, said = list(case.arguments), []
        for _ in range(int(rng.integers(1, 3))):
            if case.files and rng.random() < 0.7:
                said.append(spoil(rng, place, case.files))
            else:
                faulty = _options(rng, faulty)
        status, found = attempt(place, faulty)
        statuses[status] += 1
        short = (part if len(part) < 60 else f"{part[:9]}… ({len(part)})" for part in faulty)
        shown = f"case {number}: nvret {' '.join(map(repr, short))}; {'; '.join(said)}"
        faults += [Fault(kind, where, shown) for kind, where in found]
        shutil.rmtree(place)
    return statuses, faults


def _options(rng: np.random.Generator, arguments: list[str]) -> list[str]:
    """One option or value that is missing, twice there, or odd."""
    spot = int(rng.integers(1, len(arguments))) if len(arguments) > 1 else 0
    odd = ODD[rng.integers(len(ODD))]
    before, after = arguments[:spot], arguments[spot + 1 :]
    match rng.integers(5):
        case 0:
            return [*before, *after]
        case 1:
            return [*before, *arguments[spot : spot + 1], *arguments[spot:]]
        case 2:
            return [*before, odd, *arguments[spot:]]
        case _:
            return [*before, odd, *after]


def spoil(rng: np.random.Generator, place: Path, names: list[str]) -> str:
    """Spoil one of the files; what was done to it."""
    top = place / names[rng.integers(len(names))]
    files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
    files = [path for path in files if path.exists() and path.is_file()]
    if not files:
        return "nothing left to spoil"
    path = files[rng.integers(len(files))]
    name = path.relative_to(place)
    chance = rng.random()
    if chance < 0.03:
        path.unlink()
        return f"{name} removed"
    if chance < 0.06:
        path.unlink()
        path.mkdir()
        return f"{name} is a folder"
    if chance < 0.09:
        path.write_bytes(b"")
        return f"{name} empty"
    if path.suffix in CHANGES and chance < 0.7:
        with contextlib.suppress(OSError, ValueError, EOFError, IndexError):  # spoilt before
            return f"{name}: {CHANGES[path.suffix](rng, path)}"
    content = path.read_bytes()
    spot = int(rng.integers(len(content) + 1))
    lines = content.split(b"\n")
    line = int(rng.integers(len(lines)))
    token = TOKENS[rng.integers(len(TOKENS))]
    match rng.integers(7):
        case 0:
            flipped = bytearray(content)
            for one in rng.integers(0, max(1, len(content)), 3):
                if flipped:
                    flipped[one] ^= 1 << int(rng.integers(8))
            content, said = bytes(flipped), "bits flipped"
        case 1:
            content, said = content[:spot], f"cut at byte {spot} of {len(content)}"
        case 2:
            content, said = b"\n".join(lines[:line] + lines[line + 1 :]), f"line {line} missing"
        case 3:
            content, said = b"\n".join([*lines, lines[line]]), f"line {line} twice"
        case 4:
            content = content[:spot] + token + content[spot:]
            said = f"{token[:20]!r} at byte {spot}"
        case _:  # a word, a number, a name of a column
            words = _words(content[:100_000])
            if not words:
                return f"{name} as it was"
            a, b = words[rng.integers(len(words))]
            said = f"{content[a:b][:30]!r} is {token[:20]!r}"
            content = content[:a] + token + content[b:]
    path.write_bytes(content)
    return f"{name}: {said}"


def _words(content: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(rb'"[^"\n]*"|[\w.+-]+', content)]


def _column(rng: np.random.Generator, path: Path) -> str:
    """A Parquet file with one column of another kind or name, twice, or missing; or no rows."""
    table = pq.read_table(path)
    place = int(rng.integers(table.num_columns))
    name, rows = table.column_names[place], table.num_rows
    made: dict[str, Callable[[], pa.Array]] = {
        "integers": lambda: pa.array(range(rows)),
        "floats, NaN": lambda: pa.array([float("nan")] * rows),
        "nulls": lambda: pa.nulls(rows),
        "null texts": lambda: pa.nulls(rows, pa.string()),
        "binary, no UTF-8": lambda: pa.array([b"\xff"] * rows),
        "lists": lambda: pa.array([["a", None]] * rows),
        "structs": lambda: pa.array([{"a": 1}] * rows),
        "bools": lambda: pa.array([True] * rows),
        "dictionary": lambda: pa.array(["a"] * rows).dictionary_encode(),
        "large texts": lambda: pa.array(["d0"] * rows, pa.large_string()),
        "dates": lambda: pa.array([0] * rows, pa.timestamp("s")),
        "huge": lambda: pa.array([2**62] * rows),
        "empty texts": lambda: pa.array([""] * rows),
    }
    match rng.integers(5):
        case 0:
            pq.write_table(table.slice(0, 0), path)
            return "no rows"
        case 1:
            pq.write_table(table.drop_columns([name]), path)
            return f"no column {name}"
        case 2:
            renamed = ["odd" if one == name else one for one in table.column_names]
            pq.write_table(table.rename_columns(renamed), path)
            return f"{name} renamed"
        case _:
            kind = list(made)[rng.integers(len(made))]
            metadata = table.schema.metadata
            table = table.set_column(place, name, made[kind]()).replace_schema_metadata(metadata)
            pq.write_table(table, path)
            return f"{name} holds {kind}"


def _array(rng: np.random.Generator, path: Path) -> str:
    array = np.load(path)
    with warnings.catch_warnings(action="ignore"):  # of an array that has changed already
        made = {
            "NaN": np.full_like(array, np.nan), "inf": np.full_like(array, np.inf),
            "zeros": np.zeros_like(array), "huge": np.full_like(array, 3e38),
            "one row": array[:1], "no rows": array[:0], "no columns": array[:, :0],
            "one axis": array[0], "three axes": array[None], "number": np.float32(1),
            "integers": array.astype(np.int64), "complex": array.astype(np.complex64),
            "texts": array.astype(str), "bools": array > 0, "doubles": array.astype(np.float64),
            "other width": array[:, :3], "objects": array.astype(object),
            "records": np.zeros(3, [("a", "f4")]),
        }  # fmt: skip
    kind = list(made)[rng.integers(len(made))]
    np.save(path, made[kind])
    return kind


CHANGES = {".parquet": _column, ".npy": _array}


class Hang(BaseException):
    """Raised in a case that takes too long."""


def _alarm(*_: object) -> None:
    raise Hang


def attempt(place: Path, arguments: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The exit status, and what is wrong with how the command ended: kind and where."""
    output, errors = io.StringIO(), io.StringIO()
    before = {path.name for path in place.iterdir()}
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(LONGEST)
    os.environ["NVRET_RESULTS"] = str(place / "results")
    try:
        with (
            contextlib.chdir(place),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            status = cli.main(arguments)
    except Hang:
        return "hang", [("hang", f"{arguments[0]}: {_deepest(sys.exc_info()[2])}")]
    except SystemExit as error:
        status = error.code or 0
    except BaseException as error:
        where = f"{type(error).__name__} at {_deepest(error.__traceback__)}"
        return "traceback", [("traceback", where)]
    finally:
        signal.alarm(0)
    return f"status {status}", list(_faults(place, arguments, status, errors.getvalue(), before))


def _faults(place: Path, arguments: list[str], status: object, errors: str, before: set[str]):
    command = arguments[0] if arguments else "no command"
    if status not in (0, 2) and (command, status) != ("lint", 1):  # over its limit
        yield "status", f"{command}: {status}"
    if "Traceback" in errors:
        yield "message", f"{command}: a traceback is printed"
    messages = [line for line in errors.splitlines() if line.startswith("nvret: ")]
    if len(messages) != (status == 2):
        yield "message", f"{command}: status {status} with {len(messages)} messages"
    new = {path.name for path in place.iterdir()} - before
    if status == 2 and new and not (command == "train" and new == {".out.partial"}):
        yield "half", f"{command}: left {sorted(name[:9] for name in new)}"
    ours = command == "mine" and "--format" not in arguments
    if status == 0 and ours and (place / "out.parquet").exists():
        try:
            negatives.load(place / "out.parquet")
        except Exception as error:
            yield "half", f"{command}: wrote what cannot be read: {str(error)[:100]}"


def _deepest(trace: object) -> str:
    """The innermost line of nvret in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if "/nvret/" in frame.filename]
    if not frames:
        return "nowhere in nvret"
    return f"{frames[-1].filename.rpartition('/nvret/')[2]}:{frames[-1].name}"
