"""The screen in one kernel: exact as every search; the kernel beside what it stands for."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn import functional

from helpers import examples
from helpers.search import oracle, problems
from nvret import search
from nvret.scale import fused, screen

CPU = torch.device("cpu")
triton = pytest.mark.skipif(find_spec("triton") is None, reason="comes with torch for CUDA")


def reference(queries, passages, limits):
    """What the kernel gives, with the scores written in between."""
    scores = queries.float() @ passages.float().T
    scores = scores.masked_fill(scores >= limits[:, None], -torch.inf)
    missing = -len(passages) % search.BLOCK
    padded = functional.pad(scores, (0, missing), value=-torch.inf)
    return padded.unflatten(1, (-1, search.BLOCK)).amax(2)


@pytest.fixture(params=[8, 64])
def small(request, monkeypatch):
    """No kernel; blocks and tiles that small problems fill."""
    monkeypatch.setattr(fused, "block_maxima", reference)
    monkeypatch.setattr(search, "BLOCK", request.param)
    monkeypatch.setattr(screen, "QUERY_TILE", 5)
    monkeypatch.setattr(screen, "MOST_PASSAGES", 2 * request.param)
    monkeypatch.setattr(screen, "AGAIN", 7)
    monkeypatch.setattr(screen, "DOUBTFUL", 3)


def test_equals_the_oracle(small):
    @examples(150)
    @given(problems())
    def check(problem):
        queries, corpus, k, ceiling, exclude = problem
        left, right = torch.from_numpy(queries), torch.from_numpy(corpus)
        options = {"ceiling": ceiling, "exclude": exclude, "make_tile": screen.FusedTile}
        got = screen.screened(left, right, k, screen.Screen(left, right, CPU), **options)
        scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
        ids, best = oracle(scores, k, ceiling, exclude)
        np.testing.assert_array_equal(got.ids.numpy(), ids)
        np.testing.assert_array_equal(got.scores.numpy(), best.astype(np.float32))

    check()


def vectors():
    draw = torch.Generator().manual_seed(0)
    made = torch.randn(9_100, 64, generator=draw)
    made[50:60] = made[170]  # copies
    made = functional.normalize(made, dim=1)
    return made[:100], made[100:]


@pytest.mark.parametrize("k", [1, 10, 64])
def test_real_tiles_need_no_other_search(k, monkeypatch):
    """Ceilings rule the ten best out, ids are left out, and nothing is left for `top_k`."""
    queries, corpus = vectors()
    best = search.top_k(queries, corpus, 20)
    ceiling = best.scores[:, 9:11].mean(1)  # on no score, which the two round otherwise
    options = {"ceiling": ceiling, "exclude": best.ids[:, 11:14].tolist()}
    plain = search.top_k(queries, corpus, k, **options)
    monkeypatch.setattr(fused, "block_maxima", reference)
    monkeypatch.setattr(search, "BLOCK", 8)
    monkeypatch.setattr(search, "top_k", None)
    monkeypatch.setattr(screen, "CROWDED", 100)
    score = screen.Screen(queries, corpus, CPU)
    found = screen.screened(queries, corpus, k, score, make_tile=screen.FusedTile, **options)
    assert torch.equal(found.ids, plain.ids)
    np.testing.assert_allclose(found.scores, plain.scores, atol=2e-7)


def test_a_tile_holds_maxima_alone():
    rows, columns = screen.FusedTile.shape(10_000, 10_000_000, 256)
    assert (rows, columns) == (2048, screen.MOST_PASSAGES)
    assert screen.FusedTile.shape(10, 100, 256) == (10, 128)
    rows, columns = screen.FusedTile.shape(10_000, 10_000_000, 16)
    assert 4 * rows * columns / search.BLOCK <= 16 * 2**20


def test_it_is_for_a_gpu():
    assert not fused.is_there("cpu")
    assert fused.is_there("cuda") == (find_spec("triton") is not None)


def python(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@triton
def test_the_kernel_does_what_it_stands_for():
    """In Triton's interpreter, which multiplies no bfloat16: the same numbers in float32."""
    python(
        """
import torch
from test_fused import reference
from nvret.scale import fused

draw = torch.Generator().manual_seed(0)
for count, size, width in ((1, 1, 1), (5, 64, 64), (129, 700, 100), (130, 257, 384)):
    queries, passages = (  # whole numbers: the same sums in any order
        torch.randint(-3, 4, (rows, width), generator=draw).float() for rows in (count, size)
    )
    for limit in (torch.inf, 40.0, 0.0, -20.0, -1e6):
        limits = limit + torch.randint(-3, 4, (count,), generator=draw)
        found = fused.block_maxima(queries, passages, limits)
        assert torch.equal(found, reference(queries, passages, limits))
""",
        TRITON_INTERPRET="1",
    )


@triton
@pytest.mark.parametrize(("capability", "shared"), [(80, 163), (89, 99), (90, 227)])
def test_the_kernel_compiles_for_a_gpu_and_fits_it(capability, shared):
    """A100, L4 and H100, none of which is needed; shared memory of a program in KiB."""
    python(
        f"""
import triton
from triton.backends.compiler import GPUTarget
from nvret import search
from nvret.scale import fused

types = dict.fromkeys(["queries", "passages"], "*bf16")
types |= dict.fromkeys(["limits", "maxima"], "*fp32")
types |= dict.fromkeys(["count", "size", "blocks"], "i32")
fixed = dict(D=768, ROWS=fused.ROWS, COLUMNS=fused.COLUMNS, DEPTH=fused.DEPTH, BLOCK=search.BLOCK)
source = triton.compiler.ASTSource(
    fn=fused._kernel(), signature=types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed
)
options = dict(num_warps=fused.WARPS, num_stages=fused.STAGES)
made = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=options)
assert made.metadata.shared <= {shared} * 1024, made.metadata.shared
assert "mma" in made.asm["ptx"]
print(made.metadata.shared)
"""
    )
