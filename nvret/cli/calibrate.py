"""``nvret calibrate``: the ceiling under which no more than a given share of negatives is false."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from nvret.cli import options
from nvret.cli.options import Count, OwnData, Share, TeacherOptions
from nvret.utils.errors import NvretError


def share(kind: type, tokens: Sequence[Token]) -> float:
    """A share such as 0.02, or 2%."""
    text = tokens[0].value
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{text!r} is no share, expected 2% or 0.02") from None
    if not 0 < value < 1:
        raise ValueError(f"{text} is not between 0% and 100%")
    return value


def calibrate(
    *,
    data: OwnData = OwnData(),
    teacher: TeacherOptions = TeacherOptions(),
    target: Annotated[float, Parameter(converter=share)] = 0.02,
    method: Literal["perc-pos", "margin-pos", "abs", "shifted"] = "perc-pos",
    num_negatives: Count = 4,
    near_duplicates: Share | None = 0.8,
    labels: Path | None = None,
    judge: str | None = None,
    labelled: Count = 200,
    sample: Path | None = None,
    max_pairs: Count = 5000,
    output: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Find the ceiling under which no more than a share of the negatives is false.

    It needs to know some passages that answer a query beside its labelled positive: from queries
    with several positives (all but one are hidden; 50 such queries or more), from --labels, or from
    a --judge. --sample writes a page on which a person labels pairs. With none of these, the scores
    alone give a rough estimate.

    Args:
        target: share of the negatives that may be false: 2% or 0.02
        method: whose parameter is sought
        num_negatives: of each pair of query and positive
        near_duplicates: as of `nvret mine`
        labels: a .tsv of judged pairs: query-id, corpus-id and score, 0 if not relevant
        judge: a model that labels: a cross-encoder, an embedding model or a language model
        labelled: pairs that the judge reads, or that the page holds
        sample: an .html page to label pairs on, instead of an answer; with --labels a further one,
            of pairs near the target by these labels
        max_pairs: pairs of query and positive that are looked at
        output: a .json of the answer and the whole curve
        overwrite: replace files
    """
    import pyarrow.compute as pc

    from nvret import mining, teachers
    from nvret.analysis import audit, ladder
    from nvret.analysis import calibrate as calibration
    from nvret.io import candidates, inputs

    teacher.check()
    if not teacher.candidates or options.given(data):
        data.check("calibrate needs")
    name = None if teacher.candidates else teacher.only("calibrate")
    if labels and judge:
        raise NvretError("--labels and --judge are two sources, expected one")
    options.check_output("sample", sample, ".html", overwrite=overwrite)
    options.check_output("output", output, ".json", overwrite=overwrite)
    built = None if name is None else teacher.build(name)
    judgements = None if labels is None else inputs.qrels(labels)[0]
    reader = options.load_judge("judge", judge, teacher.device)
    if built is None:
        dataset, scorer = options.ranked(data, teacher.candidates)
        dataset = candidates.scored(dataset, scorer)
    else:
        dataset = data.load()
    whole = dataset.queries["id"]
    several = sum(len(rows) > 1 for rows in dataset.positives) >= calibration.SEVERAL
    hidden = audit.hide(dataset) if several and not (labels or judge or sample) else None
    dataset = dataset if hidden is None else hidden.dataset
    if built is None:
        scorer = scorer.select(pc.index_in(dataset.queries["id"], whole).to_numpy())
    else:
        scorer = teachers.prepare(built, dataset)
    exclude = mining.exclusions(dataset, near_duplicates)
    steps = ladder.build(dataset, scorer, method, num_negatives, exclude, pairs=max_pairs)
    if sample:
        page = calibration.sample(steps, target, labelled, labels=judgements)
        options.write_text(sample, calibration.page(page))
        print(f"{sample}: {len(page)} pairs to label; save the labels, and give them as --labels")
        return
    if hidden is not None:
        found = calibration.by_hidden(steps, hidden, target)
    elif judgements is not None:
        found = calibration.by_labels(steps, judgements, target)
    elif reader is not None:
        found = calibration.by_judge(steps, reader, target, labelled)
    else:
        found = calibration.by_scores(steps, target)
    print(calibration.describe(found, method))
    options.write_text(output, json.dumps(calibration.record(found), indent=1))
