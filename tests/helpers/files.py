"""Files of rows, as users have them."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq


def write_rows(path, rows):
    """The rows (dicts) in the format of the file's name."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), **style if path.suffix == ".tsv" else {})
            writer.writeheader()
            writer.writerows(rows)
    return path


def write_beir(folder, dataset, split="test"):
    """A data set in BEIR's layout."""
    (folder / "qrels").mkdir(parents=True)
    corpus = dataset.corpus.rename_columns({"id": "_id"}).to_pylist()
    queries = dataset.queries.select(["id", "text"]).rename_columns({"id": "_id"}).to_pylist()
    qrels = dataset.qrels.rename_columns(["query-id", "corpus-id", "score"]).to_pylist()
    write_rows(folder / "corpus.jsonl", corpus)
    write_rows(folder / "queries.jsonl", queries)
    write_rows(folder / "qrels" / f"{split}.tsv", qrels)
    return folder
