"""A study: mine, train and evaluate every arm for every seed; resumable at each step."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import assets, methods, negatives, sampling, teachers
from nvret.analysis import overlap
from nvret.data import RetrievalDataset
from nvret.models import batching
from nvret.study import paths, tables, treatments
from nvret.study.arms import Arm
from nvret.study.config import Settings, expand
from nvret.study.material import Material
from nvret.study.scores import COLLAPSED, METRIC, Results, collapsed
from nvret.study.workspace import Workspace, inputs, model_fingerprint, place
from nvret.training.config import TrainingConfig
from nvret.utils import cache as contents
from nvret.utils import machine, processes, store
from nvret.utils.bars import progress_bar

COMMON = "hardness by one teacher"  # the profile's, whoever mined
LOG = "training_log.parquet"
LENGTHS = ("query_max_length", "passage_max_length")
Key = tuple[str, dict[str, Any]]  # a stage of the store, and what the key of its result is made of
_workspace: Workspace  # a helper's
# Options that came after the first results
LATER = ("freeze_layers", "keep_frozen", "mask_perc", "hardness")


class Study(Material):
    """What a notebook compares: the arms' models, trained when they are asked for, and tested."""

    def run(self, helper: Executor | None = None) -> Results:
        """Train and evaluate every arm; an interrupted run continues where it stopped.

        Seed by seed, so that early results are comparable. Each student has a bar of its own,
        since only its own models take about the same time.

        Args:
            helper: one other process, in which `join` was called. It takes the models from the
                last to the first until the two meet: with half of the threads each, they wait less
                for each other than the threads of one operator do.
        """
        found: dict[tuple[str, int], tuple[pd.DataFrame, pd.DataFrame]] = {}
        other = None
        with batching.remember_tokens():
            if helper and len(left := self._left()) > 1:
                other = helper.submit(help_with, self.name, left)
            for student, some in self._parted():
                for arm, seed in self._shown(student, some):
                    found[arm.label, seed] = self._evaluated(arm, seed)
                    machine.free_memory()
        if other:
            other.result()
        listed = [(arm.label, seed) for own in self.by_student for arm, seed in self._todo(own)]
        scores, logs = (
            [found[key][table].assign(arm=key[0], seed=key[1]) for key in listed]
            for table in range(2)
        )
        first = self.settings.seeds[0]
        mined = (
            ((arm.label, self.negatives(arm, first)) for arm in own)
            for own in self.by_student.values()
        )
        results = Results.of(
            pd.DataFrame([{"arm": arm.label, **arm.row} for arm in self.arms]).set_index("arm"),
            pd.concat(scores, ignore_index=True),
            pd.concat(logs, ignore_index=True),
            self.workspace.dev.name,
            primary=self.primary,
            corpora=self._corpora(),
            differing=pd.concat(map(tables.differing, mined)),
        )
        results.save(paths.scores_path(self.settings, self.name))
        return results

    def _left(self) -> list[tuple[Arm, int]]:
        """Arms to train and their seeds; what they share is in the store then."""
        todo = [pair for _, some in self._parted() for pair in some]
        for arm, seed in todo:
            if not arm.trained:
                self._evaluated(arm, seed)  # which reads the test sets
        # A model that several arms share once: whoever finds one done takes it that the two met
        missing = {self._name(*pair): pair for pair in todo if self._missing(*pair)}
        left = list(missing.values())
        for arm, _ in left:
            for train in arm.train if self.settings.students[arm.student].head else ():
                for kind in ("query", "passage"):
                    self._embedded(arm.student, train, kind)
        return left

    def _todo(self, student: str) -> list[tuple[Arm, int]]:
        """A student's arms and seeds; what is not trained has one seed."""
        arms, seeds = self.by_student[student], self.settings.seeds_of(student, self.name)
        return [(arm, seed) for seed in seeds for arm in arms if arm.trained or seed == seeds[0]]

    def _parted(self) -> list[tuple[str, list[tuple[Arm, int]]]]:
        """The same of all students: those that train for minutes at both ends, from which two
        processes begin, so that they meet where a model takes a second."""
        each = {student: self._todo(student) for student in self.by_student}
        ends: list[list[tuple[str, list[tuple[Arm, int]]]]] = [[], []]
        for student in [name for name in each if self._trains_long(name)]:
            some = each.pop(student)
            middle = len(some) // 2
            ends[0].append((student, some[:middle]))
            ends[1].append((student, some[middle:]))
        return [*ends[0], *each.items(), *ends[1]]

    def _trains_long(self, student: str) -> bool:
        chosen = self.settings.students[student]
        known = assets.models().get(chosen.model)  # what it is not is said where it is loaded
        return not chosen.head and known is not None and not known.layout.static

    def _shown(self, student: str, some: list[tuple[Arm, int]]) -> Iterator[tuple[Arm, int]]:
        """A student's arms and seeds under a bar."""
        name, show = f"{self.name} {student}", self.workspace.progress
        bar = progress_bar(some, desc=name, unit="model", show=show)
        for arm, seed in bar:
            bar.set_postfix_str(f"{', '.join([arm.method_name, *arm.changed])}, seed {seed}")
            yield arm, seed

    @property
    def design(self) -> pd.DataFrame:
        """The experiment: a row for each line of the study's grid, with what it runs through."""
        rows, seeds = [], self.settings.seeds_of
        for grid in self.settings.studies[self.name].runs:
            values = grid.model_dump(exclude_unset=True)
            lists = {k: v if isinstance(v, list) else [v] for k, v in values.items()}
            students, own = lists.pop("student"), lists.pop("method")
            rest = (
                f"{key.replace('_', ' ')}: {', '.join(map(str, v))}" for key, v in lists.items()
            )
            each = expand(grid)
            models = sum(len(seeds(one["student"], self.name)) for one in each)
            rows.append((", ".join(students), ", ".join(own), "; ".join(rest), len(each), models))
        names = ["student", "negatives", "and", "arms", "models"]
        return pd.DataFrame(rows, columns=names)

    # The models

    def model(self, arm: Arm, seed: int) -> Path:
        """The folder of an arm's model, trained now or before."""
        base = assets.model_path(self.settings.students[arm.student].model)
        if not arm.trained:
            return base
        output = self._place(arm, seed)
        if not store.find(output):
            first = replace(arm, stage_two=None)
            with contextlib.ExitStack() as stack:
                if arm != first:  # whose model stays until this one is trained
                    stack.enter_context(_only_job(self._place(first, seed).name))
                    base = self.model(first, seed)
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
        # What changes no result is in no key, nor is a later option where it is not used
        unused = [name for name in LATER if not getattr(config, name)]
        key = store.fingerprint(
            start,
            dataset.fingerprint,
            table,
            config.model_dump(exclude={"checkpoint_steps", *unused}),
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
        from nvret.training import head

        dataset, table, config, guide = self._training(arm, seed)
        options = {"seed": seed, "guide": guide, "progress": self.workspace.progress}
        if self.settings.students[arm.student].head:
            vectors = self._vectors(arm, seed)
            usual = TrainingConfig().model_dump(include=set(LENGTHS))  # vectors are cut already
            config = config.model_copy(update=usual)
            with self._threads(arm):
                head.train_head(dataset, table, *vectors, output, config, **options)
        else:
            device = self.settings.device
            with self._threads(arm):
                training.finetune(base, dataset, table, output, config, device=device, **options)

    def _threads(self, arm: Arm) -> contextlib.AbstractContextManager[None]:
        """Half of them, with or without a helper: how sums round depends on their number."""
        own = arm.trained and self.settings.device == "cpu"
        return machine.half_the_threads() if own else contextlib.nullcontext()

    # A head on a frozen model

    def _vectors(self, arm: Arm, seed: int) -> list[np.ndarray]:
        """The frozen model's (Q, D) and (N, D) vectors of what an arm trains on."""
        parts = self._parts(arm, seed)
        vectors = []
        for kind, table in (("query", "queries"), ("passage", "corpus")):
            each = []
            for name, part in parts.items():
                few, many = (getattr(d, table)["id"] for d in (part, self.workspace.train(name)))
                rows = pc.index_in(few, many).to_numpy()
                each.append(self._embedded(arm.student, name, kind)[rows])
            vectors.append(np.concatenate(each))
        return vectors

    @cache  # noqa: B019
    def _embedded(self, student: str, train: str, kind: str) -> np.ndarray:
        """The vectors of a whole training set's questions or passages, which all arms share."""
        from nvret.encode import embed

        whole, show = self.workspace.train(train), self.workspace.progress
        texts = whole.query_texts if kind == "query" else whole.passages
        length = getattr(self.settings.students[student].training, f"{kind}_max_length")
        options = {"max_length": length, "wholes": self.workspace.wholes, "progress": show}
        return embed(self._frozen(student), texts, kind, **options)

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

            own = folder if arm.trained else None
            return HeadEncoder(self._frozen(arm.student), own, self.workspace.wholes)
        own = {} if arm.trained else {"pooling": arm.pooling, "bidirectional": arm.bidirectional}
        return encode.Encoder.load(folder, device=self.settings.device, **own)

    # What a model is worth

    def _evaluated(self, arm: Arm, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Per-query scores of one model on its test sets, and the log of its training.

        They are kept under a hash of all that makes the model, so that a finished run is read back
        without it. The model itself goes when it has been tested, if the profile keeps none.
        """
        if missing := self._missing(arm, seed):
            with _only_job(self._name(arm, seed)):
                missing = self._missing(arm, seed)  # of which another may have done some
                model = self.model(arm, seed) if missing else None
                with store.timed("testing"), self._threads(arm):
                    self._test(arm, model, {k: v for k, v in missing.items() if k != LOG})
                if LOG in missing:
                    store.stage(*missing[LOG], lambda folder: shutil.copy(model / LOG, folder))
                kept = self.settings.keep_models or not arm.trained
                if missing and not kept and processes.is_main_process():
                    contents.remove(contents.Entry(model, 0, 0.0, leftover=False))
        folders = {name: place(*key) for name, key in self._keys(arm, seed).items()}
        logs = pd.read_parquet(folders.pop(LOG) / LOG) if arm.trained else pd.DataFrame()
        frames = {name: pd.read_parquet(path / "scores.parquet") for name, path in folders.items()}
        scores = [frame.assign(dataset=name) for name, frame in frames.items()]
        return pd.concat(scores, ignore_index=True), logs

    def _missing(self, arm: Arm, seed: int) -> dict[str, Key]:
        """Those of `_keys` whose results are not in the store."""
        return {n: key for n, key in self._keys(arm, seed).items() if not store.find(place(*key))}

    def _keys(self, arm: Arm, seed: int) -> dict[str, Key]:
        """What a model's scores are kept under, by test set; by LOG the log of its training."""
        config = self.settings.students[arm.student].training
        shared = {
            "model": self._name(arm, seed),
            "pooling": None if arm.trained else [arm.pooling, arm.bidirectional],
            "lengths": [getattr(config, name) for name in LENGTHS],
        }
        keys = {
            name: ("scores", inputs("scores", **shared, test=test.fingerprint))
            for name, test in self.tests_of(arm).items()
        }
        log = {LOG: ("logs", inputs("logs", model=shared["model"]))}
        return keys | log if arm.trained else keys

    def _name(self, arm: Arm, seed: int) -> str:
        """A hash of all that makes an arm's model."""
        folder = self._place(arm, seed) if arm.trained else self.model(arm, seed)
        return folder.name if arm.trained else model_fingerprint(folder)

    def _test(self, arm: Arm, model: Path, keys: dict[str, Key]) -> None:
        """Put a model's scores on these test sets into the store; shared texts are encoded once."""
        from nvret import evaluation

        config, tests = self.settings.students[arm.student].training, self.tests_of(arm)
        lengths = {name: getattr(config, name) for name in LENGTHS}
        encoder = None
        for names in self._sharing(keys):
            encoder = encoder or self._encoder(arm, model)
            sets = [tests[name] for name in names]
            found = evaluation.evaluate_all(encoder, sets, **lengths, progress=False)
            for name, one in zip(names, found, strict=True):

                def save(target: Path, test=tests[name], one=one) -> None:
                    scores = one.scores.select(["query_id", METRIC, "recall_at_100"]).to_pandas()
                    if "cluster" in test.corpus.column_names:
                        scores[COLLAPSED] = collapsed(one, test).values(METRIC)
                    scores.to_parquet(target / "scores.parquet")

                store.stage(*keys[name], save)

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
            row = tables.mined(self.dataset(arm, seed), {arm.label: table}, arm.num_negatives)
            if len({other.teachers for other in chosen}) > 1 and ":" not in arm.train[0]:
                row[COMMON] = self._common_hardness(table, arm.train[0])
            rows.append(row)
        return pd.concat(rows).rename_axis("arm")

    def _common_hardness(self, table: pa.Table, train: str) -> float:
        """Mean score of negatives ÷ that of their positives, by the profile's teacher."""
        if not table.num_rows:
            return float("nan")
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
                own = sets.setdefault(arm.train[0], {})
                own.setdefault(arm.teachers[0], self.negatives(arm, self.settings.seeds[0]))
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
                numbers = part.queries.num_rows, part.corpus.num_rows
                rows[arm.mixture_temperature, name] = arm.mixture_temperature, name, *numbers
        columns = ["mixture temperature", "set", "questions", "passages"]
        return pd.DataFrame(list(rows.values()), columns=columns)


@contextlib.contextmanager
def _only_job(model: str) -> Iterator[None]:
    """Of those that share the store, the one that trains, tests or uses a model."""
    lock = store.locked(store.cache_dir() / "tested" / model)
    with lock if processes.is_main_process() else contextlib.nullcontext():
        yield


def join(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """What a helper of `Study.run` begins with; the environment as of `processes.serve`."""
    global _workspace
    processes.serve(environment)
    _workspace = Workspace(settings, progress=False)


def help_with(name: str, left: Sequence[tuple[Arm, int]]) -> None:
    """Train and test what is left of a study, from the last to the first, until the other has."""
    study = Study(_workspace, name)
    with batching.remember_tokens():
        for arm, seed in reversed(left):
            if not study._missing(arm, seed):
                break
            study._evaluated(arm, seed)
            machine.free_memory()


def _last_stage(arm: Arm) -> Arm:
    """The arm as its last stage trains it."""
    second = arm.stage_two is not None
    return replace(arm, num_negatives=arm.stage_two, stage_two=None) if second else arm


def studies(workspace: Workspace, names: Sequence[str]) -> list[Study]:
    """The studies of these notebooks; a notebook without one is left out."""
    return [Study(workspace, name) for name in names if name in workspace.settings.studies]
