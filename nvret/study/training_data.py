"""What each arm of a study trains on: its questions, and the negatives that are mined for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import ensembles, methods, mining, negatives, sampling
from nvret.data import RetrievalDataset
from nvret.study import mixtures, tables
from nvret.study.arms import Arm, arms
from nvret.study.workspace import Workspace
from nvret.utils import recipes, store


class TrainingData:
    """The training sets and negatives of a study's arms; mined when asked for, or in the store.

    Args:
        material: of the profile.
        name: of the study's notebook.
    """

    def __init__(self, material: Workspace, name: str) -> None:
        self.material = material
        self.settings = material.settings
        self.name = name
        self.arms = arms(self.settings, name)

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
        sizes = {name: self.material.whole(name).queries.num_rows for name in names}
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
        tables = [self._mined(arm, name, train, arm.num_negatives, seed) for name in arm.teachers]
        dataset = self.material.train(train)
        if arm.ensemble == "cross-sample":
            return ensembles.cross_sample(dataset, tables, arm.num_negatives, seed)
        dedup = arm.ensemble == "intra-sample"
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
            "code": recipes.versions("vectors", "search", "bm25", "near-duplicates", "mining"),
        }
        folders = {
            method: store.cache_dir() / "mining" / store.fingerprint(shared | _inputs(method))
            for method in self._mined_with(arm)
        }
        missing = [method for method, folder in folders.items() if not store.find(folder)]
        if arm.method in missing:
            tables = mining.sweep(
                dataset,
                scorer,
                missing,
                number,
                arm.sampling,
                seed,
                ceiling_positive=chosen.ceiling_positive,
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
        """``tables.mined`` of every arm that mines and trains on one set."""
        rows = []
        for arm in self.arms:
            if arm.method is not None and len(arm.train) == 1:
                own = {arm.label: self.negatives(arm, seed)}
                rows.append(tables.mined(self.dataset(arm), own, arm.num_negatives))
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


def _inputs(method: methods.Method) -> dict:
    return {"method": [type(method).__name__, vars(method)]}


def _saver(table: pa.Table) -> Callable[[Path], None]:
    return lambda folder: negatives.save(table, folder / "negatives.parquet")
