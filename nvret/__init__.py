"""Positive-aware hard-negative mining for text-embedding models (NV-Retriever, arXiv 2407.15831).

The package imports nothing heavy by itself: ``import nvret.mining`` (or ``search``, ``training``,
...) brings in what that room needs.
"""

__version__ = "0.1.0"
