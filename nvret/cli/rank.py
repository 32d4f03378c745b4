"""``nvret rank``: a teacher's scores of the best candidates, to apply rules to later."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import nvret
from nvret.cli import options
from nvret.cli.options import Count, OwnData, Share, TeacherOptions
from nvret.utils.errors import NvretError

# The names of nvret.io.rankings, which takes long to import; a test compares them
Format = Literal["scored-lists", "three-part", "labeled-list", "trec"]


def rank(
    *,
    data: OwnData = OwnData(),
    teacher: TeacherOptions = TeacherOptions(),
    output: Path,
    depth: Count = 200,
    rescore: str | None = None,
    near_duplicates: Share | None = 0.8,
    format: Format = "scored-lists",
    overwrite: bool = False,
) -> None:
    """Write each query's best candidates with a teacher's scores.

    `nvret mine --candidates` applies any rule to them, without a model. The same command continues
    where it was stopped.

    Args:
        output: file to write (a folder for three-part)
        depth: candidates of each query
        rescore: a cross-encoder or a language model whose scores take the place of the teacher's:
            it reads the positive and all candidates of each pair
        near_duplicates: similarity from which a passage is a copy of a positive and left out; or
            none. A TREC run leaves nothing out
        format: scored-lists: query_id, document_ids (the positive first) and scores; three-part:
            with queries and documents beside them; labeled-list: sentence-transformers', with texts
            (Parquet); trec: a run, .gz or not
        overwrite: replace the output
    """
    import numpy as np

    from nvret import mining, teachers
    from nvret.analysis import judges
    from nvret.io import rankings
    from nvret.utils import processes

    data.check("rank needs")
    name = teacher.only("rank")
    if format == "three-part" and (output.suffix or output.exists()):
        raise NvretError(f"--output {output}: three-part is written as a new folder")
    suffixes = {"three-part": (), "trec": (".run", ".trec", ".txt", ".gz")}
    kinds = suffixes.get(format, (".parquet",))
    options.check_output("output", output, *kinds, overwrite=overwrite)
    built = teacher.build(name)
    reader = options.load_judge("rescore", rescore, teacher.device)
    if isinstance(reader, judges.BiEncoderJudge):
        raise NvretError(f"--rescore {rescore} is an embedding model, which --teacher takes")
    dataset = data.load(keep_unjudged=name == "vectors")
    options.check_depths(dataset, depth=depth)
    scorer = teachers.prepare(built, dataset)
    run = format == "trec"
    exclude = dataset.positives if run else mining.exclusions(dataset, near_duplicates)
    facts = {
        "version": nvret.__version__,
        "teacher": scorer.name,
        "kind": "sparse" if name == "bm25" else "dense",
        "teacher_fingerprint": scorer.fingerprint,
        "prompts": getattr(scorer, "prompts", None),
        "dataset_fingerprint": dataset.fingerprint,
        "depth": depth,
        "near_duplicates": None if run else near_duplicates,
    }
    parts = rankings.rank(dataset, scorer, depth, exclude)
    if reader is not None:
        facts |= {"teacher": reader.name, "first": scorer.name, "kind": "reranking"}
        key = judges.fingerprint(rescore, reader.max_length)
        parts = rankings.rescored(dataset, parts, reader, key)
    if not processes.is_main_process():
        for _ in parts:
            pass
        return
    count = rankings.write(dataset, parts, output, format, facts)
    pairs = len(dataset.pairs[0])
    short = count < pairs * depth and not run
    print(
        f"{output}: {count} candidates of {pairs} pairs of query and positive, "
        f"{len(np.unique(dataset.pairs[0]))} queries; as deep as {depth}"
        + (", less where fewer score" if short else "")
    )
