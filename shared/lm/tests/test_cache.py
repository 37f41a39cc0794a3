"""The cache: what was written is what is read, however it grew."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.lm.cache import KVCache
from shared.lm.config import DecoderConfig

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


def test_lowering_the_length_forgets_the_tail():
    cache = KVCache(CONFIG)
    k, v = piece(1, 6, 0)
    cache.write(0, k, v, 0)
    cache.length = 4
    other = piece(1, 2, 1)
    keys, _ = cache.write(0, *other, cache.length)
    torch.testing.assert_close(keys.transpose(1, 2), torch.cat([k[:, :4], other[0]], 1))


def test_a_cache_holds_no_gradients_and_fits_its_models_dtype():
    cache = KVCache(CONFIG, dtype=torch.bfloat16)
    k, v = piece(1, 3, 0).requires_grad_().unbind(0)
    keys, values = cache.write(0, k.bfloat16(), v.bfloat16(), 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    assert not keys.requires_grad
