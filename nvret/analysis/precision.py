"""How far a teacher's half precision moves the scores that mining compares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nvret import methods, negatives
from nvret.data import RetrievalDataset
from nvret.teachers import DenseTeacher
from nvret.utils.store import hashed

QUERIES = 256


def agreement(
    dataset: RetrievalDataset, teacher: DenseTeacher, table: pa.Table, queries: int = QUERIES
) -> dict[str, float | int | str]:
    """What float32 says of negatives that a teacher mined in another precision.

    The positives and negatives of some queries are scored once more, in float32.

    Args:
        dataset: what was mined from.
        teacher: that mined; its ``dtype`` is compared.
        table: its negatives, with their provenance.
        queries: as many are looked at, those whose ids hash lowest.
    Returns:
        dtype; negatives: that were scored again; largest_difference and mean_difference of their
        scores; above_ceiling: how many of them float32 places at their ceiling or above.
    """
    chosen = sorted(pc.unique(table["query_id"]).to_pylist(), key=hashed)[:queries]
    rows = table.filter(pc.is_in(table["query_id"], pa.array(chosen))).to_pandas()
    seen = np.unique(rows[["positive_id", "negative_id"]])
    part = dataset.select(chosen, corpus_ids=seen)
    scorer = replace(teacher, dtype="float32", index=None).prepare(part, progress=False)
    query, passage = (
        {name: row for row, name in enumerate(ids.to_pylist())}
        for ids in (part.queries["id"], part.corpus["id"])
    )
    asked = rows["query_id"].map(query).to_numpy()
    rows["exact"] = scorer.pair_scores(asked, rows["negative_id"].map(passage).to_numpy())
    rows["limit"] = scorer.pair_scores(asked, rows["positive_id"].map(passage).to_numpy())
    facts = negatives.provenance(table)
    if facts["ceiling_positive"] == "lowest":
        rows["limit"] = rows.groupby("query_id")["limit"].transform("min")
    record = facts["method"]
    method = methods.build_method(record["name"], **record["parameters"])
    safe = facts["negative_positives"] == "safe"
    ceiling = method.ceiling(rows["limit"].to_numpy(), safe=safe)
    difference = np.abs(rows["exact"] - rows["score"])
    return {
        "dtype": teacher.dtype,
        "negatives": len(rows),
        "largest_difference": round(float(difference.max()), 6),
        "mean_difference": round(float(difference.mean()), 6),
        "above_ceiling": int((rows["exact"] >= ceiling).sum()),
    }
