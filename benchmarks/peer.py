"""``python -m benchmarks.peer FOLDER MODEL OUTPUT [BATCH]``: mining as a user of
sentence-transformers writes it, from files to a file, 4 negatives at a relative margin of 5 %."""

from __future__ import annotations

import sys
from pathlib import Path

from datasets import load_dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives


def main(folder: Path, model: str, output: str, batch: int | None = None) -> None:
    files = {name: str(folder / f"{name}.jsonl") for name in ("corpus", "pairs")}
    read = {name: load_dataset("json", data_files=path, split="train", cache_dir=folder / "cache")
            for name, path in files.items()}  # fmt: skip
    mined = mine_hard_negatives(
        read["pairs"].select_columns(["query", "positive"]),
        SentenceTransformer(model, device="cpu", trust_remote_code=False),
        corpus=list(read["corpus"]["text"]),
        relative_margin=0.05,
        num_negatives=4,
        output_format="n-tuple",
        verbose=False,
        **({} if batch is None else {"faiss_batch_size": batch}),
    )
    mined.to_parquet(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:]))
