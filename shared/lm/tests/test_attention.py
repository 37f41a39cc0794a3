"""Both kernels against plain loops in float64, on odd shapes."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.attention import causal_mask, eager, ignore_taps, patterns, scores, sdpa

RANGES = ((1, 3), (1, 9), (0, 12), (1, 3), (1, 3))
SHAPES = st.tuples(*(st.integers(*one) for one in RANGES), st.sampled_from([2, 6, 16]))


def inputs(B, T, past, G, R, d, dtype=torch.float64):
    draw = torch.Generator().manual_seed(B + 7 * T + 31 * past + 101 * G + R + d)
    q = torch.randn(B, T, G * R, d, generator=draw, dtype=dtype)
    return q, *torch.randn(2, B, G, past + T, d, generator=draw, dtype=dtype)


def by_loops(q, keys, values, pad=None):
    """Attention as a textbook says it: one row at a time; a row that sees nothing is zero."""
    (B, T, H, d), (G, S) = q.shape, keys.shape[1:3]
    z = torch.zeros_like(q)
    for b in range(B):
        first = 0 if pad is None else int(pad[b])
        for t in range(T):
            seen = list(range(first, S - T + t + 1))
            for h in range(H) if seen else ():
                group = h // (H // G)
                weights = torch.stack([q[b, t, h] @ keys[b, group, s] / math.sqrt(d) for s in seen]).softmax(0)
                z[b, t, h] = sum(w * values[b, group, s] for w, s in zip(weights, seen, strict=True))
    return z


@given(SHAPES, st.booleans())
def test_kernels_equal_plain_loops(shape, padded):
    q, keys, values = inputs(*shape)
    pad = torch.arange(shape[0]) % (keys.shape[2] + 1) if padded else None
    known = by_loops(q, keys, values, pad)
    for kernel in (sdpa, eager):
        torch.testing.assert_close(kernel(q, keys, values, pad), known, atol=1e-10, rtol=1e-8)


def test_hidden_scores_are_minus_infinity_and_blind_rows_are_zero():
    q, keys, _ = inputs(1, 2, 0, 1, 2, 6)
    scored = scores(q, keys, causal_mask(torch.arange(2), 2, torch.tensor([1])))
    assert scored[0, 0, 0].tolist() == [-math.inf, -math.inf]
    pattern = patterns(scored)
    assert pattern[0, :, 0].eq(0).all()
    assert pattern[0, :, 1].tolist() == [[0, 1], [0, 1]]
    assert patterns(scored.half()).dtype == torch.half


def test_a_tap_may_change_scores_and_patterns():
    q, keys, values = inputs(1, 3, 0, 1, 2, 6)
    heard = []

    def tap(site, layer, x):
        heard.append((site, layer, tuple(x.shape)))
        return torch.full_like(x, 1 / 3) if site == "pattern" else x

    z = eager(q, keys, values, layer=5, tap=tap)
    assert heard == [("scores", 5, (1, 2, 3, 3)), ("pattern", 5, (1, 2, 3, 3))]
    torch.testing.assert_close(z[0, 0, 0], values[0, 0].mean(0))
    assert ignore_taps("z", 0, q) is q
