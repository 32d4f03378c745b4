"""Products of float32 matrices on a CPU, by the faster of the two libraries that torch brings.

torch asks oneMKL, which has no AVX-512 for AMD's processors and uses less than half of what they
can do. oneDNN makes its code for the processor that is there. On Intel's, which oneMKL is made for,
torch's choice stays. The choice is by the maker alone, so that a machine repeats itself to the last
bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nvret.utils import machine

FEW = 4096  # rows for which laying weights out takes longer than what it saves
ROWS = 2048  # of a product that weights are laid out for: a batch's tokens
COLUMNS = 4096  # of a product that is copied into place: it stays in a core's cache until then


@cache
def by_onednn() -> bool:
    """Whether float32 products go to oneDNN here."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    known = all(hasattr(torch.ops.mkldnn, f"_{name}")
                for name in ("linear_pointwise", "reorder_linear_weight"))  # fmt: skip
    return both and known and machine.vendor() == "AuthenticAMD"


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, laid_out: Tensor | None = None
) -> Tensor:
    """``torch.nn.functional.linear``: (…, D) and (E, D) to (…, E), with gradients.

    ``laid_out`` is the weight once more, as `laid_out` keeps it.

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[11.]])
    """
    if not _fits(x, weight):
        return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias, laid_out)
    return _product(x, weight if laid_out is None else laid_out, bias)


def scores(queries: Tensor, passages: Tensor, out: Tensor) -> None:
    """Write (Q, D) queries times (N, D) passages into ``out``, (Q, N)."""
    if not _fits(queries, passages):
        torch.mm(queries, passages.T, out=out)
        return
    for some, place in zip(passages.split(COLUMNS), out.split(COLUMNS, 1), strict=True):
        place.copy_(_product(queries, some))


class Linear(nn.Linear):
    """``nn.Linear`` by `linear`."""

    laid_out: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.laid_out)


def use(module: nn.Module) -> None:
    """Let the linear layers of a module, in place, multiply by `linear`."""
    for part in module.modules() if by_onednn() else ():
        if type(part) is nn.Linear:
            part.__class__ = Linear


@contextlib.contextmanager
def laid_out(module: nn.Module, rows: int) -> Iterator[None]:
    """Lay the weights of a module's `Linear` layers out once for many products, if there are rows
    enough, and not for each of them.

    The products stay the same to the last bit. The weights may not change meanwhile.
    """
    layers = [part for part in module.modules() if type(part) is Linear and part.weight.is_cpu]
    layers = [part for part in layers if rows >= FEW and part.weight.dtype == torch.float32]
    try:
        for layer in layers:
            layer.laid_out = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        yield
    finally:
        for layer in layers:
            layer.laid_out = None


def _fits(x: Tensor, weight: Tensor) -> bool:
    plain = (
        x.dtype == weight.dtype == torch.float32 and x.device.type == weight.device.type == "cpu"
    )
    traced = torch.jit.is_tracing() or torch.is_autocast_enabled("cpu")
    return by_onednn() and plain and not traced and x.numel() > 0 and weight.numel() > 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, laid_out: Tensor | None
    ) -> Tensor:
        of_x, of_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return _product(x, weight if laid_out is None else laid_out, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (of_x, of_weight, of_bias, _) = ctx.saved_tensors, ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _product(grad, weight.T) if of_x else None,
            _product(rows.T, x.reshape(-1, x.shape[-1]).T) if of_weight else None,
            rows.sum(0) if of_bias else None,
            None,
        )
