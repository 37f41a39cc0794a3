"""How a chunk reads by token lists: one call of the block kernel equals torch's masks, wherever blocks are cut."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from services.llm_longctx.engine.attention.prefill_kernels import over_history
from services.llm_longctx.kernels import backends
from services.llm_longctx.methods.core.hook_results import TokenLists, TokenRows

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-2}


@st.composite
def listings(draw: st.DrawFn) -> tuple[int, int, tuple[TokenRows, ...], int]:
    """A chunk from `offset` to N whose last `tail` queries read everything, and its lists by blocks."""
    block, offset = draw(st.integers(1, 20)), draw(st.integers(0, 60))
    N = offset + draw(st.integers(1, 60))
    end = N - draw(st.integers(0, N - offset))
    torch.manual_seed(draw(st.integers(0, 9)))
    rows = []
    for row in range(offset // block, -(-end // block) if end > offset else 0):
        until = min((row + 1) * block, end)
        tokens = torch.randperm(until)[: draw(st.integers(1, until))].sort().values
        rows.append(TokenRows(max(row * block, offset), until, torch.cat((torch.zeros(1).long(), tokens)).unique()))
    if end < N:
        rows.append(TokenRows(end, N, None))
    return offset, N, tuple(rows), block


@pytest.mark.skipif("cpu_ext" not in backends(), reason="no C++ kernels are built here")
@pytest.mark.parametrize("dtype", TOLERANCE)
@hypothesis.given(listings())
def test_lists_taken_together_are_the_lists_one_by_one(dtype, case):
    offset, N, rows, block = case
    q, k, v = torch.randn(6, N - offset, 16), torch.randn(2, N, 16), torch.randn(2, N, 16)
    out, lse = over_history(*(x.to(dtype) for x in (q, k, v)), TokenLists(rows, block), "auto")
    wanted, sums = over_history(q, k, v, TokenLists(rows), "cpu_torch")
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, sums, atol=max(TOLERANCE[dtype], 1e-5), rtol=0)
