"""Positive-aware hard-negative mining for text-embedding models (NV-Retriever, arXiv 2407.15831).

When you mine hard negatives, let the positive's own score decide which candidates are too good to
be negatives. The method lies flat in this folder; read it in this order:

1. `data`: passages, queries, and which passage answers which query.
2. `encode`, `search`, `bm25`: texts to vectors; the exact k best below a ceiling; the sparse way.
3. `teachers`: what scores a query and a passage.
4. `methods`, `sampling`: the five rules as ceilings; which of the candidates are taken.
5. `mining`, `ensembles`, `negatives`: the table of negatives, of one teacher or several.
6. `losses`, and the folder `training`: InfoNCE, and fine-tuning with it.
7. `evaluation`: scores per query, by mteb.

Around it: `models` (model folders, batching), `io` (own data in, negatives out), `assets` (names to
folders), `scale` (several processes, memory, an index), `analysis` (are negatives false?), `cost`,
`study` (the paper's questions), `cli`, and `utils`.

Nothing heavy is imported here: ``import nvret.mining`` (or ``search``) brings in what it needs.
"""

__version__ = "0.1.0"
