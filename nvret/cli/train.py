"""``nvret train``: the models of a profile, or one model on your own data and negatives."""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path

from nvret.cli import own_data, profile
from nvret.utils.errors import NvretError

NEEDED = ("negatives", "student", "output")


def add(commands: argparse._SubParsersAction) -> None:
    """Describe the command; the options of training are the fields of ``TrainingConfig``."""
    parser = commands.add_parser(
        "train", help="fine-tune: the models of a profile, or a model on your own negatives",
        description="Fine-tune the models of a profile (also under torchrun), or one model on the "
        "negatives that `nvret mine` wrote. An interrupted run continues where it stopped.",
    )  # fmt: skip
    parser.add_argument("params", type=Path, nargs="?", help="a profile; takes --only alone")
    parser.add_argument("--only", action="append", metavar="NOTEBOOK", help="only its arms")
    own_data.add(parser)
    own = parser.add_argument_group("model")
    own.add_argument("--negatives", type=Path, help="the Parquet file of `nvret mine`")
    own.add_argument("--student", help="a model's name, folder or hub id")
    own.add_argument("--output", type=Path, help="folder to make; loads in sentence-transformers")
    own.add_argument("--guide", metavar="TEACHER", help="for --mask-margin: bm25 or a model")
    own.add_argument("--seed", type=int, default=0, help="of the order of the pairs (0)")
    own.add_argument("--device", help="cpu or cuda (CUDA where there is one)")
    _add_config(parser.add_argument_group("training"))
    parser.set_defaults(command=run, stage="train")


def _add_config(group: argparse._ArgumentGroup) -> None:
    from nvret.training_config import TrainingConfig

    types_of = typing.get_type_hints(TrainingConfig)
    for name, field in TrainingConfig.model_fields.items():
        option = f"--{name.replace('_', '-')}"
        said = f"{' '.join(field.description.split())} ({field.default})".replace("%", "%%")
        kind = types_of[name]
        if isinstance(kind, types.UnionType):  # ``int | None``: None is what is not given
            kind = next(one for one in typing.get_args(kind) if one is not type(None))
        chosen = {"default": argparse.SUPPRESS, "help": said}
        if kind is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **chosen)
        elif typing.get_origin(kind) is typing.Literal:
            group.add_argument(option, choices=typing.get_args(kind), **chosen)
        else:
            group.add_argument(option, type=kind, metavar=kind.__name__.upper(), **chosen)


def run(chosen: argparse.Namespace) -> None:
    """Train for a profile, or on own data."""
    if chosen.params is None:
        return own(chosen)
    said = [f"--{name}" for name in NEEDED if getattr(chosen, name) is not None]
    if found := own_data.given(chosen) + said:
        raise NvretError(f"{found[0]} is not for a profile: {chosen.params} says it")
    profile.stage(chosen)


def own(chosen: argparse.Namespace) -> None:
    """Fine-tune and say where the model lies.

    Raises:
        NvretError: a profile and own data at once, or an option that is missing or out of range.
    """
    from nvret import assets, negatives, teachers, training
    from nvret.utils import processes

    given = [name for name in NEEDED if getattr(chosen, name) is not None]
    if missing := [f"--{name}" for name in NEEDED if name not in given]:
        raise NvretError(f"train needs a profile, or your data and {', '.join(missing)}")
    own_data.check(chosen, "train needs a profile, or")
    names = list(training.TrainingConfig.model_fields)
    said = {name: getattr(chosen, name) for name in names if hasattr(chosen, name)}
    config = training.TrainingConfig(**said)
    dataset = own_data.load(chosen)
    table = negatives.load(chosen.negatives)
    guide = teachers.prepare(chosen.guide, dataset) if chosen.guide else None
    log = training.finetune(
        assets.model_folder(chosen.student), dataset, table, chosen.output, config,
        seed=chosen.seed, device=chosen.device, guide=guide,
    )  # fmt: skip
    if processes.is_main_process():
        last = log["loss"][-1].as_py()
        print(f"{chosen.output}: trained on {len(dataset.pairs[0])} pairs, loss {last:.3f} at last")
