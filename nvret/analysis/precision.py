"""How far a teacher's half precision moves the scores that mining compares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nvret import negatives
from nvret.analysis import ceilings
from nvret.data import RetrievalDataset
from nvret.teachers import DenseTeacher
from nvret.utils.store import hashed

QUERIES = 256


def agreement(
    dataset: RetrievalDataset, teacher: DenseTeacher, table: pa.Table
) -> dict[str, float | int | str]:
    """What float32 says of negatives that a teacher mined in another precision.

    The positives and negatives of ``QUERIES`` queries, whose ids hash lowest, are scored once more.

    Args:
        dataset: what was mined from.
        teacher: that mined; its ``dtype`` is compared.
        table: its negatives, with their provenance.
    Returns:
        dtype; negatives: that were scored again; largest_difference and mean_difference of their
        scores; above_ceiling: how many of them float32 places at their ceiling or above.
    """
    chosen = sorted(pc.unique(table["query_id"]).to_pylist(), key=hashed)[:QUERIES]
    rows = table.filter(pc.is_in(table["query_id"], pa.array(chosen))).to_pandas()
    seen = np.unique(rows[["positive_id", "negative_id"]])
    part = dataset.select(chosen, corpus_ids=seen)
    scorer = replace(teacher, dtype="float32", index=None).prepare(part, progress=False)
    query, passage = (pd.Index(ids.to_pylist()) for ids in (part.queries["id"], part.corpus["id"]))
    asked = query.get_indexer(rows["query_id"])
    rows["exact"] = scorer.pair_scores(asked, passage.get_indexer(rows["negative_id"]))
    rows["limit"] = scorer.pair_scores(asked, passage.get_indexer(rows["positive_id"]))
    ceiling = ceilings.recorded(negatives.provenance(table), rows["query_id"], rows["limit"])
    difference = np.abs(rows["exact"] - rows["score"])
    return {
        "dtype": teacher.dtype,
        "negatives": len(rows),
        "largest_difference": round(float(difference.max()), 6),
        "mean_difference": round(float(difference.mean()), 6),
        "above_ceiling": int((rows["exact"] >= ceiling).sum()),
    }
