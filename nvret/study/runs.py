"""A study: mine, train and evaluate every arm for every seed; resumable at each step.

Every method trains on exactly the same (query, positive) pairs in the same order for a seed. What
a method could not fill is counted, never made up by leaving a query out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from nvret import assets, teachers
from nvret.data import RetrievalDataset
from nvret.models import batching
from nvret.study import paths
from nvret.study.arms import Arm
from nvret.study.scores import Results
from nvret.study.training_data import TrainingData
from nvret.study.workspace import Workspace, model_fingerprint
from nvret.utils import recipes, store


class Study(TrainingData):
    """What a notebook compares. Each part is computed when it is asked for, or found in the store.

    Args:
        material: of the profile.
        name: of the notebook.
    """

    def __init__(self, material: Workspace, name: str) -> None:
        super().__init__(material, name)
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
            model_fingerprint(base),
            dataset.fingerprint,
            table,
            config.model_dump(),
            guide.fingerprint if guide else None,
            seed,
            recipes.versions("vectors", "training"),
        )
        output = store.cache_dir() / "training" / key
        if not store.find(output):
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
            store.publish(output)
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
        results.save(paths.scores_path(self.settings, self.name))
        return results

    def _evaluated(self, arm: Arm, folder: Path) -> pd.DataFrame:
        """Per-query scores of one model on the student's test sets.

        They are kept under the name of the model's folder, which is a hash of all that made it,
        so that a finished run is read back without loading a single model.
        """
        from nvret import encode, evaluation

        lengths = self.settings.students[arm.student].training
        found, encoder = [], None
        for name, test in self.material.tests_of(arm.student, **self.tested_on).items():
            inputs = {
                "model": folder.name,
                "pooling": None if arm.trained else [arm.pooling, arm.bidirectional],
                "test": test.fingerprint,
                "lengths": [lengths.query_max_length, lengths.passage_max_length],
                "recipe": recipes.versions("vectors", "search", "evaluation"),
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


def studies(material: Workspace, names: Sequence[str]) -> list[Study]:
    """The studies of these notebooks; a notebook without one is left out."""
    return [Study(material, name) for name in names if name in material.settings.studies]
