"""A study: mine, train and evaluate every arm for every seed; resumable at each step.

Every method trains on exactly the same (query, positive) pairs in the same order for a seed. What
a method could not fill is counted, never made up by leaving a query out.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import assets, ensembles, methods, mining, negatives, sampling, teachers
from nvret.analysis import overlap
from nvret.data import RetrievalDataset
from nvret.models import batching
from nvret.study import mixtures, paths, treatments
from nvret.study.arms import Arm, arms
from nvret.study.scores import COLLAPSED, CORPORA, METRIC, Results
from nvret.study.tables import differing
from nvret.study.tables import mined as mined_table
from nvret.study.workspace import Workspace, inputs, model_fingerprint
from nvret.training.config import TrainingConfig
from nvret.utils import cache as contents
from nvret.utils import machine, processes, store
from nvret.utils.bars import progress_bar
from nvret.utils.errors import NvretError

COMMON = "hardness by one teacher"  # the profile's, whoever mined
LOG = "training_log.parquet"


class Study:
    """What a notebook compares. Each part is computed when it is asked for, or found in the store.

    Attributes:
        name: of the notebook.
        arms: all of them, each student's base model first.
        reference: what each student's arms are compared with: a label after the student.
    """

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.workspace = workspace
        self.settings = workspace.settings
        self.name = name
        self.arms = arms(self.settings, name)
        chosen = self.settings.studies[name]
        self.reference = chosen.reference
        labels = {arm.label for arm in self.arms}
        for student in dict.fromkeys(arm.student for arm in self.arms):
            if f"{student}: {self.reference}" not in labels:
                raise NvretError(f"studies.{name}.reference: {student} has no {self.reference!r}")
        # The primary corpus first
        known, asked = list(self.settings.data.corpora), chosen.corpora
        self.corpora = tuple(name for name in known if name in (asked or known[:1]))
        self._options = {"dev": chosen.dev, "out_of_domain": chosen.out_of_domain}

    # What an arm is tested on

    def _trained_on(self, arm: Arm) -> tuple[str, ...]:
        """An arm's training sets; of a base model those of all arms that it is compared with."""
        own = [arm] if arm.trained else [a for a in self.arms if a.student == arm.student]
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
            mined, hidden = arm, self.workspace.hidden(name)
            if arm.treatment is not None:
                depth = treatments.depth(hidden.pairs, arm.num_negatives)
                mined = replace(arm, num_negatives=depth)
            table = self._of_set(mined, name, seed)
            table = table.filter(pc.is_in(table["query_id"], part.queries["id"].combine_chunks()))
            if arm.treatment is not None:
                own = hidden.pairs, arm.num_negatives, arm.treatment, seed
                table = treatments.treat(table, *own)
            if len(arm.train) > 1:
                table = mixtures.prefixed(table.replace_schema_metadata(), name)
            tables.append(table)
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables)

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
        folder = store.cache_dir() / "mining"
        folders = {method: folder / store.fingerprint(key) for method, key in keys.items()}
        missing = [method for method, path in folders.items() if not store.find(path)]
        if arm.method in missing:
            exclude = self.workspace.exclusions(train)
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

    # The study itself

    def model(self, arm: Arm, seed: int) -> Path:
        """The folder of an arm's model, trained now or before."""
        base = assets.model_path(self.settings.students[arm.student].model)
        if not arm.trained:
            return base
        output = self._place(arm, seed)
        if not store.find(output):
            if arm.stage_two is not None:
                base = self.model(replace(arm, stage_two=None), seed)
            self._train(base, _last_stage(arm), seed, output)
            store.publish(output)
        return output

    @cache  # noqa: B019
    def _place(self, arm: Arm, seed: int) -> Path:
        """Where an arm's model lies: named by a hash of all that makes it, trained or not."""
        student = self.settings.students[arm.student]
        if arm.stage_two is None:
            start = model_fingerprint(assets.model_path(student.model))
        else:
            start = self._place(replace(arm, stage_two=None), seed).name
        dataset, table, config, guide = self._training(_last_stage(arm), seed)
        key = store.fingerprint(
            start,
            dataset.fingerprint,
            table,
            config.model_dump(exclude={"checkpoint_steps"}),  # which change no result
            inputs("guide", guide=guide.fingerprint) if guide else None,
            seed,
            inputs("head" if student.head else "training")["recipe"],
        )
        return store.cache_dir() / "training" / key

    def _training(
        self, arm: Arm, seed: int
    ) -> tuple[RetrievalDataset, pa.Table, TrainingConfig, teachers.Scorer | None]:
        """What an arm trains on and how; the guide of its in-batch negatives."""
        dataset, table = self.dataset(arm, seed), self.negatives(arm, seed)
        own = self.settings.students[arm.student].training.model_dump()
        # What the grid may change is a field of the arm, under the same name
        config = TrainingConfig(**{key: getattr(arm, key, value) for key, value in own.items()})
        guide = None
        if arm.mask_margin is not None:
            teacher = self.workspace.teacher(arm.teachers[0])
            guide = teachers.prepare(teacher, dataset, progress=self.workspace.progress)
        return dataset, table, config, guide

    def _train(self, base: Path, arm: Arm, seed: int, output: Path) -> None:
        from nvret import training

        dataset, table, config, guide = self._training(arm, seed)
        options = {"seed": seed, "guide": guide, "progress": self.workspace.progress}
        if self.settings.students[arm.student].head:
            self._train_head(arm, table, output, config, **options)
        else:
            device = self.settings.device
            training.finetune(base, dataset, table, output, config, device=device, **options)

    # A head on a frozen model

    def _train_head(
        self, arm: Arm, table: pa.Table, output: Path, config: TrainingConfig, **options: Any
    ) -> None:
        from nvret.training import head

        dataset, vectors = self.dataset(arm, options["seed"]), self._vectors(arm, options["seed"])
        names = ("query_max_length", "passage_max_length")  # those of the vectors
        config = config.model_copy(
            update={name: TrainingConfig.model_fields[name].default for name in names}
        )
        head.train_head(dataset, table, *vectors, output, config, **options)

    def _vectors(self, arm: Arm, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The frozen model's (Q, D) and (N, D) vectors of what an arm trains on."""
        parts: tuple[list, list] = [], []
        for name, part in self._parts(arm, seed).items():
            whole = self.workspace.train(name)
            tables = (part.queries, whole.queries), (part.corpus, whole.corpus)
            for vectors, own, (few, many) in zip(
                parts, self._embedded(arm.student, name), tables, strict=True
            ):
                vectors.append(own[pc.index_in(few["id"], many["id"]).to_numpy()])
        return np.concatenate(parts[0]), np.concatenate(parts[1])

    @cache  # noqa: B019
    def _embedded(self, student: str, train: str) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a whole training set, which all arms share: questions and passages."""
        from nvret.encode import embed

        whole, lengths = self.workspace.train(train), self.settings.students[student].training
        show = self.workspace.progress
        return tuple(
            embed(self._frozen(student), texts, kind, max_length=length, progress=show)
            for kind, texts, length in (
                ("query", whole.query_texts, lengths.query_max_length),
                ("passage", whole.passages, lengths.passage_max_length),
            )
        )

    @cache  # noqa: B019
    def _frozen(self, student: str) -> Any:
        """The encoder below a head."""
        from nvret.encode import Encoder

        base = assets.model_path(self.settings.students[student].model)
        return Encoder.load(base, device=self.settings.device)

    def _encoder(self, arm: Arm, folder: Path) -> Any:
        """What an arm's texts are encoded with."""
        from nvret import encode

        if self.settings.students[arm.student].head:
            from nvret.training.head import HeadEncoder

            return HeadEncoder(self._frozen(arm.student), folder if arm.trained else None)
        changes = (
            {} if arm.trained else {"pooling": arm.pooling, "bidirectional": arm.bidirectional}
        )
        return encode.Encoder.load(folder, device=self.settings.device, **changes)

    def run(self) -> Results:
        """Train and evaluate every arm; an interrupted run continues where it stopped.

        Seed by seed, so that early results are comparable. Each student has a bar of its own,
        since only its own models take about the same time.
        """
        scores, logs = [], []
        with batching.remember_tokens():
            for student in dict.fromkeys(arm.student for arm in self.arms):
                for arm, seed in self._todo(student):
                    found, log = self._evaluated(arm, seed)
                    scores.append(found.assign(arm=arm.label, seed=seed))
                    logs.append(log.assign(arm=arm.label, seed=seed))
                    machine.free_gpu_memory()
        results = Results.of(
            pd.DataFrame([{"arm": arm.label, **arm.row} for arm in self.arms]).set_index("arm"),
            pd.concat(scores, ignore_index=True),
            pd.concat(logs, ignore_index=True),
            self.workspace.dev.name,
            primary=self.primary,
            corpora=self._corpora(),
            differing=pd.concat(map(differing, self._mined_by_student())),
        )
        results.save(paths.scores_path(self.settings, self.name))
        return results

    def _mined_by_student(self) -> Iterator[Iterator[tuple[str, pa.Table]]]:
        """For each student: its arms with what they mine for the first seed."""
        for student in dict.fromkeys(arm.student for arm in self.arms):
            own = [arm for arm in self.arms if arm.student == student]
            yield ((arm.label, self.negatives(arm, self.settings.seeds[0])) for arm in own)

    def _todo(self, student: str) -> Iterator[tuple[Arm, int]]:
        """A student's arms and seeds under a bar; what is not trained has one seed."""
        seeds = self.settings.seeds_of(student, self.name)
        todo = [
            (arm, seed)
            for seed in seeds
            for arm in self.arms
            if arm.student == student and (arm.trained or seed == seeds[0])
        ]
        bar = progress_bar(
            todo, desc=f"{self.name} {student}", unit="model", show=self.workspace.progress
        )
        for arm, seed in bar:
            bar.set_postfix_str(f"{', '.join([arm.method_name, *arm.changed])}, seed {seed}")
            yield arm, seed

    def _evaluated(self, arm: Arm, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Per-query scores of one model on its test sets, and the log of its training.

        They are kept under a hash of all that makes the model, so that a finished run is read back
        without it. The model itself goes when it has been tested, if the profile keeps none.
        """
        config, tests = self.settings.students[arm.student].training, self.tests_of(arm)
        place = self._place(arm, seed) if arm.trained else self.model(arm, seed)
        shared = {
            "model": place.name if arm.trained else model_fingerprint(place),
            "pooling": None if arm.trained else [arm.pooling, arm.bidirectional],
            "lengths": [config.query_max_length, config.passage_max_length],
        }
        keys = {
            name: inputs("scores", **shared, test=test.fingerprint) for name, test in tests.items()
        }
        found = {name: _kept("scores", key) for name, key in keys.items()}
        log = inputs("logs", model=shared["model"])
        found |= {"": _kept("logs", log)} if arm.trained else {}
        if not all(map(store.find, found.values())):
            with _alone(store.cache_dir() / "tested" / shared["model"]):
                # Another process may have done some of it meanwhile
                todo = [name for name, path in found.items() if not store.find(path)]
                model = self.model(arm, seed) if todo else place
                self._test(arm, model, {name: keys[name] for name in todo if name})
                if arm.trained:
                    store.stage("logs", log, lambda folder: shutil.copy(model / LOG, folder))
                    if todo and not self.settings.keep_models and processes.is_main_process():
                        contents.remove(contents.Entry(model, 0, 0.0, leftover=False))
        logs = pd.read_parquet(found.pop("") / LOG) if arm.trained else pd.DataFrame()
        frames = {name: pd.read_parquet(path / "scores.parquet") for name, path in found.items()}
        scores = [frame.assign(dataset=name) for name, frame in frames.items()]
        return pd.concat(scores, ignore_index=True), logs

    def _test(self, arm: Arm, model: Path, keys: dict[str, dict[str, Any]]) -> None:
        """Put a model's scores on these test sets into the store; shared texts are encoded once."""
        from nvret import evaluation

        config, tests = self.settings.students[arm.student].training, self.tests_of(arm)
        lengths = {key: getattr(config, key) for key in ("query_max_length", "passage_max_length")}
        encoder = None
        for names in self._sharing(keys):
            encoder = encoder or self._encoder(arm, model)
            sets = [tests[name] for name in names]
            found = evaluation.evaluate_all(encoder, sets, **lengths, progress=False)
            for name, one in zip(names, found, strict=True):

                def save(target: Path, test=tests[name], one=one) -> None:
                    scores = one.scores.select(["query_id", METRIC, "recall_at_100"]).to_pandas()
                    if "cluster" in test.corpus.column_names:
                        scores[COLLAPSED] = evaluation.collapsed(one, test).values(METRIC)
                    scores.to_parquet(target / "scores.parquet")

                store.stage("scores", keys[name], save)

    def _sharing(self, names: Iterable[str]) -> list[list[str]]:
        """Test sets by what is encoded together: those in the domain, and those whose passages
        are added to their corpora; each of the others alone."""
        chosen = [self.settings.data.corpora[name] for name in self.corpora]
        added = {name for corpus in chosen for name in corpus.others}
        alone = [name for name in self.workspace.out_of_domain if name not in added]
        groups = [[name for name in names if name not in alone]]
        groups += [[name] for name in names if name in alone]
        return [group for group in groups if group]

    # What was mined, for the notebooks' tables

    def of_method(self, method: methods.Method, seed: int) -> pa.Table:
        """What a method mines with the profile's teacher and the first student's settings."""
        first = next(arm for arm in self.arms if arm.method is not None)
        teacher, train = self.settings.teacher, self.settings.data.train
        plain = replace(first, teachers=(teacher,), ensemble=None, train=(train,), treatment=None)
        return self.negatives(replace(plain, sampling=sampling.TopK(), method=method), seed)

    def mined(self, seed: int) -> pd.DataFrame:
        """`tables.mined` of every arm that mines and trains on one set.

        Teachers differ in their scale. Where arms have several, there is a column COMMON as well.
        """
        chosen = [arm for arm in self.arms if arm.method is not None and len(arm.train) == 1]
        rows = []
        for arm in chosen:
            table = self.negatives(arm, seed)
            row = mined_table(self.dataset(arm, seed), {arm.label: table}, arm.num_negatives)
            if len({other.teachers for other in chosen}) > 1 and ":" not in arm.train[0]:
                row[COMMON] = self._common_hardness(table, arm.train[0])
            rows.append(row)
        return pd.concat(rows).rename_axis("arm")

    def _common_hardness(self, table: pa.Table, train: str) -> float:
        """Mean score of negatives ÷ that of their positives, by the profile's teacher."""
        rows = negatives.rows_of(table, self.workspace.train(train))
        scorer = self.workspace.scorer(None, train)
        queries = rows["query"].to_numpy()
        means = [scorer.pair_scores(queries, rows[kind].to_numpy()).mean()
                 for kind in ("negative", "positive")]  # fmt: skip
        return float(means[0] / means[1])

    def treated(self, seed: int) -> pd.DataFrame:
        """`treatments.report` of the arms that mine a training set with hidden labels."""
        parts = []
        for arm in self.arms:
            if arm.method is not None and len(arm.train) == 1 and ":" in arm.train[0]:
                train, table = arm.train[0], {arm.label: self.negatives(arm, seed)}
                way = "kept" if self.workspace.near_duplicates(train) is None else "excluded"
                rows = treatments.report(table, self.workspace.hidden(train).pairs)
                parts.append(rows.assign(train=train, **{"near-duplicates": way}))
        return pd.concat(parts).set_index("arm")

    def by_teacher(self) -> dict[str, dict[str, pa.Table]]:
        """Training set -> teacher -> negatives, of the arms with a single teacher."""
        sets: dict[str, dict[str, pa.Table]] = {}
        for arm in self.arms:
            if len(arm.teachers) == 1 and len(arm.train) == 1:
                tables = sets.setdefault(arm.train[0], {})
                tables.setdefault(arm.teachers[0], self.negatives(arm, self.settings.seeds[0]))
        return sets

    def repeats(self, seed: int) -> pd.DataFrame:
        """How many different passages each ensemble gives a pair, and what repeats weigh."""
        ensembled = [arm for arm in self.arms if arm.ensemble is not None]
        return pd.DataFrame(
            {"arm": arm.label, **overlap.repeats(self.negatives(arm, seed))} for arm in ensembled
        )

    def composition(self) -> pd.DataFrame:
        """Questions and passages of each training set in each mixture."""
        rows = {}
        for arm in self.arms:
            parts = self._parts(arm, self.settings.seeds[0]) if len(arm.train) > 1 else {}
            for name, part in parts.items():
                rows[arm.mixture_temperature, name] = {
                    "mixture temperature": arm.mixture_temperature,
                    "set": name,
                    "questions": part.queries.num_rows,
                    "passages": part.corpus.num_rows,
                }
        return pd.DataFrame(rows.values())


def _last_stage(arm: Arm) -> Arm:
    """The arm as its last stage trains it."""
    second = arm.stage_two is not None
    return replace(arm, num_negatives=arm.stage_two, stage_two=None) if second else arm


def _kept(stage: str, key: dict[str, Any]) -> Path:
    """Where `store.stage` keeps a result."""
    return store.cache_dir() / stage / store.fingerprint(key)


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One job at a time, so that a model is not removed while another job tests it."""
    with store.locked(place) if processes.is_main_process() else contextlib.nullcontext():
        yield


def studies(workspace: Workspace, names: Sequence[str]) -> list[Study]:
    """The studies of these notebooks; a notebook without one is left out."""
    return [Study(workspace, name) for name in names if name in workspace.settings.studies]
