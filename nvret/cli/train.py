"""``nvret train``: the models of a profile, or one model on own data and negatives."""

from __future__ import annotations

import typing
from pathlib import Path

from pydantic import ValidationError

from nvret.cli import options, profile
from nvret.cli.options import Only, OwnData, PassagePrompt, Profile, QueryPrompt, Seed, spelled
from nvret.training.config import TrainingConfig
from nvret.utils import settings
from nvret.utils.errors import NvretError

TrainingOptions = options.group_of(
    "training",
    "How the model is trained.",
    {
        name: (kind, field.description + f" ({field.default})" * (field.default is not None))
        for name, kind in typing.get_type_hints(TrainingConfig).items()
        if (field := TrainingConfig.model_fields.get(name))
    },
)


@options.group("model")
class ModelOptions:
    """What is trained.

    Attributes:
        negatives: the Parquet file of `nvret mine`
        student: a name (minilm-l6), a folder (./mine), or of the hub owner/name@revision
        output: folder to make; loads in sentence-transformers
        guide: a teacher for --mask-margin: bm25, or a model as --student
        seed: of the order of the pairs
        device: cpu or cuda (CUDA where there is one)
    """

    negatives: Path | None = None
    student: str | None = None
    output: Path | None = None
    guide: str | None = None
    query_prompt: QueryPrompt = None
    passage_prompt: PassagePrompt = None
    seed: Seed = 0
    device: str | None = None


def train(
    params: Profile | None = None,
    /,
    *,
    only: Only = None,
    data: OwnData = OwnData(),
    model: ModelOptions = ModelOptions(),
    training: TrainingOptions = TrainingOptions(),
) -> None:
    """Fine-tune: the models of a profile, or a model on your own negatives.

    A profile takes --only and no other option, and may run under torchrun. An interrupted run
    continues where it stopped.
    """
    if params is not None:
        options.refuse(params, train, data, model, training)
        profile.stage("train", params, only)
        return
    needed = ("negatives", "student", "output")
    if missing := [spelled(name) for name in needed if getattr(model, name) is None]:
        raise NvretError(f"train needs a profile, or your data and {', '.join(missing)}")
    if not model.output.name:
        raise NvretError(f"--output {model.output} has no name, expected a folder to make")
    data.check("train needs a profile, or")
    try:
        config = TrainingConfig(**options.given(training))
    except ValidationError as error:
        lines = [
            settings.line(problem, "".join(map(spelled, problem["loc"])), TrainingConfig)
            for problem in error.errors()
        ]
        raise NvretError("; ".join(lines)) from None
    from nvret import assets, negatives, teachers
    from nvret.training import finetune
    from nvret.utils import machine, processes

    # All that can be checked is checked before the data are read
    assets.check_model(model.student)
    if model.guide not in (None, "bm25"):
        assets.check_model(model.guide, others=("bm25",))
    machine.check_device(model.device or "cpu")
    table = negatives.load(model.negatives)
    dataset = data.load()
    guide = teachers.prepare(model.guide, dataset) if model.guide else None
    log = finetune(
        assets.model_folder(model.student), dataset, table, model.output, config,
        seed=model.seed, device=model.device, guide=guide,
        prompts=options.prompts(model.query_prompt, model.passage_prompt),
    )  # fmt: skip
    if processes.is_main_process():
        loss = log["loss"][-1].as_py()
        print(f"{model.output}: trained on {len(dataset.pairs[0])} pairs, loss {loss:.3f} at last")
