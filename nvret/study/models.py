"""The models of a study's arms: trained when they are asked for, tested, and then removed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import assets, teachers
from nvret.data import RetrievalDataset
from nvret.study.arms import Arm
from nvret.study.material import Material
from nvret.study.scores import COLLAPSED, METRIC, collapsed
from nvret.study.workspace import inputs, model_fingerprint
from nvret.training.config import TrainingConfig
from nvret.utils import cache as contents
from nvret.utils import processes, store

LOG = "training_log.parquet"


class Models(Material):
    """A model for each arm and seed."""

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
            config.model_dump(exclude=_left_out(config)),
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

    # What a model is worth

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
                with store.timed("testing"):
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
                        scores[COLLAPSED] = collapsed(one, test).values(METRIC)
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


def _left_out(config: TrainingConfig) -> set[str]:
    """What is in no key: what changes no result, and a later option where it is not used."""
    later = ("freeze_layers", "mask_perc", "hardness")
    return {"checkpoint_steps", *(name for name in later if not getattr(config, name))}


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
