"""A comparison: mine, train, evaluate over methods, students and seeds; resumable at each step.

Every method trains on exactly the same (query, positive) pairs in the same order for a seed. What
a method could not fill is counted, never made up by leaving a query out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from nvret import (
    assets,
    candidates,
    data,
    duplicates,
    methods,
    mining,
    negatives,
    sampling,
    search,
    splits,
    store,
    teachers,
)
from nvret.data import RetrievalDataset
from nvret.params import Settings, StudentSettings

BASE = "Base model"  # the student before any fine-tuning


@dataclass(frozen=True)
class Condition:
    """One model of the comparison: a student, the negatives it was trained with, and a seed."""

    student: StudentSettings
    method: methods.Method | None  # None: the student as it came
    seed: int

    @property
    def label(self) -> str:
        return BASE if self.method is None else str(self.method)


class Comparison:
    """What a profile compares. Each part is computed when it is asked for, or found in the store.

    Args:
        settings: of the profile.
        progress: show bars.
    """

    def __init__(self, settings: Settings, *, progress: bool = True) -> None:
        self.settings = settings
        self.progress = progress

    @cached_property
    def parts(self) -> data.Split:
        """The training set, split by near-duplicate cluster; checked for leaks."""
        chosen = self.settings.data
        parts = data.split(
            data.load(chosen.train),
            dev=chosen.dev_fraction,
            test=chosen.test_fraction,
            corpus=chosen.test_corpus,
        )
        self._check_leaks(parts.train, parts.test)
        return parts

    @cached_property
    def train(self) -> RetrievalDataset:
        """Questions to mine and train on; as many as the most demanding student takes."""
        wanted = [student.queries for student in self.settings.students]
        return sample_queries(self.parts.train, None if None in wanted else max(wanted))

    @cached_property
    def tests(self) -> dict[str, RetrievalDataset]:
        """Held-out questions of the training set, and sets of other domains."""
        chosen = self.settings.data
        tests = {self.parts.test.name: sample_queries(self.parts.test, chosen.test_queries)}
        for name in dict.fromkeys(n for s in self.settings.students for n in s.out_of_domain):
            other = sample_queries(data.load(name), chosen.test_queries)
            self._check_leaks(self.parts.train, other)
            tests[name] = other
        return tests

    def _check_leaks(self, train: RetrievalDataset, test: RetrievalDataset) -> None:
        """Stop if there is a leak; that there is none is kept like any other result."""
        threshold = self.settings.data.leak_threshold
        inputs = {
            "train": train.fingerprint,
            "test": test.fingerprint,
            "threshold": threshold,
            "code": store.code_version(splits, duplicates),
        }
        store.stage(
            "leak-checks", inputs, lambda _: data.check_leaks(train, test, threshold=threshold)
        )

    def tests_of(self, student: StudentSettings) -> dict[str, RetrievalDataset]:
        """The test sets of one student: the held-out questions, and its sets of other domains."""
        names = [self.parts.test.name, *student.out_of_domain]
        return {name: self.tests[name] for name in names}

    @cached_property
    def teacher(self) -> teachers.Scorer:
        """The teacher, once it has read the training set."""
        return teachers.prepare(teacher(self.settings), self.train, progress=self.progress)

    @cached_property
    def _forbidden(self) -> list[np.ndarray]:
        return mining.forbidden(self.train, self.settings.mining.near_duplicates)

    @property
    def methods(self) -> list[methods.Method]:
        return [method.build() for method in self.settings.methods]

    def negatives(self, method: methods.Method, seed: int) -> pa.Table:
        """Negatives of the whole training set.

        All methods that rank are mined by one search, once; random ones are drawn for each seed.
        """
        drawn = isinstance(method, methods.RandomNegatives)
        others = [m for m in self.methods if not isinstance(m, methods.RandomNegatives)]
        together, seed = others if method in others else [method], seed if drawn else 0
        inputs = {
            "dataset": self.train.fingerprint,
            "teacher": self.teacher.fingerprint,
            "methods": [[type(m).__name__, vars(m)] for m in together],
            "mining": self.settings.mining.model_dump(),
            "seed": seed,
            "code": store.code_version(
                candidates, methods, mining, negatives, sampling, teachers, *search.MODULES
            ),
        }

        def build(folder: Path) -> None:
            chosen = self.settings.mining
            tables = mining.sweep(
                self.train,
                self.teacher,
                together,
                chosen.num_negatives,
                seed=seed,
                anchor=chosen.anchor,
                negative_positives=chosen.negative_positives,
                near_duplicates=chosen.near_duplicates,
                exclude=self._forbidden,
                progress=False,
            )
            for number, table in enumerate(tables):
                negatives.save(table, folder / f"{number}.parquet")

        folder = store.stage("mining", inputs, build)
        return negatives.load(folder / f"{together.index(method)}.parquet")

    @cache  # noqa: B019 (a comparison lives as long as the process)
    def _base_fingerprint(self, student: str) -> str:
        from nvret.encode import Encoder

        return Encoder.load(assets.model_path(student)).fingerprint

    @cache  # noqa: B019
    def _pairs(self, queries: int | None) -> RetrievalDataset:
        """What a student trains on; kept, since its fingerprint takes longer than its choice."""
        return sample_queries(self.train, queries)

    def fingerprints(self) -> dict[str, str]:
        """Content hashes of the data and weights that this comparison rests on."""
        found = {f"data: {self.parts.train.name}": self.parts.train.fingerprint}
        found |= {f"test: {name}": test.fingerprint for name, test in self.tests.items()}
        found["teacher: " + self.teacher.name] = self.teacher.fingerprint
        for student in self.settings.students:
            found["student: " + student.name] = self._base_fingerprint(student.name)
        return found

    def conditions(self, student: StudentSettings) -> list[Condition]:
        """The base model first, then seed by seed, so that early results are comparable."""
        trained = [
            Condition(student, method, seed)
            for seed in self.settings.seeds
            for method in self.methods
        ]
        return [Condition(student, None, 0), *trained]

    def model(self, condition: Condition) -> Path:
        """The folder of a condition's model, trained now or before."""
        from nvret import encode, examples, gradcache, losses, trainer, training

        base = assets.model_path(condition.student.name)
        if condition.method is None:
            return base
        dataset = self._pairs(condition.student.queries)
        table = self.negatives(condition.method, condition.seed)
        table = table.filter(pc.is_in(table["query_id"], dataset.queries["id"].combine_chunks()))
        config = training.TrainingConfig(**condition.student.training.model_dump())
        key = store.fingerprint(
            self._base_fingerprint(condition.student.name),
            dataset.fingerprint,
            table,
            dataclasses.asdict(config),
            condition.seed,
            store.code_version(examples, gradcache, losses, trainer, training, *encode.MODULES),
        )
        output = store.cache_dir() / "training" / key
        if not output.exists():
            training.finetune(
                base,
                dataset,
                table,
                output,
                config,
                seed=condition.seed,
                device=self.settings.device,
                progress=self.progress,
            )
        return output

    def run(self) -> Results:
        """Train and evaluate every condition; an interrupted run continues where it stopped.

        Each student has a bar of its own, since only its own models take about the same time.
        """
        _ = self.teacher, self.tests  # their bars come first
        scores, logs = [], []
        for student in self.settings.students:
            conditions = self.conditions(student)
            bar = tqdm(conditions, desc=student.name, unit="model", disable=not self.progress)
            for condition in bar:
                bar.set_postfix_str(f"{condition.label}, seed {condition.seed}")
                keys = {
                    "student": student.name,
                    "method": condition.label,
                    "seed": condition.seed,
                }
                folder = self.model(condition)
                if condition.method is not None:
                    log = pd.read_parquet(folder / "training_log.parquet")
                    logs.append(log.assign(**keys))
                table = pd.read_parquet(self._evaluated(student, folder) / "scores.parquet")
                scores.append(table.assign(**keys))
        return Results(pd.concat(scores, ignore_index=True), pd.concat(logs, ignore_index=True))

    def _evaluated(self, student: StudentSettings, folder: Path) -> Path:
        """The per-query scores of one model on the student's test sets.

        They are kept under the name of the model's folder, which is a hash of all that made it,
        so that a finished run is read back without loading a single model.
        """
        from nvret import encode, evaluation, mteb_tasks

        tests, lengths = self.tests_of(student), student.training
        inputs = {
            "model": folder.name,
            "tests": {name: test.fingerprint for name, test in tests.items()},
            "lengths": [lengths.query_max_length, lengths.passage_max_length],
            "code": store.code_version(evaluation, mteb_tasks, *search.MODULES, *encode.MODULES),
        }

        def build(target: Path) -> None:
            encoder = encode.Encoder.load(folder, device=self.settings.device)
            tables = []
            for name, test in tests.items():
                found = evaluation.evaluate(
                    encoder,
                    test,
                    query_max_length=lengths.query_max_length,
                    passage_max_length=lengths.passage_max_length,
                    cache=False,
                    progress=False,
                )
                tables.append(found.scores.to_pandas().assign(dataset=name))
            pd.concat(tables, ignore_index=True).to_parquet(target / "scores.parquet")

        return store.stage("scores", inputs, build)


@dataclass(frozen=True)
class Results:
    """scores: a row per (student, method, seed, dataset, query_id), a column per metric.
    logs: a row per training step and (student, method, seed), with the step's loss.
    """

    scores: pd.DataFrame
    logs: pd.DataFrame


def teacher(settings: Settings) -> teachers.Teacher:
    """The teacher that a profile names."""
    chosen = settings.teacher
    if chosen.name == "bm25":
        return teachers.BM25Teacher()
    lengths = chosen.query_max_length, chosen.passage_max_length
    return teachers.DenseTeacher(chosen.name, *lengths, device=settings.device)


def sample_queries(dataset: RetrievalDataset, number: int | None) -> RetrievalDataset:
    """The ``number`` queries whose ids hash lowest: smaller samples are parts of larger ones."""
    if number is None or number >= dataset.queries.num_rows:
        return dataset
    ids = dataset.queries["id"].to_pylist()
    return dataset.select(sorted(ids, key=_hashed)[:number])


def _hashed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
