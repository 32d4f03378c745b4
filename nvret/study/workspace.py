"""What the studies of a profile share: the sets, split and free of leaks, and their teachers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from nvret import assets, data, mining, teachers
from nvret.data import RetrievalDataset
from nvret.scale import faiss_index
from nvret.study import config, mixtures, splits
from nvret.utils import recipes, store


class Workspace:
    """Each part is computed when it is asked for, or found in the store.

    Args:
        settings: of the profile.
        progress: show bars.
    """

    def __init__(self, settings: config.Settings, *, progress: bool = True) -> None:
        self.settings = settings
        self.progress = progress

    @cached_property
    def parts(self) -> splits.Split:
        """The first training set, split by near-duplicate cluster."""
        chosen = self.settings.data
        return splits.split(
            data.load(chosen.train),
            dev=chosen.dev_fraction,
            test=chosen.test_fraction,
            corpus=chosen.test_corpus,
        )

    @cached_property
    def dev(self) -> RetrievalDataset:
        """Held-out questions to choose a value on."""
        return mixtures.sample(self.parts.dev, self.settings.data.test_queries)

    @cached_property
    def tests(self) -> dict[str, RetrievalDataset]:
        """Held-out questions of the training set, and the students' sets of other domains."""
        students = self.settings.students.values()
        names = dict.fromkeys(name for student in students for name in student.out_of_domain)
        tests = {self.parts.test.name: self.parts.test} | {name: data.load(name) for name in names}
        number = self.settings.data.test_queries
        return {name: mixtures.sample(test, number) for name, test in tests.items()}

    @cache  # noqa: B019 (it lives as long as the process)
    def tests_of(
        self, student: str, *, dev: bool = False, out_of_domain: bool = True
    ) -> dict[str, RetrievalDataset]:
        """The sets that a student is tested on, cut to what the profile asks of it."""
        chosen = self.settings.students[student]
        names = [self.parts.test.name, *(chosen.out_of_domain if out_of_domain else [])]
        found = {name: self.tests[name] for name in names}
        found |= {self.dev.name: self.dev} if dev else {}
        return {
            name: mixtures.sample_passages(
                mixtures.sample(test, chosen.test_queries), chosen.test_passages
            )
            for name, test in found.items()
        }

    @property
    def training_sets(self) -> list[str]:
        """Names of all sets that a study trains on, the profile's own first."""
        names = [self.settings.data.train]
        for study in self.settings.studies.values():
            for grid in study.runs:
                listed = grid.train if isinstance(grid.train, list) else [grid.train]
                names += [part for name in listed if name for part in name.split("+")]
        return list(dict.fromkeys(names))

    @cached_property
    def most_queries(self) -> int | None:
        """As many questions of a set as the most demanding run of the profile takes."""
        asked = [student.queries for student in self.settings.students.values()]
        for study in self.settings.studies.values():
            for grid in study.runs:
                listed = grid.queries if isinstance(grid.queries, list) else [grid.queries]
                asked += [number for number in listed if number is not None]
        return None if None in asked else max(asked)

    @cache  # noqa: B019
    def train(self, name: str | None = None) -> RetrievalDataset:
        """A set's questions to mine and train on: as many as any run takes, all passages."""
        return mixtures.sample(self.whole(name or self.settings.data.train), self.most_queries)

    @cache  # noqa: B019
    def whole(self, name: str) -> RetrievalDataset:
        """A training set, less whatever leaks into a test set."""
        first = name == self.settings.data.train
        whole = self.parts.train if first else data.load(name)
        lost = self.leaks(name)
        if lost["queries"] or lost["passages"]:
            whole = splits.without(whole, set(lost["passages"]), set(lost["queries"]))
        return whole

    @cache  # noqa: B019
    def leaks(self, name: str) -> dict[str, list[str]]:
        """Ids of a training set's passages and questions that give away one of a test set."""
        threshold = self.settings.data.leak_threshold
        if threshold is None:
            return {"passages": [], "queries": []}
        first = name == self.settings.data.train
        train = self.parts.train if first else data.load(name)
        found: dict[str, set[str]] = {"passages": set(), "queries": set()}
        tests = [self.parts.test, self.parts.dev, *list(self.tests.values())[1:]]
        for test in tests[2:] if first else tests:  # a split does not leak into itself
            inputs = {
                "train": train.fingerprint,
                "test": test.fingerprint,
                "threshold": threshold,
                "code": recipes.versions("near-duplicates", "splits"),
            }

            def build(folder: Path, test: RetrievalDataset = test) -> None:
                leaks = splits.leaks(train, test, threshold=threshold)
                store.write_json(folder / "leaks.json", leaks._asdict())

            folder = store.stage("leaks", inputs, build)
            pairs = json.loads((folder / "leaks.json").read_text(encoding="utf-8"))
            for kind, ids in found.items():
                ids.update(mine for _, mine in pairs[kind])
        return {kind: sorted(ids) for kind, ids in found.items()}

    @cache  # noqa: B019
    def teacher(self, name: str | None = None) -> teachers.Teacher:
        """A teacher of the profile; its default one, if no name is given."""
        name = name or self.settings.teacher
        chosen = self.settings.teacher_named(name, "teacher")
        if name == "bm25":
            return teachers.BM25Teacher()
        lengths = chosen.query_max_length, chosen.passage_max_length
        index = faiss_index.Index(chosen.index, chosen.probes) if chosen.index else None
        return teachers.DenseTeacher(name, *lengths, self.settings.device, chosen.dtype, index)

    @cache  # noqa: B019
    def scorer(self, name: str | None = None, train: str | None = None) -> teachers.Scorer:
        """A teacher that has read a training set."""
        return teachers.prepare(self.teacher(name), self.train(train), progress=self.progress)

    @cache  # noqa: B019
    def forbidden(self, train: str | None = None) -> list[np.ndarray]:
        """For each question of a training set the passages that are never its negatives."""
        return mining.exclusions(self.train(train), self.settings.mining.near_duplicates)

    def teacher_scores(self, name: str) -> dict[str, np.ndarray]:
        """A teacher's own NDCG@10 of every query, (1, Q) for each test set and the dev split."""
        from nvret import evaluation

        found = {}
        for test_name, test in {**self.tests, self.dev.name: self.dev}.items():
            scorer = teachers.prepare(self.teacher(name), test, progress=self.progress)
            inputs = {
                "teacher": scorer.fingerprint,
                "test": test.fingerprint,
                "code": recipes.versions("vectors", "search", "bm25", "evaluation"),
            }

            def build(
                folder: Path, test: RetrievalDataset = test, scorer: teachers.Scorer = scorer
            ) -> None:
                ranked = scorer.top_k(np.arange(test.queries.num_rows), 100)
                scores = evaluation.evaluate_ranking(
                    ranked.ids.numpy(), ranked.scores.numpy(), test
                )
                np.save(folder / "ndcg_at_10.npy", scores.values("ndcg_at_10"))

            folder = store.stage("teacher-scores", inputs, build)
            found[test_name] = np.load(folder / "ndcg_at_10.npy", allow_pickle=False)[None]
        return found

    def fingerprints(self, names: Sequence[str]) -> dict[str, str]:
        """Content hashes of the profile's questions and of these data sets and models.

        Args:
            names: of data sets and models, as ``nvret.assets`` knows them.
        """
        found = {f"train: {self.train().name}": self.train().fingerprint}
        found |= {f"test: {name}": test.fingerprint for name, test in self.tests.items()}
        known = assets.models()
        for name in names:
            model = name in known
            hashed = model_fingerprint(name) if model else data.load(name).fingerprint
            found[f"{'model' if model else 'data'}: {name}"] = hashed
        return found


@cache
def model_fingerprint(name: str | Path) -> str:
    """Content hash of a model, by its name or folder: its weights, tokenizer and pooling."""
    from nvret.encode import Encoder

    return Encoder.load(assets.model_folder(str(name))).fingerprint
