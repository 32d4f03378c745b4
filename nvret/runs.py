"""A study: mine, train and evaluate every arm for every seed; resumable at each step.

Every method trains on exactly the same (query, positive) pairs in the same order for a seed. What
a method could not fill is counted, never made up by leaving a query out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from nvret import (
    assets,
    batching,
    candidates,
    ensembles,
    methods,
    mining,
    mixtures,
    negatives,
    report,
    sampling,
    search,
    store,
    teachers,
)
from nvret.arms import Arm, arms
from nvret.data import RetrievalDataset
from nvret.material import Material
from nvret.results import Results

ENSEMBLE_DEPTH = 2  # candidates of each teacher for each slot that an ensemble without copies fills


class Study:
    """What a notebook compares. Each part is computed when it is asked for, or found in the store.

    Args:
        material: of the profile.
        name: of the notebook.
    """

    def __init__(self, material: Material, name: str) -> None:
        self.material = material
        self.settings = material.settings
        self.name = name
        self.arms = arms(self.settings, name)
        chosen = self.settings.studies[name]
        self.tested_on = {"dev": chosen.dev, "out_of_domain": chosen.out_of_domain}

    @property
    def reference(self) -> str:
        """What each student's arms are compared with: a label after the student."""
        return self.settings.studies[self.name].reference

    @property
    def tests(self) -> list[str]:
        """Names of the first student's test sets, the development split not among them."""
        names = self.material.tests_of(self.arms[0].student, **self.tested_on)
        return [name for name in names if name != self.material.dev.name]

    def dataset(self, arm: Arm) -> RetrievalDataset:
        """The questions that an arm trains on, with all passages of their sets."""
        return self._merged(arm.train, arm.queries, arm.mixture_temperature)

    @cache  # noqa: B019 (a study lives as long as the process)
    def _merged(self, *choice: Any) -> RetrievalDataset:
        """Kept, since its fingerprint takes longer than its choice."""
        return mixtures.merge(self._parts(*choice))

    @cache  # noqa: B019
    def _parts(
        self, names: tuple[str, ...], queries: int | None, temperature: float
    ) -> dict[str, RetrievalDataset]:
        sets = {name: self.material.train(name) for name in names}
        if queries is None:
            return sets
        sizes = {name: part.queries.num_rows for name, part in sets.items()}
        given = mixtures.shares(sizes, queries, temperature)
        return {name: mixtures.sample(part, given[name]) for name, part in sets.items()}

    def negatives(self, arm: Arm, seed: int) -> pa.Table:
        """An arm's negatives, each training set mined within its own passages.

        All methods that the study compares under one teacher are mined by one search. Only what
        is drawn depends on the seed.
        """
        if arm.method is None:
            return negatives.SCHEMA.empty_table()
        parts = self._parts(arm.train, arm.queries, arm.mixture_temperature)
        tables = []
        for name, part in parts.items():
            table = self._of_set(arm, name, seed)
            table = table.filter(pc.is_in(table["query_id"], part.queries["id"].combine_chunks()))
            if len(parts) > 1:
                columns = ["query_id", "positive_id", "negative_id"]
                table = mixtures.prefixed(table.replace_schema_metadata(), name, columns)
            tables.append(table)
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    def _of_set(self, arm: Arm, train: str, seed: int) -> pa.Table:
        """Negatives of one whole training set: a single teacher's, or an ensemble's."""
        if arm.ensemble is None:
            return self._mined(arm, arm.teachers[0], train, arm.num_negatives, seed)
        dedup = arm.ensemble == "intra-sample"
        depth = arm.num_negatives * (ENSEMBLE_DEPTH if dedup else 1)
        tables = [self._mined(arm, name, train, depth, seed) for name in arm.teachers]
        dataset = self.material.train(train)
        if arm.ensemble == "cross-sample":
            return ensembles.cross_sample(dataset, tables, arm.num_negatives, seed)
        return ensembles.intra_sample(dataset, tables, arm.num_negatives, dedup=dedup)

    def _mined(self, arm: Arm, teacher: str, train: str, number: int, seed: int) -> pa.Table:
        """One teacher's negatives; those of the study's other methods come with the same search."""
        drawn = isinstance(arm.method, methods.RandomNegatives) or arm.sampling != sampling.TopK()
        seed = seed if drawn else 0
        chosen = self.settings.mining
        dataset, scorer = self.material.train(train), self.material.scorer(teacher, train)
        shared = {
            "dataset": dataset.fingerprint,
            "teacher": scorer.fingerprint,
            "sampling": [type(arm.sampling).__name__, vars(arm.sampling)],
            "num_negatives": number,
            "mining": chosen.model_dump(),
            "seed": seed,
            "code": _mining_code(),
        }
        folders = {
            method: store.cache_dir() / "mining" / store.fingerprint(shared | _inputs(method))
            for method in self._mined_with(arm)
        }
        missing = [method for method, folder in folders.items() if not folder.exists()]
        if arm.method in missing:
            tables = mining.sweep(
                dataset,
                scorer,
                missing,
                number,
                arm.sampling,
                seed,
                anchor=chosen.anchor,
                negative_positives=chosen.negative_positives,
                near_duplicates=chosen.near_duplicates,
                exclude=self.material.forbidden(train),
                progress=False,
            )
            for method, table in zip(missing, tables, strict=True):
                store.stage("mining", shared | _inputs(method), _saver(table))
        return negatives.load(folders[arm.method] / "negatives.parquet")

    def _mined_with(self, arm: Arm) -> list[methods.Method]:
        """The methods of this study that differ from the arm in nothing but the method."""
        drawn = isinstance(arm.method, methods.RandomNegatives)
        same = [
            other.method
            for other in self.arms
            if other.method is not None
            and isinstance(other.method, methods.RandomNegatives) == drawn
            and (other.teachers, other.sampling, other.train, other.num_negatives, other.ensemble)
            == (arm.teachers, arm.sampling, arm.train, arm.num_negatives, arm.ensemble)
        ]
        return list(dict.fromkeys([*same, arm.method]))

    def of_method(self, method: methods.Method, seed: int) -> pa.Table:
        """What a method mines with the profile's teacher and the first student's settings."""
        first = next(arm for arm in self.arms if arm.method is not None)
        plain = replace(first, teachers=(self.settings.teacher,), ensemble=None,
                        train=(self.settings.data.train,), sampling=sampling.TopK())  # fmt: skip
        return self.negatives(replace(plain, method=method), seed)

    def mined(self, seed: int) -> pd.DataFrame:
        """``report.mined`` of every arm that mines and trains on one set."""
        rows = []
        for arm in self.arms:
            if arm.method is not None and len(arm.train) == 1:
                tables = {arm.label: self.negatives(arm, seed)}
                rows.append(report.mined(self.dataset(arm), tables, arm.num_negatives))
        return pd.concat(rows).rename_axis("arm")

    def by_teacher(self) -> dict[str, dict[str, pa.Table]]:
        """Training set -> teacher -> negatives, of the arms with a single teacher."""
        found: dict[str, dict[str, pa.Table]] = {}
        for arm in self.arms:
            if len(arm.teachers) == 1 and len(arm.train) == 1:
                tables = found.setdefault(arm.train[0], {})
                tables.setdefault(arm.teachers[0], self.negatives(arm, self.settings.seeds[0]))
        return found

    def repeats(self, seed: int) -> pd.DataFrame:
        """How many different passages each ensemble gives a pair, and what repeats weigh."""
        rows = []
        for arm in self.arms:
            if arm.ensemble is not None:
                rows.append({"arm": arm.label, **ensembles.repeats(self.negatives(arm, seed))})
        return pd.DataFrame(rows)

    def composition(self) -> pd.DataFrame:
        """Questions and passages of each training set in each mixture."""
        rows = {}
        for arm in self.arms:
            if len(arm.train) > 1:
                parts = self._parts(arm.train, arm.queries, arm.mixture_temperature)
                for name, part in parts.items():
                    rows[arm.mixture_temperature, name] = {
                        "mixture temperature": arm.mixture_temperature,
                        "set": name,
                        "questions": part.queries.num_rows,
                        "passages": part.corpus.num_rows,
                    }
        return pd.DataFrame(rows.values())

    def model(self, arm: Arm, seed: int) -> Path:
        """The folder of an arm's model, trained now or before."""
        base = assets.model_path(self.settings.students[arm.student].model)
        if not arm.trained:
            return base
        if arm.stage_two is None:
            return self._trained(base, arm, seed)
        first = self._trained(base, replace(arm, stage_two=None), seed)
        second = replace(arm, num_negatives=arm.stage_two, stage_two=None)
        return self._trained(first, second, seed)

    def _trained(self, base: Path, arm: Arm, seed: int) -> Path:
        from nvret import training

        dataset, table = self.dataset(arm), self.negatives(arm, seed)
        said = self.settings.students[arm.student].training.model_dump()
        same = ("in_batch_negatives", "mask_margin", "memory_bank", "temperature", "pooling")
        said |= {name: getattr(arm, name) for name in (*same, "bidirectional")}
        config = training.TrainingConfig(**said)
        guide = None
        if arm.mask_margin is not None:
            guide = teachers.prepare(
                self.material.teacher(arm.teachers[0]), dataset, progress=self.material.progress
            )
        key = store.fingerprint(
            _model_fingerprint(base),
            dataset.fingerprint,
            table,
            dataclasses.asdict(config),
            guide.fingerprint if guide else None,
            seed,
            _training_code(),
        )
        output = store.cache_dir() / "training" / key
        if not output.exists():
            training.finetune(
                base,
                dataset,
                table,
                output,
                config,
                seed=seed,
                device=self.settings.device,
                guide=guide,
                progress=self.material.progress,
            )
        return output

    def run(self) -> Results:
        """Train and evaluate every arm; an interrupted run continues where it stopped.

        Seed by seed, so that early results are comparable. Each student has a bar of its own,
        since only its own models take about the same time.
        """
        with batching.remember_tokens():
            return self._run()

    def _run(self) -> Results:
        scores, logs = [], []
        for student in dict.fromkeys(arm.student for arm in self.arms):
            mine = [arm for arm in self.arms if arm.student == student]
            todo = [
                (arm, seed)
                for seed in self.settings.seeds
                for arm in mine
                if arm.trained or seed == self.settings.seeds[0]
            ]
            bar = tqdm(
                todo, desc=f"{self.name} {student}", unit="model",
                disable=not self.material.progress,
            )  # fmt: skip
            for arm, seed in bar:
                bar.set_postfix_str(f"{', '.join([arm.method_name, *arm.changed])}, seed {seed}")
                folder = self.model(arm, seed)
                if arm.trained:
                    log = pd.read_parquet(folder / "training_log.parquet")
                    logs.append(log.assign(arm=arm.label, seed=seed))
                scores.append(self._evaluated(arm, folder).assign(arm=arm.label, seed=seed))
        results = Results.of(
            pd.DataFrame([{"arm": arm.label, **arm.row} for arm in self.arms]).set_index("arm"),
            pd.concat(scores, ignore_index=True),
            pd.concat(logs, ignore_index=True),
            self.material.dev.name,
        )
        results.save(report.scores_path(self.settings, self.name))
        return results

    def _evaluated(self, arm: Arm, folder: Path) -> pd.DataFrame:
        """Per-query scores of one model on the student's test sets.

        They are kept under the name of the model's folder, which is a hash of all that made it,
        so that a finished run is read back without loading a single model.
        """
        from nvret import encode, evaluation, mteb_tasks

        lengths = self.settings.students[arm.student].training
        found, encoder = [], None
        for name, test in self.material.tests_of(arm.student, **self.tested_on).items():
            inputs = {
                "model": folder.name,
                "pooling": None if arm.trained else [arm.pooling, arm.bidirectional],
                "test": test.fingerprint,
                "lengths": [lengths.query_max_length, lengths.passage_max_length],
                "code": store.code_version(
                    evaluation, mteb_tasks, *search.MODULES, *encode.MODULES
                ),
            }

            def build(target: Path, test: RetrievalDataset = test) -> None:
                nonlocal encoder
                if encoder is None:
                    changes = {"pooling": arm.pooling, "bidirectional": arm.bidirectional}
                    encoder = encode.Encoder.load(
                        folder, device=self.settings.device, **({} if arm.trained else changes)
                    )
                scores = evaluation.evaluate(
                    encoder,
                    test,
                    query_max_length=lengths.query_max_length,
                    passage_max_length=lengths.passage_max_length,
                    cache=False,
                    progress=False,
                ).scores
                kept = scores.select(["query_id", "ndcg_at_10", "recall_at_100"])
                kept.to_pandas().to_parquet(target / "scores.parquet")

            path = store.stage("scores", inputs, build) / "scores.parquet"
            found.append(pd.read_parquet(path).assign(dataset=name))
        return pd.concat(found, ignore_index=True)


def _inputs(method: methods.Method) -> dict:
    return {"method": [type(method).__name__, vars(method)]}


def _saver(table: pa.Table) -> Callable[[Path], None]:
    return lambda folder: negatives.save(table, folder / "negatives.parquet")


@cache
def _mining_code() -> str:
    return store.code_version(
        candidates, methods, mining, negatives, sampling, teachers, *search.MODULES
    )


@cache
def _training_code() -> str:
    from nvret import (
        encode,
        examples,
        gradcache,
        lora,
        losses,
        memory,
        relevance,
        trainer,
        training,
    )

    loop = examples, gradcache, lora, losses, memory, relevance, trainer, training
    return store.code_version(*loop, *encode.MODULES)


@cache
def _model_fingerprint(folder: Path) -> str:
    from nvret.encode import Encoder

    return Encoder.load(folder).fingerprint


def studies(material: Material, names: Sequence[str]) -> list[Study]:
    """The studies of these notebooks; a notebook without one is left out."""
    return [Study(material, name) for name in names if name in material.settings.studies]
