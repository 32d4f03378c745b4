"""What the studies of a profile share: the sets, split and free of leaks, and their teachers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nvret import assets, data, mining, teachers
from nvret.analysis import audit
from nvret.data import RetrievalDataset
from nvret.scale import faiss_index
from nvret.study import config, mixtures, splits
from nvret.utils import recipes, store
from nvret.utils.errors import check_choice

# What each stage rests on beside its inputs: the recipes whose versions are a part of its key.
# An ensemble is drawn from mined tables when it is asked for; training's key has the table itself.
RECIPES = {
    "leaks": ("near-duplicates", "splits"),
    "mining": ("vectors", "search", "bm25", "near-duplicates", "mining"),
    "training": ("vectors", "training"),
    "head": ("vectors", "head"),
    "guide": ("vectors", "bm25"),
    "scores": ("vectors", "search", "evaluation"),
    "logs": (),  # the name of the model says all
    "teacher-scores": ("vectors", "search", "bm25", "evaluation"),
    "audit": ("vectors", "search", "bm25", "near-duplicates", "mining", "hidden-labels"),
    "judged": ("judges", "hidden-labels"),
    "calibrated": ("vectors", "search", "bm25", "near-duplicates", "hidden-labels", "calibration"),
}
# What a training set named "set:kind" hides of the labels of its training part
HIDING = {"clusters": audit.cluster_labels, "hidden": audit.hide}


def inputs(stage: str, **parts: Any) -> dict[str, Any]:
    """What the key of a stage's result is made of: these parts, and the versions of its recipes."""
    return parts | {"recipe": recipes.versions(*RECIPES[stage])}


def stored(stage: str, build: Callable[[Path], None], **parts: Any) -> Path:
    """The folder of a stage's result, from the store or built now; see `store.stage`."""
    return store.stage(stage, inputs(stage, **parts), build)


def place(stage: str, key: dict[str, Any]) -> Path:
    """Where `store.stage` keeps the result of these `inputs`."""
    return store.cache_dir() / stage / store.fingerprint(key)


class Workspace:
    """Each part is computed when it is asked for, or found in the store."""

    def __init__(self, settings: config.Settings, *, progress: bool = True) -> None:
        self.settings = settings
        self.progress = progress

    @cache  # noqa: B019 (it lives as long as the process)
    def parts(self, train: str) -> splits.Split:
        """A training set, split by near-duplicate cluster; each part with its own passages."""
        chosen = self.settings.data
        shares = {"dev": chosen.dev_fraction, "test": chosen.test_fraction}
        return splits.split(data.load(train), **shares, seed=chosen.split_seed, corpus="own")

    def held_out(self, train: str | None = None, corpus: str | None = None) -> RetrievalDataset:
        """Test questions of a training set, and what they search in.

        Args:
            train: the profile's own set, if no name is given.
            corpus: a name of ``data.corpora``; the primary one, if none is given.
        """
        chosen = self.settings.data
        return self._held_out("test", train or chosen.train, corpus or next(iter(chosen.corpora)))

    @cached_property
    def wholes(self) -> tuple[list[str], ...]:
        """All passages of each published set, of which what is encoded is often a part."""
        added = (name for kind in self.settings.data.corpora.values() for name in kind.others)
        names = dict.fromkeys([*self.training_sets, *added])
        return tuple(data.load(name).passages for name in names)

    @property
    def dev(self) -> RetrievalDataset:
        """Held-out questions to choose a value on."""
        chosen = self.settings.data
        return self._held_out("dev", chosen.train, next(iter(chosen.corpora)))

    @cache  # noqa: B019
    def _held_out(self, name: str, train: str, corpus: str) -> RetrievalDataset:
        chosen, part = self.settings.data, getattr(self.parts(train), name)
        kind, primary = chosen.corpora[corpus], next(iter(chosen.corpora))
        return splits.with_corpus(
            mixtures.sample(part, chosen.test_queries),
            data.load(train) if kind.base == "full" else None,
            {name: data.load(name) for name in kind.others if name != train},
            passages=kind.passages,
            name=part.name if corpus == primary else f"{part.name} in {corpus}",
        )

    @cached_property
    def out_of_domain(self) -> dict[str, RetrievalDataset]:
        """The students' test sets of other domains."""
        students, number = self.settings.students.values(), self.settings.data.test_queries
        names = dict.fromkeys(name for student in students for name in student.out_of_domain)
        return {name: mixtures.sample(data.load(name), number) for name in names}

    @cached_property
    def tests(self) -> dict[str, RetrievalDataset]:
        """Held-out questions of each training set in the primary corpus, and other domains."""
        held_out = map(self.held_out, self.training_sets)
        return {test.name: test for test in held_out} | self.out_of_domain

    @cache  # noqa: B019
    def tests_of(
        self,
        student: str,
        train: tuple[str, ...],
        corpora: tuple[str, ...],
        dev: bool,
        out_of_domain: bool,
    ) -> dict[str, RetrievalDataset]:
        """The sets that a student is tested on, cut to what the profile asks of it.

        Those of the training sets ``train``, in each of ``corpora``, and of other domains.
        """
        chosen = self.settings.students[student]
        sets = [self.held_out(name, corpus) for corpus in corpora for name in train]
        tests = {test.name: test for test in sets}
        names = chosen.out_of_domain if out_of_domain else []
        tests |= {name: self.out_of_domain[name] for name in names}
        tests |= {self.dev.name: self.dev} if dev else {}
        cut = {name: mixtures.sample(test, chosen.test_queries) for name, test in tests.items()}
        number = chosen.test_passages
        return {name: mixtures.sample_passages(test, number) for name, test in cut.items()}

    def _asked(self, key: str) -> list[Any]:
        """The values that the grids of all studies give a key."""
        grids = [grid for study in self.settings.studies.values() for grid in study.runs]
        values = [value[key] for grid in grids for value in config.expand(grid)]
        return [value for value in values if value is not None]

    @property
    def training_sets(self) -> list[str]:
        """Names of all sets that a study trains on, the profile's own first."""
        names = [name for mixture in self._asked("train") for name in mixture.split("+")]
        published = [name.partition(":")[0] for name in names]
        return list(dict.fromkeys([self.settings.data.train, *published]))

    @cached_property
    def most_queries(self) -> int | None:
        """As many questions of a set as the most demanding run of the profile takes; None: all."""
        asked = [student.queries for student in self.settings.students.values()]
        return None if None in asked else max(asked + self._asked("queries"))

    @cache  # noqa: B019
    def train(self, name: str | None = None) -> RetrievalDataset:
        """A set's questions to mine: all that any run takes with any seed, and all passages."""
        whole = self.whole(name or self.settings.data.train)
        return mixtures.sample(whole, self.most_queries, *self.settings.seeds)

    @cache  # noqa: B019
    def whole(self, name: str) -> RetrievalDataset:
        """The training part of a set, less what leaks into a test set, and its hidden labels."""
        if (hidden := self.hidden(name)) is not None:
            return hidden.dataset
        whole, lost = self.parts(name).train, self.leaks(name)
        if lost["queries"] or lost["passages"]:
            whole = splits.without(whole, set(lost["passages"]), set(lost["queries"]))
        return whole

    @cache  # noqa: B019
    def hidden(self, name: str) -> audit.Hidden | None:
        """What a training set such as "nq:clusters" hides; None: it shows all of its labels."""
        base, _, kind = name.partition(":")
        if not kind:
            return None
        check_choice(f"train {name}: labels to hide", kind, tuple(HIDING))
        return HIDING[kind](self.whole(base))

    def near_duplicates(self, train: str | None = None) -> float | None:
        """The mining option for a training set; hidden positives are often copies, and stay."""
        hides = train is not None and self.hidden(train) is not None
        return None if hides else self.settings.mining.near_duplicates

    @cache  # noqa: B019
    def leaks(self, name: str) -> dict[str, list[str]]:
        """Ids of a training part's passages and questions that give away one of a test set."""
        threshold = self.settings.data.leak_threshold
        if threshold is None:
            return {"passages": [], "queries": []}
        train, own = self.parts(name).train, self.settings.data.train
        others = [other for other in self.training_sets if other != name]  # none into itself
        tests = [self.parts(other).test for other in others]
        tests += [self.parts(own).dev] if name != own else []
        tests += self.out_of_domain.values()
        lost: dict[str, set[str]] = {"passages": set(), "queries": set()}
        for test in tests:

            def build(folder: Path, test: RetrievalDataset = test) -> None:
                leaks = splits.leaks(train, test, threshold=threshold)
                store.write_json(folder / "leaks.json", leaks._asdict())

            hashes = {"train": train.fingerprint, "test": test.fingerprint}
            folder = stored("leaks", build, **hashes, threshold=threshold)
            pairs = json.loads((folder / "leaks.json").read_bytes())
            for kind, ids in lost.items():
                ids.update(train_id for _, train_id in pairs[kind])
        return {kind: sorted(ids) for kind, ids in lost.items()}

    @cache  # noqa: B019
    def teacher(self, name: str | None = None) -> teachers.Teacher:
        """A teacher of the profile; its default one, if no name is given."""
        name = name or self.settings.teacher
        chosen = self.settings.teacher_named(name, "teacher")
        if name == "bm25":
            return teachers.BM25Teacher()
        lengths = chosen.query_max_length, chosen.passage_max_length
        index = faiss_index.named(chosen.index, chosen.probes)
        return teachers.DenseTeacher(
            name, *lengths, self.settings.device, chosen.dtype, index, wholes=self.wholes
        )

    @cache  # noqa: B019
    def scorer(self, name: str | None = None, train: str | None = None) -> teachers.Scorer:
        """A teacher that has read a training set."""
        return teachers.prepare(self.teacher(name), self.train(train), progress=self.progress)

    @cache  # noqa: B019
    def exclusions(self, train: str | None = None) -> list[np.ndarray]:
        """For each question of a training set the passages that are never its negatives."""
        with store.timed("copies of positives"):
            return mining.exclusions(self.train(train), self.near_duplicates(train))

    def teacher_scores(
        self, name: str, tests: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """A teacher's own NDCG@10 of every query, (1, Q) for each test set and the dev split.

        ``tests``: some of ``Workspace.tests``; None: all.
        """
        sets = [self.tests[test] for test in (self.tests if tests is None else tests)]
        return {test.name: self._teacher_scores(name, test)[None] for test in (*sets, self.dev)}

    def _teacher_scores(self, name: str, test: RetrievalDataset) -> np.ndarray:
        from nvret import evaluation

        scorer = teachers.prepare(self.teacher(name), test, progress=self.progress)

        def build(folder: Path) -> None:
            ranked = scorer.top_k(np.arange(test.queries.num_rows), 100)
            scores = evaluation.evaluate_ranking(ranked.ids.numpy(), ranked.scores.numpy(), test)
            np.save(folder / "ndcg_at_10.npy", scores.values("ndcg_at_10"))

        folder = stored("teacher-scores", build, teacher=scorer.fingerprint, test=test.fingerprint)
        return np.load(folder / "ndcg_at_10.npy", allow_pickle=False)

    def fingerprints(self, names: Sequence[str]) -> dict[str, str]:
        """Content hashes of the profile's questions and of these data sets and models."""
        hashes = {f"train: {self.train().name}": self.train().fingerprint}
        hashes |= {f"test: {name}": test.fingerprint for name, test in self.tests.items()}
        models = assets.models()
        hashes |= {f"model: {name}": model_fingerprint(name) for name in names if name in models}
        others = [name for name in names if name not in models]
        return hashes | {f"data: {name}": data.load(name).fingerprint for name in others}


@cache
def model_fingerprint(name: str | Path) -> str:
    """Content hash of a model, by its name or folder: its weights, tokenizer and pooling."""
    from nvret.encode import Encoder

    return Encoder.load(assets.model_folder(str(name))).fingerprint
