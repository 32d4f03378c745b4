"""The heavy stages of a profile, one at a time, as several processes of ``torchrun`` share them.

Each leaves its results in the store, where the next stage and the notebooks find them, whoever
computed them. Evaluation is the notebooks' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from nvret import assets
from nvret.study import notebooks
from nvret.study.arms import Arm
from nvret.study.config import Settings
from nvret.study.runs import Study, studies
from nvret.study.workspace import Workspace
from nvret.utils import processes

Stage = Callable[[Study, Arm, int], object]


def encode(study: Study, arm: Arm, seed: int) -> None:
    """The vectors of an arm's teachers for the sets that it trains on."""
    for teacher in arm.teachers:
        for train in arm.train:
            study.material.scorer(teacher, train)


def mine(study: Study, arm: Arm, seed: int) -> None:
    """An arm's negatives."""
    study.negatives(arm, seed)


def train(study: Study, arm: Arm, seed: int) -> None:
    """An arm's model."""
    study.model(arm, seed)


def run(settings: Settings, stage: Stage, names: Sequence[str] | None = None) -> int:
    """Do one stage for every arm and seed of these notebooks' studies, or of all.

    Returns:
        the number of arms to train, times seeds. What is in the store is not done again.
    """
    names = settings.notebooks if names is None else names
    first = processes.is_main_process()
    if first:  # one process downloads and converts
        assets.fetch(notebooks.assets_of(settings, names))
    processes.barrier()
    chosen = studies(Workspace(settings, progress=first), names)
    todo = [(study, arm, seed) for seed in settings.seeds for study in chosen
            for arm in study.arms if arm.trained]  # fmt: skip
    for study, arm, seed in tqdm(todo, desc=stage.__name__, unit="arm", disable=not first):
        stage(study, arm, seed)
    return len(todo)
