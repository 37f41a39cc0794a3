"""Both kernels against plain loops in float64, on odd shapes; the cache: what was written is what is read."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.attention import causal_mask, eager, patterns, scores, sdpa
from shared.lm.cache import KVCache
from shared.lm.config import DecoderConfig

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


CONFIG = DecoderConfig("llama", 8, 12, 2, 4, 2, 6, 8, 1024, 1e-5, tied=True)


def piece(rows, tokens, seed):
    return torch.randn(2, rows, tokens, 2, 6, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 3), st.integers(0, 40), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_what_is_read_is_what_was_written(rows, room, lengths):
    cache = KVCache(CONFIG, rows, room=room)
    cache._layers = [layer[:, :, :, : max(1, room)] for layer in cache._layers]  # a small start, so that it has to grow
    written = []
    for i, length in enumerate(lengths):
        k, v = piece(rows, length, i)
        written.append((k, v))
        for layer in (0, 1):
            keys, values = cache.write(layer, k + layer, v, cache.length)
        cache.length += length
        assert keys.shape == (rows, 2, cache.length, 6)
        torch.testing.assert_close(keys.transpose(1, 2), torch.cat([k for k, _ in written], 1) + 1)
        torch.testing.assert_close(values.transpose(1, 2), torch.cat([v for _, v in written], 1))
        torch.testing.assert_close(cache.values(0, cache.length), values.transpose(1, 2))
    assert cache.room >= cache.length


def test_room_is_reserved_once_and_grows_by_doubling():
    cache = KVCache(CONFIG, room=300)
    assert cache.room == 300
    reserved = cache.nbytes
    k, v = piece(1, 300, 0)
    cache.write(0, k, v, 0)
    assert cache.nbytes == reserved == 2 * 2 * 2 * 300 * 6 * 4
    cache.write(0, k[:, :1], v[:, :1], 300)
    assert cache.room == 600


def test_forks_share_the_past_and_not_the_future():
    cache = KVCache(CONFIG)
    k, v = piece(1, 5, 0)
    cache.write(0, k, v, 0)
    cache.length, cache.pad = 5, torch.tensor([1])
    twin = cache.fork()
    assert (twin.length, twin.pad) == (5, cache.pad)
    more = piece(1, 1, 1)
    twin.write(0, *more, 5)
    cache.write(0, *-more, 5)
    torch.testing.assert_close(twin.values(0, 6)[:, :5], cache.values(0, 6)[:, :5])
    torch.testing.assert_close(twin.values(0, 6)[:, 5:], -cache.values(0, 6)[:, 5:])


def test_a_cache_holds_no_gradients_and_fits_its_models_dtype():
    cache = KVCache(CONFIG, dtype=torch.bfloat16)
    k, v = piece(1, 3, 0).requires_grad_().unbind(0)
    keys, values = cache.write(0, k.bfloat16(), v.bfloat16(), 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    assert not keys.requires_grad
