"""What the arms of a study train on and are tested on: questions, passages, mined negatives.

Every method trains on exactly the same (query, positive) pairs in the same order for a seed. What
a method could not fill is counted, never made up by leaving a query out.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import ensembles, methods, mining, negatives, sampling
from nvret.data import RetrievalDataset
from nvret.study import mixtures, treatments
from nvret.study.arms import Arm, arms, by_student
from nvret.study.scores import CORPORA
from nvret.study.workspace import Workspace, inputs, place
from nvret.utils import store
from nvret.utils.errors import NvretError


class Material:
    """Each part is computed when it is asked for, or found in the store.

    Attributes:
        name: of the notebook.
        arms: all of them, each student's base model first.
        by_student: the same, student by student.
        reference: what each student's arms are compared with: a label after the student.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.settings = workspace.settings
        self.name = name
        self.arms = arms(self.settings, name)
        self.by_student = by_student(self.arms)
        chosen = self.settings.studies[name]
        self.reference = chosen.reference
        for student, own in self.by_student.items():
            if f"{student}: {self.reference}" not in [arm.label for arm in own]:
                raise NvretError(f"studies.{name}.reference: {student} has no {self.reference!r}")
        # The primary corpus first
        known, asked = list(self.settings.data.corpora), chosen.corpora
        self.corpora = tuple(name for name in known if name in (asked or known[:1]))
        self._options = {"dev": chosen.dev, "out_of_domain": chosen.out_of_domain}

    # What an arm is tested on

    def _trained_on(self, arm: Arm) -> tuple[str, ...]:
        """An arm's training sets; of a base model those of all arms that it is compared with."""
        own = [arm] if arm.trained else self.by_student[arm.student]
        names = (name for a in own if a.trained for name in a.sets)
        return tuple(dict.fromkeys(names)) or tuple(arm.sets)

    def tests_of(self, arm: Arm) -> dict[str, RetrievalDataset]:
        """The held-out part of each of an arm's training sets in each corpus, and what else the
        study asks for."""
        train, corpora = self._trained_on(arm), self._corpora_of(arm)
        return self.workspace.tests_of(arm.student, train, corpora, **self._options)

    def _corpora_of(self, arm: Arm) -> tuple[str, ...]:
        """Names of the corpora that an arm's held-out questions search in."""
        own = self.settings.students[arm.student].corpora or self.corpora
        return tuple(name for name in self.corpora if name in own)

    @property
    def primary(self) -> list[str]:
        """Names of the in-domain test sets in the primary corpus."""
        names = dict.fromkeys(name for arm in self.arms for name in self._trained_on(arm))
        return [self.workspace.held_out(name).name for name in names]

    @property
    def tests(self) -> list[str]:
        """Names of the first student's test sets that averages count."""
        known = self.workspace.tests
        return [name for name in self.tests_of(self.arms[0]) if name in known]

    def _corpora(self) -> pd.DataFrame:
        """The ``corpora`` of `Results`."""
        rows = []
        for arm in self.arms:
            tests = self.tests_of(arm)
            for train, corpus in itertools.product(self._trained_on(arm), self._corpora_of(arm)):
                test, plain = (self.workspace.held_out(train, name) for name in (corpus, None))
                passages = tests[test.name].corpus.num_rows
                rows.append((arm.student, test.name, plain.name, corpus, passages))
        return pd.DataFrame(rows, columns=CORPORA).drop_duplicates(ignore_index=True)

    # What an arm trains on

    def dataset(self, arm: Arm, seed: int) -> RetrievalDataset:
        """The questions that an arm trains on, with all passages of their sets.

        Each seed draws its own questions, the same for all arms of as many questions.
        """
        return self._merged(arm.train, arm.queries, arm.mixture_temperature, seed)

    def _parts(self, arm: Arm, seed: int) -> dict[str, RetrievalDataset]:
        """The same, set by set."""
        return self._sampled(arm.train, arm.queries, arm.mixture_temperature, seed)

    @cache  # noqa: B019 (a study lives as long as the process)
    def _merged(self, *choice: Any) -> RetrievalDataset:
        """Kept, since its fingerprint takes longer than its choice."""
        return mixtures.merge(self._sampled(*choice))

    @cache  # noqa: B019
    def _sampled(
        self, names: tuple[str, ...], queries: int | None, temperature: float, seed: int
    ) -> dict[str, RetrievalDataset]:
        sets = {name: self.workspace.train(name) for name in names}
        if queries is None:
            return sets
        sizes = {name: self.workspace.whole(name).queries.num_rows for name in names}
        shares = mixtures.shares(sizes, queries, temperature)
        return {name: mixtures.sample(part, shares[name], seed) for name, part in sets.items()}

    def encode(self, arm: Arm, seed: int) -> None:
        """Leave the vectors of an arm's teachers for its training sets in the store."""
        for teacher in arm.teachers:
            for train in arm.train:
                self.workspace.scorer(teacher, train)

    def negatives(self, arm: Arm, seed: int) -> pa.Table:
        """An arm's negatives, each training set mined within its own passages.

        All methods that the study compares under one teacher are mined by one search, for the
        questions of all seeds. Only what is drawn depends on the seed.
        """
        if arm.method is None:
            return negatives.SCHEMA.empty_table()
        tables = []
        for name, part in self._parts(arm, seed).items():
            if arm.treatment is None:
                table = _of_questions(self._of_set(arm, name, seed), part)
            else:
                table = self._treated(arm, name, seed)
            if len(arm.train) > 1:
                table = mixtures.prefixed(table.replace_schema_metadata(), name)
            tables.append(table)
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

    @cache  # noqa: B019 (slow, and asked for again by each table of a notebook)
    def _treated(self, arm: Arm, train: str, seed: int) -> pa.Table:
        """An arm's negatives of one set, some of which others have replaced."""
        plain = replace(arm, treatment=None, changed=())  # the same for all treatments
        return self._candidates(plain, train, seed).treat(arm.treatment)

    @lru_cache(maxsize=2)  # noqa: B019 (large; a study's treatments come one after another)
    def _candidates(self, arm: Arm, train: str, seed: int) -> treatments.Candidates:
        """What all treatments of an arm's negatives choose from."""
        hidden, part = self.workspace.hidden(train).pairs, self._parts(arm, seed)[train]
        depth = treatments.depth(hidden, arm.num_negatives)
        mined = self._of_set(replace(arm, num_negatives=depth), train, seed)
        return treatments.Candidates(_of_questions(mined, part), hidden, arm.num_negatives, seed)

    def _of_set(self, arm: Arm, train: str, seed: int) -> pa.Table:
        """Negatives of one whole training set: a single teacher's, or an ensemble's."""
        tables = [self._mined(arm, teacher, train, seed) for teacher in arm.teachers]
        if arm.ensemble is None:
            return tables[0]
        dataset = self.workspace.train(train)
        if arm.ensemble == "cross-sample":
            return ensembles.cross_sample(dataset, tables, arm.num_negatives, seed)
        dedup = arm.ensemble == "intra-sample"
        return ensembles.intra_sample(dataset, tables, arm.num_negatives, dedup=dedup)

    def _mined(self, arm: Arm, teacher: str, train: str, seed: int) -> pa.Table:
        """One teacher's negatives; those of the study's other methods come with the same search."""
        drawn = isinstance(arm.method, methods.RandomNegatives) or arm.sampling != sampling.TopK()
        seed = seed if drawn else 0
        dataset, scorer = self.workspace.train(train), self.workspace.scorer(teacher, train)
        options = self.settings.mining.model_dump()
        options["near_duplicates"] = self.workspace.near_duplicates(train)
        shared = inputs(
            "mining",
            dataset=dataset.fingerprint,
            teacher=scorer.fingerprint,
            sampling=[arm.sampling.name, vars(arm.sampling)],
            num_negatives=arm.num_negatives,
            mining=options,
            seed=seed,
        )
        keys = {method: shared | {"method": method.record} for method in self._mined_with(arm)}
        folders = {method: place("mining", key) for method, key in keys.items()}
        missing = [method for method, folder in folders.items() if not store.find(folder)]
        if arm.method in missing:
            exclude = self.workspace.exclusions(train)
            with store.timed("mining"):
                tables = mining.sweep(
                    dataset, scorer, missing, arm.num_negatives, arm.sampling, seed,
                    **options, exclude=exclude, progress=False,
                )  # fmt: skip
            for method, table in zip(missing, tables, strict=True):

                def save(folder: Path, table: pa.Table = table) -> None:
                    negatives.save(table, folder / "negatives.parquet")

                store.stage("mining", keys[method], save)
        return negatives.load(folders[arm.method] / "negatives.parquet")

    def _mined_with(self, arm: Arm) -> list[methods.Method]:
        """The methods of this study that differ from the arm in nothing but the method."""

        def search(other: Arm) -> tuple:
            random = isinstance(other.method, methods.RandomNegatives)
            shared = other.teachers, other.sampling, other.train, other.num_negatives
            return random, other.ensemble, *shared

        mined = [other for other in self.arms if other.method is not None]
        same = [other.method for other in mined if search(other) == search(arm)]
        return list(dict.fromkeys([*same, arm.method]))


def _of_questions(table: pa.Table, dataset: RetrievalDataset) -> pa.Table:
    """The negatives of a set's questions alone."""
    return table.filter(pc.is_in(table["query_id"], dataset.queries["id"].combine_chunks()))
