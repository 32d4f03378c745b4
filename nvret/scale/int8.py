"""Passages in int8 on a CPU: the encoder's own module, converted in memory by OpenVINO.

Weights and activations of the matrix products are rounded to eight bits, with scales from a sample
of the very texts that are encoded (NNCF's quantization after training, with SmoothQuant). Queries
stay in float32: they are few, and so only one side is rounded. The vectors are not float32's;
`nvret.analysis.precision` measures by how much, and mining writes that into the provenance.

Needs the extra ``int8``. Nothing is fetched, nothing is written, and no usage is reported.

Source: Jacob et al. 2017, arXiv 1712.05877; Xiao et al. 2022 (SmoothQuant), arXiv 2211.10438.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvret.encode import Encoder
from nvret.models import batching
from nvret.models.batching import Ragged
from nvret.utils import machine, processes
from nvret.utils.errors import NvretError, check_choice

SAMPLE, BATCH = 320, 8  # texts that set the scales, and how many of them at a time
WIDTH = 8  # a batch's width is a multiple of it, since each shape has kernels of its own
BUDGET = 2048  # tokens of a batch


def load(path: str | Path, *, device: str = "cpu", dtype: str = "int8", **options: Any) -> Encoder:
    """As `Encoder.load`, of a model that reads passages in int8.

    `NvretError` as there; where the extra is not installed; for a static model, another device than
    a CPU or dtype than "int8", several processes.
    """
    check_choice("dtype", dtype, ("int8",))
    _import()
    encoder = Int8Encoder.load(path, device=device, **options)
    if encoder.layout.static or encoder.device.type != "cpu":
        what = "a static model" if encoder.layout.static else str(encoder.device)
        raise NvretError(f"{path}: int8 is for a transformer on a CPU, not for {what}")
    if processes.world()[1] > 1:
        raise NvretError("int8 is for one process, since its scales come from all texts")
    return encoder


class Int8Encoder(Encoder):
    """An `Encoder` whose ``encode`` reads passages in int8."""

    @property
    def precision(self) -> str:
        """For keys: what the rounding depends on beside the texts."""
        return f"int8 {machine.versions(['openvino', 'nncf'])}"

    def prepare(self, texts: Sequence[str], *, max_length: int | None = None) -> None:
        """Set the scales by a sample of these passages; takes some ten seconds."""
        batching.check_texts(texts)
        rows = np.unique(np.linspace(0, len(texts) - 1, SAMPLE).round().astype(np.int64))
        sample = [texts[row] for row in rows]
        tokens = self.tokenize(sample, max_length=max_length, rows=rows, progress=False)
        self._compiled = _compile(self, tokens, self.prompt_tokens("passage"))

    def encode(
        self, texts, kind="passage", *, max_length=None, prepared=False, **options
    ) -> np.ndarray:
        """As of `Encoder`; ``prepare`` reads the passages first, unless it is said to have."""
        if kind == "passage" and len(texts) and not prepared:
            self.prepare(texts, max_length=max_length)
        self._in_int8 = kind == "passage"
        return super().encode(texts, kind, max_length=max_length, **options)

    def _run(
        self, tokens: Ragged, token_budget: int | None, skip: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not self._in_int8:
            yield from super()._run(tokens, token_budget, skip)
            return
        own = threading.local()  # a request for each thread

        def infer(rows: np.ndarray) -> np.ndarray:
            if not hasattr(own, "request"):
                own.request = self._compiled.create_infer_request()
            return own.request.infer(_batch(tokens, rows, self.pad))[0].copy()

        budget = token_budget or BUDGET
        batches = batching.token_budget_batches(tokens.lengths, budget, slack=budget // 8)
        yield from batching.in_threads(infer, batches)


def _compile(encoder: Encoder, tokens: Ragged, skip: int) -> Any:
    """The encoder in int8, its scales set by these texts."""
    openvino, nncf = _import()
    groups = np.array_split(np.argsort(tokens.lengths, kind="stable"), -(-len(tokens) // BATCH))
    sample = [_batch(tokens, rows, encoder.pad) for rows in groups]
    example = {name: torch.from_numpy(value) for name, value in sample[-1].items()}
    with torch.inference_mode(), _isolated(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        model = nncf.quantize(
            openvino.convert_model(_Traced(encoder, skip), example_input=example),
            nncf.Dataset(sample),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(sample),
        )
    threads = torch.get_num_threads()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not int8: the same on every processor
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": min(threads, batching.MOST_WORKERS),
        "INFERENCE_NUM_THREADS": threads,
    }
    return openvino.Core().compile_model(model, "CPU", options)


class _Traced(torch.nn.Module):
    """The forward pass in the form that is converted: two tensors to one."""

    def __init__(self, encoder: Encoder, skip: int) -> None:
        super().__init__()
        self.encoder, self.skip = encoder, skip

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids, attention_mask, prompt_tokens=self.skip)


def _batch(tokens: Ragged, rows: Sequence[int] | np.ndarray, pad: int) -> dict[str, np.ndarray]:
    ids, lengths = tokens.padded(rows, pad)
    width = -(-ids.shape[1] // WIDTH) * WIDTH
    ids = np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=pad)
    mask = np.arange(width) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}


def _import() -> tuple[Any, Any]:
    """openvino and nncf, which report their use to a server unless this module is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        with _isolated():
            import nncf
            import openvino

            nncf.set_log_level(logging.ERROR)
    except ImportError as error:
        raise NvretError(
            f"int8 needs the extra int8: pip install 'nvret[int8]' ({error})"
        ) from None
    return openvino, nncf


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Nothing is printed, and logging stays as it was: both libraries set it up for all."""
    root, kind = logging.getLogger(), logging.getLoggerClass()
    levels = [(one, one.level) for one in (root, *root.handlers)]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.setLoggerClass(kind)
        for one, level in levels:
            one.setLevel(level)
