"""Versions of the recipes whose results are kept: the part of a key that stands for the code.

A key names what a result is made of (texts, weights, parameters) and how: by these numbers, not by
the source text, so that moving or renaming a module voids nothing. Whoever changes what a recipe
gives raises its number; ``tests/test_recipes.py`` compares each recipe's result on a small input
with a recorded one, and says which number to raise.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata

VERSIONS = {
    "conversion": 1,  # files of a converted folder; what they hold has a fingerprint
    "vectors": 2,  # texts to vectors: tokens, backbone, pooling, what is read together
    "search": 1,  # exact top-k
    "bm25": 2,  # words, weights and search of the sparse teacher
    "near-duplicates": 2,  # normalised texts, word trigrams, clusters
    "mining": 1,  # ceilings, sampling, the table of negatives
    "ensembles": 1,
    "training": 3,  # batches, order, loss, optimizer
    "head": 3,  # the same, of a head on frozen vectors
    "evaluation": 2,  # scores per query
    "splits": 3,  # parts of a set, leaks, samples, corpora, mixtures
    "hidden-labels": 1,  # which labels an audit hides
    "judges": 1,  # scores of pairs by a second model
    "calibration": 1,  # a ceiling for a target
}


# Libraries whose own versions may change what a recipe gives
LIBRARIES = {
    "vectors": ("torch", "transformers", "tokenizers"),
    "training": ("torch", "transformers", "tokenizers", "accelerate", "peft"),
    "head": ("torch", "transformers"),
    "evaluation": ("mteb",),
    "judges": ("torch", "transformers", "tokenizers", "sentence-transformers"),
}


@cache
def _release(library: str) -> str:
    return metadata.version(library).partition("+")[0]


def versions(*names: str) -> dict[str, int | str]:
    """The versions of these recipes and of the libraries below them, as a part of a key.

    A build of a library for another device ("2.13.0+cpu") counts as the same version.

    >>> sorted(versions("vectors", "search"))
    ['search', 'tokenizers', 'torch', 'transformers', 'vectors']
    """
    libraries = {library for name in names for library in LIBRARIES.get(name, ())}
    return {name: VERSIONS[name] for name in names} | {name: _release(name) for name in libraries}
